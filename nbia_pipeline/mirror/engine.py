"""The entry point of the engine: a collection is listed, planned, fetched and committed, in this order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import stopping
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.feed import record_changes
from nbia_pipeline.changes.listing import LISTED, fetch_list, write_listing
from nbia_pipeline.changes.present import present_series
from nbia_pipeline.changes.reasons import Reasons
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.table_file import Rows
from nbia_pipeline.mirror import journal
from nbia_pipeline.mirror.annotations.fetch import AnnotationsResult, annotations_due, fetch_annotations
from nbia_pipeline.mirror.commit import carry_over, commit, current_receipts, defer
from nbia_pipeline.mirror.download import NOBODY, OnBytes, fetch_batch
from nbia_pipeline.mirror.licenses import keep_licenses
from nbia_pipeline.mirror.plan import EVERYTHING, NO_BOUNDS, Bounds, Missing, Plan, choose, compare
from nbia_pipeline.mirror.progress import Progress
from nbia_pipeline.mirror.rebuild.tables import rebuild
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.references.closure import IMAGES, Followed, follow, selected
from nbia_pipeline.mirror.selection import ALL_WANTED, Selection, SelectionError, Selections, cart_series
from nbia_pipeline.mirror.series import WantedSeries, named, wanted_series
from nbia_pipeline.reading.sql import write_catalog
from nbia_pipeline.schema import tables as t
from nbia_pipeline.schema.status import COMPLETE

# Of several collections that are planned, so many at a time: each asks the archive for a license, and the store a lot.
PLANNED_AT_A_TIME = 4

OnProgress = Callable[[str], object]
"""Takes one line of text, for a person."""


@dataclass(frozen=True)
class MirrorResult:
    """What ``Mirror.run`` did.

    Attributes:
        wanted: how many series are wanted.
        already_there: how many of them were in the lake before.
        fetched: how many were fetched.
        files: how many files these have.
        bytes: how large these files are.
        left: how many were left for a later run, because of the bounds or the room on the disk.
        failed: why a series could not be fetched, by SeriesInstanceUID.
        referenced: what references led to besides; None if they were not followed.
    """

    wanted: int
    already_there: int
    fetched: int
    files: int
    bytes: int
    left: int
    failed: Mapping[str, str]
    referenced: Followed | None = None


class Mirror:
    """Mirrors collections of an archive into a lake.

    Args:
        client: the archive.
        lake: the lake.
        streams: most series in hand at a time; None: eight more than there may be requests in flight.
        annotations: whether :meth:`run` fetches annotation files too.
        selections: which series of a collection are wanted, by every run; all by default.

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

    def __init__(
        self,
        client: NbiaClient,
        lake: Lake,
        *,
        streams: int | None = None,
        annotations: bool = True,
        selections: Selections = ALL_WANTED,
    ) -> None:
        self.client = client
        self.selections = selections
        self.lake = lake
        self.streams = streams
        self.annotations = annotations

    def run(
        self,
        collection: str,
        selection: Selection = EVERYTHING,
        bounds: Bounds = NO_BOUNDS,
        *,
        with_references: Sequence[str] = (),
        on_progress: OnProgress = lambda line: None,
    ) -> MirrorResult:
        """Mirror a collection: its tables, then every series that is wanted and not in the lake, verified.

        Annotation files follow, see :meth:`fetch_annotations`; what the archive does not send of them fails nothing.

        Args:
            collection: exact spelling.
            selection: which of its series are wanted; all by default.
            bounds: how much to fetch.
            with_references: what to fetch besides; see :meth:`fetch_references`. None: nothing.
            on_progress: takes a line from time to time, from any thread.

        Raises:
            ArchiveError: the archive cannot be reached or refuses the account; what was fetched stays.
            LakeError: the lake cannot be written.
        """
        self.update_tables(collection)
        plan = self.plan(collection, selection, bounds, on_progress=on_progress)
        progress = Progress(collection, plan.todo, on_progress)
        try:
            with progress.told():
                for batch in plan.batches():
                    self.fetch(batch, on_result=progress.add, on_bytes=progress.arrived)
        finally:
            self.commit(collection)
        fetched = [r for r in progress.receipts if r.status == COMPLETE]
        size = sum(i.Size for r in fetched for i in r.instances)
        referenced = None
        if with_references:
            before = (len(fetched), size)
            referenced = self.fetch_references(
                [collection], selection, with_references, bounds, fetched=before, on_progress=on_progress
            )
        if self.annotations:
            self.fetch_annotations(collection)
        write_catalog(self.lake)
        return MirrorResult(
            wanted=plan.wanted_figures.series,
            already_there=plan.done,
            fetched=len(fetched),
            files=sum(len(r.instances) for r in fetched),
            bytes=size,
            left=len(plan.left) + len(plan.no_room),
            failed={
                r.wanted.SeriesInstanceUID: f"{r.status}: {r.reason}" for r in progress.receipts if r.status != COMPLETE
            },
            referenced=referenced,
        )

    def update_tables(self, collection: str, *, allow_lost_columns: bool = False) -> None:
        """List the patients, studies and series of a collection into the lake, and record what changed.

        Args:
            collection: exact spelling.
            allow_lost_columns: True accepts an answer in which a column is empty that was full before.

        Raises:
            BadAnswer: the archive has nothing in the collection, or lost a column.
            ArchiveError: the archive cannot be asked.
            LakeError: the lake cannot be written.
        """
        self.lake.check_writable()
        client = self.client
        for table in LISTED:
            fetch = partial(fetch_list, client, table, collection)
            write_listing(self.lake, table, client.api, fetch, collection, allow_lost_columns=allow_lost_columns)
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

        Tables that are damaged or missing are rebuilt. What earlier runs
        finished is committed, leftovers of dead processes are swept, and the texts of the licenses are stored in the
        lake. What the disk has no room for is left out, and its receipt says so.

        Args:
            collection: exact spelling; its series are listed in the lake.
            selection: which of its series are wanted.
            bounds: how much to fetch.
            on_progress: takes the plan in one line.

        Raises:
            ArchiveError: the archive cannot be asked for the licenses, or for the cart of the selections.
            SelectionError: the manifest or the cart of the selections cannot be read, or names no series.
            LakeError: the series were never listed, or the lake cannot be written.
        """
        plan, failed = self.plan_all([collection], selection, bounds, on_progress=on_progress)
        for error in failed.values():
            raise error
        return plan

    def plan_all(
        self,
        collections: Sequence[str],
        selection: Selection = EVERYTHING,
        bounds: Bounds = NO_BOUNDS,
        *,
        on_progress: OnProgress = lambda line: None,
    ) -> tuple[Plan, dict[str, LakeError | SelectionError]]:
        """Return what to fetch of several collections, as :meth:`plan` does of one, within the bounds of one run.

        A collection that cannot be planned, such as one that was never listed, costs the others nothing.

        Args:
            collections: exact spelling; what is missing is fetched in this order.
            selection: which of their series are wanted.
            bounds: how much to fetch of all of them together.
            on_progress: takes the plan in one line.

        Returns:
            The plan, and why collections are not in it.

        Raises:
            ArchiveError: as for :meth:`plan`.
            LakeError: the lake cannot be written.
        """

        lists: dict[str, Selection] = {}

        def rows_of(collection: str) -> tuple[Rows, Rows, Rows]:
            rebuild(self.client, self.lake, collection)
            listed = listed_series(self.lake, collection)
            self.selections.read(self.client, self.lake, collection, listed, lists)
            return self.selections.wanted(self.lake, collection, listed), listed, listed

        return self._plan(named(collections), collections, rows_of, selection, bounds, on_progress)

    def plan_cart(
        self, name: str, bounds: Bounds = NO_BOUNDS, *, on_progress: OnProgress = lambda line: None
    ) -> tuple[Plan, list[WantedSeries]]:
        """Return what to fetch of a shared cart, as :meth:`plan` does of a collection, and all of its series.

        Raises:
            SelectionError: the cart has no series that this account may see.
            ArchiveError: the archive cannot be asked; v4 has no carts.
            LakeError: as for :meth:`plan`.
        """
        rows = cart_series(self.client, self.lake, name)
        return self.plan_series(f"cart {name}", rows, bounds, on_progress=on_progress), wanted_series(rows)

    def plan_series(
        self, what: str, rows: pa.Table, bounds: Bounds = NO_BOUNDS, *, on_progress: OnProgress = lambda line: None
    ) -> Plan:
        """Return what to fetch of some series of any collections, as :meth:`plan` does of those of one.

        Args:
            what: what they are, for a person.
            rows: of table ``series``.
            bounds: how much to fetch.
            on_progress: takes the plan in one line.

        Raises:
            ArchiveError: the archive cannot be asked for the licenses.
            LakeError: as for :meth:`plan`.
        """

        def rows_of(collection: str) -> tuple[Rows, Rows, Rows]:
            series = rows.filter(pc.equal(rows["Collection"], collection))
            rebuild(self.client, self.lake, collection, series)
            # A license is that of a collection: where the lake lists it, all its series count.
            listed = self.lake.count_rows(t.SERIES, collection)
            return series, series, present_series(self.lake, collection) if listed else series

        collections = pc.unique(rows["Collection"]).to_pylist()
        plan, failed = self._plan(what, collections, rows_of, EVERYTHING, bounds, on_progress)
        for error in failed.values():
            raise error
        return plan

    def fetch(
        self,
        batch: Sequence[WantedSeries],
        *,
        ask_list: bool = False,
        for_whom: Mapping[str, str] = NOBODY,
        on_result: Callable[[Receipt], None] = lambda receipt: None,
        on_bytes: OnBytes = lambda wanted, size: None,
    ) -> list[Receipt]:
        """Fetch, verify and publish the series of a batch; :meth:`commit` then enters them into the tables."""
        return fetch_batch(
            self.client,
            self.lake,
            batch,
            streams=self.streams,
            ask_list=ask_list,
            for_whom=for_whom,
            on_result=on_result,
            on_bytes=on_bytes,
        )

    def fetch_references(
        self,
        collections: Sequence[str],
        selection: Selection = EVERYTHING,
        kinds: Sequence[str] = (IMAGES,),
        bounds: Bounds = NO_BOUNDS,
        *,
        fetched: tuple[int, int] = (0, 0),
        on_progress: OnProgress = lambda line: None,
    ) -> Followed:
        """Fetch what the references of selected series lead to, in whatever study and collection.

        It begins with those in the lake, and goes on until nothing is new; see :mod:`nbia_pipeline.mirror.references`.

        Args:
            collections: exact spelling.
            selection: which of their series are selected.
            kinds: ``images`` for what these refer to, ``annotations`` for what refers to them.
            bounds: how much to fetch.
            fetched: how many series and bytes of that were fetched before.
            on_progress: takes a line from time to time, from any thread.

        Raises:
            ArchiveError: the archive cannot be asked; what was fetched is committed.
            LakeError: the lake cannot be read or written.
        """
        begin = selected(self.lake, collections, selection, self.selections)
        return follow(self, begin, kinds, bounds, fetched=fetched, on_progress=on_progress)

    def commit(self, collection: str, *, clear_mark: bool = True) -> pa.Table:
        """Enter what was fetched into the tables ``image_series`` and ``instances``, and return the receipts."""
        return commit(self.lake, collection, clear_mark=clear_mark)

    def fetch_annotations(self, collection: str) -> AnnotationsResult:
        """Fetch the annotation files that series in the lake have at the archive and not in the lake.

        Which series have some is known from table ``series_metadata``, which only v2 fills so far; without it nothing
        is fetched.

        Raises:
            LakeError: the lake cannot be read or written.
        """
        return fetch_annotations(self.client, self.lake, collection, annotations_due(self.lake, collection))

    def _plan(
        self,
        what: str,
        collections: Sequence[str],
        rows_of: Callable[[str], tuple[Rows, Rows, Rows]],
        selection: Selection,
        bounds: Bounds,
        on_progress: OnProgress,
    ) -> tuple[Plan, dict[str, LakeError | SelectionError]]:
        """Plan for some collections.

        For each, `rows_of` returns the series that are wanted, those whose receipts are brought up to date, and all
        that are listed.
        """

        def missing(collection: str) -> Missing | LakeError | SelectionError:
            try:
                wanted, series, listed = rows_of(collection)
                receipts = carry_over(self.lake, collection, series, wanted)
                self._keep_licenses(collection, listed)
                return _compared(series, wanted, receipts, selection, bounds)
            except (LakeError, SelectionError) as e:
                return e

        most = min(self.streams or PLANNED_AT_A_TIME, PLANNED_AT_A_TIME)
        with stopping.threads(most, "nbia-plan") as pool:
            calls = (partial(missing, collection) for collection in collections)
            found = dict(zip(collections, stopping.in_order(pool, calls, most), strict=True))
        parts = {collection: part for collection, part in found.items() if isinstance(part, Missing)}
        swept = journal.sweep(self.lake)
        free = self.lake.free_bytes()
        plan = choose(parts, bounds, free)
        defer(self.lake, plan.no_room, free)
        leftovers = f", {swept} leftovers of earlier runs removed" if swept else ""
        if parts:
            on_progress(f"{what}: {plan.text(free)}{leftovers}")
        return plan, {c: e for c, e in found.items() if not isinstance(e, Missing)}

    def _keep_licenses(self, collection: str, series: Rows) -> None:
        keep_licenses(self.client, self.lake, collection, series)


def listed_series(lake: Lake, collection: str) -> Rows:
    """Return the collection's rows of the ``series`` table; none of a collection that was withdrawn entirely.

    Raises:
        LakeError: it was not listed yet.
    """
    if not lake.count_rows(t.SERIES, collection):
        raise LakeError(f"the series table has no rows for {collection!r}: materialize series first")
    return present_series(lake, collection)


def preview(
    lake: Lake,
    collection: str,
    selection: Selection = EVERYTHING,
    bounds: Bounds = NO_BOUNDS,
    free: int | None = None,
    selections: Selections = ALL_WANTED,
) -> Plan:
    """Return what a run would fetch of a collection if so many bytes were free on the disk, and change nothing.

    Raises:
        NotRead: the manifest or the cart that selects its series was not read yet.
        LakeError: the lake cannot be read.
    """
    series = present_series(lake, collection)
    wanted = selections.wanted(lake, collection, series)
    receipts = current_receipts(lake, collection, series, wanted)
    return choose({collection: _compared(series, wanted, receipts, selection, bounds)}, bounds, free)


def _compared(series: Rows, wanted: Rows, receipts: Rows, selection: Selection, bounds: Bounds) -> Missing:
    found = compare(wanted, receipts, selection, retry=bounds.retry)
    return replace(found, unwanted=series.num_rows - wanted.num_rows)
