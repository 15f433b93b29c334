"""Locks that the runs of a lake share: of the operating system on a disk, an object of one's own on a store.

A lock on a disk ends with its process, however that ends. One on an object store is an object that only one can
create. Its holder writes it anew now and then, so that it changes while the holder lives; whoever waits takes over
one that did not change for a while. Nobody compares clocks: those of two machines differ.

The stores that create an object only if there is none: AWS S3 (s3fs), Google Cloud Storage (gcsfs), Azure (adlfs).
One that is merely like S3 may not know the condition and write all the same; the object is therefore read again
after it was made, which leaves a gap of one request. There, let one machine at a time work on a collection.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from filelock import FileLock

from nbia_pipeline import clock
from nbia_pipeline.lake.errors import LakeError
from nbia_pipeline.lake.owner import this_process

ExpectHeld = Callable[[], None]
"""Call it before what must not happen twice: it raises LakeError if the lock was lost meanwhile."""


class Lock(Enum):
    """What a lock keeps from others; its value ends the name of the lock."""

    COLLECTION = ""
    SERIES = "~series"
    CHANGES = "~changes"
    VERIFICATIONS = "~verified"


@dataclass(frozen=True)
class Patience:
    """How long things take, in seconds.

    Attributes:
        beat: between two signs of life of a holder.
        stale: without a sign of life, after which a lock is taken over; many beats.
        wait: for a lock that is held, before giving up: as long as the longest that anybody holds one.
        poll: between two looks at a lock that is held.
    """

    beat: float = 15
    stale: float = 120
    wait: float = 1800
    poll: float = 0.5


_threads: WeakValueDictionary[str, _Lock] = WeakValueDictionary()
_threads_guard = threading.Lock()


class _Lock:
    """A lock of threads; unlike Python's own it can be kept only as long as somebody uses it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


@contextmanager
def among_threads(name: str) -> Iterator[None]:
    """Hold a lock that the threads of this process share.

    It comes before one that processes share: threads wait for each other without asking again and again.
    """
    with _threads_guard:
        shared = _threads.setdefault(name, _Lock())
    with shared.lock:
        yield


@contextmanager
def file_lock(path: Path) -> Iterator[ExpectHeld]:
    """Hold a lock of the operating system; it cannot be lost. Its directory must exist."""
    with among_threads(str(path)), FileLock(path):
        yield lambda: None


@contextmanager
def object_lock(fs: Any, path: str, patience: Patience = Patience()) -> Iterator[ExpectHeld]:
    """Hold a lock that is an object of a store.

    Args:
        fs: an fsspec file system.
        path: of the object.
        patience: how long to wait for what.

    Raises:
        LakeError: another held it for too long, or took it over.
        OSError: the store cannot be read or written.
    """
    held = _Held(fs, path)
    _acquire(held, patience)
    stop = threading.Event()
    beating = threading.Thread(target=held.beat_until, args=(stop, patience.beat), name="nbia-lock", daemon=True)
    beating.start()
    try:
        yield held.expect
    finally:
        stop.set()
        beating.join()
        if held.is_mine():
            fs.rm(path)


class _Held:
    """A lock object, as one that wants it or has it sees it."""

    def __init__(self, fs: Any, path: str) -> None:
        self.fs = fs
        self.path = path
        self.token = uuid.uuid4().hex
        self.beats = 0
        self.since = clock.utc_now().isoformat(timespec="seconds")

    def content(self) -> bytes:
        known = {"owner": this_process(), "since": self.since, "token": self.token, "beats": self.beats}
        return json.dumps(known).encode()

    def read(self) -> bytes | None:
        try:
            content: bytes = self.fs.cat_file(self.path)
        except FileNotFoundError:
            return None
        return content

    def create(self) -> bool:
        """Create the object if there is none; tell whether it is ours."""
        return _create(self.fs, self.path, self.content()) and self.is_mine()

    def is_mine(self) -> bool:
        return _about(self.read()).get("token") == self.token

    def expect(self) -> None:
        content = self.read()
        if _about(content).get("token") != self.token:
            raise LakeError(
                f"the lock {self.path} was taken over by {_owner_of(content)}: this process gave no sign of life for "
                "too long. What it had in hand was left as it was; run it again"
            )

    def beat_until(self, stop: threading.Event, seconds: float) -> None:
        """Give signs of life until `stop`, or until the lock is another's."""
        while not stop.wait(seconds):
            try:
                if not self.is_mine():
                    return  # whoever holds it now must not lose it: `expect` tells the story
                self.beats += 1
                self.fs.pipe_file(self.path, self.content())
            except OSError:
                continue  # the store may answer the next time; if it does not, others take over, and `expect` tells


def _acquire(held: _Held, patience: Patience) -> None:
    started = time.monotonic()
    seen: bytes | None = None
    unchanged = 0
    while not held.create():
        content = held.read()
        # Looks are counted, not seconds: after a pause of this process the holder's signs of life were not seen.
        unchanged = unchanged + 1 if content == seen else 0
        seen = content
        if content is not None and unchanged * patience.poll > patience.stale and _take_over(held, content):
            return
        if time.monotonic() - started > patience.wait:
            raise LakeError(
                f"the lock {held.path} is held by {_owner_of(content)}: wait for that run to end. If there is none, "
                f"remove {held.path} and what else begins like it"
            )
        time.sleep(patience.poll)


def _take_over(held: _Held, stale: bytes) -> bool:
    """Take a lock from a dead holder; tell whether that worked.

    Two who wait see the same dead lock. Only one of them can create the object that announces the takeover, and
    looks again whether the lock is still the dead one before it writes its own.
    """
    announced = f"{held.path}.{_about(stale).get('token', 'unreadable')}"
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
    except FileExistsError:
        return False
    except OSError:
        # s3fs has another error for this, depending on its version and on the store.
        if fs.exists(path):
            return False
        raise
    return True


def _about(content: bytes | None) -> dict[str, Any]:
    try:
        about = json.loads(content or b"{}")
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _owner_of(content: bytes | None) -> str:
    about = _about(content)
    return f"{about.get('owner', 'an unknown process')} since {about.get('since', 'an unknown time')} (UTC)"
