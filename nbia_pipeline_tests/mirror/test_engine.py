"""The entry point of the engine: a collection listed, planned, fetched and committed, without Dagster."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace

import pyarrow.compute as pc
import pytest

from nbia_pipeline.archive import ArchiveError, NbiaClient
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.mirror.engine import Mirror, MirrorResult, preview
from nbia_pipeline.mirror.plan import RESERVE_BYTES, Bounds
from nbia_pipeline.mirror.selection import Selection
from nbia_pipeline.schema.status import API
from nbia_pipeline.schema.tables import (
    IMAGE_SERIES,
    INSTANCES,
    LICENSES,
    PATIENTS,
    SERIES,
    SERIES_CHANGES,
    SERIES_SEEN,
    STUDIES,
)
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import answer, pass_on
from nbia_pipeline_tests.helpers.places import Place

BREAST = "QIN_Breast.v2"
DOWNLOAD = "getImageWithMD5Hash"


@pytest.fixture(params=["v2"])
def client(archive: TestArchive, request: pytest.FixtureRequest) -> Iterator[NbiaClient]:
    with archive.client(api=request.param) as client:
        yield client


@pytest.fixture
def mirror(client: NbiaClient, place: Place) -> Mirror:
    return Mirror(client, Lake(str(place / "lake")))


def statuses(lake: Lake) -> dict[str, str]:
    rows = lake.read_table(IMAGE_SERIES, BREAST, columns=["SeriesInstanceUID", "Status"])
    return dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))


@pytest.mark.parametrize("client", ["v2", "v4"], indirect=True)
def test_a_collection_is_mirrored_into_a_new_lake(archive: TestArchive, client: NbiaClient, lake: Lake) -> None:
    result = Mirror(client, lake).run(BREAST)
    listed = client.series(BREAST)
    size = pc.sum(listed["FileSize"]).as_py()
    assert result == MirrorResult(wanted=5, already_there=0, fetched=5, files=85, bytes=size, left=0, failed={})

    rows = {t.name: lake.count_rows(t, BREAST) for t in (PATIENTS, STUDIES, SERIES, SERIES_CHANGES, SERIES_SEEN)}
    assert rows == {"patients": 2, "studies": 3, "series": 5, "series_changes": 5, "series_seen": 5}
    assert lake.read_table(SERIES, BREAST).sort_by("SeriesInstanceUID").equals(listed.sort_by("SeriesInstanceUID"))
    assert lake.read_properties(SERIES, BREAST)[API] == client.api
    assert statuses(lake) == dict.fromkeys(listed["SeriesInstanceUID"].to_pylist(), "complete")
    assert lake.read_table(LICENSES, BREAST)["LicenseText"].null_count == 0
    instances = lake.read_table(INSTANCES, BREAST).to_pylist()
    assert len(instances) == 85
    for row in instances:
        content = lake.read_bytes(row["Path"]) or b""
        assert (len(content), hashlib.md5(content).hexdigest()) == (row["Size"], row["MD5"])

    archive.faults.reset()
    again = Mirror(client, lake).run(BREAST)
    assert again == MirrorResult(wanted=5, already_there=5, fetched=0, files=0, bytes=0, left=0, failed={})
    assert {r.endpoint for r in archive.faults.seen} == {"getPatient", "getPatientStudy", "getSeries"}


@pytest.mark.stores("seaweedfs")
def test_a_run_in_steps_fetches_what_is_planned(archive: TestArchive, mirror: Mirror) -> None:
    mirror.update_tables(BREAST)
    lines: list[str] = []
    fetched: list[str] = []
    plan = mirror.plan(BREAST, Selection(modalities=("mr",)), Bounds(max_series=2), on_progress=lines.append)
    assert len(plan.todo) == 2 and plan.unselected > 0
    assert lines[0].startswith(f"{BREAST}: 2 series to fetch (") and f"{plan.unselected} not selected" in lines[0]
    assert archive.faults.calls(DOWNLOAD) == []
    assert set(statuses(mirror.lake).values()) == {"pending"}
    batches = list(plan.batches(1))
    assert [len(batch) for batch in batches] == [1, 1]
    arrived: dict[str, list[int]] = defaultdict(list)
    for batch in batches:
        mirror.fetch(
            batch,
            on_result=lambda receipt: fetched.append(receipt.wanted.SeriesInstanceUID),
            on_bytes=lambda wanted, size: arrived[wanted.SeriesInstanceUID].append(size),
        )
    assert fetched == [w.SeriesInstanceUID for w in plan.todo]
    assert {uid: sizes[-1] for uid, sizes in arrived.items()} == {w.SeriesInstanceUID: w.FileSize for w in plan.todo}
    assert all(0 < sizes[0] < sizes[-1] for sizes in arrived.values()), "what is read ahead of a small series counts"
    receipts = mirror.commit(BREAST)
    complete = receipts.filter(pc.equal(receipts["Status"], "complete"))
    assert complete["SeriesInstanceUID"].to_pylist() == sorted(fetched)
    assert mirror.lake.read_table(IMAGE_SERIES, BREAST).equals(receipts)
    assert mirror.run(BREAST).fetched == 3


def test_a_plan_begins_with_what_a_run_left_that_was_killed(archive: TestArchive, mirror: Mirror) -> None:
    mirror.update_tables(BREAST)
    mirror.fetch(mirror.plan(BREAST).todo[:2])
    assert set(statuses(mirror.lake).values()) == {"pending"}, "nothing was committed"
    seen = preview(mirror.lake, BREAST)
    plan = mirror.plan(BREAST)
    assert plan == seen
    assert (plan.done, len(plan.todo)) == (2, 3)
    assert sorted(statuses(mirror.lake).values()) == ["complete"] * 2 + ["pending"] * 3


def test_a_preview_changes_nothing(mirror: Mirror) -> None:
    mirror.update_tables(BREAST)
    before = mirror.lake.sizes("")
    assert len(preview(mirror.lake, BREAST, bounds=Bounds(max_series=4)).left) == 1
    assert mirror.lake.sizes("") == before


def test_what_cannot_be_fetched_is_named_with_its_reason(archive: TestArchive, mirror: Mirror) -> None:
    archive.faults.inject(DOWNLOAD, answer(400, b"The user has not been granted the access"))
    result = mirror.run(BREAST)
    assert (result.fetched, len(result.failed)) == (4, 1)
    ((uid, reason),) = result.failed.items()
    assert reason.startswith("unavailable: ") and "has not been granted" in reason
    assert statuses(mirror.lake)[uid] == "unavailable"
    assert mirror.run(BREAST, bounds=Bounds(retry=False)).fetched == 0
    assert mirror.run(BREAST).fetched == 1


def test_what_was_fetched_before_the_archive_failed_is_in_the_tables(archive: TestArchive, mirror: Mirror) -> None:
    mirror.streams = 1
    archive.faults.inject(DOWNLOAD, pass_on(), times=2)
    archive.faults.inject(DOWNLOAD, answer(503), times=9)  # each call is tried three times
    with pytest.raises(ArchiveError):
        mirror.run(BREAST)
    assert sorted(statuses(mirror.lake).values()) == ["complete"] * 2 + ["pending"] * 3
    assert mirror.run(BREAST).fetched == 3


@pytest.mark.disk("room on a disk")
def test_what_the_disk_has_no_room_for_is_left_with_its_reason_until_there_is_room(
    archive: TestArchive, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.update_tables(BREAST)
    sizes = sorted(mirror.lake.read_table(SERIES, BREAST)["FileSize"].to_pylist())
    assert len(sizes) == 5
    with pytest.MonkeyPatch.context() as patch:
        free = RESERVE_BYTES + sizes[0] + sizes[1]
        patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
        lines: list[str] = []
        result = mirror.run(BREAST, on_progress=lines.append)
    assert 1 <= result.fetched <= 2
    assert result.left == 5 - result.fetched
    assert f"{result.left} left out because the disk has too little room for them" in lines[0]
    receipts = mirror.lake.read_table(IMAGE_SERIES, BREAST).to_pylist()
    left = [r for r in receipts if r["Status"] == "pending"]
    assert [r["Reason"] for r in left] == [
        f"no room: it has {r['FileSize']:,} bytes; of the {free:,} that were free on the disk, a part is a reserve, "
        "and the series planned before this one take the rest: make room, and run again"
        for r in left
    ]
    assert len(left) == result.left
    mirror.run(BREAST)
    assert set(statuses(mirror.lake).values()) == {"complete"}
    assert set(mirror.lake.read_table(IMAGE_SERIES, BREAST)["Reason"].to_pylist()) == {None}


def test_a_collection_that_was_never_listed_cannot_be_planned(mirror: Mirror) -> None:
    with pytest.raises(LakeError, match="has no rows for 'QIN_Breast"):
        mirror.plan(BREAST)


def test_a_collection_that_is_unknown_is_an_error(mirror: Mirror) -> None:
    with pytest.raises(ArchiveError, match="the archive has nothing in 'No Such'"):
        mirror.run("No Such")
    assert mirror.lake.collections_of(SERIES) == []
