"""A feed or a state that is damaged or missing: what is left of it, and that no change is recorded twice or early."""

from __future__ import annotations

import logging
import uuid
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbia_pipeline.changes.diff import ADDED, RETURNED, REVISED, UID, WITHDRAWN
from nbia_pipeline.changes.feed import record_changes
from nbia_pipeline.changes.rebuild import rebuild_feed
from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.lake.layout import EARLIER, earlier_path, table_path
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.status import API, CHANGES, LISTED_AT
from nbia_pipeline.schema.tables import SERIES, SERIES_CHANGES, SERIES_METADATA, SERIES_SEEN
from nbia_pipeline_tests.changes.test_feed import (
    LISTINGS,
    WAIT,
    A,
    Rows,
    expect_continuous,
    hour,
    list_collections,
    list_series,
)
from nbia_pipeline_tests.helpers.places import WHERE, Place, lake_in

FEED, STATE = (table_path(table.name, "C") for table in (SERIES_CHANGES, SERIES_SEEN))


@pytest.fixture(params=WHERE)
def lake(request: pytest.FixtureRequest, place: Place) -> Lake:
    return lake_in(place, request.param)


def look(lake: Lake, rows: Rows, hours: float) -> list[str]:
    """List the collection and record it; return what changed."""
    list_series(lake, rows, hours)
    return kinds(record_changes(lake, "C").changes)


def kinds(changes: Any) -> list[str]:
    return [f"{row['Change']} {row[UID]} {row['Version']}" for row in changes.to_pylist()]


def feed(lake: Lake) -> list[str]:
    return kinds(lake.read_table(SERIES_CHANGES, "C"))


def position(lake: Lake, table: Table = SERIES_SEEN) -> str | None:
    return lake.read_properties(table, "C").get(CHANGES)


def revised(size: int) -> dict[str, Any]:
    return {**A, "FileSize": size}


# --- the feed


def test_the_feed_that_was_replaced_last_is_put_back(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    look(lake, {"a": A, "b": A}, 0)
    look(lake, {"a": revised(8), "b": A}, 1)
    lake.write_table(SERIES_METADATA, SERIES_METADATA.schema.empty_table(), "C", properties={CHANGES: "3", API: "v2"})
    lake.put_bytes(FEED, b"what a person may still read")
    list_series(lake, {"a": revised(8), "b": revised(9)}, 2)
    with caplog.at_level(logging.WARNING):
        summary = record_changes(lake, "C")
    assert feed(lake) == ["added a 1", "added b 1", "revised b 2"]
    assert {row[UID]: row["Version"] for row in lake.read_table(SERIES_SEEN, "C").to_pylist()} == {"a": 2, "b": 2}
    assert position(lake) == "3" and position(lake, SERIES_METADATA) is None
    put_back, lost = summary.rebuilt
    aside = f"{EARLIER}/series_changes/Collection=C/part-0.parquet.damaged"
    assert (
        f"what was recorded after {hour(0)} (UTC) is lost. The damaged file was moved to {lake.url(aside)}" in put_back
    )
    assert lost == "the feed of changes has 2 rows, and had 3: 1 are lost. The state of the series is not lost"
    assert caplog.text.count(lost) == 1 and lake.read_bytes(aside) == b"what a person may still read"
    assert record_changes(lake, "C").rebuilt == []


@pytest.mark.parametrize("content", [b"", None], ids=["0 bytes", "missing"])
def test_a_feed_without_an_earlier_file_begins_again(lake: Lake, content: bytes | None) -> None:
    look(lake, {"a": A, "b": A}, 0)
    if content is None:
        lake.remove(FEED)
    else:
        lake.put_bytes(FEED, content)
    list_series(lake, {"a": revised(8), "b": A}, 1)
    begins, lost = record_changes(lake, "C").rebuilt
    assert "the feed of changes begins again" in begins and "had 2: 2 are lost" in lost
    assert feed(lake) == ["revised a 2"] and position(lake) == "1"


def test_a_feed_from_a_backup_is_gone_on_with(lake: Lake) -> None:
    look(lake, {"a": A}, 0)
    backup = lake.read_bytes(FEED)
    for n in range(1, 4):
        look(lake, {"a": revised(n)}, n)
    lake.put_bytes(FEED, backup or b"")
    assert look(lake, {"a": revised(9)}, 5) == ["revised a 5"]
    assert feed(lake) == ["added a 1", "revised a 5"] and position(lake) == "2"


# --- the state


@pytest.mark.parametrize("earlier", [True, False], ids=["earlier file", "feed alone"])
def test_a_state_follows_from_what_is_left(lake: Lake, earlier: bool) -> None:
    look(lake, {"a": A, "b": A}, 0)
    look(lake, {"a": revised(8)}, 6)
    look(lake, {"a": revised(8), "c": A}, 12)
    before = lake.read_table(SERIES_SEEN, "C").sort_by(UID)
    recorded = feed(lake)
    assert recorded == ["added a 1", "added b 1", "revised a 2", "added c 1", "withdrawn b 2"]
    lake.put_bytes(STATE, bytes(100))
    if not earlier:
        lake.remove(earlier_path(STATE))
    (why,) = record_changes(lake, "C").rebuilt
    assert ("from the file that it had replaced and the feed" in why) == earlier
    after = lake.read_table(SERIES_SEEN, "C").sort_by(UID)
    columns = [UID, "FileSize", "Withdrawn", "Version"]
    # Of a withdrawn series the feed alone has no values.
    same = after.select(columns).to_pylist() == before.select(columns).to_pylist()
    assert same == earlier
    assert after.drop_columns(["FileSize"]).select([UID, "Withdrawn", "Version"]) == before.select(
        [UID, "Withdrawn", "Version"]
    )
    assert feed(lake) == recorded and position(lake) == "5"
    assert lake.read_properties(SERIES_SEEN, "C")[LISTED_AT] == hour(12).isoformat()


def test_a_change_that_was_listed_and_not_recorded_is_recorded(lake: Lake) -> None:
    look(lake, {"a": A, "b": A}, 0)
    look(lake, {"a": revised(8), "b": A}, 1)
    lake.put_bytes(STATE, b"")
    assert look(lake, {"a": revised(8), "b": revised(9)}, 2) == ["revised b 2"]


def test_an_absence_begins_again(lake: Lake) -> None:
    look(lake, {"a": A, "b": A}, 0)
    look(lake, {"a": A}, 1)
    look(lake, {"a": A}, 2)
    lake.put_bytes(STATE, b"")
    assert look(lake, {"a": A}, 9) == []
    assert look(lake, {"a": A}, 15) == ["withdrawn b 2"]


def test_a_collection_that_vanished_does_not_return_with_its_state(lake: Lake) -> None:
    list_collections(lake, ["C"], 0)
    look(lake, {"a": A}, 0.1)
    for hours in (1, 8):
        list_collections(lake, ["B"], hours)
        record_changes(lake, "C")
    assert feed(lake) == ["added a 1", "withdrawn a 2"]
    for lost in ([STATE], [STATE, earlier_path(STATE)]):
        for path in lost:
            lake.put_bytes(path, b"")
        assert len(record_changes(lake, "C").rebuilt) == 1
        assert feed(lake) == ["added a 1", "withdrawn a 2"]
    list_collections(lake, ["C"], 20)
    assert look(lake, {"a": A}, 20.1) == ["returned a 3"]


def test_a_state_is_not_touched_while_the_series_cannot_be_read(lake: Lake) -> None:
    look(lake, {"a": A}, 0)
    for path in (STATE, table_path(SERIES.name, "C")):
        lake.put_bytes(path, b"\0")
    with pytest.raises(DamagedFile, match="tables/series/"):
        rebuild_feed(lake, "C")
    assert lake.read_bytes(STATE) == b"\0"


LOSSES = st.sampled_from([None, None, "damaged", "missing", "all"])


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from([1, 5, 7]), LISTINGS, LOSSES), min_size=2, max_size=6))
@settings(max_examples=20, deadline=None)
def test_whatever_is_lost_of_the_state_nothing_is_recorded_twice_or_early(
    place: Place, history: list[tuple[int, Rows, Any]]
) -> None:
    now = 0.0
    listed: list[tuple[datetime, Rows]] = []
    lake = Lake(str(place / uuid.uuid4().hex))
    for gap, rows, loss in history:
        now += gap
        listed.append((hour(now), rows))
        if loss and listed[1:]:
            lake.remove(STATE)
            if loss == "damaged":
                lake.put_bytes(STATE, b"PAR1")
            if loss == "all":
                lake.remove(earlier_path(STATE))
        look(lake, rows, now)
    changes = lake.read_table(SERIES_CHANGES, "C").to_pylist()
    state = {row[UID]: row for row in lake.read_table(SERIES_SEEN, "C").to_pylist()}
    if "all" in {loss for _, _, loss in history[1:]}:
        # What the feed does not say of a series is taken from the next listing, which is compared loosely.
        expect_versions(changes, state)
    else:
        expect_continuous(changes, state)
    for change in changes:
        at = change["ListedAt"]
        if change["Change"] == WITHDRAWN:
            assert not any(change[UID] in rows for when, rows in listed if at - WAIT <= when <= at)
            assert any(when <= at - WAIT and change[UID] not in rows for when, rows in listed)
        elif change["Change"] in (ADDED, RETURNED, REVISED):
            assert any(when == at and change[UID] in rows for when, rows in listed)


def expect_versions(changes: list[dict[str, Any]], state: dict[str, dict[str, Any]]) -> None:
    """Every series was added once, and has one version after the other, up to that of its state."""
    for uid, row in state.items():
        versions = [change["Version"] for change in changes if change[UID] == uid]
        assert sorted(set(versions)) == list(range(1, row["Version"] + 1)) and versions == sorted(versions)
        assert [c["Change"] for c in changes if c[UID] == uid].count(ADDED) == 1
