"""The endpoints besides the guide's: v1, carts, quality control, DOIs, the simple search."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from nbia_pipeline.embedded.api.endpoints import ENDPOINTS
from nbia_pipeline.embedded.api.render import spelling
from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA
from nbia_pipeline.embedded.control.operations import OperationError
from nbia_pipeline.embedded.demo.catalog import CART, demo_catalog
from nbia_pipeline.schema import shapes
from nbia_pipeline_tests.helpers.archive_client import ArchiveClient
from nbia_pipeline_tests.helpers.tiny import tiny_catalog

NOT_PUBLIC = "Image with given SeriesInstanceUID,{}, is not in public domain."
UNABLE = "Server was not able to process your request"


def names(site: ArchiveClient, answer: Any) -> list[str]:
    return [r["SeriesInstanceUID"] for r in answer.json()] if answer.content else []


# --- v1


@pytest.mark.parametrize("header", [None, "Bearer garbage", "Bearer undefined"])
def test_v1_never_reads_the_token(site: ArchiveClient, header: str | None) -> None:
    assert [r["Collection"] for r in site.get("v1/getCollectionValues", header).json()] == ["Alpha Set", "beta-set"]
    assert names(site, site.get("v1/getSeries", header)) == ["1.1", "1.2", "2.1", "3.1"]
    assert site.get("v1/getSeriesMetaData", header, SeriesInstanceUID="1.1").json()[0]["Series UID"] == "1.1"


def test_v1_gives_even_a_member_only_the_guests_rights(site: ArchiveClient) -> None:
    header = f"Bearer {site.token('holder', 'right')}"
    assert names(site, site.get("v2/getSeries", header, Collection="Secret")) == ["4.1"]
    assert site.get("v1/getSeries", header, Collection="Secret").content == b""
    answer = site.get("v1/getImage", header, SeriesInstanceUID="4.1")
    assert (answer.status_code, answer.text) == (400, NOT_PUBLIC.format("4.1"))


@pytest.mark.parametrize("uid", ["2.2", "4.1", "nope"])
@pytest.mark.parametrize("call", ["getImage", "getImageWithMD5Hash"])
def test_v1_words_its_refusal_otherwise(site: ArchiveClient, call: str, uid: str) -> None:
    answer = site.get(f"v1/{call}", None, SeriesInstanceUID=uid)
    assert (answer.status_code, answer.text) == (400, NOT_PUBLIC.format(uid))
    assert answer.headers["content-type"] == "application/json"


def test_v1_images_are_those_of_v2(site: ArchiveClient) -> None:
    answer = site.get("v1/getImageWithMD5Hash", None, SeriesInstanceUID="1.1")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert len(archive.namelist()) == 4
    assert site.get("v1/getSingleImage", None, SeriesInstanceUID="1.1", SOPInstanceUID="1.1.2").status_code == 200


def test_every_endpoint_of_v2_has_one_of_v1() -> None:
    paths = {e.path for e in ENDPOINTS}
    twins = {p.removeprefix("v2/") for p in paths if p.startswith("v2/")} - {"getSeriesQCInfo"}
    assert twins == {p.removeprefix("v1/") for p in paths if p.startswith("v1/")} - {"getDeniedSeries"}
    assert len(paths) == len(ENDPOINTS)


# --- carts


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_cart_leaves_out_what_is_not_to_be_seen(site: ArchiveClient, version: str) -> None:
    answer = site.get(f"{version}/getContentsByName", name="my CART", format="CSV")
    assert answer.headers["content-type"] == "application/json"
    rows = answer.json()
    assert [r["SeriesInstanceUID"] for r in rows] == ["1.2", "3.1"]
    assert rows[0]["Date Released"] == "2020-01-02 10:30:00.0"
    assert set(rows[0]) <= {k.name for k in shapes.SERIES_CART.keys}
    assert site.get(f"{version}/getContentsByName", name="other").content == b""


def test_a_cart_wants_a_name(site: ArchiveClient) -> None:
    assert site.get("v1/getContentsByName").text == "A parameter, name is required for this API call."
    assert site.get("v2/getContentsByName").text == "A parameter, SeriesInstanceUID is required for this API call."


def test_a_cart_shows_a_member_more(site: ArchiveClient) -> None:
    header = f"Bearer {site.token('holder', 'right')}"
    assert names(site, site.get("v2/getContentsByName", header, name="My Cart")) == ["1.2", "4.1", "3.1"]


def test_the_demo_has_a_cart_with_a_hidden_and_a_restricted_series() -> None:
    demo = demo_catalog()
    facts = {r["SeriesInstanceUID"]: r for r in demo.series.to_pylist()}
    rows = [facts[uid] for uid in demo.carts[CART]]
    assert {r["Collection"] for r in rows} == set(demo.descriptions)
    assert any(r["Visibility"] != 1 for r in rows)


# --- what became of a series


def test_quality_control_tells_hidden_from_gone(site: ArchiveClient) -> None:
    rows = site.post("v2/getSeriesQCInfo", [("seriesId", "2.2"), ("seriesId", "1.1"), ("seriesId", "nope")]).json()
    assert [(r["SeriesInstanceUID"], r["Visibility"]) for r in rows] == [
        ("1.1", "Visible"),
        ("2.2", "Not Yet Reviewed"),
    ]
    assert rows[0]["ReleaseDate"] == "2020-01-01 00:00:00.0"
    assert (rows[0]["Project"], rows[0]["Doi"], rows[0]["ImageCount"]) == (
        "Alpha Set",
        "https://doi.org/10.7937/tiny",
        3,
    )
    assert site.post("v2/getSeriesQCInfo", {"seriesId": "4.1"}).content == b""
    assert site.post("v2/getSeriesQCInfo", {"seriesId": "1.1"}, None).status_code == 204
    missing = site.post("v2/getSeriesQCInfo", {})
    assert (missing.status_code, missing.text) == (
        400,
        "A parameter, SeriesInstanceUID is required for this API call.",
    )


def test_quality_control_of_v4_adds_one_column(site: ArchiveClient) -> None:
    (row,) = site.post("v4/getSeriesQCInfo", {"seriesId": "5.1"}, None).json()
    assert row["Visibility"] == "Downloadable"
    text = site.post("v4/getSeriesQCInfo", {"seriesId": "1.1", "format": "CSV"}, None).text
    heads = next(csv.reader(io.StringIO(text)))
    usual = [k.name for k in shapes.METADATA_V4.keys]
    position = usual.index("ReleasedStatus")
    assert heads == [*usual[:position], "Visibility", *usual[position:]]
    assert site.post("v4/getSeriesQCInfo", {"series": "1.1"}, None).status_code == 400


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_denied_series(site: ArchiveClient, version: str) -> None:
    asked = "1.1,2.2,4.1,5.1,nope"
    answer = site.get(f"{version}/getDeniedSeries", None, seriesList=asked)
    assert names(site, answer) == ["2.2", "4.1", "nope"]
    assert site.get(f"{version}/getDeniedSeries", None, seriesList="1.1").status_code == 204
    held = site.get(f"{version}/getDeniedSeries", None, seriesList=asked, userName="holder")
    assert names(site, held) == ["2.2", "nope"]
    assert site.get(f"{version}/getDeniedSeries", None, seriesList=asked, userName="who").status_code == 204


@pytest.mark.parametrize("version", ["v1", "v4"])
def test_denied_series_of_nothing(site: ArchiveClient, version: str) -> None:
    for more in ({}, {"userName": "holder"}, {"format": "CSV"}):
        answer = site.get(f"{version}/getDeniedSeries", None, **more)
        assert answer.status_code == 400
        assert answer.text == ("A parameter, seriesList,  a list of SeriesInstanceUID is required for this API call.")


def test_denied_series_are_those_of_the_user_who_is_named_whatever_the_token(site: ArchiveClient) -> None:
    header = f"Bearer {site.token('holder', 'right')}"
    assert names(site, site.get("v4/getDeniedSeries", header, seriesList="1.1,4.1")) == ["4.1"]


def test_series_of_a_doi_include_hidden_ones(site: ArchiveClient) -> None:
    doi = "https://doi.org/10.7937/tiny"
    rows = site.post("getCollectionOrSeriesForDOI", {"DOI": doi, "CollectionOrSeries": "series"}).json()
    assert [r["seriesInstanceUID"] for r in rows] == ["1.1", "1.2", "2.1", "2.2", "5.1", "3.1"]
    assert rows[0] == {"collection": "Alpha Set", "seriesInstanceUID": "1.1"}
    v4 = site.post("v4/getCollectionOrSeriesForDOI", {"DOI": doi, "CollectionOrSeries": "series"}).json()
    assert v4 == [{**row, "authorized": 1} for row in rows]
    collections = site.post("v4/getCollectionOrSeriesForDOI", {"DOI": doi}, None).json()
    assert [r["collection"] for r in collections] == ["Alpha Set", "Hidden Set", "beta-set"]
    assert site.post("getCollectionOrSeriesForDOI", {"DOI": "x"}).text == "[]"
    assert len(site.post("getCollectionOrSeriesForDOI", {}).json()) == 3


@pytest.mark.parametrize("header", [None, "Bearer garbage"])
def test_series_of_a_doi_without_a_good_token(site: ArchiveClient, header: str | None) -> None:
    answer = site.post("getCollectionOrSeriesForDOI", {}, header)
    assert (answer.status_code, answer.text) == (200, "[]")
    v4 = site.post("v4/getCollectionOrSeriesForDOI", {}, header)
    assert (len(v4.json()) > 0) == (header is None)


def test_the_third_party_key_is_misspelt(make_site: Callable[..., ArchiveClient]) -> None:
    site = make_site(demo_catalog())
    rows = site.post("getCollectionOrSeriesForDOI", {"CollectionOrSeries": "collection"}).json()
    assert {(r["collection"], r["thirdPartyAnanlysis"]) for r in rows} >= {("TCGA-DEMO", "NO"), ("TCGA-DEMO", "YES")}


# --- simple search

SEARCH = "v4/getSimpleSearch"
PAGE = {"sortField": "subject", "sortDirection": "ascending", "start": "0", "size": "10"}


def criteria(*pairs: tuple[str, str], **more: str) -> dict[str, str]:
    form = dict(PAGE)
    for number, (kind, value) in enumerate(pairs):
        form |= {f"criteriaType{number}": kind, f"value{number}": value}
    return form | more


def patients(site: ArchiveClient, form: dict[str, str]) -> list[tuple[str, str]]:
    answer = site.post(SEARCH, form)
    assert answer.status_code == 200, answer.text
    return [(p["project"], p["subjectId"]) for p in answer.json()["resultSet"]]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ((), [("Alpha Set", "A-1"), ("beta-set", "A-1"), ("Alpha Set", "a-2")]),
        ((("CollectionCriteria", "alpha set"),), [("Alpha Set", "A-1"), ("Alpha Set", "a-2")]),
        ((("ImageModalityCriteria", "MR"),), [("Alpha Set", "A-1")]),
        (
            (("ImageModalityCriteria", "MR"), ("ImageModalityCriteria", "CT")),
            [("Alpha Set", "A-1"), ("beta-set", "A-1"), ("Alpha Set", "a-2")],
        ),
        (
            (
                ("ImageModalityCriteria", "MR"),
                ("ImageModalityCriteria", "CT"),
                ("ModalityAndedSearchCriteria", "all"),
            ),
            [("Alpha Set", "A-1")],
        ),
        ((("AnatomicalSiteCriteria", "HEAD"),), [("beta-set", "A-1")]),
        ((("PatientCriteria", "a-2"),), [("Alpha Set", "a-2")]),
        ((("MinNumberOfStudiesCriteria", "2"),), []),
        ((("CollectionCriteria", "Secret"),), []),
    ],
)
def test_criteria(site: ArchiveClient, pairs: tuple[tuple[str, str], ...], expected: list[tuple[str, str]]) -> None:
    assert patients(site, criteria(*pairs)) == expected


def test_a_gap_ends_the_criteria(site: ArchiveClient) -> None:
    gap = {**PAGE, "criteriaType1": "CollectionCriteria", "value1": "beta-set"}
    assert len(patients(site, gap)) == 3


def test_dates_of_a_search(site: ArchiveClient) -> None:
    pair = ("DateRangeCriteria", "")
    assert patients(site, criteria(pair, fromDate0="01-15-2020", toDate0="03-01-2020")) == [("beta-set", "A-1")]


def test_the_other_name_of_the_body_part(site: ArchiveClient) -> None:
    assert len(patients(site, criteria(("BodyPartExaminedCriteria", "HEAD")))) == 1


def test_the_answer_of_a_search(site: ArchiveClient) -> None:
    answer = site.post(SEARCH, PAGE | {"size": "2", "sortField": "series", "sortDirection": "descending"}).json()
    first = answer["resultSet"][0]
    assert (first["subjectId"], first["totalNumberOfStudies"], first["totalNumberOfSeries"]) == ("A-1", 1, 2)
    assert (first["modalities"], first["bodyParts"], first["timepoints"]) == (["CT", "MR"], ["Lung"], [59.0])
    (study,) = first["studyIdentifiers"]
    assert isinstance(study["studyIdentifier"], int)
    assert len(study["seriesIdentifiers"]) == 2
    assert (len(answer["resultSet"]), answer["totalPatients"]) == (2, 3)
    assert answer["modalities"] == [{"value": "CT", "count": 3}, {"value": "MR", "count": 1}]
    assert (answer["minTimepoints"], answer["maxTimepoints"]) == (59, 59)
    rest = site.post(SEARCH, PAGE | {"size": "3", "start": "1"}, None).json()["resultSet"]
    assert [p["authorized"] for p in rest] == [1, 1]
    assert "timepoints" not in rest[0]


@pytest.mark.parametrize("name", ["sortField", "sortDirection", "start", "size"])
def test_a_search_needs_all_of_its_page(site: ArchiveClient, name: str) -> None:
    assert site.post(SEARCH, {k: v for k, v in PAGE.items() if k != name}).status_code == 500


def test_beyond_the_last_page(site: ArchiveClient) -> None:
    assert site.post(SEARCH, PAGE | {"start": "3"}).json()["resultSet"] == []
    assert site.post(SEARCH, PAGE | {"start": "4"}).status_code == 500


def test_the_manifest_of_a_search(site: ArchiveClient) -> None:
    answer = site.post("v4/getManifestForSimpleSearch", criteria(("CollectionCriteria", "beta-set")), None)
    lines = answer.text.splitlines()
    assert lines[6:] == ["3.1"]
    assert all("=" in line for line in lines[:6])
    assert lines[5] == "ListOfSeriesToDownload="
    assert ".tcia" in answer.headers["content-disposition"]


# --- older builds


def test_a_list_without_rows_before_2021(make_site: Callable[..., ArchiveClient]) -> None:
    site = make_site()
    site.control.history(["no data"])
    for path in ("v2/getSeries?Collection=nope", "v1/getPatient?Collection=", "v4/getModalityValues?Collection=nope"):
        answer = site.get(path)
        assert (answer.status_code, answer.text) == (500, "No data found.")
    assert site.get("v2/getSeries").status_code == 200
    assert site.get("getCollectionDescriptions", collectionName="nope").text == "[]"
    site.control.history([])
    assert site.get("v2/getSeries", Collection="nope").content == b""


def test_updated_series_before_2024_have_no_day_of_release(make_site: Callable[..., ArchiveClient]) -> None:
    site = make_site()
    now = site.get("v2/getUpdatedSeries").json()
    site.control.history(["undated"])
    assert site.get("v2/getUpdatedSeries").json() == [
        {key: value for key, value in row.items() if key != "DateReleased"} for row in now
    ]
    assert len(now) == len([row for row in now if "DateReleased" in row]) == 3
    assert "DateReleased" in site.get("v2/getSeries").json()[0]
    assert "DateReleased" in site.get("v4/getUpdatedSeries").json()[0]
    site.control.reset()
    assert site.get("v2/getUpdatedSeries").json() == now


def test_v4_of_autumn_2025_calls_the_submission_time_stamp(make_site: Callable[..., ArchiveClient]) -> None:
    site = make_site()
    for path in ("v4/getSeries", "v4/getUpdatedSeries"):
        site.control.history([])
        now = site.get(path).json()
        site.control.history(["time stamp", "undated"])
        then = site.get(path).json()
        assert [row.pop("TimeStamp") for row in then] == [row.pop("MaxSubmissionTimestamp") for row in now]
        assert then == now
    (row,) = site.post("v4/getSeriesMetadata", {"list": "1.1", "format": "JSON"}).json()
    assert row["MaxSubmissionTimestamp"] == "11-08-2011"


def test_an_unknown_build_is_refused(make_site: Callable[..., ArchiveClient]) -> None:
    with pytest.raises(OperationError, match="no build 'old'; there are no data, undated, time stamp"):
        make_site().control.history(["old"])


# --- formats that are not served


@pytest.mark.parametrize("wanted", ["XML", "html"])
def test_markup_is_an_unknown_format(site: ArchiveClient, wanted: str) -> None:
    answer = site.get("v2/getSeries", format=wanted)
    assert (answer.status_code, answer.text) == (500, UNABLE)


# --- the guide's spellings, shape by shape

GUIDE_CALLS = {
    "PATIENT": ("v2/getPatient", {}),
    "PATIENT_ID": ("v2/getPatientByCollectionAndModality", {"Collection": "Alpha Set", "Modality": "CT"}),
    "STUDY": ("v2/getPatientStudy", {}),
    "SERIES": ("v2/getSeries", {}),
    "SERIES_SHORT": ("v2/getUpdatedSeries", {}),
    "SERIES_CART": ("v2/getContentsByName", {"name": "My Cart"}),
    "META27": ("v2/getSeriesMetaData", {"SeriesInstanceUID": "1.1"}),
    "PATIENT4": ("v4/getPatient", {}),
    "STUDY4": ("v4/getPatientStudy", {}),
    "SERIES4": ("v4/getSeries", {}),
}


def all_set() -> Any:
    """Return the tiny catalog with every text set, so that no key is omitted."""
    catalog = tiny_catalog()
    rows = catalog.series.to_pylist()
    for row in rows:
        row |= {
            k: "x" for k in CATALOG_SCHEMA.names if row[k] is None and pa.types.is_string(CATALOG_SCHEMA.field(k).type)
        }
        row |= {"LongitudinalTemporalOffsetFromEvent": 1.5, "SeriesNumber": 1, "AnnotationsFlag": True}
        row |= dict.fromkeys(("SeriesDate", "StudyDate", "PatientBirthDate"), rows[0]["StudyDate"])
        row["AnnotationSize"] = 0
    catalog.series = pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA)
    return catalog


@pytest.mark.parametrize("guide", [False, True])
def test_spellings_of_every_shape(make_site: Callable[..., ArchiveClient], guide: bool) -> None:
    site = make_site(all_set(), guide_spellings=guide)
    by_name = {s.name: s for s in vars(shapes).values() if isinstance(s, shapes.Shape)}
    differing = {name for name, s in by_name.items() if any(k.guide for k in s.keys)}
    assert {n for n in differing if n in GUIDE_CALLS} >= {"PATIENT", "SERIES", "SERIES_CART", "META27", "STUDY"}
    for name, (path, query) in GUIDE_CALLS.items():
        row = site.get(path, **query).json()[0]
        assert list(row) == [spelling(k, guide) for k in by_name[name].keys], name
