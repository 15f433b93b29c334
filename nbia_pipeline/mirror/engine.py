"""The entry point of the engine: a collection is listed, planned, fetched and committed, in this order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.feed import record_changes
from nbia_pipeline.changes.listing import Fetched, write_listing
from nbia_pipeline.changes.present import present_series
from nbia_pipeline.changes.reasons import Reasons
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.mirror import journal
from nbia_pipeline.mirror.commit import commit, current_receipts
from nbia_pipeline.mirror.download import STREAMS, fetch_batch
from nbia_pipeline.mirror.licenses import keep_licenses
from nbia_pipeline.mirror.plan import EVERYTHING, NO_BOUNDS, Bounds, Plan, expect_room, make_plan
from nbia_pipeline.mirror.progress import Progress
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.selection import Selection, cart_series
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.schema import tables as t
from nbia_pipeline.schema.status import COMPLETE

OnProgress = Callable[[str], object]
"""Takes one line of text, for a person."""


@dataclass(frozen=True)
class MirrorResult:
    """What :meth:`Mirror.run` did.

    Attributes:
        wanted: how many series are wanted.
        already_there: how many of them were in the lake before.
        fetched: how many were fetched.
        files: how many files these have.
        bytes: how large these files are.
        left: how many were left for a later run, because of the bounds.
        failed: why a series could not be fetched, by SeriesInstanceUID.
    """

    wanted: int
    already_there: int
    fetched: int
    files: int
    bytes: int
    left: int
    failed: Mapping[str, str]


class Mirror:
    """Mirrors collections of an archive into a lake.

    Args:
        client: the archive.
        lake: the lake.
        streams: most downloads at a time; fewer while the archive or the processors are busy.

    Example:
        >>> with NbiaClient("https://services.cancerimagingarchive.net/nbia-api", api="v4") as client:
        ...     result = Mirror(client, Lake("lake")).run("LIDC-IDRI")

        The same in steps, so that batches can go to several processes:

        >>> mirror.update_tables("LIDC-IDRI")
        >>> plan = mirror.plan("LIDC-IDRI", Selection(modalities=("CT",)), Bounds(max_series=100))
        >>> for batch in plan.batches():
        ...     mirror.fetch(batch, on_result=print)
        >>> mirror.commit("LIDC-IDRI")
    """

    def __init__(self, client: NbiaClient, lake: Lake, *, streams: int = STREAMS) -> None:
        self.client = client
        self.lake = lake
        self.streams = streams

    def run(
        self,
        collection: str,
        selection: Selection = EVERYTHING,
        bounds: Bounds = NO_BOUNDS,
        *,
        on_progress: OnProgress = lambda line: None,
    ) -> MirrorResult:
        """Mirror a collection: its tables, then every series that is wanted and not in the lake, verified.

        Args:
            collection: exact spelling.
            selection: which of its series are wanted; all by default.
            bounds: how much to fetch.
            on_progress: takes a line from time to time, from any thread.

        Raises:
            ArchiveError: the archive cannot be reached or refuses the account; what was fetched stays.
            LakeError: the lake cannot be written, or has too little room.
        """
        self.update_tables(collection)
        plan = self.plan(collection, selection, bounds, on_progress=on_progress)
        progress = Progress(plan.todo, on_progress)
        try:
            for batch in plan.batches():
                self.fetch(batch, on_result=progress.add)
        finally:
            self.commit(collection)
        fetched = [r for r in progress.receipts if r.status == COMPLETE]
        return MirrorResult(
            wanted=plan.wanted_figures.series,
            already_there=plan.done,
            fetched=len(fetched),
            files=sum(len(r.instances) for r in fetched),
            bytes=sum(i.Size for r in fetched for i in r.instances),
            left=len(plan.left),
            failed={
                r.wanted.SeriesInstanceUID: f"{r.status}: {r.reason}" for r in progress.receipts if r.status != COMPLETE
            },
        )

    def update_tables(self, collection: str) -> None:
        """List the patients, studies and series of a collection into the lake, and record what changed.

        Raises:
            BadAnswer: the archive has nothing in the collection.
            ArchiveError: the archive cannot be asked.
            LakeError: the lake cannot be written.
        """
        self.lake.check_writable()
        client = self.client
        for table, ask in ((t.PATIENTS, client.patients), (t.STUDIES, client.studies), (t.SERIES, client.series)):
            write_listing(self.lake, table, client.api, partial(_fetched, ask, collection), collection)
        record_changes(self.lake, collection, reasons=Reasons(client).of)

    def plan(
        self,
        collection: str,
        selection: Selection = EVERYTHING,
        bounds: Bounds = NO_BOUNDS,
        *,
        on_progress: OnProgress = lambda line: None,
    ) -> Plan:
        """Return what to fetch of a collection, with everything prepared before anything is fetched.

        What earlier runs finished is committed, leftovers of dead processes are swept, the disk must have room, and the
        texts of the licenses are stored in the lake.

        Args:
            collection: exact spelling; its series are listed in the lake.
            selection: which of its series are wanted.
            bounds: how much to fetch.
            on_progress: takes the plan in one line.

        Raises:
            ArchiveError: the archive cannot be asked for the licenses.
            LakeError: the series were never listed, or the lake cannot be written, or has too little room.
        """
        listed = {collection: listed_series(self.lake, collection)}
        return self._plan(collection, listed, listed, selection, bounds, on_progress)

    def plan_cart(self, name: str, bounds: Bounds = NO_BOUNDS, *, on_progress: OnProgress = lambda line: None) -> Plan:
        """Return what to fetch of a shared cart, as :meth:`plan` does of a collection.

        Raises:
            SelectionError: the cart has no series that this account may see.
            ArchiveError: the archive cannot be asked; v4 has no carts.
            LakeError: as for :meth:`plan`.
        """
        rows = cart_series(self.client, self.lake, name)
        series = {c: rows.filter(pc.equal(rows["Collection"], c)) for c in pc.unique(rows["Collection"]).to_pylist()}
        # A license is that of a collection: where the lake lists it, all its series count.
        whole = {c: present_series(self.lake, c) if self.lake.count_rows(t.SERIES, c) else s for c, s in series.items()}
        return self._plan(f"cart {name}", series, whole, EVERYTHING, bounds, on_progress)

    def fetch(
        self, batch: Sequence[WantedSeries], *, on_result: Callable[[Receipt], None] = lambda receipt: None
    ) -> list[Receipt]:
        """Fetch the series of a batch; see :func:`~nbia_pipeline.mirror.download.fetch_batch`."""
        return fetch_batch(self.client, self.lake, batch, streams=self.streams, on_result=on_result)

    def commit(self, collection: str, *, clear_mark: bool = True) -> pa.Table:
        """Carry what was fetched over into the tables; see :func:`~nbia_pipeline.mirror.commit.commit`."""
        return commit(self.lake, collection, clear_mark=clear_mark)

    def _plan(
        self,
        what: str,
        series: Mapping[str, pa.Table],
        whole: Mapping[str, pa.Table],
        selection: Selection,
        bounds: Bounds,
        on_progress: OnProgress,
    ) -> Plan:
        """Plan for some series by collection; `whole` are the listings of these collections."""
        rows = pa.concat_tables([t.SERIES.schema.empty_table(), *series.values()])
        receipts = [commit(self.lake, collection, listed) for collection, listed in series.items()]
        receipts = pa.concat_tables([t.IMAGE_SERIES.schema.empty_table(), *receipts])
        swept = journal.sweep(self.lake)
        plan = make_plan(rows, receipts, selection=selection, bounds=bounds)
        leftovers = f", {swept} leftovers of earlier runs removed" if swept else ""
        on_progress(f"{what}: {plan.text(self.lake.free_bytes())}{leftovers}")
        expect_room(self.lake, plan)
        for collection, listed in whole.items():
            self._keep_licenses(collection, listed)
        return plan

    def _keep_licenses(self, collection: str, series: pa.Table) -> None:
        keep_licenses(self.client, self.lake, collection, series)


def _fetched(ask: Callable[[str], pa.Table], collection: str) -> Fetched:
    return Fetched(ask(collection))


def listed_series(lake: Lake, collection: str) -> pa.Table:
    """Return the collection's rows of the ``series`` table; none of a collection that was withdrawn entirely.

    Raises:
        LakeError: it was not listed yet.
    """
    if not lake.count_rows(t.SERIES, collection):
        raise LakeError(f"the series table has no rows for {collection!r}: materialize series first")
    return present_series(lake, collection)


def preview(lake: Lake, collection: str, selection: Selection = EVERYTHING, bounds: Bounds = NO_BOUNDS) -> Plan:
    """Return what a run would fetch of a collection, and change nothing.

    Raises:
        LakeError: the lake cannot be read.
    """
    series = present_series(lake, collection)
    return make_plan(series, current_receipts(lake, collection, series), selection=selection, bounds=bounds)
