"""What the references of some series lead to, fetched: until nothing is new, or the bounds of the run are reached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.present import present_series
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.lock import soon_if_interrupted
from nbia_pipeline.mirror.commit import commit_journal
from nbia_pipeline.mirror.plan import EVERYTHING, Bounds, Plan
from nbia_pipeline.mirror.progress import Progress
from nbia_pipeline.mirror.receipt import MAY_REFER, REFERENCED, Receipt
from nbia_pipeline.mirror.references.edges import UID, Held, references_of
from nbia_pipeline.mirror.references.finder import RECEIPT, Finder, held_of, present, rows_among
from nbia_pipeline.mirror.selection import ALL_WANTED, Selection, Selections
from nbia_pipeline.mirror.series import WantedSeries, collections_of
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES

IMAGES = "images"
ANNOTATIONS = "annotations"
KINDS = (IMAGES, ANNOTATIONS)
"""What references may lead to: what the selected series refer to, and annotations that refer to these."""

# Modalities of objects that refer to images and are none (DICOM PS3.3, C.7.3.1.1.1).
MODALITIES = frozenset(
    "ANN FID KO PLAN PR REG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SMR SR".split()
)
WHAT = "references"


class Fetches(Protocol):
    """What plans and fetches: a :class:`~nbia_pipeline.mirror.engine.Mirror`."""

    client: NbiaClient
    lake: Lake

    def plan_series(self, what: str, rows: pa.Table, bounds: Bounds, *, on_progress: Callable[[str], object]) -> Plan:
        """Plan for rows of ``series``, and bring their receipts up to date."""

    def fetch(
        self,
        batch: Sequence[WantedSeries],
        *,
        for_whom: Mapping[str, str],
        on_result: Callable[[Receipt], None],
        on_bytes: Callable[[WantedSeries, int], object],
    ) -> list[Receipt]:
        """Fetch series; `for_whom` states whose references led to each."""


@dataclass
class Followed:
    """What came of following references.

    Attributes:
        receipts: of the series that were fetched, or could not be.
        there: how many series that are referred to were in the lake before.
        left: the series that were left for a later run, because of the bounds or the room on the disk, by UID.
        lost: the UIDs of series and instances that no series is found for, with the series that refers to each.
    """

    receipts: list[Receipt] = field(default_factory=list)
    there: int = 0
    left: dict[str, WantedSeries] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def fetched(self) -> list[Receipt]:
        """The receipts of what was fetched."""
        return [r for r in self.receipts if r.status == COMPLETE]

    @property
    def bytes(self) -> int:
        """The size of the files that were fetched."""
        return sum(i.Size for r in self.fetched for i in r.instances)

    def text(self) -> str:
        """Return it in one line."""
        failed = len(self.receipts) - len(self.fetched)
        parts = [f"{len(self.fetched)} series fetched", f"{self.there} in the lake before"]
        parts += [f"{len(self.left)} left for a later run"] if self.left else []
        parts += [f"{failed} could not be fetched"] if failed else []
        parts += [f"{len(self.lost)} could not be resolved"] if self.lost else []
        return ", ".join(parts)


def follow(
    mirror: Fetches,
    series: Sequence[Held],
    kinds: Sequence[str],
    bounds: Bounds,
    *,
    fetched: tuple[int, int] = (0, 0),
    on_progress: Callable[[str], object] = lambda line: None,
) -> Followed:
    """Fetch what the references of some series lead to; see :mod:`nbia_pipeline.mirror.references`.

    Args:
        mirror: plans and fetches.
        series: those to begin with.
        kinds: of :data:`KINDS`, what to fetch.
        bounds: how much the run fetches at most.
        fetched: how many series and bytes it has fetched before.
        on_progress: takes a line from time to time, from any thread.

    Raises:
        ArchiveError: the archive cannot be asked; what was fetched is committed.
        LakeError: the lake cannot be read or written.
    """
    closure = _Closure(mirror, bounds, fetched, on_progress)
    closure.follow(series, kinds, {one.PatientID for one in series})
    closure.result.there = closure.there
    on_progress(f"{WHAT}: {closure.result.text()}")
    return closure.result


class Closure(ABC):
    """Follows references; what becomes of a series that is not in the lake is up to :meth:`take`."""

    def __init__(self, lake: Lake, client: NbiaClient | None) -> None:
        self.lake = lake
        self.finder = Finder(lake, client)
        self.there = 0

    @abstractmethod
    def take(self, rows: pa.Table, reasons: Mapping[str, str]) -> list[str]:
        """Take rows of ``series`` that references lead to, and for whom; return which came into the lake now."""

    def follow(self, series: Sequence[Held], kinds: Sequence[str], patients: Collection[str]) -> None:
        """Begin with some series, and the annotations of some patients, and go on until nothing is new."""
        begin = list(series)
        if ANNOTATIONS in kinds:
            begin += self._annotations(begin, patients)
        if IMAGES in kinds:
            self._images(begin)

    def _annotations(self, images: Sequence[Held], patients: Collection[str]) -> list[Held]:
        """Take the annotations of some patients, and return those in the lake that refer to any of some images."""
        known = {one.SeriesInstanceUID for one in images}
        rows = annotations_of(self.lake, patients)
        rows = rows.filter(pc.invert(among(rows[UID], known)))
        patient = dict(zip(rows[UID].to_pylist(), rows["PatientID"].to_pylist(), strict=True))
        self.take(rows, {uid: f"{MAY_REFER}the images of patient {of}" for uid, of in patient.items()})
        return _referring_to(self.lake, known, self.finder.locate(patient))

    def _images(self, series: Sequence[Held]) -> None:
        """Fetch what some series refer to, then what that refers to, until nothing is new."""
        reached = {one.SeriesInstanceUID: one for one in series}
        tried: set[str] = set()
        frontier = dict(reached)
        while frontier:
            pairs = self.finder.find(references_of(self.lake, frontier.values()), frontier)
            referrers = {uid: referrer for referrer, uid in reversed(pairs)}
            new = [uid for uid in referrers if uid not in reached and uid not in tried]
            tried.update(new)
            places = {uid: self.finder.place(uid) for uid in new}
            rows = [place.listed for place in places.values() if place is not None and place.listed is not None]
            reasons = self._reasons({uid: frontier[referrers[uid]] for uid in new})
            came = self.take(pa.concat_tables([SERIES.schema.empty_table(), *rows]), reasons)
            self.there += sum(place is not None and place.listed is None for place in places.values())
            found = self.finder.locate(new)
            reached |= found
            # A series may turn out not to have what it is stated for: then that is looked for elsewhere.
            frontier = found | {referrers[uid]: reached[referrers[uid]] for uid in came}

    def _reasons(self, referrers: Mapping[str, Held]) -> dict[str, str]:
        """Return for whom series are fetched, by their UID."""
        uids = {one.SeriesInstanceUID for one in referrers.values()}
        rows = rows_among(self.lake, SERIES, UID, uids, [UID, "Modality"])
        modality = dict(zip(rows[UID].to_pylist(), rows["Modality"].to_pylist(), strict=True))

        def text(one: Held) -> str:
            kind = modality.get(one.SeriesInstanceUID)
            return f"{REFERENCED}{f'{kind} ' if kind else ''}series {one.SeriesInstanceUID} of {one.Collection}"

        return {uid: text(one) for uid, one in referrers.items()}


class _Closure(Closure):
    """Fetches the series."""

    def __init__(
        self, mirror: Fetches, bounds: Bounds, fetched: tuple[int, int], on_progress: Callable[[str], object]
    ) -> None:
        super().__init__(mirror.lake, mirror.client)
        self.mirror, self.bounds, self.on_progress = mirror, bounds, on_progress
        self.series, self.bytes = fetched
        self.result = Followed(lost=self.finder.lost)

    def take(self, rows: pa.Table, reasons: Mapping[str, str]) -> list[str]:
        """Fetch the series that are not in the lake, as far as the bounds allow; what was fetched is committed."""
        if not rows.num_rows:
            return []
        plan = self._within(self.mirror.plan_series(WHAT, rows, self._left(), on_progress=self.on_progress))
        self.there += plan.done
        self.result.left |= {one.SeriesInstanceUID: one for one in (*plan.left, *plan.no_room)}
        progress = Progress(WHAT, plan.todo, self.on_progress)
        try:
            with progress.told():
                for batch in plan.batches():
                    self.mirror.fetch(batch, for_whom=reasons, on_result=progress.add, on_bytes=progress.arrived)
        finally:
            for collection in collections_of(plan.todo):
                with soon_if_interrupted():
                    commit_journal(self.lake, collection)
        self.result.receipts += progress.receipts
        self.finder.forget(rows[UID].to_pylist())
        return [r.wanted.SeriesInstanceUID for r in progress.receipts if r.status == COMPLETE]

    def _left(self) -> Bounds:
        """Return how much may still be fetched."""
        series, size = self._spent()
        most, most_bytes = self.bounds.max_series, self.bounds.max_bytes
        most = None if most is None else max(0, most - series)
        if most_bytes is not None and most_bytes <= size:
            return replace(self.bounds, max_bytes=None, max_series=0)
        return replace(self.bounds, max_bytes=most_bytes and most_bytes - size, max_series=most)

    def _within(self, plan: Plan) -> Plan:
        """Return a plan that exceeds no bound: the first series of a run may be larger, not one that comes later."""
        most, (series, size) = self.bounds.max_bytes, self._spent()
        if most is None or not series or size + plan.figures.bytes <= most:
            return plan
        return replace(plan, todo=[], left=[*plan.todo, *plan.left])

    def _spent(self) -> tuple[int, int]:
        return self.series + len(self.result.fetched), self.bytes + self.result.bytes


def selected(
    lake: Lake, collections: Sequence[str], selection: Selection = EVERYTHING, selections: Selections = ALL_WANTED
) -> list[Held]:
    """Return the series of some collections that are selected and in the lake.

    Raises:
        NotRead: the manifest or the cart of the selections was not read yet.
        LakeError: the lake cannot be read.
    """
    found: list[Held] = []
    for collection in collections:
        rows = selection.apply(selections.wanted(lake, collection, present_series(lake, collection)))
        receipts = lake.read_table(IMAGE_SERIES, collection, columns=RECEIPT)
        found += held_of(receipts.filter(pc.is_in(receipts[UID], value_set=rows[UID]))).values()
    return found


def annotations_of(lake: Lake, patients: Collection[str]) -> pa.Table:
    """Return the series of annotations of some patients that any collection lists: table ``series``."""
    rows = rows_among(lake, SERIES, "PatientID", patients, SERIES.schema.names)
    return present(lake, rows.filter(among(rows["Modality"], MODALITIES)))


def _referring_to(lake: Lake, images: Collection[str], annotations: Mapping[str, Held]) -> list[Held]:
    """Return which annotations refer to some images, or to an annotation that does."""
    pairs = Finder(lake).find(references_of(lake, annotations.values()), annotations)
    related, more = set(images), set(images)
    while more:
        more = {referrer for referrer, uid in pairs if uid in more}.difference(related)
        related |= more
    return [held for uid, held in annotations.items() if uid in related]
