from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import requests

from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.schema import shapes
from nbia_pipeline_tests.helpers.archive_client import ArchiveClient
from nbia_pipeline_tests.helpers.tiny import BY_3, running, tiny_catalog

VISIBLE = ["1.1", "1.2", "2.1", "3.1"]


def uids(site: ArchiveClient, path: str, **parameters: Any) -> list[str]:
    return sorted(site.column(path, "SeriesInstanceUID", **parameters))


def test_one_series_to_the_byte(site: ArchiveClient) -> None:
    answer = site.get("v2/getSeries", SeriesInstanceUID="1.1")
    assert answer.headers["content-type"] == "application/json"
    assert answer.content.decode() == (
        '[{"SeriesInstanceUID":"1.1","StudyInstanceUID":"1","Modality":"CT",'
        '"SeriesDate":"2001-05-09 00:00:00.0","SeriesDescription":"Thorax_1.0 \\"à\\" (B20f), x\\/y",'
        '"BodyPartExamined":"Lung","SeriesNumber":8,"AnnotationsFlag":false,"Collection":"Alpha Set",'
        '"PatientID":"A-1","Manufacturer":"GE MEDICAL, SYSTEMS","ManufacturerModelName":"Scan\\/1",'
        '"ImageCount":3,"TimeStamp":"2011-11-08 08:08:01.0",'
        '"LicenseName":"Creative Commons Attribution 3.0 Unported License",'
        '"LicenseURI":"http:\\/\\/creativecommons.org\\/licenses\\/by\\/3.0\\/",'
        '"CollectionURI":"https:\\/\\/doi.org\\/10.7937\\/tiny","FileSize":3000,'
        '"DateReleased":"2020-01-01 00:00:00.0","StudyDesc":"Staging: -1",'
        '"StudyDate":"2001-05-09 00:00:00.0"}]'
    )


def test_one_series_of_v4(site: ArchiveClient) -> None:
    (row,) = site.get("v4/getSeries", None, SeriesInstanceUID="1.1").json()
    assert [k.name for k in shapes.SERIES_V4.keys if k.name in row] == list(row)
    assert row["MaxSubmissionTimestamp"] == "11-08-2011"
    assert row["DateReleased"] == "01-01-2020"
    assert row["StudyDate"] == "05-09-2001"
    assert (row["AnnotationsFlag"], row["Authorized"], row["SeriesNumber"]) == ("false", 1, 8)
    assert (row["Site"], row["PatientAge"]) == ("North", "061Y")
    text = site.get("v4/getSeries", None, SeriesInstanceUID="1.1", format="csv").text
    (cells,) = csv.DictReader(io.StringIO(text))
    assert (cells["SeriesNumber"], cells["ImageCount"], cells["Authorized"]) == ("8.000000", "3", "1")


@pytest.mark.parametrize(
    ("query", "v2", "v4"),
    [
        ({}, VISIBLE, VISIBLE),
        ({"Collection": "ALPHA SET"}, ["1.1", "1.2", "2.1"], ["1.1", "1.2", "2.1"]),
        ({"Collection": "Alpha"}, [], []),
        ({"Collection": ""}, [], []),
        ({"Collection": "Secret"}, [], []),
        ({"Modality": "ct"}, ["1.1", "2.1", "3.1"], ["1.1", "2.1", "3.1"]),
        ({"PatientID": "a-1"}, ["1.1", "1.2", "3.1"], ["1.1", "1.2", "3.1"]),
        ({"BodyPartExamined": "LUNG"}, ["2.1"], ["1.1", "2.1"]),
        ({"Manufacturer": "GE MEDICAL, SYSTEMS"}, ["1.1"], ["1.1", "1.2"]),
        ({"ManufacturerModelName": "scan/1"}, [], ["1.1"]),
        ({"StudyInstanceUID": "2", "Modality": "CT"}, ["2.1"], ["2.1"]),
        ({"SeriesInstanceUID": "2.2"}, [], []),
    ],
)
def test_filters_of_series(site: ArchiveClient, query: dict[str, str], v2: list[str], v4: list[str]) -> None:
    assert uids(site, "v2/getSeries", **query) == v2
    assert uids(site, "v4/getSeries", **query) == v4


def test_unknown_parameters(site: ArchiveClient) -> None:
    assert uids(site, "v2/getSeries", collection="Alpha Set", Nonsense="x") == VISIBLE
    answer = site.get("v4/getModalityValues", collection="Alpha Set")
    assert answer.status_code == 400
    assert answer.text == (
        "Invalid query parameter: 'collection'. Allowed parameters are: [Collection, BodyPartExamined, format]"
    )
    assert "content-type" not in answer.headers
    assert site.get("v4/getModalityValuesAndCounts", format="JSON").status_code == 400
    assert site.get("v4/getCollectionValuesAndCounts", format="JSON").status_code == 200
    form = site.post("v4/getMD5Hierarchy", {"Study": "1"})
    assert form.status_code == 400
    assert form.text.startswith("Invalid form parameter: 'Study'. Allowed parameters are: [")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("getSOPInstanceUIDs", "A parameter, SeriesInstanceUID is required for this API call."),
        ("getSeriesMetaData", "A parameter, SeriesInstanceUID is required for this API call."),
        ("getSeriesSize", "A parameter, SeriesInstanceUID is required for this API call."),
        ("getContentsByName", "A parameter, SeriesInstanceUID is required for this API call."),
        ("getImage", "A parameter, SeriesInstanceUID, is required for this API call."),
        ("getImageWithMD5Hash", "A parameter, SeriesInstanceUID, is required for this API call."),
        (
            "getSingleImage?SeriesInstanceUID=1.1",
            "A parameter, SeriesInstanceUID and SOPInstanceUID, are required for this API call.",
        ),
        (
            "NewPatientsInCollection?Collection=x",
            "A parameter, Collection and Date are required for this API call.",
        ),
        (
            "NewStudiesInPatientCollection?Date=x",
            "A parameter, Collection and Date are required for this API call.",
        ),
        (
            "getPatientByCollectionAndModality?Modality=CT",
            "A parameter, Collection and Modality, are required for this API call.",
        ),
    ],
)
def test_missing_parameters(site: ArchiveClient, path: str, text: str) -> None:
    answer = site.get(f"v2/{path}")
    assert (answer.status_code, answer.text) == (400, text)
    assert answer.headers["content-type"] == "application/json"
    # Without a header: who is asked first, the user or the parameters?
    user_first = path == "getImage"
    assert site.get(f"v2/{path}", None).status_code == (500 if user_first else 400)


def test_value_lists(site: ArchiveClient) -> None:
    assert site.get("v2/getModalityValues").text == '[{"Modality":"CT"},{"Modality":"MR"}]'
    assert site.get("v2/getBodyPartValues").text == ('[{},{"BodyPartExamined":"HEAD"},{"BodyPartExamined":"LUNG"}]')
    makers = ["GE MEDICAL, SYSTEMS", "GE Medical, Systems"]
    assert site.column("v2/getManufacturerValues", "Manufacturer") == [None, *makers]
    assert site.column("v4/getManufacturerValues", "Manufacturer") == [None, makers[0]]
    assert site.column("v2/getModalityValues", "Modality", BodyPartExamined="lung") == ["CT"]
    # Not a parameter of this endpoint, hence ignored.
    assert site.column("v2/getModalityValues", "Modality", Modality="MR") == ["CT", "MR"]


def test_formats(site: ArchiveClient) -> None:
    plain = site.get("v2/getModalityValues", format="csv")
    assert (plain.text, plain.headers["content-type"]) == ("Modality\nCT\nMR\n", "text/csv")
    download = site.get("v2/getModalityValues", format="CSV-DOWNLOAD")
    assert download.headers["content-type"] == "application/force-download"
    assert download.headers["content-disposition"] == 'attachment; filename="SeriesMetaData.csv"'
    quoted = site.get("v2/getPatient", format="CSVQUOTED", PatientId="A-1", Collection="beta-set")
    assert quoted.text.splitlines()[1] == ('"A-1","","","","","beta-set","NO","337915000","Homo sapiens"')
    unknown = site.get("v2/getPatient", format="YAML")
    assert (unknown.status_code, unknown.text) == (500, "Server was not able to process your request")
    nothing = site.get("v2/getPatient", format="YAML", Collection="none")
    assert (nothing.status_code, nothing.content) == (200, b"")


def test_patients(site: ArchiveClient) -> None:
    rows = site.get("v2/getPatient").json()
    assert [(r["Collection"], r["PatientId"]) for r in rows] == [
        ("Alpha Set", "A-1"),
        ("Alpha Set", "a-2"),
        ("beta-set", "A-1"),
    ]
    assert rows[1] == {
        "PatientId": "a-2",
        "Collection": "Alpha Set",
        "Phantom": "NO",
        "SpeciesCode": "337915000",
        "SpeciesDescription": "Homo sapiens",
    }
    assert len(site.column("v2/getPatient", "PatientId", PatientId="a-1")) == 2
    assert site.column("v2/getPatient", "PatientId", PatientId="a-2") == []
    assert site.column("v4/getPatient", "PatientId", PatientId="a-2") == ["a-2"]
    assert site.column("v4/getPatient", "PatientId", PatientId="a-1") == []
    assert site.column("v4/getPatient", "Authorized") == [1, 1, 1]
    assert site.column("v2/getPatientByCollectionAndModality", "PatientId", Collection="alpha set", Modality="CT") == [
        "A-1",
        "a-2",
    ]


def test_studies_count_visible_series_that_pass(site: ArchiveClient) -> None:
    assert site.column("v2/getPatientStudy", "StudyInstanceUID") == ["1", "2", "3"]
    assert site.column("v2/getPatientStudy", "SeriesCount") == [2, 1, 1]
    (row,) = site.get("v2/getPatientStudy", StudyInstanceUID="1").json()
    assert row["LongitudinalTemporalOffsetFromEvent"] == 59
    assert row["StudyDescription"] == "Staging: -1"
    new = {"Collection": "Alpha Set", "Date": "2020/01/01"}
    assert site.column("v2/NewStudiesInPatientCollection", "SeriesCount", **new) == [1]


def test_release_filters_are_strict_at_midnight(site: ArchiveClient) -> None:
    assert uids(site, "v2/getUpdatedSeries") == ["1.1", "1.2", "3.1"]
    assert uids(site, "v2/getUpdatedSeries", fromDate="01/01/2020") == ["1.2", "3.1"]
    assert uids(site, "v2/getUpdatedSeries", fromDate="02/01/2020") == ["1.2", "3.1"]
    assert uids(site, "v2/getUpdatedSeries", fromDate="03/01/2020") == ["3.1"]
    assert uids(site, "v2/getUpdatedSeries", fromDate="01/02/2020") == []
    assert uids(site, "v2/getUpdatedSeries", fromDate="2020/02/01") == ["1.1", "1.2", "3.1"]
    assert uids(site, "v2/getUpdatedSeries", fromDate="2020-01-01") == []
    assert uids(site, "v2/getUpdatedSeries", fromDate="") == []
    assert uids(site, "v4/getUpdatedSeries", fromDate="02-01-2020") == []
    assert uids(site, "v4/getUpdatedSeries", fromDate="01-02-2020") == ["1.2", "3.1"]
    new: dict[str, Any] = {"Collection": "beta-set"}
    assert site.column("v2/NewPatientsInCollection", "PatientId", Date="2020/02/01", **new) == []
    assert site.column("v4/NewPatientsInCollection", "PatientId", fromDate="02-01-2020", **new) == ["A-1"]
    short = site.get("v2/getUpdatedSeries", fromDate="03/01/2020").json()[0]
    assert set(short) <= {k.name for k in shapes.SERIES_SHORT.keys}


def test_metadata_of_one_series(site: ArchiveClient) -> None:
    (row,) = site.get("v2/getSeriesMetaData", SeriesInstanceUID="1.1").json()
    assert row["Series Description"] == "Thorax1.0  B20f xy"
    assert row["Study Description"] == "Staging -1"
    assert row["Manufacturer"] == "GE MEDICAL  SYSTEMS"
    assert (row["Study Date"], row["Date Released"]) == ("05-09-2001", "Wed Jan 01 00:00:00 CDT 2020")
    assert (row["Number of Images"], row["File Size"], row["Series Number"]) == ("3", "3000", "8.000000")
    assert (row["File Location"], row["Annotation Size"], row["Annotations Flag"]) == ("DDSM", "0", "true")
    assert (row["License URL"], row["TimeStamp"]) == (BY_3, "Tue Nov 08 08:08:01 CDT 2011")
    (plain,) = site.get("v2/getSeriesMetaData", SeriesInstanceUID="2.1").json()
    assert (plain["Annotations Flag"], plain["Study Date"]) == ("false", "")


@pytest.mark.parametrize(("uid", "status"), [("2.2", 204), ("4.1", 204), ("nope", 204), ("5.1", 200), ("3.1", 500)])
def test_metadata_of_hidden_and_unlicensed_series(site: ArchiveClient, uid: str, status: int) -> None:
    assert site.get("v2/getSeriesMetaData", SeriesInstanceUID=uid).status_code == status


def test_guide_spellings(make_site: Callable[..., ArchiveClient]) -> None:
    site = make_site(guide_spellings=True)
    (row,) = site.get("v2/getSeriesMetaData", SeriesInstanceUID="1.1").json()
    assert "SeriesDate" in row
    assert "Series Date" not in row
    assert "PatientID" in site.get("v2/getPatient").json()[0]


def test_bulk_metadata2_reads_the_first_list_only(site: ArchiveClient) -> None:
    answer = site.post("getSeriesMetadata2", [("list", "1.1,nope,2.2,1.2"), ("list", "3.1")])
    assert answer.headers["content-type"] == "text/csv"
    # The header names no charset; the bytes are UTF-8.
    rows = list(csv.DictReader(io.StringIO(answer.content.decode())))
    assert [row["Series ID"] for row in rows] == ["1.1", "1.2"]
    assert list(rows[0]) == [k.name for k in shapes.METADATA2.keys]
    assert rows[0]["Series Description"] == 'Thorax_1.0 "à" (B20f), x/y'
    assert rows[1]["TimeStamp"] == "2020-01-02 10:30:00.0"
    assert rows[1]["Date Released"] == "2020-01-02"
    assert site.post("getSeriesMetadata2", {"list": "nope"}).content == b""


def test_bulk_metadata_of_v4(site: ArchiveClient) -> None:
    form = [("list", "1.1,2.2"), ("list", "3.1"), ("other", "x")]
    rows = list(csv.DictReader(io.StringIO(site.post("v4/getSeriesMetadata", form, None).text)))
    assert [row["SeriesInstanceUID"] for row in rows] == ["1.1", "3.1"]
    assert (rows[0]["SeriesNumber"], rows[0]["LongitudinalTemporalOffsetFromEvent"]) == (
        "8.000000",
        "59.000000",
    )
    assert list(rows[0]) == [k.name for k in shapes.METADATA_V4.keys]
    (row,) = site.post("v4/getSeriesMetadata", {"list": "1.1", "format": "json"}, None).json()
    assert (row["ImageCount"], row["Authorized"]) == (3, "1")
    missing = site.post("v4/getSeriesMetadata", {})
    assert (missing.status_code, missing.text) == (
        400,
        "A form parameter, list, containing at least one SeriesInstanceUID is required.",
    )
    assert site.post("v4/getSeriesMetadata", "list=").status_code == 500


def test_sizes_and_instances(site: ArchiveClient) -> None:
    assert site.get("v2/getSeriesSize", SeriesInstanceUID="1.1").text == ('[{"TotalSizeInBytes":3000,"ObjectCount":3}]')
    assert site.get("v2/getSeriesSize", SeriesInstanceUID="nope").text == '[{"ObjectCount":0}]'
    assert site.get("v4/getSeriesSize", SeriesInstanceUID="nope").content == b""
    sops = ["2.2.1", "2.2.2", "2.2.3"]
    assert site.column("v2/getSOPInstanceUIDs", "SOPInstanceUID", SeriesInstanceUID="2.2") == sops
    assert site.column("v2/getSOPInstanceUIDs", "SOPInstanceUID", SeriesInstanceUID="4.1") == []
    assert len(site.column("v4/getSOPInstanceUIDs", "SOPInstanceUID", SeriesInstanceUID="4.1")) == 3


def test_counts_are_of_distinct_patients_as_text(site: ArchiveClient) -> None:
    assert site.get("getModalityValuesAndCounts").text == (
        '[{"criteria":"CT","count":"3"},{"criteria":"MR","count":"1"}]'
    )
    assert site.get("getBodyPartValuesAndCounts").json() == [
        {"criteria": "HEAD", "count": "1"},
        {"criteria": "LUNG", "count": "2"},
        {"criteria": "NOT SPECIFIED", "count": "1"},
    ]
    assert {"criteria": "", "count": "2"} in site.get("getManufacturerValuesAndCounts").json()
    assert site.get("getModalityValuesAndCounts", Collection="alpha set").json() == []
    assert site.column("v4/getModalityValuesAndCounts", "Count", Collection="alpha set") == [2, 1]
    assert site.get("v4/getCollectionValuesAndCounts").json() == [
        {"Collection": "Alpha Set", "Count": 2, "Authorized": 1},
        {"Collection": "beta-set", "Count": 1, "Authorized": 1},
    ]
    assert site.get("v4/getModalityValuesAndCounts", Collection="none").content == b""
    manufacturers = site.get("v4/getManufacturerValuesAndCounts").json()
    assert {"Count": 2, "Authorized": 1} in manufacturers
    assert all(row.get("Manufacturer") != "" for row in manufacturers)
    assert {"BodyPart": "NOT SPECIFIED", "Count": 1, "Authorized": 1} in site.get(
        "v4/getBodyPartValuesAndCounts"
    ).json()


def test_descriptions(site: ArchiveClient) -> None:
    assert site.get("getCollectionDescriptions", collectionName="Alpha Set").json() == [
        {
            "description": "<p>One</p>",
            "id": 1,
            "collectionDescTimestamp": 1_700_000_000_000,
            "collectionName": "Alpha Set",
            "userName": "curator",
            "licenseId": None,
            "descriptionURI": "https://doi.org/10.7937/tiny",
        }
    ]
    assert site.get("getCollectionDescriptions", collectionName="alpha set").text == "[]"
    (row,) = site.get("v4/getCollectionDescriptions").json()
    assert list(row) == ["id", "description", "collectionName", "descriptionURI"]


def test_large_answers_are_kept_and_are_the_same(make_site: Callable[..., ArchiveClient]) -> None:
    catalog = tiny_catalog()
    catalog.series = pa.concat_tables([catalog.series] * 2000).combine_chunks()
    site = make_site(catalog)
    archive = site.app.state.archive
    first = site.get("v2/getSeries", Collection="Alpha Set").content
    directory = archive.settings.scratch.directory
    assert [path.read_bytes() for path in directory.iterdir()] == [first]
    assert site.get("v2/getSeries", Collection="Alpha Set").content == first
    assert len(json.loads(first)) == 6000
    # Other rights, other answers.
    assert site.get("v2/getSeries", None, Collection="Alpha Set").content == b""
    catalog.series = catalog.series.slice(0, 1)
    assert site.get("v2/getSeries", Collection="Alpha Set").content == first
    archive.holdings.refresh()
    archive.forget()
    assert not directory.exists()
    assert len(site.get("v2/getSeries", Collection="Alpha Set").json()) == 1


def test_an_answer_on_its_way_survives_a_change(make_site: Callable[..., ArchiveClient]) -> None:
    catalog = tiny_catalog()
    catalog.series = pa.concat_tables([catalog.series.slice(0, 1)] * 20_000).combine_chunks()
    site = make_site(catalog)
    header = {"Authorization": "Bearer undefined"}
    with site.session.get(f"{site.url}/services/v2/getSeries", headers=header, stream=True) as answer:
        first = answer.raw.read(100)
        site.app.state.archive.holdings.refresh()
        site.app.state.archive.forget()
        rest = answer.raw.read()
    assert len(json.loads(first + rest)) == 20_000


def test_the_directory_of_answers_goes_with_the_server() -> None:
    catalog = tiny_catalog()
    catalog.series = pa.concat_tables([catalog.series] * 2000).combine_chunks()
    app = create_app(catalog)
    with running(app) as url:
        requests.get(f"{url}/services/v4/getSeries", timeout=30).raise_for_status()
        directory = app.state.archive.settings.scratch.directory
        assert len(list(directory.iterdir())) == 1
    assert not directory.exists()
