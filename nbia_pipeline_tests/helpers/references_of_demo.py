"""What the series of the demo refer to: the expectation of all tests of references, written down by hand.

A series is named by collection, PatientID, StudyDate and SeriesNumber; :func:`uid` has its UID.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from nbia_pipeline.embedded.phantoms.dicom_files import uid_of

Key: TypeAlias = tuple[str, str, str, int]


class Target(NamedTuple):
    """A series that another one refers to.

    Attributes:
        role: column Role.
        series: the series that has the instances, or that some reference to them states.
        instances: different instances that are referred to; 0 for a frame of reference.
        of: instances of that series; None if it is not known.
        resolution: column Resolution in a lake that has the files of all public collections.
        stated: the series that the file states where that is another one.
        missing: instances that are not in such a lake.
    """

    role: str
    series: Key | str
    instances: int
    of: int | None
    resolution: str = "held"
    stated: Key | None = None
    missing: int = 0


def uid(series: Key) -> str:
    """Return SeriesInstanceUID of a series of the demo."""
    return uid_of(*series)


def _study(collection: str, patient: str, day: str, count: int) -> list[Key]:
    return [(collection, patient, day, number) for number in range(1, count + 1)]


CT, STRUCTURES, PET, PLAN, DOSE, SEG_OF_TWO, REPORT, PRESENTATION, KEYS = _study(
    "HeadNeckMix", "HNM-001", "2011-04-18", 9
)
T1, T2, _FLAIR, REGISTRATION, SEG_OF_OTHER_STUDY, SEG_OF_WRONG_SERIES = _study(
    "HeadNeckMix", "HNM-001", "2011-10-03", 6
)
HEAD_MR, STRUCTURES_WITHOUT_REFERENCES = _study("HeadNeckMix", "HNM-002", "2012-05-07", 2)
SECOND_CT, SECOND_STRUCTURES, ORPHAN, SEG_OF_OTHER_COLLECTION = _study("HeadNeckMix", "TCGA-DM-A002", "2007-01-09", 4)
CHEST_CT = ("TCGA-DEMO", "TCGA-DM-A002", "2005-07-04", 1)
FIRST_CT, FIRST_SEG = _study("TCGA-DEMO", "TCGA-DM-A001", "2004-05-11", 2)
LATER_CT, _, LATER_SEG = _study("TCGA-DEMO", "TCGA-DM-A001", "2004-11-20", 3)
BREAST_MR, _, BREAST_SEG = _study("QIN_Breast.v2", "QIN-BR-01", "2013-03-05", 3)

UNKNOWN_SERIES = uid_of(uid(ORPHAN), "unknown")
"""SeriesInstanceUID of the images that ORPHAN is drawn on, which are in no archive."""


def _segmentation(series: Key, instances: int, of: int) -> tuple[Target, ...]:
    return Target("described", series, instances, of), Target("frame_source", series, instances, of)


def _structures(series: Key) -> tuple[Target, ...]:
    return Target("described", series, 18, 18), Target("contour", series, 18, 18)


REFERENCES: dict[Key, tuple[Target, ...]] = {
    FIRST_SEG: _segmentation(FIRST_CT, 7, 18),
    LATER_SEG: _segmentation(LATER_CT, 9, 18),
    STRUCTURES: _structures(CT),
    PLAN: (Target("structure_set", STRUCTURES, 1, 1),),
    DOSE: (Target("plan", PLAN, 1, 1),),
    SEG_OF_TWO: (*_segmentation(CT, 5, 18), *_segmentation(PET, 5, 18)),
    REPORT: (
        Target("evidence", CT, 5, 18),
        Target("evidence", SEG_OF_TWO, 1, 1),
        Target("content", CT, 5, 18),
        Target("content", SEG_OF_TWO, 1, 1),
    ),
    PRESENTATION: (Target("presented", CT, 5, 18), Target("annotated", CT, 1, 18)),
    KEYS: (
        Target("evidence", CT, 1, 18),
        Target("evidence", PET, 1, 18),
        Target("content", CT, 1, 18),
        Target("content", PET, 1, 18),
    ),
    REGISTRATION: (
        Target("described", T1, 14, 14),
        Target("described", CT, 18, 18),
        Target("registered", T1, 14, 14),
        Target("registered", CT, 18, 18),
    ),
    SEG_OF_OTHER_STUDY: _segmentation(CT, 5, 18),
    SEG_OF_WRONG_SERIES: (
        Target("described", T1, 2, 14, "moved", stated=T2),
        Target("frame_source", T1, 2, 14),
    ),
    STRUCTURES_WITHOUT_REFERENCES: (Target("frame_of_reference", HEAD_MR, 0, 14),),
    SECOND_STRUCTURES: _structures(SECOND_CT),
    ORPHAN: (
        Target("described", UNKNOWN_SERIES, 5, None, "unknown", missing=5),
        Target("frame_source", UNKNOWN_SERIES, 5, None, "unknown", missing=5),
    ),
    SEG_OF_OTHER_COLLECTION: _segmentation(CHEST_CT, 6, 18),
    BREAST_SEG: _segmentation(BREAST_MR, 5, 14),
}
"""Every series of the public collections that refers to others. REPORT also names CT as a whole, by a UIDREF."""

IMAGES_OF: dict[Key, frozenset[Key]] = {
    FIRST_SEG: frozenset({FIRST_CT}),
    LATER_SEG: frozenset({LATER_CT}),
    STRUCTURES: frozenset({CT}),
    PLAN: frozenset({STRUCTURES, CT}),
    DOSE: frozenset({PLAN, STRUCTURES, CT}),
    SEG_OF_TWO: frozenset({CT, PET}),
    REPORT: frozenset({SEG_OF_TWO, CT, PET}),
    PRESENTATION: frozenset({CT}),
    KEYS: frozenset({CT, PET}),
    REGISTRATION: frozenset({CT, T1}),
    SEG_OF_OTHER_STUDY: frozenset({CT}),
    SEG_OF_WRONG_SERIES: frozenset({T1}),
    STRUCTURES_WITHOUT_REFERENCES: frozenset(),
    SECOND_STRUCTURES: frozenset({SECOND_CT}),
    ORPHAN: frozenset(),
    SEG_OF_OTHER_COLLECTION: frozenset({CHEST_CT}),
    BREAST_SEG: frozenset({BREAST_MR}),
}
"""The closure of each of them: all that it refers to, directly or not, by stated references.

SEG_OF_WRONG_SERIES leads to the series that has the instances, not to the one that it states.
"""
