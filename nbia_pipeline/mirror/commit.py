"""Receipts: what was fetched and how it is proven. Written to a journal at once, to the tables by and by.

The journal is what makes a finished series survive a crash. An entry is written before the files take
their place, and names the staged directory: if that is still there later, the move is made up for; if it is
gone, the move was done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.lake import Lake, Lock
from nbia_pipeline.lake.layout import JOURNAL, encode, series_path
from nbia_pipeline.lake.lock import this_process
from nbia_pipeline.mirror.merge import as_listed, failed_refreshes, instances_of, with_instances, with_receipts
from nbia_pipeline.mirror.receipt import COUNT_AND_SIZE, MD5, Receipt
from nbia_pipeline.mirror.series import (
    COLUMNS,
    WantedSeries,
    as_table,
    has_files,
    in_order_of,
    same_content,
    same_contents,
)
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES

__all__ = [
    "COUNT_AND_SIZE",
    "MD5",
    "Receipt",
    "already_there",
    "commit",
    "current_receipts",
    "failed_refreshes",
    "has_failed",
    "mark_failed",
    "note_failure",
    "publish_series",
    "staged_by_journal",
]

# So many rows of instances are settled at a time: some hundred bytes each, whatever the journal holds.
SLICE_INSTANCES = 250_000

FAILED = "failed"
_ENTRY = ".json"


def publish_series(lake: Lake, receipt: Receipt, staged: Path) -> None:
    """Put a verified series into its place, and note it in the journal.

    Args:
        lake: where to.
        receipt: a complete one.
        staged: local directory that holds just the files; it is moved away.
    """
    wanted = receipt.wanted
    lake.publish(staged, receipt.path, wanted.Collection, wanted.SeriesInstanceUID, partial(_note, lake, receipt))


def note_failure(lake: Lake, receipt: Receipt) -> None:
    """Note in the journal that a series could not be had."""
    with lake.lock(Lock.COLLECTION, receipt.wanted.Collection):
        _note(lake, receipt, staged=None)


def commit(
    lake: Lake,
    collection: str,
    series: pa.Table,
    *,
    withdrawn: frozenset[str] = frozenset(),
    clear_mark: bool = True,
) -> pa.Table:
    """Carry the journal of a collection over into its tables, and return its receipts.

    Moves that a crash prevented are made first. What the receipts then say of series that are new, gone, or back
    is told in :func:`~nbia_pipeline.mirror.merge.as_listed`. Without anything new no table is written.

    An entry of the journal is removed after both tables hold it, so that a crash costs none; the index of the files
    comes first, so that no receipt is there without its files.

    Args:
        lake: the lake.
        collection: which partition.
        series: the rows of its ``series`` table.
        withdrawn: SeriesInstanceUIDs that are believed to be withdrawn.
        clear_mark: forget that a batch failed; a batch itself must not (see :func:`mark_failed`).
    """
    with lake.lock(Lock.COLLECTION, collection) as expect_held:
        if clear_mark:
            lake.remove(_mark_path(collection))
        before = lake.read_table(IMAGE_SERIES, collection)
        for entries in _slices(lake, collection):
            receipts = _receipts(entries)
            for entry, receipt in zip(entries.values(), receipts, strict=True):
                _make_up_for(lake, entry, receipt)
            table = as_listed(with_receipts(before, receipts), series, withdrawn)
            expect_held()
            _write_instances(lake, collection, receipts)
            for path in _left_behind(before, receipts):
                lake.remove_folder(path)
            if not table.equals(before) or not lake.has_table(IMAGE_SERIES, collection):
                lake.write_table(IMAGE_SERIES, table, collection)
            for path in entries:
                lake.remove(path)
            before = table
        return before


def current_receipts(lake: Lake, collection: str, series: pa.Table) -> pa.Table:
    """Return the receipts as :func:`commit` would, and change nothing."""
    table = lake.read_table(IMAGE_SERIES, collection)
    for entries in _slices(lake, collection):
        table = with_receipts(table, _receipts(entries))
    return as_listed(table, series)


def already_there(lake: Lake, collection: str, batch: Sequence[WantedSeries]) -> set[str]:
    """Return the SeriesInstanceUIDs of a batch that need no fetch any more: an earlier try of it got them.

    Args:
        lake: the lake.
        collection: which partition.
        batch: series of it.
    """
    wanted = as_table(batch)
    held = in_order_of(wanted, lake.read_table(IMAGE_SERIES, collection, columns=[*COLUMNS, "Status", "Bytes"]))
    there = pc.and_(same_contents(wanted, held), has_files(held))
    found = set(wanted["SeriesInstanceUID"].filter(there).to_pylist())
    with lake.lock(Lock.COLLECTION, collection):
        # The journal is newer than the tables.
        noted = set(lake.names_in(_journal_path(collection)))
        for one in (w for w in batch if _entry_name(w) in noted):
            entry = json.loads(lake.read_bytes(_entry_path(one)) or b"{}")
            found.discard(one.SeriesInstanceUID)
            if entry and _is_of(entry, one):
                _make_up_for(lake, entry, Receipt.from_json(entry["receipt"]))
                found.add(one.SeriesInstanceUID)
    return found


def _is_of(entry: dict[str, Any], wanted: WantedSeries) -> bool:
    receipt = Receipt.from_json(entry["receipt"])
    return receipt.status == COMPLETE and same_content(wanted, receipt.row())


# --- a batch that fails


def mark_failed(lake: Lake, collection: str) -> None:
    """Note that a batch of a collection failed, so that the others see to it that what they fetched is published.

    Nobody finishes a run with a failed batch, so whoever comes last must settle. The failed batch marks, then
    settles; every other batch notes its receipts, then looks for the mark, and settles if there is one. Take the
    moment at which the failed batch reads the journal. What another noted before, that settling carries over. What
    it noted after, it noted after the mark was made: so it finds the mark, and settles itself. Both settle with
    ``clear_mark=False``; the next plan, or the end of the run, clears it.
    """
    lake.put_bytes(_mark_path(collection), this_process().encode())


def has_failed(lake: Lake, collection: str) -> bool:
    """Tell whether a batch of a collection failed since the mark was cleared; see :func:`mark_failed`."""
    return lake.read_bytes(_mark_path(collection)) is not None


def _left_behind(before: pa.Table, receipts: Iterable[Receipt]) -> Iterator[str]:
    """Yield where the older files of series lie that came back under another patient or study."""
    fresh = {r.wanted.SeriesInstanceUID: r.path for r in receipts if r.status == COMPLETE}
    known = before.filter(pc.is_in(before["SeriesInstanceUID"], value_set=pa.array(list(fresh), pa.string())))
    for row in known.filter(has_files(known)).to_pylist():
        uid = row["SeriesInstanceUID"]
        path = series_path(row["Collection"], row["PatientID"], row["StudyInstanceUID"], uid)
        if path != fresh[uid]:
            yield path


# --- the journal


def staged_by_journal(lake: Lake) -> set[str]:
    """Return the names of the staged directories that an unsettled journal still needs."""
    if not lake.staged():
        return set()
    found = set()
    for folder in (f"{JOURNAL}/{name}" for name in lake.names_in(JOURNAL)):
        for name in lake.names_in(folder):
            content = lake.read_bytes(f"{folder}/{name}") if name.endswith(_ENTRY) else None
            # None also if another run committed it meanwhile.
            if content and (staged := json.loads(content).get("staged")):
                found.add(staged.split("/")[0])
    return found


def _journal_path(collection: str) -> str:
    return f"{JOURNAL}/{encode(collection)}"


def _entry_name(wanted: WantedSeries) -> str:
    return f"{encode(wanted.SeriesInstanceUID)}{_ENTRY}"


def _entry_path(wanted: WantedSeries) -> str:
    return f"{_journal_path(wanted.Collection)}/{_entry_name(wanted)}"


def _mark_path(collection: str) -> str:
    return f"{_journal_path(collection)}/{FAILED}"


def _note(lake: Lake, receipt: Receipt, staged: str | None) -> str:
    entry = json.dumps({"receipt": receipt.to_json(), "staged": staged}).encode()
    path = _entry_path(receipt.wanted)
    lake.put_bytes(path, entry)
    return path


def _slices(lake: Lake, collection: str) -> Iterator[dict[str, dict[str, Any]]]:
    """Yield the entries of a journal by path, some at a time; at least once, without any."""
    folder = _journal_path(collection)
    entries: dict[str, dict[str, Any]] = {}
    size = 0
    for path in (f"{folder}/{name}" for name in lake.names_in(folder) if name.endswith(_ENTRY)):
        content = lake.read_bytes(path)
        if content is None:
            continue  # who only looks has no lock: it was settled meanwhile
        entries[path] = json.loads(content)
        size += len(entries[path]["receipt"]["instances"])
        if size >= SLICE_INSTANCES:
            yield entries
            entries, size = {}, 0
    yield entries


def _receipts(entries: dict[str, dict[str, Any]]) -> list[Receipt]:
    return [Receipt.from_json(entry["receipt"]) for entry in entries.values()]


def _make_up_for(lake: Lake, entry: dict[str, Any], receipt: Receipt) -> None:
    if entry["staged"] is not None:
        lake.publish_staged(entry["staged"], receipt.path)


def _write_instances(lake: Lake, collection: str, receipts: Iterable[Receipt]) -> None:
    fresh = [r for r in receipts if r.status == COMPLETE]
    if not fresh:
        if not lake.has_table(INSTANCES, collection):
            lake.write_table(INSTANCES, INSTANCES.schema.empty_table(), collection)
        return
    replaced = pa.array([r.wanted.SeriesInstanceUID for r in fresh], pa.string())
    pieces = with_instances(lake.read_pieces(INSTANCES, collection), instances_of(fresh), replaced)
    lake.write_pieces(INSTANCES, pieces, collection)
