"""A lake on a disk: files and folders are written beside their place, flushed, and renamed."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from nbia_pipeline.lake.base_store import MISSING, NO_DIGESTS, BaseStore, BeforeReplacing, Digests, Record
from nbia_pipeline.lake.errors import LakeError
from nbia_pipeline.lake.flush import Flush
from nbia_pipeline.lake.layout import EARLIER, JOURNAL, LOCKS, RUNS, STAGING, is_folder_note, is_foreign
from nbia_pipeline.lake.lock import LEFTOVER_SECONDS, ExpectHeld, Lock, abandoned, file_lock, this_process


class LocalStore(BaseStore):
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

    def note_new(self, path: str, data: bytes) -> bool:
        """Do the same if there is no such file; return whether there was none. The caller holds a lock for it."""
        if self.exists(path):
            return False
        self.note(path, data)
        return True

    def flush(self) -> None:
        """Make sure that all that was written, moved and noted before survives a loss of power."""
        self._flush.everything()

    def keep(self, path: str, kept: str) -> None:
        """Keep a file under another path too, before another one replaces it."""
        staged = self._new_name()
        try:
            _link_or_copy(self._folder / path, staged)
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
        digests: Digests = NO_DIGESTS,
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
            digests: MD5s of the files, where they are known: an object store compares what arrives with them.

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
        """Remove what dead processes and old runs left in the staging area, and return how many entries that were.

        A leftover is dead if its process on this machine is, or if it is a week old. What the steps of a run hand over
        is kept for a week after the last of it was written.

        Args:
            keep: names of staged directories that a journal still needs.
        """
        dead = [entry for name in self.staged() if name not in keep and abandoned(entry := self._staging / name)]
        dead += [run for name in self.names_in(RUNS) if _is_old(run := self._folder / RUNS / name)]
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
            _delete(aside)
        for above in folder.relative_to(self._folder).parents:
            if len(above.parts) == 1 or not _removed_if_empty(self._folder / above):
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


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, MISSING):
        raise error


def _is_old(folder: Path) -> bool:
    """Return whether nothing below a folder, nor itself, was written for a week."""
    since = time.time() - LEFTOVER_SECONDS
    with suppress(FileNotFoundError):  # its run removed something meanwhile
        return all(path.stat().st_mtime < since for path in (folder, *folder.rglob("*")))
    return False


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, so that it stays when another file replaces the first; copy it where links fail.

    The data of the file are on the disk already. A copy is as new as what is written after it, and without flushes
    could be lost together with that.
    """
    try:
        os.link(source, target)
    except OSError:  # a file system without links; whatever else is wrong, the copy shows it
        shutil.copyfile(source, target)


def _delete(folder: Path) -> None:
    """Delete a folder. What others hold open in it, such as ``.nfs*``, stays, out of the way, until a later sweep."""
    shutil.rmtree(folder, ignore_errors=True)
    left = (file for file in folder.rglob("*") if not file.is_dir())
    if not all(is_foreign(file.relative_to(folder).as_posix()) for file in left):
        shutil.rmtree(folder)  # raises the reason


def _removed_if_empty(folder: Path) -> bool:
    """Remove a folder that is empty, or has nothing but what a file manager noted about what was in it."""
    try:
        left = list(folder.iterdir())
        if all(is_folder_note(entry.name) and entry.is_file() for entry in left):
            for entry in left:
                entry.unlink(missing_ok=True)
        folder.rmdir()
    except OSError as e:  # if it is still there, it is not empty
        return isinstance(e, FileNotFoundError)
    return True
