"""Parquet files of a lake: written and read piece by piece, with facts beside the rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 100_000
COMPRESSION = "zstd"

_FACT = b"nbia_fact:"


def groups_of(file: Any) -> Iterator[pa.Table]:
    """Yield the row groups of an open file."""
    parquet = pq.ParquetFile(file)
    for group in range(parquet.num_row_groups):
        yield parquet.read_row_group(group, use_threads=False)


def rows_among(file: Any, column: str, values: Collection[str], columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows of an open file whose value in `column` is one of `values`; groups that hold none are not read.

    Args:
        file: the file.
        column: of texts.
        values: which of them.
        columns: names of the columns to yield.
    """
    parquet = pq.ParquetFile(file)
    wanted = pa.array(sorted(values), pa.string())
    for group in range(parquet.num_row_groups):
        if _may_hold(parquet.metadata.row_group(group), column, values):
            rows = parquet.read_row_group(group, columns=[*{*columns, column}], use_threads=False)
            yield rows.filter(pc.is_in(rows[column], wanted)).select(columns)


def _may_hold(group: Any, column: str, values: Collection[str]) -> bool:
    """Tell whether a row group can hold one of `values`, by the least and the greatest value that it holds."""
    known = next(c.statistics for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column)
    return known is None or not known.has_min_max or any(known.min <= value <= known.max for value in values)


def write_groups(target: Path, schema: pa.Schema, pieces: Iterable[pa.Table], rows: int = ROW_GROUP_ROWS) -> int:
    """Write pieces of a table to a local file, and return how many rows that were.

    Every row group but the last holds between `rows` and twice as many, however small or large the pieces are: a
    table that is written again and again, a little longer each time, keeps them so.
    """
    written = 0
    with pq.ParquetWriter(target, schema, compression=COMPRESSION) as writer:
        for group in _gathered(pieces, rows):
            parts = max(1, group.num_rows // rows)
            writer.write_table(group, row_group_size=max(1, -(-group.num_rows // parts)))
            written += group.num_rows
    return written


def _gathered(pieces: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    gathered: list[pa.Table] = []
    held = 0
    for piece in pieces:
        gathered.append(piece)
        held += piece.num_rows
        if held >= rows:
            yield pa.concat_tables(gathered)
            gathered, held = [], 0
    if held:
        yield pa.concat_tables(gathered)


def with_properties(table: pa.Table, properties: Mapping[str, str]) -> pa.Table:
    """Return a table whose file will hold `facts`; its rows and columns are the same."""
    added = {_FACT + name.encode(): value.encode() for name, value in properties.items()}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **added})


def properties_of(file: Any) -> dict[str, str]:
    """Return the facts that an open file holds."""
    metadata = pq.read_schema(file).metadata or {}
    return {n.removeprefix(_FACT).decode(): v.decode() for n, v in metadata.items() if n.startswith(_FACT)}
