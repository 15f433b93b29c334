"""Identity is exact: collections that differ in case, patients and studies that are revised, names that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from nbia_pipeline.archive import BadAnswer
from nbia_pipeline.lake.layout import decode
from nbia_pipeline.mirror.engine import Mirror, MirrorResult
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, PATIENTS, SERIES, STUDIES
from nbia_pipeline_tests.helpers.mirrored_archive import BREAST, MirroredArchive
from nbia_pipeline_tests.helpers.places import relative

UID = "SeriesInstanceUID"


def mirrored(site: MirroredArchive, *collections: str) -> list[MirrorResult]:
    with site.client() as client:
        return [Mirror(client, site.lake).run(name) for name in collections]


def uids(site: MirroredArchive, table: Any, collection: str) -> list[str]:
    return sorted(set(site.lake.read_table(table, collection)[UID].to_pylist()))


def folders(site: MirroredArchive) -> dict[str, list[str]]:
    """Return the directories of series below each directory of a collection."""
    images = site.folder / "images"
    return {c.name: sorted(p.name for p in c.glob("*/*/*") if any(p.glob("*.dcm"))) for c in images.iterdir()}


def expect_agreement(site: MirroredArchive, collection: str) -> None:
    """Make sure that series, receipts, instances and files say the same of patients and studies."""
    lake = site.lake
    listed = {r[UID]: (r["PatientID"], r["StudyInstanceUID"]) for r in lake.read_table(SERIES, collection).to_pylist()}
    receipts = lake.read_table(IMAGE_SERIES, collection).to_pylist()
    assert {r[UID]: (r["PatientID"], r["StudyInstanceUID"]) for r in receipts} == listed
    assert {r["Status"] for r in receipts} == {"complete"}
    paths = {r["Path"] for r in lake.read_table(INSTANCES, collection).to_pylist()}
    assert paths == {relative(p, site.folder) for p in (site.folder / "images").rglob("*.dcm")}
    parts = [p.split("/") for p in paths]
    assert {(uid, (decode(patient), study)) for _, _, patient, study, uid, _ in parts} == set(listed.items())


@pytest.mark.parametrize("other", ["qin_breast.V2", "QIN_BREAST.v2", "Qin_Breast.v2"])
@pytest.mark.parametrize("api", ["v2", "v4"])
def test_collections_that_differ_in_case_keep_their_series_apart(site: MirroredArchive, other: str, api: str) -> None:
    site.api = api
    mine = uids_listed(site, BREAST)
    site.control.add_collection(other)
    added = [site.control.add_series(other, patient=patient, slices=1) for patient in ("P-1", "p-1")]
    mirrored(site, BREAST, other)
    for table in (SERIES, IMAGE_SERIES, INSTANCES):
        assert uids(site, table, BREAST) == mine
        assert uids(site, table, other) == sorted(added)
    for table, column in ((PATIENTS, "PatientID"), (STUDIES, "StudyInstanceUID")):
        rows = [site.lake.read_table(table, name)[column].to_pylist() for name in (BREAST, other)]
        assert not set(rows[0]) & set(rows[1])
        assert len(rows[1]) == 2
    assert folders(site) == {BREAST: mine, other: sorted(added)}


def uids_listed(site: MirroredArchive, collection: str) -> list[str]:
    return sorted(r[UID] for r in site.control.series(collection) if r["Visibility"] == 1)


def test_a_collection_that_only_other_spellings_have_is_no_collection(site: MirroredArchive) -> None:
    with pytest.raises(BadAnswer, match=r"asked for collection 'qin_breast.v2', the archive sent rows of \['QIN_Bre"):
        mirrored(site, BREAST.lower())
    assert not (site.folder / "tables").exists()


@pytest.mark.parametrize(
    "revised",
    [
        {"PatientID": "R-1", "PatientName": "R-1"},
        {"StudyInstanceUID": "1.2.3.4"},
        {"PatientID": "R 1", "StudyInstanceUID": "1.2.3.4"},
        {"PatientID": "qin-revised"},
    ],
    ids=lambda revised: "+".join(revised),
)
def test_a_revised_patient_or_study_moves_files_and_receipt(site: MirroredArchive, revised: dict[str, Any]) -> None:
    mirrored(site, BREAST)
    uid = uids_listed(site, BREAST)[0]
    site.control.edit(uid, **revised)
    (result,) = mirrored(site, BREAST)
    assert (result.fetched, result.failed) == (1, {})
    expect_agreement(site, BREAST)
    assert mirrored(site, BREAST)[0].fetched == 0
    assert not list((site.folder / "images").rglob("*.old"))


@pytest.mark.parametrize(
    ("patient", "why"),
    [
        ("\u60a3" * 64, "percent-encoded it has 576 bytes"),
        ("x" * 300, "percent-encoded it has 300 bytes"),
        ("." * 100, "percent-encoded it has 300 bytes"),
        ("", "an empty name"),
    ],
    ids=["CJK", "long", "dots", "empty"],
)
def test_a_series_whose_folder_cannot_be_is_quarantined_alone(site: MirroredArchive, patient: str, why: str) -> None:
    uid, *others = uids_listed(site, BREAST)
    site.control.edit(uid, PatientID=patient)
    (result,) = mirrored(site, BREAST)
    assert result.fetched == len(others)
    assert list(result.failed) == [uid]
    assert result.failed[uid].startswith("quarantined: the series cannot be stored: ")
    assert why in result.failed[uid]
    assert folders(site) == {BREAST: others}
    site.control.edit(uid, PatientID="P")
    assert mirrored(site, BREAST)[0].fetched == 1
    expect_agreement(site, BREAST)
