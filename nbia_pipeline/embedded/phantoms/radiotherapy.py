"""What follows a structure set in radiotherapy: the plan (RTPLAN) and the dose (RTDOSE) of the phantoms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbia_pipeline.embedded.phantoms.anatomy import Geometry
from nbia_pipeline.embedded.phantoms.dicom_files import PIXEL_DATA, SeriesPlan, as_dicom, common, decimal, encode, fill
from nbia_pipeline.embedded.phantoms.references import item, reference, source_of

PRESCRIBED_GY = 70
DOSE_MATRIX = 24
DOSE_PLANES = 8
"""The grid of a dose: rows and columns, and planes; at every scale, since doses are smooth."""

_STEPS_PER_GY = 500
_DOSE_FRAMES_BY = 0x3004000C
"""GridFrameOffsetVector (3004,000C)."""


def treatment_plan(plan: SeriesPlan) -> bytes:
    """Return an RT Plan Storage file (DICOM part 3, A.20) for the structure set that is its first other series."""
    dataset = fill(
        common(plan),
        InstanceNumber=1,
        OperatorsName="",
        ApprovalStatus="UNAPPROVED",
        RTPlanLabel="PLAN",
        RTPlanDate=as_dicom(plan.row["SeriesDate"]),
        RTPlanTime="101500",
        RTPlanGeometry="PATIENT",
        DoseReferenceSequence=[
            item(
                DoseReferenceNumber=1,
                DoseReferenceStructureType="VOLUME",
                ReferencedROINumber=1,
                DoseReferenceType="TARGET",
                TargetPrescriptionDose=str(PRESCRIBED_GY),
            )
        ],
        ReferencedStructureSetSequence=[reference(plan.others[0], 0)],
    )
    return encode(dataset, plan.sop_instance(0))


def dose_grid(plan: SeriesPlan) -> Geometry:
    """Return the grid of an RTDOSE series, which covers the images that were planned on."""
    planned = source_of(plan).geometry
    return Geometry(DOSE_MATRIX, DOSE_PLANES, planned.field_of_view, planned.extent, planned.plane)


def _steps(plan: SeriesPlan, grid: Geometry) -> NDArray[np.uint16]:
    """Return the dose in steps, by plane, row and column: as prescribed in the lesion, and less around it."""
    lesion = source_of(plan).subject.lesion
    across = [np.arange(grid.matrix) * grid.spacing + grid.position(0)[axis] for axis in (0, 1)]
    along = np.array([grid.location(i) for i in range(grid.slices)])
    x, y, z = (
        ((points - lesion.center[axis]) / lesion.radii[axis]) ** 2 for axis, points in enumerate([*across, along])
    )
    distance = z[:, None, None] + y[None, :, None] + x[None, None, :]
    steps: NDArray[np.uint16] = np.rint(np.minimum(1, 2 / (1 + distance)) * (PRESCRIBED_GY * _STEPS_PER_GY)).astype(
        "<u2"
    )
    return steps


def dose(plan: SeriesPlan) -> bytes:
    """Return an RT Dose Storage file (DICOM part 3, A.18) of the plan that is its first other series.

    Args:
        plan: an RTDOSE series; its source is an axial series.
    """
    grid = dose_grid(plan)
    dataset = fill(
        common(plan),
        InstanceNumber=1,
        OperatorsName="",
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        NumberOfFrames=grid.slices,
        FrameIncrementPointer=_DOSE_FRAMES_BY,
        Rows=grid.matrix,
        Columns=grid.matrix,
        PixelSpacing=[decimal(grid.spacing)] * 2,
        SliceThickness=decimal(grid.thickness),
        ImagePositionPatient=[decimal(v) for v in grid.position(0)],
        ImageOrientationPatient=[decimal(v) for v in grid.orientation],
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=0,
        DoseUnits="GY",
        DoseType="PHYSICAL",
        DoseSummationType="PLAN",
        GridFrameOffsetVector=[decimal(i * grid.thickness) for i in range(grid.slices)],
        DoseGridScaling=decimal(1 / _STEPS_PER_GY),
        ReferencedRTPlanSequence=[reference(plan.others[0], 0)],
    )
    dataset.add_new(PIXEL_DATA, "OW", _steps(plan, grid).tobytes())
    return encode(dataset, plan.sop_instance(0))
