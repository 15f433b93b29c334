"""Parquet files of a lake: written and read piece by piece, with properties next to the rows."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from nbia_pipeline.lake.layout import PARTITION
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.status import is_property

if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
    # Arrow's own default, mimalloc, keeps what is freed: a run of half a million series would hold 100 MB more.
    pa.set_memory_pool(
        pa.jemalloc_memory_pool() if "jemalloc" in pa.supported_memory_backends() else pa.system_memory_pool()
    )

ROW_GROUP_ROWS = 25_000
WRITTEN = {"compression": "zstd", "write_page_checksum": True}
"""How files are written: without checksums, changed bytes could read as other values."""

_PROPERTY = b"nbia_fact:"  # as version 0.1.0 wrote it
_TABLE = b"nbia_table"
_KEY = "SeriesInstanceUID"


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns and types of `schema`.

    A column that the file of an older version lacks is null; one that a newer version added is left out.

    Raises:
        ArrowException: the file is damaged, of another table, or was not written by any version.
    """
    _expect_same_table(table.schema, schema)
    _expect_columns(table.schema.names, schema.names)
    names = set(table.schema.names)
    columns = [
        table[field.name].cast(field.type) if field.name in names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    conformed = pa.Table.from_arrays(columns, schema=schema)
    _expect_values(conformed)
    return conformed


def _expect_values(rows: pa.Table) -> None:
    rows.validate(full=True)  # texts that are not UTF-8 would fail wherever they are used
    if _KEY in rows.schema.names and rows[_KEY].null_count:
        raise pa.ArrowInvalid(f"rows without {_KEY}")


def _expect_same_table(stored: pa.Schema, wanted: pa.Schema) -> None:
    of, asked = ((schema.metadata or {}).get(_TABLE) for schema in (stored, wanted))
    if of and asked and of != asked:
        raise pa.ArrowInvalid(f"it is a file of table {of.decode('utf-8', 'replace')[:100]}")


def _expect_columns(stored: Sequence[str], wanted: Iterable[str]) -> None:
    for name in wanted:
        count = stored.count(name)
        if count > 1 or (count == 0 and name == _KEY):  # any other is null: an older file may lack it
            raise pa.ArrowInvalid(f"{count or 'no'} columns {name}")


def opened(file: Any) -> pq.ParquetFile:
    """Return a file for reading, which compares its pages with their checksums, if it has any."""
    return pq.ParquetFile(file, page_checksum_verification=True)


class Among:
    """Some texts, by which row groups are chosen that can contain any of them.

    Args:
        texts: the texts, or their first characters.
        length: how many characters of a text are compared; None for all.
    """

    def __init__(self, texts: Iterable[str], length: int | None = None) -> None:
        self._texts = sorted(texts)
        self._length = length

    def any_between(self, least: str, greatest: str) -> bool:
        """Return whether one of them can be between two texts, these included."""
        at = bisect_left(self._texts, least[: self._length])
        return at < len(self._texts) and self._texts[at] <= greatest[: self._length]


Where: TypeAlias = tuple[str, Among]
"""A column, and what it has in the row groups that are read."""


def groups_of(file: Any, columns: list[str] | None = None, where: Where | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of an open file, or those that can contain such rows, with all columns or some."""
    parquet = opened(file)
    for group in range(parquet.num_row_groups):
        if where is None or _may_contain(parquet.metadata.row_group(group), *where):
            yield parquet.read_row_group(group, columns=columns, use_threads=False)


def rows_among(file: Any, column: str, values: Collection[str], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of an open file whose value in `column` is one of `values`; groups without any are not read."""
    parquet = opened(file)
    stored = parquet.schema_arrow
    _expect_columns(stored.names, [column])
    if column in stored.names and not pa.types.is_string(stored.field(column).type):
        raise pa.ArrowInvalid(f"{column} is of type {stored.field(column).type}")
    wanted = Among(values)
    for group in range(parquet.num_row_groups):
        if _may_contain(parquet.metadata.row_group(group), column, wanted):
            rows = parquet.read_row_group(group, columns=[*{*schema.names, column}], use_threads=False)
            _expect_values(rows.select([column]))
            yield conform(rows.filter(among(rows[column], values)), schema)


def _may_contain(group: Any, column: str, values: Among) -> bool:
    """Return whether a row group can contain one of `values`, by its least and its greatest value."""
    chunks = (chunk for chunk in map(group.column, range(group.num_columns)) if chunk.path_in_schema == column)
    chunk = next(chunks, None)
    if chunk is None:  # an older file lacks the column: it is null
        return False
    known = chunk.statistics
    try:
        return known is None or not known.has_min_max or values.any_between(known.min, known.max)
    except ValueError:  # a text that is not UTF-8: reading it shows that
        return True


def values_of(file: Any) -> dict[str, int]:
    """Return how many rows of an open file are not null, by column; a column without statistics is left out."""
    metadata = pq.read_metadata(file)
    counts: dict[str, int] = {}
    for name in metadata.schema.names:
        chunks = list(chunks_of(metadata, name))
        if all(chunk.statistics is not None and chunk.statistics.has_null_count for chunk in chunks):
            counts[name] = sum(chunk.num_values - chunk.statistics.null_count for chunk in chunks)
    return counts


def chunks_of(metadata: pq.FileMetaData, column: str) -> Iterator[Any]:
    """Yield what the end of a file states of a column, row group by row group."""
    at = metadata.schema.names.index(column)
    for group in range(metadata.num_row_groups):
        yield metadata.row_group(group).column(at)


def write_groups(file: Any, schema: pa.Schema, pieces: Iterable[pa.Table], rows: int = ROW_GROUP_ROWS) -> int:
    """Write pieces of a table to an open file, and return the number of rows.

    Every row group but the last has between `rows` and twice as many, however small or large the pieces are, and
    keeps that size in a table that is rewritten many times, a little longer each time.
    """
    with GroupWriter(file, schema, rows) as writer:
        for piece in pieces:
            writer.add(piece)
    return writer.rows


class GroupWriter:
    """Writes pieces of a table to an open file as :func:`write_groups` does, which come from somewhere else.

    Args:
        file: the file.
        schema: of the pieces.
        rows: of a row group, at least.

    Attributes:
        rows: how many were added.
    """

    def __init__(self, file: Any, schema: pa.Schema, rows: int = ROW_GROUP_ROWS) -> None:
        self.rows = 0
        self._group_rows, self._gathered, self._waiting = rows, list[pa.Table](), 0
        self._writer = pq.ParquetWriter(file, schema, **WRITTEN)

    def add(self, piece: pa.Table) -> None:
        """Add rows."""
        self._gathered.append(piece)
        self._waiting += piece.num_rows
        if self._waiting >= self._group_rows:
            self._write()

    def _write(self) -> None:
        group = pa.concat_tables(self._gathered)
        self.rows += group.num_rows
        self._gathered, self._waiting = [], 0
        parts = max(1, group.num_rows // self._group_rows)
        self._writer.write_table(group, row_group_size=max(1, -(-group.num_rows // parts)))

    def __enter__(self) -> GroupWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._waiting:
            self._write()
        self._writer.close()


def with_partition(rows: pa.Table, collection: str | None) -> pa.Table:
    """Return the rows of a file with the column that is in its path."""
    if collection is None:
        return rows
    return rows.append_column(PARTITION, pa.repeat(pa.scalar(collection), rows.num_rows))


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of the file of one collection of a table, which leaves out the column that is in its path."""
    return schema.remove(schema.get_field_index(PARTITION))


def with_properties(schema: pa.Schema, properties: Mapping[str, str]) -> pa.Schema:
    """Return a schema whose file will hold `properties`; its columns are the same."""
    added = {_PROPERTY + name.encode(): value.encode() for name, value in properties.items()}
    return schema.with_metadata({**(schema.metadata or {}), **added})


def properties_of(file: Any, schema: pa.Schema) -> dict[str, str]:
    """Return the properties of an open file of a table with this schema.

    Raises:
        ArrowInvalid: it is of another table, or a property does not state what it should.
    """
    stored = pq.read_schema(file)
    _expect_same_table(stored, schema)
    metadata = stored.metadata or {}
    found = {
        n.removeprefix(_PROPERTY).decode("utf-8", "replace"): v.decode("utf-8", "replace")
        for n, v in metadata.items()
        if n.startswith(_PROPERTY)
    }
    for name, value in found.items():
        if not is_property(name, value):
            raise pa.ArrowInvalid(f"its property {name} is {value[:100]!r}")
    return found
