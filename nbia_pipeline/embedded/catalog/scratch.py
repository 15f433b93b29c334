"""A directory of things that cost work to make, owned by one server and removed with it."""

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
"""Bytes of stored things above which no more is stored; rendered answers are not counted."""

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
        """Return where the thing called `key` lies or would lie."""
        return self.directory / hashlib.sha256(key.encode()).hexdigest()

    def scratch(self, path: Path) -> Path:
        """Return an unused name beside `path` to write to before moving it there."""
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
        scratch = self.scratch(path)
        # The directory is gone if the shelf was cleared meanwhile; then nothing needs to be stored.
        with contextlib.suppress(FileNotFoundError):
            scratch.write_bytes(data)
            scratch.replace(path)

    def clear(self) -> None:
        """Remove the directory; a later use makes a new one."""
        with self._lock:
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
            self._stored = 0


def _remove_orphans() -> None:
    """Remove the directories of this user's servers that were killed before they could tidy up."""
    if not hasattr(os, "getuid"):
        return
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = directory.name.removeprefix(_PREFIX).partition("-")[0]
        # Another process may be tidying up at the same moment.
        with contextlib.suppress(FileNotFoundError):
            if pid.isdecimal() and directory.lstat().st_uid == os.getuid() and not _lives(int(pid)):
                shutil.rmtree(directory, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
