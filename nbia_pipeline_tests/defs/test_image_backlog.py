"""The sensor of the image backlog by real ticks and real runs."""

from __future__ import annotations

import uuid
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.embedded.catalog.model import VISIBLE
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES
from nbia_pipeline_tests.helpers.stores import exception, failing, new_address
from nbia_pipeline_tests.helpers.ticker import KNOWN, MONDAY, Make, Ticker, asked, day

pytestmark = pytest.mark.slow

BACKLOG = "nbia_image_backlog"


@pytest.fixture
def mirror(make: Make, control: Operations, url: str) -> Ticker:
    """A code location whose lake has the series table of a mirrored collection, and of another."""
    ticker = make()
    lake = Lake(ticker.settings.lake)
    with NbiaClient(url) as client:
        for collection in ("TCGA-DEMO", "QIN_Breast.v2"):
            lake.write_table(SERIES, client.series(collection), collection)
    return ticker


def listed(control: Operations, collection: str) -> list[str]:
    return sorted(r["SeriesInstanceUID"] for r in control.series(collection) if r["Visibility"] == VISIBLE)


def fetched(ticker: Ticker) -> dict[str, int]:
    statuses = Lake(ticker.settings.lake).read_table(IMAGE_SERIES, "TCGA-DEMO")["Status"].to_pylist()
    return dict(Counter(statuses))


def test_bounded_runs_go_on_until_everything_is_there(mirror: Ticker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbia_pipeline.defs.sensors.RUN_BYTES", 1_500_000)
    keys: list[str] = []
    seen: list[int] = []
    for n in range(9):
        tick = mirror.tick(BACKLOG, day(n / 24))
        if not tick.run_requests:
            break
        (request,) = tick.run_requests
        assert asked(tick) == [("nbia_images", "TCGA-DEMO")]
        keys.append(request.run_key)
        todo = request.tags["nbia/requested_for"]
        assert todo.startswith(f"{9 - sum(seen[-1:])} series to fetch, "), todo
        assert mirror.run(request).success
        seen.append(fetched(mirror)["complete"])
    assert seen[-1] == 9
    assert seen == sorted(set(seen)), "every run gets further"
    assert len(seen) > 1
    assert len(set(keys)) == len(keys)
    assert "Nothing to fetch: all wanted series of 1 collection are in the lake" in tick.skip_message


@pytest.mark.parametrize("status", ["quarantined", "unavailable"])
def test_what_was_tried_in_vain_is_left_alone_or_asked_for_once_a_day(
    mirror: Ticker, control: Operations, status: str
) -> None:
    bad = listed(control, "TCGA-DEMO")[0]
    if status == "quarantined":
        no_single = Fault("status", status=500, endpoint="getSingleImage")
        control.faults(no_single, Fault("lost_file", series=bad))
    else:
        control.hide(bad)
    (request,) = mirror.tick(BACKLOG, MONDAY).run_requests
    mirror.run(request)
    assert fetched(mirror) == {"complete": 8, status: 1}
    assert mirror.tick(BACKLOG, day(0.5)).run_requests == []
    if status == "quarantined":
        assert mirror.tick(BACKLOG, day(3)).run_requests == []
        return
    # The archive hides a series while it is curated: one question a day finds it when it is back.
    control.show(bad)
    (again,) = mirror.tick(BACKLOG, day(3)).run_requests
    mirror.run(again)
    assert fetched(mirror) == {"complete": 9}


def test_without_progress_the_key_is_the_same_for_the_day(mirror: Ticker) -> None:
    keys = [mirror.tick(BACKLOG, day(n)).run_requests[0].run_key for n in (0, 0.2, 0.4, 1)]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_a_revised_series_is_backlog_again(mirror: Ticker, control: Operations) -> None:
    (request,) = mirror.tick(BACKLOG, MONDAY).run_requests
    assert mirror.run(request).success
    assert mirror.tick(BACKLOG, day(0.1)).run_requests == []
    control.replace(listed(control, "TCGA-DEMO")[0], hidden=False)
    with NbiaClient(mirror.settings.archive) as client:
        Lake(mirror.settings.lake).write_table(SERIES, client.series("TCGA-DEMO"), "TCGA-DEMO")
    (again,) = mirror.tick(BACKLOG, day(0.2)).run_requests
    assert again.run_key != request.run_key


ONE = {"dagster/partition": "TCGA-DEMO"}
SEVERAL = {"dagster/asset_partition_range_start": "Lung Phantom CT", "dagster/asset_partition_range_end": "TCGA-DEMO"}


@pytest.mark.parametrize(
    ("job", "key", "tags"),
    [
        ("nbia_update", None, ONE),
        ("nbia_images", None, ONE),
        ("nbia_images", None, SEVERAL),
        ("__ASSET_JOB", "images", ONE),
        ("nbia_tables", None, ONE),
        ("nbia_tables", None, SEVERAL),
    ],
    ids=lambda value: "several" if value is SEVERAL else "one" if value is ONE else None,
)
def test_one_run_at_a_time_whoever_asked_for_it(
    mirror: Ticker, job: str, key: str | None, tags: dict[str, str]
) -> None:
    run = dg.DagsterRun(
        job_name=job,
        run_id=str(uuid.uuid4()),
        status=dg.DagsterRunStatus.STARTED,
        tags=tags,
        asset_selection={dg.AssetKey(["nbia", key])} if key else None,
    )
    mirror.instance.add_run(run)
    tick = mirror.tick(BACKLOG, MONDAY)
    mirror.instance.delete_run(run.run_id)
    if job == "nbia_tables":
        assert asked(tick) == [("nbia_images", "TCGA-DEMO")]
    else:
        assert tick.run_requests == []
        assert tick.skip_message == "In progress: TCGA-DEMO; there is nothing else to fetch"


def test_a_lake_that_cannot_be_read(mirror: Ticker) -> None:
    (Path(mirror.settings.lake) / "tables/series/Collection=TCGA-DEMO/part-0.parquet").write_bytes(b"no table")
    assert "Nothing was requested: cannot read tables/series" in mirror.tick(BACKLOG, MONDAY).skip_message


@pytest.mark.parametrize(
    "error",
    [
        exception("NoCredentialsError", "Unable to locate credentials"),
        exception("EndpointConnectionError", "Could not connect"),
        PermissionError("Forbidden"),
        AttributeError("of the package"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_store_that_fails_in_any_way_skips_the_tick(make: Make, control: Operations, error: Exception) -> None:
    ticker = make(lake=new_address())
    with failing(lambda _: error):
        message = ticker.tick(BACKLOG, MONDAY).skip_message
    assert message.startswith("Nothing was requested: cannot ")
    assert f"{type(error).__name__}: {error}" in message and " the store" in message


def test_a_lake_without_tables(make: Make, control: Operations) -> None:
    assert "There is no series table" in make().tick(BACKLOG, MONDAY).skip_message


def test_a_tick_that_runs_out_of_time_goes_on_where_it_ended(
    make: Make, control: Operations, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticker = make(images=("*",))
    with NbiaClient(url) as client:
        for collection in KNOWN:
            Lake(ticker.settings.lake).write_table(SERIES, client.series(collection), collection)
    # The clock that says when the tick began, then one that says, before each collection, how late it is.
    times = iter([0.0, 1.0, 2.0, 99.0, 0.0, 1.0, 2.0, 3.0, 99.0])
    monkeypatch.setattr("nbia_pipeline.defs.sensors.time.monotonic", lambda: next(times))
    first, second = (asked(ticker.tick(BACKLOG, MONDAY)) for _ in range(2))
    assert [c for _, c in first] == ["HeadNeckMix", "Lung Phantom CT"]
    assert [c for _, c in second] == ["QIN_Breast.v2", "TCGA-DEMO", "HeadNeckMix"]


def test_a_run_is_requested_for_damaged_receipts_and_a_damaged_listing_is_named(mirror: Ticker) -> None:
    lake = Lake(mirror.settings.lake)
    lake.put_bytes(table_path(IMAGE_SERIES.name, "TCGA-DEMO"), b"")
    assert asked(mirror.tick(BACKLOG, MONDAY)) == [("nbia_images", "TCGA-DEMO")]
    lake.put_bytes(table_path(SERIES.name, "TCGA-DEMO"), b"")
    tick = mirror.tick(BACKLOG, day(1))
    assert not tick.run_requests
    assert "tables/series/Collection=TCGA-DEMO/part-0.parquet" in tick.skip_message
    assert "the file is damaged: `nbia-pipeline run` rebuilds the table" in tick.skip_message
