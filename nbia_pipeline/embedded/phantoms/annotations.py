"""Annotations of images: segmentations (SEG) and structure sets (RTSTRUCT) of the phantoms' lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from nbia_pipeline.embedded.phantoms.references import (
    at_the_same_place,
    common_references,
    described,
    item,
    reference,
    source_of,
)
from nbia_pipeline.embedded.phantoms.sampling import lesion_mask, lesion_slices, outline

_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"
_COLORS = ((255, 0, 0), (0, 160, 255), (0, 200, 80), (255, 180, 0))


def _frame(drawn_on: Sequence[SeriesPlan], index: int, number: int) -> Dataset:
    """Return the functional groups of one frame (DICOM part 3, A.51.5), which names an image of each series."""
    purpose = code("121322", "DCM", "Source image for image processing operation")
    images = drawn_on[0]
    derived = item(
        SourceImageSequence=[
            reference(series, at_the_same_place(images, index, series), PurposeOfReferenceCodeSequence=[purpose])
            for series in drawn_on
        ],
        DerivationCodeSequence=[code("113076", "DCM", "Segmentation")],
    )
    position = [decimal(v) for v in images.geometry.position(index)]
    return item(
        DerivationImageSequence=[derived],
        FrameContentSequence=[item(DimensionIndexValues=[1, number])],
        PlanePositionSequence=[item(ImagePositionPatient=position)],
        SegmentIdentificationSequence=[item(ReferencedSegmentNumber=1)],
    )


def _shared_groups(images: SeriesPlan) -> Dataset:
    geometry = images.geometry
    measures = item(
        SliceThickness=decimal(geometry.thickness),
        SpacingBetweenSlices=decimal(geometry.thickness),
        PixelSpacing=[decimal(geometry.spacing)] * 2,
    )
    orientation = item(ImageOrientationPatient=[decimal(v) for v in geometry.orientation])
    return item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])


def _dimensions(plan: SeriesPlan) -> dict[str, object]:
    organization = uid_of(plan.uid, "dimensions")
    # (0062,000B) within (0062,000A), then (0020,0032) within (0020,9113).
    indices = [
        item(DimensionOrganizationUID=organization, DimensionIndexPointer=pointer, FunctionalGroupPointer=group)
        for pointer, group in ((0x0062000B, 0x0062000A), (0x00200032, 0x00209113))
    ]
    return {
        "DimensionOrganizationSequence": [item(DimensionOrganizationUID=organization)],
        "DimensionIndexSequence": indices,
    }


def segmentation(plan: SeriesPlan) -> bytes:
    """Return a Segmentation Storage file of the lesion (DICOM part 3, A.51): one frame per slice that it meets.

    Args:
        plan: a SEG series; its source is an axial series with one acquisition. The pixels are those of the source;
            other series of the same extent are named beside it.

    Raises:
        ValueError: the series has no source.
    """
    drawn_on = described(plan)
    images = drawn_on[0]
    slices = lesion_slices(images.subject, images.geometry)
    masks = np.stack([lesion_mask(images.subject, images.geometry, i) for i in slices])
    # Bits run on over the frames, the first pixel in the lowest bit (part 5, 8.1.1).
    packed = np.packbits(masks.ravel(), bitorder="little").tobytes()
    segment = item(
        SegmentNumber=1,
        SegmentLabel="Lesion",
        SegmentAlgorithmType="MANUAL",
        SegmentedPropertyCategoryCodeSequence=[code("49755003", "SCT", "Morphologically Abnormal Structure")],
        SegmentedPropertyTypeCodeSequence=[code("52988006", "SCT", "Lesion")],
        RecommendedDisplayCIELabValue=[34885, 53485, 50171],
    )
    named = [(s, list(dict.fromkeys(at_the_same_place(images, i, s) for i in slices))) for s in drawn_on]
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
        **common_references(plan, named),
        SharedFunctionalGroupsSequence=[_shared_groups(images)],
        PerFrameFunctionalGroupsSequence=[_frame(drawn_on, i, number) for number, i in enumerate(slices, 1)],
    )
    dataset.add_new(PIXEL_DATA, "OB", packed + b"\0" * (len(packed) % 2))
    return encode(dataset, plan.sop_instance(0))


def _contours(shape: Ellipsoid, plan: SeriesPlan) -> list[Dataset]:
    """Return the items of ContourSequence (3006,0040): one polygon per slice that the shape meets."""
    images = source_of(plan)
    silent = plan.flaw == "no references"
    return [
        item(
            **({} if silent else {"ContourImageSequence": [reference(images, index)]}),
            ContourGeometricType="CLOSED_PLANAR",
            NumberOfContourPoints=len(points),
            ContourData=[decimal(round(v, 3)) for point in points for v in point],
        )
        for index in range(images.geometry.slices)
        if (points := outline(shape, images.geometry, index))
    ]


def _frame_reference(plan: SeriesPlan) -> Dataset:
    images = source_of(plan)
    if plan.flaw == "no references":
        return item(FrameOfReferenceUID=plan.frame_of_reference)
    series = item(
        SeriesInstanceUID=images.uid, ContourImageSequence=[reference(images, i) for i in range(images.count)]
    )
    study = item(
        ReferencedSOPClassUID=_DETACHED_STUDY,
        ReferencedSOPInstanceUID=images.row["StudyInstanceUID"],
        RTReferencedSeriesSequence=[series],
    )
    return item(FrameOfReferenceUID=plan.frame_of_reference, RTReferencedStudySequence=[study])


def _regions(plan: SeriesPlan, regions: Mapping[str, list[Dataset]]) -> dict[str, object]:
    """Return the ROI modules (DICOM part 3, C.8.8.5, C.8.8.6 and C.8.8.8) of named contours."""
    numbered = list(enumerate(regions.items(), 1))
    return {
        "StructureSetROISequence": [
            item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=plan.frame_of_reference,
                ROIName=name,
                ROIGenerationAlgorithm="MANUAL",
            )
            for number, (name, _) in numbered
        ],
        "ROIContourSequence": [
            item(
                ROIDisplayColor=list(_COLORS[(number - 1) % len(_COLORS)]),
                ReferencedROINumber=number,
                ContourSequence=contours,
            )
            for number, (_, contours) in numbered
        ],
        "RTROIObservationsSequence": [
            item(
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
    images = source_of(plan)
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
        ReferencedFrameOfReferenceSequence=[_frame_reference(plan)],
    )
    fill(dataset, **_regions(plan, {name: _contours(shape, plan) for name, shape in shapes.items()}))
    return encode(dataset, plan.sop_instance(0))
