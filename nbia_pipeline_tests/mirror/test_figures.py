"""ImageCount and FileSize that are zero or less: nothing is announced, or there is nothing to fetch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from nbia_pipeline.defs.checks import images
from nbia_pipeline.defs.checks.check import Subject
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.defs.resources import NbiaResource
from nbia_pipeline.embedded.server.fault_injection import FaultedRequest
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.plan import make_plan
from nbia_pipeline.mirror.prune import prunable
from nbia_pipeline.preview.contact_sheet import contact_sheet
from nbia_pipeline.schema.digests import series_md5
from nbia_pipeline.schema.status import COMPLETE, QUARANTINED, UNAVAILABLE
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline.verify.rehash import digest_check, plan_verification, read_again
from nbia_pipeline_tests.helpers import zips
from nbia_pipeline_tests.helpers.dicom import dicom
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT, Fault, answer, custom, edited
from nbia_pipeline_tests.helpers.one_series import COLLECTION, UID, OneSeries, image
from nbia_pipeline_tests.helpers.places import WHERE, Place, lake_in

HASHED, LISTED, SIZED = "getImageWithMD5Hash", "getSOPInstanceUIDs", "getSeriesSize"
LARGE = 5 << 18
NO_MORE = answer(400, b"The user has not been granted the access to image with given SeriesInstanceUID")


@pytest.fixture
def empty(one: OneSeries) -> OneSeries:
    """A series without images."""
    one.store.numbers = ()
    return one


# --- FileSize is no announcement


@pytest.mark.parametrize("size", [0, -1, -(2**40), None])
def test_a_size_of_zero_announces_nothing(one: OneSeries, size: int | None) -> None:
    """The series is larger than what a zip may have more than was announced."""
    one.store.size, one.figures = LARGE, {"FileSize": size}
    receipt = one.fetch()
    assert (receipt.status, receipt.attempts, receipt.verified_by) == (COMPLETE, 1, "md5")
    assert receipt.row()["Bytes"] == sum(i.size for i in one.store.instances(UID)) > 5 * LARGE
    assert one.asked()[SIZED] == 1


@pytest.mark.parametrize("fault", [answer(500, NO_SUCH_ENDPOINT), answer(504), answer(200)], ids=["404", "504", "none"])
def test_no_other_figure_is_needed(one: OneSeries, fault: Fault) -> None:
    one.store.size, one.figures = LARGE, {"FileSize": 0}
    one.faults.inject(SIZED, fault, times=9)
    assert one.fetch().status == COMPLETE


def sized(size: int, count: int = 5) -> Fault:
    return answer(200, f'[{{"TotalSizeInBytes": {size}, "ObjectCount": {count}}}]'.encode())


def test_a_size_too_small_is_asked_for_once_more(one: OneSeries) -> None:
    one.store.size, one.figures = LARGE, {"FileSize": 1000}
    one.faults.inject(SIZED, sized(6 * LARGE))
    receipt = one.fetch()
    assert receipt.status == COMPLETE and receipt.attempts > 1


def test_a_zip_larger_than_all_figures_is_refused_with_them(one: OneSeries) -> None:
    one.store.size, one.figures = LARGE, {"FileSize": 1000}
    receipt = one.fetch()
    assert (receipt.status, receipt.attempts) == (QUARANTINED, 3)
    expected = "the download is larger than the archive announced (getSeries states 1000 bytes in 5 images)"
    assert receipt.reason == expected


@pytest.mark.parametrize("size", [0, -7, None])
def test_without_digests_the_size_is_asked_for(one: OneSeries, size: int | None) -> None:
    one.store.stored, one.figures = (lambda number, md5: " "), {"FileSize": size}
    true = sum(i.size for i in one.store.instances(UID))
    one.faults.inject(SIZED, sized(true), times=9)
    receipt = one.fetch()
    assert (receipt.status, receipt.verified_by) == (COMPLETE, "count+size")


@pytest.mark.parametrize("count", [0, -1, None])
def test_a_count_of_zero_with_images_announces_nothing(one: OneSeries, count: int | None) -> None:
    one.figures = {"ImageCount": count}
    receipt = one.fetch()
    assert (receipt.status, len(receipt.instances)) == (COMPLETE, 5)


def test_a_wrong_size_with_the_right_digests_is_complete(one: OneSeries) -> None:
    one.figures = {"FileSize": 12345}
    assert one.fetch().status == COMPLETE


# --- what the figures prove, and what they do not


@pytest.mark.parametrize("api", ["v2", "v4"])
def test_a_whole_zip_with_the_stated_figures_costs_one_request(one: OneSeries, api: str) -> None:
    receipt = one.fetch(api)
    assert (receipt.status, receipt.attempts, receipt.verified_by) == (COMPLETE, 1, "md5+count+size")
    assert one.asked() == {HASHED: 1}


ANOTHER = dicom(SOPInstanceUID=f"{UID}.9", SeriesInstanceUID=UID)


def one_more_in_the_list(entries: zips.Entries) -> zips.Entries:
    name, content = entries[-1]
    return [*entries[:-1], (name, content + b"00000009.dcm," + b"a" * 32 + b"\n")]


# Figures, what each zip is, and the outcome: status, proof, downloads. None of them shows alone that all is there.
DOUBTFUL: dict[str, tuple[dict[str, Any], Callable[[zips.Entries], zips.Entries] | None, tuple[str, str, int]]] = {
    "no size": ({"FileSize": None}, None, (COMPLETE, "md5", 1)),
    "another size": ({"FileSize": 12345}, None, (COMPLETE, "md5", 1)),
    "no count": ({"ImageCount": None}, None, (COMPLETE, "md5", 1)),
    "a count of zero": ({"ImageCount": 0}, None, (COMPLETE, "md5", 1)),
    "another count": ({"ImageCount": 4}, None, (QUARANTINED, "", 3)),
    "something else in the zip": ({}, lambda entries: [("9.dcm", b"no DICOM"), *entries], (COMPLETE, "md5", 1)),
    "one more in the zip": ({}, lambda entries: [("9.dcm", ANOTHER), *entries], (QUARANTINED, "", 3)),
    "one more in the list": ({}, one_more_in_the_list, (COMPLETE, "md5", 1)),
    "a blank digest": ({}, zips.empty_digest, (COMPLETE, "md5", 1)),
    "a wrong digest": ({}, zips.wrong_digest, (COMPLETE, "md5", 1)),
    "no digests": ({}, lambda entries: entries[:-1], (COMPLETE, "md5", 3)),
    "one short": ({}, zips.one_short_and_consistent, (COMPLETE, "md5", 1)),
}


@pytest.mark.parametrize(("figures", "change", "outcome"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_where_the_figures_prove_nothing_the_instances_are_listed(
    one: OneSeries,
    figures: dict[str, Any],
    change: Callable[[zips.Entries], zips.Entries] | None,
    outcome: tuple[str, str, int],
) -> None:
    one.figures = figures
    if change:
        one.faults.inject(HASHED, zips.altered(change), times=9)
    receipt = one.fetch()
    assert (receipt.status, receipt.row()["Proof"] or "", receipt.attempts) == outcome
    assert one.asked()[LISTED] >= receipt.attempts
    assert len(receipt.instances) == (5 if receipt.status == COMPLETE else 0)


@pytest.mark.parametrize("digest", [None, b" "], ids=["the digest of what it sends", "no digest"])
def test_figures_that_lie_together_are_found_by_the_list_in_the_check(
    one: OneSeries, lake: Lake, digest: bytes | None
) -> None:
    """Zip, list of digests, ImageCount and FileSize leave out the same instance."""
    one.faults.inject(LISTED, edited(lambda rows: rows.append({"SOPInstanceUID": f"{UID}.6"})), times=9)
    committed(one, lake)
    (row,) = lake.read_table(IMAGE_SERIES, COLLECTION).to_pylist()
    assert (row["Status"], row["Proof"]) == (COMPLETE, "md5+count+size")
    assert LISTED not in one.asked()
    if digest:
        one.faults.inject("getMD5Hierarchy", answer(200, digest))
    with NbiaResource(archive=one.url, tries=1).client() as client:
        subject = Subject(lake, Settings(archive=one.url, images=("*",)), COLLECTION, client)
        report = images.agrees_with_archive(subject)
    (finding,) = report.findings
    told = "is outdated: getSOPInstanceUIDs lists 6, the lake has 5 (missing 1.1.6)"
    assert (finding.series, finding.what) == (UID, f"series {UID} {told}")
    assert report.properties == {"asked": 1, "not_held": 1 if digest else 0, "listed": 1}


def test_a_series_replaced_meanwhile_does_not_get_the_newer_date(one: OneSeries, lake: Lake) -> None:
    """FileSize is wrong before and after, so that it shows nothing; the files that came first are the older ones."""

    async def replace_it(request: FaultedRequest) -> None:
        one._control().edit(UID, FileSize=999, TimeStamp=datetime(2031, 1, 1))  # noqa: DTZ001 - the tables state no zone
        one.store.version = "another "
        await request.pass_on()

    one.figures = {"FileSize": 998}
    one.faults.inject(LISTED, custom(replace_it))
    receipt = one.fetch()
    assert receipt.status == COMPLETE and receipt.attempts > 1
    assert receipt.wanted.TimeStamp == datetime(2031, 1, 1)  # noqa: DTZ001
    assert {i.MD5 for i in receipt.instances} == {hashlib.md5(image(n, "another ")).hexdigest() for n in range(1, 6)}


# --- nothing to fetch


@pytest.mark.parametrize("size", [0, None, -1, 5000])
@pytest.mark.parametrize("api", ["v2", "v4"])
def test_a_series_without_images_is_complete_without_a_download(empty: OneSeries, size: int | None, api: str) -> None:
    empty.figures = {"ImageCount": 0, "FileSize": size}
    receipt = empty.fetch(api)
    assert (receipt.status, receipt.attempts, receipt.instances, receipt.reason) == (COMPLETE, 1, [], None)
    assert HASHED not in empty.asked() and "getImage" not in empty.asked()
    row = receipt.row()
    assert (row["Bytes"], row["SeriesMD5"], row["Proof"]) == (0, series_md5([]), "count+size")


@pytest.mark.parametrize("fault", [None, NO_MORE, answer(200)], ids=["an empty zip", "refused", "an empty answer"])
@pytest.mark.parametrize(
    "figures", [{"ImageCount": None, "FileSize": None}, {"ImageCount": -1, "FileSize": 0}], ids=str
)
def test_where_no_count_is_stated_the_download_shows_it(
    empty: OneSeries, fault: Fault | None, figures: dict[str, Any]
) -> None:
    empty.figures = figures
    if fault:
        empty.faults.inject(HASHED, fault, times=9)
        empty.faults.inject("getImage", fault, times=9)
    receipt = empty.fetch()
    assert (receipt.status, receipt.attempts, receipt.instances) == (COMPLETE, 1, [])
    assert empty.asked()[HASHED] == 1


def test_an_announced_series_without_images_is_not_complete(empty: OneSeries) -> None:
    empty.figures = {"ImageCount": 3, "FileSize": 3000}
    receipt = empty.fetch()
    assert (receipt.status, receipt.reason) == (
        QUARANTINED,
        "the archive sent a zip without images; getSOPInstanceUIDs lists 0",
    )
    empty.faults.inject(HASHED, NO_MORE)
    assert empty.fetch().status == UNAVAILABLE


def test_an_empty_zip_of_a_series_with_images_is_not_complete(one: OneSeries) -> None:
    one.figures = {"ImageCount": 0, "FileSize": 0}
    for call in (HASHED, "getImage"):
        one.faults.inject(call, zips.altered(zips.nothing_at_all), times=9)
    one.faults.inject("getSingleImage", answer(500), times=99)
    assert one.fetch().status == QUARANTINED


@pytest.fixture(params=WHERE)
def lake(request: pytest.FixtureRequest, place: Place) -> Lake:
    return lake_in(place, request.param)


def committed(one: OneSeries, lake: Lake) -> None:
    """Fetch the series into the lake, with its tables."""
    one.lake = lake
    one.fetch()
    with one.client() as client:
        lake.write_table(SERIES, client.series(series_uid=UID), COLLECTION)
    commit(lake, COLLECTION)


def test_the_lake_takes_a_series_without_images(empty: OneSeries, lake: Lake) -> None:
    empty.figures = {"ImageCount": 0, "FileSize": 0}
    committed(empty, lake)
    receipts, series = lake.read_table(IMAGE_SERIES, COLLECTION), lake.read_table(SERIES, COLLECTION)
    assert lake.read_table(INSTANCES, COLLECTION).num_rows == 0
    plan = make_plan(series, receipts)
    assert (plan.todo, plan.done) == ([], 1)
    with empty.client() as client:
        run = read_again(lake, plan_verification(lake, [COLLECTION]), extra_check=digest_check(client))
    assert (run.checked, run.files, run.damaged) == (1, 0, [])
    subject = Subject(lake, Settings(archive=empty.url, images=("*",)), COLLECTION)
    assert list(images.complete(Naming(), subject).findings) == list(images.intact(subject).findings) == []
    assert contact_sheet(lake, COLLECTION, receipts, series) is None
    assert prunable(lake, COLLECTION) is None


def test_images_that_come_later_are_fetched_and_those_that_go_stay(one: OneSeries, lake: Lake) -> None:
    numbers, one.store.numbers = one.store.numbers, ()
    committed(one, lake)
    one.store.numbers = numbers
    committed(one, lake)
    (path,) = {p.rsplit("/", 1)[0] for p in lake.read_table(INSTANCES, COLLECTION)["Path"].to_pylist()}
    assert len(lake.names_in(path)) == 5
    # A series that is emptied loses nothing here: only a person deletes files.
    one.store.numbers = ()
    committed(one, lake)
    (row,) = lake.read_table(IMAGE_SERIES, COLLECTION).to_pylist()
    assert (row["Status"], row["ImageCount"], row["NewerImageCount"]) == (COMPLETE, 5, 0)
    assert "the archive has no images of it any more; those in the lake stay" in row["Reason"]
    assert len(lake.names_in(path)) == lake.read_table(INSTANCES, COLLECTION).num_rows == 5
