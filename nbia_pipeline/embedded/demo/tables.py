"""The contents of the demo catalog: the specifications of its collections, patients, studies and series.

The tables state what is special; everything else follows from the modality, the collection and
:data:`DEFAULTS`. The addresses of the licenses are real, so that links can be followed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from nbia_pipeline.embedded.catalog import holdings

RESTRICTED = "Thorax-Trial (limited)"
"""The collection that a guest does not see."""

_BY3 = ("Creative Commons Attribution 3.0 Unported License", "https://creativecommons.org/licenses/by/3.0/")
BY4 = ("Creative Commons Attribution 4.0 International License", "https://creativecommons.org/licenses/by/4.0/")
BYNC4 = (
    "Creative Commons Attribution-NonCommercial 4.0 International License",
    "https://creativecommons.org/licenses/by-nc/4.0/",
)
_LIMITED = ("TCIA Restricted License", "https://www.cancerimagingarchive.net/data-usage-policies-and-restrictions/")


Place: TypeAlias = tuple[str, str, str, int]
"""Collection, PatientID, StudyDate and number of a series."""


@dataclass(frozen=True)
class SeriesSpec:
    """What is special about a series.

    Attributes:
        modality: Modality (0008,0060).
        description: SeriesDescription (0008,103E), or None.
        contrasts: contrast of each acquisition; none for what describes other series.
        slices: number of slices at scale 1.
        matrix: rows and columns at scale 1.
        plane: key of :data:`nbia_pipeline.embedded.phantoms.anatomy.PLANES`.
        anatomy: key of :data:`nbia_pipeline.embedded.phantoms.anatomy.ANATOMIES`; None: the collection's.
        numbered: False if AcquisitionNumber (0020,0012) is missing.
        columns: values that override the derived ones, by column name.
        annotations: annotation files, text by name.
        sources: what it describes or refers to, images first: series of its study by number, others by
            collection, PatientID, StudyDate and number.
        flaw: what is wrong with its references, see :class:`nbia_pipeline.embedded.phantoms.dicom_files.SeriesPlan`.
    """

    modality: str
    description: str | None
    contrasts: tuple[str, ...] = ()
    slices: int = 14
    matrix: int = 128
    plane: str = "axial"
    anatomy: str | None = None
    numbered: bool = True
    columns: dict[str, Any] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    sources: tuple[int | Place, ...] = (1,)
    flaw: str | None = None


@dataclass(frozen=True)
class StudySpec:
    """A visit of a patient.

    Attributes:
        patient_id: PatientID (0010,0020); the body follows from it.
        day: StudyDate (0008,0020), ISO 8601.
        description: StudyDescription (0008,1030).
        released: day of the release, ISO 8601.
        series: its series.
        growth: factor of the lesion's radii at that time.
        columns: values that override the derived ones of all its series, by column name.
    """

    patient_id: str
    day: str
    description: str
    released: str
    series: tuple[SeriesSpec, ...]
    growth: float
    columns: dict[str, Any]


@dataclass(frozen=True)
class CollectionSpec:
    """A collection.

    Attributes:
        name: exact spelling.
        title: the text of its description.
        anatomy: key of :data:`nbia_pipeline.embedded.phantoms.anatomy.ANATOMIES`.
        license: LicenseName and LicenseURI.
        studies: the visits of its patients.
        columns: values that override the derived ones of all series, by column name.
    """

    name: str
    title: str
    anatomy: str
    license: tuple[str, str]
    studies: tuple[StudySpec, ...]
    columns: dict[str, Any]


def _patient(patient_id: str, *studies: StudySpec, **columns: Any) -> Iterator[StudySpec]:
    for study in studies:
        yield replace(study, patient_id=patient_id, columns={**columns, **study.columns})


def _study(
    day: str, description: str, released: str, *series: SeriesSpec, growth: float = 1.0, **columns: Any
) -> StudySpec:
    return StudySpec("", day, description, released, series, growth, columns)


def _ct(
    description: str, contrast: str = "ct", slices: int = 18, anatomy: str | None = None, **columns: Any
) -> SeriesSpec:
    return SeriesSpec("CT", description, (contrast,), slices, anatomy=anatomy, columns=columns)


def _mr(
    description: str | None, *contrasts: str, plane: str = "axial", numbered: bool = True, **columns: Any
) -> SeriesSpec:
    return SeriesSpec("MR", description, contrasts, plane=plane, numbered=numbered, columns=columns)


def _pt(description: str, **columns: Any) -> SeriesSpec:
    return SeriesSpec("PT", description, ("pet",), 18, 64, numbered=False, columns=columns)


def _drawn(
    modality: str, description: str, *sources: int | Place, flaw: str | None = None, **columns: Any
) -> SeriesSpec:
    columns = {"ThirdPartyAnalysis": "YES", **columns}
    return SeriesSpec(modality, description, columns=columns, sources=sources or (1,), flaw=flaw)


_READINGS = {
    "reading-1.xml": (
        '<?xml version="1.0" encoding="UTF-8"?>\n<reading reader="1">\n'
        '  <nodule id="1" malignancy="4" diameter="18.4" unit="mm"/>\n</reading>\n'
    ),
    "reading-2.xml": (
        '<?xml version="1.0" encoding="UTF-8"?>\n<reading reader="2">\n'
        '  <nodule id="1" malignancy="3" diameter="17.9" unit="mm"/>\n</reading>\n'
    ),
}
_DOSE_GOALS = {"dose goals (final).csv": "structure,goal,unit\nGTV-1,70,Gy\nSpinal cord,45,Gy\nParotid – left,26,Gy\n"}

_PLANNING_CT = ("HeadNeckMix", "HNM-001", "2011-04-18", 1)
_CHEST_CT = ("TCGA-DEMO", "TCGA-DM-A002", "2005-07-04", 1)

COLLECTIONS = (
    CollectionSpec(
        "Lung Phantom CT",
        "Repeated CT of a thorax phantom with a synthetic nodule",
        "torso",
        _BY3,
        (
            *_patient(
                "LPC-001",
                _study(
                    *("2008-03-14", "QA baseline", "2012-06-01"),
                    _ct("Thorax 120kVp/100mAs, B40f", BodyPartExamined="Chest"),
                    _ct("Inserts, 8 materials", slices=8, anatomy="cylinder", BodyPartExamined="PHANTOM"),
                ),
                _study("2008-09-02", "QA repeat", "2012-06-01", _ct('Thorax "repeat 2"'), growth=1.2),
            ),
            *_patient("lpc-002a", _study("2009-01-20", "QA baseline", "2013-02-11", _ct("Thorax", ProtocolName=None))),
        ),
        {"Site": "Metrology Lab", "Phantom": "YES", "PatientSex": None, "EthnicGroup": None, "PatientAge": None},
    ),
    CollectionSpec(
        "TCGA-DEMO",
        "Chest CT and PET of synthetic patients with growing and shrinking lesions",
        "torso",
        BY4,
        (
            *_patient(
                "TCGA-DM-A001",
                _study(
                    *("2004-05-11", 'CT CHEST "ROUTINE", W/CONTRAST', "2015-10-05"),
                    replace(_ct("AXIAL, 5.0/B31f", "ct-contrast"), annotations=_READINGS),
                    _drawn("SEG", "Lesion segmentation (reader 1)", AnnotationsFlag=True),
                    LongitudinalTemporalOffsetFromEvent=0.0,
                ),
                _study(
                    *("2004-11-20", "PET/CT FOLLOW-UP", "2016-03-21"),
                    _ct("CT ATTENUATION CORRECTION", BodyPartExamined="CHEST "),
                    _pt("PET AC, 3D"),
                    _drawn("SEG", "Lesion segmentation (reader 1)"),
                    growth=1.35,
                    LongitudinalTemporalOffsetFromEvent=193.5,
                ),
                PatientSex="F",
                PatientAge="061Y",
            ),
            *_patient(
                "TCGA-DM-A002",
                _study(
                    *("2005-07-04", "CT CHEST", "2016-03-21"),
                    _ct("AXIAL 3mm", DateReleased=dt.datetime.fromisoformat("2016-03-21T15:42:07")),
                    _pt("PET AC, 3D", Manufacturer="Siemens", AnnotationsFlag=False),
                ),
                EthnicGroup=None,
            ),
            *_patient(
                "TCGA-DM-A003",
                _study(
                    *("2006-02-28", "Thorax nativ – Kontrolle", "2019-08-12"),
                    _ct("Thorax nativ 5,0 mm"),
                    _mr("t1 koronar über alles", "t1", plane="coronal"),
                ),
                PatientName="Müller^Jörg",
                PatientAge="048Y",
            ),
        ),
        {
            "Site": "Demo University",
            "Manufacturer": "SIEMENS",
            "AdmittingDiagnosesDescription": "Lung cancer, NOS",
            "LongitudinalTemporalEventType": "DIAGNOSIS",
        },
    ),
    CollectionSpec(
        "HeadNeckMix",
        "Head scans with planning contours, and every kind of object that refers to images",
        "head",
        BYNC4,
        (
            *_patient(
                "HNM-001",
                _study(
                    *("2011-04-18", "RT Planning", "2020-01-15"),
                    replace(
                        _ct("Planning CT, mask", "ct-contrast", BodyPartExamined="HeadNeck"), annotations=_DOSE_GOALS
                    ),
                    _drawn("RTSTRUCT", "GTV & organs/1", Manufacturer="ADAC"),
                    _pt("FDG PET"),
                    _drawn("RTPLAN", "Plan 70 Gy", 1, 2),
                    _drawn("RTDOSE", "Dose of the plan", 1, 4),
                    _drawn("SEG", "Lesion, from CT and PET", 1, 3),
                    _drawn("SR", "Volume of the lesion", 1, 6),
                    _drawn("PR", "Lesion marked on CT"),
                    _drawn("KO", "For the tumor board", 1, 3),
                ),
                _study(
                    *("2011-10-03", "MR follow-up", "2021-11-30"),
                    _mr("t1_se_tra", "t1"),
                    _mr("t2_tse_tra", "t2", DateReleased=None),
                    _mr("t2_flair_sag", "flair", plane="sagittal", numbered=False, SeriesDate=None),
                    _drawn("REG", "t1 on the planning CT", _PLANNING_CT, 1),
                    _drawn("SEG", "Lesion, from the planning CT", _PLANNING_CT),
                    _drawn("SEG", "Lesion, t1 named as t2", 1, 2, flaw="wrong series"),
                    growth=0.6,
                ),
            ),
            *_patient(
                "HNM-002",
                _study(
                    *("2012-05-07", "MR Head", "2020-01-15"),
                    _mr(None, "t1", BodyPartExamined=None),
                    _drawn("RTSTRUCT", "Contours without images", flaw="no references"),
                ),
                PatientSex="F",
            ),
            *_patient(
                "TCGA-DM-A002",
                _study(
                    *("2007-01-09", "RT Planning", "2021-11-30"),
                    _ct("Planning CT"),
                    _drawn("RTSTRUCT", "Contours (final, v2)"),
                    _drawn("SEG", "Lesion, from images nobody has", flaw="unknown images"),
                    _drawn("SEG", "Lesion, from the chest CT", _CHEST_CT),
                ),
            ),
        ),
        {"Site": "Clinique du Nord", "Manufacturer": "Philips"},
    ),
    CollectionSpec(
        "QIN_Breast.v2",
        "Dynamic contrast-enhanced MR of the breast",
        "breast",
        _BY3,
        (
            *_patient(
                "QIN-BR-01",
                _study(
                    *("2013-03-05", "BREAST^BILATERAL", "2018-04-09"),
                    _mr("T2 TSE", "t2"),
                    _mr("DCE, 2 phases", "dce-before", "dce-after"),
                    _drawn("SEG", "Lesion, from T2"),
                ),
                _study(
                    *("2013-06-11", "BREAST^BILATERAL", "2022-02-14"),
                    _mr("DCE, 2 phases", "dce-before", "dce-after", Manufacturer="GE Medical Systems"),
                    growth=0.7,
                ),
            ),
            *_patient(
                "QIN-BR-02",
                _study(
                    *("2013-09-24", "BREAST^UNILATERAL", "2018-04-09"),
                    _mr("T2 TSE", "t2", ManufacturerModelName=None),
                    _mr("T1 FL3D", "t1", Visibility=0),
                ),
            ),
        ),
        {"Site": "QIN Site 3", "Manufacturer": "GE MEDICAL SYSTEMS", "PatientSex": "F", "PatientAge": "052Y"},
    ),
    CollectionSpec(
        RESTRICTED,
        "A trial whose images are for its members only",
        "torso",
        _LIMITED,
        (
            *_patient(
                "TT-001",
                _study(
                    *("2017-02-06", "Baseline", "2023-08-07"),
                    _ct("Chest 1.25mm", "ct-contrast"),
                    _drawn("RTSTRUCT", "Heart + lungs"),
                ),
            ),
            *_patient("TT-002", _study("2017-05-15", "Baseline", "2023-08-07", _ct("Chest 1.25mm"))),
        ),
        {"Site": "Trial Centre", "Manufacturer": "CANON"},
    ),
)

# Values by anatomy or modality.
BODY_PARTS = {"torso": "CHEST", "head": "HEAD", "breast": "BREAST"}
PROTOCOLS = {"CT": "Routine 120 kVp", "MR": "Standard/3T", "PT": "WB FDG"}
MODELS = {
    **{"CT": "Phantom CT 64", "MR": "Phantom MR 3T", "PT": "Phantom PET", "SEG": "Reader"},
    **dict.fromkeys(("RTSTRUCT", "RTPLAN", "RTDOSE"), "Planner"),
    **dict.fromkeys(("SR", "PR", "KO", "REG"), "Workstation"),
}
DEFAULTS: dict[str, Any] = {
    **holdings.DEFAULTS,
    "Site": None,
    "EthnicGroup": "White",
    "PatientSex": "M",
    "PatientAge": "057Y",
    "PatientBirthDate": None,
    "AdmittingDiagnosesDescription": None,
    "LongitudinalTemporalEventType": None,
    "LongitudinalTemporalOffsetFromEvent": None,
    "Manufacturer": "SIEMENS",
    "SoftwareVersions": "1.0.0",
    "AnnotationsFlag": None,
    "ReleasedStatus": "Yes",
    "ThirdPartyAnalysis": "NO",
    "Visibility": 1,
}
"""Values of a series that no specification overrides."""
