"""What is wanted minus what is in the lake: the series to fetch that the disk has room for, and their batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.lake.table_file import Rows, rows_where
from nbia_pipeline.mirror.receipt import fault_of_the_way
from nbia_pipeline.mirror.selection import Selection
from nbia_pipeline.mirror.series import (
    COLUMNS,
    NEWER,
    Columns,
    WantedSeries,
    has_files,
    in_order_of,
    refresh_failed,
    same_contents,
    same_fingerprints,
    wanted_series,
)
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.status import QUARANTINED, UNAVAILABLE
from nbia_pipeline.text import size_text

# A batch is some minutes of work: less is not worth a process, and what fails is repeated.
BATCH_BYTES = 10_000_000_000
SERIES_BYTES = 1_000_000
"""What a series counts besides its bytes: a request from far away takes as long as a megabyte on a busy line."""
BATCH_SERIES = BATCH_BYTES // SERIES_BYTES
RETRY_AFTER = timedelta(days=1)

# What a run needs besides its image files: tables and journal, the old version of a series until the new one is
# complete, an instance that is repaired. Two percent of the images are ample, except for a small run.
RESERVE_SHARE = 0.02
RESERVE_BYTES = 50_000_000

EVERYTHING = Selection()


@dataclass(frozen=True)
class Bounds:
    """How much one run fetches.

    Attributes:
        max_bytes: most bytes to fetch, None for no bound; the first series is always planned.
        max_series: most series to fetch, None for no bound; 0 for a plan alone.
        retry: False leaves out what is quarantined with the content that is listed now, or was unavailable within
            the last day: the archive hides a series while it is curated, and a sensor must find it when it is back.
            What 0.1 quarantined because a page came instead of a zip is retried.
    """

    max_bytes: int | None = None
    max_series: int | None = None
    retry: bool = True


NO_BOUNDS = Bounds()


_FIGURES = ("ImageCount", "FileSize")


@dataclass(frozen=True)
class Figures:
    """How large a set of series is, as announced by the archive.

    Attributes:
        series: how many.
        files: their images.
        bytes: the sizes of their files.
        unsized: how many of them have no announced size; they count as zero bytes.
    """

    series: int = 0
    files: int = 0
    bytes: int = 0
    unsized: int = 0

    def __add__(self, other: Figures) -> Figures:
        return Figures(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Figures)))

    @classmethod
    def of(cls, series: Iterable[WantedSeries]) -> Figures:
        """Return the figures of some series."""
        rows = list(series)
        files, size = sum(max(w.ImageCount or 0, 0) for w in rows), sum(map(_announced, rows))
        return cls(len(rows), files, size, sum(w.FileSize is None for w in rows))

    @classmethod
    def of_rows(cls, series: Rows, mask: pa.ChunkedArray | None = None) -> Figures:
        """Return the figures of rows of a ``series`` table; of those only for which `mask` is true, if there is one."""
        counts, sizes = (series[name] if mask is None else series[name].filter(mask) for name in _FIGURES)
        files, size = (pc.sum(pc.max_element_wise(values, 0)).as_py() or 0 for values in (counts, sizes))
        return cls(len(sizes), files, size, sizes.null_count)


def _announced(series: WantedSeries) -> int:
    """Return the bytes of a series; none where the archive states none, or fewer than none."""
    return max(series.FileSize or 0, 0)


@dataclass(frozen=True)
class Missing:
    """What is wanted of a collection and not in the lake.

    Attributes:
        never: the series that were never tried, by UID.
        again: those that failed before and are retried, by UID.
        wanted_figures: all that is wanted.
        done_figures: what of it is in the lake, complete and with the same fingerprint.
        unselected: how many wanted series the selection of the run leaves out.
        given_up: how many failed before and are not retried by this run.
        unwanted: how many listed series the selection of the configuration leaves out.
    """

    never: list[WantedSeries]
    again: list[WantedSeries]
    wanted_figures: Figures
    done_figures: Figures
    unselected: int
    given_up: int
    unwanted: int = 0


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        todo: the series to fetch: first those that were never tried, then those that failed before; each by collection
            and UID.
        left: wanted as well, but beyond the bounds of this run.
        no_room: wanted as well, but larger than what the disk has left after those before.
        parts: what is wanted, by collection; of a plan for rows of any collections in one part.
    """

    todo: list[WantedSeries]
    left: list[WantedSeries]
    no_room: list[WantedSeries]
    parts: Mapping[str, Missing]

    @property
    def wanted_figures(self) -> Figures:
        """All that is wanted."""
        return sum((part.wanted_figures for part in self.parts.values()), Figures())

    @property
    def done_figures(self) -> Figures:
        """What of it is in the lake."""
        return sum((part.done_figures for part in self.parts.values()), Figures())

    @property
    def unselected(self) -> int:
        """How many listed series the selections leave out: that of the run, and that of the configuration."""
        return sum(part.unselected + part.unwanted for part in self.parts.values())

    @property
    def given_up(self) -> int:
        """How many failed before and are not retried by this run."""
        return sum(part.given_up for part in self.parts.values())

    @property
    def done(self) -> int:
        """How many of the wanted series are in the lake."""
        return self.done_figures.series

    @property
    def figures(self) -> Figures:
        """How much there is to fetch."""
        return Figures.of(self.todo)

    def batches(self, max_series: int = BATCH_SERIES) -> Iterator[list[WantedSeries]]:
        """Cut the series to fetch into as few batches of some 10 GB as there can be, all of about the same size.

        While a batch ends, the last series do not fill the line: a small batch after large ones would double that.

        Args:
            max_series: of a batch.
        """
        costs = [_announced(one) + SERIES_BYTES for one in self.todo]
        even = sum(costs) / max(1, math.ceil(sum(costs) / BATCH_BYTES))
        return batches(self.todo, even + max(costs, default=0), max_series)

    def text(self, free: int | None = None) -> str:
        """Return what a run will do, in one line: what it fetches and what is in the lake.

        Args:
            free: bytes that the disk has free, None where that is not known.
        """
        todo = self.figures
        parts = [
            f"{todo.series} series to fetch ({todo.files:,} files, {size_text(todo.bytes)})",
            f"{self.done} of {self.wanted_figures.series} in the lake ({size_text(self.done_figures.bytes)})",
        ]
        if self.left:
            parts.append(f"{len(self.left)} deferred to a later run")
        if self.no_room:
            parts.append(f"{len(self.no_room)} left out because the disk has too little room for them")
        if self.given_up:
            parts.append(f"{self.given_up} failed before and are not retried")
        if self.unselected:
            parts.append(f"{self.unselected} not selected")
        if free is not None:
            parts.append(f"{size_text(free)} free on the disk")
        return ", ".join(parts)


def make_plan(
    series: Rows,
    receipts: Rows,
    *,
    selection: Selection = EVERYTHING,
    bounds: Bounds = NO_BOUNDS,
    free: int | None = None,
) -> Plan:
    """Compare what the archive lists with what the lake has.

    Args:
        series: rows of the ``series`` table.
        receipts: rows of the ``image_series`` table, with those of the journal.
        selection: which of the series are wanted; all by default.
        bounds: how much to fetch.
        free: bytes that the disk has free, None for no bound.
    """
    return choose({"": compare(series, receipts, selection, retry=bounds.retry)}, bounds, free)


def compare(series: Rows, receipts: Rows, selection: Selection = EVERYTHING, *, retry: bool = True) -> Missing:
    """Return what is wanted and not in the lake.

    A series is in the lake if its receipt has files and the fingerprint that is listed now; one that was withdrawn
    kept its files.

    Args:
        series: rows of the ``series`` table.
        receipts: rows of the ``image_series`` table, with those of the journal.
        selection: which of the series are wanted.
        retry: as in :class:`Bounds`.
    """
    selected = selection.apply(series)
    known = in_order_of(selected, receipts)
    same = same_contents(selected, known)
    there = pc.and_(same, has_files(known))
    failed = pc.and_(_failed_before(selected, known, same), pc.invert(there))
    worth_it = pc.or_(_unavailable_for_a_day(known), fault_of_the_way(known))
    again = failed if retry else pc.and_(failed, worth_it)
    never = pc.invert(pc.or_(there, failed))
    return Missing(
        wanted_series(rows_where(selected, never, COLUMNS)),
        wanted_series(rows_where(selected, again, COLUMNS)),
        wanted_figures=Figures.of_rows(selected),
        done_figures=Figures.of_rows(selected, there),
        unselected=series.num_rows - selected.num_rows,
        given_up=(pc.sum(failed).as_py() or 0) - (pc.sum(again).as_py() or 0),
    )


def choose(parts: Mapping[str, Missing], bounds: Bounds = NO_BOUNDS, free: int | None = None) -> Plan:
    """Return what to fetch of some collections, one after the other, within the bounds of one run.

    What failed before comes last, so that it never keeps a bounded run from fetching the others.

    Args:
        parts: what is missing, by collection.
        bounds: how much to fetch of all of them together.
        free: bytes that the disk has free, None for no bound; what does not fit is left out.
    """
    wanted = [w for part in parts.values() for w in part.never] + [w for part in parts.values() for w in part.again]
    fits, no_room = _fitting(wanted, room_for_files(free))
    most_bytes = math.inf if bounds.max_bytes is None else bounds.max_bytes
    todo = [] if bounds.max_series == 0 else next(batches(fits, most_bytes, bounds.max_series, each=0), [])
    return Plan(todo, fits[len(todo) :], no_room, parts)


def room_for_files(free: int | None) -> float:
    """Return the bytes that image files can take of those that a disk has free, None for no bound."""
    return math.inf if free is None else min(free - RESERVE_BYTES, free / (1 + RESERVE_SHARE))


def _fitting(missing: Iterable[WantedSeries], room: float) -> tuple[list[WantedSeries], list[WantedSeries]]:
    """Return the series that fit into a number of bytes, one after the other, and those that do not."""
    fits: list[WantedSeries] = []
    no_room: list[WantedSeries] = []
    for one in missing:
        size = _announced(one)
        (fits if size <= room else no_room).append(one)
        room -= size if size <= room else 0
    return fits, no_room


# --- did it fail before?


def _failed_before(series: Columns, receipts: Columns, same: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return for each series whether the content that is listed now was tried, and could not be fetched."""
    refused = among(receipts["Status"], [QUARANTINED, UNAVAILABLE])
    outdated = pc.and_(refresh_failed(receipts), same_fingerprints(series, receipts, NEWER))
    return pc.or_(pc.and_(refused, same), outdated)


def _unavailable_for_a_day(receipts: Columns) -> pa.ChunkedArray:
    long_ago = pc.less(receipts["FetchedAt"], pa.scalar(clock.utc_now() - RETRY_AFTER, pa.timestamp("us")))
    unavailable = pc.equal(receipts["Status"], UNAVAILABLE)
    return pc.fill_null(pc.and_(unavailable, long_ago), False)


# --- batches


def batches(
    todo: Iterable[WantedSeries],
    max_bytes: float = BATCH_BYTES,
    max_series: int | None = BATCH_SERIES,
    *,
    each: int = SERIES_BYTES,
) -> Iterator[list[WantedSeries]]:
    """Cut the series to fetch into batches bounded by bytes and count; each has at least one series.

    Args:
        todo: the series, in their order.
        max_bytes: of a batch.
        max_series: of a batch, None for no bound.
        each: bytes that every series counts besides its own.
    """
    batch: list[WantedSeries] = []
    size = 0
    for one in todo:
        counted = _announced(one) + each
        if batch and (size + counted > max_bytes or len(batch) == max_series):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += counted
    if batch:
        yield batch
