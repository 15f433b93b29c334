"""The files and directories of a lake, on a disk or in an object store, and its locks."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar, cast

import pyarrow as pa

from nbia_pipeline import stopping
from nbia_pipeline._version import __version__
from nbia_pipeline.address import lake_address
from nbia_pipeline.lake.errors import LakeError, content_of, reason, remedy
from nbia_pipeline.lake.filesystem import Guarded
from nbia_pipeline.lake.layout import FORMAT, FORMAT_FILE, STAGING, TABLES
from nbia_pipeline.lake.local_store import LocalStore
from nbia_pipeline.lake.lock import ExpectHeld, Lock, this_process
from nbia_pipeline.lake.store import Store, open_store

CHUNK_BYTES = 1 << 20

P = ParamSpec("P")
R = TypeVar("R")


def _of_store(method: Callable[Concatenate[LocalStore, P], R], what: str) -> Callable[Concatenate[Files, P], R]:
    """Return a method that both stores have as one of the lake, whose errors state what was tried."""

    def of_lake(lake: Files, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with lake.storage_errors(what.format(*args, *kwargs.values())):
            result: R = getattr(lake._store, method.__name__)(*args, **kwargs)
            return result

    update_wrapper(of_lake, method)
    return of_lake


class Files:
    """A lake, but for its tables; see :class:`~nbia_pipeline.lake.lake.Lake` for the arguments and the errors."""

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

    # --- small files

    put_bytes = _of_store(LocalStore.put, "write {}")
    note_bytes = _of_store(LocalStore.note, "write {}")
    note_new = _of_store(LocalStore.note_new, "write {}")
    read_range = _of_store(LocalStore.read_range, "read {}")
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
