"""Locks that the runs of a lake share, and the names of processes, by which their leftovers are recognized.

A lock on a disk is one of the operating system, and ends with its process, however that ends. A lock in an object
store is an object that only one process can create. Its holder rewrites it now and then, so that it changes while the
holder lives; a process that waits takes over a lock that has not changed for a while. Nobody compares clocks: those
of two machines differ.

The stores that create an object only if there is none: AWS S3 (s3fs), Google Cloud Storage (gcsfs), Azure (adlfs).
A store that only resembles S3 may ignore the condition and write anyway; the object is therefore read again
after it was created, which leaves a gap of one request. There, only one machine at a time should work on a collection.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from nbia_pipeline import clock, stopping
from nbia_pipeline.lake.errors import LakeError, reason
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

    def path(self, collection: str, series_uid: str = "") -> str:
        """Return the path of the lock; only ``SERIES`` takes a SeriesInstanceUID."""
        series = encode(series_uid) if self is Lock.SERIES else ""
        return f"{LOCKS}/{self.value.format(collection=encode(collection), series=series)}.lock"


@dataclass(frozen=True)
class LockTimings:
    """The timings of a lock, in seconds.

    Attributes:
        beat: between two heartbeats of a holder.
        stale: without a heartbeat, after which a lock is taken over; many beats.
        wait: for a lock that another holds, before giving up: as long as anybody ever holds one.
        poll: between two attempts to get a lock that another holds.
    """

    beat: float = 15
    stale: float = 120
    wait: float = 1800
    poll: float = 0.5


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


@contextmanager
def object_lock(fs: Any, path: str, timings: LockTimings = LockTimings()) -> Iterator[ExpectHeld]:
    """Hold a lock that is an object of a store.

    Args:
        fs: an fsspec file system.
        path: of the object.
        timings: how long to wait for what.

    Raises:
        LakeError: another held it for too long, or took it over.
        OSError: the store cannot be read or written; also by what is yielded, if the heartbeats cannot be sent.
    """
    held = _LockObject(fs, path)
    _acquire(held, timings)
    stop = threading.Event()
    beating = threading.Thread(target=held.beat_until, args=(stop, timings.beat), name="nbia-lock", daemon=True)
    beating.start()
    try:
        yield held.expect
    finally:
        stop.set()
        beating.join()
        held.release()


class _LockObject:
    """A lock object, as seen by a process that wants it or holds it."""

    def __init__(self, fs: Any, path: str) -> None:
        self.fs = fs
        self.path = path
        self.token = uuid.uuid4().hex
        self.beats = 0
        self.trouble: Exception | None = None  # why the last heartbeat was not sent
        self.since = clock.utc_now().isoformat(timespec="seconds")

    def content(self) -> bytes:
        properties = {"owner": this_process(), "since": self.since, "token": self.token, "beats": self.beats}
        return json.dumps(properties).encode()

    def read(self) -> bytes | None:
        try:
            content: bytes = self.fs.cat_file(self.path)
        except FileNotFoundError:
            return None
        return content

    def create(self) -> bool:
        """Create the object if there is none; return whether it is ours."""
        return _create(self.fs, self.path, self.content()) and self.is_mine()

    def is_mine(self) -> bool:
        return _parsed(self.read()).get("token") == self.token

    def expect(self) -> None:
        trouble = self.trouble
        # After a heartbeat that was not sent, it takes another one: if that fails as well, its error is raised.
        if not (self.beat() if trouble else self.is_mine()):
            why = f" ({reason(trouble)})" if trouble else ""
            raise LakeError(
                f"the lock {self.path} was taken over by {_owner_of(self.read())}: this process sent no heartbeat for "
                f"too long{why}. Its unfinished work was left as it was; run it again"
            )

    def beat(self) -> bool:
        """Send a heartbeat; return False, and send none, if the lock is another's."""
        if not self.is_mine():
            return False
        self.beats += 1
        self.fs.pipe_file(self.path, self.content())
        self.trouble = None
        return True

    def beat_until(self, stop: threading.Event, seconds: float) -> None:
        """Send heartbeats until `stop`, or until the lock is another's."""
        while not stop.wait(seconds):
            try:
                if not self.beat():
                    return  # its new holder must not lose it: `expect` raises the error
            except Exception as e:  # noqa: BLE001 - `expect` raises it, if it stays
                log.warning("no heartbeat of the lock %s: %s", self.path, reason(e))
                self.trouble = e

    def release(self) -> None:
        """Remove the object, unless it is another's. The work is done: a failure is no reason to do it again."""
        try:
            if self.is_mine():
                self.fs.rm(self.path)
        except OSError as e:
            log.warning("the lock %s could not be removed (%s): others take it over soon", self.path, reason(e))


def _acquire(held: _LockObject, timings: LockTimings) -> None:
    started = time.monotonic()
    previous: bytes | None = None
    unchanged = 0
    while not held.create():
        content = held.read()
        # Attempts are counted, not seconds: during a pause of this process it misses the holder's heartbeats.
        unchanged = unchanged + 1 if content == previous else 0
        previous = content
        if content is not None and unchanged * timings.poll > timings.stale and _take_over(held, content):
            return
        if time.monotonic() - started > min(timings.wait, _longest_wait.get()):
            raise LakeError(
                f"the lock {held.path} is held by {_owner_of(content)}: wait for that run to end. If it is not "
                f"running, remove {held.path} and every object whose name begins with it"
            )
        stopping.sleep(timings.poll)


def _take_over(held: _LockObject, stale: bytes) -> bool:
    """Take a lock from a dead holder; return whether that worked.

    Two that wait see the same dead lock. Only one of them can create the object that announces the takeover, and
    it checks that the lock is still the dead one before it writes its own.
    """
    announced = f"{held.path}.{_parsed(stale).get('token', 'unreadable')}"
    if not _create(held.fs, announced, held.content()):
        return False
    try:
        if held.read() != stale:
            return False
        held.fs.pipe_file(held.path, held.content())
        return held.is_mine()
    finally:
        held.fs.rm(announced)


def _create(fs: Any, path: str, content: bytes) -> bool:
    """Create an object if there is none; False if there is one."""
    try:
        fs.pipe_file(path, content, mode="create")
    except OSError as e:
        # s3fs raises another error for this, depending on its version and on the store.
        if isinstance(e, FileExistsError) or fs.exists(path):
            return False
        raise
    return True


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        about = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _owner_of(content: bytes | None) -> str:
    about = _parsed(content)
    return f"{about.get('owner', 'an unknown process')} since {about.get('since', 'an unknown time')} (UTC)"


# --- whose leftovers?


def this_process() -> str:
    """Return the name of this process, for what it leaves behind while it works: ``host.pid-start``.

    The start is in ticks since the machine's. It tells a process from a later one that has its number, which in a
    container is often the same at every start. It is missing where the system has no ``/proc``.
    """
    return f"{HOST}.{os.getpid()}-{_stat(os.getpid())[1]}".rstrip("-")


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
