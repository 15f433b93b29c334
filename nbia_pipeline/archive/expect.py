"""Rows that do not satisfy what was asked are an error, not data: the server ignores filters without a word."""

from __future__ import annotations

from datetime import date, datetime, time

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.archive.errors import BadAnswer
from nbia_pipeline.schema.shapes import Form, Shape


def expect_value(table: pa.Table, column: str, wanted: str | None) -> pa.Table:
    """Return `table`, all of whose rows hold `wanted` in `column`, in any case: so the server compares.

    Args:
        table: rows of an answer.
        column: name of a column.
        wanted: what was asked for; None for nothing.

    Raises:
        BadAnswer: a row holds something else, or nothing.
    """
    if wanted is None:
        return table
    sent = pc.unique(table[column]).to_pylist()
    others = [v for v in sent if v is None or v.casefold() != wanted.casefold()]
    if others:
        raise BadAnswer(f"asked for {_spoken(column)} {wanted!r}, the archive sent rows of {others[:3]}")
    return table


def expect_mostly(table: pa.Table, column: str, wanted: str) -> pa.Table:
    """Return `table`, most of whose rows hold `wanted` in `column`, in any case.

    For studies: one that spans collections names any of them (server), but an answer that is mostly of others is
    that of a server that ignored the filter.

    Raises:
        BadAnswer: fewer than half of the rows do.
    """
    same = sum(v is not None and v.casefold() == wanted.casefold() for v in table[column].to_pylist())
    if 2 * same < table.num_rows:
        raise BadAnswer(
            f"asked for {_spoken(column)} {wanted!r}, the archive sent {table.num_rows - same} rows of others, "
            f"{same} of it: try later"
        )
    return table


def only(table: pa.Table, column: str, wanted: str | None) -> pa.Table:
    """Return the rows that hold exactly `wanted` in `column`; all of them for None."""
    return table if wanted is None else table.filter(pc.equal(table[column], wanted))


def equals_ignoring_case(table: pa.Table, column: str, wanted: str | None) -> pa.Table:
    """Return the rows that hold `wanted` in `column`, whatever the case and the blanks around it.

    Args:
        table: rows of an answer.
        column: name of a column of text.
        wanted: what is looked for; None for anything.

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
    """Return `table`, all of whose rows were released after the midnight that begins `day`.

    A server that reads the day in another order starts at another day without a word.

    Args:
        table: rows of an answer with ``DateReleased``.
        day: what was asked for.
        shape: shape of the answer; where it holds days only, a release on `day` itself may be one later that day.

    Raises:
        BadAnswer: a row has no release, or one before.
    """
    days_only = any(k.column == "DateReleased" and k.form is Form.US_DAY for k in shape.keys)
    after = pc.greater_equal if days_only else pc.greater
    midnight = pa.scalar(datetime.combine(day, time()), pa.timestamp("us"))
    late = pc.fill_null(after(table["DateReleased"], midnight), False)
    if not pc.all(late, min_count=0).as_py():
        early = table.filter(pc.invert(late)).slice(0, 1).select(["SeriesInstanceUID", "DateReleased"]).to_pylist()[0]
        raise BadAnswer(
            f"asked for releases after {day}, the archive sent series {early['SeriesInstanceUID']} of "
            f"{early['DateReleased']}"
        )
    return table


def without_gaps(table: pa.Table, column: str) -> list[str]:
    """Return the values of `column`.

    Raises:
        BadAnswer: a row has none.
    """
    if table[column].null_count:
        raise BadAnswer(f"the archive sent {table[column].null_count} rows without {column}: try later")
    return list(table[column].to_pylist())


def _spoken(column: str) -> str:
    return column if column.endswith(("UID", "ID")) else column.lower()
