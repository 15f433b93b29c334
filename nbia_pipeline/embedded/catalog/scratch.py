"""A temporary directory of answers and files that are expensive to make, owned by one server."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import tempfile
import threading
from pathlib import Path

BUDGET_BYTES = 4_000_000_000
"""Bytes above which :meth:`Scratch.store` stores no more; rendered answers are not counted."""

_PREFIX = "nbia-archive-"


class Scratch:
    """Files by key in a temporary directory, made when first needed."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._lock = threading.Lock()
        self._serial = itertools.count()
        self._stored = 0

    @property
    def directory(self) -> Path:
        """The directory; asking for it makes it."""
        with self._lock:
            if self._directory is None:
                _remove_orphans()
                self._directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
            return self._directory

    def path(self, key: str) -> Path:
        """Return the path of `key`, whether or not anything is stored there."""
        return self.directory / hashlib.sha256(key.encode()).hexdigest()

    def temporary(self, path: Path) -> Path:
        """Return an unused name next to `path`, to write to before moving it there."""
        return path.with_suffix(f".{next(self._serial)}")

    def load(self, key: str) -> bytes | None:
        """Return what is stored under `key`, or None."""
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            return None

    def store(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, unless the budget is used up."""
        with self._lock:
            if self._stored + len(data) > BUDGET_BYTES:
                return
            self._stored += len(data)
        path = self.path(key)
        temporary = self.temporary(path)
        # The directory is gone if it was cleared meanwhile; then nothing needs to be stored.
        with contextlib.suppress(FileNotFoundError):
            temporary.write_bytes(data)
            temporary.replace(path)

    def clear(self) -> None:
        """Remove the directory; a later use makes a new one."""
        with self._lock:
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
            self._stored = 0


def _remove_orphans() -> None:
    """Remove the directories of this user's servers that were killed before they could clean up."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = directory.name.removeprefix(_PREFIX).partition("-")[0]
        # Another process may be removing them at the same moment.
        with contextlib.suppress(FileNotFoundError):
            if pid.isdecimal() and directory.lstat().st_uid == os.getuid() and not _lives(int(pid)):
                shutil.rmtree(directory, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
