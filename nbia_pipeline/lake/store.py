"""Where the files of a lake are kept: on a disk, or in an object store.

Both stores have the same methods, so that no caller asks which of the two it is. All paths are relative to the
lake, with ``/``. What goes wrong is an OSError: see :mod:`nbia_pipeline.lake.filesystem`.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import fsspec
from fsspec.implementations.local import LocalFileSystem

from nbia_pipeline import stopping
from nbia_pipeline.address import is_uri
from nbia_pipeline.lake.disk import delete, link_or_copy, removed_if_empty
from nbia_pipeline.lake.errors import LakeError, reason, remedy
from nbia_pipeline.lake.filesystem import Guarded, translated
from nbia_pipeline.lake.flush import Flush
from nbia_pipeline.lake.layout import EARLIER, JOURNAL, LOCKS, RUNS, STAGING, is_foreign
from nbia_pipeline.lake.lock import (
    ExpectHeld,
    Lock,
    abandoned,
    among_threads,
    file_lock,
    is_dead,
    object_lock,
    this_process,
)

Record = Callable[["str | None"], str]
"""Writes an entry of the journal, given the name of a staged directory or None, and returns the path of the entry."""
BeforeReplacing = Callable[[], object]
"""Called before files of a series are replaced in place, which no receipt may describe any more from then on."""

_WORKSPACE = "nbia-"
"""What the names of temporary directories begin with; the name of their process follows."""

_MISSING = (FileNotFoundError, NotADirectoryError)  # the second below a file, where nothing can be either


def open_store(address: str, *, fsync: bool = True) -> Store:
    """Return the store of a lake.

    Args:
        address: absolute directory or URI; see :func:`~nbia_pipeline.address.lake_address`.
        fsync: flush to the disk what is written; an object store does so by itself.

    Raises:
        LakeError: it is a file, no file system is known for the URI, or its store refuses.
    """
    if not is_uri(address):
        if os.path.isfile(address):  # noqa: PTH113 - Path raises where a name is too long
            raise LakeError(f"the lake {address} is a file: set it to a directory", arguments=("lake",))
        # Not by its URL: fsspec would cut a path at `::`.
        return LocalStore(LocalFileSystem(), address, Flush(Path(address), off=not fsync))
    what = "set it to a directory, or to a URI whose fsspec package is installed"
    try:
        translated(fsspec.get_filesystem_class, address.partition("://")[0])
        what = ""
        # Others write too: what an object store remembers of its lists would soon be wrong.
        fs, root = translated(fsspec.core.url_to_fs, address, use_listings_cache=False)
    except OSError as e:
        raise LakeError(
            f"the lake {address!r} cannot be opened ({reason(e)}): {what or remedy(e, address)}", arguments=("lake",)
        ) from e
    return ObjectStore(Guarded(fs), root.rstrip("/"))


class _Store:
    """What both stores do in the same way.

    Args:
        fs: an fsspec file system.
        root: path of the lake in it.
    """

    def __init__(self, fs: Any, root: str) -> None:
        self.fs = fs
        self.root = root

    def full(self, path: str) -> str:
        """Return the path of a file in the file system."""
        return f"{self.root.rstrip('/')}/{path}"

    def exists(self, path: str) -> bool:
        """Return whether there is a file or folder."""
        # Not `exists`: for most file systems it is False, too, where they cannot tell.
        try:
            self.fs.info(self.full(path))
        except _MISSING:
            return False
        return True

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, None if there is no such file."""
        try:
            content: bytes = self.fs.cat_file(self.full(path))
        except _MISSING:
            return None
        return content

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading, in pieces if need be; it must be there. The caller closes it."""
        file: BinaryIO = self.fs.open(self.full(path), "rb")
        return file

    def remove(self, path: str) -> None:
        """Remove a file; it may be gone already."""
        if self.exists(path):
            self.fs.rm(self.full(path))

    def names_in(self, folder: str) -> list[str]:
        """Return the names of what is in a folder, sorted; none if there is no such folder."""
        try:
            return sorted(_name(entry) for entry in self.fs.ls(self.full(folder), detail=False))
        except _MISSING:
            return []

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of all files below a folder, by path; none if there is no such folder."""
        found = self.fs.find(self.full(folder), detail=True)
        return {str(name).removeprefix(self.full("")): int(about["size"]) for name, about in found.items()}


class LocalStore(_Store):
    """A directory on a disk: a file or folder is replaced by a rename from the staging area on the same file system.

    What is renamed was flushed to the disk before, so that after a loss of power no name stands for half of a content.

    Args:
        fs: fsspec's local file system.
        root: absolute directory of the lake.
        flush: flushes what is written below it.
    """

    def __init__(self, fs: Any, root: str, flush: Flush) -> None:
        super().__init__(fs, root)
        self._folder = Path(root)
        self._staging = self._folder / STAGING
        self._flush = flush

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of all files below a folder, by path; none if there is no such folder.

        A folder that cannot be read is an error, where fsspec would leave it out.
        """
        found = {}
        for above, _, names in os.walk(self._folder / folder, onerror=_unless_missing, followlinks=True):
            for path in (Path(above, name) for name in names):
                with suppress(FileNotFoundError):  # removed meanwhile
                    found[path.relative_to(self._folder).as_posix()] = path.stat().st_size
        return found

    def put(self, path: str, data: Any) -> None:
        """Write bytes or an Arrow buffer to a file, completely or not at all; missing folders are made."""
        with self._staged_file(data) as staged:
            self.put_file(staged, path)

    def put_file(self, staged: Path, path: str) -> None:
        """Move a file of a workspace to its path in the lake; missing folders are made."""
        self._flush.file(staged)
        self._flush.names(self._moved(staged, self._folder / path))

    def note(self, path: str, data: bytes) -> None:
        """Write a small file, completely or not at all, which may be empty if power is lost before :meth:`flush`."""
        if not self._flush.as_a_whole:
            return self.put(path, data)
        with self._staged_file(data) as staged:
            self._moved(staged, self._folder / path)

    def flush(self) -> None:
        """Make sure that all that was written, moved and noted before survives a loss of power."""
        self._flush.everything()

    def keep(self, path: str, kept: str) -> None:
        """Keep a file under another path too, before another one replaces it."""
        staged = self._new_name()
        try:
            link_or_copy(self._folder / path, staged)
            self.put_file(staged, kept)
        finally:
            staged.unlink(missing_ok=True)

    def make_workspace(self) -> Path:
        """Make a directory in the staging area; the caller removes it."""
        folder = self._new_name()
        folder.mkdir()
        return folder

    def publish_folder(self, staged: Path, path: str) -> None:
        """Make a directory of a workspace a folder of the lake; an older one is moved aside and removed afterwards."""
        self._flush.files(staged)
        self._move_folder(staged, path)

    def publish(
        self,
        staged: Path,
        path: str,
        collection: str,
        series_uid: str,
        record: Record,
        before_replacing: BeforeReplacing,
    ) -> None:
        """Make the files of a staged directory the content of a series' folder, and record that in the journal.

        On a disk the entry comes first and names the staged directory: after a crash :meth:`publish_staged` makes the
        move. Where the folder is there already, the move is left to that in any case: whoever calls it sees to it that
        no receipt describes the older files. An object store has the files first and the entry after, without a name.

        Args:
            staged: directory in a workspace that has just the files; it is moved away.
            path: of the folder.
            collection: of the series, for the locks.
            series_uid: of the series, for the locks.
            record: writes the entry.
            before_replacing: called before older files are replaced here.

        Raises:
            LakeError: a lock was lost.
        """
        self._flush.files(staged)
        with self.lock(Lock.COLLECTION, collection):
            replaces = (self._folder / path).exists()
            if replaces:  # out of the workspace, which is removed
                staged = staged.rename(self._new_name())
            entry = ""
            try:
                entry = record(staged.relative_to(self._staging).as_posix())
                if not replaces:
                    self._move_folder(staged, path)
            except (OSError, LakeError):
                # Not a crash: the staged files go, so the entry must not outlive them.
                if entry:
                    self.remove(entry)
                shutil.rmtree(staged, ignore_errors=True)
                raise

    def publish_staged(self, name: str, path: str) -> bool:
        """Publish a staged directory that an entry of the journal names; hold the lock for it.

        Returns:
            Whether it still existed: it is gone if that was done before.
        """
        if not (self._staging / name).exists():
            return False
        self._move_folder(self._staging / name, path)
        return True

    def _move_folder(self, staged: Path, path: str) -> None:
        target = self._folder / path
        aside = staged.parent / f"{staged.name}.old"
        if target.exists():
            target.rename(aside)
        try:
            changed = self._moved(staged, target)
        except OSError:
            with suppress(OSError):
                aside.rename(target)
            # Where that failed as well: no receipt describes the older files any more.
            shutil.rmtree(aside, ignore_errors=True)
            raise
        if not self._flush.as_a_whole:
            self._flush.names(changed)
        shutil.rmtree(aside, ignore_errors=True)

    def _moved(self, staged: Path, target: Path) -> list[Path]:
        """Move a file or directory, and return the folders that list something new."""
        missing = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(target)
        return [target.parent, *(folder.parent for folder in missing)]

    def staged(self) -> list[str]:
        """Return the names of what is in the staging area of a disk besides what is kept there for long."""
        names = (name for name in self.names_in(STAGING) if not is_foreign(name))
        return [name for name in names if f"{STAGING}/{name}" not in (LOCKS, JOURNAL, EARLIER, RUNS)]

    def sweep(self, keep: set[str]) -> int:
        """Remove what dead processes left in the staging area of a disk, and return how many entries that were.

        A leftover is dead if its process on this machine is, or if it is a week old.

        Args:
            keep: names of staged directories that a journal still needs.
        """
        dead = [entry for name in self.staged() if name not in keep and abandoned(entry := self._staging / name)]
        for entry in dead:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        return len(dead)

    def remove_folder(self, path: str) -> None:
        """Remove a folder of files, and the folders above it that become empty; it may be gone already.

        It is renamed at once and deleted afterwards, so that no reader finds half of it.
        """
        folder = self._folder / path
        if folder.is_dir():
            aside = self._new_name(".old")
            folder.rename(aside)
            delete(aside)
        for above in folder.relative_to(self._folder).parents:
            if len(above.parts) == 1 or not removed_if_empty(self._folder / above):
                return

    def lock(self, lock: Lock, collection: str, series_uid: str = "") -> AbstractContextManager[ExpectHeld]:
        """Hold a lock that the processes of this machine share."""
        return file_lock(self._folder / lock.path(collection, series_uid))

    def free_bytes(self) -> int | None:
        """Return the free space of the disk in bytes, None for an object store; the lake need not exist yet."""
        return shutil.disk_usage(next(f for f in (self._folder, *self._folder.parents) if f.is_dir())).free

    @contextmanager
    def _staged_file(self, data: Any) -> Iterator[Path]:
        """Write a file that the block moves away; it is removed if that fails."""
        staged = self._new_name()
        try:
            staged.write_bytes(data)
            yield staged
        except BaseException:
            with suppress(OSError):
                staged.unlink()
            raise

    def _new_name(self, suffix: str = "") -> Path:
        """Return a path in the staging area that nobody uses."""
        self._staging.mkdir(parents=True, exist_ok=True)
        return self._staging / f"{this_process()}.{uuid.uuid4().hex}{suffix}"


class ObjectStore(_Store):
    """A prefix of an object store: a file is replaced by a single PUT, a folder file by file."""

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
        """Remove the temporary directories that dead processes of this user left, and return how many that were."""
        named = Path(tempfile.gettempdir()).glob(f"{_WORKSPACE}*")
        dead = [entry for entry in named if is_dead(entry.name.removeprefix(_WORKSPACE)) and _is_private(entry)]
        for entry in dead:
            shutil.rmtree(entry, ignore_errors=True)
        return len(dead)

    def remove_folder(self, path: str) -> None:
        """Remove a folder; it may be gone already."""
        self.fs.invalidate_cache(self.full(path))
        if self.exists(path):
            self.fs.rm(self.full(path), recursive=True)

    @contextmanager
    def lock(self, lock: Lock, collection: str, series_uid: str = "") -> Iterator[ExpectHeld]:
        """Hold a lock that all processes share that write to the store."""
        path = self.full(lock.path(collection, series_uid))
        with among_threads(path), object_lock(self.fs, path) as expect_held:
            yield expect_held

    def free_bytes(self) -> None:
        """Return None: there is no bound."""
        return None


Store: TypeAlias = LocalStore | ObjectStore


def _name(entry: Any) -> str:
    return str(entry).rstrip("/").rsplit("/", 1)[-1]


def _is_private(entry: Path) -> bool:
    """Return whether this user made a directory that is closed to others: anybody may use such a name."""
    try:
        status = entry.lstat()
    except FileNotFoundError:
        return False  # another run removed it
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) == 0o700


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, _MISSING):
        raise error
