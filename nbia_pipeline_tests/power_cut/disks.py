"""Disks for a test: each logs its writes, has a file system of a kind that the machine can make, and is mounted.

All mounts are in a namespace of the process: they are gone when it is, however it ends, and loop devices with them.
Directories that a killed process leaves are removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nbia_pipeline_tests.power_cut.logged_disk import mount_file, own_mounts

MB_OF_DISK = 512


@dataclass(frozen=True)
class FileSystem:
    """A kind of file system.

    Attributes:
        make: command that makes one.
        options: how it is mounted: with so many seconds between the commits of its journal, where that can be chosen.
        beside: how a second disk with the same identity is mounted beside the first.
    """

    make: tuple[str, ...]
    options: str = ""
    beside: str = ""


FILE_SYSTEMS = {
    "ext4": FileSystem(("mkfs.ext4", "-q", "-F", "-E", "nodiscard"), options="commit={}"),
    "xfs": FileSystem(("mkfs.xfs", "-q", "-K"), beside="nouuid"),
    "btrfs": FileSystem(("mkfs.btrfs", "-q", "-K"), options="commit={}"),
}

# Linux 6.7 and later; an older one takes the second disk for the first.
_BTRFS_TWICE = Path("/sys/fs/btrfs/features/temp_fsid")
_PREFIX = "power-cut-"
_YOUNG_SECONDS = 60


class Missing(Exception):
    """The system lacks what a disk like this needs."""


def available() -> list[str]:
    """Return the file systems that this machine can make and mount."""
    known = set(Path("/proc/filesystems").read_text().split()) - (set() if _BTRFS_TWICE.exists() else {"btrfs"})
    return [name for name, kind in FILE_SYSTEMS.items() if name in known and shutil.which(kind.make[0])]


def enter() -> None:
    """Give this process mounts of its own, which end with it, and try a disk.

    Raises:
        Missing: the system lacks what the disks need, or does not allow it.
    """
    needs = "a power cut needs disks of its own: "
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Missing(f"{needs}run as root, on Linux")
    if not available():
        raise Missing(f"{needs}install mkfs.ext4, mkfs.xfs or mkfs.btrfs")
    try:
        own_mounts()
        with new_folder() as folder, logged(folder, available()[0]):
            pass
    except OSError as e:
        raise Missing(f"{needs}{e}") from e


def command(*words: str | Path) -> None:
    """Run a command of the system.

    Raises:
        OSError: it failed, with its own words.
    """
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """Make a directory for the time of the block, and remove those of processes that were killed."""
    for leftover in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _locked(leftover):
            if leftover.stat().st_mtime < time.time() - _YOUNG_SECONDS:
                shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, _locked(Path(folder)):
        yield Path(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock of a directory, which ends with this process. BlockingIOError: another one has it."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


@contextlib.contextmanager
def mounted(device: Path, folder: Path, options: str = "") -> Iterator[Path]:
    """Mount a file as a disk; the loop device goes with the mount."""
    folder.mkdir(exist_ok=True)
    command("mount", "-o", ",".join(filter(None, ("loop", options))), device, folder)
    try:
        yield folder
    finally:
        command("umount", folder)


@dataclass(frozen=True)
class Disk:
    """A disk that logs, with a file system that is mounted.

    Attributes:
        made: the image as it was when the log began.
        log: its log.
        lake: a directory on it.
    """

    made: Path
    log: Path
    lake: Path

    def position(self) -> int:
        """Return how long its log is."""
        return self.log.stat().st_size


@contextlib.contextmanager
def logged(folder: Path, file_system: str, commit_seconds: int = 5) -> Iterator[Disk]:
    """Make a file system on a disk that logs, and mount it.

    Args:
        folder: for its image and its log.
        file_system: which kind.
        commit_seconds: how long it may keep names to itself; after a short time there are names whose files are not
            written yet, and in a long time nothing is written that nobody flushed.
    """
    kind, image, made = FILE_SYSTEMS[file_system], folder / "image", folder / "made"
    options = kind.options.format(commit_seconds)
    command("truncate", "-s", f"{MB_OF_DISK}M", image)
    command(*kind.make, image)
    command("cp", "--sparse=always", image, made)
    with _served(image, folder / "log"), mounted(Path(f"{image}.disk"), folder / "live", options) as live:
        yield Disk(made, folder / "log", live / "lake")


@contextlib.contextmanager
def _served(image: Path, log: Path) -> Iterator[None]:
    """Have an image served at ``IMAGE.disk`` by a process that logs its writes."""
    device = os.open("/dev/fuse", os.O_RDWR)
    words = [sys.executable, "-m", "nbia_pipeline_tests.power_cut.logged_disk", str(device), str(image), str(log)]
    pipe = subprocess.PIPE
    server = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1, pass_fds=[device])
    assert server.stdin is not None and server.stdout is not None
    try:
        try:
            if server.stdout.readline() != "ready\n":
                raise OSError(server.communicate()[1].strip().rpartition("\n")[2])
            mount_file(device, Path(f"{image}.disk"))
            server.stdin.write("mounted\n")
        finally:
            os.close(device)  # what is mounted ends with the server's descriptor
        try:
            yield
        finally:
            command("umount", f"{image}.disk")
    finally:
        server.kill()
        server.communicate()
