"""One lake, on a disk or an object store: its tables, and the directories of its image files.

A reader sees the old partition or the new one, never a mixture and never a temporary file. On a disk that
is a rename from the staging area on the same file system; on an object store a whole PUT.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from nbia_pipeline.lake import parquet
from nbia_pipeline.lake.errors import LakeError, WouldEmpty
from nbia_pipeline.lake.layout import IMAGES, PART, STAGING, TABLES, decode, encode, table_path
from nbia_pipeline.lake.lock import ExpectHeld, Lock, among_threads, file_lock, object_lock
from nbia_pipeline.lake.owner import abandoned, this_process
from nbia_pipeline.schema import Table

PARTITION = "Collection"


class Lake:
    """A lake at a directory or URI.

    Args:
        uri: absolute directory, or URI such as ``s3://bucket/lake``; the credentials of an object store come
            from its own environment variables.

    Raises:
        LakeError: no file system is known for the URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            # Others write too: what an object store remembers of its lists would soon be wrong.
            self._fs, root = fsspec.core.url_to_fs(uri, use_listings_cache=False)
        except (ValueError, ImportError) as e:
            raise LakeError(
                f"NBIA_LAKE is {uri!r} ({e}): set it to a directory, or to a URI whose fsspec package is installed"
            ) from e
        self._root = root.rstrip("/")

    @property
    def local(self) -> Path | None:
        """The directory of a lake on a disk, None for an object store."""
        return Path(self._root) if isinstance(self._fs, LocalFileSystem) else None

    def url(self, path: str) -> str:
        """Return the full address of a path of the lake."""
        return f"{self.uri.rstrip('/')}/{path}"

    def check_writable(self) -> None:
        """Make sure that the lake can be written, before anything is fetched for it.

        Raises:
            LakeError: it cannot; nothing is left behind.
        """
        with self.told("write"):
            probe = f"{STAGING}/{this_process()}.{uuid.uuid4().hex}.probe"
            self._put(probe, b"")
            self._fs.rm(self._full(probe))

    # --- tables

    def read_table(self, table: Table, collection: str | None = None, columns: list[str] | None = None) -> pa.Table:
        """Return a table, or one collection of it; without rows where it was never written.

        Args:
            table: which one.
            collection: the partition, None for an unpartitioned table.
            columns: names of the columns to read, None for all.

        Raises:
            LakeError: the file is there but cannot be read.
        """
        path = table_path(table.name, collection)
        schema = table.schema if columns is None else pa.schema([table.schema.field(c) for c in columns])
        with self.told(f"read {path}"):
            if not self._fs.exists(self._full(path)):
                return schema.empty_table()
            # Whole, so that no thread of Arrow's reads through a Python object: one could outlive the interpreter.
            file = pq.ParquetFile(pa.BufferReader(self._fs.cat_file(self._full(path))))
            read = file.read(columns=[n for n in schema.names if not _by_path(n, collection)], use_threads=False)
        if collection is not None and PARTITION in schema.names:
            read = read.append_column(PARTITION, pa.repeat(pa.scalar(collection), read.num_rows))
        for field in (f for f in schema if f.name not in read.schema.names):  # the file is of an older version
            read = read.append_column(field, pa.nulls(read.num_rows, field.type))
        return read.select(schema.names).cast(schema)

    def write_table(
        self,
        table: Table,
        data: pa.Table,
        collection: str | None = None,
        *,
        properties: Mapping[str, str] | None = None,
        may_empty: bool = False,
    ) -> int:
        """Replace a table, or one collection of it, and return the size of the file in bytes.

        A partition's file leaves out the Collection column: readers with Hive partitioning take it, decoded,
        from the path, and some (pandas) refuse a file that holds it too.

        Args:
            table: which one; `data` must have its columns and types.
            data: the rows.
            collection: the partition, None for an unpartitioned table.
            facts: what is true of the file as a whole, for :meth:`read_properties`; kept in its Parquet metadata.
            may_empty: the caller knows that nothing is left, as after a prune; never on the word of an answer.

        Raises:
            WouldEmpty: the table has rows and `data` has none: an empty answer is not believed that far.
            LakeError: the lake cannot be written; the old table stands.
        """
        path = table_path(table.name, collection)
        if data.num_rows == 0 and not may_empty and self.count_rows(table, collection):
            raise _would_empty(path)
        sink = pa.BufferOutputStream()
        stored = data.cast(table.schema)
        if collection is not None:
            stored = stored.drop_columns([PARTITION])
        if properties:
            stored = parquet.with_properties(stored, properties)
        pq.write_table(stored, sink, compression=parquet.COMPRESSION, row_group_size=parquet.ROW_GROUP_ROWS)
        buffer = sink.getvalue()
        self.put_bytes(path, buffer)
        return int(buffer.size)

    def has_table(self, table: Table, collection: str | None = None) -> bool:
        """Tell whether a table, or one collection of it, was ever written."""
        path = table_path(table.name, collection)
        with self.told(f"read {path}"):
            return bool(self._fs.exists(self._full(path)))

    def read_pieces(self, table: Table, collection: str) -> Iterator[pa.Table]:
        """Yield one collection of a table piece by piece, so that memory does not grow with it.

        Raises:
            LakeError: the file is there but cannot be read.
        """
        path = table_path(table.name, collection)
        if not self.has_table(table, collection):
            return
        with self.told(f"read {path}"), self._fs.open(self._full(path), "rb") as file:
            for piece in parquet.groups_of(file):
                piece = piece.append_column(PARTITION, pa.repeat(pa.scalar(collection), piece.num_rows))
                yield piece.select(table.schema.names).cast(table.schema)

    def write_pieces(self, table: Table, pieces: Iterable[pa.Table], collection: str) -> int:
        """Replace one collection of a table by what comes piece by piece, and return its number of rows.

        The old table can be read while the new one is written.

        Args:
            table: which one; the pieces must have its columns and types.
            pieces: the rows.
            collection: the partition.

        Raises:
            WouldEmpty: the table has rows and there are no pieces with any; the old table stands.
            LakeError: the lake cannot be written; the old table stands.
        """
        path = table_path(table.name, collection)
        schema = table.schema.remove(table.schema.get_field_index(PARTITION))
        with self.workspace() as work, self.told(f"write {path}"):
            staged = work / PART
            rows = parquet.write_groups(staged, schema, (p.drop_columns([PARTITION]).cast(schema) for p in pieces))
            if not rows and self.count_rows(table, collection):
                raise _would_empty(path)
            if self.local is None:
                self._fs.put_file(str(staged), self._full(path))
            else:
                (self.local / path).parent.mkdir(parents=True, exist_ok=True)
                staged.replace(self.local / path)
        return rows

    def read_properties(self, table: Table, collection: str | None = None) -> dict[str, str]:
        """Return what :meth:`write_table` was told about the file as a whole; nothing where there is no file."""
        path = table_path(table.name, collection)
        with self.told(f"read {path}"):
            if not self._fs.exists(self._full(path)):
                return {}
            with self._fs.open(self._full(path), "rb") as file:
                return parquet.properties_of(file)

    def read_rows(
        self, table: Table, collection: str, column: str, values: Collection[str], columns: list[str]
    ) -> pa.Table:
        """Return some rows of one collection of a table; parts of its file that cannot hold any are not read.

        Args:
            table: which one.
            collection: the partition.
            column: the rows are those whose value in this column ...
            values: ... is one of these.
            columns: names of the columns to return; none of them is Collection, which is in the path.

        Raises:
            LakeError: the file is there but cannot be read.
        """
        path = table_path(table.name, collection)
        found = [table.schema.empty_table().select(columns)]
        with self.told(f"read {path}"):
            if not self._fs.exists(self._full(path)):
                return found[0]
            with self._fs.open(self._full(path), "rb") as file:
                found += [r.cast(found[0].schema) for r in parquet.rows_among(file, column, values, columns)]
        return pa.concat_tables(found)

    def count_rows(self, table: Table, collection: str | None = None) -> int:
        """Return the number of rows of a table from the footer of its file; 0 where it was never written."""
        path = table_path(table.name, collection)
        with self.told(f"read {path}"):
            if not self._fs.exists(self._full(path)):
                return 0
            with self._fs.open(self._full(path), "rb") as file:
                return int(pq.read_metadata(file).num_rows)

    def collections_of(self, table: Table) -> list[str]:
        """Return the collections that a partitioned table holds, sorted."""
        folder = self._full(f"{TABLES}/{table.name}")
        with self.told(f"list tables/{table.name}"):
            if not self._fs.exists(folder):
                return []
            names = [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(folder, detail=False)]
        return sorted(decode(n.removeprefix("Collection=")) for n in names if n.startswith("Collection="))

    # --- small files

    def put_bytes(self, path: str, data: Any) -> None:
        """Write a file whole or not at all.

        Args:
            path: where; the directories are made.
            data: bytes, or an Arrow buffer.

        Raises:
            LakeError: it cannot be written.
        """
        with self.told(f"write {path}"):
            self._put(path, data)

    def read_bytes(self, path: str) -> bytes | None:
        """Return the content of a file of the lake, None where there is none."""
        with self.told(f"read {path}"):
            try:
                content: bytes = self._fs.cat_file(self._full(path))
            except FileNotFoundError:
                return None
            return content

    def names_in(self, folder: str) -> list[str]:
        """Return the names of what is in a folder of the lake, sorted; none where there is no folder."""
        full = self._full(folder)
        with self.told(f"list {folder}"):
            try:
                return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(full, detail=False))
            except FileNotFoundError:
                return []

    def read_files(self, folder: str) -> dict[str, bytes]:
        """Return the contents of the files in a folder of the lake, by path; none where there is no folder."""
        contents = {path: self.read_bytes(path) for path in (f"{folder}/{n}" for n in self.names_in(folder))}
        return {path: content for path, content in contents.items() if content is not None}

    def open(self, path: str) -> BinaryIO:
        """Open a file of the lake for reading; it can be read in pieces. The caller closes it.

        Raises:
            LakeError: there is no such file, or it cannot be read.
        """
        with self.told(f"read {path}"):
            file: BinaryIO = self._fs.open(self._full(path), "rb")
            return file

    def remove(self, path: str) -> None:
        """Remove a file; it may be gone already."""
        with self.told(f"remove {path}"):
            if self._fs.exists(self._full(path)):
                self._fs.rm(self._full(path))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes of the files below a folder of the lake, by path; none where there is no folder."""
        full = self._full(folder)
        with self.told(f"list {folder}"):
            found = self._fs.find(full, detail=True)
        return {str(name).removeprefix(f"{self._root}/"): int(about["size"]) for name, about in found.items()}

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes, None where there is none."""
        with self.told(f"read {path}"):
            if not self._fs.exists(self._full(path)):
                return None
            return int(self._fs.info(self._full(path))["size"])

    # --- directories of image files

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """Give a local directory to work in: in the staging area of a disk, else in the temporary directory.

        What is left in it at the end is removed.
        """
        with self.told("make a staging directory"):
            if self.local is None:
                folder = Path(tempfile.mkdtemp(prefix="nbia-"))
            else:
                folder = self.local / STAGING / f"{this_process()}.{uuid.uuid4().hex}"
                folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish_folder(self, staged: Path, path: str) -> None:
        """Make the files of a local directory the content of a folder of the lake.

        On a disk the directory itself is moved; an older one steps aside first and is removed after. On an
        object store the files are uploaded, then older ones beside them removed.

        Raises:
            LakeError: the lake cannot be written.
        """
        with self.told(f"publish {path}"):
            if self.local is None:
                self._upload(staged, self._full(path))
                return
            target = Path(self._full(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = staged.parent / f"{staged.name}.old"
            if target.exists():
                target.rename(aside)
            try:
                staged.rename(target)
            except OSError:
                if aside.exists():
                    aside.rename(target)
                raise
            shutil.rmtree(aside, ignore_errors=True)

    def remove_folder(self, path: str) -> None:
        """Remove a folder of image files, and the folders above it that it leaves empty; it may be gone already.

        On a disk it steps aside at once and is deleted after, so that no reader finds half of it.

        Raises:
            LakeError: it cannot be removed.
        """
        with self.told(f"remove {path}"):
            full = self._full(path)
            if self.local is None:
                self._fs.invalidate_cache(full)
                if self._fs.exists(full):
                    self._fs.rm(full, recursive=True)
                return
            folder = Path(full)
            if folder.is_dir():
                aside = self.local / STAGING / f"{this_process()}.{uuid.uuid4().hex}.old"
                aside.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(aside)
                shutil.rmtree(aside)
            for above in folder.relative_to(self.local).parents:
                if above == Path(IMAGES) or not _removed_if_empty(self.local / above):
                    return

    @contextmanager
    def lock(self, what: Lock | str, *names: str) -> Iterator[ExpectHeld]:
        """Hold a lock that all who write this lake share; gives what tells whether it is still held.

        On a disk, those are the processes of one machine.

        Args:
            what: is kept from others.
            names: the collection, and the series where it is one.

        Raises:
            LakeError: it cannot be had, or was lost.
        """
        name = f"{'.'.join(encode(n) for n in names)}{what.value}" if isinstance(what, Lock) else what
        path = f"{STAGING}/locks/{name}.lock"
        with self.told(f"lock {path}"):
            if self.local is None:
                with among_threads(self.url(path)), object_lock(self._fs, self._full(path)) as expect_held:
                    yield expect_held
            else:
                (self.local / path).parent.mkdir(parents=True, exist_ok=True)
                with file_lock(self.local / path) as expect_held:
                    yield expect_held

    def free_bytes(self) -> int | None:
        """Return what the disk of the lake has free, in bytes, None for an object store.

        Raises:
            LakeError: the disk cannot be asked.
        """
        if self.local is None:
            return None
        with self.told("measure the free room"):
            folder = next(f for f in (self.local, *self.local.parents, Path("/")) if f.is_dir())
            return shutil.disk_usage(folder).free

    def sweep(self, keep: set[str]) -> int:
        """Remove what dead processes left in the staging area of a disk, and return how much that was.

        A leftover is dead if its process on this machine is, or if it is a week old.

        Args:
            keep: names of staged directories that a journal still needs.
        """
        if self.local is None or not (self.local / STAGING).is_dir():
            return 0
        swept = 0
        for entry in (self.local / STAGING).iterdir():
            if entry.name.split(".")[0] in ("locks", "journal") or entry.name in keep or not abandoned(entry):
                continue
            swept += 1
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        return swept

    # --- helpers

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _put(self, path: str, data: Any) -> None:
        if self.local is None:
            with self._fs.open(self._full(path), "wb") as file:
                file.write(data)
            return
        staged = self.local / STAGING / f"{this_process()}.{uuid.uuid4().hex}"
        staged.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.write_bytes(data)
            target = self.local / path
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)

    def _upload(self, staged: Path, target: str) -> None:
        names = {f.name for f in staged.iterdir()}
        for name in sorted(names):
            self._fs.put_file(str(staged / name), f"{target}/{name}")
        for old in self._fs.ls(target, detail=False):
            if str(old).rsplit("/", 1)[-1] not in names:
                self._fs.rm(old)

    @contextmanager
    def told(self, what: str) -> Iterator[None]:
        """Turn an error of the storage, inside the block, into a LakeError with the remedy.

        Args:
            what: what was tried, like ``write tables/series``.
        """
        try:
            yield
        except (OSError, pa.ArrowInvalid) as e:
            why = e.strerror if isinstance(e, OSError) and e.strerror else f"{type(e).__name__}: {e}"
            raise LakeError(
                f"cannot {what} in the lake {self.uri} ({why}): check that NBIA_LAKE names a place that you may "
                "write and that has room"
            ) from e

    storage_errors = told


def _removed_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # it is not empty
        return False
    return True


def _would_empty(path: str) -> WouldEmpty:
    return WouldEmpty(
        f"{path} has rows and would be replaced by none: it was left as it was. If the archive really withdrew them "
        "all, delete the file yourself"
    )


def _by_path(column: str, collection: str | None) -> bool:
    """Tell whether a column of a partition is in the path, not in the file."""
    return collection is not None and column == PARTITION
