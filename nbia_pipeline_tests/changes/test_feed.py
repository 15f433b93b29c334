"""The feed of changes against a model of it, over histories that nobody thought of, with crashes at every write."""

# ruff: noqa: DTZ001 - the tables state no zone

from __future__ import annotations

import uuid
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbia_pipeline.changes.diff import (
    ADDED,
    RETURNED,
    REVISED,
    UID,
    WITHDRAWN,
    Observation,
    diff,
    kinds_of,
    replay,
    value_of,
)
from nbia_pipeline.changes.feed import record_changes
from nbia_pipeline.changes.present import (
    present_series,
    returned_collections,
    vanished_collections,
    withdrawn_series,
)
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.schema.status import API, KEPT, LISTED_AT
from nbia_pipeline.schema.tables import COLLECTIONS, SERIES, SERIES_CHANGES, SERIES_SEEN
from nbia_pipeline_tests.helpers.places import Place
from nbia_pipeline_tests.helpers.series import Crash

START = datetime(2026, 1, 1)
WAIT = timedelta(hours=6)
FREE = ("FileSize", "LicenseName", "TimeStamp", "AnnotationsFlag")
"""Columns that the histories change: one of each type, text with null and empty."""

Values = dict[str, Any]
Rows = dict[str, Values]


def table_of(rows: Rows) -> pa.Table:
    """Return a listing of series by UID."""
    base = {"StudyInstanceUID": "1", "PatientID": "P", "Collection": "C"}
    return pa.Table.from_pylist([{**base, UID: uid, **values} for uid, values in rows.items()], schema=SERIES.schema)


def hour(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def observed(hours: float, exact: bool = True) -> Observation:
    return Observation(hour(hours), hour(hours), "run", WAIT, exact)


NOTHING_SEEN = SERIES_SEEN.schema.empty_table()


# --- the model: one series at a time, in plain Python


@dataclass
class Model:
    """What is known of the series, and what was said of them."""

    known: Rows = field(default_factory=dict)
    since: dict[str, datetime | None] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    versions: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    said: set[tuple[Any, ...]] = field(default_factory=set)

    def look(self, rows: Rows, at: datetime) -> None:
        for uid in {*rows, *self.known}:
            found = self._look_at(uid, rows.get(uid), at)
            if found:
                self.versions[uid] += 1
                self.said |= {(uid, self.versions[uid], *what, at) for what in found}

    def _look_at(self, uid: str, now: Values | None, at: datetime) -> list[tuple[Any, ...]]:
        if now is None:
            self.since[uid] = self.since.get(uid) or at
            first = self.since[uid]
            assert first is not None
            if uid in self.gone or at - first < WAIT:
                return []
            self.gone.add(uid)
            return [(WITHDRAWN, None, None, None)]
        before = self.known.get(uid)
        self.known[uid], self.since[uid] = now, None
        if before is None:
            return [(ADDED, None, None, None)]
        found: list[tuple[Any, ...]] = [(REVISED, c, before[c], now[c]) for c in FREE if before[c] != now[c]]
        if uid in self.gone:
            self.gone.remove(uid)
            found.append((RETURNED, None, None, None))
        return found


VALUES = st.fixed_dictionaries(
    {
        "FileSize": st.sampled_from([None, 0, 7, 2**40]),
        "LicenseName": st.sampled_from([None, "", "CC BY 3.0", "null", 'a "b", ä']),
        "TimeStamp": st.sampled_from([None, datetime(2024, 3, 5), datetime(2024, 3, 5, 10, 20, 0, 125000)]),
        "AnnotationsFlag": st.sampled_from([None, True, False]),
    }
)
LISTINGS = st.dictionaries(st.sampled_from("abcd"), VALUES, min_size=1)
HISTORIES = st.lists(st.tuples(st.sampled_from([1, 5, 6, 7]), LISTINGS), min_size=1, max_size=8)


def said_by(changes: pa.Table) -> set[tuple[Any, ...]]:
    """Return the rows of a feed as the model says them; fails where a row is there twice."""
    rows = [
        (r[UID], r["Version"], r["Change"], r["ColumnName"], *_values(r), r["ListedAt"]) for r in changes.to_pylist()
    ]
    assert len({row[:2] + row[3:4] for row in rows}) == len(rows)
    return set(rows)


def _values(row: dict[str, Any]) -> tuple[Any, Any]:
    if row["ColumnName"] is None:
        return row["OldValue"], row["NewValue"]
    return value_of(row["ColumnName"], row["OldValue"]), value_of(row["ColumnName"], row["NewValue"])


def expect_state(seen: pa.Table, model: Model) -> None:
    rows = {r[UID]: r for r in seen.to_pylist()}
    assert len(rows) == seen.num_rows
    assert {uid: {c: r[c] for c in FREE} for uid, r in rows.items()} == model.known
    assert {uid: r["MissingSince"] for uid, r in rows.items()} == model.since
    assert {uid for uid, r in rows.items() if r["Withdrawn"]} == model.gone
    assert {uid: r["Version"] for uid, r in rows.items()} == model.versions


@pytest.mark.slow
@given(HISTORIES)
@settings(max_examples=60, deadline=None)
def test_any_history_is_told_as_the_model_tells_it(history: list[tuple[int, Rows]]) -> None:
    model, seen, feed, now = Model(), NOTHING_SEEN, [], 0.0
    for gap, rows in history:
        now += gap
        changes, seen = diff(seen, table_of(rows), observed(now))
        feed.append(changes)
        model.look(rows, hour(now))
        expect_state(seen, model)
    assert said_by(pa.concat_tables(feed)) == model.said


@pytest.mark.slow
@given(HISTORIES, st.data())
@settings(max_examples=60, deadline=None)
def test_the_feed_alone_leads_from_any_state_to_the_next(history: list[tuple[int, Rows]], data: st.DataObject) -> None:
    """Applied to a state the changes give the next one, but for absences that are not believed yet."""
    states, feed, now = [NOTHING_SEEN], [], 0.0
    for gap, rows in history:
        now += gap
        changes, seen = diff(states[-1], table_of(rows), observed(now))
        feed.append(changes)
        states.append(seen)
    start = data.draw(st.integers(0, len(history) - 1))
    stop = data.draw(st.integers(start + 1, len(history)))
    known = pa.concat_tables([table_of(rows) for _, rows in reversed(history[:stop])])
    later = replay(states[start], pa.concat_tables(feed[start:stop]), known)
    assert lasting(later) == lasting(states[stop])


def lasting(seen: pa.Table) -> dict[str, tuple[Any, ...]]:
    return {r[UID]: (r["Version"], r["Withdrawn"], *(r[c] for c in FREE)) for r in seen.to_pylist()}


# --- cases that deserve a name

A = {"FileSize": 7, "LicenseName": "x", "TimeStamp": datetime(2024, 3, 5, 10, 20), "AnnotationsFlag": None}


def kinds(changes: pa.Table) -> dict[str, int]:
    return {kind: count for kind, count in kinds_of(changes).items() if count}


def test_null_and_empty_are_two_values() -> None:
    _, seen = diff(NOTHING_SEEN, table_of({"a": {**A, "LicenseName": None}}), observed(0))
    changes, _ = diff(seen, table_of({"a": {**A, "LicenseName": ""}}), observed(1))
    (row,) = changes.to_pylist()
    assert (row["ColumnName"], row["OldValue"], row["NewValue"]) == ("LicenseName", None, "")


def test_a_series_that_is_listed_twice_is_added_once() -> None:
    changes, seen = diff(NOTHING_SEEN, pa.concat_tables([table_of({"a": A}), table_of({"a": A})]), observed(0))
    assert (changes.num_rows, seen.num_rows) == (1, 1)


def test_the_other_dialect_is_no_revision() -> None:
    v2 = {"a": {**A, "Site": None}, "b": {**A, "Site": None}}
    v4 = {u: {**A, "Site": "North", "TimeStamp": datetime(2024, 3, 5), "LicenseName": "x"} for u in v2}
    _, seen = diff(NOTHING_SEEN, table_of(v2), observed(0))
    changes, seen = diff(seen, table_of(v4), observed(1, exact=False))
    assert kinds(changes) == {}
    changes, seen = diff(seen, table_of(v2), observed(2, exact=False))
    assert kinds(changes) == {}
    changes, _ = diff(seen, table_of({**v4, "a": {**v4["a"], "TimeStamp": datetime(2024, 3, 6)}}), observed(3, False))
    assert [(r[UID], r["ColumnName"]) for r in changes.to_pylist()] == [("a", "TimeStamp")]
    # In one dialect the same differences are revisions.
    changes, _ = diff(seen, table_of(v4), observed(3))
    assert {(r[UID], r["ColumnName"]) for r in changes.to_pylist()} == {
        (u, c) for u in v2 for c in ("Site", "TimeStamp")
    }


# --- on a lake


class CrashingLake(Lake):
    """A lake whose process dies at one of its writes."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.die_at: tuple[int, bool] | None = None

    def write_table(self, *words: Any, **options: Any) -> int:
        if self.die_at is None:
            return super().write_table(*words, **options)
        left, after = self.die_at
        self.die_at = (left - 1, after)
        if left == 0 and not after:
            raise Crash
        size = super().write_table(*words, **options)
        if left == 0:
            raise Crash
        return size


def a_lake(place: Place) -> CrashingLake:
    """Return an empty lake, for one of several examples in a place."""
    return CrashingLake(str(place / uuid.uuid4().hex))


def list_series(lake: Lake, rows: Rows, hours: float, collection: str = "C", api: str = "v2") -> None:
    table = table_of(rows)
    at = table.schema.get_field_index("Collection")
    table = table.set_column(at, table.schema.field(at), pa.repeat(pa.scalar(collection), table.num_rows))
    facts = {LISTED_AT: hour(hours).isoformat(), API: api}
    lake.write_table(SERIES, table, collection, properties=facts)


def list_collections(lake: Lake, names: list[str], hours: float, kept: str = '["*"]') -> None:
    rows = pa.Table.from_pylist([{"Collection": n} for n in names], schema=COLLECTIONS.schema)
    lake.write_table(COLLECTIONS, rows, properties={LISTED_AT: hour(hours).isoformat(), KEPT: kept})


CRASHES = st.one_of(st.none(), st.tuples(st.sampled_from([0, 1]), st.booleans()))


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from([1, 6]), LISTINGS, CRASHES), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_a_crash_at_any_write_changes_nothing_once_it_ran_again(
    place: Place, history: list[tuple[int, Rows, Any]]
) -> None:
    model, now = Model(), 0.0
    lake = a_lake(place)
    for gap, rows, crash in history:
        now += gap
        list_series(lake, rows, now)
        lake.die_at = crash
        died = False
        try:
            record_changes(lake, "C", wait=WAIT)
        except Crash:
            died = True
        lake.die_at = None
        known = said_by(lake.read_table(SERIES_CHANGES, "C"))
        record_changes(lake, "C", wait=WAIT)
        model.look(rows, hour(now))
        told = said_by(lake.read_table(SERIES_CHANGES, "C"))
        assert told == model.said
        assert died or told == known
    expect_state(lake.read_table(SERIES_SEEN, "C"), model)


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from([1, 6]), LISTINGS, CRASHES), min_size=2, max_size=6))
@settings(max_examples=25, deadline=None)
def test_a_crash_and_another_listing_leave_a_feed_without_gap_or_repetition(
    place: Place,
    history: list[tuple[int, Rows, Any]],
) -> None:
    now = 0.0
    lake = a_lake(place)
    for n, (gap, rows, crash) in enumerate(history):
        now += gap
        list_series(lake, rows, now)
        lake.die_at = crash if n < len(history) - 1 else None
        with suppress(Crash):
            record_changes(lake, "C", wait=WAIT)
        lake.die_at = None
    feed = lake.read_table(SERIES_CHANGES, "C")
    seen = lake.read_table(SERIES_SEEN, "C")
    said_by(feed)
    expect_continuous(feed.to_pylist(), {r[UID]: r for r in seen.to_pylist()})
    listed = {r[UID]: {c: r[c] for c in FREE} for r in seen.to_pylist() if r["MissingSince"] is None}
    assert listed == history[-1][1]


def expect_continuous(feed: list[dict[str, Any]], state: dict[str, dict[str, Any]]) -> None:
    """Every series has one version after the other, every value begins where the one before ended."""
    versions: dict[str, int] = defaultdict(int)
    gone: set[str] = set()
    values: dict[tuple[str, str], Any] = {}
    for row in feed:
        uid, kind = row[UID], row["Change"]
        assert row["Version"] == versions[uid] + 1 or (kind == REVISED and row["Version"] == versions[uid])
        assert (kind == ADDED) == (row["Version"] == 1)
        versions[uid] = row["Version"]
        if kind == REVISED:
            old, new = _values(row)
            assert values.get((uid, row["ColumnName"]), old) == old
            values[uid, row["ColumnName"]] = new
        if kind in (WITHDRAWN, RETURNED):
            assert (uid in gone) == (kind == RETURNED)
            gone ^= {uid}
    assert versions == {uid: row["Version"] for uid, row in state.items()}
    assert gone == {uid for uid, row in state.items() if row["Withdrawn"]}
    assert all(state[uid][column] == value for (uid, column), value in values.items())


@pytest.mark.disk("times of files")
def test_the_same_listing_is_taken_into_account_once(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    list_series(lake, {"a": A, "b": A}, 0)
    assert kinds(record_changes(lake, "C", run_id="r-1").changes) == {ADDED: 2}
    written = (tmp_path / "tables/series_seen/Collection=C/part-0.parquet").stat().st_mtime_ns
    noted = record_changes(lake, "C", run_id="r-2")
    assert (noted.changes.num_rows, noted.rows, noted.listed, noted.missing) == (0, 2, 2, 0)
    assert (tmp_path / "tables/series_seen/Collection=C/part-0.parquet").stat().st_mtime_ns == written
    assert set(lake.read_table(SERIES_CHANGES, "C")["RunID"].to_pylist()) == {"r-1"}


def test_a_lost_state_is_made_again_from_the_feed(place: Place) -> None:
    lake = Lake(str(place))
    for n, rows in enumerate(({"a": A, "b": A}, {"a": {**A, "FileSize": 8}}, {"a": {**A, "FileSize": 8}})):
        list_series(lake, rows, 6 * n)
        record_changes(lake, "C")
    before = lasting(lake.read_table(SERIES_SEEN, "C"))
    lake.remove("tables/series_seen/Collection=C/part-0.parquet")
    record_changes(lake, "C")
    after = lasting(lake.read_table(SERIES_SEEN, "C"))
    assert after["a"] == before["a"]
    assert after["b"][:2] == before["b"][:2] == (2, True)
    assert lake.count_rows(SERIES_CHANGES, "C") == 4


def test_a_collection_that_was_never_listed_says_what_to_do(place: Place) -> None:
    with pytest.raises(LakeError, match="'C' was never listed: materialize series first"):
        record_changes(Lake(str(place)), "C")


# --- collections that vanish


@pytest.fixture
def lake(place: Place) -> Lake:
    """A lake that knows two series of C, and one of another collection."""
    lake = Lake(str(place))
    list_collections(lake, ["B", "C"], 0)
    list_series(lake, {"a": A, "b": A}, 0.1)
    list_series(lake, {"z": A}, 0.1, "B")
    for collection in ("B", "C"):
        record_changes(lake, collection)
    return lake


def test_a_collection_is_withdrawn_when_two_lists_apart_in_time_lack_it(lake: Lake) -> None:
    for at, gone in ((3, 0), (8, 0), (9, 2)):
        list_collections(lake, ["B"], at)
        assert vanished_collections(lake) == ["C"]
        noted = record_changes(lake, "C")
        assert (kinds(noted.changes).get(WITHDRAWN, 0), noted.missing) == (gone, 2 - gone)
        record_changes(lake, "C")  # the same list again is no second one
    assert withdrawn_series(lake, "C") == {"a", "b"}
    assert lake.count_rows(SERIES, "C") == 2
    assert present_series(lake, "C").num_rows == 0
    assert withdrawn_series(lake, "B") == frozenset()


def test_a_collection_that_is_left_out_by_choice_is_not_withdrawn(lake: Lake) -> None:
    for at in (3, 12):
        list_collections(lake, ["B"], at, kept='["B*"]')
        assert vanished_collections(lake) == []
        assert record_changes(lake, "C").missing == 0


def test_a_list_of_collections_that_is_older_than_the_series_says_nothing(lake: Lake) -> None:
    list_collections(lake, ["B"], 3)
    list_series(lake, {"a": A, "b": A}, 4)
    assert record_changes(lake, "C").missing == 0


def test_a_list_that_names_the_collection_again_starts_the_wait_anew(lake: Lake) -> None:
    for at, names, missing in ((3, ["B"], 2), (5, ["B", "C"], 0), (10, ["B"], 2)):
        list_collections(lake, names, at)
        noted = record_changes(lake, "C")
        assert (noted.missing, noted.changes.num_rows) == (missing, 0)
    list_collections(lake, ["B"], 16)
    assert kinds(record_changes(lake, "C").changes) == {WITHDRAWN: 2}


def test_a_list_that_names_the_collection_again_is_to_be_acknowledged(lake: Lake) -> None:
    for at, names, back in ((3, ["B"], []), (5, ["B", "C"], ["C"])):
        list_collections(lake, names, at)
        assert returned_collections(lake) == back
        record_changes(lake, "C")
        assert returned_collections(lake) == []


def test_a_list_that_names_the_collection_does_not_excuse_a_series_that_its_listing_lacks(lake: Lake) -> None:
    list_series(lake, {"a": A}, 2)
    record_changes(lake, "C")
    for at, names in ((3, ["B"]), (5, ["B", "C"])):
        list_collections(lake, names, at)
        record_changes(lake, "C")
    list_series(lake, {"a": A}, 8)
    assert kinds(record_changes(lake, "C").changes) == {WITHDRAWN: 1}


def test_what_a_newer_listing_names_is_not_withdrawn_even_before_the_feed_knows(lake: Lake) -> None:
    for at in (3, 12):
        list_collections(lake, ["B"], at)
        record_changes(lake, "C")
    list_series(lake, {"b": {**A, "FileSize": 9}}, 13)
    assert withdrawn_series(lake, "C") == {"a"}
    assert present_series(lake, "C")[UID].to_pylist() == ["b"]
    rows = {(r[UID], r["Change"], r["Version"]) for r in record_changes(lake, "C").changes.to_pylist()}
    assert rows == {("b", RETURNED, 3), ("b", REVISED, 3)}


def test_the_dialect_is_remembered_with_the_listing(lake: Lake) -> None:
    list_series(
        lake, {"a": {**A, "Site": "N", "TimeStamp": datetime(2024, 3, 5)}, "b": {**A, "Site": "N"}}, 2, api="v4"
    )
    assert record_changes(lake, "C").changes.num_rows == 0
    list_series(
        lake, {"a": {**A, "Site": "S", "TimeStamp": datetime(2024, 3, 5)}, "b": {**A, "Site": "N"}}, 3, api="v4"
    )
    assert [(r["ColumnName"], r["NewValue"]) for r in record_changes(lake, "C").changes.to_pylist()] == [("Site", "S")]
