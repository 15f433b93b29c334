"""Shared carts: a colleague's selection, mirrored to where its series belong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.embedded.catalog.model import VISIBLE
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror import selection
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, LICENSES, SERIES
from nbia_pipeline.settings import Settings

pytestmark = pytest.mark.slow

NAME = "A colleague's cart"


@pytest.fixture
def wanted(control: Operations) -> dict[str, str]:
    """A cart of the smallest series of two collections: UID by collection."""
    chosen = {}
    for collection in ("Lung Phantom CT", "QIN_Breast.v2"):
        rows = [r for r in control.series(collection) if r["Visibility"] == VISIBLE and r["ImageCount"] > 1]
        chosen[collection] = str(min(rows, key=lambda r: r["FileSize"])["SeriesInstanceUID"])
    control.cart(NAME, list(chosen.values()))
    control.requests(clear=True)
    return chosen


class Mirror:
    """A code location whose images are mirrored of no collection."""

    def __init__(self, url: str, folder: Path, instance: dg.DagsterInstance, **settings: Any) -> None:
        self.instance = instance
        self.lake = Lake(str(folder / "lake"))
        known: dict[str, Any] = {"archive": url, "lake": str(folder / "lake"), "images": ()}
        self.definitions = build_definitions(Settings(**{**known, **settings}))

    def fetch(self, name: str = NAME, **config: Any) -> dg.ExecuteInProcessResult:
        return self.definitions.resolve_job_def("nbia_cart").execute_in_process(
            instance=self.instance, run_config={"cart": name, **config}, raise_on_error=False
        )

    def statuses(self, collection: str) -> dict[str, str]:
        rows = self.lake.read_table(IMAGE_SERIES, collection).to_pylist()
        return {r["SeriesInstanceUID"]: r["Status"] for r in rows}


@pytest.fixture
def mirror(url: str, tmp_path: Path) -> Iterator[Mirror]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield Mirror(url, tmp_path, instance)


def figures(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    assert result.success
    (event,) = [e for e in result.get_step_success_events() if e.step_key == "nbia_finish_cart"]
    outputs = [e for e in result.all_events if e.is_successful_output and e.step_key == event.step_key]
    return {name: value.value for name, value in outputs[0].step_output_data.metadata.items()}


def sentence(result: dg.ExecuteInProcessResult) -> str:
    failures = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
    return " ".join(str(f.description) for f in failures if f is not None)


def test_a_cart_lands_where_its_series_belong(mirror: Mirror, wanted: dict[str, str]) -> None:
    result = mirror.fetch()
    found = figures(result)
    assert (found["series"], found["complete"], found["fetched_series"], found["pending"]) == (2, 2, 2, 0)
    for collection, uid in wanted.items():
        assert mirror.statuses(collection) == {uid: "complete"}, "nobody asked for the rest"
        assert mirror.lake.count_rows(LICENSES, collection) == 1
        files = mirror.lake.read_table(INSTANCES, collection).to_pylist()
        assert files
        for row in files:
            assert Path(mirror.lake.url(row["Path"])).stat().st_size == row["Size"]
    assert found["collections"].records == [dg.TableRecord({"collection": c, "series": 1}) for c in sorted(wanted)]


def test_a_second_run_fetches_nothing(mirror: Mirror, wanted: dict[str, str], control: Operations) -> None:
    mirror.fetch()
    control.requests(clear=True)
    found = figures(mirror.fetch())
    assert (found["fetched_series"], found["skipped_series"]) == (0, 2)
    assert not [r for r in control.requests() if "Image" in r["endpoint"]]


def test_the_rows_come_from_the_lake_where_it_has_them(
    mirror: Mirror, wanted: dict[str, str], control: Operations, url: str
) -> None:
    with NbiaClient(url) as client:
        mirror.lake.write_table(SERIES, client.series("QIN_Breast.v2"), "QIN_Breast.v2")
        control.requests(clear=True)
        rows = selection.cart_series(client, mirror.lake, NAME)
    asked = [r["query"] for r in control.requests() if r["endpoint"] == "getSeries"]
    assert len(asked) == 1
    assert wanted["Lung Phantom CT"] in str(asked)
    truth = {r["SeriesInstanceUID"]: r for r in control.series()}
    assert rows.num_rows == 2
    for row in rows.to_pylist():
        for column in ("ImageCount", "FileSize", "TimeStamp", "DateReleased", "PatientID", "StudyInstanceUID"):
            assert row[column] == truth[row["SeriesInstanceUID"]][column]


def test_a_row_of_the_lake_that_is_out_of_date_is_asked_for_anew(
    mirror: Mirror, wanted: dict[str, str], control: Operations, url: str
) -> None:
    uid = wanted["QIN_Breast.v2"]
    with NbiaClient(url) as client:
        mirror.lake.write_table(SERIES, client.series("QIN_Breast.v2"), "QIN_Breast.v2")
        control.replace(uid, hidden=False, slices=5)
        rows = {r["SeriesInstanceUID"]: r for r in selection.cart_series(client, mirror.lake, NAME).to_pylist()}
    assert rows[uid]["ImageCount"] == 5


def test_many_series_of_a_collection_are_listed_at_once(
    mirror: Mirror, control: Operations, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "ONE_BY_ONE", 2)
    uids = [r["SeriesInstanceUID"] for r in control.series("QIN_Breast.v2") if r["Visibility"] == VISIBLE]
    control.cart(NAME, uids)
    control.requests(clear=True)
    with NbiaClient(url) as client:
        rows = selection.cart_series(client, mirror.lake, NAME)
    assert sorted(rows["SeriesInstanceUID"].to_pylist()) == sorted(uids)
    assert [r["endpoint"] for r in control.requests() if r["endpoint"] == "getSeries"] == ["getSeries"]


def test_a_bounded_run_notes_the_rest_of_the_cart_as_pending(mirror: Mirror, wanted: dict[str, str]) -> None:
    result = mirror.fetch(max_series=1)
    assert (figures(result)["complete"], figures(result)["pending"]) == (1, 1)
    statuses = Counter(s for c in wanted for s in mirror.statuses(c).values())
    assert statuses == {"complete": 1, "pending": 1}
    assert figures(mirror.fetch())["series_in_lake"] == 2


def test_a_series_that_cannot_be_had_is_told(mirror: Mirror, wanted: dict[str, str], control: Operations) -> None:
    uid = wanted["QIN_Breast.v2"]
    control.faults(Fault("status", status=500, endpoint="getSingleImage"), Fault("lost_file", series=uid))
    result = mirror.fetch()
    assert sentence(result).startswith(f"1 series of the cart {NAME!r} could not be fetched")
    (failure,) = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
    assert failure is not None
    found = {name: value.value for name, value in failure.metadata.items()}
    assert (found["complete"], found["quarantined"]) == (1, 1)
    assert uid in str(found["problems"])


def test_a_mirrored_collection_keeps_its_own_receipts(
    url: str, tmp_path: Path, wanted: dict[str, str], control: Operations
) -> None:
    collection, uid = "QIN_Breast.v2", wanted["QIN_Breast.v2"]
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        mirror = Mirror(url, tmp_path, instance, images=("QIN*",))
        with NbiaClient(url) as client:
            mirror.lake.write_table(SERIES, client.series(collection), collection)
        instance.add_dynamic_partitions("nbia_collections", [collection])
        assert mirror.fetch().success
        assert mirror.statuses(collection) == {uid: "complete"}
        control.requests(clear=True)
        run = mirror.definitions.resolve_job_def("nbia_images").execute_in_process(
            instance=instance, partition_key=collection
        )
        assert run.success
        assert Counter(mirror.statuses(collection).values()) == {"complete": 5}
        fetched = [r["query"] for r in control.requests() if r["endpoint"] == "getImageWithMD5Hash"]
        assert len(fetched) == 4
        assert uid not in str(fetched)
        assert mirror.fetch().success
        assert Counter(mirror.statuses(collection).values()) == {"complete": 5}


def test_a_batch_that_fails_leaves_no_pending_rows_of_others(
    mirror: Mirror, wanted: dict[str, str], control: Operations, url: str
) -> None:
    with NbiaClient(url) as client:
        mirror.lake.write_table(SERIES, client.series("QIN_Breast.v2"), "QIN_Breast.v2")
    control.faults(Fault("status", status=401, endpoint="getImageWithMD5Hash", series=wanted["QIN_Breast.v2"]))
    assert not mirror.fetch(batch_series=1).success
    assert {c: set(mirror.statuses(c)) for c in wanted} == {c: {uid} for c, uid in wanted.items()}
    control.faults()
    # What the other batch fetched is in the journal, and counts.
    found = figures(mirror.fetch())
    assert (found["complete"], found["fetched_series"], found["skipped_series"]) == (2, 1, 1)


def test_a_cart_that_is_unknown_and_an_api_without_carts(
    url: str, tmp_path: Path, mirror: Mirror, control: Operations
) -> None:
    assert "the archive lists no series in a shared cart" in sentence(mirror.fetch())
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        assert "v4" in sentence(Mirror(url, tmp_path, instance, api="v4").fetch())


def test_hidden_series_of_a_cart_are_left_out(mirror: Mirror, wanted: dict[str, str], control: Operations) -> None:
    control.hide(wanted["QIN_Breast.v2"])
    found = figures(mirror.fetch())
    assert (found["series"], found["complete"]) == (1, 1)
