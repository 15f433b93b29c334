"""The image store of the demo archive: real DICOM files, made when they are read."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from nbia_pipeline.embedded.catalog.model import ImageStore, StoredInstance
from nbia_pipeline.embedded.phantoms.anatomy import Geometry
from nbia_pipeline.embedded.phantoms.annotations import segmentation, structure_set
from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan, decimal, image_file, image_sizes
from nbia_pipeline.embedded.phantoms.documents import key_objects, presentation_state, registration, report
from nbia_pipeline.embedded.phantoms.radiotherapy import dose, dose_grid, treatment_plan

CACHE_BYTES = 64 * 1024 * 1024

_Key = tuple[str, int]

_WHOLE_SERIES = {
    "SEG": segmentation,
    "RTSTRUCT": structure_set,
    "RTPLAN": treatment_plan,
    "RTDOSE": dose,
    "SR": report,
    "PR": presentation_state,
    "KO": key_objects,
    "REG": registration,
}


def _grid(plan: SeriesPlan) -> Geometry | None:
    """Return where the pixels of the files lie; None where they have none."""
    if plan.source is None:
        return plan.geometry
    return {"SEG": plan.source.geometry, "RTDOSE": dose_grid(plan)}.get(plan.modality)


class PhantomStore:
    """The files of planned series; implements :class:`~nbia_pipeline.embedded.catalog.model.ImageStore`.

    Nothing is on disk. A file is rendered when it is read, and the latest ones are kept in memory. All
    methods may be called from several threads.
    """

    def __init__(
        self, plans: Iterable[SeriesPlan], cache_bytes: int = CACHE_BYTES, behind: ImageStore | None = None
    ) -> None:
        """Take the plans.

        Args:
            plans: the series.
            cache_bytes: bound of the bytes of files kept in memory.
            behind: a store of other series, which may serve several archives and stays as it is.
        """
        self._plans = {plan.uid: plan for plan in plans}
        self._cache_bytes = cache_bytes
        self._behind = behind
        self._lock = threading.Lock()
        # The keys contain the revision: nothing that was made from an earlier plan is found again.
        self._files: OrderedDict[_Key, bytes] = OrderedDict()
        self._cached_bytes = 0
        self._instances: dict[_Key, dict[str, StoredInstance]] = {}
        self._digests: dict[tuple[str, str, int], str] = {}

    def plan(self, series_uid: str) -> SeriesPlan | None:
        """Return the plan of a series, or None where there is none: its files are not phantoms."""
        if series_uid not in self._plans and isinstance(self._behind, PhantomStore):
            return self._behind.plan(series_uid)
        return self._plans.get(series_uid)

    def take(self, plan: SeriesPlan) -> None:
        """Add a series, or replace the one of its UID; the revision must be another one then."""
        self._plans[plan.uid] = plan

    def instances(self, series_uid: str) -> Sequence[StoredInstance]:
        """Return the instances of a series by InstanceNumber; empty for a series without files."""
        if series_uid in self._plans:
            return tuple(self._by_uid(self._plans[series_uid]).values())
        return () if self._behind is None else self._behind.instances(series_uid)

    def read(self, series_uid: str, sop_instance_uid: str) -> bytes:
        """Return the bytes of one DICOM file; raises KeyError if there is no such file."""
        if series_uid not in self._plans and self._behind is not None:
            return self._behind.read(series_uid, sop_instance_uid)
        plan = self._plans[series_uid]
        instance, key = self._by_uid(plan)[sop_instance_uid], (sop_instance_uid, plan.revision)
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
                return self._files[key]
        # Outside the lock: readers of other files need not wait, and two threads render the same bytes.
        return self._rendered(plan, instance.instance_number - 1)

    def md5(self, series_uid: str, sop_instance_uid: str) -> str | None:
        """Return the MD5 of one file as lower-case hex; raises KeyError if there is no such file."""
        if series_uid not in self._plans and self._behind is not None:
            return self._behind.md5(series_uid, sop_instance_uid)
        key = series_uid, sop_instance_uid, self._plans[series_uid].revision
        if key not in self._digests:
            content = self.read(series_uid, sop_instance_uid)
            self._digests[key] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return self._digests[key]

    def columns(self, series_uid: str) -> dict[str, Any]:
        """Return the columns of a catalog that follow from the files of a planned series."""
        plan, instances = self._plans[series_uid], self.instances(series_uid)
        grid = _grid(plan)
        return {
            "ImageCount": len(instances),
            "FileSize": sum(instance.size for instance in instances),
            "SOPClassUID": plan.sop_class,
            "PixelSpacing(mm)-Row": decimal(grid.spacing) if grid else None,
            "SliceThickness(mm)": decimal(grid.thickness) if grid else None,
        }

    def _by_uid(self, plan: SeriesPlan) -> dict[str, StoredInstance]:
        """Return the instances of a series by SOPInstanceUID, in order."""
        key = plan.uid, plan.revision
        if key not in self._instances:
            sizes = [len(self._rendered(plan, 0))] if plan.modality in _WHOLE_SERIES else image_sizes(plan)
            uids = [plan.sop_instance(i) for i in range(plan.count)]
            self._instances[key] = {
                uid: StoredInstance(uid, plan.sop_class, i + 1, plan.acquisition(i), size)
                for i, (uid, size) in enumerate(zip(uids, sizes, strict=True))
            }
        return self._instances[key]

    def _rendered(self, plan: SeriesPlan, index: int) -> bytes:
        """Make a file, and keep it in memory if there is room."""
        whole = _WHOLE_SERIES.get(plan.modality)
        content = whole(plan) if whole else image_file(plan, index)
        key = plan.sop_instance(index), plan.revision
        with self._lock:
            if key not in self._files and len(content) <= self._cache_bytes:
                self._files[key] = content
                self._cached_bytes += len(content)
            while self._cached_bytes > self._cache_bytes:
                _, dropped = self._files.popitem(last=False)
                self._cached_bytes -= len(dropped)
        return content
