"""Plans of images that are added or replaced while the archive runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nbia_pipeline.embedded.phantoms.anatomy import ANATOMIES, Geometry
from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan, uid_of

DRAWABLE = {"CT": ("ct",), "MR": ("t1",), "PT": ("pet",)}
"""Contrasts by modality, where a phantom needs no plan to start from."""

_MATRIX = 64
_SLICES = 6
_ANATOMY = "torso"


def revised(plan: SeriesPlan, slices: int | None) -> SeriesPlan:
    """Return a plan with other contents under the same UIDs, and with another number of slices if given."""
    geometry = plan.geometry if slices is None else replace(plan.geometry, slices=slices)
    return replace(plan, revision=plan.revision + 1, geometry=geometry)


def cloned(plan: SeriesPlan | None, row: Mapping[str, Any], slices: int | None) -> SeriesPlan:
    """Return the plan of a new series, copied from another one; None: a small stack of a trunk."""
    frame = uid_of(row["StudyInstanceUID"], "frame of reference")
    if plan is None or (plan.source is None and row["Modality"] not in DRAWABLE):
        kind = ANATOMIES[_ANATOMY]
        geometry = Geometry(_MATRIX, slices or _SLICES, kind.field_of_view, kind.extent)
        return SeriesPlan(row, _ANATOMY, 1.0, geometry, DRAWABLE[row["Modality"]], frame)
    geometry = plan.geometry if slices is None else replace(plan.geometry, slices=slices)
    return replace(plan, row=row, geometry=geometry, frame_of_reference=frame, revision=0)
