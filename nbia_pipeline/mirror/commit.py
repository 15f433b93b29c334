"""From the journal to the tables: how ``image_series`` and ``instances`` change when series have been fetched.

The functions from tables to tables are made for a hundred thousand series and millions of instances.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.changes.present import present_series, withdrawal_reasons, withdrawn_series
from nbia_pipeline.lake import Lake, Lock
from nbia_pipeline.lake.layout import instance_name, series_path
from nbia_pipeline.lake.table_file import Rows, TableFile, rows_where
from nbia_pipeline.mirror import journal
from nbia_pipeline.mirror.journal import Entry
from nbia_pipeline.mirror.receipt import Receipt, says_for_whom
from nbia_pipeline.mirror.series import (
    COLUMNS,
    FINGERPRINT,
    NEWER,
    NO_NEWER,
    WantedSeries,
    as_table,
    collections_of,
    has_files,
    in_order_of,
    same_contents,
)
from nbia_pipeline.mirror.upgrade import lacks_paths, upgraded, with_paths
from nbia_pipeline.schema.arrow import among, places_in, values_by, with_column
from nbia_pipeline.schema.status import COMPLETE, PENDING, WITHDRAWN
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES
from nbia_pipeline.text import logger

log = logger(__name__)

NOT_FETCHED = "not fetched yet"
NO_ROOM = "no room: "
NOT_REFRESHED = "the newest version could not be fetched before the archive withdrew the series for a while"
NO_REASONS: Mapping[str, str] = {}

_UID = "SeriesInstanceUID"
_NO_TEXT = pa.scalar(None, pa.string())
_ORDER = [(name, "ascending") for name in (_UID, "InstanceNumber", "SOPInstanceUID")]


def commit(lake: Lake, collection: str, series: Rows | None = None, *, clear_mark: bool = True) -> pa.Table:
    """Carry the journal of a collection over into its tables, and return its receipts; see :func:`carry_over`."""
    return carry_over(lake, collection, series, clear_mark=clear_mark).to_table()


def carry_over(
    lake: Lake, collection: str, series: Rows | None = None, wanted: Rows | None = None, *, clear_mark: bool = True
) -> TableFile:
    """Carry the journal of a collection over into its tables, and return the file of its receipts.

    Moves that a crash prevented are made first. For series that are new, gone, or back, see :func:`as_listed`.
    If nothing is new, no table is written.

    Receipts whose files are replaced, or removed from another directory, are revoked before that, so that at no moment
    a ``complete`` receipt describes other files than are there. The index of the files is written before the receipts.
    An entry of the journal is removed after both tables hold it, so that a crash loses none.

    Args:
        lake: the lake.
        collection: which partition.
        series: rows of its ``series`` table; None for all that are listed and not withdrawn, of which none becomes
            pending that has no receipt: which ones are wanted is known where a run is planned.
        wanted: those of them that are wanted; None for all.
        clear_mark: forget that a batch failed; a batch itself must not (see :func:`journal.mark_failed`).

    Raises:
        LakeError: the lake cannot be read or written.
    """
    if series is None:
        series = present_series(lake, collection)
    elif wanted is None:
        wanted = series
    withdrawn = withdrawn_series(lake, collection)
    reasons = withdrawal_reasons(lake, collection) if withdrawn else {}
    with lake.lock(Lock.COLLECTION, collection) as expect_held:
        if clear_mark:
            journal.clear_mark(lake, collection)
        before, exists = lake.read_file(IMAGE_SERIES, collection), lake.has_table(IMAGE_SERIES, collection)
        for entries in journal.read_slices(lake, collection, remove_damaged=True):
            if entries:
                lake.flush()
                before = _revoked(lake, collection, before, entries)
            receipts = _moved(lake, entries)
            stays, listed = _settled(before, series, receipts, withdrawn)
            others = before.filter(pc.invert(stays))
            for path in _outdated_folders(others, receipts):
                lake.remove_folder(path)
            if receipts:
                lake.flush()
            known = (before if wanted is None else wanted)[_UID]
            table = as_listed(with_receipts(upgraded(others), receipts), listed, withdrawn, reasons, wanted=known)
            expect_held()
            _write_instances(lake, collection, receipts)
            if not table.equals(others) or not exists or lacks_paths(lake, collection, before):
                pieces = merged(map(with_paths, before.pieces_where(stays)), table, [(_UID, "ascending")])
                before, exists = TableFile.of(IMAGE_SERIES.schema, pieces, collection), True
                # Empty: nothing is wanted any more, and nothing was ever fetched.
                lake.write_table(IMAGE_SERIES, before, collection, may_empty=not len(known))
            lake.remove_all(entry.path for entry in entries)
        return before


def _settled(
    receipts: TableFile, series: Rows, fresh: Iterable[Receipt], withdrawn: Iterable[str]
) -> tuple[pa.ChunkedArray, pa.Table]:
    """Return which receipts stay as they are, and the rows of the listed series that have none of these.

    What becomes of a series does not depend on any other, so that a commit has in memory only those that may change.
    They are few, but for a first run: of a complete series without a problem nothing changes, unless it is withdrawn.
    """
    at = places_in(series[_UID], receipts[_UID])
    stays = pc.and_(pc.equal(receipts["Status"], COMPLETE), pc.invert(among(receipts[_UID], _by_uid(fresh))))
    stays = pc.and_(stays, pc.or_(pc.is_null(receipts["Reason"]), says_for_whom(receipts)))
    for name in NO_NEWER:
        stays = pc.and_(stays, pc.is_null(receipts[name]))
    listed = pc.is_in(pa.array(range(receipts.num_rows), at.type), value_set=at)
    stays = pc.and_(stays, pc.or_(listed, pc.invert(among(receipts[_UID], withdrawn))))
    settled = pc.fill_null(stays.combine_chunks().take(at), False)
    return stays, rows_where(series, pc.invert(settled), COLUMNS)


def _by_uid(receipts: Iterable[Receipt]) -> dict[str, Receipt]:
    return {r.wanted.SeriesInstanceUID: r for r in receipts}


def defer(lake: Lake, no_room: Sequence[WantedSeries], free: int | None) -> None:
    """Write into the receipts of some series that the disk has no room for them.

    Args:
        lake: the lake.
        no_room: the series; each has a receipt.
        free: bytes that were free.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    for collection in collections_of(no_room):
        sizes = {w.SeriesInstanceUID: w.FileSize or 0 for w in no_room if w.Collection == collection}
        with lake.lock(Lock.COLLECTION, collection) as expect_held:
            table = lake.read_table(IMAGE_SERIES, collection)
            reasons = pa.array([_no_room(sizes.get(uid), free) for uid in table[_UID].to_pylist()], pa.string())
            deferred = pc.and_(pc.is_valid(reasons), among(table["Status"], [PENDING, COMPLETE]))
            table = with_column(table, "Reason", pc.if_else(deferred, reasons, table["Reason"]))
            expect_held()
            lake.write_table(IMAGE_SERIES, table, collection)


def _no_room(size: int | None, free: int | None) -> str | None:
    if size is None:
        return None
    return (
        f"{NO_ROOM}it has {size:,} bytes; of the {free or 0:,} that were free on the disk, a part is a reserve, and "
        "the series planned before this one take the rest: make room, and run again"
    )


def commit_journal(lake: Lake, collection: str) -> None:
    """Carry the journal over and nothing else: for a batch of a run in which one failed.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    carry_over(lake, collection, as_table([]), clear_mark=False)


def current_receipts(lake: Lake, collection: str, series: Rows, wanted: Rows | None = None) -> pa.Table:
    """Return the receipts as :func:`carry_over` would, and change nothing."""
    table = upgraded(lake.read_table(IMAGE_SERIES, collection))
    for entries in journal.read_slices(lake, collection):
        table = with_receipts(table, [entry.receipt for entry in entries])
    listed = rows_where(series, pa.repeat(True, series.num_rows), COLUMNS)
    return as_listed(table, listed, wanted=None if wanted is None else wanted[_UID])


def already_there(lake: Lake, batch: Sequence[WantedSeries]) -> set[str]:
    """Return the SeriesInstanceUIDs of a batch that need no fetch: an earlier attempt at it has fetched them."""
    found: set[str] = set()
    columns = [*COLUMNS, "Status", "Bytes"]
    for collection in collections_of(batch):
        wanted = as_table(w for w in batch if w.Collection == collection)
        uids = wanted[_UID].to_pylist()
        table = lake.read_rows(IMAGE_SERIES, collection, _UID, uids, [name for name in columns if name != "Collection"])
        with lake.lock(Lock.COLLECTION, collection):
            found_entries = journal.read_entries(lake, collection, uids)
            entries = [entry for entry in found_entries if journal.is_kept(lake, entry)]
        # The journal is newer than the tables.
        newer = _table([entry.receipt.row() for entry in entries]).select(table.column_names)
        known = pa.concat_tables([table.filter(pc.invert(pc.is_in(table[_UID], newer[_UID]))), newer])
        receipts = in_order_of(wanted, known)
        there = pc.and_(same_contents(wanted, receipts), has_files(receipts))
        found |= set(wanted[_UID].filter(there).to_pylist())
    return found


def _revoked(lake: Lake, collection: str, before: TableFile, entries: Iterable[Entry]) -> TableFile:
    """Revoke the receipts of files that the entries replace or remove; return ``image_series`` as it is then.

    An entry whose files are gone replaces nothing.
    """
    fresh = {e.receipt.wanted.SeriesInstanceUID: e for e in entries if e.receipt.status == COMPLETE}
    replaced = pc.and_(pc.equal(before["Status"], COMPLETE), among(before[_UID], fresh))
    uids = before[_UID].filter(replaced).to_pylist()
    kept = [uid for uid in uids if journal.is_kept(lake, fresh[uid])]
    if not kept:
        return before
    table = journal.revoked_receipts(before.to_table(), dict.fromkeys(kept, journal.BEING_REPLACED))
    lake.write_table(IMAGE_SERIES, table, collection)
    return lake.read_file(IMAGE_SERIES, collection)


def _moved(lake: Lake, entries: Iterable[Entry]) -> list[Receipt]:
    """Move the files of the entries to their places; return the receipts, without those of files that are nowhere."""
    receipts = []
    for entry in entries:
        if journal.finish_move(lake, entry):
            receipts.append(entry.receipt)
        else:
            log.warning("series %s: its files are gone; it is fetched again", entry.receipt.wanted.SeriesInstanceUID)
    return receipts


def _outdated_folders(before: pa.Table, receipts: Iterable[Receipt]) -> Iterator[str]:
    """Yield the directories of the older files of series that came back under another patient or study."""
    fresh = {r.wanted.SeriesInstanceUID: r.path for r in receipts if r.status == COMPLETE}
    known = before.filter(among(before[_UID], fresh))
    revoked = pc.and_(pc.equal(known["Status"], PENDING), pc.is_valid(known["FetchedAt"]))
    for row in known.filter(pc.or_(has_files(known), revoked)).to_pylist():
        path = series_path(row["Collection"], row["PatientID"], row["StudyInstanceUID"], row[_UID])
        if path != fresh[row[_UID]]:
            yield path


def _write_instances(lake: Lake, collection: str, receipts: Iterable[Receipt]) -> None:
    fresh = [r for r in receipts if r.status == COMPLETE]
    if not fresh:
        if not lake.has_table(INSTANCES, collection):
            lake.write_table(INSTANCES, INSTANCES.schema.empty_table(), collection)
        return
    replaced = pa.array([r.wanted.SeriesInstanceUID for r in fresh], pa.string())
    pieces = with_instances(lake.read_pieces(INSTANCES, collection), instances_of(fresh), replaced)
    lake.write_pieces(INSTANCES, pieces, collection)


# --- image_series


def with_receipts(table: pa.Table, receipts: Sequence[Receipt]) -> pa.Table:
    """Return ``image_series`` with new receipts instead of older ones of the same series.

    A failed attempt to refresh a series does not undo the complete one that the lake still has: its receipt stays,
    with the version that could not be fetched, and why.
    """
    if not receipts:
        return table
    fresh = _by_uid(receipts)
    replaced = among(table[_UID], fresh)
    older = table.filter(replaced)
    whole = {row[_UID]: row for row in older.filter(has_files(older)).to_pylist()}
    rows = [_row(receipt, whole.get(uid)) for uid, receipt in fresh.items()]
    return pa.concat_tables([table.filter(pc.invert(replaced)), _table(rows)]).sort_by(_UID)


def _row(receipt: Receipt, whole: dict[str, Any] | None) -> dict[str, Any]:
    if receipt.status == COMPLETE or whole is None:
        return receipt.row()
    newer = receipt.wanted
    reason = (
        f"the newer version ({newer.ImageCount} images, {newer.FileSize} bytes, submitted {newer.TimeStamp}, "
        f"released {newer.DateReleased}) could not be fetched: {receipt.reason}"
    )
    fingerprint = {column: getattr(newer, name) for name, column in zip(FINGERPRINT, NEWER, strict=True)}
    return {**whole, "Reason": reason, "RefreshFailedAt": receipt.fetched_at, **fingerprint}


def as_listed(
    table: pa.Table,
    series: pa.Table,
    withdrawn: Iterable[str] = (),
    reasons: Mapping[str, str] = NO_REASONS,
    wanted: pa.ChunkedArray | None = None,
) -> pa.Table:
    """Return ``image_series`` as it follows from what the archive lists now.

    A listed series that is wanted and has no receipt gets the status ``pending``, and keeps it, with its reason,
    while it is listed as before. One that is wanted no longer loses that receipt if nothing of it was ever fetched.
    A withdrawn one keeps everything else of its row, as its files stay; if it is listed again it is ``complete`` as
    before, or ``pending`` where its files were pruned. Receipts of an older content stay as they are. Why a series
    was withdrawn is its Reason until it returns.

    Args:
        table: rows of ``image_series``.
        series: the rows of the collection's ``series`` table.
        withdrawn: SeriesInstanceUIDs that are believed to be withdrawn; one that is listed is not.
        reasons: why, by SeriesInstanceUID, where that is known.
        wanted: SeriesInstanceUIDs of the series that are wanted; None for all that are listed.
    """
    listed = series.select(COLUMNS)
    is_listed = pc.is_in(table[_UID], value_set=listed[_UID])
    gone = pc.and_not(among(table[_UID], withdrawn), is_listed)
    returned = pc.and_(pc.equal(table["Status"], WITHDRAWN), is_listed)
    status = pc.if_else(gone, WITHDRAWN, table["Status"])
    status = pc.if_else(returned, pc.if_else(pc.is_valid(table["Bytes"]), COMPLETE, PENDING), status)
    # Once: a receipt of files that were pruned says so, and that stays.
    newly_gone = pc.and_(gone, pc.not_equal(table["Status"], WITHDRAWN))
    again = pc.if_else(pc.is_valid(table["RefreshFailedAt"]), NOT_REFRESHED, _NO_TEXT)
    why = pc.if_else(returned, again, table["Reason"])
    why = pc.if_else(pc.and_(newly_gone, says_for_whom(table)), _NO_TEXT, why)
    why = pc.coalesce(pc.if_else(newly_gone, values_by(table[_UID], reasons), _NO_TEXT), why)
    table = with_column(with_column(table, "Status", status), "Reason", why)
    # What could not be refreshed may be what is listed again: then nothing is wrong with it.
    current = pc.and_(is_listed, same_contents(in_order_of(table, listed), table))
    current = pc.and_(current, pc.equal(status, COMPLETE))
    for name in ("Reason", *NO_NEWER):
        settled = pc.and_not(current, says_for_whom(table)) if name == "Reason" else current
        table = with_column(table, name, pc.if_else(settled, pa.scalar(None, table[name].type), table[name]))
    as_before = pc.and_(same_contents(in_order_of(table, listed), table), pc.is_valid(table["Reason"]))
    stale = pc.and_not(pc.and_(pc.equal(status, PENDING), is_listed), as_before)
    table = table.filter(pc.invert(stale))
    new = listed.filter(pc.invert(pc.is_in(listed[_UID], value_set=table[_UID])))
    if wanted is not None:
        new = new.filter(pc.is_in(new[_UID], value_set=wanted))
        table = table.filter(pc.invert(_never_wanted(table, listed, wanted)))
    return pa.concat_tables([table, _pending(new)]).sort_by(_UID)


def _never_wanted(table: pa.Table, listed: pa.Table, wanted: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return for each receipt whether it is of a listed series that is not wanted, and of which nothing was fetched."""
    never = pc.and_(pc.equal(table["Status"], PENDING), pc.is_null(table["FetchedAt"]))
    left_out = pc.and_not(pc.is_in(table[_UID], value_set=listed[_UID]), pc.is_in(table[_UID], value_set=wanted))
    return pc.and_(never, left_out)


def _pending(listed: pa.Table) -> pa.Table:
    """Return the receipts of series that were never fetched."""
    known = {"Status": PENDING, "Attempts": 0, "Healed": 0, "Reason": NOT_FETCHED}
    columns = [
        listed[f.name].cast(f.type)
        if f.name in COLUMNS
        else pa.repeat(pa.scalar(known.get(f.name), f.type), len(listed))
        for f in IMAGE_SERIES.schema
    ]
    return pa.table(columns, schema=IMAGE_SERIES.schema)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=IMAGE_SERIES.schema)


# --- instances


def instances_of(receipts: Iterable[Receipt]) -> pa.Table:
    """Return the rows of ``instances`` of the complete ones among some receipts, in the order of the table."""
    columns: dict[str, list[Any]] = {c.name: [] for c in INSTANCES.columns}
    for receipt in receipts:
        if receipt.status != COMPLETE:
            continue
        count, path = len(receipt.instances), receipt.path
        columns[_UID] += [receipt.wanted.SeriesInstanceUID] * count
        columns["Collection"] += [receipt.wanted.Collection] * count
        columns["Path"] += [f"{path}/{instance_name(i.SOPInstanceUID)}" for i in receipt.instances]
        for name in ("SOPInstanceUID", "SOPClassUID", "InstanceNumber", "Size", "MD5"):
            columns[name] += [getattr(i, name) for i in receipt.instances]
    return pa.table(columns, schema=INSTANCES.schema).sort_by(_ORDER)


def with_instances(pieces: Iterable[pa.Table], new: pa.Table, replaced: pa.Array) -> Iterator[pa.Table]:
    """Merge new rows into ``instances``, without the rows of the series that are `replaced`."""
    kept = (piece.filter(pc.invert(pc.is_in(piece[_UID], value_set=replaced))) for piece in pieces)
    return merged(kept, new, _ORDER)


def merged(pieces: Iterable[pa.Table], new: pa.Table, order: list[tuple[str, str]]) -> Iterator[pa.Table]:
    """Merge new rows into a table piece by piece, so that memory does not grow with it.

    Args:
        pieces: of the table, in its order, which begins with the SeriesInstanceUID; none is of a series of `new`.
        new: rows in the same order.
        order: columns and directions, as ``sort_by`` takes them.
    """
    done = 0
    for kept in pieces:
        if not kept.num_rows:
            continue
        upto = done + (pc.sum(pc.less_equal(new[_UID].slice(done), kept[_UID][-1])).as_py() or 0)
        between = new.slice(done, upto - done)
        yield pa.concat_tables([kept, between]).sort_by(order) if between.num_rows else kept
        done = upto
    yield new.slice(done)
