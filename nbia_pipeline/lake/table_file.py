"""A table, or one collection of it, as the bytes of its file: some tenth of what its rows take in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import pyarrow as pa

from nbia_pipeline.lake import parquet
from nbia_pipeline.lake.layout import PARTITION

NO_PROPERTIES: Mapping[str, str] = {}


class TableFile:
    """The file of a table in memory; its rows are read piece by piece, its values column by column.

    Args:
        schema: of the table.
        content: of the file.
        collection: the partition, whose file leaves out the Collection column; None for an unpartitioned table.
        reading: a context in which the content is read, which explains what is wrong with it.
    """

    def __init__(
        self,
        schema: pa.Schema,
        content: Any,
        collection: str | None = None,
        reading: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.content = content
        self._schema, self._collection, self._reading = schema, collection, reading
        with reading():
            self._file = parquet.opened(pa.BufferReader(content))
            self.properties = parquet.properties_of(pa.BufferReader(content), schema)

    @classmethod
    def of(
        cls,
        schema: pa.Schema,
        pieces: Iterable[pa.Table],
        collection: str | None = None,
        properties: Mapping[str, str] = NO_PROPERTIES,
    ) -> TableFile:
        """Return the file of a table, written while its rows come.

        Args:
            schema: of the table.
            pieces: the rows.
            collection: the partition.
            properties: of the file.
        """
        stored = schema if collection is None else parquet.stored_schema(schema)
        stored = parquet.with_properties(stored, properties)
        sink = pa.BufferOutputStream()
        parquet.write_groups(sink, stored, (piece.select(stored.names).cast(stored) for piece in pieces))
        return cls(schema, sink.getvalue(), collection)

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return int(self._file.metadata.num_rows)

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        return self.to_table([column])[column]

    def pieces(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows, row group by row group, with all columns or some."""
        schema = self._schema
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)
        stored = [name for name in schema.names if self._collection is None or name != PARTITION]
        with self._reading():
            for group in range(self._file.num_row_groups):
                piece = self._file.read_row_group(group, columns=stored, use_threads=False)
                yield parquet.conform(parquet.with_partition(piece, self._collection), schema)

    def pieces_where(self, mask: pa.ChunkedArray, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows for which `mask` is true, row group by row group, with all columns or some."""
        first = 0
        for piece in self.pieces(columns):
            yield piece.filter(mask.slice(first, piece.num_rows))
            first += piece.num_rows

    def to_table(self, columns: list[str] | None = None) -> pa.Table:
        """Return all rows, with all columns or some."""
        return pa.concat_tables([self._empty(columns), *self.pieces(columns)])

    def _empty(self, columns: list[str] | None) -> pa.Table:
        empty = self._schema.empty_table()
        return empty if columns is None else empty.select(columns)

    def filter(self, mask: pa.ChunkedArray, columns: list[str] | None = None) -> pa.Table:
        """Return the rows for which `mask` is true, with all columns or some."""
        return pa.concat_tables([self._empty(columns), *self.pieces_where(mask, columns)])

    def lacks(self, column: str) -> bool:
        """Return whether no row has a value in a stored column, as the file states; an empty text is none."""
        counted = [chunk.statistics for chunk in parquet.chunks_of(self._file.metadata, column)]
        return all(
            known is not None and (not known.num_values or (known.has_min_max and known.max == "")) for known in counted
        )


class Packed:
    """Rows that are not in their file yet, as its properties are not known, compressed: a sixth of their size.

    Args:
        schema: of the rows.
        pieces: the rows.
    """

    def __init__(self, schema: pa.Schema, pieces: Iterable[pa.Table]) -> None:
        sink = pa.BufferOutputStream()
        self.num_rows = 0
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with pa.ipc.new_stream(sink, schema, options=options) as stream:
            for piece in pieces:
                stream.write_table(piece.cast(schema))
                self.num_rows += piece.num_rows
        self._content = sink.getvalue()

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        return self.to_table()[column]

    def pieces(self) -> Iterator[pa.Table]:
        """Yield the rows as they came."""
        with pa.ipc.open_stream(self._content) as stream:
            for batch in stream:
                yield pa.Table.from_batches([batch])

    def to_table(self) -> pa.Table:
        """Return all rows."""
        with pa.ipc.open_stream(self._content) as stream:
            return stream.read_all()


Rows: TypeAlias = pa.Table | TableFile
"""Rows of a table in memory, one way or the other."""


def rows_where(rows: Rows, mask: pa.ChunkedArray, columns: list[str] | None = None) -> pa.Table:
    """Return the rows for which `mask` is true, with all columns or some."""
    if isinstance(rows, TableFile):
        return rows.filter(mask, columns)
    return (rows if columns is None else rows.select(columns)).filter(mask)


def pieces_where(rows: Rows, mask: pa.ChunkedArray, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows for which `mask` is true, with all columns or some, piece by piece where that saves memory."""
    yield from rows.pieces_where(mask, columns) if isinstance(rows, TableFile) else [rows_where(rows, mask, columns)]


def pieces_of(rows: Rows, columns: list[str]) -> Iterator[pa.Table]:
    """Yield rows, with some columns, piece by piece where that saves memory."""
    yield from rows.pieces(columns) if isinstance(rows, TableFile) else [rows.select(columns)]
