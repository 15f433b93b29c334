"""Annotations of images: segmentations (SEG) and structure sets (RTSTRUCT) of the phantoms' lesions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydicom.dataset import Dataset

from nbia_pipeline.embedded.phantoms.anatomy import Ellipsoid
from nbia_pipeline.embedded.phantoms.dicom_files import (
    PIXEL_DATA,
    SeriesPlan,
    as_dicom,
    code,
    common,
    content_time,
    decimal,
    encode,
    fill,
    uid_of,
)
from nbia_pipeline.embedded.phantoms.sampling import lesion_mask, lesion_slices, outline

_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
_COLORS = ((255, 0, 0), (0, 160, 255), (0, 200, 80), (255, 180, 0))


def _item(**values: object) -> Dataset:
    return fill(Dataset(), **values)


def _source(plan: SeriesPlan) -> SeriesPlan:
    if plan.source is None:
        raise ValueError(f"the {plan.modality} series {plan.uid} has no images that it describes")
    return plan.source


def _reference(images: SeriesPlan, index: int, **more: object) -> Dataset:
    return _item(ReferencedSOPClassUID=images.sop_class, ReferencedSOPInstanceUID=images.sop_instance(index), **more)


def _frame(images: SeriesPlan, index: int, number: int) -> Dataset:
    """Return the functional groups of one frame (DICOM part 3, A.51.5)."""
    purpose = code("121322", "DCM", "Source image for image processing operation")
    derived = _item(
        SourceImageSequence=[_reference(images, index, PurposeOfReferenceCodeSequence=[purpose])],
        DerivationCodeSequence=[code("113076", "DCM", "Segmentation")],
    )
    position = [decimal(v) for v in images.geometry.position(index)]
    return _item(
        DerivationImageSequence=[derived],
        FrameContentSequence=[_item(DimensionIndexValues=[1, number])],
        PlanePositionSequence=[_item(ImagePositionPatient=position)],
        SegmentIdentificationSequence=[_item(ReferencedSegmentNumber=1)],
    )


def _shared_groups(images: SeriesPlan) -> Dataset:
    geometry = images.geometry
    measures = _item(
        SliceThickness=decimal(geometry.thickness),
        SpacingBetweenSlices=decimal(geometry.thickness),
        PixelSpacing=[decimal(geometry.spacing)] * 2,
    )
    orientation = _item(ImageOrientationPatient=[decimal(v) for v in geometry.orientation])
    return _item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])


def _dimensions(plan: SeriesPlan) -> dict[str, object]:
    organization = uid_of(plan.uid, "dimensions")
    # (0062,000B) within (0062,000A), then (0020,0032) within (0020,9113).
    indices = [
        _item(DimensionOrganizationUID=organization, DimensionIndexPointer=pointer, FunctionalGroupPointer=group)
        for pointer, group in ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113))
    ]
    return {
        "DimensionOrganizationSequence": [_item(DimensionOrganizationUID=organization)],
        "DimensionIndexSequence": indices,
    }


def segmentation(plan: SeriesPlan) -> bytes:
    """Return a Segmentation Storage file of the lesion (DICOM part 3, A.51): one frame per slice that it meets.

    Args:
        plan: a SEG series; its source is an axial series with one acquisition.

    Raises:
        ValueError: the series has no source.
    """
    images = _source(plan)
    slices = lesion_slices(images.subject, images.geometry)
    masks = np.stack([lesion_mask(images.subject, images.geometry, i) for i in slices])
    # Bits run on over the frames, the first pixel in the lowest bit (part 5, 8.1.1).
    packed = np.packbits(masks.ravel(), bitorder="little").tobytes()
    segment = _item(
        SegmentNumber=1,
        SegmentLabel="Lesion",
        SegmentAlgorithmType="MANUAL",
        SegmentedPropertyCategoryCodeSequence=[code("49755003", "SCT", "Morphologically Abnormal Structure")],
        SegmentedPropertyTypeCodeSequence=[code("52988006", "SCT", "Lesion")],
        RecommendedDisplayCIELabValue=[34885, 53485, 50171],
    )
    references = [_reference(images, i) for i in slices]
    dataset = fill(common(plan), **content_time(plan), **_dimensions(plan))
    fill(
        dataset,
        ImageType=["DERIVED", "PRIMARY"],
        InstanceNumber=1,
        ContentLabel="LESION",
        ContentDescription="Lesion outlined by hand",
        ContentCreatorName="Reader^One",
        SegmentationType="BINARY",
        SegmentSequence=[segment],
        DeviceSerialNumber="1",
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        NumberOfFrames=len(slices),
        Rows=images.geometry.matrix,
        Columns=images.geometry.matrix,
        BitsAllocated=1,
        BitsStored=1,
        HighBit=0,
        PixelRepresentation=0,
        LossyImageCompression="00",
        ReferencedSeriesSequence=[_item(SeriesInstanceUID=images.uid, ReferencedInstanceSequence=references)],
        SharedFunctionalGroupsSequence=[_shared_groups(images)],
        PerFrameFunctionalGroupsSequence=[_frame(images, i, number) for number, i in enumerate(slices, 1)],
    )
    dataset.add_new(PIXEL_DATA, "OB", packed + b"\0" * (len(packed) % 2))
    return encode(dataset, plan.sop_instance(0))


def _contours(shape: Ellipsoid, images: SeriesPlan) -> list[Dataset]:
    """Return the items of ContourSequence (3006,0040): one polygon per slice that the shape meets."""
    return [
        _item(
            ContourImageSequence=[_reference(images, index)],
            ContourGeometricType="CLOSED_PLANAR",
            NumberOfContourPoints=len(points),
            ContourData=[decimal(round(v, 3)) for point in points for v in point],
        )
        for index in range(images.geometry.slices)
        if (points := outline(shape, images.geometry, index))
    ]


def _frame_reference(plan: SeriesPlan, images: SeriesPlan) -> Dataset:
    series = _item(
        SeriesInstanceUID=images.uid, ContourImageSequence=[_reference(images, i) for i in range(images.count)]
    )
    study = _item(
        ReferencedSOPClassUID=_DETACHED_STUDY,
        ReferencedSOPInstanceUID=images.row["StudyInstanceUID"],
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=plan.frame_of_reference, RTReferencedStudySequence=[study])


def _regions(plan: SeriesPlan, regions: Mapping[str, list[Dataset]]) -> dict[str, object]:
    """Return the ROI modules (DICOM part 3, C.8.8.5, C.8.8.6 and C.8.8.8) of named contours."""
    numbered = list(enumerate(regions.items(), 1))
    return {
        "StructureSetROISequence": [
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=plan.frame_of_reference,
                ROIName=name,
                ROIGenerationAlgorithm="MANUAL",
            )
            for number, (name, _) in numbered
        ],
        "ROIContourSequence": [
            _item(
                ROIDisplayColor=list(_COLORS[(number - 1) % len(_COLORS)]),
                ReferencedROINumber=number,
                ContourSequence=contours,
            )
            for number, (_, contours) in numbered
        ],
        "RTROIObservationsSequence": [
            _item(
                ObservationNumber=number,
                ReferencedROINumber=number,
                RTROIInterpretedType="GTV" if name.startswith("GTV") else "ORGAN",
                ROIInterpreter="",
            )
            for number, (name, _) in numbered
        ],
    }


def structure_set(plan: SeriesPlan) -> bytes:
    """Return an RT Structure Set Storage file (DICOM part 3, A.19): the lesion (GTV-1) and some organs.

    Args:
        plan: an RTSTRUCT series; its source is an axial series.

    Raises:
        ValueError: the series has no source, or the source is not axial.
    """
    images = _source(plan)
    shapes = {"GTV-1": images.subject.lesion, **images.subject.structures}
    dataset = fill(
        common(plan),
        InstanceNumber=1,
        StructureSetLabel="PLAN",
        StructureSetName="Lesion and organs",
        StructureSetDate=as_dicom(plan.row["SeriesDate"]),
        StructureSetTime="093000",
        ApprovalStatus="UNAPPROVED",
        OperatorsName="",
        ReferencedFrameOfReferenceSequence=[_frame_reference(plan, images)],
    )
    fill(dataset, **_regions(plan, {name: _contours(shape, images) for name, shape in shapes.items()}))
    return encode(dataset, plan.sop_instance(0))
