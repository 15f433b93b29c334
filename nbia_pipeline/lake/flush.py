"""What was written survives a loss of power: files and directories are flushed to the disk before anybody relies on it.

A rename is no guarantee: the name may reach the disk before the content of the file does.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from nbia_pipeline import stopping

try:
    import fcntl
except ImportError:  # Windows
    _FULL_FSYNC = None
else:
    _FULL_FSYNC = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, where fsync stops at the disk's own memory

THREADS = 8

# File systems of a disk of this machine, by the number that statfs(2) gives them: one call of syncfs flushes all that
# was written to them. On others, such as those of FUSE, it may flush nothing, so every file is flushed by itself.
_FLUSHED_AS_A_WHOLE = {
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # XFS
    0x9123683E,  # Btrfs
    0xCA451A4E,  # bcachefs
    0xF2F52010,  # F2FS
    0x2FC12FC1,  # ZFS
    0x794C7630,  # overlayfs: that of the directories below it
    0x01021994,  # tmpfs: nothing to do
}
# Before, syncfs reported no error.
_LINUX_OF_SYNCFS = (5, 8)


class Flush:
    """Flushes what is written below one directory.

    Args:
        root: the directory; it need not exist yet.
        off: flush nothing.
    """

    def __init__(self, root: Path, *, off: bool = False) -> None:
        self._root = root
        self._off = off
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        self._asked = self._flushed = 0
        self._failed: OSError | None = None

    @cached_property
    def as_a_whole(self) -> bool:
        """Whether :meth:`everything` does; otherwise each file and directory has to be flushed by itself."""
        return self._off or self._descriptor >= 0

    def everything(self) -> None:
        """Flush whatever was written before, if that is possible; threads that ask meanwhile share the next flush.

        Raises:
            OSError: the disk cannot be written, now or at an earlier call: what is lost then is reported once only.
        """
        if self._off or not self.as_a_whole:
            return
        with self._guard:
            self._asked += 1
            mine = self._asked
        with self._turn:
            if self._flushed < mine:
                with self._guard:
                    upto = self._asked
                self._sync()
                self._flushed = upto

    def files(self, folder: Path) -> None:
        """Flush all files that were written to a directory.

        Raises:
            OSError: the disk cannot be written.
        """
        if self.as_a_whole:
            self.everything()
            return
        found = list(folder.rglob("*"))
        with stopping.threads(THREADS, "nbia-flush") as pool:
            for _ in pool.map(self.file, (path for path in found if path.is_file())):
                pass
        self.names([*(path for path in found if path.is_dir()), folder])

    def file(self, path: Path) -> None:
        """Flush one file, whose name may change next, or what one directory lists.

        Raises:
            OSError: the disk cannot be written.
        """
        if self._off:
            return
        opened = os.open(path, os.O_RDONLY)
        try:
            if _FULL_FSYNC is None:
                os.fsync(opened)
            else:
                fcntl.fcntl(opened, _FULL_FSYNC)
        finally:
            os.close(opened)

    def names(self, folders: Iterable[Path]) -> None:
        """Flush what some directories list.

        Raises:
            OSError: the disk cannot be written.
        """
        if os.name != "nt":  # where no directory can be opened
            for folder in folders:
                self.file(folder)

    def _sync(self) -> None:
        if self._failed is None and _LIBC.syncfs(self._descriptor) != 0:
            number = ctypes.get_errno()
            self._failed = OSError(number, os.strerror(number), str(self._root))
        if self._failed is not None:
            raise self._failed

    @cached_property
    def _descriptor(self) -> int:
        """A descriptor of the file system that can be flushed as a whole, else -1.

        It stays open: an error is reported to those descriptors that were open when it happened.
        """
        release = re.match(r"(\d+)\.(\d+)", os.uname().release) if _LIBC else None
        if release is None or tuple(map(int, release.groups())) < _LINUX_OF_SYNCFS:
            return -1
        self._root.mkdir(parents=True, exist_ok=True)
        opened = os.open(self._root, os.O_RDONLY)
        about = (ctypes.c_long * 32)()  # struct statfs, whose first field is the type
        if _LIBC.fstatfs(opened, about) == 0 and about[0] & 0xFFFFFFFF in _FLUSHED_AS_A_WHOLE:
            return opened
        os.close(opened)
        return -1

    def __del__(self) -> None:
        if self.__dict__.get("_descriptor", -1) >= 0:
            os.close(self._descriptor)


_LIBC: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
