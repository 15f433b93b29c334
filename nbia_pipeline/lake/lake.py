"""One lake, on a disk or in an object store: its tables, and the directories of its image files.

A reader sees the old partition or the new one, never a mixture and never a temporary file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nbia_pipeline.lake import parquet
from nbia_pipeline.lake.base_store import MISSING
from nbia_pipeline.lake.errors import DamagedFile, LakeError, WouldEmpty, content_of_table
from nbia_pipeline.lake.files import Files
from nbia_pipeline.lake.layout import (
    PART,
    PARTITION,
    TABLES,
    collection_of,
    earlier_path,
    empty_part_path,
    looks_like_text,
    part_of,
    table_path,
)
from nbia_pipeline.lake.table_file import Rows, TableFile
from nbia_pipeline.schema import Table


class Lake(Files):
    """A lake at a directory or URI: its tables, and the files of :class:`~nbia_pipeline.lake.files.Files`.

    All methods raise LakeError where the lake cannot be read or written; a missing file is not an error, unless they
    say so. A lake in a format that only a newer version knows is refused at its first use. Of a table in shards, what
    is read and counted is all of its parts, unless one is named.

    Args:
        uri: directory, or URI such as ``s3://bucket/lake``; the credentials of an object store come from its own
            environment variables.
        fsync: whether what is finished survives a loss of power. Without it a lake on a disk is written a little
            faster, and may lose anything then.

    Raises:
        LakeError: it is no address, no file system is known for the URI, or its store refuses.
    """

    def parts_of(self, table: Table, collection: str | None = None) -> list[int]:
        """Return the numbers of the files of a table in shards, or of one collection of it; of any other table, 0.

        That a table is not in shards does not mean that it was ever written.
        """
        if not table.sharded:
            return [0]
        names = self.names_in(table_path(table.name, collection).rpartition("/")[0])
        return sorted(part for part in map(part_of, names) if part is not None)

    def read_table(
        self,
        table: Table,
        collection: str | None = None,
        columns: list[str] | None = None,
        *,
        part: int | None = None,
    ) -> pa.Table:
        """Return a table, or one collection of it; without rows where it was never written.

        Args:
            table: which one.
            collection: the partition, None for an unpartitioned table.
            columns: names of the columns to read, None for all. Those that an older file lacks are null.
            part: of a table in shards, the number of the part; None for all.
        """
        schema = _schema(table, columns)
        parts = self._parts(table, collection, part)
        return pa.concat_tables([schema.empty_table(), *(self._read_part(table, schema, collection, n) for n in parts)])

    def _read_part(self, table: Table, schema: pa.Schema, collection: str | None, part: int) -> pa.Table:
        path = table_path(table.name, collection, part)
        # All at once, so that no Arrow thread reads through a Python object: one could outlive the interpreter.
        content = self.read_bytes(path)
        if content is None:
            return schema.empty_table()
        with content_of_table(path, self.uri):
            file = parquet.opened(pa.BufferReader(content))
            stored = [name for name in schema.names if collection is None or name != PARTITION]
            read = file.read(columns=stored, use_threads=False)
            return parquet.conform(parquet.with_partition(read, collection), schema)

    def read_file(self, table: Table, collection: str | None = None) -> TableFile:
        """Return a table, or one collection of it, as its file in memory; without rows where it was never written."""
        path = table_path(table.name, collection)
        content = self.read_bytes(path)
        if content is None:
            return TableFile.of(table.schema, [], collection)
        return TableFile(table.schema, content, collection, partial(content_of_table, path, self.uri))

    def write_table(
        self,
        table: Table,
        data: Rows,
        collection: str | None = None,
        *,
        properties: Mapping[str, str] | None = None,
        may_empty: bool = False,
        keep_earlier: bool = False,
        part: int = 0,
    ) -> int:
        """Replace a table, or one collection of it, and return the size of the file in bytes.

        A partition's file leaves out the Collection column: readers with Hive partitioning take it, decoded,
        from the path, and some (pandas) refuse a file that has it too.

        Args:
            table: which one; `data` must have its columns and types.
            data: the rows; or the file of them, with its properties.
            collection: the partition, None for an unpartitioned table.
            properties: those of the file, for :meth:`read_properties`; kept in its Parquet metadata.
            may_empty: the caller knows that nothing is left, as after a prune; never because an answer is empty.
            keep_earlier: keep the file that is replaced, so that a damaged table can be rebuilt from it; the caller
                has read it as a whole.
            part: of a table in shards.

        Raises:
            WouldEmpty: the table has rows, or is damaged, and `data` has none: an empty answer is not believed.
            LakeError: the lake cannot be written; the old table stays.
        """
        path = table_path(table.name, collection, part)
        if data.num_rows == 0 and not may_empty and self._has_rows(table, collection, part):
            raise _would_empty(path)
        if not isinstance(data, TableFile):
            data = TableFile.of(table.schema, [data], collection, properties or {})
        if collection is not None:
            self._make_names_text(table, collection)
        if keep_earlier and self.exists(path):
            self._keep(path, earlier_path(path))
        self.put_bytes(path, data.content)
        return len(data.content)

    def has_table(self, table: Table, collection: str | None = None) -> bool:
        """Return whether a table, or one collection of it, was ever written."""
        return any(self.exists(table_path(table.name, collection, part)) for part in self.parts_of(table, collection))

    def read_pieces(
        self,
        table: Table,
        collection: str | None,
        columns: list[str] | None = None,
        *,
        part: int | None = None,
        where: parquet.Where | None = None,
    ) -> Iterator[pa.Table]:
        """Yield a table as :meth:`read_table` does, piece by piece, so that memory does not grow with it.

        Pieces that can have no row whose value in a column is one of some texts are not read, if `where` names these.
        """
        schema = _schema(table, columns)
        stored = None if columns is None else [name for name in columns if collection is None or name != PARTITION]
        for number in self._parts(table, collection, part):
            with self._table_file(table, collection, number) as file:
                for piece in parquet.groups_of(file, stored, where) if file else ():
                    yield parquet.conform(parquet.with_partition(piece, collection), schema)

    def write_pieces(
        self, table: Table, pieces: Iterable[pa.Table], collection: str, *, may_empty: bool = False
    ) -> int:
        """Replace one collection of a table by what comes piece by piece, and return its number of rows.

        The old table can be read while the new one is written.

        Args:
            table: which one; the pieces must have its columns and types.
            pieces: the rows.
            collection: the partition.
            may_empty: the caller knows that nothing is left.

        Raises:
            WouldEmpty: the table has rows, or is damaged, and the pieces have none; the old table stays.
            LakeError: the lake cannot be written; the old table stays.
        """
        path = table_path(table.name, collection)
        schema = parquet.stored_schema(table.schema)
        with self.workspace() as work, self.storage_errors(f"write {path}"):
            staged = work / PART
            # Not by its path: Arrow would close a file that could not be written with an error that does not say why.
            with staged.open("wb") as file:
                rows = parquet.write_groups(file, schema, (p.drop_columns([PARTITION]).cast(schema) for p in pieces))
            if not rows and not may_empty and self._has_rows(table, collection):
                raise _would_empty(path)
            self.put_part(staged, table, collection)
        return rows

    def put_part(self, staged: Path, table: Table, collection: str, part: int = 0) -> None:
        """Make a file of a :meth:`workspace` that of one collection of a table, or of one part of that."""
        path = table_path(table.name, collection, part)
        self._make_names_text(table, collection)
        with self.storage_errors(f"write {path}"):
            self._store.put_file(staged, path)

    def read_properties(self, table: Table, collection: str | None = None, *, part: int = 0) -> dict[str, str]:
        """Return the properties given to :meth:`write_table`; none where there is no file."""
        with self._table_file(table, collection, part) as file:
            return parquet.properties_of(file, table.schema) if file else {}

    def read_rows(
        self,
        table: Table,
        collection: str,
        column: str,
        values: Collection[str],
        columns: list[str],
        *,
        part: int | None = None,
    ) -> pa.Table:
        """Return some rows of one collection of a table; parts of its file that cannot contain any are not read.

        Args:
            table: which one.
            collection: the partition.
            column: the rows are those whose value in this column ...
            values: ... is one of these.
            columns: names of the columns to return, without Collection, which is in the path.
            part: of a table in shards, the number of the part; None for all.
        """
        found = [table.schema.empty_table().select(columns)]
        for number in self._parts(table, collection, part):
            with self._table_file(table, collection, number) as file:
                if file:
                    found += parquet.rows_among(file, column, values, found[0].schema)
        return pa.concat_tables(found)

    def count_rows(self, table: Table, collection: str | None = None) -> int:
        """Return the number of rows of a table from the footer of its file; 0 where it was never written."""
        rows = 0
        for part in self.parts_of(table, collection):
            with self._table_file(table, collection, part) as file:
                rows += pq.read_metadata(file).num_rows if file else 0
        return rows

    def count_values(self, table: Table, collection: str | None = None) -> dict[str, int]:
        """Return how many rows of a table are not null, by column, from the footer of its file; empty without one."""
        counts: Counter[str] = Counter()
        for part in self.parts_of(table, collection):
            with self._table_file(table, collection, part) as file:
                counts.update(parquet.values_of(file) if file else {})
        return dict(counts)

    def collections_of(self, table: Table) -> list[str]:
        """Return the collections that a partitioned table has, sorted."""
        names = self.names_in(f"{TABLES}/{table.name}")
        return sorted(name for name in map(collection_of, names) if name is not None)

    # --- helpers

    def _parts(self, table: Table, collection: str | None, part: int | None) -> list[int]:
        return self.parts_of(table, collection) if part is None else [part]

    def _make_names_text(self, table: Table, collection: str) -> None:
        """See :func:`~nbia_pipeline.lake.layout.empty_part_path`; written only where it is needed."""
        if looks_like_text(collection):
            return
        sink = pa.BufferOutputStream()
        pq.write_table(table.schema.empty_table().drop_columns([PARTITION]), sink, **parquet.WRITTEN)
        path, content = empty_part_path(table.name), sink.getvalue().to_pybytes()
        if self.read_bytes(path) != content:  # none yet, or one with the columns of another version
            self.put_bytes(path, content)

    @contextmanager
    def _table_file(self, table: Table, collection: str | None, part: int) -> Iterator[BinaryIO | None]:
        """Open the file of a table, to be read in pieces; yields None where it was never written."""
        path = table_path(table.name, collection, part)
        try:
            opened = self.open(path)
        except LakeError as e:
            if not isinstance(e.__cause__, MISSING):
                raise
            yield None
            return
        with opened as file, content_of_table(path, self.uri):
            yield file

    def _has_rows(self, table: Table, collection: str | None, part: int = 0) -> bool:
        """Return whether a file of a table has rows; one that is damaged counts as one that had some."""
        try:
            with self._table_file(table, collection, part) as file:
                return file is not None and pq.read_metadata(file).num_rows > 0
        except DamagedFile:
            return True


def _schema(table: Table, columns: list[str] | None) -> pa.Schema:
    if columns is None:
        return table.schema
    return pa.schema([table.schema.field(name) for name in columns], metadata=table.schema.metadata)


def _would_empty(path: str) -> WouldEmpty:
    return WouldEmpty(
        f"{path} has rows and would be replaced by an empty table: it was left as it was. If the archive "
        "really withdrew them all, delete the file yourself"
    )
