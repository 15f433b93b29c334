"""Archives that answer, but not as they should: the client says what is wrong, or gives the true rows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from nbia_pipeline.archive import ArchiveError, ArchiveUnreachable, BadAnswer, LoginRefused, NbiaClient
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.embedded.server.tokens import TokenStore
from nbia_pipeline.schema import shapes
from nbia_pipeline_tests.helpers.archives import FAST, Serve, TestArchive
from nbia_pipeline_tests.helpers.expected import assert_same, first_of_each, sanitised, sent, studies, visible
from nbia_pipeline_tests.helpers.faults import (
    NO_SUCH_ENDPOINT,
    Fault,
    Faults,
    always,
    answer,
    closed_early,
    cut,
    html,
    silence,
)

COLLECTION = "TCGA-DEMO"
UID = "1.2.3"

# Every list with the endpoint that it asks first.
LISTS: dict[str, tuple[str, Callable[[NbiaClient], Any]]] = {
    "collection_values": ("getCollectionValues", lambda c: c.collection_values()),
    "modality_values": ("getModalityValues", lambda c: c.modality_values()),
    "modality_counts": ("getModalityValuesAndCounts", lambda c: c.modality_counts()),
    "body_part_values": ("getBodyPartValues", lambda c: c.body_part_values()),
    "manufacturer_values": ("getManufacturerValues", lambda c: c.manufacturer_values()),
    "collection_counts": ("getCollectionValuesAndCounts", lambda c: c.collection_counts()),
    "collection_description": ("getCollectionDescriptions", lambda c: c.collection_description(COLLECTION)),
    "patients": ("getPatient", lambda c: c.patients(COLLECTION)),
    "studies": ("getPatientStudy", lambda c: c.studies(COLLECTION)),
    "series": ("getSeries", lambda c: c.series(COLLECTION)),
    "updated_series": ("getUpdatedSeries", lambda c: c.updated_series(date(2000, 1, 1))),
    "sop_instance_uids": ("getSOPInstanceUIDs", lambda c: c.sop_instance_uids(UID)),
    "series_metadata": ("getSeriesMetaData", lambda c: c._metadata_one_by_one([UID])),
}
every_list = pytest.mark.parametrize(("endpoint", "call"), LISTS.values(), ids=LISTS)


@every_list
@pytest.mark.parametrize(
    "fault",
    [
        html(),
        answer(200, b'[{"error":"x"}]'),
        answer(200, b"[null]"),
        answer(200, b"service temporarily unavailable"),
        answer(200, b'{"errorMessage":"x"}'),
        answer(200, bytes(range(256))),
        answer(206, b"[]"),
    ],
    ids=["html", "error", "null", "words", "object", "bytes", "part"],
)
def test_what_is_not_a_list_is_a_bad_answer(
    archive: TestArchive, endpoint: str, call: Callable[[NbiaClient], Any], fault: Fault
) -> None:
    archive.faults.inject(endpoint, fault, times=9)
    with archive.client() as client, pytest.raises(BadAnswer) as caught:
        call(client)
    assert caught.value.endpoint.endswith("/" + endpoint)
    assert caught.value.status in (None, 206)


@every_list
def test_html_with_status_200_is_called_html(
    archive: TestArchive, endpoint: str, call: Callable[[NbiaClient], Any]
) -> None:
    archive.faults.inject(endpoint, html())
    with archive.client() as client, pytest.raises(BadAnswer, match=r"is HTML or XML .* a proxy or a login page"):
        call(client)
    assert archive.faults.count(endpoint) == 1


@every_list
def test_an_archive_that_falls_silent_is_unreachable(
    archive: TestArchive, endpoint: str, call: Callable[[NbiaClient], Any]
) -> None:
    archive.faults.inject(endpoint, silence(b"["))
    options = type(FAST)(connect_timeout=2, read_timeout=0.1, tries=1)
    with archive.client(options=options) as client, pytest.raises(ArchiveUnreachable, match="timed out"):
        call(client)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("how", [cut, closed_early], ids=["dropped", "closed"])
@pytest.mark.parametrize("method", ["series", "patients", "studies"])
def test_a_list_that_always_ends_early_is_never_a_shorter_table(
    archive: TestArchive, method: str, how: Callable[[int], Fault], share: float
) -> None:
    endpoint, call = LISTS[method]
    with archive.client() as client:
        lengths: list[int] = []
        arguments = {"Collection": COLLECTION}
        client._session.call(
            "GET", f"/services/v2/{endpoint}", arguments, lambda a: lengths.append(len(a.content)), most=1 << 20
        )
        archive.faults.reset()
        archive.faults.inject(endpoint, how(int(lengths[0] * share)), times=9)
        with pytest.raises((BadAnswer, ArchiveUnreachable)):
            call(client)
    assert archive.faults.count(endpoint) == FAST.tries


def test_the_spellings_of_the_guide_are_read(serve: Serve, demo: Catalog) -> None:
    rows = visible(demo, COLLECTION)
    with NbiaClient(serve(create_app(demo, guide_spellings=True)), options=FAST) as client:
        assert_same(client.patients(COLLECTION), sent(first_of_each(rows, "PatientID"), shapes.PATIENT), "patients")
        assert_same(client.studies(COLLECTION), sent(studies(rows), shapes.STUDY), "studies")
        assert_same(client.series(COLLECTION), sent(rows, shapes.SERIES_V2), "series")


def test_the_spellings_of_the_guide_are_read_in_single_metadata(serve: Serve, demo: Catalog) -> None:
    faults = Faults(create_app(demo, guide_spellings=True))
    faults.inject("getSeriesMetadata2", answer(500, NO_SUCH_ENDPOINT))
    rows = visible(demo, COLLECTION)
    with NbiaClient(serve(faults), options=FAST) as client:
        table = client.series_metadata([r["SeriesInstanceUID"] for r in rows])
    assert_same(table, sent([sanitised(r) for r in rows], shapes.META27), "series_metadata")


def test_an_archive_that_forgets_every_token_at_once_is_not_empty(archive: TestArchive) -> None:
    archive.faults.inject("getSeries", Fault("expire_tokens"), times=9)
    with archive.client() as client, pytest.raises(BadAnswer, match="sends nothing of it: nothing changed"):
        client.series(COLLECTION)


def test_an_archive_that_takes_no_token_at_all_is_a_refused_login(archive: TestArchive) -> None:
    for endpoint in ("getSeries", "getCollectionValues"):
        archive.faults.inject(endpoint, Fault("expire_tokens"), times=9)
    with archive.client() as client, pytest.raises(LoginRefused, match="check username and password"):
        client.series(COLLECTION)


def test_tokens_that_live_for_a_second_still_bring_every_list(demo: Catalog, serve: Serve) -> None:
    app = create_app(demo)
    tokens: TokenStore = app.state.archive.tokens
    faults = Faults(app)
    with NbiaClient(serve(faults), options=FAST) as client:
        for _ in range(5):
            assert client.series(COLLECTION).num_rows == len(visible(demo, COLLECTION))
            tokens.expire_all()
            assert client.collection_values() != []
            tokens.expire_all()
    assert faults.count("token") == 10


@pytest.mark.parametrize("api", ["v2", "v4"])
@pytest.mark.parametrize(
    "fault", [answer(404, b"<html>"), answer(500, NO_SUCH_ENDPOINT), html(), answer(200, b"hello"), answer(301)]
)
def test_a_server_that_is_no_archive_is_found_out(serve: Serve, api: str, fault: Fault) -> None:
    with (
        NbiaClient(serve(always(fault)), api=api, options=FAST) as client,
        pytest.raises(ArchiveError, match="base_url"),
    ):
        client.patients(COLLECTION)


def test_an_empty_answer_with_status_204_has_no_rows(archive: TestArchive) -> None:
    archive.faults.inject("getUpdatedSeries", answer(204), times=2)
    with archive.client() as client:
        assert client.updated_series(date(2000, 1, 1)).num_rows == 0


def test_compressed_answers_are_read(archive: TestArchive) -> None:
    body = gzip.compress(json.dumps([{"Collection": "A"}]).encode())
    archive.faults.inject("getCollectionValues", answer(200, body, content_encoding="gzip"))
    with archive.client() as client:
        assert client.collection_values() == ["A"]


def test_an_answer_that_only_says_it_is_compressed_is_given_up(archive: TestArchive) -> None:
    archive.faults.inject("getCollectionValues", answer(200, b"[]", content_encoding="gzip"), times=9)
    with archive.client() as client, pytest.raises(ArchiveUnreachable, match="no complete answer"):
        client.collection_values()
