"""A series is in the lake whole and verified, or not at all; every fault of a download is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nbia_pipeline.archive import ArchiveError, NbiaClient
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.mirror.download import fetch_batch, fetch_series
from nbia_pipeline.mirror.series import WantedSeries, wanted_series
from nbia_pipeline.schema.digests import series_md5
from nbia_pipeline.schema.status import COMPLETE, QUARANTINED, UNAVAILABLE
from nbia_pipeline_tests.helpers import zips
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import answer, closed_early, cut
from nbia_pipeline_tests.helpers.series import expected_files, files_of

COLLECTION = "QIN_Breast.v2"


@pytest.fixture
def wanted(client: NbiaClient) -> WantedSeries:
    return wanted_series(client.series(COLLECTION))[0]


def images_in(lake: Lake) -> list[Path]:
    return [p for p in Path(lake.uri).glob("images/**/*") if p.is_file()]


def staged_in(lake: Lake) -> list[str]:
    return [p.name for p in Path(lake.uri, ".staging").iterdir() if p.name not in ("journal", "locks")]


def test_a_series_arrives_byte_for_byte_under_its_instance_uids(
    client: NbiaClient, lake: Lake, wanted: WantedSeries, demo: Catalog
) -> None:
    receipt = fetch_series(client, lake, wanted)
    expected = expected_files(demo, wanted.SeriesInstanceUID)
    assert files_of(lake, receipt.path) == expected
    assert receipt.status == COMPLETE and receipt.attempts == 1
    digests = [hashlib.md5(c).hexdigest() for c in expected.values()]
    row = receipt.row()
    assert row["SeriesMD5"] == hashlib.md5("".join(sorted(digests)).encode()).hexdigest() == series_md5(digests)
    assert row["Bytes"] == wanted.FileSize == sum(map(len, expected.values()))
    assert row["Proof"] == "md5+count+size"
    assert [i.MD5 for i in receipt.instances] == [
        hashlib.md5(expected[f"{i.SOPInstanceUID}.dcm"]).hexdigest() for i in receipt.instances
    ]
    assert staged_in(lake) == []


# How often the series is downloaded, and how many instances one by one, where the damage happens once.
DAMAGES: dict[str, tuple[Callable[[zips.Entries], zips.Entries], int, int]] = {
    "short by one file, no list": (zips.without_first, 2, 0),
    "short by one listed file": (zips.without_first_but_listed, 1, 1),
    "short by one, list and zip agree": (zips.one_short_and_consistent, 1, 1),
    "a file cut inside a valid zip": (zips.truncated_file, 1, 1),
    "a flipped byte": (zips.flipped_byte, 1, 1),
    "a wrong digest": (zips.wrong_digest, 1, 0),
    "an empty digest": (zips.empty_digest, 1, 0),
    "an empty zip": (zips.nothing_at_all, 1, 0),  # getImage is asked at once
    "a file that is not DICOM": (zips.not_dicom, 1, 1),
    "a name that climbs": (zips.climbing_name, 2, 0),
    "an absolute name": (zips.absolute_name, 2, 0),
    "an instance twice": (zips.same_instance_twice, 2, 0),
    "a zip bomb": (zips.bomb, 2, 0),
}
HOSTILE = ("a name that climbs", "an absolute name", "an instance twice", "a zip bomb")


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_download_is_mended_or_made_again(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries, demo: Catalog, name: str
) -> None:
    damage, downloads, healed = DAMAGES[name]
    archive.faults.inject("getImageWithMD5Hash", zips.altered(damage))
    receipt = fetch_series(client, lake, wanted)
    assert (receipt.status, receipt.attempts, receipt.repaired) == (COMPLETE, downloads, healed)
    assert archive.faults.count("getImageWithMD5Hash") == downloads
    assert archive.faults.count("getSingleImage") == healed
    # A second download is whole, and proves it by itself.
    assert receipt.row()["Proof"] == ("md5" if downloads == 1 else "md5+count+size")
    assert receipt.row()["Healed"] == healed
    assert files_of(lake, receipt.path) == expected_files(demo, wanted.SeriesInstanceUID)
    assert len(images_in(lake)) == wanted.ImageCount
    assert staged_in(lake) == []


@pytest.mark.parametrize("name", [n for n in DAMAGES if n not in HOSTILE])
def test_a_download_that_stays_damaged_is_mended_instance_by_instance(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries, demo: Catalog, name: str
) -> None:
    archive.faults.inject("getImageWithMD5Hash", zips.altered(DAMAGES[name][0]), times=9)
    receipt = fetch_series(client, lake, wanted)
    assert (receipt.status, receipt.verified_by) == (COMPLETE, "md5")
    assert archive.faults.count("getImageWithMD5Hash") <= 3
    assert files_of(lake, receipt.path) == expected_files(demo, wanted.SeriesInstanceUID)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_download_that_stays_hostile_is_quarantined_and_nothing_is_published(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries, name: str
) -> None:
    archive.faults.inject("getImageWithMD5Hash", zips.altered(DAMAGES[name][0]), times=9)
    receipt = fetch_series(client, lake, wanted)
    assert (receipt.status, receipt.attempts) == (QUARANTINED, 3)
    assert receipt.reason
    assert images_in(lake) == []
    assert staged_in(lake) == []


def test_an_instance_that_the_archive_cannot_send_at_all_quarantines_its_series(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    archive.faults.inject("getImageWithMD5Hash", zips.altered(zips.one_short_and_consistent), times=9)
    archive.faults.inject("getSingleImage", answer(500, b"Server was not able to process your request"), times=99)
    receipt = fetch_series(client, lake, wanted)
    assert receipt.status == QUARANTINED
    assert "cannot send it on its own" in (receipt.reason or "")
    assert archive.faults.count("getSingleImage") <= 9
    assert images_in(lake) == []


def test_an_instance_whose_digest_stays_wrong_quarantines_its_series(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    archive.faults.inject("getImageWithMD5Hash", zips.altered(zips.wrong_digest), times=9)
    archive.faults.inject("getM5HashForImage", answer(200, b"0" * 32), times=9)
    receipt = fetch_series(client, lake, wanted)
    assert receipt.status == QUARANTINED
    assert "the archive lists 00000000000000000000000000000000" in (receipt.reason or "")
    assert images_in(lake) == []


def test_a_zip_that_ends_half_way_each_time_is_completed_one_by_one(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries, demo: Catalog
) -> None:
    archive.faults.inject("getImageWithMD5Hash", zips.altered(lambda entries: entries[: len(entries) // 3]), times=9)
    receipt = fetch_series(client, lake, wanted)
    assert wanted.ImageCount is not None
    assert (receipt.status, receipt.attempts) == (COMPLETE, 3)
    assert receipt.repaired == wanted.ImageCount - (wanted.ImageCount + 1) // 3
    assert files_of(lake, receipt.path) == expected_files(demo, wanted.SeriesInstanceUID)


@pytest.mark.parametrize("fault", [cut(5000), answer(503), answer(401), answer(429, Retry_After="0")])
def test_a_stream_that_breaks_is_asked_for_again(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries, demo: Catalog, fault: object
) -> None:
    archive.faults.inject("getImageWithMD5Hash", fault)  # type: ignore[arg-type]
    receipt = fetch_series(client, lake, wanted)
    assert receipt.status == COMPLETE
    assert files_of(lake, receipt.path) == expected_files(demo, wanted.SeriesInstanceUID)


def test_a_zip_that_ends_early_is_not_taken(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    archive.faults.inject("getImageWithMD5Hash", closed_early(5000), times=3)
    receipt = fetch_series(client, lake, wanted)
    assert receipt.status == QUARANTINED
    assert "not a complete zip" in (receipt.reason or "")
    assert images_in(lake) == []


def test_a_series_that_the_archive_refuses_is_unavailable(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    archive.faults.inject("getImageWithMD5Hash", answer(400, b"The user has not been granted the access"))
    receipt = fetch_series(client, lake, wanted)
    assert receipt.status == UNAVAILABLE
    assert "not been granted" in (receipt.reason or "")
    assert archive.faults.count("getImageWithMD5Hash") == 1


def test_a_listing_older_than_the_files_is_read_again(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    receipt = fetch_series(client, lake, replace(wanted, ImageCount=999))
    assert (receipt.status, receipt.attempts) == (COMPLETE, 2)
    assert receipt.wanted == wanted
    assert archive.faults.calls("getSeries")[-1].query["SeriesInstanceUID"] == wanted.SeriesInstanceUID


def test_an_archive_that_contradicts_itself_is_not_believed(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    assert wanted.ImageCount is not None
    listed = client.sop_instance_uids(wanted.SeriesInstanceUID)
    body = json.dumps([{"SOPInstanceUID": uid} for uid in [*listed, "1.2.3"]]).encode()
    archive.faults.inject("getSOPInstanceUIDs", answer(200, body), times=9)
    receipt = fetch_series(client, lake, wanted)
    assert (receipt.status, receipt.attempts) == (QUARANTINED, 3)
    assert receipt.reason == (
        f"the archive contradicts itself: getSeries counts {wanted.ImageCount} instances, getSOPInstanceUIDs lists "
        f"{wanted.ImageCount + 1}, the zip contains {wanted.ImageCount}, of which 0 are not listed"
    )
    assert images_in(lake) == []


def test_a_batch_keeps_what_it_published_when_the_archive_goes_away(
    archive: TestArchive, client: NbiaClient, lake: Lake
) -> None:
    wanted = wanted_series(client.series(COLLECTION))
    calls = [answer(503)] * 50
    told: list[str] = []

    def fail_from_now_on(receipt: object) -> None:
        told.append("done")
        archive.faults.inject("getImageWithMD5Hash", *calls)

    with pytest.raises(ArchiveError):
        fetch_batch(client, lake, wanted, streams=1, on_result=fail_from_now_on)
    assert told == ["done"]
    assert len(images_in(lake)) == wanted[0].ImageCount


def test_a_lake_that_cannot_be_written_stops_the_batch(
    client: NbiaClient, tmp_path: Path, wanted: WantedSeries
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LakeError, match="check that you may write"):
        fetch_batch(client, Lake(str(tmp_path / "file" / "lake")), [wanted])


def test_a_series_without_a_patient_has_no_place_and_is_quarantined(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    nobody = WantedSeries(**{**wanted.__dict__, "PatientID": None})
    assert fetch_series(client, lake, nobody).status == QUARANTINED
    assert archive.faults.count("getImageWithMD5Hash") == 0


def test_an_instance_number_that_is_none_is_left_out(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    archive.faults.inject("getImageWithMD5Hash", zips.altered(zips.odd_instance_number))
    receipt = fetch_series(client, lake, wanted)
    assert (receipt.status, receipt.attempts) == (COMPLETE, 1)
    assert [i.InstanceNumber for i in receipt.instances].count(None) == 1
