"""Are these the rows that were asked for? Each function returns them, or raises BadAnswer where it expects others.

The server ignores filters silently, so rows that do not satisfy what was asked are an error, not data.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.archive.conformance import Nonconformity, as_sent, report
from nbia_pipeline.archive.errors import BadAnswer
from nbia_pipeline.schema.arrow import among, first_of_each
from nbia_pipeline.schema.shapes import Form, Shape
from nbia_pipeline.schema.tables import SERIES, Table


def expect_value(table: pa.Table, column: str, wanted: str | None) -> pa.Table:
    """Expect `wanted` in `column` of every row, in any case, as the server compares; None expects nothing."""
    if wanted is None:
        return table
    sent = pc.unique(table[column]).to_pylist()
    others = [v for v in sent if v is None or v.casefold() != wanted.casefold()]
    if others:
        raise BadAnswer(f"asked for {_label(column)} {wanted!r}, the archive sent rows of {others[:3]}")
    return table


def expect_mostly(table: pa.Table, column: str, wanted: str) -> pa.Table:
    """Expect `wanted` in `column` of at least half of the rows, in any case.

    For studies: one that spans collections names any of them (server), but if most rows are of others, the server
    ignored the filter.
    """
    same = sum(v is not None and v.casefold() == wanted.casefold() for v in table[column].to_pylist())
    if 2 * same < table.num_rows:
        raise BadAnswer(
            f"asked for {_label(column)} {wanted!r}, the archive sent {table.num_rows - same} rows of others and "
            f"{same} of it: try again later"
        )
    return table


def rows_of_collection(
    table: pa.Table, collection: str, listed: Callable[[], list[str]], *, may_span: bool = False
) -> pa.Table:
    """Return the rows of exactly this collection: the server's database ignores case and blanks at the end.

    Rows of another spelling belong to the collection that is spelled so. Those of none that the archive lists, of
    another collection or of none at all are reported; they are few, or else the server ignored the filter.

    Args:
        table: the answer to a call with the collection as its filter.
        collection: exact spelling.
        listed: returns the collections of the archive; called only if there are other rows.
        may_span: a row may name another collection, or none: studies that span collections do (server).

    Raises:
        BadAnswer: no row is of the collection, or most are of others.
    """
    rows, others = split_by_collection(table, collection, may_span=may_span)
    expect_few_others(others, table.num_rows, collection, listed)
    return rows


def split_by_collection(table: pa.Table, collection: str, *, may_span: bool = False) -> tuple[pa.Table, pa.Table]:
    """Return the rows of exactly this collection, and the others; see :func:`rows_of_collection`."""
    exact = pc.fill_null(pc.equal(table["Collection"], collection), False)
    others = pc.and_not(_spelled_alike(table, collection), exact) if may_span else pc.invert(exact)
    if not pc.any(others, min_count=0).as_py():
        return table, table.schema.empty_table()  # a slice would hold on to all rows
    return table.filter(pc.invert(others)), table.filter(others)


def expect_few_others(others: pa.Table, count: int, collection: str, listed: Callable[[], list[str]]) -> None:
    """Expect that few of `count` rows are `others`, and report these; see :func:`rows_of_collection`."""
    if not others.num_rows:
        return
    alike = _spelled_alike(others, collection)
    foreign = others["Collection"].filter(pc.invert(alike)).drop_null()
    if 2 * len(foreign) > count or others.num_rows == count:
        sent = pc.unique(foreign if len(foreign) else others["Collection"]).to_pylist()
        raise BadAnswer(f"asked for collection {collection!r}, the archive sent rows of {sent[:3]}")
    rows = others.filter(pc.invert(pc.and_(alike, among(others["Collection"], listed()))))
    key = next(name for name in ("SeriesInstanceUID", "StudyInstanceUID", "PatientID") if name in rows.schema.names)
    table_name = (rows.schema.metadata or {}).get(b"nbia_table", b"").decode()
    why = f"a row in the answer about {collection!r}, which is not of this collection, was left out"
    report(
        [
            Nonconformity(table_name, row[key], "Collection", row["Collection"], why)
            for row in rows.select([key, "Collection"]).to_pylist()
        ]
    )


def _spelled_alike(table: pa.Table, collection: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(_folded(table["Collection"]), _folded(pa.scalar(collection))), False)


def _folded(collections: Any) -> Any:
    return pc.utf8_lower(pc.utf8_rtrim_whitespace(collections))


def one_row_each(table: pa.Table, of: Table, *key: str) -> pa.Table:
    """Return the first row of each value of `key`; a later one that differs from it is reported.

    Args:
        table: rows of a table.
        of: which table.
        key: names of columns.
    """
    firsts = first_of_each(table, *key)
    if firsts.num_rows == table.num_rows:
        return table
    repeated = pc.value_counts(table[key[-1]].combine_chunks())
    names = repeated.filter(pc.greater(repeated.field("counts"), 1)).field("values")
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    found = []
    for row in table.filter(pc.is_in(table[key[-1]], value_set=names)).to_pylist():
        first = seen.setdefault(tuple(row[name] for name in key), row)
        for column, value in row.items():
            if value != first[column]:
                identity = " ".join(str(row[name]) for name in key)
                why = f"another row of the same {key[-1]} has {first[column]!r}; the first row was kept"
                found.append(Nonconformity(of.name, identity, column, as_sent(value), why))
    report(found)
    return firsts


def named(table: pa.Table, column: str, shape: Shape) -> list[str]:
    """Return the values of `column`; rows without one, or with an empty one, are left out and reported.

    Args:
        table: an answer.
        column: the one that identifies its rows.
        shape: of the answer.
    """
    names = [name for name in table[column].to_pylist() if name]
    if without := table.num_rows - len(names):
        what = f"{without} of {table.num_rows} rows have none, and were left out"
        report([Nonconformity(shape.fills, None, column, None, what)])
    return names


def rows_with(table: pa.Table, column: str, wanted: str | None) -> pa.Table:
    """Return the rows with exactly `wanted` in `column`; all of them for None."""
    return table if wanted is None else table.filter(pc.equal(table[column], wanted))


def equals_ignoring_case(table: pa.Table, column: str, wanted: str | None) -> pa.Table:
    """Return the rows with `wanted` in `column`, ignoring case and surrounding blanks; all of them for None.

    Raises:
        ValueError: `wanted` is blank.
    """
    if wanted is None:
        return table
    if not wanted.strip():
        raise ValueError(f"{column} is blank: nothing would match it")
    stored = pc.utf8_lower(pc.utf8_trim_whitespace(table[column]))
    return table.filter(pc.fill_null(pc.equal(stored, pc.utf8_lower(pa.scalar(wanted.strip()))), False))


def expect_released_after(table: pa.Table, day: date, shape: Shape) -> pa.Table:
    """Expect most ``DateReleased`` to be after the midnight that begins `day`, and rows of some collection.

    The rows of earlier days are left out, and reported.

    A server that reads the day in another order silently starts at another day. Where `shape` has days only, a
    release on `day` itself may be one later that day.
    """
    days_only = any(k.column == "DateReleased" and k.form is Form.US_DAY for k in shape.keys)
    after = pc.greater_equal if days_only else pc.greater
    midnight = pa.scalar(datetime.combine(day, time()), pa.timestamp("us"))
    # Servers before May 2024 send no day: then nothing can be compared.
    late = pc.fill_null(after(table["DateReleased"], midnight), True)
    early = table.filter(pc.invert(late)).select(["SeriesInstanceUID", "DateReleased"]).to_pylist()
    if 2 * len(early) > table.num_rows:
        first = early[0]
        raise BadAnswer(
            f"asked for releases after {day}, the archive sent series {first['SeriesInstanceUID']} of "
            f"{first['DateReleased']}"
        )
    if table.num_rows and table["Collection"].null_count == table.num_rows:
        raise BadAnswer(f"none of the {table.num_rows} rows of releases that the archive sent has its Collection")
    why = f"a row in the answer about releases after {day} was left out"
    values = ((row["SeriesInstanceUID"], "DateReleased", as_sent(row["DateReleased"])) for row in early)
    report([Nonconformity(SERIES.name, *value, why) for value in values])
    return table.filter(late) if early else table


def _label(column: str) -> str:
    return column if column.endswith(("UID", "ID")) else column.lower()
