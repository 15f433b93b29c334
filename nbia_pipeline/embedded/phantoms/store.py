"""The image store of the demo archive: real DICOM files, made when they are asked for."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from nbia_pipeline.embedded.catalog.model import StoredInstance
from nbia_pipeline.embedded.phantoms.annotations import segmentation, structure_set
from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan, image_file, image_sizes

CACHE_BYTES = 64 * 1024 * 1024

_Key = tuple[str, int]

_WHOLE_SERIES = {"SEG": segmentation, "RTSTRUCT": structure_set}


class PhantomStore:
    """The files of planned series; implements :class:`~nbia_pipeline.embedded.catalog.model.ImageStore`.

    Nothing is on disk. A file is rendered when it is read, and the latest ones are kept in memory. All
    methods may be called from several threads.
    """

    def __init__(self, plans: Iterable[SeriesPlan], cache_bytes: int = CACHE_BYTES) -> None:
        """Take the plans.

        Args:
            plans: the series.
            cache_bytes: bound of the bytes of files kept in memory.
        """
        self._plans = {plan.uid: plan for plan in plans}
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        # All by the revision as well: what was made from an earlier plan is never found again.
        self._files: OrderedDict[_Key, bytes] = OrderedDict()
        self._held = 0
        self._instances: dict[_Key, tuple[StoredInstance, ...]] = {}
        self._places: dict[_Key, dict[str, int]] = {}
        self._digests: dict[tuple[str, str, int], str] = {}

    def plan(self, series_uid: str) -> SeriesPlan | None:
        """Return the plan of a series, or None if it is not planned."""
        return self._plans.get(series_uid)

    def take(self, plan: SeriesPlan) -> None:
        """Add a series, or replace the one of its UID; the revision must be another one then."""
        self._plans[plan.uid] = plan

    def instances(self, series_uid: str) -> Sequence[StoredInstance]:
        """Return the instances of a series by InstanceNumber; empty for a series that is not planned."""
        plan = self._plans.get(series_uid)
        if plan is None:
            return ()
        with self._lock:
            known = self._instances.get((plan.uid, plan.revision))
        if known is None:
            known = self._reckon(plan)
            with self._lock:
                self._instances[plan.uid, plan.revision] = known
        return known

    def read(self, series_uid: str, sop_instance_uid: str) -> bytes:
        """Return the bytes of one DICOM file; raises KeyError if there is no such file."""
        plan = self._plans[series_uid]
        index = self._index(plan, sop_instance_uid)
        with self._lock:
            held = self._files.get((sop_instance_uid, plan.revision))
            if held is not None:
                self._files.move_to_end((sop_instance_uid, plan.revision))
                return held
        # Outside the lock: readers of other files need not wait, and two who render the same get the same.
        content = _render(plan, index)
        self._keep((sop_instance_uid, plan.revision), content)
        return content

    def md5(self, series_uid: str, sop_instance_uid: str) -> str | None:
        """Return the MD5 of one file as lower-case hex; raises KeyError if there is no such file."""
        key = series_uid, sop_instance_uid, self._plans[series_uid].revision
        with self._lock:
            digest = self._digests.get(key)
        if digest is None:
            content = self.read(series_uid, sop_instance_uid)
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            with self._lock:
                self._digests[key] = digest
        return digest

    def _reckon(self, plan: SeriesPlan) -> tuple[StoredInstance, ...]:
        if plan.modality in _WHOLE_SERIES:
            content = _render(plan, 0)
            self._keep((plan.sop_instance(0), plan.revision), content)
            sizes = [len(content)]
        else:
            sizes = image_sizes(plan)
        return tuple(
            StoredInstance(plan.sop_instance(i), plan.sop_class, i + 1, plan.acquisition(i), size)
            for i, size in enumerate(sizes)
        )

    def _index(self, plan: SeriesPlan, sop_instance_uid: str) -> int:
        with self._lock:
            places = self._places.get((plan.uid, plan.revision))
        if places is None:
            places = {plan.sop_instance(i): i for i in range(plan.count)}
            with self._lock:
                self._places[plan.uid, plan.revision] = places
        return places[sop_instance_uid]

    def _keep(self, key: _Key, content: bytes) -> None:
        with self._lock:
            if key in self._files or len(content) > self._cache_bytes:
                return
            self._files[key] = content
            self._held += len(content)
            while self._held > self._cache_bytes:
                _, dropped = self._files.popitem(last=False)
                self._held -= len(dropped)


def _render(plan: SeriesPlan, index: int) -> bytes:
    whole = _WHOLE_SERIES.get(plan.modality)
    return whole(plan) if whole else image_file(plan, index)
