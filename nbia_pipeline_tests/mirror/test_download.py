"""A series is in the lake whole and verified, or not at all; every fault of a download is found."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbia_pipeline import stopping
from nbia_pipeline.archive import ArchiveError, NbiaClient
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.mirror import download
from nbia_pipeline.mirror.download import AHEAD_BYTES, BETWEEN, fetch_batch, fetch_series, in_good_order
from nbia_pipeline.mirror.series import WantedSeries, wanted_series
from nbia_pipeline.schema.digests import series_md5
from nbia_pipeline.schema.status import COMPLETE, QUARANTINED, UNAVAILABLE
from nbia_pipeline_tests.helpers import zips
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import answer, closed_early, cut, edited
from nbia_pipeline_tests.helpers.places import Place, files_below, place_at
from nbia_pipeline_tests.helpers.series import expected_files, files_of

COLLECTION = "QIN_Breast.v2"


@pytest.fixture
def wanted(client: NbiaClient) -> WantedSeries:
    return wanted_series(client.series(COLLECTION))[0]


def images_in(lake: Lake) -> list[Place]:
    return files_below(place_at(lake.uri, "images"))


def staged_in(lake: Lake) -> list[str]:
    return [name for name in lake.names_in(".staging") if name not in ("journal", "locks")]


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
    # Without a FileSize, the download proves nothing without the list.
    archive.faults.inject("getSeries", edited(lambda rows: rows[0].update(FileSize=None)), times=9)
    (wanted,) = wanted_series(client.series(series_uid=wanted.SeriesInstanceUID))
    listed = client.sop_instance_uids(wanted.SeriesInstanceUID)
    body = json.dumps([{"SOPInstanceUID": uid} for uid in [*listed, "1.2.3"]]).encode()
    archive.faults.inject("getSOPInstanceUIDs", answer(200, body), times=9)
    receipt = fetch_series(client, lake, wanted)
    assert (receipt.status, receipt.attempts) == (QUARANTINED, 3)
    assert receipt.reason == (
        f"the archive contradicts itself: getSeries counts {wanted.ImageCount} instances, getSOPInstanceUIDs lists "
        f"{len(listed) + 1}, the zip contains {wanted.ImageCount}, of which 0 are not listed"
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


@pytest.mark.disk("what a file is in the way of")
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


# --- the order, and the turns of unpacking


BYTES = st.integers(0, 1 << 40)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 80).flatmap(lambda n: st.lists(BYTES, min_size=n, max_size=n)))
def test_large_series_come_first_a_few_of_middle_size_between_them_and_small_ones_last(sizes: list[int]) -> None:
    order = in_good_order(sizes)
    assert sorted(order) == list(range(len(sizes)))
    fetched, largest_first = [sizes[n] for n in order], sorted(sizes, reverse=True)
    between, middle = min(BETWEEN, len(sizes) // 4), len(sizes) // 2
    assert fetched[0 : 2 * between : 2] == largest_first[:between]
    assert fetched[1 : 2 * between : 2] == largest_first[middle : middle + between]
    rest = fetched[2 * between :]
    assert rest == sorted(rest, reverse=True)
    assert not sizes or fetched[-1] == min(sizes)


Turns = Callable[[int], threading.BoundedSemaphore]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """A function that lets so many threads unpack at a time."""

    def allow(count: int) -> threading.BoundedSemaphore:
        monkeypatch.setattr(download, "_PROCESSORS", threading.BoundedSemaphore(count))
        return download._PROCESSORS

    return allow


def test_as_many_unpack_at_a_time_as_there_are_processors_and_one() -> None:
    assert download._PROCESSORS._initial_value == (os.cpu_count() or 1) + 1  # type: ignore[attr-defined]


END = -1


@pytest.mark.parametrize(
    ("size", "ahead"),
    [(AHEAD_BYTES // 8 - 1, [*range(8), END]), (AHEAD_BYTES // 4, [*range(4)]), (AHEAD_BYTES, [0])],
    ids=["small", "large", "large chunks"],
)
def test_what_is_small_is_read_to_its_end_before_it_is_unpacked(turns: Turns, size: int, ahead: list[int]) -> None:
    places = turns(1)
    read: list[int] = []

    def chunks() -> Iterator[bytes]:
        for n in range(8):
            read.append(n)
            assert places.acquire(blocking=False), "who waits for the network keeps nobody from a processor"
            places.release()
            yield bytes(size)
        read.append(END)

    with closing(download._in_turns(chunks())) as unpacked:
        assert len(next(unpacked)) == size
        assert read == ahead
        assert not places.acquire(blocking=False), "it is this thread's turn"
        assert len(list(unpacked)) == 7 and read == [*range(8), END]
    assert places.acquire(blocking=False)


def test_others_wait_for_their_turn(turns: Turns) -> None:
    turns(2)
    unpacking, go_on = threading.Semaphore(0), threading.Event()

    def unpack(number: int) -> bytes:
        had = []
        with closing(download._in_turns(iter([b"a", b"b"]))) as chunks:
            for chunk in chunks:
                unpacking.release()
                assert go_on.wait(30)
                had.append(chunk)
        return b"".join(had)

    with stopping.threads(5, "test") as pool:
        try:
            done = [pool.submit(unpack, n) for n in range(5)]
            assert unpacking.acquire(timeout=30) and unpacking.acquire(timeout=30)
            assert not unpacking.acquire(timeout=0.3)
        finally:
            go_on.set()
        assert [future.result(30) for future in done] == [b"ab"] * 5


def test_a_turn_is_given_back_when_unpacking_or_the_stream_fails(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries, turns: Turns
) -> None:
    places = turns(1)
    archive.faults.inject("getImageWithMD5Hash", zips.altered(zips.bomb), zips.altered(zips.climbing_name))
    assert fetch_series(client, lake, wanted).attempts == 3

    def broken() -> Iterator[bytes]:
        yield bytes(AHEAD_BYTES)
        raise OSError

    with pytest.raises(OSError), closing(download._in_turns(broken())) as chunks:
        list(chunks)
    assert places.acquire(blocking=False)
