"""Metadata in bulk, with what only the calls for one series serve; those calls may fail, the rows stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nbia_pipeline.archive import ArchiveUnreachable
from nbia_pipeline.archive.metadata import FEW_SLOW, GIVE_UP
from nbia_pipeline.archive.transport import ClientOptions
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.schema import shapes
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive
from nbia_pipeline_tests.helpers.expected import assert_same, sent, uids_of, visible
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT, NULL, answer, changed, html

SINGLY = ("SOPClassUID", "StudyID", "AnnotationSize", "TimeStamp")
OTHERS = b'[{"Series UID":"9.9","SOP Class UID":"1.2","File Location":"X"}]'
ONE_AT_A_TIME = ClientOptions(tries=2, backoff=0.01, max_in_flight=1)

Row = dict[str, Any]


def in_bulk(row: Row) -> Row:
    """Return a row as the bulk call sends it: the release loses its time of day."""
    row = sent([row], shapes.METADATA2)[0]
    day = row["DateReleased"]
    return {**row, "DateReleased": day and day.replace(hour=0, minute=0, second=0)}


def completed(row: Row) -> Row:
    """Return a row with what the single call adds; Java's dates end at the second."""
    single = sent([row], shapes.META27)[0]
    added = {name: single[name] for name in SINGLY}
    moment = added["TimeStamp"]
    return {
        **in_bulk(row),
        **added,
        "AnnotationSize": added["AnnotationSize"] or 0,
        "TimeStamp": moment and moment.replace(microsecond=0),
    }


def test_single_calls_add_their_columns_and_change_no_other(archive: TestArchive, demo: Catalog) -> None:
    rows = visible(demo)
    with archive.client() as client:
        table = client.series_metadata(uids_of(rows), single=True)
    assert_same(table, [completed(row) for row in rows], "series_metadata")
    assert all(table[name].null_count < table.num_rows for name in SINGLY)
    assert table["SOPClassUID"].null_count == 0
    calls = (archive.faults.count("getSeriesMetadata2"), archive.faults.count("getSeriesMetaData"))
    assert calls == (1, len(rows))


@pytest.mark.parametrize(
    "fault",
    [
        answer(204),
        answer(500, NULL),
        answer(400, b"The user has not been granted the access"),
        html(),
        answer(200, b"["),
        answer(200, OTHERS),
        changed(lambda body: body.replace(b'"Series UID"', b'"Series UIX"')),
    ],
    ids=["204", "500", "400", "html", "cut short", "of another series", "without its key"],
)
def test_a_single_call_that_fails_costs_its_columns_and_not_the_row(
    archive: TestArchive, demo: Catalog, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    rows = visible(demo)[:4]
    archive.faults.inject("getSeriesMetaData", fault, times=2)
    with archive.client(options=ONE_AT_A_TIME) as client:
        table = client.series_metadata(uids_of(rows), single=True)
    left = {row["SeriesInstanceUID"] for row in table.to_pylist() if not row["SOPClassUID"]}
    # What is not tried again takes the second answer for the second series.
    assert left and left <= set(uids_of(rows[:2]))
    expected = [in_bulk(row) if row["SeriesInstanceUID"] in left else completed(row) for row in rows]
    assert_same(table, expected, "series_metadata")
    assert "the archive fails on" not in caplog.text or caplog.text.count("on their single calls") == 1


def test_an_archive_without_the_single_call_is_not_asked_for_every_series(
    archive: TestArchive, demo: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    rows = visible(demo)
    assert len(rows) > GIVE_UP + 1
    archive.faults.inject("getSeriesMetaData", answer(500, NO_SUCH_ENDPOINT), times=99)
    with archive.client(options=ONE_AT_A_TIME) as client:
        table = client.series_metadata(uids_of(rows), single=True)
    assert_same(table, [in_bulk(row) for row in rows], "series_metadata")
    assert archive.faults.count("getSeriesMetaData") == GIVE_UP
    assert f"no AnnotationSize, SOPClassUID, StudyID, TimeStamp of {len(rows)} of {len(rows)} series" in caplog.text
    assert "the archive has no such endpoint" in caplog.text


def test_a_busy_archive_is_asked_again_and_an_unreachable_one_is_an_error(archive: TestArchive, demo: Catalog) -> None:
    rows = visible(demo)[:3]
    archive.faults.inject("getSeriesMetaData", answer(503))
    with archive.client(options=FAST) as client:
        assert_same(client.series_metadata(uids_of(rows), single=True), [completed(r) for r in rows], "series_metadata")
        archive.faults.inject("getSeriesMetaData", answer(503), times=9)
        with pytest.raises(ArchiveUnreachable, match="status 503"):
            client.series_metadata(uids_of(rows), single=True)


@pytest.mark.parametrize("slow", [answer(504), Fault("stall", fraction=0)], ids=["504", "silent"])
def test_single_calls_that_take_too_long_are_given_up_soon_and_cost_their_columns(
    archive: TestArchive, demo: Catalog, slow: Fault
) -> None:
    rows = visible(demo)[:8]
    archive.faults.inject("getSeriesMetaData", slow, times=99)
    impatient = replace(ONE_AT_A_TIME, read_timeout=0.3, tries=1)
    with archive.client(options=impatient) as client:
        table = client.series_metadata(uids_of(rows), single=True)
    assert_same(table, [in_bulk(row) for row in rows], "series_metadata")
    assert archive.faults.count("getSeriesMetaData") == FEW_SLOW


def test_v4_has_no_single_call_and_serves_the_spacing(archive: TestArchive, demo: Catalog) -> None:
    rows = visible(demo)
    with archive.client(api="v4") as client:
        table = client.series_metadata(uids_of(rows), single=True)
    assert_same(table, sent(rows, shapes.METADATA_V4), "series_metadata")
    assert archive.faults.count("getSeriesMetaData") == 0
    spacing = dict(zip(table["SeriesInstanceUID"].to_pylist(), table["PixelSpacing"].to_pylist(), strict=True))
    assert spacing == {r["SeriesInstanceUID"]: r["PixelSpacing(mm)-Row"] for r in rows}
    assert any(spacing.values()) and table["SliceThickness"].null_count < table.num_rows
    assert table["SOPClassUID"].null_count == table["AnnotationSize"].null_count == table.num_rows
