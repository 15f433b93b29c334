"""A lake in an object store: objects are replaced by a single PUT, and there are no folders and no renames."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nbia_pipeline import stopping
from nbia_pipeline.lake.base_store import MISSING, BaseStore, BeforeReplacing, Record
from nbia_pipeline.lake.filesystem import NoAnswer, NoStore, kinds_of
from nbia_pipeline.lake.layout import LOCKS, is_foreign
from nbia_pipeline.lake.lock import ExpectHeld, Lock, among_threads, is_dead, this_process
from nbia_pipeline.lake.object_lock import ObjectLocks

ANSWER_SECONDS = 12
"""How long a store may take for its first answer."""

_WORKSPACE = "nbia-"
"""What the names of temporary directories begin with; the name of their process follows."""


class ObjectStore(BaseStore):
    """A prefix of an object store: a file is replaced by a single PUT, a folder file by file."""

    def __init__(self, fs: Any, root: str) -> None:
        super().__init__(fs, root)
        self._locks = ObjectLocks(fs, self.full(LOCKS))

    def read_first(self, path: str) -> bytes | None:
        """Return the content of a small object, the first that is read of a lake, None if there is no such object.

        The packages try for minutes to reach a store that is not there, and ask for less than a whole answer.
        """
        limit = {"timeout": ANSWER_SECONDS} if getattr(self.fs, "async_impl", False) else {}
        try:
            content: bytes = self.fs.cat_file(self.full(path), max_concurrency=1, **limit)
        except MISSING:
            return None
        except OSError as e:
            if "FSTimeoutError" in kinds_of(e):
                raise NoAnswer(errno.ETIMEDOUT, f"no answer in {ANSWER_SECONDS} seconds") from e
            raise
        if content.lstrip().startswith(b"<"):
            raise NoStore(errno.EPROTO, "the answer is a web page")
        return content

    def put(self, path: str, data: Any) -> None:
        """Write bytes or an Arrow buffer to an object, completely or not at all."""
        with self.fs.open(self.full(path), "wb") as file:
            file.write(data)

    def put_file(self, staged: Path, path: str) -> None:
        """Upload a file of a workspace."""
        self.fs.put_file(str(staged), self.full(path))

    def keep(self, path: str, kept: str) -> None:
        """Keep an object under another path too, before another one replaces it."""
        self.fs.cp_file(self.full(path), self.full(kept))

    note = put

    def flush(self) -> None:
        """Do nothing: an object is stored for good when the store says so."""

    def make_workspace(self) -> Path:
        """Make a temporary directory, named after this process; the caller removes it."""
        return Path(tempfile.mkdtemp(prefix=f"{_WORKSPACE}{this_process()}."))

    def publish_folder(self, staged: Path, path: str) -> None:
        """Upload the files of a directory of a workspace to a folder of the lake, then remove older ones."""
        names = {file.name for file in staged.iterdir()}
        for name in sorted(names):
            stopping.expect_running()
            self.put_file(staged / name, f"{path}/{name}")
        for old in self.names_in(path):  # there is no folder where nothing was uploaded
            if old not in names and not is_foreign(old):
                self.fs.rm(self.full(f"{path}/{old}"))

    def publish(
        self,
        staged: Path,
        path: str,
        collection: str,
        series_uid: str,
        record: Record,
        before_replacing: BeforeReplacing,
    ) -> None:
        """Upload the files before the entry of the journal is written, which names no staged directory."""
        # An upload takes its time: it keeps others from this series only, not from the collection.
        with self.lock(Lock.SERIES, collection, series_uid) as expect_held:
            if self.names_in(path):
                before_replacing()
            self.publish_folder(staged, path)
            expect_held()
            with self.lock(Lock.COLLECTION, collection):
                record(None)

    def publish_staged(self, name: str, path: str) -> bool:
        """Return False: files are uploaded before their entry is written."""
        return False

    def staged(self) -> list[str]:
        """Return nothing: there is no staging area except for locks and journal."""
        return []

    def sweep(self, keep: set[str]) -> int:
        """Remove what dead processes left, and return how much that was: temporary directories of this user, locks."""
        named = Path(tempfile.gettempdir()).glob(f"{_WORKSPACE}*")
        dead = [entry for entry in named if is_dead(entry.name.removeprefix(_WORKSPACE)) and _is_private(entry)]
        for entry in dead:
            shutil.rmtree(entry, ignore_errors=True)
        return len(dead) + self._locks.sweep()

    def remove_folder(self, path: str) -> None:
        """Remove a folder; it may be gone already."""
        self.fs.invalidate_cache(self.full(path))
        if self.exists(path):
            self.fs.rm(self.full(path), recursive=True)

    @contextmanager
    def lock(self, lock: Lock, collection: str, series_uid: str = "") -> Iterator[ExpectHeld]:
        """Hold a lock that all processes share that write to the store."""
        path = self.full(lock.path(collection, series_uid))
        with among_threads(path), self._locks.hold(path) as expect_held:
            yield expect_held

    def free_bytes(self) -> None:
        """Return None: there is no bound."""
        return None


def _is_private(entry: Path) -> bool:
    """Return whether this user made a directory that is closed to others: anybody may use such a name."""
    try:
        status = entry.lstat()
    except FileNotFoundError:
        return False  # another run removed it
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) == 0o700
