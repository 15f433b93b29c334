"""Objects that highdicom makes of a few CT slices, as files: what the software of researchers writes.

They are the same in every run, but for times. highdicom is imported when the first one is made.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

if TYPE_CHECKING:
    from highdicom.seg import Segmentation

STUDY, FRAME_OF_REFERENCE = "1.2.5", "1.2.5.9"
FIRST, SECOND = "1.2.5.1", "1.2.5.2"
"""SeriesInstanceUIDs of the slices that the objects refer to."""

SLICES = 4
_MAKER: dict[str, Any] = {
    "manufacturer": "Maker",
    "manufacturer_model_name": "Model",
    "software_versions": "1",
    "device_serial_number": "1",
}


def _ids(number: int) -> dict[str, Any]:
    return {
        "series_instance_uid": f"1.2.6.{number}",
        "series_number": number,
        "sop_instance_uid": f"1.2.6.{number}.1",
        "instance_number": 1,
    }


def ct_slices(series: str) -> list[Dataset]:
    """Return the slices of a CT series, of 8 x 8 pixels; their UIDs are that of the series, and ``.1`` and so on."""
    return [_slice(series, number) for number in range(1, SLICES + 1)]


def _image(sop_class: str, sop: str, series: str, modality: str) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = sop_class, sop
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = STUDY, series, FRAME_OF_REFERENCE
    data.Modality, data.SeriesNumber, data.InstanceNumber = modality, 1, 1
    data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "P1", "A^B", "", "O"
    data.StudyID, data.StudyDate, data.StudyTime, data.AccessionNumber = "1", "20200102", "101112", ""
    data.ReferringPhysicianName = ""
    data.Rows = data.Columns = 8
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    return data


def _slice(series: str, number: int) -> Dataset:
    data = _image(CTImageStorage, f"{series}.{number}", series, "CT")
    data.InstanceNumber = number
    data.PixelSpacing, data.SliceThickness = [0.5, 0.5], 2.5
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-2, -2, 2.5 * number]
    data.PixelData = bytes(128)
    return data


def _slide() -> Dataset:
    data = _image(VLWholeSlideMicroscopyImageStorage, f"{FIRST}.1", FIRST, "SM")
    data.ImageType, data.NumberOfFrames = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], 1
    data.TotalPixelMatrixRows = data.TotalPixelMatrixColumns = 8
    data.ContainerIdentifier = "S1"
    return data


def _file(data: Dataset) -> bytes:
    target = io.BytesIO()
    data.save_as(target, enforce_file_format=True)
    return target.getvalue()


def _segments() -> list[Any]:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence("net", codes.DCM.ArtificialIntelligence, "1")
    return [
        SegmentDescription(
            number,
            label,
            codes.SCT.Tissue,
            kind,
            "AUTOMATIC",
            algorithm,
            tracking_uid=f"1.2.6.9.{number}",
            tracking_id=label,
            anatomic_regions=[codes.SCT.Thorax],
        )
        for number, label, kind in ((1, "Left", codes.SCT.Lung), (2, "Right", codes.SCT.Bone))
    ]


@lru_cache(maxsize=1)
def _segmentation() -> Segmentation:
    from highdicom.seg import Segmentation

    # Segment 1 is in three slices, segment 2 in one.
    masks = np.zeros((SLICES, 8, 8), np.uint8)
    masks[:3, 2:4], masks[3, 5:7] = 1, 2
    return Segmentation(
        source_images=ct_slices(FIRST),
        further_source_images=ct_slices(SECOND)[:2],
        pixel_array=masks,
        segmentation_type="BINARY",
        segment_descriptions=_segments(),
        **_ids(3),
        **_MAKER,
    )


@lru_cache(maxsize=1)
def seg_over_two_series() -> bytes:
    """Return a segmentation drawn on the slices of :data:`FIRST`, which also names two of :data:`SECOND`."""
    return _file(_segmentation())


@lru_cache(maxsize=1)
def sr_tid1500() -> bytes:
    """Return a measurement report (TID 1500): segment 1 with its source series, and an outline in a slice."""
    from highdicom.sr import (
        Comprehensive3DSR,
        FindingSite,
        ImageRegion,
        Measurement,
        MeasurementReport,
        ObservationContext,
        PersonObserverIdentifyingAttributes,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        ReferencedSegment,
        SourceImageForRegion,
        SourceSeriesForSegmentation,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )
    from highdicom.sr import ObserverContext as Observer
    from pydicom.sr.codedict import codes

    slices, seg = ct_slices(FIRST), _segmentation()
    volume = VolumetricROIMeasurementsAndQualitativeEvaluations(
        TrackingIdentifier("1.2.6.9.1", "Left"),
        referenced_segment=ReferencedSegment(
            seg.SOPClassUID, seg.SOPInstanceUID, 1, [1, 2, 3], source_series=SourceSeriesForSegmentation(FIRST)
        ),
        finding_sites=[FindingSite(codes.SCT.Lung)],
        measurements=[Measurement(codes.SCT.Volume, 1.5, codes.UCUM.CubicMillimeter)],
    )
    outline = np.array([[1.0, 1.0], [3.0, 1.0], [3.0, 3.0], [1.0, 1.0]])
    source = SourceImageForRegion(slices[1].SOPClassUID, slices[1].SOPInstanceUID)
    region = PlanarROIMeasurementsAndQualitativeEvaluations(
        TrackingIdentifier("1.2.6.9.3", "Outline"),
        referenced_region=ImageRegion("POLYLINE", outline, source),
        measurements=[Measurement(codes.SCT.Area, 2.0, codes.UCUM.SquareMillimeter)],
    )
    person = Observer(codes.DCM.Person, PersonObserverIdentifyingAttributes("Reader^One"))
    report = MeasurementReport(
        ObservationContext(observer_person_context=person), codes.LN.CTUnspecifiedBodyRegion, [volume, region]
    )
    return _file(Comprehensive3DSR([*slices, seg], report[0], **_ids(4), manufacturer="Maker", is_complete=True))


@lru_cache(maxsize=1)
def presentation_state() -> bytes:
    """Return a grayscale presentation state of all slices of :data:`FIRST`, with a text on the second one."""
    from highdicom.pr import GraphicAnnotation, GraphicLayer, GrayscaleSoftcopyPresentationState, TextObject

    slices, layer = ct_slices(FIRST), GraphicLayer("LAYER", 1)
    text = TextObject("Here", "PIXEL", anchor_point=(2.0, 2.0))
    return _file(
        GrayscaleSoftcopyPresentationState(
            slices,
            **_ids(5),
            **_MAKER,
            content_label="TEXT",
            graphic_layers=[layer],
            graphic_annotations=[GraphicAnnotation([slices[1]], layer, text_objects=[text])],
        )
    )


@lru_cache(maxsize=1)
def key_object() -> bytes:
    """Return a key object selection of the first two slices of :data:`FIRST`."""
    from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
    from pydicom.sr.codedict import codes

    slices = ct_slices(FIRST)[:2]
    return _file(
        KeyObjectSelectionDocument(
            slices, KeyObjectSelection(codes.DCM.OfInterest, slices), **_ids(6), manufacturer="M"
        )
    )


@lru_cache(maxsize=1)
def microscopy_annotations() -> bytes:
    """Return bulk annotations: two points on a slide of series :data:`FIRST`."""
    from highdicom.ann import AnnotationGroup, MicroscopyBulkSimpleAnnotations
    from pydicom.sr.codedict import codes

    points = [np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])]
    group = AnnotationGroup(1, "1.2.6.8", "cells", codes.SCT.Cell, codes.SCT.Cell, "POINT", points, "MANUAL")
    return _file(MicroscopyBulkSimpleAnnotations([_slide()], "2D", [group], **_ids(7), **_MAKER))


MAKERS = (seg_over_two_series, sr_tid1500, presentation_state, key_object, microscopy_annotations)
