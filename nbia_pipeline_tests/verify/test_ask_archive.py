"""The lake is compared with the archive's digests as they are stored; another digest of a series alone is no damage."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES, VERIFICATIONS
from nbia_pipeline.verify.compare import lists_others
from nbia_pipeline.verify.refetch import refetch
from nbia_pipeline.verify.rehash import VerifyRun, digest_check, plan_verification, read_again
from nbia_pipeline_tests.helpers.archives import FAST
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT, answer, html
from nbia_pipeline_tests.helpers.one_series import COLLECTION, IMAGES, UID, OneSeries, Stored

OF_IMAGE, OF_SERIES = "getM5HashForImage", "getMD5Hierarchy"


def padded(number: int, md5: str) -> str:
    return md5


def short(number: int, md5: str) -> str:
    return md5.lstrip("0")


@pytest.fixture
def site(one: OneSeries) -> OneSeries:
    """A series that is in the lake."""
    one.fetch()
    with one.client() as client:
        one.lake.write_table(SERIES, client.series(series_uid=UID), COLLECTION)
    commit(one.lake, COLLECTION)
    one.before = len(one.faults.seen)
    return one


@pytest.mark.parametrize(
    ("listed", "different"),
    [
        (range(1, IMAGES + 1), None),
        ((), None),  # a server that lists nothing shows nothing
        (range(1, 7), "getSOPInstanceUIDs lists 6, the lake has 5 (missing 1.1.6)"),
        ((1, 2, 9), "getSOPInstanceUIDs lists 3, the lake has 5 (missing 1.1.9; not listed 1.1.3, 1.1.4, 1.1.5)"),
        ((1,), "getSOPInstanceUIDs lists 1, the lake has 5 (not listed 1.1.2, 1.1.3, 1.1.4 and 1 more)"),
    ],
    ids=["the same", "none", "one more", "others", "fewer"],
)
def test_the_lists_of_instances_are_compared(one: OneSeries, listed: Sequence[int], different: str | None) -> None:
    files = [f"{UID}.{n}" for n in range(1, IMAGES + 1)]
    rows = [{"SOPInstanceUID": f"{UID}.{n}"} for n in listed]
    one.faults.inject("getSOPInstanceUIDs", answer(200, json.dumps(rows).encode()), times=9)  # none is asked for twice
    with one.client() as client:
        assert lists_others(client, UID, files) == different


def compared(site: OneSeries) -> VerifyRun:
    with NbiaClient(site.url, options=FAST) as client:
        return read_again(site.lake, plan_verification(site.lake, [COLLECTION]), extra_check=digest_check(client))


@pytest.mark.parametrize(
    ("stored", "of_images"),
    [
        (padded, 0),
        (short, 0),
        (lambda number, md5: md5.lstrip("0") if number == 3 else md5, IMAGES),
        (lambda number, md5: " " if number == 3 else md5, IMAGES),
        (lambda number, md5: md5.upper(), IMAGES),
    ],
    ids=["padded", "without zeros", "some without", "a blank since", "upper case"],
)
def test_the_same_files_agree_however_their_digests_are_stored(site: OneSeries, stored: Stored, of_images: int) -> None:
    site.store.stored = stored
    done = compared(site)
    assert (done.checked, done.damaged) == (1, [])
    assert site.asked().get(OF_IMAGE, 0) == of_images
    assert site.lake.read_table(VERIFICATIONS, COLLECTION)["Finding"].to_pylist() == [None]


@pytest.mark.parametrize(
    "stored", [lambda number, md5: md5, lambda number, md5: md5.lstrip("0")], ids=["padded", "short"]
)
@pytest.mark.parametrize("change", [{"version": "another "}, {"numbers": (1, 2, 3)}], ids=["replaced", "fewer"])
def test_other_files_are_found_however_their_digests_are_stored(
    site: OneSeries, stored: Stored, change: dict[str, object]
) -> None:
    site.store.stored = stored
    for name, value in change.items():
        setattr(site.store, name, value)
    (result,) = compared(site).damaged
    assert result.outdated
    assert str(result.finding).startswith("outdated: the archive has different files: its digest is ")


@pytest.mark.parametrize(
    "fault", [answer(500, NO_SUCH_ENDPOINT), answer(504), answer(403), html()], ids=["missing", "504", "403", "a page"]
)
@pytest.mark.parametrize("call", [OF_IMAGE, OF_SERIES])
def test_a_call_that_the_archive_lacks_is_no_finding(
    site: OneSeries, call: str, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    site.store.stored = lambda number, md5: md5.lstrip("0") if number == 3 else md5
    site.faults.inject(call, fault, times=99)
    done = compared(site)
    assert (done.checked, done.damaged) == (1, [])
    assert [r for r in caplog.records if "the archive does not answer for the MD5 of " in r.message]


def test_a_list_that_has_more_is_found_and_the_series_is_not_proven_by_figures_again(site: OneSeries) -> None:
    """Zip, list of digests, ImageCount and FileSize leave out the same instance."""
    more = json.dumps([{"SOPInstanceUID": f"{UID}.{n}"} for n in range(1, IMAGES + 2)]).encode()
    site.faults.inject("getSOPInstanceUIDs", answer(200, more), times=99)
    (result,) = compared(site).damaged
    assert result.finding == "outdated: getSOPInstanceUIDs lists 6, the lake has 5 (missing 1.1.6)"
    with NbiaClient(site.url, options=FAST) as client:
        failures = refetch(client, site.lake, [result]).failures
    assert failures[UID].startswith("quarantined: the archive contradicts itself: getSeries counts 5 instances")
    assert site.lake.read_table(IMAGE_SERIES, COLLECTION)["Status"].to_pylist() == ["complete"]


def test_a_series_that_is_fetched_again_is_compared_with_its_list(site: OneSeries) -> None:
    site.store.version = "another "
    (result,) = compared(site).damaged
    with NbiaClient(site.url, options=FAST) as client:
        assert refetch(client, site.lake, [result]).failures == {}
    assert site.lake.read_table(IMAGE_SERIES, COLLECTION)["Proof"].to_pylist() == ["md5"]
