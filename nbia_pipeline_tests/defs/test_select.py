"""A selection that stays, through Dagster: what the sensor asks for, a run fetches, and each partition's check says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES
from nbia_pipeline_tests.helpers.ticker import PARTITIONS, Make, Ticker, day

pytestmark = pytest.mark.slow

BACKLOG = "nbia_image_backlog"
MIXED, QIN = "HeadNeckMix", "QIN_Breast.v2"
CART = "Two of them"


def location(make: Make, url: str, *collections: str, **settings: Any) -> Ticker:
    """Return a code location whose lake has the series tables of some collections."""
    ticker = make(images=collections, **settings)
    lake = Lake(ticker.settings.lake)
    with NbiaClient(url) as client:
        for collection in collections:
            if not lake.has_table(SERIES, collection):
                lake.write_table(SERIES, client.series(collection), collection)
    return ticker


def statuses(ticker: Ticker, collection: str) -> dict[str, str]:
    rows = Lake(ticker.settings.lake).read_table(IMAGE_SERIES, collection).to_pylist()
    return {row["SeriesInstanceUID"]: row["Status"] for row in rows}


def of_modality(ticker: Ticker, collection: str, *modalities: str) -> set[str]:
    rows = Lake(ticker.settings.lake).read_table(SERIES, collection).to_pylist()
    return {row["SeriesInstanceUID"] for row in rows if row["Modality"] in modalities}


def evaluation(result: dg.ExecuteInProcessResult, name: str = "complete") -> dg.AssetCheckEvaluation:
    (found,) = (
        e
        for e in result.get_asset_check_evaluations()
        if (e.asset_key.path[-1], e.check_name) == ("images", name) and e.partition in (None, MIXED)
    )
    return found


def test_a_selection_stays_and_another_one_deletes_nothing(make: Make, url: str) -> None:
    ticker = location(make, url, MIXED, select={"Head*": {"modalities": ["ct"]}})
    (request,) = ticker.tick(BACKLOG, day(0)).run_requests
    result = ticker.run(request)
    ct = of_modality(ticker, MIXED, "CT")
    assert statuses(ticker, MIXED) == dict.fromkeys(ct, "complete")
    check = evaluation(result)
    assert (check.passed, check.partition) == (True, MIXED)
    said = f"{len(ct)} of {len(ct)} series are in the lake; {21 - len(ct)} not selected (select)"
    assert said in str(check.description)
    assert check.metadata["not_selected_series"].value == 21 - len(ct)
    tick = ticker.tick(BACKLOG, day(1))
    assert tick.run_requests == [] and "Nothing to fetch: all wanted series of 1 collection" in tick.skip_message

    other = location(make, url, MIXED, select={"*": {"modalities": ["MR"]}, MIXED: {}})
    (request,) = other.tick(BACKLOG, day(2)).run_requests
    result = other.run(request)
    mr = of_modality(other, MIXED, "MR")
    assert statuses(other, MIXED) == dict.fromkeys(ct | mr, "complete")
    files = list((Path(other.settings.lake) / "images").rglob("*.dcm"))
    assert {path.parent.name for path in files} == ct | mr
    assert f"{len(mr)} of {len(mr)} series are in the lake" in str(evaluation(result).description)


def test_a_cart_is_read_by_runs_and_what_it_said_stays_while_it_is_empty(
    make: Make, url: str, control: Operations
) -> None:
    uids = sorted(str(r["SeriesInstanceUID"]) for r in control.series(QIN) if r["Visibility"] == 1)
    control.cart(CART, uids[:2])
    ticker = location(make, url, QIN, select={QIN: {"cart": CART}})
    (request,) = ticker.tick(BACKLOG, day(0)).run_requests
    assert ticker.run(request).success
    assert statuses(ticker, QIN) == dict.fromkeys(uids[:2], "complete")
    assert ticker.tick(BACKLOG, day(0.5)).run_requests == []
    # A day later it is read again, and answers with nothing, as a wrong name does.
    control.cart(CART, [])
    (again,) = ticker.tick(BACKLOG, day(1.5)).run_requests
    failed = ticker.run(again)
    assert not failed.success
    texts = [str(e.step_failure_data.user_failure_data) for e in failed.all_events if e.is_step_failure]
    assert f"no series in a shared cart '{CART}'" in texts[0]
    assert statuses(ticker, QIN) == dict.fromkeys(uids[:2], "complete")
    control.cart(CART, uids[:3])
    assert ticker.run(again).success
    assert statuses(ticker, QIN) == dict.fromkeys(uids[:3], "complete")


def test_each_partition_has_its_own_result_and_a_pass_hides_no_failure(
    make: Make, url: str, control: Operations
) -> None:
    ticker = location(make, url, MIXED, QIN, select={MIXED: {"modalities": ["CT"]}, QIN: {"patients": ["none"]}})
    bad = min(of_modality(ticker, MIXED, "CT"))
    control.faults(Fault("status", status=500, endpoint="getSingleImage"), Fault("lost_file", series=bad))
    for key in ticker.instance.get_dynamic_partitions(PARTITIONS):
        if key not in (MIXED, QIN):
            ticker.instance.delete_dynamic_partition(PARTITIONS, key)
    job = ticker._definitions.resolve_job_def("nbia_images")
    ends = {"dagster/asset_partition_range_start": MIXED, "dagster/asset_partition_range_end": QIN}
    result = job.execute_in_process(instance=ticker.instance, tags=ends, raise_on_error=False)
    assert result.success
    assert Counter(statuses(ticker, MIXED).values()) == {"complete": 1, "quarantined": 1}
    of_images = [e for e in result.get_asset_check_evaluations() if e.asset_key.path[-1] == "images"]
    assert Counter((e.check_name, e.partition) for e in of_images) == {
        (name, c): 1 for name in ("complete", "intact", "agrees_with_archive", "licensed") for c in (MIXED, QIN)
    }
    assert results(ticker) == {MIXED: ("FAILED", True), QIN: ("SUCCEEDED", True)}
    check = evaluation(result)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    # Dagster knows which materialization each is about; a run of the other one alone changes nothing here.
    job.execute_in_process(instance=ticker.instance, partition_key=QIN)
    assert results(ticker) == {MIXED: ("FAILED", True), QIN: ("SUCCEEDED", True)}


def results(ticker: Ticker) -> dict[str | None, tuple[str, bool]]:
    """Return the result of ``complete`` of each partition, and whether it is about the last materialization."""
    key = dg.AssetCheckKey(dg.AssetKey(["nbia", "images"]), "complete")
    found = ticker.instance.event_log_storage.get_asset_check_partition_info([key])
    return {i.partition_key: (i.latest_execution_status.value, i.is_current) for i in found}
