"""A series is downloaded into a directory without a lake: verified, complete and in place, or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nbia_pipeline.archive import BadAnswer, NbiaClient, NotAvailable
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.lake import LakeError
from nbia_pipeline.mirror.download import download_batch
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import WantedSeries, wanted_series
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline_tests.helpers import zips
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import answer
from nbia_pipeline_tests.helpers.series import expected_files

COLLECTION = "QIN_Breast.v2"


@pytest.fixture
def wanted(client: NbiaClient) -> WantedSeries:
    return wanted_series(client.series(COLLECTION))[0]


def below(folder: Path) -> list[str]:
    """Return what is in a directory, hidden or not, to any depth."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_series_is_downloaded_byte_for_byte(
    client: NbiaClient, wanted: WantedSeries, demo: Catalog, tmp_path: Path
) -> None:
    uid = wanted.SeriesInstanceUID
    paths = client.download(uid, tmp_path / "to" / "here")
    expected = expected_files(demo, uid)
    assert {path.name: path.read_bytes() for path in paths} == expected
    assert paths == [tmp_path / "to" / "here" / uid / name for name in sorted(expected)]
    assert below(tmp_path / "to" / "here") == [uid, *(f"{uid}/{name}" for name in sorted(expected))]


def test_a_download_replaces_an_earlier_one(
    client: NbiaClient, wanted: WantedSeries, demo: Catalog, tmp_path: Path
) -> None:
    uid = wanted.SeriesInstanceUID
    (tmp_path / uid).mkdir()
    (tmp_path / uid / "half").touch()
    client.download(uid, str(tmp_path))
    assert below(tmp_path) == [uid, *(f"{uid}/{name}" for name in sorted(expected_files(demo, uid)))]


def test_what_cannot_be_verified_is_an_error_and_leaves_nothing(
    archive: TestArchive, client: NbiaClient, wanted: WantedSeries, tmp_path: Path
) -> None:
    uid = wanted.SeriesInstanceUID
    archive.faults.inject("getImageWithMD5Hash", zips.altered(zips.truncated_file), times=3)
    archive.faults.inject("getSingleImage", answer(500), times=9)
    with pytest.raises(BadAnswer, match=f"^series {uid} is quarantined: instance .* is damaged in the zip"):
        client.download(uid, tmp_path)
    assert below(tmp_path) == []


def test_a_series_that_the_archive_does_not_have_or_send_is_not_available(
    archive: TestArchive, client: NbiaClient, wanted: WantedSeries, tmp_path: Path
) -> None:
    with pytest.raises(NotAvailable, match=r"^the archive lists no series 1\.2\.3: check the UID"):
        client.download("1.2.3", tmp_path)
    archive.faults.inject("getImageWithMD5Hash", answer(400))
    with pytest.raises(NotAvailable, match=f"^series {wanted.SeriesInstanceUID} is unavailable: "):
        client.download(wanted.SeriesInstanceUID, tmp_path)
    assert below(tmp_path) == []


def test_a_directory_that_cannot_be_written_is_named(client: NbiaClient, wanted: WantedSeries, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LakeError, match=f"^cannot write to {tmp_path}/file/here \\(Not a directory\\): "):
        client.download(wanted.SeriesInstanceUID, tmp_path / "file" / "here")


def test_each_series_of_a_batch_is_in_place_or_not_at_all(client: NbiaClient, tmp_path: Path) -> None:
    listed = wanted_series(client.series(COLLECTION))
    told: dict[str, str] = {}

    def tell(receipt: Receipt) -> None:
        uid = receipt.wanted.SeriesInstanceUID
        told[uid] = receipt.status
        assert (tmp_path / uid).exists() == (receipt.status == COMPLETE)

    receipts = download_batch(
        client, [replace(listed[0], SeriesInstanceUID="1.2.3"), *listed[1:]], tmp_path, on_result=tell
    )
    rest = [w.SeriesInstanceUID for w in listed[1:]]
    assert [r.status for r in receipts] == ["unavailable"] + [COMPLETE] * len(rest)
    assert told == {"1.2.3": "unavailable", **dict.fromkeys(rest, COMPLETE)}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(rest)
