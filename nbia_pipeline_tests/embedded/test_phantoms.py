"""The files of the embedded archive, read as any DICOM reader would read them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from nbia_pipeline.embedded.__main__ import _render
from nbia_pipeline.embedded.demo.catalog import demo_catalog, demo_plans
from nbia_pipeline.embedded.phantoms import dicom_files
from nbia_pipeline.embedded.phantoms.anatomy import ANATOMIES, Geometry, body
from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan
from nbia_pipeline.embedded.phantoms.sampling import lesion_mask, lesion_slices, outline, render
from nbia_pipeline.embedded.phantoms.store import PhantomStore

pytestmark = pytest.mark.slow

PLANS = demo_plans()
STORE = PhantomStore(PLANS)
BY_UID = {plan.uid: plan for plan in PLANS}


@lru_cache(maxsize=1)
def all_files() -> dict[str, tuple[SeriesPlan, Dataset]]:
    """Every file of the demo by SOPInstanceUID."""
    return {
        instance.sop_instance_uid: (
            plan,
            pydicom.dcmread(BytesIO(STORE.read(plan.uid, instance.sop_instance_uid))),
        )
        for plan in PLANS
        for instance in STORE.instances(plan.uid)
    }


def files_of(modality: str) -> Iterator[tuple[SeriesPlan, Dataset]]:
    return ((plan, ds) for plan, ds in all_files().values() if plan.modality == modality)


def plans_of(modality: str) -> list[SeriesPlan]:
    return [plan for plan in PLANS if plan.modality == modality]


def rescaled(ds: Dataset) -> Any:
    return ds.pixel_array * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))


@pytest.mark.slow
def test_files_are_part_10_with_constant_implementation() -> None:
    for uid, (plan, ds) in all_files().items():
        assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID == uid
        assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID == plan.sop_class
        assert ds.file_meta.ImplementationClassUID == dicom_files.IMPLEMENTATION_UID
        assert ds.file_meta.ImplementationVersionName == dicom_files.IMPLEMENTATION_VERSION
        assert "InstanceCreationDate" not in ds
        assert len(uid) <= 64


def test_sizes_are_known_before_rendering() -> None:
    for plan in PLANS:
        for instance in STORE.instances(plan.uid):
            assert len(STORE.read(plan.uid, instance.sop_instance_uid)) == instance.size


@pytest.mark.parametrize("scale", [3, 9])
def test_sizes_are_known_at_other_scales(scale: int) -> None:
    for modality in ("CT", "MR", "PT", "SEG", "RTSTRUCT", "RTDOSE", "SR"):
        plan = next(p for p in demo_plans(scale) if p.modality == modality)
        store = PhantomStore([plan])
        instances = store.instances(plan.uid)
        for instance in (instances[0], instances[len(instances) // 2], instances[-1]):
            assert len(store.read(plan.uid, instance.sop_instance_uid)) == instance.size


def test_instances_come_by_number_with_the_facts_of_the_header() -> None:
    for plan in PLANS:
        instances = STORE.instances(plan.uid)
        assert [i.instance_number for i in instances] == list(range(1, len(instances) + 1))
        for instance in instances:
            _, ds = all_files()[instance.sop_instance_uid]
            assert ds.InstanceNumber == instance.instance_number
            assert ds.get("AcquisitionNumber") == instance.acquisition_number
            assert ds.SOPClassUID == instance.sop_class_uid


def test_some_series_has_several_acquisitions_and_some_none() -> None:
    acquisitions = [{i.acquisition_number for i in STORE.instances(plan.uid)} for plan in plans_of("MR")]
    assert {1, 2} in acquisitions
    assert {None} in acquisitions


def test_digests_are_those_of_the_bytes() -> None:
    plan = PLANS[0]
    for instance in STORE.instances(plan.uid):
        content = STORE.read(plan.uid, instance.sop_instance_uid)
        assert STORE.md5(plan.uid, instance.sop_instance_uid) == hashlib.md5(content).hexdigest()


def test_unknown_files() -> None:
    first, second = PLANS[0], PLANS[1]
    assert STORE.instances("1.2.3") == ()
    assert STORE.md5(first.uid, first.sop_instance(0))
    for series, instance in (
        ("1.2.3", first.sop_instance(0)),
        (first.uid, "1.2.3"),
        (second.uid, first.sop_instance(0)),
    ):
        with pytest.raises(KeyError):
            STORE.md5(series, instance)
        with pytest.raises(KeyError):
            PhantomStore(PLANS).read(series, instance)


def test_a_file_of_another_series_is_not_found_even_when_cached() -> None:
    first, second = PLANS[0], PLANS[1]
    STORE.read(first.uid, first.sop_instance(0))
    with pytest.raises(KeyError):
        STORE.read(second.uid, first.sop_instance(0))


def test_the_cache_is_bounded_and_changes_nothing() -> None:
    plan = PLANS[0]
    bound = 100_000
    store = PhantomStore(PLANS, cache_bytes=bound)
    for instance in [*STORE.instances(plan.uid)] * 2:
        expected = STORE.read(plan.uid, instance.sop_instance_uid)
        assert store.read(plan.uid, instance.sop_instance_uid) == expected
        assert sum(map(len, store._files.values())) == store._cached_bytes <= bound


def test_threads_get_the_same_bytes() -> None:
    store = PhantomStore(PLANS, cache_bytes=200_000)
    wanted = [(plan.uid, i.sop_instance_uid) for plan in PLANS[:3] for i in STORE.instances(plan.uid)] * 3
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda key: store.read(*key), wanted))
        digests = list(pool.map(lambda key: store.md5(*key), wanted))
    assert contents == [STORE.read(*key) for key in wanted]
    assert digests == [STORE.md5(*key) for key in wanted]


_DIGEST_OF_ALL = """
import hashlib
from nbia_pipeline.embedded.demo.catalog import demo_plans
from nbia_pipeline.embedded.phantoms.store import PhantomStore
plans, total = demo_plans(), hashlib.sha256()
store = PhantomStore(plans)
for plan in plans:
    for instance in store.instances(plan.uid):
        total.update(store.read(plan.uid, instance.sop_instance_uid))
print(total.hexdigest())
"""


@pytest.mark.slow
def test_two_processes_make_the_same_bytes() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", _DIGEST_OF_ALL],
            env={**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo"))
    }
    assert len(digests) == 1


def test_pixels_are_the_same_on_every_machine() -> None:
    # A constant: it changes only when somebody changes the phantoms on purpose.
    total = hashlib.sha256()
    for _, ds in all_files().values():
        if "PixelData" in ds:
            total.update(ds.PixelData)
    assert total.hexdigest() == "e4fc50ee9aa900c6980187557d12fe8a04c79a10b7ef798f3fe04cc203361869"


# --- images


def test_image_pixels_decode() -> None:
    for modality in ("CT", "MR", "PT"):
        for plan, ds in files_of(modality):
            assert ds.pixel_array.shape == (ds.Rows, ds.Columns) == (plan.geometry.matrix,) * 2
            assert ds.BitsAllocated == 16
            assert ds.HighBit == ds.BitsStored - 1
            assert ds.PixelRepresentation == (modality == "PT")
            assert ds.pixel_array.min() >= 0
            assert ds.pixel_array.max() < 2 ** (15 if modality == "PT" else 12)


def test_ct_is_in_hounsfield_units() -> None:
    for plan, ds in files_of("CT"):
        hounsfield = rescaled(ds)
        assert ds.RescaleType == "HU"
        assert hounsfield.min() >= -1024
        assert -1030 < np.median(hounsfield[:8, :8]) < -970, "air around the patient"
        assert 300 < hounsfield.max() < 1400, "bone"
        if plan.anatomy == "torso":
            middle = hounsfield.shape[0] // 2
            # The mediastinum, in front of the spine.
            assert -20 < np.median(hounsfield[middle + 4 : middle + 10, middle - 3 : middle + 3]) < 240


def test_ct_shows_lungs_and_the_lesion_in_them() -> None:
    plan = plans_of("CT")[0]
    index = max(
        lesion_slices(plan.subject, plan.geometry),
        key=lambda i: lesion_mask(plan.subject, plan.geometry, i).sum(),
    )
    hounsfield = rescaled(all_files()[plan.sop_instance(index)][1])
    mask = lesion_mask(plan.subject, plan.geometry, index)
    assert -50 < np.median(hounsfield[mask]) < 80
    assert ((hounsfield > -900) & (hounsfield < -750)).mean() > 0.08


def test_lesions_grow_and_shrink_over_the_slices_and_grow_over_time() -> None:
    first, later = (p for p in plans_of("CT") if p.row["PatientID"] == "TCGA-DM-A001")
    areas = [int(lesion_mask(first.subject, first.geometry, i).sum()) for i in range(first.geometry.slices)]
    top = areas.index(max(areas))
    assert areas[0] == areas[-1] == 0 < areas[top]
    assert areas[:top] == sorted(areas[:top])
    assert areas[top:] == sorted(areas[top:], reverse=True)
    assert sum(areas) < sum(
        int(lesion_mask(later.subject, later.geometry, i).sum()) for i in range(later.geometry.slices)
    )


def test_pet_lesion_is_hot_and_slopes_differ() -> None:
    for plan in plans_of("PT"):
        files = [all_files()[plan.sop_instance(i)][1] for i in range(plan.count)]
        assert len({ds.RescaleSlope for ds in files}) > 1
        assert {ds.Units for ds in files} == {"BQML"}
        tracer = files[0].RadiopharmaceuticalInformationSequence[0]
        per_suv = float(tracer.RadionuclideTotalDose) / (float(files[0].PatientWeight) * 1000)
        uptake = max(float(rescaled(ds).max()) for ds in files) / per_suv
        assert 6 < uptake < 13


def test_contrast_agent_lights_the_lesion() -> None:
    plan = next(p for p in plans_of("MR") if len(p.contrasts) == 2)
    index = lesion_slices(plan.subject, plan.geometry)[1]
    mask = lesion_mask(plan.subject, plan.geometry, index)
    before, after = (all_files()[plan.sop_instance(index + k * plan.geometry.slices)][1] for k in (0, 1))
    assert np.median(after.pixel_array[mask]) > 2 * np.median(before.pixel_array[mask])
    assert before.ImagePositionPatient == after.ImagePositionPatient
    assert (before.AcquisitionNumber, after.AcquisitionNumber) == (1, 2)


def test_slices_are_stacked_evenly_along_the_normal() -> None:
    for plan in PLANS:
        if plan.source:
            continue
        files = [all_files()[plan.sop_instance(i)][1] for i in range(plan.geometry.slices)]
        rows, columns = np.array(files[0].ImageOrientationPatient).reshape(2, 3)
        normal = np.cross(rows, columns)
        depths = np.array([ds.ImagePositionPatient for ds in files]) @ normal
        assert np.allclose(np.diff(depths), float(files[0].SliceThickness), atol=1e-4)
        assert all(ds.FrameOfReferenceUID == plan.frame_of_reference for ds in files)


def test_planes_show_the_same_body() -> None:
    subject = body("torso", "someone")
    axial = render(subject, Geometry(64, 64, 400, 400), 32, "ct", 1)
    coronal = render(subject, Geometry(64, 64, 400, 400, "coronal"), 32, "ct", 2)
    # The row that both planes share: y = 3.1 mm in the one, z = 3.1 mm in the other (z falls with the rows).
    assert np.abs(axial[32] - coronal[31]).mean() < 40


@pytest.mark.parametrize("anatomy", sorted(ANATOMIES))
def test_every_anatomy_fits_into_its_field_of_view(anatomy: str) -> None:
    kind = ANATOMIES[anatomy]
    geometry = Geometry(64, 9, kind.field_of_view, kind.extent)
    for patient in ("a", "b", "c", "d"):
        for index in range(9):
            image = render(body(anatomy, patient, 1.35), geometry, index, "ct", index)
            edges = np.concatenate([image[0], image[:, 0], image[:, -1]])
            assert edges.max() < -900
        assert lesion_slices(body(anatomy, patient, 0.6), geometry)


def test_outlines_need_axial_slices() -> None:
    subject = body("torso", "someone")
    with pytest.raises(ValueError, match="axial"):
        outline(subject.lesion, Geometry(64, 9, 400, 200, "coronal"), 4)


# --- what is drawn on images


def test_segmentations_decode_to_the_lesion() -> None:
    for plan, ds in files_of("SEG"):
        images = plan.source
        assert images is not None
        slices = lesion_slices(images.subject, images.geometry)
        assert ds.NumberOfFrames == len(slices) >= 2
        decoded = ds.pixel_array.reshape(len(slices), ds.Rows, ds.Columns)
        for frame, index in zip(decoded, slices, strict=True):
            expected = lesion_mask(images.subject, images.geometry, index)
            assert expected.any()
            assert np.array_equal(frame.astype(bool), expected)


def test_segmentations_name_the_image_of_each_frame() -> None:
    for plan, ds in files_of("SEG"):
        if plan.flaw:
            continue
        own, others = (
            ds.get("ReferencedSeriesSequence", []),
            ds.get("StudiesContainingOtherReferencedInstancesSequence"),
        )
        stated = [(ds.StudyInstanceUID, series) for series in own]
        stated += [
            (study.StudyInstanceUID, series) for study in others or [] for series in study.ReferencedSeriesSequence
        ]
        listed = {
            item.ReferencedSOPInstanceUID: (study, series.SeriesInstanceUID)
            for study, series in stated
            for item in series.ReferencedInstanceSequence
        }
        named = set()
        for frame in ds.PerFrameFunctionalGroupsSequence:
            for reference in frame.DerivationImageSequence[0].SourceImageSequence:
                images, image = all_files()[reference.ReferencedSOPInstanceUID]
                named.add(reference.ReferencedSOPInstanceUID)
                assert listed[reference.ReferencedSOPInstanceUID] == (image.StudyInstanceUID, images.uid)
                assert reference.ReferencedSOPClassUID == image.SOPClassUID
                assert image.FrameOfReferenceUID == ds.FrameOfReferenceUID
                position = frame.PlanePositionSequence[0].ImagePositionPatient
                assert position[2] == image.ImagePositionPatient[2]
                # The PET beside the CT has larger pixels, of which the first has another center.
                assert position == image.ImagePositionPatient or images is not plan.source
        assert named == set(listed)


def test_structure_set_references_resolve() -> None:
    for plan, ds in files_of("RTSTRUCT"):
        frame = ds.ReferencedFrameOfReferenceSequence[0]
        if plan.flaw:
            assert frame.FrameOfReferenceUID == plan.frame_of_reference and "RTReferencedStudySequence" not in frame
            assert not any("ContourImageSequence" in c for roi in ds.ROIContourSequence for c in roi.ContourSequence)
            continue
        study = frame.RTReferencedStudySequence[0]
        series = study.RTReferencedSeriesSequence[0]
        images = BY_UID[series.SeriesInstanceUID]
        assert frame.FrameOfReferenceUID == images.frame_of_reference == plan.frame_of_reference
        assert study.ReferencedSOPInstanceUID == ds.StudyInstanceUID
        listed = [item.ReferencedSOPInstanceUID for item in series.ContourImageSequence]
        assert listed == [i.sop_instance_uid for i in STORE.instances(images.uid)]
        numbers = [roi.ROINumber for roi in ds.StructureSetROISequence]
        assert numbers == [c.ReferencedROINumber for c in ds.ROIContourSequence]
        assert numbers == [o.ReferencedROINumber for o in ds.RTROIObservationsSequence]
        assert {r.ReferencedFrameOfReferenceUID for r in ds.StructureSetROISequence} == {frame.FrameOfReferenceUID}


def test_contours_are_closed_polygons_on_their_slice_around_the_lesion() -> None:
    for plan, ds in files_of("RTSTRUCT"):
        assert plan.source is not None
        assert ds.StructureSetROISequence[0].ROIName == "GTV-1"
        for roi in ds.ROIContourSequence:
            assert len(roi.ContourSequence) >= 1
            for contour in roi.ContourSequence:
                points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
                assert contour.ContourGeometricType == "CLOSED_PLANAR"
                assert len(points) == contour.NumberOfContourPoints
                for reference in contour.get("ContourImageSequence", []):
                    _, image = all_files()[reference.ReferencedSOPInstanceUID]
                    assert np.allclose(points[:, 2], float(image.ImagePositionPatient[2]), atol=0.001)
        first = ds.ROIContourSequence[0].ContourSequence[0]
        center = np.array(first.ContourData, dtype=float).reshape(-1, 3).mean(axis=0)
        assert np.allclose(center[:2], plan.source.subject.lesion.center[:2], atol=0.01)


def encoded_as_a_whole(plan: SeriesPlan, index: int) -> bytes:
    dataset = dicom_files.image_header(plan, index)
    dataset.add_new(dicom_files.PIXEL_DATA, "OW", dicom_files.image_pixels(plan, index))
    return dicom_files.encode(dataset, plan.sop_instance(index))


def test_images_are_as_if_each_was_encoded_as_a_whole() -> None:
    plans = [plan for plan in PLANS if plan.source is None]
    plans += [replace(plan, revision=3) for plan in plans[:2]]
    plans.append(replace(plans[0], row={**plans[0].row, "StudyDescription": "Übersicht µCT"}))
    assert {plan.modality for plan in plans} == {"CT", "MR", "PT"}
    for plan in plans:
        for index in {0, 9, plan.count - 1} & set(range(plan.count)):
            assert dicom_files.image_file(plan, index) == encoded_as_a_whole(plan, index), (plan.uid, index)


def test_images_made_ahead_are_there_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = demo_catalog()
    assert catalog.images is not None
    _render(catalog)
    with monkeypatch.context() as patched:
        patched.setattr(PhantomStore, "_rendered", None)
        for plan in PLANS:
            for instance in catalog.images.instances(plan.uid):
                content = catalog.images.read(plan.uid, instance.sop_instance_uid)
                assert catalog.md5(plan.uid, instance.sop_instance_uid) == hashlib.md5(content).hexdigest()
