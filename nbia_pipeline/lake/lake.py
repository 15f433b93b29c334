"""One lake, on a disk or in an object store: its tables, and the directories of its image files.

A reader sees the old partition or the new one, never a mixture and never a temporary file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial, update_wrapper
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from nbia_pipeline import stopping
from nbia_pipeline._version import __version__
from nbia_pipeline.address import lake_address
from nbia_pipeline.lake import parquet
from nbia_pipeline.lake.base_store import MISSING
from nbia_pipeline.lake.errors import (
    DamagedFile,
    LakeError,
    WouldEmpty,
    content_of,
    content_of_table,
    reason,
    remedy,
)
from nbia_pipeline.lake.filesystem import Guarded
from nbia_pipeline.lake.layout import (
    FORMAT,
    FORMAT_FILE,
    PART,
    PARTITION,
    STAGING,
    TABLES,
    collection_of,
    earlier_path,
    empty_part_path,
    looks_like_text,
    table_path,
)
from nbia_pipeline.lake.local_store import LocalStore
from nbia_pipeline.lake.lock import ExpectHeld, Lock, this_process
from nbia_pipeline.lake.store import Store, open_store
from nbia_pipeline.lake.table_file import Rows, TableFile
from nbia_pipeline.schema import Table

CHUNK_BYTES = 1 << 20

P = ParamSpec("P")
R = TypeVar("R")


def _of_store(method: Callable[Concatenate[LocalStore, P], R], what: str) -> Callable[Concatenate[Lake, P], R]:
    """Return a method that both stores have as one of the lake, whose errors state what was tried."""

    def of_lake(lake: Lake, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with lake.storage_errors(what.format(*args, *kwargs.values())):
            result: R = getattr(lake._store, method.__name__)(*args, **kwargs)
            return result

    update_wrapper(of_lake, method)
    return of_lake


class Lake:
    """A lake at a directory or URI.

    All methods raise LakeError where the lake cannot be read or written; a missing file is not an error, unless they
    say so. A lake in a format that only a newer version knows is refused at its first use.

    Args:
        uri: directory, or URI such as ``s3://bucket/lake``; the credentials of an object store come from its own
            environment variables.
        fsync: whether what is finished survives a loss of power. Without it a lake on a disk is written a little
            faster, and may lose anything then.

    Raises:
        LakeError: it is no address, no file system is known for the URI, or its store refuses.
    """

    def __init__(self, uri: str, *, fsync: bool = True) -> None:
        try:
            self.uri = lake_address(uri)
        except ValueError as e:
            raise LakeError(f"the lake {e}", arguments=("lake",)) from None
        self._unchecked = open_store(self.uri, fsync=fsync)

    def url(self, path: str) -> str:
        """Return the full address of a path of the lake."""
        return f"{self.uri.rstrip('/')}/{path}"

    @property
    def format(self) -> int:
        """The version of the layout of the lake, as in ``lake.json``; an empty lake has the newest.

        Raises:
            LakeError: it cannot be read, or is newer than this version.
        """
        with self.storage_errors(f"read {FORMAT_FILE}"):
            return self._stated_format() or (1 if self._unchecked.exists(TABLES) else FORMAT)

    def check_writable(self) -> None:
        """Make sure that the lake can be written, before anything is fetched for it, and record its format in it.

        Raises:
            LakeError: it cannot; nothing is left behind.
        """
        with self.storage_errors("write"):
            probe = f"{STAGING}/{this_process()}.{uuid.uuid4().hex}.probe"
            self._store.note(probe, b"")
            self._store.remove(probe)
            if self._stated_format() != FORMAT:
                stated = {"format": FORMAT, "written_by": f"nbia-pipeline {__version__}"}
                self._store.put(FORMAT_FILE, json.dumps(stated).encode())

    free_bytes = _of_store(LocalStore.free_bytes, "measure the free space")
    flush = _of_store(LocalStore.flush, "flush what was written")

    # --- tables

    def read_table(self, table: Table, collection: str | None = None, columns: list[str] | None = None) -> pa.Table:
        """Return a table, or one collection of it; without rows where it was never written.

        Args:
            table: which one.
            collection: the partition, None for an unpartitioned table.
            columns: names of the columns to read, None for all. Those that an older file lacks are null.
        """
        path = table_path(table.name, collection)
        schema = table.schema
        if columns is not None:
            schema = pa.schema([schema.field(c) for c in columns], metadata=schema.metadata)
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

        Raises:
            WouldEmpty: the table has rows, or is damaged, and `data` has none: an empty answer is not believed.
            LakeError: the lake cannot be written; the old table stays.
        """
        path = table_path(table.name, collection)
        if data.num_rows == 0 and not may_empty and self._has_rows(table, collection):
            raise _would_empty(path)
        if not isinstance(data, TableFile):
            data = TableFile.of(table.schema, [data], collection, properties or {})
        if collection is not None:
            self._make_names_text(table, collection)
        if keep_earlier and self.has_table(table, collection):
            self._keep(path, earlier_path(path))
        self.put_bytes(path, data.content)
        return len(data.content)

    def has_table(self, table: Table, collection: str | None = None) -> bool:
        """Return whether a table, or one collection of it, was ever written."""
        path = table_path(table.name, collection)
        with self.storage_errors(f"read {path}"):
            return self._store.exists(path)

    def read_pieces(self, table: Table, collection: str | None) -> Iterator[pa.Table]:
        """Yield a table, or one collection of it, piece by piece, so that memory does not grow with it."""
        with self._table_file(table, collection) as file:
            for piece in parquet.groups_of(file) if file else ():
                yield parquet.conform(parquet.with_partition(piece, collection), table.schema)

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
        schema = table.schema.remove(table.schema.get_field_index(PARTITION))
        with self.workspace() as work, self.storage_errors(f"write {path}"):
            staged = work / PART
            # Not by its path: Arrow would close a file that could not be written with an error that does not say why.
            with staged.open("wb") as file:
                rows = parquet.write_groups(file, schema, (p.drop_columns([PARTITION]).cast(schema) for p in pieces))
            if not rows and not may_empty and self._has_rows(table, collection):
                raise _would_empty(path)
            self._make_names_text(table, collection)
            self._store.put_file(staged, path)
        return rows

    def read_properties(self, table: Table, collection: str | None = None) -> dict[str, str]:
        """Return the properties given to :meth:`write_table`; none where there is no file."""
        with self._table_file(table, collection) as file:
            return parquet.properties_of(file, table.schema) if file else {}

    def read_rows(
        self, table: Table, collection: str, column: str, values: Collection[str], columns: list[str]
    ) -> pa.Table:
        """Return some rows of one collection of a table; parts of its file that cannot contain any are not read.

        Args:
            table: which one.
            collection: the partition.
            column: the rows are those whose value in this column ...
            values: ... is one of these.
            columns: names of the columns to return, without Collection, which is in the path.
        """
        found = [table.schema.empty_table().select(columns)]
        with self._table_file(table, collection) as file:
            if file:
                found += parquet.rows_among(file, column, values, found[0].schema)
        return pa.concat_tables(found)

    def count_rows(self, table: Table, collection: str | None = None) -> int:
        """Return the number of rows of a table from the footer of its file; 0 where it was never written."""
        with self._table_file(table, collection) as file:
            return int(pq.read_metadata(file).num_rows) if file else 0

    def count_values(self, table: Table, collection: str | None = None) -> dict[str, int]:
        """Return how many rows of a table are not null, by column, from the footer of its file; empty without one."""
        with self._table_file(table, collection) as file:
            return parquet.values_of(file) if file else {}

    def collections_of(self, table: Table) -> list[str]:
        """Return the collections that a partitioned table has, sorted."""
        names = self.names_in(f"{TABLES}/{table.name}")
        return sorted(name for name in map(collection_of, names) if name is not None)

    # --- small files

    put_bytes = _of_store(LocalStore.put, "write {}")
    note_bytes = _of_store(LocalStore.note, "write {}")
    note_new = _of_store(LocalStore.note_new, "write {}")
    read_bytes = _of_store(LocalStore.read, "read {}")

    def read_all(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield some paths, and the content of each file, None if there is none; see :meth:`side_by_side`."""
        with self.storage_errors("read files"):
            yield from self._store.read_all(paths)

    def side_by_side(self, calls: Iterable[Callable[[], R]]) -> Iterator[R]:
        """Yield what some calls return that read files, in their order; an object store answers several at a time."""
        return self._store.side_by_side(calls)

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """Open a file for reading, in pieces if need be; it must be there. The caller closes it.

        Args:
            path: of the file.
            size: of the file in bytes, if it is known: an object store need not be asked for it.
        """

        def run(call: Callable[..., R], *args: Any, **kwargs: Any) -> R:
            with self.storage_errors(f"read {path}"):
                return call(*args, **kwargs)

        return cast(BinaryIO, Guarded(run(lambda: self._store.open(path, size)), run))

    def md5(self, path: str, size: int | None = None) -> str:
        """Return the MD5 of a file, in lower-case hex; see :meth:`open`. Threads that are stopped do not finish it."""
        digest = hashlib.md5(usedforsecurity=False)
        with self.open(path, size) as file:
            while chunk := file.read(CHUNK_BYTES):
                stopping.expect_running()
                digest.update(chunk)
        return digest.hexdigest()

    exists = _of_store(LocalStore.exists, "look for {}")
    remove = _of_store(LocalStore.remove, "remove {}")
    remove_all = _of_store(LocalStore.remove_all, "remove committed entries of the journal")
    _keep = _of_store(LocalStore.keep, "keep {}")
    names_in = _of_store(LocalStore.names_in, "list {}")
    sizes = _of_store(LocalStore.sizes, "list {}")

    # --- directories of image and annotation files

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """Yield a local directory to work in: in the staging area of a disk, else in the temporary directory.

        What is left in it at the end is removed.
        """
        with self.storage_errors("make a staging directory"):
            folder = self._store.make_workspace()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    publish = _of_store(LocalStore.publish, "publish {1}")
    publish_folder = _of_store(LocalStore.publish_folder, "publish {1}")
    publish_staged = _of_store(LocalStore.publish_staged, "publish {1}")
    remove_folder = _of_store(LocalStore.remove_folder, "remove {}")
    staged = _of_store(LocalStore.staged, f"list {STAGING}")
    sweep = _of_store(LocalStore.sweep, f"sweep {STAGING}")

    @contextmanager
    def lock(self, lock: Lock, collection: str, series_uid: str = "") -> Iterator[ExpectHeld]:
        """Hold a lock that all writers of this lake share; yields the function that checks that it is still held.

        On a disk, those are the processes of one machine.

        Args:
            lock: what it protects.
            collection: exact spelling.
            series_uid: SeriesInstanceUID, for ``Lock.SERIES`` only.

        Raises:
            LakeError: another holds it for too long, or took it over.
        """
        what = f"lock {lock.path(collection, series_uid)}"
        holding = ExitStack()
        with self.storage_errors(what):
            expect_held = holding.enter_context(self._store.lock(lock, collection, series_uid))

        def expect() -> None:
            with self.storage_errors(what):
                expect_held()

        # Not around the block of the caller, whose errors are its own.
        try:
            yield expect
        finally:
            with self.storage_errors(what):
                holding.close()

    # --- helpers

    @contextmanager
    def storage_errors(self, what: str) -> Iterator[None]:
        """Turn an error of the storage, inside the block, into a LakeError with the remedy.

        Args:
            what: what was tried, like ``write tables/series``.
        """
        try:
            yield
        except (OSError, pa.ArrowException) as e:
            raise LakeError(
                f"cannot {what} in the lake {self.uri} ({reason(e)}): {remedy(e, self.uri)}", arguments=("lake",)
            ) from e

    @cached_property
    def _store(self) -> Store:
        """The store, whose format is checked once, at its first use."""
        self._stated_format()
        return self._unchecked

    def _stated_format(self) -> int | None:
        content = self._unchecked.read_first(FORMAT_FILE) or b""
        if not content.strip(b"\0"):  # none, or what a power cut leaves of one
            return None
        restore = f"restore the file, or delete it if no version newer than {__version__} has written to the lake"
        with content_of(self.url(FORMAT_FILE), restore, "does not state the format of the lake"):
            about = json.loads(content)
            stated = int(about["format"])
        if stated > FORMAT:
            raise LakeError(
                f"the lake {self.uri} has format {stated}, and nbia-pipeline {__version__} knows formats up to "
                f"{FORMAT}: upgrade it; the lake was written by {about.get('written_by', 'a newer version')}"
            )
        return stated

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
    def _table_file(self, table: Table, collection: str | None) -> Iterator[BinaryIO | None]:
        """Open the file of a table, to be read in pieces; yields None where it was never written."""
        path = table_path(table.name, collection)
        try:
            opened = self.open(path)
        except LakeError as e:
            if not isinstance(e.__cause__, MISSING):
                raise
            yield None
            return
        with opened as file, content_of_table(path, self.uri):
            yield file

    def _has_rows(self, table: Table, collection: str | None) -> bool:
        """Return whether a table has rows; one that is damaged counts as one that had some."""
        try:
            return self.count_rows(table, collection) > 0
        except DamagedFile:
            return True


def _would_empty(path: str) -> WouldEmpty:
    return WouldEmpty(
        f"{path} has rows and would be replaced by an empty table: it was left as it was. If the archive "
        "really withdrew them all, delete the file yourself"
    )
