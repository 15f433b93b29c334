"""A disk that remembers every write and every flush, in their order; and what it keeps if the power fails.

The disk is one file of a FUSE file system, which a loop device makes a block device of. What a file system sends to
that device arrives here, write by write, with a mark where it asks for a flush of the disk's own cache. From this log
the disk of any moment can be made again, which a copy of an image that is written meanwhile is not: parts of such a
copy are older than others. Linux has dm-log-writes for this purpose, which few kernels come with; FUSE and loop devices
are nearly everywhere. As a process of its own::

    python -m nbia_pipeline_tests.power_cut.logged_disk DEVICE IMAGE LOG

serves IMAGE (a file system that was made before) through DEVICE, a descriptor of /dev/fuse that it inherits; it writes
LOG, says ``ready``, waits for a line that says that the disk is mounted (see :func:`mount_file`), and ends when it is
unmounted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
BLOCK = 4096
FLUSH = -1
MODELS = ("in order", "flushed only", "torn")
"""What a disk keeps of the writes since the last flush: all of them; none; or any blocks of them."""

# linux/fuse.h, version 7.31
_LOG = struct.Struct("<qi")  # offset, length
_IN, _OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_INIT_OUT, _ATTR_OUT = struct.Struct("<IIIIHHIIHHI28x"), struct.Struct("<QII QQQQQQ IIIIIIIIII")
_OPEN_OUT, _READ_IN, _WRITE_IN, _WRITE_OUT = (struct.Struct(f) for f in ("<QIi", "<QQIIQII", "<QQIIQII", "<II"))
_FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _RELEASE, _FSYNC, _FLUSH, _INIT, _INTERRUPT, _BATCH_FORGET = (
    2,
    3,
    4,
    14,
    15,
    16,
    18,
    20,
    25,
    26,
    36,
    42,
)  # fmt: skip
_BIG_WRITES, _MAX_PAGES, _DIRECT_IO = 1 << 5, 1 << 22, 1
_MOST = 1 << 20
_PDEATHSIG = 1
_NEW_MOUNTS, _RECURSIVE, _PRIVATE = 0x20000, 1 << 14, 1 << 18


def die_with_parent() -> None:
    """Have the system kill this process when the one that started it ends, however that ends."""
    LIBC.prctl(_PDEATHSIG, signal.SIGKILL)


def mount(source: str, target: str, kind: str, options: str, flags: int = 0) -> None:
    """Mount, as mount(2) does.

    Raises:
        OSError: the system refuses.
    """
    if LIBC.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()):
        code = ctypes.get_errno()
        raise OSError(code, f"mount: {os.strerror(code)}", target)


def own_mounts() -> None:
    """Give this process mounts of its own, at first those that it sees, which end with it.

    Raises:
        OSError: the system refuses.
    """
    if LIBC.unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "mounts of its own (CAP_SYS_ADMIN)")
    mount("none", "/", "none", "", _RECURSIVE | _PRIVATE)


class _Disk:
    """The file system of one file."""

    def __init__(self, image: Path, log: Path) -> None:
        self.image = os.open(image, os.O_RDWR)
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.size = os.fstat(self.image).st_size
        self.answers: dict[int, Callable[[memoryview], bytes]] = {
            _INIT: self.init,
            _GETATTR: self.attributes,
            _SETATTR: self.attributes,
            _OPEN: lambda body: _OPEN_OUT.pack(0, _DIRECT_IO, 0),
            _READ: self.read,
            _WRITE: self.write,
            _FSYNC: self.flush,
            _FLUSH: lambda body: b"",
            _RELEASE: lambda body: b"",
        }

    def serve(self, device: int) -> None:
        """Answer until the file system is unmounted."""
        while True:
            try:
                request = memoryview(os.read(device, _MOST + BLOCK))
            except OSError as e:
                if e.errno == errno.ENODEV:
                    return
                if e.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):  # the request was withdrawn
                    continue
                raise
            _, code, unique, *_ = _IN.unpack_from(request)
            if code in (_FORGET, _BATCH_FORGET, _INTERRUPT):  # these have no answer
                continue
            answer = self.answers.get(code)
            error, body = (0, answer(request[_IN.size :])) if answer else (-errno.ENOSYS, b"")
            os.write(device, _OUT.pack(_OUT.size + len(body), error, unique) + body)

    def init(self, body: memoryview) -> bytes:
        return _INIT_OUT.pack(7, 31, _MOST, _BIG_WRITES | _MAX_PAGES, 16, 12, _MOST, 1, _MOST // BLOCK, 0, 0)

    def attributes(self, body: memoryview) -> bytes:
        times = (0, 0, 0, 0, 0, 0)
        return _ATTR_OUT.pack(
            3600, 0, 0, 1, self.size, self.size // 512, *times, stat.S_IFREG | 0o600, 1, 0, 0, 0, BLOCK, 0
        )

    def read(self, body: memoryview) -> bytes:
        _, offset, size, *_ = _READ_IN.unpack_from(body)
        return os.pread(self.image, size, offset)

    def write(self, body: memoryview) -> bytes:
        _, offset, size, *_ = _WRITE_IN.unpack_from(body)
        data = body[_WRITE_IN.size : _WRITE_IN.size + size]
        os.writev(self.log, [_LOG.pack(offset, size), data])
        os.pwrite(self.image, data, offset)
        return _WRITE_OUT.pack(size, 0)

    def flush(self, body: memoryview) -> bytes:
        os.write(self.log, _LOG.pack(FLUSH, 0))
        return b""


def mount_file(device: int, target: Path) -> None:
    """Mount a disk that is served through a descriptor of /dev/fuse as one file, which is made."""
    target.touch()
    options = f"fd={device},rootmode={stat.S_IFREG:o},user_id=0,group_id=0,max_read={_MOST}"
    mount("power-cut", str(target), "fuse", options)


def main(device: str, image: str, log: str) -> None:
    """Serve a disk until it is unmounted."""
    die_with_parent()
    # Away from the mounts of the disk: whoever is the last among them unmounts it, and waits for this process then.
    own_mounts()
    disk = _Disk(Path(image), Path(log))
    print("ready", flush=True)
    sys.stdin.readline()
    disk.serve(int(device))


# --- what is left of the disk


@dataclass(frozen=True)
class Entry:
    """An entry of the log.

    Attributes:
        offset: of the write on the disk, or FLUSH.
        start: of its data in the log.
        end: of the entry in the log.
    """

    offset: int
    start: int
    end: int


def entries(log: Path, until: int | None = None) -> list[Entry]:
    """Return the entries of a log, up to a position in it."""
    until = log.stat().st_size if until is None else until
    return list(_entries(log, until))


def _entries(log: Path, until: int) -> Iterator[Entry]:
    position = 0
    with log.open("rb") as file:
        while len(head := file.read(_LOG.size)) == _LOG.size:
            offset, length = _LOG.unpack(head)
            start, position = position + _LOG.size, position + _LOG.size + length
            if position > until:
                return
            yield Entry(offset, start, position)
            file.seek(position)


def after_the_cut(image: Path, log: Path, until: int, model: str, chance: random.Random) -> None:
    """Make the disk of one moment of an image as it was when the log began.

    Args:
        image: is written.
        log: of the disk.
        until: position in the log, which is the moment at which the power fails.
        model: which of MODELS the disk follows.
        chance: says which blocks a torn disk keeps.
    """
    found = entries(log, until)
    sure = max((n for n, e in enumerate(found) if e.offset == FLUSH), default=-1)
    kept = chance.choice((0.1, 0.5, 0.9))
    with log.open("rb") as source, image.open("r+b") as target:
        for number, entry in enumerate(found):
            if entry.offset == FLUSH or (number > sure and model == "flushed only"):
                continue
            for start in range(entry.start, entry.end, BLOCK if model == "torn" else entry.end - entry.start):
                if number > sure and model == "torn" and chance.random() > kept:
                    continue
                source.seek(start)
                target.seek(entry.offset + start - entry.start)
                target.write(source.read(min(BLOCK, entry.end - start) if model == "torn" else entry.end - start))


if __name__ == "__main__":
    main(*sys.argv[1:])
