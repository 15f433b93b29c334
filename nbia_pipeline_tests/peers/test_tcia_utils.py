"""tcia_utils, on v4, says the same as our client, value by value; where it does not, the test says how."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.archive.errors import NotAvailable
from nbia_pipeline_tests.helpers import references_of_demo as demo
from nbia_pipeline_tests.helpers.peers import EVER, SINCE, Ask, Asked
from nbia_pipeline_tests.peers import rows
from nbia_pipeline_tests.peers.rows import in_order, us_day

pytestmark = pytest.mark.peers

SEVERAL = "ValueError: can only convert an array of size 1 to a Python scalar"
# What v4's metadata says of the patient and the study stands in other tables of ours, these two in none.
SPACINGS = {"PixelSpacing(mm)-Row": "PixelSpacing", "SliceThickness(mm)": "SliceThickness"}


@pytest.fixture(scope="module")
def said(ask: Ask) -> Asked:
    return ask("ask_tcia_utils.py", [f"{SINCE:%Y/%m/%d}", "1900/01/01"])


def test_collections(said: Asked, ours_v4: NbiaClient) -> None:
    assert rows.values(said.answers["collections"], "Collection") == ours_v4.collection_values()


@pytest.mark.parametrize(
    ("answer", "table", "key"),
    [
        ("modalities", "modality_values", "Modality"),
        ("body_parts", "body_part_values", "BodyPartExamined"),
        ("manufacturers", "manufacturer_values", "Manufacturer"),
    ],
)
def test_values(said: Asked, ours_v4: NbiaClient, answer: str, table: str, key: str) -> None:
    assert rows.values(said.answers[answer], key) == getattr(ours_v4, table)()[key].to_pylist()


def test_counts(said: Asked, ours_v4: NbiaClient) -> None:
    counts = {row["Collection"]: row["Count"] for row in said.answers["collection_counts"]}
    assert counts == ours_v4.collection_counts()


def test_descriptions(said: Asked, ours_v4: NbiaClient) -> None:
    # It has them of all collections at once, restricted ones included, and shows the server's number of each.
    theirs = {d["collectionName"]: d for d in said.answers["descriptions"]}
    assert all(isinstance(d["id"], int) for d in theirs.values())
    assert set(theirs) > set(ours_v4.collection_values())
    for name in ours_v4.collection_values():
        [mine] = ours_v4.collection_description(name).to_pylist()
        assert (theirs[name]["description"], theirs[name]["descriptionURI"]) == (
            mine["Description"],
            mine["DescriptionURI"],
        )


def test_patients(said: Asked, ours_v4: NbiaClient) -> None:
    for name, theirs in said.answers["patients"].items():
        assert in_order(theirs, "PatientId") == in_order(
            rows.sent_v4(ours_v4.patients(name), rows.PATIENT4), "PatientId"
        )


def test_studies(said: Asked, ours_v4: NbiaClient) -> None:
    for name, theirs in said.answers["studies"].items():
        mine = rows.sent_v4(ours_v4.studies(name), rows.STUDY4)
        assert in_order(theirs, "StudyInstanceUID") == in_order(mine, "StudyInstanceUID")


def test_series(said: Asked, ours_v4: NbiaClient) -> None:
    for name, theirs in said.answers["series"].items():
        mine = rows.sent_v4(ours_v4.series(name), rows.SERIES4)
        assert in_order(theirs, "SeriesInstanceUID") == in_order(mine, "SeriesInstanceUID")


def test_updated_series(said: Asked, ours_v4: NbiaClient) -> None:
    for theirs, day in zip(said.answers["updated"].values(), (SINCE, EVER), strict=True):
        mine = rows.sent_v4(ours_v4.updated_series(day), rows.SERIES4)
        assert in_order(theirs, "SeriesInstanceUID") == in_order(mine, "SeriesInstanceUID")
        assert mine


def test_new_patients(said: Asked, ours_v4: NbiaClient) -> None:
    for name, theirs in said.answers["new_patients"].items():
        mine = rows.sent_v4(ours_v4.new_patients(name, SINCE), rows.PATIENT4)
        assert in_order(theirs, "PatientId") == in_order(mine, "PatientId")
        assert (theirs is None) == (not mine)
    assert any(said.answers["new_patients"].values())


def test_a_frame_lacks_the_columns_that_no_row_has(said: Asked, ours_v4: NbiaClient) -> None:
    frame, mine = said.answers["series_frame"], ours_v4.series(said.questions["collections"][0])
    wanted = {word.partition("=")[0] for word in rows.SERIES4.split()}
    assert wanted - set(frame["columns"]) == {"AdmittingDiagnosisDescription", "AnnotationsFlag"}
    assert mine["AdmittingDiagnosesDescription"].null_count == mine["AnnotationsFlag"].null_count == mine.num_rows
    theirs = [{k: v for k, v in row.items() if v is not None} for row in frame["rows"]]
    assert in_order(theirs, "SeriesInstanceUID") == in_order(rows.sent_v4(mine, rows.SERIES4), "SeriesInstanceUID")


def test_metadata(said: Asked, ours_v4: NbiaClient) -> None:
    frame = said.answers["metadata"]
    expected = {row["SeriesInstanceUID"]: row for row in _as_pandas_reads(ours_v4, said.questions)}
    theirs = {row["SeriesInstanceUID"]: row for row in frame["rows"]}
    assert set(theirs) == set(expected) == set(said.questions["metadata"])
    for uid, row in theirs.items():
        assert row == {k: _garbled(v) for k, v in expected[uid].items()}


def test_metadata_is_garbled_outside_ascii(said: Asked, ours_v4: NbiaClient) -> None:
    theirs = {row["SeriesInstanceUID"]: row["StudyDesc"] for row in said.answers["metadata"]["rows"]}
    mine = ours_v4.series_metadata(said.questions["metadata"]).to_pylist()
    [uid] = {r["SeriesInstanceUID"] for r in mine if r["SeriesDescription"] == "Thorax nativ 5,0 mm"}
    assert theirs[uid] == "Thorax nativ \u00e2\u0080\u0093 Kontrolle"
    assert "Thorax nativ – Kontrolle" in {r["StudyDescription"] for r in mine}


def test_metadata_loses_leading_zeros_and_types(said: Asked, ours_v4: NbiaClient) -> None:
    frame, mine = said.answers["metadata"], ours_v4.series_metadata(said.questions["metadata"])
    types = frame["types"]
    assert (types["StudyID"], types["SpeciesCode"], types["SeriesNumber"]) == ("int64", "int64", "float64")
    assert {len(s) for s in mine["StudyID"].to_pylist()} == {6}
    assert {len(str(row["StudyID"])) for row in frame["rows"]} == {5, 6}  # 080314 became 80314
    assert types["StudyDate"] == types["DateReleased"] == "object"  # dates stay text


def test_report_counts_patients_without_their_collection(said: Asked, ours_v4: NbiaClient) -> None:
    names = said.questions["collections"]
    ids = [i for n in names for i in ours_v4.patients(n)["PatientID"].to_pylist()]
    series = pa.concat_tables([ours_v4.series(n) for n in names])
    assert said.answers["report"] == {
        "subjects": len(set(ids)),
        "studies": len(set(series["StudyInstanceUID"].to_pylist())),
        "series": series.num_rows,
        "images": sum(series["ImageCount"].to_pylist()),
    }
    assert len(set(ids)) < len(ids)  # one is in two collections


def test_instances(said: Asked, ours_v4: NbiaClient) -> None:
    for uid, theirs in said.answers["sop_instance_uids"].items():
        assert sorted(t["SOPInstanceUID"] for t in theirs) == sorted(ours_v4.sop_instance_uids(uid))


def test_downloaded_files(said: Asked, ours_v4: NbiaClient) -> None:
    for uid in said.questions["downloads"]:
        mine = rows.our_files(ours_v4, uid)
        assert rows.their_files(said.folder / "plain" / uid) == mine
        assert rows.their_files(said.folder / "hashed" / uid) == mine
        assert set(mine) == set(ours_v4.sop_instance_uids(uid))
        # By default it asks for names made of acquisition and instance, and gets no digests.
        others = {p.name for p in (said.folder / "plain" / uid).iterdir() if p.suffix != ".dcm"}
        assert others == {"LICENSE"}
        assert (said.folder / "hashed" / uid / "md5hashes.csv").exists()


def test_downloaded_instance(said: Asked, ours_v4: NbiaClient) -> None:
    uid, instance = said.questions["instance"]
    mine = ours_v4.single_image(uid, instance, lambda chunks: b"".join(chunks))
    assert (said.folder / "single" / uid / f"{instance}.dcm").read_bytes() == mine


def test_references_are_found_in_the_tags(said: Asked) -> None:
    # Its own walk through getDicomTags: it finds them only where the tags come as the real server sends them.
    answers = said.answers["references"]
    ours = {series: rows.stated_series(series) for series in answers}
    for series, stated in ours.items():
        if answers[series] not in ("N/A", SEVERAL):
            assert {answers[series]} == stated, series
    # It looks neither into other studies (0008,1200) nor further than one series.
    none = {series for series, answer in answers.items() if answer == "N/A"}
    elsewhere = (demo.SEG_OF_OTHER_STUDY, demo.SEG_OF_OTHER_COLLECTION, demo.STRUCTURES_WITHOUT_REFERENCES)
    assert none == set(map(demo.uid, elsewhere))
    assert {series for series in answers if answers[series] == SEVERAL} == {demo.uid(demo.SEG_OF_TWO)}


def test_nothing_and_refused_look_alike(said: Asked, ours_v4: NbiaClient) -> None:
    assert said.answers["unknown"] is None
    assert ours_v4.series("No Such Collection").num_rows == 0
    assert said.answers["refused"]["rows"] == []
    with pytest.raises(NotAvailable):
        rows.our_files(ours_v4, "1.2.3")


def test_it_speaks_v4_without_a_token(said: Asked) -> None:
    assert said.seen
    assert all(request.path.startswith("/services/v4/") for request in said.seen)
    assert not any("authorization" in request.headers for request in said.seen)


def _as_pandas_reads(client: NbiaClient, questions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return our metadata as pandas reads v4's CSV of it, with what stands in our other tables."""
    series, studies, patients = {}, {}, {}
    for name in questions["collections"]:
        series.update({r["SeriesInstanceUID"]: r for r in client.series(name).to_pylist()})
        studies.update({r["StudyInstanceUID"]: r for r in client.studies(name).to_pylist()})
        patients.update({(name, r["PatientID"]): r for r in client.patients(name).to_pylist()})
    return [
        _metadata_row(
            row,
            series[row["SeriesInstanceUID"]],
            studies[row["StudyInstanceUID"]],
            patients[row["Collection"], row["PatientID"]],
        )
        for row in client.series_metadata(questions["metadata"]).to_pylist()
    ]


def _garbled(value: Any) -> Any:
    """Return a text as it is read where UTF-8 comes without a charset: requests takes it for Latin-1."""
    return value.encode("utf-8").decode("latin-1") if isinstance(value, str) else value


def _metadata_row(
    row: dict[str, Any], series: dict[str, Any], study: dict[str, Any], patient: dict[str, Any]
) -> dict[str, Any]:
    same = (
        "PatientID StudyInstanceUID SeriesInstanceUID Collection Modality ProtocolName SeriesDescription "
        "BodyPartExamined AnnotationsFlag Manufacturer ManufacturerModelName SoftwareVersions ImageCount "
        "LicenseName LicenseURI FileSize ThirdPartyAnalysis"
    )
    return {
        **{name: row[name] for name in same.split()},
        "StudyDesc": row["StudyDescription"],
        "DataDescriptionURI": row["CollectionURI"],
        **{name: us_day(row[name]) for name in ("StudyDate", "SeriesDate", "DateReleased")},
        "MaxSubmissionTimestamp": us_day(row["TimeStamp"]),
        "StudyID": int(row["StudyID"]),
        "SeriesNumber": float(row["SeriesNumber"]),
        # Text, for a series may have several; pandas takes one for a number.
        **{name: row[column] and float(row[column]) for name, column in SPACINGS.items()},
        **{n: patient[n] for n in "PatientName PatientSex EthnicGroup Phantom SpeciesDescription".split()},
        "SpeciesCode": int(patient["SpeciesCode"]),
        "AdmittingDiagnosisDescription": series["AdmittingDiagnosesDescription"],
        **{n: study[n] for n in ("PatientAge", "LongitudinalTemporalEventType", "LongitudinalTemporalOffsetFromEvent")},
        "Site": series["Site"],
        "ReleasedStatus": series["ReleasedStatus"],
        "Authorized": 1,
    }
