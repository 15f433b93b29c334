"""A page where a file is due is a fault of the connection, not of the series: its receipt stays as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nbia_pipeline.archive import BadAnswer
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.mirror.download import IN_A_ROW, fetch_batch
from nbia_pipeline.mirror.engine import preview
from nbia_pipeline.mirror.journal import record_failure
from nbia_pipeline.mirror.plan import Bounds
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import WantedSeries, wanted_series
from nbia_pipeline.schema.status import COMPLETE, QUARANTINED
from nbia_pipeline.schema.tables import SERIES
from nbia_pipeline_tests.helpers import zips
from nbia_pipeline_tests.helpers.archives import FAST
from nbia_pipeline_tests.helpers.faults import answer, changed, html
from nbia_pipeline_tests.helpers.mirrored_archive import MirroredArchive
from nbia_pipeline_tests.helpers.one_series import UID, OneSeries

HASHED, SINGLE = "getImageWithMD5Hash", "getSingleImage"
BACKLOG = Bounds(retry=False)
SERIES_COUNT = 21

PAGES = {
    "a login page": html(),
    "a page after a byte-order mark": html("\ufeff\r\n <HTML><body>Sign in</body></HTML>"),
    "a limit": answer(200, b"Too many requests. Try again in 60 seconds.", content_type="text/plain; charset=utf-8"),
    "an error as JSON": answer(200, b'{"error": "invalid_token"}', content_type="application/json"),
    "a text that begins like a zip": answer(200, b"PKI error: certificate expired", content_type="text/plain"),
    "no zip at all": answer(200, bytes(range(200, 256)) * 10),
    "a page of one letter": answer(200, b"x"),
    "two letters of a zip": answer(200, b"PK"),
    "blanks": answer(200, b" \r\n\r\n"),
    "a page that refuses": replace(html(), status=400),
}


@pytest.fixture
def site(site: MirroredArchive) -> MirroredArchive:
    """A lake in which the series of a collection are listed."""
    site = replace(site, options=replace(FAST, tries=2), collections=("HeadNeckMix",))
    with site.client() as client:
        site.lake.write_table(SERIES, client.series(site.collections[0]), site.collections[0])
    return site


def backlog(site: MirroredArchive) -> list[WantedSeries]:
    """Return what the sensor of the backlog would fetch."""
    return preview(site.lake, site.collections[0], bounds=BACKLOG).todo


def fetch(site: MirroredArchive, wanted: list[WantedSeries]) -> list[str]:
    """Fetch series one after the other; returns their statuses."""
    with site.client() as client:
        return [receipt.status for receipt in fetch_batch(client, site.lake, wanted, streams=1)]


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_pages_instead_of_zips_stop_the_batch_and_cost_no_series(site: MirroredArchive, page: Fault) -> None:
    wanted = backlog(site)
    assert len(wanted) == SERIES_COUNT
    site.wrong(replace(page, endpoint=HASHED))
    with pytest.raises(
        BadAnswer, match=r"a zip was expected, and .* arrived: a proxy, a login page or a limit|status 400"
    ):
        fetch(site, wanted)
    # The next one may have begun before the batch was stopped.
    assert IN_A_ROW <= len({e.query["SeriesInstanceUID"] for e in site.around.calls(HASHED)}) < SERIES_COUNT
    assert backlog(site) == wanted
    site.wrong()
    assert fetch(site, wanted[:2]) == [COMPLETE] * 2
    assert backlog(site) == wanted[2:]


def test_the_error_has_the_type_and_the_beginning_of_the_page(one: OneSeries) -> None:
    page = answer(200, b"<html>\n  <title>Proxy says no</title>" + b" " * 9000, content_type="text/html; charset=x")
    one.faults.inject(HASHED, page, times=9)
    with pytest.raises(BadAnswer) as caught:
        one.fetch()
    assert "a zip was expected, and text/html arrived" in str(caught.value)
    assert "answer '<html> <title>Proxy says no</title>'" in str(caught.value)
    assert (caught.value.status, caught.value.arguments) == (200, ("base_url",))
    assert caught.value.endpoint == "/services/v2/getImageWithMD5Hash"


def test_one_page_between_good_zips_costs_nothing(site: MirroredArchive) -> None:
    wanted = backlog(site)[:3]
    site.wrong(Fault("html", HASHED, wanted[1].SeriesInstanceUID, times=1))
    assert fetch(site, wanted) == [COMPLETE] * 3
    assert site.asked(HASHED) == 4


def test_a_page_for_one_series_holds_up_no_other_and_leaves_it_pending(site: MirroredArchive) -> None:
    wanted = backlog(site)
    site.wrong(Fault("html", HASHED, wanted[1].SeriesInstanceUID))
    with pytest.raises(BadAnswer, match=wanted[1].SeriesInstanceUID):
        fetch(site, wanted[:4])
    assert backlog(site) == [wanted[1], *wanted[4:]]
    site.wrong()
    assert fetch(site, [wanted[1]]) == [COMPLETE]


@pytest.mark.parametrize("position", [0, 3, -3])
def test_three_series_that_never_come_keep_no_other_from_the_lake(site: MirroredArchive, position: int) -> None:
    """Whichever three: the largest of a batch would come first, and stop it each time."""
    wanted = sorted(backlog(site), key=lambda w: -(w.FileSize or 0))
    never = wanted[position:][:3]
    site.wrong(*(Fault("html", HASHED, w.SeriesInstanceUID) for w in never))
    for _ in range(2):  # runs
        with pytest.raises(BadAnswer):
            fetch(site, backlog(site))
    assert {w.SeriesInstanceUID for w in backlog(site)} == {w.SeriesInstanceUID for w in never}


@pytest.mark.parametrize("text", [b"<html>lost</html>", b'{"error": 1}', b"java.io.IOException: lost"])
def test_a_text_within_a_zip_is_the_series_own_fault_and_is_not_tried_for_ever(one: OneSeries, text: bytes) -> None:
    broken = changed(lambda body: body[: body.index(b"PK\1\2")] + text)
    one.faults.inject(HASHED, broken, times=3)
    with one.client() as client:
        one.lake.write_table(SERIES, client.series(series_uid=UID), "Alpha Set")
        (wanted,) = wanted_series(client.series(series_uid=UID))
        (receipt,) = fetch_batch(client, one.lake, [wanted])
    assert receipt.status == QUARANTINED
    assert "neither an entry nor the end comes next, but b" in str(receipt.reason)
    plan = preview(one.lake, "Alpha Set", bounds=BACKLOG)
    assert (plan.todo, plan.given_up) == ([], 1)


@pytest.mark.parametrize("api", ["v2", "v4"])
@pytest.mark.parametrize("page", list(PAGES.values())[:4], ids=list(PAGES)[:4])
def test_a_page_instead_of_a_single_image_or_of_getimage(one: OneSeries, page: Fault, api: str) -> None:
    one.faults.inject(HASHED, zips.altered(zips.one_short_and_consistent), zips.altered(zips.nothing_at_all))
    one.faults.inject(SINGLE, page, times=2)
    one.faults.inject("getImage", page, times=2)
    with pytest.raises(BadAnswer, match=r"a DICOM file was expected, and .* arrived"):
        one.fetch(api)
    with pytest.raises(BadAnswer, match=r"a zip was expected, and .* arrived"):
        one.fetch(api)
    assert one.fetch(api).status == COMPLETE


def test_an_empty_answer_instead_of_a_zip_is_none(one: OneSeries) -> None:
    """Like an empty zip where digests are due; where none are, nobody can have meant it."""
    one.faults.inject(HASHED, answer(200), times=2)
    assert one.fetch().status == COMPLETE
    assert one.asked()["getImage"] == 1
    one.faults.inject("getImage", answer(200))
    with pytest.raises(BadAnswer, match="a zip was expected, and an empty answer arrived"):
        one.fetch()


def test_a_file_that_is_not_dicom_is_the_series_own_fault(one: OneSeries) -> None:
    one.faults.inject(HASHED, zips.altered(zips.one_short_and_consistent), times=9)
    one.faults.inject(SINGLE, answer(200, b"\x08\x00not DICOM"), times=9)
    assert one.fetch().status == QUARANTINED


# --- what earlier versions quarantined

EARLIER = {
    "this is no zip: b'<htm' where an entry or the end was due": True,
    "the download is not a complete zip: this is not a zip: b'<!DO' where an entry or the end was expected": True,
    "the download is not a complete zip: this is not a zip: b'{\"er' where an entry or the end was expected": True,
    "this is no zip: b'\\n\\n<h' where an entry or the end was due": True,
    'this is no zip: b"Can\'" where an entry or the end was due': True,
    "this is no zip: b'\\xef\\xbb\\xbf<' where an entry or the end was due": True,
    "the download is not a complete zip: this is not a zip: b'PK\\x01\\x03' where an entry was expected": False,
    "the download is not a complete zip: this is not a zip: b'\\x1a\\x8f\\x00q' where an entry was expected": False,
    "the download is not a complete zip: the zip is truncated: the stream ended within a file": False,
    "the zip contains the name '1.dcm' twice": False,
}


@pytest.mark.parametrize(("reason", "again"), EARLIER.items())
def test_what_was_quarantined_because_of_a_page_is_retried(one: OneSeries, reason: str, again: bool) -> None:
    lake = one.lake
    with one.client() as client:
        series = client.series(series_uid=UID)
    lake.write_table(SERIES, series, "Alpha Set")
    (wanted,) = wanted_series(series)
    record_failure(lake, Receipt(wanted, QUARANTINED, 3, reason=reason))
    plan = preview(lake, "Alpha Set", bounds=BACKLOG)
    assert ([w.SeriesInstanceUID for w in plan.todo], plan.given_up) == (([UID], 0) if again else ([], 1))
    assert [w.SeriesInstanceUID for w in preview(lake, "Alpha Set").todo] == [UID]
