"""Images that were added or replaced while the archive runs, in front of those of its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nbia_pipeline.embedded.catalog.model import ImageStore, StoredInstance
from nbia_pipeline.embedded.phantoms.anatomy import ANATOMIES, Geometry
from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan, uid_of
from nbia_pipeline.embedded.phantoms.store import PhantomStore

DRAWABLE = {"CT": ("ct",), "MR": ("t1",), "PT": ("pet",)}
"""Contrasts by modality, where a phantom needs no plan to start from."""

_MATRIX = 64
_SLICES = 6
_ANATOMY = "torso"


class OverlayStore(PhantomStore):
    """The files of newer plans in front of a store that stays as it is.

    It belongs to one archive; the store behind may serve several. All methods may be called from several
    threads.
    """

    def __init__(self, base: ImageStore | None) -> None:
        """Start without any newer plan.

        Args:
            base: the store behind; None for a catalog of tables only.
        """
        super().__init__(())
        self._base = base

    def instances(self, series_uid: str) -> Sequence[StoredInstance]:
        """Return the instances of a series by InstanceNumber; empty for a series without files."""
        base = self._behind(series_uid)
        return base.instances(series_uid) if base else super().instances(series_uid)

    def read(self, series_uid: str, sop_instance_uid: str) -> bytes:
        """Return the bytes of one DICOM file; raises KeyError if there is no such file."""
        base = self._behind(series_uid)
        return base.read(series_uid, sop_instance_uid) if base else super().read(series_uid, sop_instance_uid)

    def md5(self, series_uid: str, sop_instance_uid: str) -> str | None:
        """Return the digest of one file; raises KeyError if there is no such file."""
        base = self._behind(series_uid)
        return base.md5(series_uid, sop_instance_uid) if base else super().md5(series_uid, sop_instance_uid)

    def plan(self, series_uid: str) -> SeriesPlan | None:
        """Return the plan of the files of a series; None where they are not phantoms."""
        base = self._behind(series_uid)
        return super().plan(series_uid) if not isinstance(base, PhantomStore) else base.plan(series_uid)

    def _behind(self, series_uid: str) -> ImageStore | None:
        """Return the store behind if the series is one of its; None for a series of a newer plan."""
        return None if series_uid in self._plans else self._base


def revised(plan: SeriesPlan, slices: int | None) -> SeriesPlan:
    """Return a plan with other contents under the same UIDs, and with another number of slices if given."""
    geometry = plan.geometry if slices is None else replace(plan.geometry, slices=slices)
    return replace(plan, revision=plan.revision + 1, geometry=geometry)


def cloned(plan: SeriesPlan | None, row: Mapping[str, Any], slices: int | None) -> SeriesPlan:
    """Return the plan of a new series.

    Args:
        plan: the plan to copy; None: a small stack of a trunk.
        row: the row of the new series.
        slices: number of slices; None: as many as the plan has.
    """
    frame = uid_of(row["StudyInstanceUID"], "frame of reference")
    if plan is None or (plan.source is None and row["Modality"] not in DRAWABLE):
        kind = ANATOMIES[_ANATOMY]
        geometry = Geometry(_MATRIX, slices or _SLICES, kind.field_of_view, kind.extent)
        return SeriesPlan(row, _ANATOMY, 1.0, geometry, DRAWABLE[row["Modality"]], frame)
    geometry = plan.geometry if slices is None else replace(plan.geometry, slices=slices)
    return replace(plan, row=row, geometry=geometry, frame_of_reference=frame, revision=0)
