"""The demo catalog: its oddities are there on purpose and must stay."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from functools import lru_cache
from io import BytesIO
from typing import Any

import pydicom
import pytest

from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Catalog, ImageStore
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD, demo_catalog, scaled_geometry

COLLECTIONS = {"Lung Phantom CT", "TCGA-DEMO", "HeadNeckMix", "QIN_Breast.v2", "Thorax-Trial (limited)"}
DEPENDS_ON_SCALE = {"ImageCount", "FileSize", "PixelSpacing(mm)-Row", "SliceThickness(mm)"}
IN_HEADER = (
    "SeriesInstanceUID StudyInstanceUID PatientID PatientName PatientBirthDate PatientSex PatientAge EthnicGroup "
    "StudyDate StudyDescription StudyID AdmittingDiagnosesDescription LongitudinalTemporalEventType "
    "LongitudinalTemporalOffsetFromEvent Modality ProtocolName SeriesDate SeriesDescription SeriesNumber "
    "BodyPartExamined Manufacturer ManufacturerModelName SoftwareVersions SOPClassUID"
).split()


@lru_cache(maxsize=4)
def demo(scale: int = 1) -> Catalog:
    return demo_catalog(scale)


def rows(scale: int = 1) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = demo(scale).series.to_pylist()
    return found


def images(scale: int = 1) -> ImageStore:
    store = demo(scale).images
    assert store is not None
    return store


def values(column: str) -> list[Any]:
    return [row[column] for row in rows()]


def test_schema_is_that_of_a_catalog() -> None:
    assert demo().series.schema == CATALOG_SCHEMA


def test_collections_accounts_and_descriptions() -> None:
    catalog = demo()
    assert set(values("Collection")) == COLLECTIONS == set(catalog.descriptions)
    assert len(catalog.restricted) == 1
    assert catalog.restricted < COLLECTIONS
    assert MEMBER == "demo_member"
    assert catalog.accounts[MEMBER].password == MEMBER_PASSWORD == "demo-member-password"
    assert catalog.accounts[MEMBER].collections == catalog.restricted
    for name, facts in catalog.descriptions.items():
        assert facts.name == name
        assert facts.description.startswith("<p>")
        assert facts.uri.startswith("https://doi.org/10.5072/")
        assert " " not in facts.uri


def test_numbers_of_rows() -> None:
    assert len(rows()) == 43
    assert len({(row["Collection"], row["PatientID"]) for row in rows()}) == 12
    assert len(set(values("SeriesInstanceUID"))) == 43
    drawn = {"SEG": 8, "RTSTRUCT": 4, **dict.fromkeys(("RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG"), 1)}
    assert Counter(values("Modality")) == {"CT": 12, "MR": 10, "PT": 3, **drawn}
    size = sum(values("FileSize"))
    assert 5_000_000 < size < 15_000_000


def test_counts_and_sizes_are_those_of_the_files() -> None:
    for row in rows():
        instances = images().instances(row["SeriesInstanceUID"])
        assert row["ImageCount"] == len(instances) > 0
        assert row["FileSize"] == sum(instance.size for instance in instances)
        assert {instance.sop_class_uid for instance in instances} == {row["SOPClassUID"]}


def test_every_instance_has_its_own_uid() -> None:
    uids = [i.sop_instance_uid for uid in values("SeriesInstanceUID") for i in images().instances(uid)]
    assert len(uids) == len(set(uids)) == sum(values("ImageCount"))


def _as_text(value: object) -> str:
    """A fact as a header shows it: trailing blanks are padding there (DICOM part 5, 6.2)."""
    return value.strftime("%Y%m%d") if isinstance(value, dt.date) else str(value).rstrip(" ")


@pytest.mark.slow
def test_headers_repeat_the_facts() -> None:
    for row in rows():
        uid = row["SeriesInstanceUID"]
        for instance in images().instances(uid):
            content = images().read(uid, instance.sop_instance_uid)
            ds = pydicom.dcmread(BytesIO(content), stop_before_pixels=True)
            for keyword in IN_HEADER:
                value = ds.get(keyword)
                if row[keyword] is None:
                    assert not value, keyword
                else:
                    assert _as_text(value) == _as_text(row[keyword]), keyword
            assert ds.QualityControlSubject == row["Phantom"]
            assert ds.PatientSpeciesCodeSequence[0].CodeValue == row["SpeciesCode"]
            block = ds.private_block(0x0013, "CTP")
            assert (block[0x10].value, block[0x12].value) == (row["Collection"], row["Site"])


def test_spacings_are_those_of_the_headers() -> None:
    for row in rows():
        if row["Modality"] in ("CT", "MR", "PT"):
            uid = row["SeriesInstanceUID"]
            first = images().instances(uid)[0]
            ds = pydicom.dcmread(BytesIO(images().read(uid, first.sop_instance_uid)))
            assert row["PixelSpacing(mm)-Row"] == str(ds.PixelSpacing[0])
            assert row["SliceThickness(mm)"] == str(ds.SliceThickness)


def test_character_set_is_named_only_where_it_is_needed() -> None:
    named: Counter[tuple[bool, bool]] = Counter()
    for row in rows():
        uid = row["SeriesInstanceUID"]
        first = images().instances(uid)[0]
        ds = pydicom.dcmread(BytesIO(images().read(uid, first.sop_instance_uid)))
        ascii_only = all(str(value).isascii() for value in row.values())
        named[ascii_only, ds.get("SpecificCharacterSet") == "ISO_IR 192"] += 1
    assert set(named) == {(True, False), (False, True)}


def test_names_that_need_care() -> None:
    assert "Müller^Jörg" in values("PatientName")
    assert "Thorax nativ – Kontrolle" in values("StudyDescription")
    assert any(p != p.upper() for p in values("PatientID"))
    homes = Counter(patient for _, patient in {(r["Collection"], r["PatientID"]) for r in rows()})
    assert sorted(homes.values())[-2:] == [1, 2]
    texts = " ".join(t for t in values("SeriesDescription") + values("StudyDescription") if t)
    assert all(sign in texts for sign in '",/&+')
    assert "\n" not in texts
    assert {"SIEMENS", "Siemens", "GE MEDICAL SYSTEMS", "GE Medical Systems"} <= set(values("Manufacturer"))
    parts = {p for p in values("BodyPartExamined") if p}
    assert {"Chest", "CHEST", "CHEST "} <= parts
    assert all(len(p) <= 16 for p in parts)


@pytest.mark.parametrize(
    "column",
    "BodyPartExamined SeriesDate ManufacturerModelName DateReleased SeriesDescription".split(),
)
def test_exactly_one_series_lacks(column: str) -> None:
    assert values(column).count(None) == 1


def test_other_missing_values() -> None:
    protocols = [row["ProtocolName"] for row in rows() if row["Modality"] in ("CT", "MR", "PT")]
    assert protocols.count(None) == 1
    assert set(values("PatientBirthDate")) == {None}
    assert Counter(values("AnnotationsFlag"))[None] > 25
    assert {True, False} < set(values("AnnotationsFlag"))
    assert set(values("SpeciesCode")) == {"337915000"}
    assert set(values("SpeciesDescription")) == {"Homo sapiens"}


def test_one_series_is_hidden() -> None:
    hidden = [row for row in rows() if row["Visibility"] != 1]
    assert [row["Visibility"] for row in hidden] == [0]
    assert hidden[0]["Collection"] not in demo().restricted


def test_dates_of_release() -> None:
    released = [day for day in values("DateReleased") if day]
    assert sum(day.time() != dt.time() for day in released) == 1
    assert len(set(released)) > 8
    for row in rows():
        if row["DateReleased"]:
            assert row["TimeStamp"] < row["DateReleased"]
            assert row["StudyDate"] < row["TimeStamp"].date()


def test_facts_per_collection_and_study() -> None:
    site, phantom, license = (
        {(row["Collection"], row[column]) for row in rows()} for column in ("Site", "Phantom", "LicenseName")
    )
    assert len(site) == len(phantom) == len(license) == len(COLLECTIONS)
    assert [name for name, flag in phantom if flag == "YES"] == ["Lung Phantom CT"]
    assert len({name for _, name in license}) == 4
    fractional = {row["StudyInstanceUID"] for row in rows() if (row["LongitudinalTemporalOffsetFromEvent"] or 0) % 1}
    assert len(fractional) == 1
    for row in rows():
        assert row["ThirdPartyAnalysis"] == ("NO" if row["Modality"] in ("CT", "MR", "PT") else "YES")


def test_facts_of_a_study_agree_between_its_series() -> None:
    for columns in (
        ("StudyInstanceUID", "StudyDate", "StudyDescription", "PatientID", "PatientAge", "PatientSex"),
        ("StudyInstanceUID", "LongitudinalTemporalOffsetFromEvent", "StudyID"),
    ):
        facts = {tuple(row[column] for column in columns) for row in rows()}
        assert len(facts) == len(set(values("StudyInstanceUID")))


def test_two_catalogs_are_equal() -> None:
    assert demo_catalog().series.equals(demo().series)


def test_rows_are_the_same_at_all_scales() -> None:
    for small, large in zip(rows(1), rows(2), strict=True):
        assert {k: v for k, v in small.items() if k not in DEPENDS_ON_SCALE} == {
            k: v for k, v in large.items() if k not in DEPENDS_ON_SCALE
        }
        assert small["ImageCount"] == large["ImageCount"]
        uid = small["SeriesInstanceUID"]
        assert [i.sop_instance_uid for i in images(1).instances(uid)] == [
            i.sop_instance_uid for i in images(2).instances(uid)
        ]


@pytest.mark.parametrize(
    ("scale", "matrix", "slices"),
    [(1, 128, 18), (2, 256, 18), (3, 384, 18), (4, 512, 18), (5, 512, 18), (8, 512, 36), (100, 512, 450)],
)
def test_scale_rule(scale: int, matrix: int, slices: int) -> None:
    geometry = scaled_geometry(scale, 128, 18, 400, 200, "axial")
    assert (geometry.matrix, geometry.slices) == (matrix, slices)
    assert geometry.matrix * geometry.spacing == pytest.approx(400)
    assert geometry.slices * geometry.thickness == pytest.approx(200)


@pytest.mark.slow
def test_a_large_scale_makes_gigabytes_on_paper_only() -> None:
    catalog = demo_catalog(100)
    assert sum(catalog.series["FileSize"].to_pylist()) > 3_000_000_000


def test_scale_must_be_positive() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        demo_catalog(0)
