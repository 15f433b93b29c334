"""The calls beyond those that the assets use, and the filters, in both dialects."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pytest

from nbia_pipeline.archive import (
    ArchiveError,
    BadAnswer,
    NbiaClient,
    NotAvailable,
    NotServed,
    SeriesSize,
)
from nbia_pipeline.archive.endpoints import DIALECTS
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD
from nbia_pipeline.schema import shapes
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive
from nbia_pipeline_tests.helpers.expected import (
    PUBLIC,
    RESTRICTED,
    Row,
    assert_same,
    first_of_each,
    patients_by,
    sent,
    studies,
    visible,
)
from nbia_pipeline_tests.helpers.faults import answer, echo_headers, html, without_query

COLLECTION = "TCGA-DEMO"
DOI = "https://doi.org/10.5072/x"
JSON = {"content_type": "application/json"}


@pytest.fixture(params=["v2", "v4"])
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(demo_archive: str, api: str) -> Iterator[NbiaClient]:
    with NbiaClient(demo_archive, api=api, options=FAST) as made:
        yield made


def shape_of(client: NbiaClient, name: str) -> shapes.Shape:
    shape = client._dialect.endpoint(name).shape
    assert shape is not None
    return shape


def cased(client: NbiaClient, values: set[str | None]) -> set[str | None]:
    """v4 upper-cases lists."""
    return values if client._dialect.name == "v2" else {v and v.upper() for v in values}


# --- values and counts, per filter


def test_values_can_be_narrowed(client: NbiaClient, demo: Catalog) -> None:
    for collection in PUBLIC:
        rows = visible(demo, collection)
        assert set(client.modalities(collection)) == {r["Modality"] for r in rows}
        assert set(client.body_parts(collection)) == {
            r["BodyPartExamined"] and r["BodyPartExamined"].upper() for r in rows
        }
        assert set(client.manufacturers(collection)) == cased(client, {r["Manufacturer"] for r in rows})
    scans = [r for r in visible(demo) if r["Modality"] == "PT"]
    assert set(client.body_parts(modality="pt")) == {r["BodyPartExamined"].upper() for r in scans}
    assert set(client.manufacturers(modality="PT")) == cased(client, {r["Manufacturer"] for r in scans})
    assert set(client.manufacturers(COLLECTION, modality="PT")) == cased(client, {"SIEMENS", "Siemens"})
    assert client.modalities(body_part="no such") == []


def test_the_values_of_the_whole_archive_hold_a_null(client: NbiaClient) -> None:
    assert None in client.body_parts()
    assert None in client.body_parts("HeadNeckMix", modality="MR")


def test_counts_can_be_narrowed(client: NbiaClient, demo: Catalog) -> None:
    rows = visible(demo, "HeadNeckMix")

    def counts(column: str, of: list[Row], change: Callable[[str], str] = str) -> dict[Any, Any]:
        return {r[column]: r["PatientCount"] for r in patients_by(of, column, change)}

    assert client.modality_counts("HeadNeckMix") == counts("Modality", rows)
    assert client.body_part_counts("HeadNeckMix") == counts("BodyPartExamined", rows, str.upper)
    assert None in client.body_part_counts("HeadNeckMix")
    assert client.manufacturer_counts("HeadNeckMix") == counts("Manufacturer", rows)
    scans = [r for r in rows if r["Modality"] == "MR"]
    assert client.manufacturer_counts("HeadNeckMix", modality="MR") == counts("Manufacturer", scans)
    assert client.body_part_counts("HeadNeckMix", modality="MR") == counts("BodyPartExamined", scans, str.upper)
    assert client.modality_counts() == counts("Modality", visible(demo))


def test_licences_are_a_table(client: NbiaClient, demo: Catalog) -> None:
    table = client.licenses()
    assert table.schema.equals(shapes.LICENSES.schema)
    assert set(table["LicenseName"].to_pylist()) >= {r["LicenseName"] for r in visible(demo)}
    assert set(table["CommercialUse"].to_pylist()) <= {"YES", "NO"}
    assert table["LicenseText"].null_count == table.num_rows


@pytest.mark.parametrize("by_series", [False, True])
def test_a_doi_stands_for_collections_or_series(archive: TestArchive, api: str, by_series: bool) -> None:
    rows = [
        {"collection": "A", "seriesInstanceUID": "1.2" if by_series else None, "thirdPartyAnanlysis": "NO"},
        {"collection": "A", "seriesInstanceUID": "1.2" if by_series else None, "thirdPartyAnalysis": "NO"},
        {"collection": "A", "thirdPartyAnanlysis": "YES", "authorized": None},
        {"collection": "B"},
    ]
    archive.faults.inject("getCollectionOrSeriesForDOI", answer(200, json.dumps(rows).encode(), **JSON))
    with archive.client(api=api) as client:
        table = client.collection_or_series_for_doi(DOI, by_series=by_series)
    assert table.to_pylist() == [
        {"Collection": "A", "SeriesInstanceUID": "1.2" if by_series else None, "ThirdPartyAnalysis": "NO"},
        {"Collection": "A", "SeriesInstanceUID": None, "ThirdPartyAnalysis": "YES"},
        {"Collection": "B", "SeriesInstanceUID": None, "ThirdPartyAnalysis": None},
    ]
    assert archive.faults.calls("getCollectionOrSeriesForDOI")[0].method == "POST"


def test_the_doi_of_a_collection_stands_for_it_and_its_series(client: NbiaClient, demo: Catalog) -> None:
    doi = visible(demo, COLLECTION)[0]["CollectionURI"]
    rows = [r for r in demo.series.to_pylist() if r["CollectionURI"] == doi]
    table = client.collection_or_series_for_doi(doi)
    assert set(table["Collection"].to_pylist()) == {r["Collection"] for r in rows}
    assert table["SeriesInstanceUID"].null_count == table.num_rows
    by_series = client.collection_or_series_for_doi(doi, by_series=True)
    assert sorted(by_series["SeriesInstanceUID"].to_pylist()) == sorted(r["SeriesInstanceUID"] for r in rows)
    assert client.collection_or_series_for_doi("https://doi.org/10.5072/none").num_rows == 0


# --- patients and studies


def test_one_patient_is_found_whatever_the_case_of_its_id(client: NbiaClient) -> None:
    for patient in ("lpc-002a", "LPC-001"):
        assert client.patients("Lung Phantom CT", patient_id=patient)["PatientID"].to_pylist() == [patient]
    assert client.patients("Lung Phantom CT", patient_id="LPC-002A").num_rows == 0


def test_patients_with_a_modality_come_once(client: NbiaClient, demo: Catalog) -> None:
    rows = [r for r in visible(demo, COLLECTION) if r["Modality"] == "CT"]
    found = client.patients_by_collection_and_modality(COLLECTION, "CT")
    assert sorted(found) == sorted({r["PatientID"] for r in rows})
    assert len({(r["PatientID"], r["StudyInstanceUID"]) for r in rows}) > len(found), "the server repeats one"
    assert client.patients_by_collection_and_modality(COLLECTION, "XA") == []


@pytest.mark.parametrize("since", [date(1900, 1, 1), date(2016, 3, 21), date(2016, 3, 22), date(2019, 8, 12)])
def test_new_patients_have_a_release_on_the_day_or_later(client: NbiaClient, demo: Catalog, since: date) -> None:
    rows = released_from(visible(demo, COLLECTION), since)
    expected = sent(first_of_each(rows, "PatientID"), shape_of(client, "new_patients"))
    table = client.new_patients(COLLECTION, since)
    if since != date(2016, 3, 22) or client._dialect.name == "v4":
        assert_same(table, expected, "patients")
    else:  # v2 sends one that was released in the afternoon of the day before
        assert set(table["PatientID"].to_pylist()) == {"TCGA-DM-A002", "TCGA-DM-A003"}


@pytest.mark.parametrize("since", [date(1900, 1, 1), date(2016, 3, 21), date(2019, 8, 12), date(2030, 1, 1)])
def test_new_studies_have_a_release_on_the_day_or_later(client: NbiaClient, demo: Catalog, since: date) -> None:
    rows = released_from(visible(demo, COLLECTION), since)
    assert_same(client.new_studies(COLLECTION, since), sent(studies(rows), shape_of(client, "new_studies")), "studies")
    one = [r for r in rows if r["PatientID"] == "TCGA-DM-A001"]
    table = client.new_studies(COLLECTION, since, patient_id="TCGA-DM-A001")
    assert_same(table, sent(studies(one), shape_of(client, "new_studies")), "studies")


def released_from(rows: list[Row], day: date) -> list[Row]:
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - the server's times have no zone
    return [r for r in rows if r["DateReleased"] is not None and r["DateReleased"] >= midnight]


def test_new_days_are_sent_as_the_dialect_wants_them(archive: TestArchive, api: str) -> None:
    with archive.client(api=api) as client:
        client.new_patients(COLLECTION, date(2016, 3, 1))
        client.new_studies(COLLECTION, date(999, 1, 7))
    days = {
        "v2": [{"Date": "2016/02/29"}, {"Date": "0999/01/06"}],
        "v4": [{"fromDate": "03-01-2016"}, {"fromDate": "01-07-0999"}],
    }[api]
    asked = [archive.faults.calls(e)[0].query for e in ("NewPatientsInCollection", "NewStudiesInPatientCollection")]
    assert asked == [{"Collection": COLLECTION, **day} for day in days]


def test_studies_of_a_patient_and_one_study(client: NbiaClient, demo: Catalog) -> None:
    rows = [r for r in visible(demo, COLLECTION) if r["PatientID"] == "TCGA-DM-A001"]
    found = client.studies(COLLECTION, patient_id="TCGA-DM-A001")
    assert_same(found, sent(studies(rows), shape_of(client, "studies")), "studies")
    uid = rows[0]["StudyInstanceUID"]
    assert client.studies(COLLECTION, study_uid=uid)["StudyInstanceUID"].to_pylist() == [uid]
    assert client.studies(COLLECTION, study_uid="9.9").num_rows == 0
    assert client.studies(COLLECTION, patient_id="tcga-dm-a001").num_rows == 0


# --- series


@pytest.mark.parametrize(
    ("filters", "column"),
    [
        ({"patient_id": "TCGA-DM-A001"}, "PatientID"),
        ({"modality": "pt"}, "Modality"),
        ({"body_part": "chest"}, "BodyPartExamined"),
        ({"manufacturer": "SiEMENS "}, "Manufacturer"),
        ({"model": "phantom ct 64"}, "ManufacturerModelName"),
    ],
)
def test_series_can_be_narrowed(client: NbiaClient, demo: Catalog, filters: dict[str, Any], column: str) -> None:
    wanted = next(iter(filters.values())).strip().casefold()
    rows = [r for r in visible(demo, COLLECTION) if (r[column] or "").strip().casefold() == wanted]
    assert rows
    assert_same(client.series(COLLECTION, **filters), sent(rows, shape_of(client, "series")), "series")


def test_filters_of_series_hold_together(client: NbiaClient) -> None:
    table = client.series(COLLECTION, modality="CT", body_part="CHEST", patient_id="TCGA-DM-A001")
    assert sorted(table["BodyPartExamined"].to_pylist()) == ["CHEST", "CHEST "]
    assert client.series(COLLECTION, modality="CT", manufacturer="Canon").num_rows == 0


def test_a_series_and_a_study_are_found_without_their_collection(client: NbiaClient, demo: Catalog) -> None:
    row = visible(demo)[5]
    uid, study = row["SeriesInstanceUID"], row["StudyInstanceUID"]
    assert client.series(series_uid=uid)["SeriesInstanceUID"].to_pylist() == [uid]
    assert set(client.series(study_uid=study)["StudyInstanceUID"].to_pylist()) == {study}
    assert client.series(series_uid="9.9").num_rows == 0


def test_a_patient_of_two_collections_has_the_series_of_both(client: NbiaClient) -> None:
    table = client.series(patient_id="TCGA-DM-A002")
    assert set(table["Collection"].to_pylist()) == {COLLECTION, "HeadNeckMix"}


@pytest.mark.parametrize("filters", [{}, {"modality": "CT"}, {"body_part": "CHEST"}])
def test_the_whole_archive_is_not_asked_for(archive: TestArchive, filters: dict[str, str]) -> None:
    with archive.client() as client, pytest.raises(ValueError, match="name a collection"):
        client.series(**filters)
    assert archive.faults.seen == []


@pytest.mark.parametrize(
    ("filters", "column"),
    [
        ({"patient_id": "TCGA-DM-A001"}, "PatientID"),
        ({"study_uid": "1.2"}, "StudyInstanceUID"),
        ({"series_uid": "1.2"}, "SeriesInstanceUID"),
        ({"modality": "PT"}, "modality"),
    ],
)
def test_series_that_were_not_asked_for_are_refused(
    archive: TestArchive, api: str, filters: dict[str, Any], column: str
) -> None:
    body = [{"SeriesInstanceUID": "6.6", "Collection": COLLECTION, "PatientID": "X", "Modality": "US"}]
    archive.faults.inject("getSeries", answer(200, json.dumps(body).encode(), **JSON))
    with archive.client(api=api) as client, pytest.raises(BadAnswer, match=f"asked for {column} .*sent rows of"):
        client.series(COLLECTION, **filters)


@pytest.mark.parametrize("call", ["studies", "new_studies"])
def test_studies_of_another_patient_are_refused(archive: TestArchive, api: str, call: str) -> None:
    endpoint = {"studies": "getPatientStudy", "new_studies": "NewStudiesInPatientCollection"}[call]
    body = b'[{"StudyInstanceUID":"1","PatientID":"Y","Collection":"TCGA-DEMO"}]'
    archive.faults.inject(endpoint, answer(200, body, **JSON))
    arguments = [COLLECTION] if call == "studies" else [COLLECTION, date(2020, 1, 1)]
    with archive.client(api=api) as client, pytest.raises(BadAnswer, match="asked for PatientID 'X'"):
        getattr(client, call)(*arguments, patient_id="X")


def test_new_patients_of_another_collection_are_refused(archive: TestArchive, api: str) -> None:
    archive.faults.inject("NewPatientsInCollection", answer(200, b'[{"PatientId":"1","Collection":"B"}]', **JSON))
    with archive.client(api=api) as client, pytest.raises(BadAnswer, match="asked for collection 'A'"):
        client.new_patients("A", date(2020, 1, 1))


def test_updated_series_of_an_earlier_day_are_refused(archive: TestArchive, api: str) -> None:
    archive.faults.inject("getUpdatedSeries", without_query())
    with archive.client(api=api) as client, pytest.raises(BadAnswer, match="asked for releases after 2021-01-01"):
        client.updated_series(date(2021, 1, 1))


def test_updated_series_at_the_midnight_itself_are_refused(archive: TestArchive) -> None:
    row = b'[{"SeriesInstanceUID":"1","DateReleased":"2020-01-01 00:00:00.0"}]'
    archive.faults.inject("getUpdatedSeries", answer(200, row, **JSON))
    with archive.client() as client, pytest.raises(BadAnswer, match="asked for releases after 2020-01-01"):
        client.updated_series(date(2020, 1, 1))


def test_updated_series_of_a_server_that_sends_no_day_of_release_are_taken(archive: TestArchive) -> None:
    rows = b'[{"SeriesInstanceUID":"1","Collection":"A"},{"SeriesInstanceUID":"2","Collection":"B"}]'
    archive.faults.inject("getUpdatedSeries", answer(200, rows, **JSON))
    with archive.client() as client:
        found = client.updated_series(date(2020, 1, 1))
    assert found.select(["SeriesInstanceUID", "DateReleased"]).to_pylist() == [
        {"SeriesInstanceUID": "1", "DateReleased": None},
        {"SeriesInstanceUID": "2", "DateReleased": None},
    ]


def test_the_shared_cart_holds_its_visible_series(archive: TestArchive, demo: Catalog) -> None:
    with archive.client() as client:
        for name, uids in demo.carts.items():
            rows = [r for r in visible(demo) if r["SeriesInstanceUID"] in uids]
            assert rows
            for spelled in (name, name.upper()):
                assert_same(client.contents_by_name(spelled), sent(rows, shapes.SERIES_CART), "series")
    assert demo.carts


def test_a_cart_holds_series(archive: TestArchive, demo: Catalog) -> None:
    row = visible(demo)[0]
    body = json.dumps([{"SeriesInstanceUID": row["SeriesInstanceUID"], "Date Released": "2012-06-01 00:00:00.0"}])
    archive.faults.inject("getContentsByName", answer(200, body.encode(), **JSON))
    with archive.client() as client:
        table = client.contents_by_name("my cart")
        assert client.contents_by_name("no such cart").num_rows == 0
    expected = {"SeriesInstanceUID": row["SeriesInstanceUID"], "DateReleased": datetime(2012, 6, 1)}  # noqa: DTZ001
    assert_same(table, [expected], "series")
    assert archive.faults.calls("getContentsByName")[0].query == {"name": "my cart"}


# --- one series


def test_the_size_of_a_series(client: NbiaClient, demo: Catalog) -> None:
    row = visible(demo)[3]
    assert client.series_size(row["SeriesInstanceUID"]) == SeriesSize(row["FileSize"], row["ImageCount"])
    assert client.series_size("9.9.9") is None


def test_two_sizes_of_one_series_are_refused(archive: TestArchive) -> None:
    archive.faults.inject("getSeriesSize", answer(200, b'[{"ObjectCount":1},{"ObjectCount":2}]', **JSON))
    with archive.client() as client, pytest.raises(BadAnswer, match="2 sizes of one series"):
        client.series_size("1.2")


def test_the_header_of_an_image(client: NbiaClient, demo: Catalog) -> None:
    row = visible(demo, COLLECTION)[1]
    table = client.dicom_tags(row["SeriesInstanceUID"])
    assert table.schema.names == ["Tag", "Name", "Value"]
    assert set(table.schema.types) == {pa.string()}
    values = dict(zip(table["Tag"].to_pylist(), table["Value"].to_pylist(), strict=True))
    assert values["(0008,0060)"] == row["Modality"]
    assert values["(0020,000E)"] == row["SeriesInstanceUID"]
    with pytest.raises(NotAvailable):
        client.dicom_tags("9.9.9")


@pytest.mark.parametrize("call", [lambda c, uid: c.dicom_tags(uid), lambda c, uid: c.md5_hierarchy(series_uid=uid)])
def test_a_forgotten_token_does_not_fail_the_calls_below_no_version(
    archive: TestArchive, demo: Catalog, api: str, call: Callable[[NbiaClient, str], Any]
) -> None:
    uid = visible(demo)[0]["SeriesInstanceUID"]
    with archive.client(api=api, username=MEMBER, password=MEMBER_PASSWORD) as client:
        expected = call(client, uid)
        archive.tokens.expire_all()
        assert call(client, uid) == expected


# --- files and digests


def test_a_series_comes_with_its_licence(client: NbiaClient, demo: Catalog) -> None:
    row = visible(demo, "Lung Phantom CT")[1]
    for new_names in (False, True):
        body = client.image(row["SeriesInstanceUID"], b"".join, new_file_names=new_names)
        with zipfile.ZipFile(io.BytesIO(body)) as zipped:
            first, *names = zipped.namelist()
            assert (first, len(names)) == ("LICENSE", row["ImageCount"])
            assert row["LicenseName"] in zipped.read("LICENSE").decode()
            assert ("1-1.dcm" in names) is new_names
            assert ("00000001.dcm" in names) is not new_names


def test_an_unknown_series_cannot_be_downloaded(client: NbiaClient) -> None:
    with pytest.raises(NotAvailable):
        client.image("9.9.9", b"".join)


def test_digests_are_those_of_the_files(client: NbiaClient, demo: Catalog) -> None:
    assert demo.images is not None
    row = visible(demo)[0]
    uid = row["SeriesInstanceUID"]
    digests = {
        i.sop_instance_uid: hashlib.md5(demo.images.read(uid, i.sop_instance_uid)).hexdigest()
        for i in demo.images.instances(uid)
    }
    sop, digest = next(iter(digests.items()))
    assert client.md5_of_image(sop) == digest
    assert client.md5_of_image("9.9.9") is None
    assert client.md5_hierarchy(series_uid=uid) == hashlib.md5("".join(sorted(digests.values())).encode()).hexdigest()
    assert client.md5_hierarchy(series_uid="9.9.9") is None


def test_digests_of_higher_levels(client: NbiaClient, demo: Catalog) -> None:
    row = visible(demo, COLLECTION)[0]
    of_series = [
        client.md5_hierarchy(series_uid=r["SeriesInstanceUID"]) or ""
        for r in visible(demo, COLLECTION)
        if r["StudyInstanceUID"] == row["StudyInstanceUID"]
    ]
    expected = hashlib.md5("".join(sorted(of_series)).encode()).hexdigest()
    assert client.md5_hierarchy(study_uid=row["StudyInstanceUID"]) == expected
    levels = {
        client.md5_hierarchy(collection=COLLECTION),
        client.md5_hierarchy(collection=COLLECTION, patient_id=row["PatientID"]),
        expected,
    }
    assert len(levels) == 3 and None not in levels


@pytest.mark.parametrize(
    "levels",
    [
        {},
        {"patient_id": "A"},
        {"series_uid": "1", "study_uid": "2"},
        {"series_uid": "1", "collection": "A"},
        {"study_uid": "1", "collection": "A", "patient_id": "B"},
    ],
)
def test_a_digest_is_of_one_level(archive: TestArchive, levels: dict[str, str]) -> None:
    with archive.client() as client, pytest.raises(ValueError, match="name a series, or a study"):
        client.md5_hierarchy(**levels)
    assert archive.faults.seen == []


@pytest.mark.parametrize("fault", [html(), answer(200, b"no"), answer(200, b"0" * 33), answer(200, bytes(range(256)))])
def test_what_is_not_a_digest_is_a_bad_answer(archive: TestArchive, fault: Any) -> None:
    archive.faults.inject("getM5HashForImage", fault, times=3)
    archive.faults.inject("getMD5Hierarchy", fault, times=3)
    with archive.client() as client:
        with pytest.raises(BadAnswer):
            client.md5_of_image("1.2")
        with pytest.raises(BadAnswer):
            client.md5_hierarchy(series_uid="1.2")


def test_an_echoed_token_does_not_get_into_the_error(archive: TestArchive) -> None:
    archive.faults.inject("getM5HashForImage", echo_headers(), times=3)
    with archive.client() as client:
        with pytest.raises(BadAnswer, match=r"is not an MD5, it begins with '<html>Bearer \*\*\*'") as caught:
            client.md5_of_image("1.2")
        token = client._session.tokens.current() if client._session.tokens else ""
    assert token and token.lower() not in str(caught.value).lower()
    assert caught.value.endpoint == "/services/v2/getM5HashForImage"


@pytest.mark.parametrize(
    ("sent", "digest"),
    [
        (b"ABCDEF01" * 4 + b"\n", "abcdef01" * 4),
        (b"1" * 31, "0" + "1" * 31),
        (b"f", "0" * 31 + "f"),
        (b"\xef\xbb\xbf" + b"1" * 30 + b"\r\n", "00" + "1" * 30),
        (b" ", None),
        (b"", None),
    ],
)
def test_a_digest_is_padded_and_lowered(archive: TestArchive, sent: bytes, digest: str | None) -> None:
    archive.faults.inject("getM5HashForImage", answer(200, sent))
    archive.faults.inject("getMD5Hierarchy", answer(200, sent))
    with archive.client() as client:
        assert client.md5_of_image("1.2") == client.md5_hierarchy(series_uid="1.2") == digest


# --- what a dialect lacks, and what is refused before anything is sent


def test_a_call_that_v4_lacks_names_v2(archive: TestArchive) -> None:
    with archive.client(api="v4") as client:
        with pytest.raises(NotServed, match=r"v4 of the API has no getContentsByName, v2 has it: use api='v2'"):
            client.contents_by_name("x")
        with pytest.raises(ArchiveError, match="no getSeriesMetaData, v2 has it"):
            client._list("series_metadata", series_uid="1.2")
    assert archive.faults.seen == []


def test_both_dialects_serve_all_other_calls() -> None:
    v2, v4 = (set(DIALECTS[api].endpoints) for api in ("v2", "v4"))
    assert v2 - v4 == {"contents_by_name", "series_metadata"}
    assert v4 <= v2


def test_an_unknown_dialect_is_named() -> None:
    with pytest.raises(ValueError, match="api is 'v3': use v2 or v4"):
        NbiaClient("http://localhost/nbia-api", api="v3")


WRONG: list[tuple[str, list[Any], dict[str, Any], type[Exception], str]] = [
    ("updated_series", ["2020-01-01"], {}, TypeError, "pass a datetime.date"),
    ("new_patients", ["A", "01/02/2020"], {}, TypeError, "pass a datetime.date"),
    ("new_studies", ["A", 2020], {}, TypeError, "pass a datetime.date"),
    ("new_studies", ["A", date(2020, 1, 1)], {"patient_id": ""}, ValueError, "patient_id is empty"),
    ("patients", ["A"], {"patient_id": ""}, ValueError, "patient_id is empty"),
    ("patients", [3], {}, TypeError, "pass a string"),
    ("series", ["A"], {"series_uid": ["1.2"]}, TypeError, "pass a string"),
    ("series", ["A"], {"study_uid": ""}, ValueError, "study_uid is empty"),
    ("series_metadata", ["1.2"], {}, TypeError, "pass a list"),
    ("series_metadata", [["1.2", ""]], {}, ValueError, "series_uids is empty"),
    ("series_metadata", [["1.2,1.3"]], {}, ValueError, "contains a comma"),
    ("series_size", [""], {}, ValueError, "series_uid is empty"),
    ("dicom_tags", [""], {}, ValueError, "series_uid is empty"),
    ("md5_of_image", [""], {}, ValueError, "sop_instance_uid is empty"),
    ("contents_by_name", [""], {}, ValueError, "name is empty"),
    ("collection_or_series_for_doi", [""], {}, ValueError, "doi is empty"),
    ("modalities", [""], {}, ValueError, "collection is empty"),
    ("body_part_counts", [""], {}, ValueError, "collection is empty"),
    ("patients_by_collection_and_modality", ["A", ""], {}, ValueError, "modality is empty"),
]


@pytest.mark.parametrize(("method", "arguments", "named", "error", "text"), WRONG)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(
    archive: TestArchive, method: str, arguments: list[Any], named: dict[str, Any], error: type[Exception], text: str
) -> None:
    with archive.client() as client, pytest.raises(error, match=text):
        getattr(client, method)(*arguments, **named)
    assert archive.faults.seen == []


def test_a_blank_filter_is_refused(client: NbiaClient) -> None:
    with pytest.raises(ValueError, match="Manufacturer is blank"):
        client.series(COLLECTION, manufacturer=" ")


def test_a_time_is_taken_for_its_day(archive: TestArchive) -> None:
    with archive.client() as client:
        client.updated_series(datetime(2016, 3, 7, 15, 30))  # noqa: DTZ001 - the server knows no zones
    assert archive.faults.calls("getUpdatedSeries")[0].query == {"fromDate": "07/03/2016"}


def test_a_member_gets_details_of_restricted_series(archive: TestArchive, demo: Catalog) -> None:
    uid = visible(demo, RESTRICTED)[0]["SeriesInstanceUID"]
    with archive.client() as guest, pytest.raises(NotAvailable):
        guest.dicom_tags(uid)
    with archive.client(username=MEMBER, password=MEMBER_PASSWORD) as member:
        assert member.dicom_tags(uid).num_rows > 10
        assert member.series(series_uid=uid).num_rows == 1


# --- servers before April 2021

NOTHING = answer(500, b"Server was not able to process your request\nNo data found.")


@pytest.mark.parametrize(
    ("endpoint", "ask"),
    [
        ("getSOPInstanceUIDs", lambda client: client.sop_instance_uids("1.2")),
        ("getUpdatedSeries", lambda client: client.updated_series(date(2020, 1, 1)).to_pylist()),
        ("NewPatientsInCollection", lambda client: client.new_patients("TCGA-DEMO", date(2020, 1, 1)).to_pylist()),
        ("getModalityValues", lambda client: client.modalities("TCGA-DEMO")),
    ],
)
def test_a_500_that_says_so_is_an_empty_list_and_not_asked_for_again_and_again(
    archive: TestArchive, api: str, endpoint: str, ask: Callable[[NbiaClient], list[Any]]
) -> None:
    archive.faults.inject(endpoint, NOTHING, times=9)
    with archive.client(api=api) as client:
        assert ask(client) == []
    # Once more with a token that was just confirmed; the guest of v4 has none.
    assert archive.faults.count(endpoint) == (2 if api == "v2" else 1)


def test_a_500_that_says_so_does_not_empty_a_collection_that_is_listed(archive: TestArchive, api: str) -> None:
    archive.faults.inject("getSeries", NOTHING, times=99)
    with archive.client(api=api) as client, pytest.raises(BadAnswer, match="lists collection 'TCGA-DEMO', but sends"):
        client.series("TCGA-DEMO")
