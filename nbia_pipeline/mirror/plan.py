"""What is wanted minus what is there: the series to fetch, their batches, and whether the disk has room for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.mirror.selection import Selection
from nbia_pipeline.mirror.series import COLUMNS, WantedSeries, has_files, in_order_of, same_contents, wanted_series
from nbia_pipeline.schema.status import QUARANTINED, UNAVAILABLE

BATCH_BYTES = 2_000_000_000
BATCH_SERIES = 200
TRIED_AGAIN_AFTER = timedelta(days=1)

# What a run needs beside its image files: tables and journal, the old version of a series until the new one is
# whole, an instance that is healed. Two hundredths of the images are ample; of a small run they would be too little.
RESERVE_SHARE = 0.02
RESERVE_BYTES = 50_000_000

EVERYTHING = Selection()


@dataclass(frozen=True)
class Figures:
    """How much a set of series is, as the archive announces it.

    Attributes:
        series: how many.
        files: their images.
        bytes: the sizes of their files.
        unsized: how many of them are announced without a size; they count no byte.
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
        files, size = sum(w.ImageCount or 0 for w in rows), sum(w.FileSize or 0 for w in rows)
        return cls(len(rows), files, size, sum(w.FileSize is None for w in rows))

    @classmethod
    def of_table(cls, series: pa.Table) -> Figures:
        """Return the figures of rows of a ``series`` table."""
        files, size = (pc.sum(series[name]).as_py() or 0 for name in ("ImageCount", "FileSize"))
        return cls(series.num_rows, files, size, series["FileSize"].null_count)


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        todo: the series to fetch: first those that were never tried, then those tried in vain; each by UID.
        left: wanted as well, but beyond the bounds of this run.
        wanted_figures: all that is wanted.
        done_figures: what of it is in the lake, whole and with the same fingerprint.
        unselected: how many listed series the selection leaves out.
        given_up: how many were tried in vain and are not to be tried again by this run.
    """

    todo: list[WantedSeries]
    left: list[WantedSeries]
    wanted_figures: Figures
    done_figures: Figures
    unselected: int = 0
    given_up: int = 0

    @property
    def wanted(self) -> int:
        """How many series are wanted."""
        return self.wanted_figures.series

    @property
    def done(self) -> int:
        """How many of them are in the lake."""
        return self.done_figures.series

    @property
    def figures(self) -> Figures:
        """How much there is to fetch."""
        return Figures.of(self.todo)

    @property
    def files(self) -> int:
        """How many files there are to fetch."""
        return self.figures.files

    @property
    def bytes(self) -> int:
        """How many bytes there are to fetch, as far as they are announced."""
        return self.figures.bytes


def make_plan(
    series: pa.Table,
    receipts: pa.Table,
    *,
    selection: Selection = EVERYTHING,
    max_bytes: int | None = None,
    max_series: int | None = None,
    retry: bool = True,
) -> Plan:
    """Compare what the archive lists with what the lake holds.

    A receipt counts as there if it has files and the fingerprint that is listed now; one that was withdrawn kept
    its files. What was tried in vain comes last, so that it never keeps a bounded run from the others.

    Args:
        series: rows of the ``series`` table.
        receipts: rows of the ``image_series`` table, with those of the journal.
        selection: which of the series are wanted; all by default.
        max_bytes: most bytes to fetch, None for no bound; the first series is always planned.
        max_series: most series to fetch, None for no bound.
        retry: False leaves out what is quarantined with the content that is listed now, or was unavailable within
            the last day: the archive hides a series while it is curated, and a sensor shall find it when it is back.
    """
    selected = selection.apply(series).select(COLUMNS).sort_by("SeriesInstanceUID")
    held = in_order_of(selected, receipts)
    same = same_contents(selected, held)
    there = pc.and_(same, has_files(held))
    vain = pc.and_(_tried_in_vain(selected, held, same), pc.invert(there))
    never = pc.invert(pc.or_(there, vain))
    missing = wanted_series(selected.filter(never))
    given_up = 0
    if retry:
        missing += wanted_series(selected.filter(vain))
    else:
        again = pc.and_(vain, _unavailable_for_a_day(held))
        missing += wanted_series(selected.filter(again))
        given_up = (pc.sum(vain).as_py() or 0) - (pc.sum(again).as_py() or 0)
    todo = _within(missing, max_bytes, max_series)
    return Plan(
        todo,
        missing[len(todo) :],
        wanted_figures=Figures.of_table(selected),
        done_figures=Figures.of_table(selected.filter(there)),
        unselected=series.num_rows - selected.num_rows,
        given_up=given_up,
    )


def _within(missing: list[WantedSeries], max_bytes: int | None, max_series: int | None) -> list[WantedSeries]:
    todo: list[WantedSeries] = []
    planned = 0
    for one in missing:
        planned += one.FileSize or 0
        if todo and ((max_bytes is not None and planned > max_bytes) or len(todo) == max_series):
            break
        todo.append(one)
    return todo


def expect_room(lake: Lake, *plans: Plan) -> None:
    """Make sure that the disk of a lake has room for what is to be fetched; an object store has no bound.

    Args:
        lake: where to.
        plans: what for.

    Raises:
        LakeError: it has not; the text has the figures.
    """
    free = lake.free_bytes()
    todo = sum((plan.figures for plan in plans), Figures())
    if free is None or not todo.series:
        return
    reserve = max(RESERVE_BYTES, int(todo.bytes * RESERVE_SHARE))
    if todo.bytes + reserve > free:
        unsized = f", and {todo.unsized} of them are announced without a size" if todo.unsized else ""
        raise LakeError(
            f"the lake {lake.uri} has too little room: {todo.series} series need {todo.bytes:,} bytes{unsized}, "
            f"tables and work in hand {reserve:,} more, and {free:,} bytes are free. Make room, or fetch less: "
            "select what you need, or set a bound (max_bytes)"
        )


# --- was it tried in vain?


def refresh_failed(wanted: WantedSeries) -> str:
    """Return how the reason begins in the receipt of a whole series whose newer version could not be fetched.

    It names the version: an even newer one was not tried yet.
    """
    return (
        f"the newer version ({wanted.ImageCount} images, {wanted.FileSize} bytes, submitted {wanted.TimeStamp}, "
        f"released {wanted.DateReleased}) could not be fetched: "
    )


def _tried_in_vain(series: pa.Table, receipts: pa.Table, same: pa.ChunkedArray) -> pa.Array:
    """Tell of every series whether what is listed now was tried, and could not be had."""
    refused = pc.is_in(receipts["Status"], value_set=pa.array([QUARANTINED, UNAVAILABLE]))
    outdated = pc.and_(has_files(receipts), pc.and_(pc.invert(same), pc.is_valid(receipts["Reason"])))
    rows = series.filter(outdated).to_pylist()
    reasons = receipts.filter(outdated)["Reason"].to_pylist()
    failed = [r.startswith(refresh_failed(WantedSeries(**row))) for row, r in zip(rows, reasons, strict=True)]
    refused = pc.and_(refused, same).combine_chunks()
    return pc.replace_with_mask(refused, outdated.combine_chunks(), pa.array(failed, pa.bool_()))


def _unavailable_for_a_day(receipts: pa.Table) -> pa.Array:
    long_ago = pc.less(receipts["FetchedAt"], pa.scalar(clock.utc_now() - TRIED_AGAIN_AFTER, pa.timestamp("us")))
    unavailable = pc.equal(receipts["Status"], UNAVAILABLE)
    return pc.fill_null(pc.and_(unavailable, long_ago), False)


# --- batches


def batches(
    todo: Iterable[WantedSeries], max_bytes: int = BATCH_BYTES, max_series: int = BATCH_SERIES
) -> Iterator[list[WantedSeries]]:
    """Cut the series to fetch into batches bounded by bytes and count; each holds one series at least."""
    batch: list[WantedSeries] = []
    size = 0
    for one in todo:
        if batch and (size + (one.FileSize or 0) > max_bytes or len(batch) == max_series):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one.FileSize or 0
    if batch:
        yield batch
