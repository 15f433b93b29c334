from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Any

import pydicom
import pytest

from nbia_pipeline.archive import BadAnswer, NbiaClient, NotAvailable, ServerError
from nbia_pipeline.archive.conformance import collect
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD
from nbia_pipeline.schema import shapes
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive
from nbia_pipeline_tests.helpers.expected import (
    PUBLIC,
    RESTRICTED,
    assert_same,
    first_of_each,
    patients_by,
    sent,
    studies,
    uids_of,
    visible,
)
from nbia_pipeline_tests.helpers.faults import Fault, answer, closed_early, cut, without_query

every_collection = pytest.mark.parametrize("collection", [*PUBLIC, RESTRICTED])
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the times of the tables have no zone


@pytest.fixture(scope="module")
def client(demo_archive: str) -> Iterator[NbiaClient]:
    with NbiaClient(demo_archive, options=FAST) as made:
        yield made


@pytest.fixture(scope="module")
def member(demo_archive: str) -> Iterator[NbiaClient]:
    with NbiaClient(demo_archive, username=MEMBER, password=MEMBER_PASSWORD, options=FAST) as made:
        yield made


# --- every method gives what the archive holds


def test_collections_are_sorted_and_spelled_exactly(client: NbiaClient) -> None:
    assert client.collection_values() == list(PUBLIC)


def test_a_member_sees_the_restricted_collection(member: NbiaClient) -> None:
    assert member.collection_values() == sorted([*PUBLIC, RESTRICTED])


@every_collection
def test_series_are_those_of_the_catalogue(member: NbiaClient, demo: Catalog, collection: str) -> None:
    rows = visible(demo, collection)
    assert rows
    assert_same(member.series(collection), sent(rows, shapes.SERIES_V2), "series")


@every_collection
def test_patients_are_those_of_the_catalogue(member: NbiaClient, demo: Catalog, collection: str) -> None:
    rows = first_of_each(visible(demo, collection), "PatientID")
    assert_same(member.patients(collection), sent(rows, shapes.PATIENT), "patients")


@every_collection
def test_studies_are_those_of_the_catalogue(member: NbiaClient, demo: Catalog, collection: str) -> None:
    assert_same(member.studies(collection), sent(studies(visible(demo, collection)), shapes.STUDY), "studies")


def test_a_hidden_series_is_not_there(client: NbiaClient, demo: Catalog) -> None:
    hidden = {r["SeriesInstanceUID"] for r in demo.series.to_pylist() if r["Visibility"] != 1}
    assert hidden
    assert hidden.isdisjoint(client.series("QIN_Breast.v2")["SeriesInstanceUID"].to_pylist())


def test_modalities_come_with_their_patients(client: NbiaClient, demo: Catalog) -> None:
    assert_same(client.modality_values(), patients_by(visible(demo), "Modality"), "modalities")


def test_body_parts_are_in_upper_case_and_null_is_one(client: NbiaClient, demo: Catalog) -> None:
    rows = patients_by(visible(demo), "BodyPartExamined", str.upper)
    assert {"BodyPartExamined": None, "PatientCount": 1} in rows
    assert_same(client.body_part_values(), rows, "body_parts")


def test_manufacturers_are_told_apart_by_case(client: NbiaClient, demo: Catalog) -> None:
    rows = patients_by(visible(demo), "Manufacturer")
    assert {"SIEMENS", "Siemens"} <= {r["Manufacturer"] for r in rows}
    assert_same(client.manufacturer_values(), rows, "manufacturers")


def test_patients_are_counted_by_collection(member: NbiaClient, demo: Catalog) -> None:
    rows = patients_by(visible(demo, *PUBLIC, RESTRICTED), "Collection")
    assert member.collection_counts() == {r["Collection"]: r["PatientCount"] for r in rows}


@every_collection
def test_a_description_is_that_of_the_catalogue(member: NbiaClient, demo: Catalog, collection: str) -> None:
    described = demo.descriptions[collection]
    row = {
        "Collection": collection,
        "PatientCount": None,
        "Description": described.description,
        "DescriptionURI": described.uri,
        "DescriptionTimestamp": EPOCH + timedelta(milliseconds=described.edited_ms),
    }
    assert_same(member.collection_description(collection), [row], "collections")


def test_an_unknown_collection_has_no_description(client: NbiaClient) -> None:
    assert client.collection_description("tcga-demo").num_rows == 0


@pytest.mark.parametrize(
    "since", [date(1900, 1, 1), date(2016, 3, 20), date(2016, 3, 21), date(2021, 11, 29), date(2030, 1, 1)]
)
def test_updated_series_were_released_after_the_day(member: NbiaClient, demo: Catalog, since: date) -> None:
    midnight = datetime(since.year, since.month, since.day)  # noqa: DTZ001 - the server's times have no zone
    rows = [
        r for r in visible(demo, *PUBLIC, RESTRICTED) if r["DateReleased"] is not None and r["DateReleased"] > midnight
    ]
    assert_same(member.updated_series(since), sent(rows, shapes.SERIES_SHORT), "series")


def test_the_day_of_an_update_is_sent_day_first(archive: TestArchive) -> None:
    with archive.client() as client:
        client.updated_series(date(2016, 3, 7))
    assert archive.faults.calls("getUpdatedSeries")[0].query == {"fromDate": "07/03/2016"}


def test_instances_are_those_of_the_catalogue(client: NbiaClient, demo: Catalog) -> None:
    assert demo.images is not None
    for row in visible(demo):
        uid = row["SeriesInstanceUID"]
        found = client.sop_instance_uids(uid)
        assert sorted(found) == sorted(i.sop_instance_uid for i in demo.images.instances(uid))
        assert len(found) == row["ImageCount"]


def test_an_unknown_series_has_no_instances(client: NbiaClient) -> None:
    assert client.sop_instance_uids("9.9.9") == []


# --- restricted, unknown, empty


def test_a_guest_gets_nothing_of_a_restricted_collection(archive: TestArchive, demo: Catalog) -> None:
    uid = uids_of(visible(demo, RESTRICTED))[0]
    with archive.client() as client:
        assert client.series(RESTRICTED).num_rows == 0
        assert client.patients(RESTRICTED).num_rows == 0
        assert client.studies(RESTRICTED).num_rows == 0
        assert RESTRICTED not in client.collection_counts()
        with pytest.raises(NotAvailable):
            client.image_with_md5(uid, b"".join)


@pytest.mark.parametrize("method", ["series", "patients", "studies"])
def test_an_unknown_collection_is_empty_only_after_the_token_was_confirmed(archive: TestArchive, method: str) -> None:
    endpoint = {"series": "getSeries", "patients": "getPatient", "studies": "getPatientStudy"}[method]
    with archive.client() as client:
        table = getattr(client, method)("No Such Collection")
    assert_same(table, [], method)
    calls = [r.endpoint for r in archive.faults.seen]
    assert calls[:4] == ["token", endpoint, "getCollectionValues", endpoint]


@pytest.mark.parametrize("method", ["series", "patients", "studies"])
def test_a_listed_collection_that_comes_back_empty_is_not_believed(archive: TestArchive, method: str) -> None:
    endpoint = {"series": "getSeries", "patients": "getPatient", "studies": "getPatientStudy"}[method]
    # An empty answer is asked for twice, because of the token, and the pair as often as the options allow.
    archive.faults.inject(endpoint, answer(200), times=2 * FAST.tries)
    with archive.client() as client:
        with pytest.raises(BadAnswer, match="lists collection 'TCGA-DEMO', but sends nothing of it") as caught:
            getattr(client, method)("TCGA-DEMO")
        assert caught.value.retryable
        assert archive.faults.count(endpoint) == 2 * FAST.tries
        assert getattr(client, method)("TCGA-DEMO").num_rows > 0


@pytest.mark.parametrize("times", [1, 2, 2 * FAST.tries - 1])
def test_a_listed_collection_that_is_empty_for_a_moment_comes_back_whole(
    archive: TestArchive, demo: Catalog, times: int
) -> None:
    archive.faults.inject("getSeries", answer(200), times=times)
    with archive.client() as client:
        assert_same(client.series("TCGA-DEMO"), sent(visible(demo, "TCGA-DEMO"), shapes.SERIES_V2), "series")


@pytest.mark.parametrize("method", ["series", "patients"])
def test_rows_of_another_collection_are_refused(archive: TestArchive, method: str) -> None:
    endpoint = {"series": "getSeries", "patients": "getPatient"}[method]
    archive.faults.inject(endpoint, without_query())
    with archive.client() as client, pytest.raises(BadAnswer, match=r"asked for collection 'TCGA-DEMO'.* sent rows of"):
        getattr(client, method)("TCGA-DEMO")


def test_series_without_a_collection_are_refused(archive: TestArchive) -> None:
    archive.faults.inject("getSeries", answer(200, b'[{"SeriesInstanceUID":"1"}]'))
    with archive.client() as client, pytest.raises(BadAnswer, match=r"sent rows of \[None\]"):
        client.series("TCGA-DEMO")


def test_rows_of_a_collection_that_is_spelled_otherwise_are_not_taken(client: NbiaClient) -> None:
    for ask in (client.patients, client.studies, client.series):
        with pytest.raises(
            BadAnswer, match=r"asked for collection 'tcga-demo', the archive sent rows of \['TCGA-DEMO'\]"
        ):
            ask("tcga-demo")


def test_metadata_of_other_series_are_refused(archive: TestArchive) -> None:
    row = b'"Series ID","Modality"\n"6.6.6","CT"\n'
    archive.faults.inject("getSeriesMetadata2", answer(200, row))
    with archive.client() as client, pytest.raises(BadAnswer, match="series that were not asked for"):
        client.series_metadata(["1.2"])


@pytest.mark.parametrize(
    ("body", "names"), [(b"[{}]", []), (b'[{"Collection":"A"},{}]', ["A"]), (b'[{},{"Collection":"B"},{}]', ["B"])]
)
def test_a_collection_without_a_name_is_left_out_and_reported(
    archive: TestArchive, body: bytes, names: list[str]
) -> None:
    archive.faults.inject("getCollectionValues", answer(200, body))
    with archive.client() as client, collect() as found:
        assert client.collection_values() == names
    nulls = body.count(b"{}")
    assert [(one.table, one.column, one.why) for one in found] == [
        ("collections", "Collection", f"{nulls} of {nulls + len(names)} rows have none, and were left out")
    ]


def test_an_instance_without_a_uid_is_left_out_and_reported(archive: TestArchive) -> None:
    archive.faults.inject("getSOPInstanceUIDs", answer(200, b'[{"SOPInstanceUID":"1"},{}]'))
    with archive.client() as client, collect() as found:
        assert client.sop_instance_uids("1.2") == ["1"]
    assert [one.why for one in found] == ["1 of 2 rows have none, and were left out"]


@pytest.mark.parametrize("body", [b"", b"[]"])
def test_values_without_any_are_an_empty_table(archive: TestArchive, body: bytes) -> None:
    archive.faults.inject("getModalityValues", answer(200, body), times=2)
    with archive.client() as client:
        assert_same(client.modality_values(), [], "modalities")


# --- what is refused before anything is sent


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("series", [""]),
        ("patients", [""]),
        ("studies", [""]),
        ("collection_description", [""]),
        ("sop_instance_uids", [""]),
        ("image_with_md5", ["", b"".join]),
        ("single_image", ["1.2", "", b"".join]),
        ("single_image", ["", "1.2", b"".join]),
        ("series_metadata", [[""]]),
    ],
)
def test_an_empty_argument_is_refused_before_anything_is_sent(
    archive: TestArchive, method: str, arguments: list[Any]
) -> None:
    with (
        archive.client() as client,
        pytest.raises(ValueError, match=r"is empty: /services/.* would return nothing"),
    ):
        getattr(client, method)(*arguments)
    assert archive.faults.seen == []


def test_a_parameter_that_an_endpoint_does_not_know_is_refused(archive: TestArchive) -> None:
    with archive.client() as client, pytest.raises(ValueError, match="getPatient takes no colour"):
        client._list("patients", colour="blue")
    assert archive.faults.seen == []


# --- images


def test_a_series_comes_as_a_zip_with_its_digests(client: NbiaClient, demo: Catalog) -> None:
    assert demo.images is not None
    row = visible(demo, "Lung Phantom CT")[1]
    uid = row["SeriesInstanceUID"]
    with zipfile.ZipFile(io.BytesIO(client.image_with_md5(uid, b"".join))) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[-1] == "md5hashes.csv"
        listed = list(csv.DictReader(io.StringIO(archive.read("md5hashes.csv").decode())))
        files = {name: archive.read(name) for name in archive.namelist()[:-1]}
    assert {r["Filename"]: r["MD5Hash"] for r in listed} == {n: hashlib.md5(b).hexdigest() for n, b in files.items()}
    expected = [demo.images.read(uid, i.sop_instance_uid) for i in demo.images.instances(uid)]
    assert sorted(files.values()) == sorted(expected)
    assert len(files) == row["ImageCount"]


def test_a_single_image_is_the_file(client: NbiaClient, demo: Catalog) -> None:
    assert demo.images is not None
    uid = visible(demo)[0]["SeriesInstanceUID"]
    sop = demo.images.instances(uid)[3].sop_instance_uid
    data = client.single_image(uid, sop, b"".join)
    assert data == demo.images.read(uid, sop)
    assert pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).SOPInstanceUID == sop


def test_a_download_that_breaks_is_read_again_from_its_first_byte(archive: TestArchive, demo: Catalog) -> None:
    assert demo.images is not None
    uid = visible(demo)[0]["SeriesInstanceUID"]
    sop = demo.images.instances(uid)[0].sop_instance_uid
    archive.faults.inject("getSingleImage", cut(100), answer(503), times=1)
    beginnings: list[bytes] = []

    def read(chunks: Iterator[bytes]) -> bytes:
        first = next(chunks)
        beginnings.append(first[:132])
        return first + b"".join(chunks)

    with archive.client() as client:
        assert client.single_image(uid, sop, read) == demo.images.read(uid, sop)
    assert archive.faults.count("getSingleImage") == 3
    assert [b[128:] for b in beginnings if len(b) > 128] == [b"DICM"]


@pytest.mark.parametrize("uid", ["9.9.9", "hidden"])
def test_unknown_and_hidden_series_cannot_be_downloaded(archive: TestArchive, demo: Catalog, uid: str) -> None:
    if uid == "hidden":
        uid = next(r["SeriesInstanceUID"] for r in demo.series.to_pylist() if r["Visibility"] != 1)
    with archive.client() as client, pytest.raises(NotAvailable) as caught:
        client.image_with_md5(uid, b"".join)
    assert caught.value.parameters == {"SeriesInstanceUID": uid}
    assert archive.faults.count("getImageWithMD5Hash") == 1


def test_a_missing_image_is_given_up_after_three_tries(archive: TestArchive, demo: Catalog) -> None:
    uid = visible(demo)[0]["SeriesInstanceUID"]
    with archive.client() as client, pytest.raises(ServerError, match="status 500"):
        client.single_image(uid, "9.9.9", b"".join)
    assert archive.faults.count("getSingleImage") == 3


@pytest.mark.parametrize("fault", [closed_early(700), cut(700), answer(503)])
def test_a_list_that_breaks_is_read_again_whole(archive: TestArchive, demo: Catalog, fault: Fault) -> None:
    archive.faults.inject("getSeries", fault)
    with archive.client() as client:
        assert_same(client.series("TCGA-DEMO"), sent(visible(demo, "TCGA-DEMO"), shapes.SERIES_V2), "series")
    assert archive.faults.count("getSeries") == 2
