"""What the files of the demo refer to: read with pydicom, and compared with what is written down for all tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom.dataset import Dataset

from nbia_pipeline.embedded.demo.catalog import demo_plans
from nbia_pipeline.embedded.phantoms.annotations import segmentation
from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan
from nbia_pipeline.embedded.phantoms.sampling import lesion_slices
from nbia_pipeline.embedded.phantoms.store import PhantomStore
from nbia_pipeline_tests.helpers import references_of_demo as expected
from nbia_pipeline_tests.helpers.references_of_demo import REFERENCES, Key, Target, uid

PLANS = demo_plans()
STORE = PhantomStore(PLANS)
DRAWN = [plan for plan in PLANS if plan.source and plan.row["Collection"] != "Thorax-Trial (limited)"]
HOME = {instance.sop_instance_uid: plan.uid for plan in PLANS for instance in STORE.instances(plan.uid)}
COUNTS = Counter(HOME.values())

ROLES = {
    "ReferencedSeriesSequence.ReferencedInstanceSequence": "described",
    "StudiesContainingOtherReferencedInstancesSequence.ReferencedSeriesSequence.ReferencedInstanceSequence": (
        "described"
    ),
    "PerFrameFunctionalGroupsSequence.DerivationImageSequence.SourceImageSequence": "frame_source",
    "ReferencedFrameOfReferenceSequence.RTReferencedStudySequence.RTReferencedSeriesSequence.ContourImageSequence": (
        "described"
    ),
    "ROIContourSequence.ContourSequence.ContourImageSequence": "contour",
    "ReferencedStructureSetSequence": "structure_set",
    "ReferencedRTPlanSequence": "plan",
    "CurrentRequestedProcedureEvidenceSequence.ReferencedSeriesSequence.ReferencedSOPSequence": "evidence",
    "ContentSequence.ReferencedSOPSequence": "content",
    "ContentSequence.ContentSequence.ContentSequence.ReferencedSOPSequence": "content",
    "ReferencedSeriesSequence.ReferencedImageSequence": "presented",
    "GraphicAnnotationSequence.ReferencedImageSequence": "annotated",
    "RegistrationSequence.ReferencedImageSequence": "registered",
}
STUDY = "ReferencedFrameOfReferenceSequence.RTReferencedStudySequence"
"""There (0008,1155) is a study."""

CHOICES = {"segmentation-multi-frame-functional-groups", "sr-document-content"}
"""Modules of which a file has some branches only; the tables of the standard mix them."""


@lru_cache(maxsize=64)
def content(series_uid: str) -> bytes:
    (instance,) = STORE.instances(series_uid)
    return STORE.read(series_uid, instance.sop_instance_uid)


def read(series: Key) -> Dataset:
    return pydicom.dcmread(BytesIO(content(uid(series))))


def walk(
    ds: Dataset, path: tuple[str, ...] = (), series: str | None = None
) -> Iterator[tuple[str, Dataset, str | None]]:
    """Yield every item that refers to an instance, with its path and the series that the nearest item states."""
    series = ds.SeriesInstanceUID if path and "SeriesInstanceUID" in ds else series
    if "ReferencedSOPInstanceUID" in ds:
        yield ".".join(path), ds, series
    for element in ds:
        if element.VR == "SQ":
            for one in element.value:
                yield from walk(one, (*path, element.keyword), series)


def found(plan: SeriesPlan) -> set[Target]:
    """What a file refers to, worked out by what each series of the demo holds."""
    named: dict[tuple[str, str | None, str | None], set[str]] = {}
    for path, one, stated in walk(pydicom.dcmread(BytesIO(content(plan.uid)))):
        if path != STUDY:
            home = HOME.get(one.ReferencedSOPInstanceUID)
            named.setdefault((ROLES[path], home, stated), set()).add(one.ReferencedSOPInstanceUID)
    keys = {uid(key): key for key in (p_key(p) for p in PLANS)}
    targets = set()
    by_any = {one: str(stated) for (_, _, stated), instances in named.items() if stated for one in instances}
    for (role, home, stated), instances in named.items():
        if home is None:
            (stated,) = {by_any[one] for one in instances}
            targets.add(Target(role, stated, len(instances), None, "unknown", missing=len(instances)))
        else:
            moved = stated not in (None, home)
            wrong = keys[str(stated)] if moved else None
            targets.add(Target(role, keys[home], len(instances), COUNTS[home], "moved" if moved else "held", wrong))
    return targets


def p_key(plan: SeriesPlan) -> Key:
    row = plan.row
    return str(row["Collection"]), str(row["PatientID"]), str(row["StudyDate"]), int(str(row["SeriesNumber"]))


def test_every_file_refers_to_what_is_written_down() -> None:
    assert {p_key(plan) for plan in DRAWN} == set(REFERENCES) == set(expected.IMAGES_OF)
    for plan in DRAWN:
        stated = {target for target in REFERENCES[p_key(plan)] if target.role != "frame_of_reference"}
        assert found(plan) == stated, p_key(plan)


def test_other_studies_are_apart_from_the_own_one() -> None:
    study_of = {plan.uid: plan.row["StudyInstanceUID"] for plan in PLANS}
    others = set()
    for plan in DRAWN:
        for path, one, _ in walk(pydicom.dcmread(BytesIO(content(plan.uid)))):
            home = HOME.get(one.ReferencedSOPInstanceUID)
            if path.endswith("ReferencedInstanceSequence") and home:
                elsewhere = study_of[home] != plan.row["StudyInstanceUID"]
                assert path.startswith("StudiesContainingOtherReferencedInstancesSequence") == elsewhere
                others |= {p_key(plan)} if elsewhere else set()
    assert others == {expected.REGISTRATION, expected.SEG_OF_OTHER_STUDY, expected.SEG_OF_OTHER_COLLECTION}


def test_closures_are_those_of_the_references() -> None:
    for key, closure in expected.IMAGES_OF.items():
        reached: set[Key] = set()
        todo = [key]
        while todo:
            for target in REFERENCES.get(todo.pop(), ()):
                to = target.series
                by_frame = target.role in ("frame_source", "frame_of_reference")
                if isinstance(to, tuple) and to not in reached and not by_frame:
                    reached.add(to)
                    todo.append(to)
        assert reached == closure, key


def test_what_states_no_images_shares_their_frame_of_reference() -> None:
    (target,) = REFERENCES[expected.STRUCTURES_WITHOUT_REFERENCES]
    assert isinstance(target.series, tuple)
    images = next(p for p in PLANS if p.uid == uid(target.series))
    ds = read(expected.STRUCTURES_WITHOUT_REFERENCES)
    assert ds.FrameOfReferenceUID == images.frame_of_reference
    assert ds.StudyInstanceUID == images.row["StudyInstanceUID"]
    assert b"\x08\x00\x55\x11" not in content(uid(expected.STRUCTURES_WITHOUT_REFERENCES))


@pytest.mark.parametrize("plan", DRAWN, ids=lambda plan: "-".join(map(str, p_key(plan))))
def test_mandatory_modules_are_complete(plan: SeriesPlan) -> None:
    """By the tables of the standard (DICOM part 3) that highdicom has."""
    ds = pydicom.dcmread(BytesIO(content(plan.uid)))
    attributes = get_module_attribute_map()
    for module in get_iod_module_map()[get_sop_class_iod_map()[ds.SOPClassUID]]:
        if module["usage"] != "M" or module["key"] in CHOICES:
            continue
        for attribute in attributes[module["key"]]:
            items = [ds]
            for keyword in attribute["path"]:
                items = [one for item in items if keyword in item for one in item[keyword].value]
            if attribute["type"] in ("1", "2"):
                assert all(attribute["keyword"] in item for item in items), attribute
            if attribute["type"] in ("1", "1C"):
                assert not any(item[attribute["keyword"]].is_empty for item in items if attribute["keyword"] in item)


def test_documents_are_read_by_others() -> None:
    report = highdicom.sr.srread(BytesIO(content(uid(expected.REPORT)))).content
    assert isinstance(report, highdicom.sr.MeasurementReport)
    (volumetric,), (planar,) = (
        report.get_volumetric_roi_measurement_groups(),
        report.get_planar_roi_measurement_groups(),
    )
    whole, frames = volumetric.referenced_segment, planar.referenced_segmentation_frame
    assert whole is not None and whole.source_series_for_segmentation is not None and frames is not None
    assert str(whole.source_series_for_segmentation.value) == uid(expected.CT)
    ((measured,), (segment,)) = volumetric.get_measurements(), frames[:1]
    assert 4_000 < measured.value < 40_000 and measured.unit.value == "mm3"
    assert segment.referenced_frame_numbers == [2]
    keys = highdicom.ko.KeyObjectSelectionDocument.from_dataset(read(expected.KEYS))
    shown = [one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for one in keys.content.get_references()]
    assert [keys.resolve_reference(one)[1] for one in shown] == [uid(expected.CT), uid(expected.PET)]
    segments = highdicom.seg.segread(BytesIO(content(uid(expected.SEG_OF_TWO))))
    assert {series for _, series, _ in segments.get_source_image_uids()} == {uid(expected.CT), uid(expected.PET)}


def test_the_dose_is_as_prescribed_in_the_lesion_and_less_around_it() -> None:
    ds = read(expected.DOSE)
    gray = ds.pixel_array * float(ds.DoseGridScaling)
    assert gray.shape == (ds.NumberOfFrames, ds.Rows, ds.Columns) == (8, 24, 24)
    assert ds.FrameIncrementPointer == 0x3004000C
    assert len(ds.GridFrameOffsetVector) == 8 and set(np.diff(ds.GridFrameOffsetVector)) == {18.75}
    plan = next(p for p in PLANS if p.uid == uid(expected.CT))
    x, y, z = plan.subject.lesion.center
    column, row = (round((at - ds.ImagePositionPatient[i]) / ds.PixelSpacing[0]) for i, at in enumerate((x, y)))
    frame = round((z - ds.ImagePositionPatient[2]) / 18.75)
    assert gray[frame, row, column] == gray.max() == 70
    assert gray[0, 0, 0] < 5
    ct = pydicom.dcmread(BytesIO(STORE.read(plan.uid, plan.sop_instance(0))))
    assert float(ds.ImagePositionPatient[0]) - ds.PixelSpacing[0] / 2 == pytest.approx(
        float(ct.ImagePositionPatient[0]) - ct.PixelSpacing[0] / 2
    ), "both grids have one corner"


def test_images_of_one_extent_meet_at_every_scale() -> None:
    plans = {p_key(p): p for p in demo_plans(100)}
    images, other = plans[expected.CT], plans[expected.PET]
    assert images.geometry.slices > other.geometry.slices
    ds = pydicom.dcmread(BytesIO(segmentation(plans[expected.SEG_OF_TWO])))
    first, second = (
        [one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence]
        for series in ds.ReferencedSeriesSequence
    )
    assert first == [images.sop_instance(i) for i in lesion_slices(images.subject, images.geometry)]
    assert len(set(second)) == len(second) < len(first)
