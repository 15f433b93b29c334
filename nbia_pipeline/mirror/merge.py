"""From receipts to tables: what becomes of ``image_series`` and ``instances`` when series were fetched.

Plain functions from tables to tables, made for a hundred thousand series and millions of instances.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.lake.layout import instance_name
from nbia_pipeline.mirror.plan import refresh_failed
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import COLUMNS, has_files, in_order_of, same_contents
from nbia_pipeline.schema.status import COMPLETE, PENDING, WITHDRAWN
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES

NOT_FETCHED = "not fetched yet"

_UID = "SeriesInstanceUID"
_ORDER = [(name, "ascending") for name in (_UID, "InstanceNumber", "SOPInstanceUID")]


# --- image_series


def with_receipts(table: pa.Table, receipts: Sequence[Receipt]) -> pa.Table:
    """Return ``image_series`` with new receipts in the place of older ones of the same series.

    A failed attempt to refresh a series does not undo the whole one that the lake still holds: it is noted there as
    its reason.
    """
    if not receipts:
        return table
    fresh = {r.wanted.SeriesInstanceUID: r for r in receipts}
    uids = pa.array(list(fresh), pa.string())
    replaced = pc.is_in(table[_UID], value_set=uids)
    older = table.filter(replaced)
    held = {row[_UID]: row for row in older.filter(has_files(older)).to_pylist()}
    rows = [_row(receipt, held.get(uid)) for uid, receipt in fresh.items()]
    return pa.concat_tables(
        [table.filter(pc.invert(replaced)), pa.Table.from_pylist(rows, schema=IMAGE_SERIES.schema)]
    ).sort_by(_UID)


def _row(receipt: Receipt, held: dict[str, Any] | None) -> dict[str, Any]:
    if receipt.status == COMPLETE or held is None:
        return receipt.row()
    return {**held, "Reason": f"{refresh_failed(receipt.wanted)}{receipt.reason}"}


def as_listed(table: pa.Table, series: pa.Table, withdrawn: Iterable[str] = ()) -> pa.Table:
    """Return ``image_series`` as it follows from what the archive lists now.

    A listed series without a receipt gets the status ``pending``. A withdrawn one keeps everything else of its
    row, as its files stay; if it is listed again it is ``complete`` as before, or ``pending`` where its files were
    pruned. Receipts of an older content stay as they are.

    Args:
        table: rows of ``image_series``.
        series: the rows of the collection's ``series`` table.
        withdrawn: SeriesInstanceUIDs that are believed to be withdrawn; one that is listed is not.
    """
    listed = series.select(COLUMNS)
    is_listed = pc.is_in(table[_UID], value_set=listed[_UID])
    gone = pc.and_(pc.is_in(table[_UID], value_set=pa.array(list(withdrawn), pa.string())), pc.invert(is_listed))
    returned = pc.and_(pc.equal(table["Status"], WITHDRAWN), is_listed)
    status = pc.if_else(gone, WITHDRAWN, table["Status"])
    status = pc.if_else(returned, pc.if_else(pc.is_valid(table["Bytes"]), COMPLETE, PENDING), status)
    # What could not be refreshed may be what is listed again: then nothing is wrong with it.
    current = pc.and_(is_listed, same_contents(in_order_of(table, listed), table))
    mended = pc.and_(current, pc.equal(status, COMPLETE))
    reason = pc.if_else(mended, pa.scalar(None, pa.string()), table["Reason"])
    table = _with_column(_with_column(table, "Status", status), "Reason", reason)
    table = table.filter(pc.invert(pc.and_(pc.equal(status, PENDING), is_listed)))
    new = listed.filter(pc.invert(pc.is_in(listed[_UID], value_set=table[_UID])))
    return pa.concat_tables([table, _pending(new)]).sort_by(_UID)


def _with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), values)


def _pending(listed: pa.Table) -> pa.Table:
    """Return the receipts of series that were never fetched."""
    known = {name: listed[name] for name in COLUMNS}
    said = {"Status": PENDING, "Attempts": 0, "Healed": 0, "Reason": NOT_FETCHED}
    columns = [
        known[f.name].cast(f.type) if f.name in known else pa.repeat(pa.scalar(said.get(f.name), f.type), len(listed))
        for f in IMAGE_SERIES.schema
    ]
    return pa.table(columns, schema=IMAGE_SERIES.schema)


def failed_refreshes(table: pa.Table) -> list[str]:
    """Return the SeriesInstanceUIDs that are whole in the lake, but whose newer version could not be fetched.

    Args:
        table: rows of ``image_series``, as settled.
    """
    reason = pc.fill_null(pc.is_valid(table["Reason"]), False)
    uids: list[str] = table.filter(pc.and_(has_files(table), reason))[_UID].to_pylist()
    return uids


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
    """Merge new rows into ``instances`` piece by piece, so that memory does not grow with the table.

    Args:
        pieces: of the table, in its order: by series, number and UID.
        new: rows in the same order.
        replaced: SeriesInstanceUIDs whose older rows are dropped.
    """
    done = 0
    for piece in pieces:
        kept = piece.filter(pc.invert(pc.is_in(piece[_UID], value_set=replaced)))
        if not kept.num_rows:
            continue
        upto = done + (pc.sum(pc.less_equal(new[_UID].slice(done), kept[_UID][-1])).as_py() or 0)
        between = new.slice(done, upto - done)
        yield pa.concat_tables([kept, between]).sort_by(_ORDER) if between.num_rows else kept
        done = upto
    yield new.slice(done)
