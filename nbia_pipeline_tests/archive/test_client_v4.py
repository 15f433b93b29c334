from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, timedelta

import pytest

from nbia_pipeline.archive import BadAnswer, NbiaClient, NotAvailable
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD
from nbia_pipeline.schema import shapes
from nbia_pipeline_tests.conftest import FAST, TestArchive
from nbia_pipeline_tests.helpers.expected import (
    PUBLIC,
    RESTRICTED,
    assert_same,
    first_of_each,
    patients_by,
    sent,
    studies,
    visible,
)
from nbia_pipeline_tests.helpers.faults import NULL, answer, without_query

every_collection = pytest.mark.parametrize("collection", [*PUBLIC, RESTRICTED])


@pytest.fixture(scope="module")
def client(demo_archive: str) -> Iterator[NbiaClient]:
    with NbiaClient(demo_archive, api="v4", options=FAST) as made:
        yield made


@pytest.fixture(scope="module")
def member(demo_archive: str) -> Iterator[NbiaClient]:
    with NbiaClient(demo_archive, api="v4", username=MEMBER, password=MEMBER_PASSWORD, options=FAST) as made:
        yield made


def test_collections_are_those_of_the_guest(client: NbiaClient) -> None:
    assert client.collection_values() == list(PUBLIC)


def test_a_member_sees_the_restricted_collection(member: NbiaClient) -> None:
    assert member.collection_values() == sorted([*PUBLIC, RESTRICTED])


@every_collection
def test_series_are_those_of_the_catalogue_without_times_of_day(
    member: NbiaClient, demo: Catalog, collection: str
) -> None:
    rows = sent(visible(demo, collection), shapes.SERIES_V4)
    assert_same(member.series(collection), rows, "series")
    assert all(r["TimeStamp"].hour == 0 and r["Site"] for r in rows)


@every_collection
def test_patients_are_those_of_the_catalogue(member: NbiaClient, demo: Catalog, collection: str) -> None:
    rows = first_of_each(visible(demo, collection), "PatientID")
    assert_same(member.patients(collection), sent(rows, shapes.PATIENT_V4), "patients")


@every_collection
def test_studies_are_those_of_the_catalogue(member: NbiaClient, demo: Catalog, collection: str) -> None:
    assert_same(member.studies(collection), sent(studies(visible(demo, collection)), shapes.STUDY_V4), "studies")


def test_what_v4_does_not_serve_is_null(client: NbiaClient) -> None:
    assert client.patients("TCGA-DEMO")["PatientBirthDate"].null_count == 3
    table = client.collection_description("TCGA-DEMO")
    assert table["DescriptionTimestamp"].to_pylist() == [None]


def test_modalities_come_with_their_patients(client: NbiaClient, demo: Catalog) -> None:
    assert_same(client.modality_values(), patients_by(visible(demo), "Modality", str.upper), "modalities")


def test_body_parts_come_with_their_patients(client: NbiaClient, demo: Catalog) -> None:
    assert_same(client.body_part_values(), patients_by(visible(demo), "BodyPartExamined", str.upper), "body_parts")


def test_a_manufacturer_of_several_spellings_has_no_count(client: NbiaClient, demo: Catalog) -> None:
    by_spelling = patients_by(visible(demo), "Manufacturer")
    spellings = Counter(r["Manufacturer"].upper() for r in by_spelling)
    rows = [
        {**r, "Manufacturer": name, "PatientCount": r["PatientCount"] if spellings[name] == 1 else None}
        for r in by_spelling
        for name in [r["Manufacturer"].upper()]
    ]
    assert {"Manufacturer": "PHILIPS", "PatientCount": 3} in rows
    assert {"Manufacturer": "SIEMENS", "PatientCount": None} in rows
    assert_same(client.manufacturer_values(), first_of_each(rows, "Manufacturer"), "manufacturers")


def test_patients_are_counted_by_collection(client: NbiaClient, demo: Catalog) -> None:
    rows = patients_by(visible(demo), "Collection")
    assert client.collection_counts() == {r["Collection"]: r["PatientCount"] for r in rows}


@every_collection
def test_a_description_is_that_of_the_catalogue(member: NbiaClient, demo: Catalog, collection: str) -> None:
    described = demo.descriptions[collection]
    row = {"Collection": collection, "Description": described.description, "DescriptionURI": described.uri}
    assert_same(member.collection_description(collection), [row], "collections")


@pytest.mark.parametrize("since", [date(1900, 1, 1), date(2016, 3, 21), date(2030, 1, 1)])
def test_updated_series_were_released_after_the_day(client: NbiaClient, demo: Catalog, since: date) -> None:
    midnight = datetime(since.year, since.month, since.day)  # noqa: DTZ001 - the server's times have no zone
    rows = [r for r in visible(demo) if r["DateReleased"] is not None and r["DateReleased"] > midnight]
    assert_same(client.updated_series(since), sent(rows, shapes.SERIES_V4), "series")


def test_the_day_of_an_update_is_sent_month_first(archive: TestArchive) -> None:
    with archive.client(api="v4") as client:
        client.updated_series(date(2016, 3, 7))
    assert archive.faults.calls("getUpdatedSeries")[0].query == {"fromDate": "03-07-2016"}


def test_metadata_is_that_of_the_catalogue(archive: TestArchive, demo: Catalog) -> None:
    rows = visible(demo)
    with archive.client(api="v4") as client:
        table = client.series_metadata([r["SeriesInstanceUID"] for r in rows])
    assert_same(table, sent(rows, shapes.METADATA_V4), "series_metadata")
    assert archive.faults.count("getSeriesMetadata") == 1


def test_v4_has_no_other_way_to_metadata(archive: TestArchive) -> None:
    archive.faults.inject("getSeriesMetadata", answer(500, b"HTTP 404 Not Found"))
    with archive.client(api="v4") as client, pytest.raises(BadAnswer, match="no such endpoint"):
        client.series_metadata(["1.2"])
    assert len(archive.faults.seen) == 1


def test_instances_are_those_of_the_catalogue(client: NbiaClient, demo: Catalog) -> None:
    assert demo.images is not None
    uid = visible(demo)[0]["SeriesInstanceUID"]
    assert sorted(client.sop_instance_uids(uid)) == sorted(i.sop_instance_uid for i in demo.images.instances(uid))


def test_images_come_as_in_v2(client: NbiaClient, demo: Catalog) -> None:
    assert demo.images is not None
    row = visible(demo, "Lung Phantom CT")[1]
    uid, sop = row["SeriesInstanceUID"], demo.images.instances(row["SeriesInstanceUID"])[0].sop_instance_uid
    with zipfile.ZipFile(io.BytesIO(client.image_with_md5(uid, b"".join))) as zipped:
        assert len(zipped.namelist()) == row["ImageCount"] + 1
        assert zipped.namelist()[-1] == "md5hashes.csv"
    assert client.single_image(uid, sop, b"".join) == demo.images.read(uid, sop)


def test_a_guest_gets_nothing_of_a_restricted_collection(client: NbiaClient, demo: Catalog) -> None:
    assert client.series(RESTRICTED).num_rows == 0
    with pytest.raises(NotAvailable, match="unknown, hidden or not permitted"):
        client.image_with_md5(visible(demo, RESTRICTED)[0]["SeriesInstanceUID"], b"".join)


def test_v2_and_v4_agree_on_what_both_serve(client: NbiaClient, demo_archive: str) -> None:
    both = {k.column for k in shapes.SERIES_V2.keys} & {k.column for k in shapes.SERIES_V4.keys}
    names = sorted(n for n in both - {"TimeStamp", "DateReleased"} if n)
    with NbiaClient(demo_archive, options=FAST) as v2:
        for collection in PUBLIC:
            old, new = (c.series(collection).sort_by("SeriesInstanceUID") for c in (v2, client))
            assert old.select(names).equals(new.select(names))
            for a, b in zip(old["TimeStamp"].to_pylist(), new["TimeStamp"].to_pylist(), strict=True):
                assert timedelta(0) <= a - b < timedelta(days=1)


def test_rows_of_another_collection_are_refused(archive: TestArchive) -> None:
    archive.faults.inject("getSeries", without_query())
    with archive.client(api="v4") as client, pytest.raises(BadAnswer, match="sent rows of"):
        client.series("TCGA-DEMO")


def test_a_listed_collection_that_comes_back_empty_is_not_believed(archive: TestArchive) -> None:
    archive.faults.inject("getSeries", answer(200), times=FAST.tries)
    with archive.client(api="v4") as client, pytest.raises(BadAnswer, match="sends nothing of it"):
        client.series("TCGA-DEMO")


def test_an_account_of_ones_own_logs_in(archive: TestArchive) -> None:
    with archive.client(api="v4", username=MEMBER, password=MEMBER_PASSWORD) as client:
        assert client.series(RESTRICTED).num_rows == 3
    assert archive.faults.count("token") == 1
    assert archive.faults.calls("getSeries")[0].headers["authorization"].startswith("Bearer ")


def test_a_500_of_a_guest_is_not_taken_for_a_stale_token(archive: TestArchive) -> None:
    archive.faults.inject("getPatient", answer(500, NULL), times=9)
    with archive.client(api="v4") as client, pytest.raises(Exception, match="requires a token"):
        client.patients("TCGA-DEMO")
    assert archive.faults.count("getPatient") == 1
