"""The image store of the demo archive: real DICOM files, made when they are read."""

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
        # The keys contain the revision: nothing that was made from an earlier plan is found again.
        self._files: OrderedDict[_Key, bytes] = OrderedDict()
        self._cached_bytes = 0
        self._instances: dict[_Key, dict[str, StoredInstance]] = {}
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
        return () if plan is None else tuple(self._by_uid(plan).values())

    def read(self, series_uid: str, sop_instance_uid: str) -> bytes:
        """Return the bytes of one DICOM file; raises KeyError if there is no such file."""
        plan = self._plans[series_uid]
        instance, key = self._by_uid(plan)[sop_instance_uid], (sop_instance_uid, plan.revision)
        with self._lock:
            cached = self._files.get(key)
            if cached is not None:
                self._files.move_to_end(key)
                return cached
        # Outside the lock: readers of other files need not wait, and two threads render the same bytes.
        content = _render(plan, instance.instance_number - 1)
        self._keep(key, content)
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

    def _by_uid(self, plan: SeriesPlan) -> dict[str, StoredInstance]:
        """Return the instances of a series by SOPInstanceUID, in order."""
        with self._lock:
            known = self._instances.get((plan.uid, plan.revision))
        if known is not None:
            return known
        if plan.modality in _WHOLE_SERIES:
            content = _render(plan, 0)
            self._keep((plan.sop_instance(0), plan.revision), content)
            sizes = [len(content)]
        else:
            sizes = image_sizes(plan)
        uids = [plan.sop_instance(i) for i in range(plan.count)]
        known = {
            uid: StoredInstance(uid, plan.sop_class, i + 1, plan.acquisition(i), size)
            for i, (uid, size) in enumerate(zip(uids, sizes, strict=True))
        }
        with self._lock:
            self._instances[plan.uid, plan.revision] = known
        return known

    def _keep(self, key: _Key, content: bytes) -> None:
        with self._lock:
            if key in self._files or len(content) > self._cache_bytes:
                return
            self._files[key] = content
            self._cached_bytes += len(content)
            while self._cached_bytes > self._cache_bytes:
                _, dropped = self._files.popitem(last=False)
                self._cached_bytes -= len(dropped)


def _render(plan: SeriesPlan, index: int) -> bytes:
    whole = _WHOLE_SERIES.get(plan.modality)
    return whole(plan) if whole else image_file(plan, index)
