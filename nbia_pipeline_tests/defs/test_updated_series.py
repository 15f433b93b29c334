"""The sensor of updated series by real ticks, at simulated moments, over an archive that releases and fails."""

# ruff: noqa: DTZ001 - the server's times, and ours, have no zone

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.cursor import CURSOR_BYTES
from nbia_pipeline.defs.naming import Naming, register
from nbia_pipeline.defs.sensors import RUN_BYTES, partitions_of
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.server.fault_injection import FaultedRequest
from nbia_pipeline_tests.helpers.faults import always, changed, html
from nbia_pipeline_tests.helpers.ticker import MONDAY, Make, Ticker, asked, day

pytestmark = pytest.mark.slow

SENSOR = "nbia_updated_series"


@pytest.fixture
def ticker(make: Make, control: Operations) -> Ticker:
    """A sensor that was turned on on Monday, over an archive that released nothing for a long time."""
    ticker = make()
    assert ticker.tick(SENSOR, MONDAY).run_requests == []
    return ticker


TCGA = [("nbia_update", "TCGA-DEMO")]


# --- the first tick


def test_the_first_tick_takes_what_is_there_as_known(make: Make, control: Operations) -> None:
    control.add_series("TCGA-DEMO", released=date(2026, 3, 8))
    ticker = make()
    first = ticker.tick(SENSOR, MONDAY)
    assert first.run_requests == []
    assert "Started: the releases of 1 collection after 2026-03-02 count as known" in first.skip_message
    second = ticker.tick(SENSOR, day(1))
    assert second.run_requests == []
    assert "Nothing new: all releases of 1 collection after 2026-03-02 are known already" in second.skip_message


def test_what_comes_after_a_first_tick_without_releases_is_new(ticker: Ticker, control: Operations) -> None:
    control.add_series("TCGA-DEMO", released=date(2026, 3, 9))
    assert asked(ticker.tick(SENSOR, day(0.1))) == TCGA


def test_a_day_as_cursor_asks_for_everything_since(make: Make, control: Operations) -> None:
    control.add_series("TCGA-DEMO", released=date(2026, 1, 20))
    control.add_series("QIN_Breast.v2", released=date(2025, 6, 1))
    ticker = make()
    ticker.cursors[SENSOR] = "2026-01-15"
    assert asked(ticker.tick(SENSOR, MONDAY)) == TCGA
    assert ticker.tick(SENSOR, day(1)).run_requests == []


def test_setting_the_day_again_asks_again(make: Make, control: Operations) -> None:
    control.add_series("TCGA-DEMO", released=date(2026, 1, 20))
    ticker = make()
    keys = set()
    for minute in (0, 1):
        ticker.cursors[SENSOR] = "2026-01-15"
        keys |= {r.run_key for r in ticker.tick(SENSOR, MONDAY + timedelta(minutes=minute)).run_requests}
    assert len(keys) == 2


@pytest.mark.parametrize("cursor", ["0001-01-01", "0001-01-05", "1800-01-01", "9999-12-31"])
def test_any_day_of_the_calendar_can_be_the_cursor(make: Make, control: Operations, cursor: str) -> None:
    control.add_series("TCGA-DEMO", released=date(2026, 1, 20))
    ticker = make()
    ticker.cursors[SENSOR] = cursor
    tick = ticker.tick(SENSOR, MONDAY)
    assert (TCGA[0] in asked(tick)) == (cursor != "9999-12-31"), tick.skip_message
    assert tick.run_requests or tick.skip_message == "Nothing was released after 2026-03-02"


@pytest.mark.parametrize("cursor", ["yesterday", "{}", "[1]", '{"v":99}', "2026-13-01", '{"v":1,"day":3}'])
def test_a_cursor_that_cannot_be_read_says_what_to_do(make: Make, control: Operations, cursor: str) -> None:
    ticker = make()
    ticker.cursors[SENSOR] = cursor
    tick = ticker.tick(SENSOR, MONDAY)
    assert "set it to a day to start from, like 2026-01-01, or empty it" in tick.skip_message
    assert ticker.cursors[SENSOR] == cursor


# --- what is found


def test_a_release_asks_for_one_run_of_its_collection(ticker: Ticker, control: Operations) -> None:
    control.requests(clear=True)
    control.add_series("TCGA-DEMO", released=date(2026, 3, 10))
    tick = ticker.tick(SENSOR, day(1))
    (request,) = tick.run_requests
    assert (request.job_name, request.partition_key) == ("nbia_update", "TCGA-DEMO")
    assert request.tags["nbia/archive"] == "nbia"
    assert re.fullmatch(r"1 series released 2026-03-10: [0-9.]+", request.tags["nbia/requested_for"])
    config = request.run_config["ops"]["nbia__images"]["config"]
    assert config == {"retry": False, "max_bytes": RUN_BYTES}
    assert [r["endpoint"] for r in control.requests()] == ["token", "getUpdatedSeries", "logout"]
    assert ticker.tick(SENSOR, day(1.1)).run_requests == []


def test_a_collection_without_images_gets_its_tables_only(ticker: Ticker, control: Operations) -> None:
    control.add_series("QIN_Breast.v2", released=date(2026, 3, 10))
    (request,) = ticker.tick(SENSOR, day(1)).run_requests
    assert (request.job_name, request.partition_key) == ("nbia_tables", "QIN_Breast.v2")
    assert request.run_config == {}


def test_a_new_collection_becomes_a_partition_and_asks_for_the_catalogue(ticker: Ticker, control: Operations) -> None:
    control.add_series("A New One", like=None, released=date(2026, 3, 10))
    tick = ticker.tick(SENSOR, day(1))
    assert [r.partition_keys for r in tick.dynamic_partitions_requests] == [["A New One"]]
    assert asked(tick) == [("nbia_tables", "A New One"), ("nbia_catalogue", None)]
    control.add_series("A New One", released=date(2026, 3, 11))
    again = ticker.tick(SENSOR, day(2))
    assert asked(again) == [("nbia_tables", "A New One")]
    assert not again.dynamic_partitions_requests


def test_collections_that_are_not_kept_are_named_and_left_alone(make: Make, control: Operations) -> None:
    ticker = make(collections=("TCGA-*",))
    ticker.tick(SENSOR, MONDAY)
    control.add_series("QIN_Breast.v2", released=date(2026, 3, 10))
    tick = ticker.tick(SENSOR, day(1))
    assert tick.run_requests == []
    assert "collections leaves out: QIN_Breast.v2" in tick.skip_message


def test_a_listed_collection_in_another_case_is_a_partition_of_its_own(ticker: Ticker, control: Operations) -> None:
    control.add_series("tcga-demo", released=date(2026, 3, 10))
    tick = ticker.tick(SENSOR, day(1))
    assert asked(tick) == [("nbia_tables", "tcga-demo"), ("nbia_catalogue", None)]
    assert [r.partition_keys for r in tick.dynamic_partitions_requests] == [["tcga-demo"]]


def test_a_spelling_that_the_archive_does_not_list_is_the_registered_one(make: Make, control: Operations) -> None:
    ticker = make()
    ticker.tick(SENSOR, MONDAY)
    control.add_series("TCGA-DEMO", released=date(2026, 3, 10))
    other = changed(lambda body: body.replace(b'"TCGA-DEMO"', b'"tcga-Demo"'))
    control.faults(replace(other, endpoint="getUpdatedSeries"))
    assert asked(ticker.tick(SENSOR, day(1))) == TCGA


@pytest.mark.parametrize(
    ("collection", "listed", "partitions"),
    [
        ("QIN", [], ["QIN"]),
        ("qin", [], ["QIN"]),
        ("qin", ["qin", "QIN"], ["qin"]),
        ("Qin", ["QIN"], ["QIN"]),
        ("lung", [], ["LUNG", "Lung"]),
        ("lung", ["lung"], ["lung"]),
        ("Lung", [], ["Lung"]),
        ("new", [], ["new"]),
    ],
)
def test_a_release_is_about_the_partition_that_is_spelled_like_it(
    collection: str, listed: list[str], partitions: list[str]
) -> None:
    registered = ["LUNG", "Lung", "QIN"]
    assert partitions_of([collection], registered, lambda: listed) == {collection: partitions}


@pytest.mark.parametrize("name", ["", "A...B", "A\tB", "A\nB", "A\0B", "\x0b"])
def test_a_collection_that_cannot_be_a_partition_costs_no_other(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        partitions = Naming().partitions
        assert register(instance, partitions, ["B", name, "A.B"]) == ["A.B", "B"]
        assert sorted(instance.get_dynamic_partitions(str(partitions.name))) == ["A.B", "B"]
    assert f"the collection {name!r} is left out: its name cannot be that of a partition" in caplog.text


@pytest.mark.parametrize("api", ["v2", "v4"])
def test_released_later_on_a_day_that_was_looked_at(make: Make, control: Operations, api: str) -> None:
    ticker = make(api=api)
    ticker.tick(SENSOR, MONDAY)
    control.add_series("TCGA-DEMO", released=date(2026, 3, 9))
    assert asked(ticker.tick(SENSOR, day(0.2))) == TCGA
    control.add_series("TCGA-DEMO", released=date(2026, 3, 9))
    assert asked(ticker.tick(SENSOR, day(0.4))) == TCGA
    assert ticker.tick(SENSOR, day(0.5)).run_requests == []


@pytest.mark.parametrize("hours", [-14, -1, 1, 14], ids=lambda h: f"{h:+d}h")
def test_released_at_a_minute_before_midnight_in_another_zone(ticker: Ticker, control: Operations, hours: int) -> None:
    there = datetime(2026, 3, 10, 23, 59)
    here = there - timedelta(hours=hours)
    ticker.tick(SENSOR, here - timedelta(minutes=1))
    control.add_series("TCGA-DEMO", released=there)
    assert asked(ticker.tick(SENSOR, here + timedelta(minutes=1))) == TCGA


@pytest.mark.parametrize("back", [1, 3, 6])
def test_released_with_the_date_of_days_before(ticker: Ticker, control: Operations, back: int) -> None:
    ticker.tick(SENSOR, day(10))
    control.add_series("TCGA-DEMO", released=(day(10) - timedelta(days=back)).date())
    assert asked(ticker.tick(SENSOR, day(10.1))) == TCGA


def test_released_while_nobody_looked(ticker: Ticker, control: Operations) -> None:
    control.add_series("TCGA-DEMO", released=date(2026, 3, 20))
    assert asked(ticker.tick(SENSOR, day(100))) == TCGA


def test_a_window_that_slides_finds_nothing_new(ticker: Ticker, control: Operations) -> None:
    for n in range(6):
        control.add_series("TCGA-DEMO", released=datetime(2026, 3, 9 + n, 0 if n % 2 else 15))
    assert asked(ticker.tick(SENSOR, day(5))) == TCGA
    for hours in range(0, 24 * 9, 11):
        assert ticker.tick(SENSOR, day(5) + timedelta(hours=hours)).run_requests == []


def test_a_release_dated_ahead_is_asked_for_once(ticker: Ticker, control: Operations) -> None:
    control.add_series("TCGA-DEMO", released=date(2027, 1, 1))
    found = [asked(ticker.tick(SENSOR, day(n))) for n in range(0, 400, 20)]
    assert [f for f in found if f] == [TCGA]


def test_hidden_and_shown_again_is_new_every_time(ticker: Ticker, control: Operations) -> None:
    uid = control.add_series("TCGA-DEMO", released=date(2026, 3, 9))
    control.add_series("QIN_Breast.v2", released=date(2026, 3, 9))
    first = ticker.tick(SENSOR, day(0.1))
    keys = [r.run_key for r in first.run_requests if r.partition_key == "TCGA-DEMO"]
    for n in range(2, 5):
        control.hide(uid)
        assert ticker.tick(SENSOR, day(n / 10)).run_requests == [], "what vanished is not new"
        control.show(uid)
        tick = ticker.tick(SENSOR, day(n / 10 + 0.05))
        assert asked(tick) == TCGA
        keys.append(tick.run_requests[0].run_key)
    assert len(set(keys)) == 4


def test_every_value_of_a_row_counts(make: Make, control: Operations) -> None:
    ticker = make(api="v4")
    uid = control.add_series("TCGA-DEMO", released=date(2026, 3, 8))
    ticker.tick(SENSOR, MONDAY)
    edits: list[dict[str, Any]] = [{"SeriesDescription": "other"}, {"LicenseName": None}, {"FileSize": 12345}]
    for n, changes in enumerate(edits, 1):
        control.edit(uid, **changes)
        assert asked(ticker.tick(SENSOR, day(n / 10))) == TCGA, changes
    assert ticker.tick(SENSOR, day(0.5)).run_requests == []


def test_the_same_change_after_the_same_cursor_has_the_same_key(ticker: Ticker, control: Operations) -> None:
    control.add_series("TCGA-DEMO", released=date(2026, 3, 9))
    before = ticker.cursors[SENSOR]
    keys = set()
    for n in (0.1, 0.2, 1.5):  # as if the daemon had died before it kept the cursor
        ticker.cursors[SENSOR] = before
        keys |= {r.run_key for r in ticker.tick(SENSOR, day(n)).run_requests}
    assert len(keys) == 1
    control.add_series("TCGA-DEMO", released=date(2026, 3, 9))
    assert {r.run_key for r in ticker.tick(SENSOR, day(2)).run_requests}.isdisjoint(keys)


# --- what goes wrong


FAILURES = {
    "busy": ([Fault("status", status=503, endpoint="getUpdatedSeries")], "it may be busy, try again later"),
    "gone": ([Fault("drop")], "no complete answer from"),
    "html": ([Fault("html", endpoint="getUpdatedSeries")], "HTML"),
    "garbage": ([Fault("garbage", endpoint="getUpdatedSeries")], "getUpdatedSeries"),
    "cut": ([Fault("cut", endpoint="getUpdatedSeries", fraction=0.5)], "no complete answer from"),
    "silent": ([Fault("stall", endpoint="getUpdatedSeries", fraction=0.5)], "timed out"),
    "token refused": ([Fault("status", endpoint="token", status=401)], "refuses the account"),
    "empty": ([Fault("empty", endpoint="getUpdatedSeries")], "Suspicious: the archive says that nothing was released"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", FAILURES)
def test_a_tick_that_fails_says_why_and_loses_nothing(ticker: Ticker, control: Operations, what: str) -> None:
    faults, words = FAILURES[what]
    control.add_series("TCGA-DEMO", released=date(2026, 3, 9))
    ticker.tick(SENSOR, day(0.1))
    control.add_series("TCGA-DEMO", released=date(2026, 3, 10))
    before = ticker.cursors[SENSOR]
    control.faults(*faults)
    failed = ticker.tick(SENSOR, day(1))
    assert failed.run_requests == []
    assert words in failed.skip_message
    assert ticker.cursors[SENSOR] == before
    assert failed.cursor in (None, before)
    control.faults()
    assert asked(ticker.tick(SENSOR, day(2))) == TCGA


def test_an_archive_that_is_not_there(make: Make, control: Operations) -> None:
    ticker = make(archive="http://127.0.0.1:9/nbia-api")
    assert "no complete answer from http://127.0.0.1:9/nbia-api" in ticker.tick(SENSOR, MONDAY).skip_message
    assert ticker.cursors == {}


def test_a_token_that_ran_out_is_replaced(ticker: Ticker, control: Operations) -> None:
    control.add_series("TCGA-DEMO", released=date(2026, 3, 10))
    control.faults(Fault("expire_tokens", endpoint="getUpdatedSeries", times=1))
    assert asked(ticker.tick(SENSOR, day(1))) == TCGA


def test_a_quiet_week_is_no_suspicion_and_keeps_the_window(ticker: Ticker, control: Operations) -> None:
    control.add_series("TCGA-DEMO", released=date(2026, 3, 10))
    assert asked(ticker.tick(SENSOR, day(1))) == TCGA
    ticker.tick(SENSOR, day(12))
    for n in (20, 30):
        assert ticker.tick(SENSOR, day(n)).skip_message == "Nothing was released after 2026-03-14"
    control.add_series("TCGA-DEMO", released=date(2026, 3, 16))
    assert asked(ticker.tick(SENSOR, day(40))) == TCGA


def test_a_tick_has_a_deadline(ticker: Ticker, control: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbia_pipeline.defs.sensors.TICK_SECONDS", 0.2)
    over = threading.Event()

    async def wait(request: FaultedRequest) -> None:
        await asyncio.to_thread(over.wait)

    control.faults(Fault("custom", act=wait))
    try:
        assert "did not answer completely within 0 s" in ticker.tick(SENSOR, day(1)).skip_message
    finally:
        over.set()


def test_html_for_everything(make: Make, control: Operations, serve: Callable[[Any], str]) -> None:
    ticker = make(archive=serve(always(html())))
    assert "HTML" in ticker.tick(SENSOR, MONDAY).skip_message


# --- size


@pytest.mark.slow
def test_a_hundred_thousand_new_series_in_a_tick(
    ticker: Ticker, control: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 100_000
    collections = [f"Released collection number {n:03d} of a great release" for n in range(400)]
    asked_for: list[date] = []

    def great(self: NbiaClient, since: date) -> pa.Table:
        asked_for.append(since)
        released = [datetime(2026, 3, 3) + timedelta(days=n % 11) for n in range(size)]
        return pa.table(
            {
                "SeriesInstanceUID": [f"1.2.826.0.1.3680043.8.498.{n:040d}" for n in range(size)],
                "Collection": [collections[n % len(collections)] for n in range(size)],
                **{f"Text{c}": [f"some words of series {n}" for n in range(size)] for c in range(5)},
                "DateReleased": pa.array(released, pa.timestamp("us")),
            }
        )

    ticker.register(*collections)
    monkeypatch.setattr(NbiaClient, "updated_series", great)
    first = ticker.tick(SENSOR, day(1))
    assert len(first.run_requests) == len(collections)
    assert len((ticker.cursors[SENSOR] or "").encode()) <= CURSOR_BYTES
    assert json.loads(ticker.cursors[SENSOR] or "")["shared"]
    assert ticker.tick(SENSOR, day(2)).run_requests == []
    assert asked_for == [date(2026, 3, 2), date(2026, 3, 3)]
