"""The metadata of series, in bulk and one by one."""

from __future__ import annotations

from datetime import datetime

import pytest

from nbia_pipeline.archive import ArchiveUnreachable, ServerError
from nbia_pipeline.archive.endpoints import DIALECTS, Endpoint
from nbia_pipeline.archive.transport import ClientOptions
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.schema import shapes
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.expected import RESTRICTED, assert_same, sanitised, sent, uids_of, visible
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT, answer

COLLECTION = "TCGA-DEMO"
ONE_AT_A_TIME = ClientOptions(tries=3, backoff=0.01, max_in_flight=1)


def test_metadata_in_bulk_is_that_of_the_catalog(archive: TestArchive, demo: Catalog) -> None:
    rows = visible(demo)
    with archive.client() as client:
        table = client.series_metadata(uids_of(rows))
    expected = [{**r, "DateReleased": _midnight(r["DateReleased"])} for r in sent(rows, shapes.METADATA2)]
    assert_same(table, expected, "series_metadata")
    assert (archive.faults.count("getSeriesMetadata2"), archive.faults.count("getSeriesMetaData")) == (1, 0)


def _midnight(moment: datetime | None) -> datetime | None:
    return moment and moment.replace(hour=0, minute=0, second=0)


@pytest.mark.parametrize("wanted", [b"404 Not Found", b"405 Method Not Allowed"])
def test_metadata_one_by_one_is_that_of_the_catalog(archive: TestArchive, demo: Catalog, wanted: bytes) -> None:
    archive.faults.inject("getSeriesMetadata2", answer(500, NO_SUCH_ENDPOINT.replace(b"404 Not Found", wanted)))
    rows = visible(demo)
    with archive.client() as client:
        table = client.series_metadata(uids_of(rows))
    assert_same(table, sent([sanitised(r) for r in rows], shapes.META27), "series_metadata")
    assert archive.faults.count("getSeriesMetaData") == len(rows)


def test_metadata_in_bulk_and_one_by_one_agree_but_for_what_the_server_changes(
    archive: TestArchive, demo: Catalog
) -> None:
    uids = uids_of(visible(demo))
    archive.faults.inject("getSeriesMetadata2", answer(500, NO_SUCH_ENDPOINT))
    with archive.client() as client:
        singly = client.series_metadata(uids).sort_by("SeriesInstanceUID")
        in_bulk = client.series_metadata(uids).sort_by("SeriesInstanceUID")
    changed = {
        *("SeriesDescription", "StudyDescription", "Manufacturer", "AnnotationsFlag"),  # sanitised
        *("TimeStamp", "SOPClassUID", "StudyID", "AnnotationSize"),  # served by one of them
        "DateReleased",  # in bulk a day
    }
    same = [n for n in in_bulk.schema.names if n not in changed]
    assert in_bulk.select(same).equals(singly.select(same))
    assert in_bulk["SeriesDescription"].to_pylist() != singly["SeriesDescription"].to_pylist()


def test_a_call_that_is_refused_is_not_taken_for_a_missing_one(archive: TestArchive) -> None:
    archive.faults.inject("getSeriesMetadata2", answer(503), times=9)
    with archive.client() as client, pytest.raises(ArchiveUnreachable):
        client.series_metadata(["1.2"])
    assert archive.faults.count("getSeriesMetaData") == 0


def test_metadata_of_hidden_unknown_and_restricted_series_have_no_row(archive: TestArchive, demo: Catalog) -> None:
    known = uids_of(visible(demo))[:2]
    hidden = [r["SeriesInstanceUID"] for r in demo.series.to_pylist() if r["Visibility"] != 1]
    wanted = [*known, *hidden, *uids_of(visible(demo, RESTRICTED)), "9.9.9"]
    archive.faults.inject("getSeriesMetadata2", answer(500, NO_SUCH_ENDPOINT))
    with archive.client() as client:
        for _ in ("one by one", "in bulk"):
            assert sorted(uids_of(client.series_metadata(wanted).to_pylist())) == sorted(known)


def test_many_series_are_asked_for_in_runs(
    archive: TestArchive, demo: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints: dict[str, Endpoint] = dict(DIALECTS["v2"].endpoints)
    bulk = endpoints["series_metadata_bulk"]
    monkeypatch.setitem(
        DIALECTS["v2"].endpoints,
        "series_metadata_bulk",
        Endpoint(
            bulk.path,
            bulk.shape,
            bulk.parameters,
            method="POST",
            media="csv",
            empty_if_unauthorized=False,
            max_values=10,
        ),
    )
    uids = uids_of(visible(demo))
    with archive.client() as client:
        assert sorted(uids_of(client.series_metadata(uids).to_pylist())) == sorted(uids)
    assert archive.faults.count("getSeriesMetadata2") == -(-len(uids) // 10) == 4


def test_no_series_have_no_metadata_and_nobody_is_asked(archive: TestArchive) -> None:
    with archive.client() as client:
        assert_same(client.series_metadata([]), [], "series_metadata")
    assert archive.faults.seen == []


# --- where the archive fails


def failing(archive: TestArchive, series: int) -> None:
    archive.faults.inject("getSeriesMetadata2", answer(500, NO_SUCH_ENDPOINT))
    archive.faults.inject("getSeriesMetaData", answer(500, b"Server was not able to\nno image"), times=3 * series)


def test_series_at_which_the_archive_fails_have_no_metadata(
    archive: TestArchive, demo: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    rows = visible(demo, COLLECTION)
    failing(archive, series=1)
    with archive.client(options=ONE_AT_A_TIME) as client:
        table = client.series_metadata(uids_of(rows))
    assert_same(table, sent([sanitised(r) for r in rows[1:]], shapes.META27), "series_metadata")
    assert f"no metadata of series {rows[0]['SeriesInstanceUID']}, the archive fails on it" in caplog.text


def test_an_archive_that_fails_at_most_series_is_an_error(archive: TestArchive, demo: Catalog) -> None:
    uids = uids_of(visible(demo, COLLECTION))
    failing(archive, series=len(uids))
    with archive.client() as client, pytest.raises(ServerError, match="status 500"):
        client.series_metadata(uids)


def test_an_archive_that_is_busy_with_one_series_loses_no_row(archive: TestArchive, demo: Catalog) -> None:
    uids = uids_of(visible(demo, COLLECTION))
    archive.faults.inject("getSeriesMetadata2", answer(500, NO_SUCH_ENDPOINT))
    archive.faults.inject("getSeriesMetaData", answer(503), times=3)
    with archive.client(options=ONE_AT_A_TIME) as client, pytest.raises(ArchiveUnreachable, match="status 503"):
        client.series_metadata(uids)


@pytest.mark.parametrize("api", ["v2", "v4"])
def test_what_has_no_metadata_is_named_in_the_log(
    archive: TestArchive, demo: Catalog, caplog: pytest.LogCaptureFixture, api: str
) -> None:
    with archive.client(api=api) as client:
        client.series_metadata([visible(demo)[0]["SeriesInstanceUID"], "9.9.9"])
    assert "no metadata of 1 of 2 series, such as 9.9.9" in caplog.text
