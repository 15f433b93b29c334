"""A disk that fails at a given operation: failing_disk.c, compiled, and the ways in which it fails."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")

# The sorts of operations, as in failing_disk.c.
CREATE, WRITE, MOVE, REMOVE, SYNC, CLOSE, READ = (1 << bit for bit in range(7))
CHANGES = CREATE | WRITE | MOVE | REMOVE | SYNC | CLOSE
NEEDS_ROOM = CREATE | WRITE | MOVE | SYNC | CLOSE  # a full disk still removes files


@dataclass(frozen=True)
class Kind:
    """A way in which a disk fails.

    Attributes:
        sorts: of the operations that can fail in this way.
        error: their errno; 0 kills the process instead.
        stays: whether all operations from the chosen one on fail, not that one alone.
        half: a write writes half of its bytes, then the next operation fails.
    """

    sorts: int
    error: int = 0
    stays: bool = False
    half: bool = False

    @property
    def words(self) -> str:
        """What the system says about the error."""
        return os.strerror(self.error)

    @property
    def removes(self) -> bool:
        """Whether a run on such a disk can remove what it has in the staging area."""
        return bool(self.error) and not self.sorts & (REMOVE | READ)


KINDS = {
    "killed": Kind(CHANGES),
    "full once": Kind(NEEDS_ROOM, errno.ENOSPC),
    "full from there on": Kind(NEEDS_ROOM, errno.ENOSPC, stays=True),
    "short write": Kind(WRITE, errno.ENOSPC, half=True),
    "EIO once": Kind(CHANGES, errno.EIO),
    "read-only from there on": Kind(CHANGES, errno.EROFS, stays=True),
    "EIO of a read": Kind(READ, errno.EIO),
}


def missing() -> str | None:
    """Return why there can be no such disk here; None if there can."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "operations of the disk can be intercepted on Linux with glibc only"
    if shutil.which("cc") is None:
        return "there is no C compiler cc to build what intercepts operations of the disk"
    return None


def build(folder: Path) -> Path:
    """Compile what LD_PRELOAD takes, and return its path."""
    library = folder / "failing_disk.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def arm(folder: Path, kind: Kind, number: int) -> None:
    """Let an operation below a folder fail, in a process that has the library preloaded.

    Args:
        folder: where operations count.
        kind: how it fails.
        number: which of those that can, from 1 on.
    """
    _arm(folder, kind.sorts, number, kind.error, kind.stays, kind.half, -1)


def watch(folder: Path, log: int) -> None:
    """Write a line to a file descriptor for every operation below a folder: its sort, its name and the path."""
    _arm(folder, CHANGES | READ, sys.maxsize, 0, False, False, log)


def disarm() -> int:
    """Let nothing fail from now on, and return how many operations there were."""
    ended = ctypes.CDLL(None).failing_disk_disarm
    ended.restype = ctypes.c_long
    return int(ended())


def _arm(folder: Path, sorts: int, number: int, *words: int) -> None:
    ctypes.CDLL(None).failing_disk_arm(os.fsencode(folder), sorts, ctypes.c_long(number), *words)
