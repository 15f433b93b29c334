"""Locks that the runs of a lake share, and the names of processes, by which their leftovers are recognized.

A lock on a disk is one of the operating system, and ends with its process, however that ends. For a lock in an object
store see :mod:`nbia_pipeline.lake.object_lock`.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from nbia_pipeline import stopping
from nbia_pipeline.lake.errors import LakeError
from nbia_pipeline.lake.filesystem import translated
from nbia_pipeline.lake.layout import LOCKS, encode
from nbia_pipeline.text import logger

ExpectHeld = Callable[[], None]
"""Call it before anything that must not happen twice: it raises LakeError if the lock has been lost."""

log = logger(__name__)

LEFTOVER_SECONDS = 7 * 24 * 3600
WAY_OUT_SECONDS = 1.0
HOST = socket.gethostname().replace(".", "-")


class Lock(Enum):
    """What a lock protects. The value is the name of its file, which versions since 0.1.0 share.

    No encoded name contains a ``~``, so the locks of a collection do not collide.
    """

    COLLECTION = "{collection}"
    """The images of a collection: its journal, its folders, and the tables ``image_series`` and ``instances``."""
    SERIES = "{collection}.{series}"
    """The folder of one series while its files are uploaded to an object store."""
    CHANGES = "{collection}~changes"
    """The tables ``series_changes`` and ``series_seen`` of a collection."""
    VERIFICATIONS = "{collection}~verified"
    """The table ``verifications`` of a collection."""
    CONFORMANCE = "{collection}~conformance"
    """The table ``conformance`` of a collection."""
    HEADERS = "{collection}~headers.{series}"
    """One part of the tables of headers of a collection; in the place of a SeriesInstanceUID is its number."""
    REFERENCES = "{collection}~references"
    """The table ``series_references`` of a collection."""

    def path(self, collection: str, series_uid: str = "") -> str:
        """Return the path of the lock; only ``SERIES`` takes a SeriesInstanceUID, and ``HEADERS`` a number."""
        series = encode(series_uid) if self in (Lock.SERIES, Lock.HEADERS) else ""
        return f"{LOCKS}/{self.value.format(collection=encode(collection), series=series)}.lock"


@dataclass(frozen=True)
class LockTimings:
    """The timings of locks, in seconds.

    Attributes:
        beat: between two heartbeats of a process that holds locks.
        lease: without a heartbeat, after which its locks are taken over; some beats.
        older: the lease of version 0.1.0, whose locks name no life, and are themselves rewritten.
        wait: for a lock that another holds, before giving up: as long as anybody ever holds one.
        poll: between two attempts to get a lock that another holds.
        sweep: age, by the clock of the store, from which on what was left without a heartbeat is removed.
    """

    beat: float = 2.5
    lease: float = 10
    older: float = 120
    wait: float = 1800
    poll: float = 0.5
    sweep: float = 60


USUAL = LockTimings()

_longest_wait: ContextVar[float] = ContextVar("longest_wait", default=math.inf)


@contextmanager
def soon_if_interrupted() -> Iterator[None]:
    """Use it in a ``finally``: on the way out of an interrupt, wait for a lock that others hold only briefly.

    What then fails is logged, and is no error: the next run can do it as well, and the interrupt must go on.
    """
    interrupted = not isinstance(sys.exc_info()[1], Exception | None)
    before = _longest_wait.set(WAY_OUT_SECONDS if interrupted else _longest_wait.get())
    try:
        yield
    except LakeError as e:
        if not interrupted:
            raise
        log.warning("left to the next run: %s", e)
    finally:
        _longest_wait.reset(before)


def longest_wait() -> float:
    """Return for how many seconds to wait for a lock at most; see :func:`soon_if_interrupted`."""
    return _longest_wait.get()


# Each is kept only as long as somebody uses it.
_threads: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
_threads_guard = threading.Lock()


@contextmanager
def among_threads(name: str) -> Iterator[None]:
    """Hold a lock that the threads of this process share.

    Take it before a lock that processes share: threads wait for each other without polling.

    Raises:
        LakeError: another thread held it for longer than :func:`soon_if_interrupted` allows.
    """
    with _threads_guard:
        shared = _threads.setdefault(name, threading.Lock())
    if not shared.acquire(timeout=min(_longest_wait.get(), threading.TIMEOUT_MAX)):
        raise LakeError(f"another thread of this process holds the lock {name}")
    try:
        stopping.expect_running()
        yield
    finally:
        shared.release()


def _flock(lock: FileLock, path: Path) -> None:
    """Acquire a lock of the operating system.

    Raises:
        LakeError: another process held it for longer than :func:`soon_if_interrupted` allows.
        OSError: the file system cannot lock.
    """
    until = time.monotonic() + _longest_wait.get()
    while True:
        try:
            # Some file systems cannot lock, which is no OSError.
            translated(lock.acquire, timeout=max(0.0, min(stopping.LOOK_SECONDS, until - time.monotonic())))
            return
        except Timeout:
            stopping.expect_running()
            if time.monotonic() >= until:
                raise LakeError(f"another process holds the lock {path}") from None


@contextmanager
def file_lock(path: Path) -> Iterator[ExpectHeld]:
    """Hold a lock of the operating system, which cannot be lost. Arguments and errors are those of :func:`_flock`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    with among_threads(str(path)):
        _flock(lock, path)
        try:
            yield lambda: None
        finally:
            lock.release()


# --- whose leftovers?


def this_process() -> str:
    """Return the name of this process, for what it leaves behind while it works: ``host.pid-start``.

    The start is in ticks since the machine's. It tells a process from a later one that has its number, which in a
    container is often the same at every start. It is missing where the system has no ``/proc``.
    """
    return f"{HOST}.{os.getpid()}-{_stat(os.getpid())[1]}".rstrip("-")


@cache
def this_machine() -> str:
    """Return what the processes share that can see each other: a start of a machine, and a namespace of processes.

    Containers may have the same host name and the same process numbers, and see only their own. It is empty where the
    system does not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}.{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def abandoned(entry: Path) -> bool:
    """Return whether a file or directory that is named after its process is no longer in use.

    It is unused if the process was on this machine and is dead, or if the entry is a week old: nothing else can be
    known about a process on another machine.
    """
    try:
        age = time.time() - entry.stat().st_mtime
    except FileNotFoundError:
        return False  # its owner finished meanwhile
    return age > LEFTOVER_SECONDS or is_dead(entry.name)


def is_dead(name: str) -> bool:
    """Return whether what begins with the name of a process was a process of this machine, and it is dead."""
    host, _, rest = name.partition(".")
    pid, _, start = rest.partition(".")[0].partition("-")
    return host == HOST and pid.isdecimal() and not _alive(int(pid), start)


def is_gone(about: Mapping[str, object]) -> bool:
    """Return whether an object that names its ``owner`` and ``machine`` is of a process of this one that is dead."""
    return bool(this_machine()) and about.get("machine") == this_machine() and is_dead(str(about.get("owner")))


def _alive(pid: int, start: str) -> bool:
    try:
        os.kill(pid, 0)
    except OverflowError:
        return False  # no process has such a number
    except OSError as e:
        return not isinstance(e, ProcessLookupError)
    state, since = _stat(pid)
    # A zombie is dead: nobody has asked how it ended.
    return state not in ("Z", "X") and not (start and since and start != since)


def _stat(pid: int) -> tuple[str, str]:
    """Return the state of a process and when it started, or empty texts where the system does not say."""
    try:
        # After the name of the program, which may contain anything: proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
