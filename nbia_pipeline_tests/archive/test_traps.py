"""48 known traps of the real server, one test each: what it does, and that no data are lost or wrong because of it.

Where a trap does not concern the client, the docstring names what it concerns, and the test checks that.
"""

# ruff: noqa: DTZ001 - the server's times have no zone

from __future__ import annotations

import inspect
import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nbia_pipeline.archive import (
    ArchiveUnreachable,
    BadAnswer,
    LoginRefused,
    NbiaClient,
    NotAvailable,
    SeriesSize,
    ServerError,
)
from nbia_pipeline.archive import transport as session_module
from nbia_pipeline.archive.answers import read_json
from nbia_pipeline.archive.bounds import PIECE_BYTES
from nbia_pipeline.archive.endpoints import DIALECTS
from nbia_pipeline.archive.transport import Session
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.download import fetch_series
from nbia_pipeline.mirror.plan import make_plan
from nbia_pipeline.mirror.series import WantedSeries, wanted_series
from nbia_pipeline.mirror.unpack import MD5_LIST
from nbia_pipeline.schema import shapes
from nbia_pipeline.schema.status import COMPLETE, UNAVAILABLE
from nbia_pipeline_tests.helpers import zips
from nbia_pipeline_tests.helpers.archives import FAST, Serve, TestArchive
from nbia_pipeline_tests.helpers.expected import RESTRICTED, Row, visible
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT, Faults, answer, cut, silence, without_query
from nbia_pipeline_tests.helpers.series import read_files
from nbia_pipeline_tests.helpers.tls import serving_tls

COLLECTION = "TCGA-DEMO"
SMALL = "QIN_Breast.v2"


@pytest.fixture
def v4(archive: TestArchive) -> Iterator[NbiaClient]:
    with archive.client(api="v4") as made:
        yield made


@pytest.fixture
def wanted(client: NbiaClient) -> WantedSeries:
    return wanted_series(client.series(SMALL))[0]


def uid_of(demo: Catalog, **properties: Any) -> str:
    """Return the first series of the catalog with these properties."""
    rows = (r for r in demo.series.to_pylist() if all(r[k] == v for k, v in properties.items()))
    return str(next(rows)["SeriesInstanceUID"])


def hidden(demo: Catalog) -> str:
    return uid_of(demo, Visibility=0)


def names_in(body: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(body)) as zipped:
        return zipped.namelist()


def singly(archive: TestArchive) -> None:
    """Take the bulk call away, so that metadata come one by one: META27."""
    archive.faults.inject("getSeriesMetadata2", answer(500, NO_SUCH_ENDPOINT))


def rows(*found: Row) -> bytes:
    return json.dumps(found).encode()


def test_an_empty_200_has_no_rows(archive: TestArchive, client: NbiaClient) -> None:
    assert client.series("No Such Collection").num_rows == 0
    assert [r.endpoint for r in archive.faults.seen[:3]] == ["token", "getSeries", "getCollectionValues"]


def test_an_expired_token_does_not_look_like_no_data(archive: TestArchive, client: NbiaClient) -> None:
    whole = client.series(COLLECTION)
    archive.tokens.expire_all()
    assert client.series(COLLECTION).equals(whole)
    assert whole.num_rows == 9


def test_a_500_for_want_of_a_token_is_asked_once(archive: TestArchive) -> None:
    session = Session(archive.url, None, options=FAST)
    with pytest.raises(LoginRefused, match="requires a token"):
        session.call("GET", "/services/v2/getCollectionValues", {}, lambda a: a.content, most=1 << 20)
    assert len(archive.faults.seen) == 1


def test_a_204_is_believed_only_with_a_good_token(archive: TestArchive, client: NbiaClient, demo: Catalog) -> None:
    known, unknown = uid_of(demo, Collection=COLLECTION), hidden(demo)
    client.collection_values()
    archive.tokens.expire_all()
    singly(archive)
    archive.faults.inject("getSeriesMetadata2", answer(500, NO_SUCH_ENDPOINT))
    table = client.series_metadata([known, unknown])
    assert table["SeriesInstanceUID"].to_pylist() == [known]
    assert archive.faults.count("getCollectionValues") > 1


def test_a_400_is_text_whatever_its_label(archive: TestArchive, client: NbiaClient) -> None:
    with pytest.raises(NotAvailable) as caught:
        client.image("9.9.9", b"".join)
    assert caught.value.body.startswith("The user has not been granted the access to image")


def test_unknown_hidden_and_forbidden_are_not_told_apart(client: NbiaClient, demo: Catalog) -> None:
    for uid in ("9.9.9", hidden(demo), uid_of(demo, Collection=RESTRICTED)):
        with pytest.raises(NotAvailable, match="unknown, hidden or not permitted"):
            client.image_with_md5(uid, b"".join)


def test_a_500_is_not_tried_for_ever(archive: TestArchive, demo: Catalog) -> None:
    with archive.client(options=replace(FAST, tries=50)) as client:
        with pytest.raises(ServerError, match="status 500"):
            client.single_image(uid_of(demo, Collection=COLLECTION), "9.9.9", b"".join)
        assert archive.faults.count("getSingleImage") == 3
        archive.faults.inject("getPatientStudy", answer(500, NO_SUCH_ENDPOINT))
        with pytest.raises(BadAnswer, match="no such endpoint"):
            client.studies(COLLECTION)
        assert archive.faults.count("getPatientStudy") == 1


def test_a_filter_that_the_server_ignores_is_found_out(archive: TestArchive, client: NbiaClient) -> None:
    archive.faults.inject("getSeries", without_query())
    with pytest.raises(BadAnswer, match="asked for collection"):
        client.series(COLLECTION)
    with pytest.raises(ValueError, match="takes no Collection"):
        client._list("series", Collection=COLLECTION)


def test_a_patient_has_one_spelling(client: NbiaClient, v4: NbiaClient) -> None:
    for one in (client, v4):
        tables = one.patients(COLLECTION), one.studies(COLLECTION), one.series(COLLECTION)
        assert len({frozenset(t["PatientID"].to_pylist()) for t in tables}) == 1


def test_a_description_has_one_spelling(client: NbiaClient, v4: NbiaClient) -> None:
    for one in (client, v4):
        series = one.series(COLLECTION)
        described = {r["StudyInstanceUID"]: r["StudyDescription"] for r in one.studies(COLLECTION).to_pylist()}
        assert {r["StudyInstanceUID"]: r["StudyDescription"] for r in series.to_pylist()} == described
        assert one.series_metadata(series["SeriesInstanceUID"].to_pylist())["StudyDescription"].null_count == 0
        assert "AdmittingDiagnosesDescription" in series.schema.names


def test_keys_are_found_with_and_without_blanks(archive: TestArchive, client: NbiaClient) -> None:
    for key in ("Date Released", "DateReleased"):
        body = rows({"SeriesInstanceUID": "1", key: "2020-01-01 00:00:00.0"})
        archive.faults.inject("getContentsByName", answer(200, body))
        assert client.contents_by_name("cart")["DateReleased"].to_pylist() == [datetime(2020, 1, 1)]
    for key in ("Protocol Name", "ProtocolName"):
        singly(archive)
        archive.faults.inject("getSeriesMetaData", answer(200, rows({"Series UID": "1", key: "P"})))
        assert client.series_metadata(["1"])["ProtocolName"].to_pylist() == ["P"]


def test_days_are_written_as_each_endpoint_wants_them(archive: TestArchive, client: NbiaClient, v4: NbiaClient) -> None:
    day = date(2016, 3, 7)
    for one in (client, v4):
        one.updated_series(day)
        one.new_patients(COLLECTION, day)
    assert [r.query["fromDate"] for r in archive.faults.calls("getUpdatedSeries")] == ["07/03/2016", "03-07-2016"]
    new = [r.query for r in archive.faults.calls("NewPatientsInCollection")]
    assert [q.get("Date") or q["fromDate"] for q in new] == ["2016/03/06", "03-07-2016"]
    with pytest.raises(TypeError, match="pass a datetime"):
        client.updated_series("2016-03-07")  # type: ignore[arg-type]


def test_a_day_that_was_read_as_another_is_found_out(archive: TestArchive, client: NbiaClient) -> None:
    archive.faults.inject("getUpdatedSeries", without_query())
    with pytest.raises(BadAnswer, match="asked for releases after 2021-01-01, the archive sent series"):
        client.updated_series(date(2021, 1, 1))


def test_every_form_of_a_date_is_read(archive: TestArchive, client: NbiaClient, v4: NbiaClient) -> None:
    uids = client.series(COLLECTION)["SeriesInstanceUID"].to_pylist()
    singly(archive)
    as_java, as_iso, as_us = (c.series_metadata(uids) for c in (client, client, v4))
    listed = [client.series(COLLECTION), v4.series(COLLECTION), as_java, as_iso, as_us]
    days = [{r["SeriesInstanceUID"]: r["DateReleased"].date() for r in table.to_pylist()} for table in listed]
    assert all(d == days[0] for d in days[1:])
    assert client.collection_description(COLLECTION)["DescriptionTimestamp"].null_count == 0
    assert all(table.schema.field("DateReleased").type.tz is None for table in listed)


def test_a_release_at_midnight_needs_a_day_of_overlap(client: NbiaClient) -> None:
    """The caller that polls must overlap the days; the docstring of the method explains it."""
    midnight = datetime(2019, 8, 12)
    assert midnight not in client.updated_series(date(2019, 8, 12))["DateReleased"].to_pylist()
    assert midnight in client.updated_series(date(2019, 8, 11))["DateReleased"].to_pylist()
    assert "ask from some days before" in " ".join((inspect.getdoc(NbiaClient.updated_series) or "").split())


def test_a_release_in_the_afternoon_is_sent_beside_those_of_midnight(client: NbiaClient) -> None:
    day = [
        d for d in client.updated_series(date(2016, 3, 21))["DateReleased"].to_pylist() if d.date() == date(2016, 3, 21)
    ]
    assert day == [datetime(2016, 3, 21, 15, 42, 7)]


def test_new_means_the_same_in_both_dialects(client: NbiaClient, v4: NbiaClient) -> None:
    for one in (client, v4):
        assert one.new_patients(COLLECTION, date(2019, 8, 12))["PatientID"].to_pylist() == ["TCGA-DM-A003"]


def test_a_series_without_a_release_is_in_the_full_list(client: NbiaClient, demo: Catalog) -> None:
    """The full list is what the tables are made of; getUpdatedSeries is a hint."""
    uid = uid_of(demo, DateReleased=None, Visibility=1)
    assert uid not in client.updated_series(date(1900, 1, 1))["SeriesInstanceUID"].to_pylist()
    assert uid in client.series("HeadNeckMix")["SeriesInstanceUID"].to_pylist()


def test_a_series_that_is_no_longer_listed_keeps_its_files(
    client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    """For the engine: receipts and files stay, and no plan ever removes."""
    listed = client.series(SMALL)
    path = fetch_series(client, lake, wanted).path
    without = listed.filter(pa.compute.not_equal(listed["SeriesInstanceUID"], wanted.SeriesInstanceUID))
    receipts = commit(lake, SMALL, without)
    kept = next(r for r in receipts.to_pylist() if r["SeriesInstanceUID"] == wanted.SeriesInstanceUID)
    assert kept["Status"] == COMPLETE
    assert wanted.SeriesInstanceUID not in [w.SeriesInstanceUID for w in make_plan(without, receipts).todo]
    assert len(read_files(lake, path)) == wanted.ImageCount


def test_new_content_under_the_same_uid_is_fetched_again(client: NbiaClient, lake: Lake, wanted: WantedSeries) -> None:
    """For the engine: any part of the fingerprint counts."""
    fetch_series(client, lake, wanted)
    listed = client.series(SMALL).filter(pa.compute.field("SeriesInstanceUID") == wanted.SeriesInstanceUID)
    receipts = commit(lake, SMALL, listed)
    assert make_plan(listed, receipts).todo == []
    for column, value in (("FileSize", 1), ("ImageCount", 1), ("TimeStamp", datetime(2030, 1, 1, 1))):
        at = listed.schema.get_field_index(column)
        changed = listed.set_column(at, listed.schema.field(at), pa.array([value], listed.schema.field(at).type))
        assert len(make_plan(changed, receipts).todo) == 1


def test_a_series_that_changed_since_it_was_listed_is_listed_again(
    client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    """For the engine: what arrives is compared with what was listed, and kept as it is listed now."""
    before = replace(wanted, ImageCount=(wanted.ImageCount or 0) - 1)
    receipt = fetch_series(client, lake, before)
    assert (receipt.status, receipt.attempts, receipt.wanted) == (COMPLETE, 2, wanted)


def fetched_after(
    damage: Callable[[zips.Entries], zips.Entries],
    archive: TestArchive,
    client: NbiaClient,
    lake: Lake,
    wanted: WantedSeries,
) -> tuple[str, int]:
    """Return the outcome and the number of downloads, the first of which was damaged."""
    archive.faults.inject("getImageWithMD5Hash", zips.altered(damage))
    receipt = fetch_series(client, lake, wanted)
    return receipt.status, receipt.attempts


def test_a_valid_zip_with_fewer_files_is_not_taken(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    """For the engine: the list of digests, written last, must be there."""
    assert fetched_after(zips.without_first, archive, client, lake, wanted) == (COMPLETE, 2)


def test_a_cut_file_in_a_valid_zip_is_not_taken(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    """For the engine: every file is digested, and the one that is cut is fetched by itself."""
    assert fetched_after(zips.truncated_file, archive, client, lake, wanted) == (COMPLETE, 1)
    assert archive.faults.count("getSingleImage") == 1


def test_licence_and_digests_are_not_images(client: NbiaClient, lake: Lake, wanted: WantedSeries) -> None:
    """For the engine: they are neither counted nor kept. The license is in the series table."""
    assert names_in(client.image(wanted.SeriesInstanceUID, b"".join))[0] == "LICENSE"
    with_digests = names_in(client.image_with_md5(wanted.SeriesInstanceUID, b"".join))
    assert "LICENSE" not in with_digests
    assert with_digests[-1] == MD5_LIST
    receipt = fetch_series(client, lake, wanted)
    assert len(read_files(lake, receipt.path)) == len(with_digests) - 1 == wanted.ImageCount
    assert client.series(SMALL)["LicenseURI"].null_count == 0


def test_the_file_size_is_that_of_the_files_not_of_the_transfer(
    client: NbiaClient, lake: Lake, wanted: WantedSeries
) -> None:
    moved = len(client.image_with_md5(wanted.SeriesInstanceUID, b"".join))
    assert moved != wanted.FileSize
    assert fetch_series(client, lake, wanted).row()["Bytes"] == wanted.FileSize


def test_a_download_starts_afresh_and_ends_by_silence_only(
    archive: TestArchive, client: NbiaClient, wanted: WantedSeries
) -> None:
    archive.faults.inject("getImageWithMD5Hash", cut(5000))
    assert MD5_LIST in names_in(client.image_with_md5(wanted.SeriesInstanceUID, b"".join))
    downloads = archive.faults.calls("getImageWithMD5Hash")
    assert len(downloads) == 2
    assert not {"range", "if-none-match", "if-modified-since"} & set().union(*(d.headers for d in downloads))
    archive.faults.inject("getImageWithMD5Hash", silence(b"PK"))
    hasty = replace(FAST, read_timeout=0.1, tries=1)
    with archive.client(options=hasty) as other, pytest.raises(ArchiveUnreachable, match="timed out"):
        other.image_with_md5(wanted.SeriesInstanceUID, b"".join)


def test_files_are_named_by_what_is_in_them(client: NbiaClient, lake: Lake, wanted: WantedSeries) -> None:
    """For the engine: the names in the zip are counters over no particular order."""
    first, second = (zips.unpack(client.image_with_md5(wanted.SeriesInstanceUID, b"".join)) for _ in range(2))
    assert [n for n, _ in first] == [n for n, _ in second]
    assert [c for _, c in first] != [c for _, c in second]
    stored = {path.rsplit("/", 1)[-1] for path in read_files(lake, fetch_series(client, lake, wanted).path)}
    assert stored == {f"{uid}.dcm" for uid in client.sop_instance_uids(wanted.SeriesInstanceUID)}


def test_a_hostile_name_writes_nothing(
    archive: TestArchive, client: NbiaClient, lake: Lake, wanted: WantedSeries, tmp_path: Path
) -> None:
    """For the engine: it writes nothing outside its folder."""
    assert fetched_after(zips.climbing_name, archive, client, lake, wanted) == (COMPLETE, 2)
    assert list(tmp_path.rglob("evil*")) == []


def test_numbers_are_read_as_numbers_and_as_text(archive: TestArchive, client: NbiaClient) -> None:
    listed = client.series(COLLECTION)
    uids = listed["SeriesInstanceUID"].to_pylist()
    singly(archive)
    for table in (client.series_metadata(uids), client.series_metadata(uids)):
        for column in ("SeriesNumber", "ImageCount", "FileSize"):
            ours, theirs = (
                dict(zip(t["SeriesInstanceUID"].to_pylist(), t[column].to_pylist(), strict=True))
                for t in (listed, table)
            )
            assert ours == theirs


def test_the_flag_of_annotations_is_one_type_and_decides_nothing(
    archive: TestArchive, client: NbiaClient, v4: NbiaClient
) -> None:
    tables = client.series("HeadNeckMix"), v4.series("HeadNeckMix")
    assert {t.schema.field("AnnotationsFlag").type for t in tables} == {pa.bool_()}
    singly(archive)
    singles = client.series_metadata(tables[0]["SeriesInstanceUID"].to_pylist())
    assert singles["AnnotationSize"].null_count == 0


def test_any_key_may_be_missing(archive: TestArchive, client: NbiaClient) -> None:
    body = rows(
        {"SeriesInstanceUID": "1", "Collection": "A"}, {"Collection": "A", "FileSize": 3, "SeriesInstanceUID": "2"}
    )
    archive.faults.inject("getSeries", answer(200, body))
    assert client.series("A")["FileSize"].to_pylist() == [None, 3]
    assert None in client.body_parts()  # sent as {}


def test_descriptions_are_those_of_the_series_not_the_sanitised_ones(
    archive: TestArchive, client: NbiaClient, demo: Catalog
) -> None:
    stored = {r["SeriesInstanceUID"]: r["SeriesDescription"] for r in visible(demo, COLLECTION)}
    listed = client.series(COLLECTION)
    assert (
        dict(zip(*(listed[c].to_pylist() for c in ("SeriesInstanceUID", "SeriesDescription")), strict=True)) == stored
    )
    singly(archive)
    singles = client.series_metadata(list(stored))
    assert set(singles["SeriesDescription"].to_pylist()) != set(stored.values())


def test_misnamed_keys_fill_the_columns_that_they_mean(archive: TestArchive, client: NbiaClient, demo: Catalog) -> None:
    row = visible(demo, COLLECTION)[0]
    singly(archive)
    single, bulk = (client.series_metadata([row["SeriesInstanceUID"]]).to_pylist()[0] for _ in range(2))
    assert single["StudyID"] == row["StudyID"]  # sent as File Location
    assert single["CollectionURI"] == bulk["CollectionURI"] == row["CollectionURI"]
    assert bulk["TimeStamp"] is None  # sent, but it is the release


def test_body_parts_are_looked_for_here(client: NbiaClient) -> None:
    table = client.series("Lung Phantom CT", body_part="CHEST")
    assert sorted(table["BodyPartExamined"].to_pylist()) == ["CHEST", "CHEST", "Chest"]
    assert "CHEST " in client.series(COLLECTION, body_part="chest")["BodyPartExamined"].to_pylist()


def test_manufacturers_are_looked_for_whatever_their_case(client: NbiaClient, v4: NbiaClient) -> None:
    assert {"SIEMENS", "Siemens"} <= set(client.manufacturers())
    assert "Siemens" not in v4.manufacturers()
    for one in (client, v4):
        found = one.series(COLLECTION, manufacturer="SIEMENS")["Manufacturer"].to_pylist()
        assert {"SIEMENS", "Siemens"} == set(found)


def test_a_collection_is_counted_whatever_its_case(archive: TestArchive, client: NbiaClient) -> None:
    assert client.modality_counts("lung phantom ct") == client.modality_counts("Lung Phantom CT") != {}
    assert client.series("Lung Phantom CT").num_rows == 4
    assert archive.faults.calls("getSeries")[-1].query == {"Collection": "Lung Phantom CT"}


def test_a_patient_with_lower_case_letters_is_found(archive: TestArchive, client: NbiaClient) -> None:
    assert client.patients("Lung Phantom CT", patient_id="lpc-002a").num_rows == 1
    assert "PatientId" not in archive.faults.calls("getPatient")[0].query


def test_repeated_rows_come_once(archive: TestArchive, client: NbiaClient) -> None:
    found = client.patients_by_collection_and_modality(COLLECTION, "CT")
    assert len(found) == len(set(found)) == 3
    one = {"PatientId": "1", "Collection": "A"}
    archive.faults.inject("getPatient", answer(200, rows(one, {**one, "PatientId": "2"}, one)))
    assert client.patients("A")["PatientID"].to_pylist() == ["1", "2"]


def test_a_list_of_instances_is_no_promise_of_a_download(
    client: NbiaClient, lake: Lake, demo: Catalog, wanted: WantedSeries
) -> None:
    """For the engine: what is refused is unavailable, even if it is listed."""
    uid = hidden(demo)
    assert client.sop_instance_uids(uid) != []
    assert fetch_series(client, lake, replace(wanted, SeriesInstanceUID=uid)).status == UNAVAILABLE


def test_an_unknown_series_has_no_size(client: NbiaClient, v4: NbiaClient, wanted: WantedSeries) -> None:
    for one in (client, v4):
        assert one.series_size("9.9.9") is None
        size = one.series_size(wanted.SeriesInstanceUID)
        assert size == SeriesSize(wanted.FileSize or 0, wanted.ImageCount or 0)


def test_what_bulk_metadata_leave_out_is_named(
    client: NbiaClient, demo: Catalog, wanted: WantedSeries, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        table = client.series_metadata([wanted.SeriesInstanceUID, hidden(demo)])
    assert table["SeriesInstanceUID"].to_pylist() == [wanted.SeriesInstanceUID]
    assert f"no metadata of 1 of 2 series, such as {hidden(demo)}" in caplog.text


def test_tokens_are_per_host(archive: TestArchive, serve: Serve, demo: Catalog) -> None:
    other = Faults(create_app(demo))
    with archive.client() as one, NbiaClient(serve(other), options=FAST) as two:
        assert one.collection_values() == two.collection_values()
    sent = [f.calls("getCollectionValues")[0].headers["authorization"] for f in (archive.faults, other)]
    assert sent[0] != sent[1]
    assert archive.faults.count("token") == other.count("token") == 1


def test_v4_sends_no_token_unless_it_must(archive: TestArchive, v4: NbiaClient) -> None:
    assert v4.series(COLLECTION).num_rows == 9
    assert "authorization" not in archive.faults.seen[0].headers
    with archive.client(api="v4", username=MEMBER, password=MEMBER_PASSWORD) as member:
        assert member.series(RESTRICTED).num_rows == 3
        archive.tokens.expire_all()
        assert member.series(RESTRICTED).num_rows == 3


def test_csv_is_read_only_where_every_cell_is_quoted(archive: TestArchive, client: NbiaClient) -> None:
    assert [e.path for e in DIALECTS["v2"].endpoints.values() if e.media == "csv"] == ["/services/getSeriesMetadata2"]
    text = '"Series ID","Series Description"\n"1.2","a ""b"", c\nd"\n'
    archive.faults.inject("getSeriesMetadata2", answer(200, text.encode()))
    assert client.series_metadata(["1.2"])["SeriesDescription"].to_pylist() == ['a "b", c\nd']


def test_xml_and_html_are_never_asked_for_nor_read(archive: TestArchive, client: NbiaClient) -> None:
    formats = {e.constants.get("format") for d in DIALECTS.values() for e in d.endpoints.values()}
    assert formats == {None, "JSON"}
    archive.faults.inject("getSeries", answer(200, b"<Results><Row></Row></Results>"))
    with pytest.raises(BadAnswer, match="HTML or XML"):
        client.series(COLLECTION)


def test_the_archive_is_not_asked_for_as_a_whole(archive: TestArchive, client: NbiaClient) -> None:
    with pytest.raises(ValueError, match="the entire archive is too large"):
        client.series()
    assert archive.faults.seen == []
    row = rows({"SeriesInstanceUID": "1.2", "Collection": "A"})[1:-1]
    many = 3 * PIECE_BYTES // len(row)
    pieces = (b"[" + row if not n else b"," + row for n in range(many))
    table = read_json(_and(pieces, b"]"), shapes.SERIES_V2)
    assert table.num_rows == many
    assert table["Collection"].num_chunks >= 3


def _and(pieces: Iterator[bytes], last: bytes) -> Iterator[bytes]:
    yield from pieces
    yield last


def test_the_client_keeps_no_answers_on_top_of_the_servers(archive: TestArchive, client: NbiaClient) -> None:
    """The caller decides how often to poll; the client adds no cache that would become stale."""
    archive.faults.inject("getCollectionValues", answer(200, rows({"Collection": "Old"})))
    assert client.collection_values() == ["Old"]
    assert COLLECTION in client.collection_values()
    assert "up to 100 minutes old" in " ".join((inspect.getdoc(NbiaClient.md5_hierarchy) or "").split())


def test_certificates_are_verified(certificate: tuple[Path, Path]) -> None:
    with (
        serving_tls(certificate, "127.0.0.1") as url,
        NbiaClient(url, options=FAST) as client,
        pytest.raises(ArchiveUnreachable, match="does not verify"),
    ):
        client.collection_values()
    assert "verify=False" not in inspect.getsource(session_module)
