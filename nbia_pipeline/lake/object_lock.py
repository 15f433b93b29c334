"""Locks that are objects of a store: whoever creates the object holds the lock.

A store creates an object only if there is none, where it is asked to: AWS S3 and what honors its ``If-None-Match``
(s3fs), Google Cloud Storage (gcsfs), Azure (adlfs). The first lock of a process finds out whether the store does.

While a process holds locks of a lake, it lives a life: an object, its lease, which it rewrites every 2.5 seconds
(``beat``) from a thread of its own, one for all of its locks. All of these name the life; the next lock after the last
was released begins another. A process that waits takes a lock over when neither the lock nor the lease of its life has
changed for 10 seconds (``lease``): then all locks of that life are known to be dead, and none is waited for again. A
process of the same machine that is dead is not waited for at all. Nobody compares clocks: those of machines differ.

To take over a lock, a process first creates an object beside it, which only one can, and checks that the lock is still
the dead one; this object is a lock like the other, for whoever created it may die as well. A holder that was paused
for longer than the lease, and lives on, has lost its locks: it notices where it asks before anything that must not
happen twice.

Requests: one creates a lock, one removes it, one checks that it is still held. A life adds one each ``beat`` seconds
from its first heartbeat on, and one that removes its lease.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nbia_pipeline import clock, stopping
from nbia_pipeline.lake.errors import LakeError, reason
from nbia_pipeline.lake.filesystem import changed_at, refusal
from nbia_pipeline.lake.lock import USUAL, ExpectHeld, LockTimings, is_gone, longest_wait, this_machine, this_process
from nbia_pipeline.text import logger

log = logger(__name__)

LEASE = ".lease"

_LIFE = re.compile("[0-9a-f]{32}")
# The clock that goes on while the machine sleeps, where there is one.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_OURS = re.compile(r"\.lock(\.[0-9a-f]{32})*$|/[0-9a-f]{32}\.lease$")
_dead: dict[str, bytes | None] = {}
"""The lives of others that are over, and the last heartbeat of each. One that was only paused has sent another."""


class ObjectLocks:
    """The locks of a lake in an object store, as this process takes them.

    Args:
        fs: an fsspec file system whose errors are OSErrors.
        folder: of the locks.
        timings: how long to wait for what.
    """

    def __init__(self, fs: Any, folder: str, timings: LockTimings = USUAL) -> None:
        self.fs = fs
        self.folder = folder
        self.timings = timings
        self._guard = threading.Lock()
        self._life: _Life | None = None
        self._conditional: bool | None = None  # whether the store honors the condition, once that is known

    @contextmanager
    def hold(self, path: str) -> Iterator[ExpectHeld]:
        """Hold a lock.

        Args:
            path: of its object.

        Raises:
            LakeError: another held it for too long, or took it over.
            OSError: the store cannot be read or written; also by what is yielded, if the heartbeats cannot be sent.
        """
        with self._living() as life:
            held = _Held(self, life, path)
            held.acquire()
            try:
                yield held.expect
            finally:
                held.release()

    def sweep(self) -> int:
        """Remove what dead processes left, which nobody may ever ask for again; return how many objects that were."""
        if not self._entries():
            return 0
        with self._living() as life:
            life.beat()  # its age is none, by the clock of the store
            ages = self._entries()
            now = ages.get(life.path)
            found = {p: now - t if now is not None and t is not None else 0.0 for p, t in ages.items()}
            held = _Held(self, life, "")
            # First what announces that a lock is taken over, whose names are longer.
            locks = sorted((path for path in found if not path.endswith(LEASE)), key=len, reverse=True)
            removed = sum(held.remove_dead(path, found) for path in locks)
            removed += sum(self._remove_lease(path, age) for path, age in found.items() if path.endswith(LEASE))
        return removed

    def lease_of(self, about: dict[str, Any]) -> str:
        """Return the path of the lease that a lock names, empty if it names none."""
        life = str(about.get("life"))
        return f"{self.folder}/{life}{LEASE}" if _LIFE.fullmatch(life) else ""

    def read(self, path: str) -> bytes | None:
        """Return the content of an object, None if there is none."""
        try:
            # One request of s3fs, which asks for the size before it reads with more.
            content: bytes = self.fs.cat_file(path, max_concurrency=1)
        except FileNotFoundError:
            return None
        return content

    def create(self, path: str, content: bytes) -> OSError | None:
        """Create an object if there is none; return why not, if there is one or another is being created."""
        if not self._conditional and self.read(path) is not None:
            return FileExistsError(path)
        if refused := refusal(self.fs, path, content):
            self._conditional = True
            return refused
        if self._conditional is None:
            self._conditional = refusal(self.fs, path, content) is not None
            if not self._conditional:
                log.warning(
                    "the store of %s ignores conditional writes (If-None-Match), so two machines that write into this "
                    "lake at the same time can damage it: let only one write at a time",
                    self.folder,
                )
        return None if self._conditional or self.read(path) == content else FileExistsError(path)

    @contextmanager
    def _living(self) -> Iterator[_Life]:
        with self._guard:
            if self._life is None:
                self._life = _Life(self.fs, self.folder, self.timings)
            life = self._life
            life.holders += 1
        try:
            yield life
        finally:
            with self._guard:
                life.holders -= 1
                over = life.holders == 0
                if over:
                    self._life = None
            if over:
                life.end()

    def _entries(self) -> dict[str, float | None]:
        """Return the paths of what is in the folder, and when each was written, in seconds, by the store's clock."""
        try:
            entries = {str(entry["name"]): changed_at(entry) for entry in self.fs.ls(self.folder, detail=True)}
            return {path: when for path, when in entries.items() if _OURS.search(path)}
        except FileNotFoundError:
            return {}

    def _remove_lease(self, path: str, age: float) -> bool:
        content = self.read(path)
        if content is None or not (age > self.timings.sweep or is_gone(_parsed(content))):
            return False
        _remove(self.fs, path)
        return True


class _Life:
    """What shows that a process lives while it holds locks of a lake in an object store.

    Args:
        fs: an fsspec file system whose errors are OSErrors.
        folder: of the locks and leases.
        timings: how long to wait for what.

    Attributes:
        path: of the lease.
        holders: locks that are held or waited for.
        trouble: why the last heartbeat was not sent.
        leftovers: remove what could not be removed.
        shown: when the last heartbeat was sent that arrived; at first when the life began.
        silent_until: when it was first shown again after a silence in which locks may have been lost.
    """

    def __init__(self, fs: Any, folder: str, timings: LockTimings) -> None:
        self.token = uuid.uuid4().hex
        self.path = f"{folder}/{self.token}{LEASE}"
        self.holders = 0
        self.trouble: Exception | None = None
        self.leftovers: list[Callable[[], None]] = []
        self.shown = _moment()
        self.silent_until = self.shown
        self._fs = fs
        self._timings = timings
        self._beats = 0
        self._sending = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="nbia-lock", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Send a heartbeat."""
        with self._sending:
            sent = _moment()
            about = {"owner": this_process(), "machine": this_machine(), "beats": self._beats + 1}
            self._fs.pipe_file(self.path, json.dumps(about).encode())
            self._beats += 1
            if sent - self.shown > self._timings.lease / 2:
                self.silent_until = sent
            self.shown = sent
            self.trouble = None

    def end(self) -> None:
        """Stop, and remove the lease. All is done: a failure is no reason to do anything again."""
        self._over.set()
        self._thread.join()
        if self._beats:
            try:
                _remove(self._fs, self.path)
            except OSError as e:
                log.warning("%s could not be removed (%s): a later run removes it", self.path, reason(e))

    def _beat_on(self) -> None:
        while not self._over.wait(self._timings.beat):
            try:
                self.beat()
                while self.leftovers:
                    self.leftovers[0]()
                    self.leftovers.pop(0)
            except Exception as e:  # noqa: BLE001 - `expect` raises it, if it stays
                log.warning("no heartbeat of the locks %s: %s", self.path, reason(e))
                self.trouble = e


class _Held:
    """A lock, as seen by a process that wants it or holds it."""

    def __init__(self, locks: ObjectLocks, life: _Life, path: str) -> None:
        self._locks = locks
        self._life = life
        self._timings = locks.timings
        self._path = path
        self._since = _moment()
        self._taken_over = False
        self._lost = False
        self._watched: dict[str, tuple[bytes, bytes | None, float, float]] = {}
        self._content = json.dumps(
            {
                "owner": this_process(),
                "machine": this_machine(),
                "since": clock.utc_now().isoformat(timespec="seconds"),
                "token": uuid.uuid4().hex,
                "life": life.token,
            }
        ).encode()

    def acquire(self) -> None:
        """Wait until the lock is ours."""
        started = time.monotonic()
        there: bytes | None = None
        nothing_since = started
        while True:
            refused = None
            if there is None:
                if not self._is_recent(self._life.shown):
                    self._life.beat()  # a lock of a life that others believe to be over would be taken at once
                self._since = _moment()
                refused = self._locks.create(self._path, self._content)
                if refused is None:
                    return
            there = self._locks.read(self._path)
            now = time.monotonic()
            if there == self._content:  # the answer to the creation was lost, and it was sent again
                return
            if there is not None:
                nothing_since = now
                if self._is_dead(self._path, there) and self._take_over(self._path, there):
                    return
            elif refused and now - nothing_since > self._timings.lease:
                raise refused
            if now - started > min(self._timings.wait, longest_wait()):
                raise LakeError(
                    f"the lock {self._path} is held by {_owner_of(there)}: wait for that run to end. If it is not "
                    f"running, remove {self._path} and every object whose name begins with it"
                )
            stopping.sleep(self._timings.poll)

    def expect(self) -> None:
        """Raise LakeError if the lock has been lost."""
        self._expect_mine()
        if self._life.trouble or not self._is_recent(max(self._since, self._life.shown)):
            self._life.beat()  # others may soon believe that this process is dead; if it fails, its error is raised
            self._expect_mine()

    def _expect_mine(self) -> None:
        there = self._locks.read(self._path)
        if there != self._content:
            self._lost = True
            why = f" ({reason(self._life.trouble)})" if self._life.trouble else ""
            raise LakeError(
                f"the lock {self._path} was taken over by {_owner_of(there)}: this process sent no heartbeat for "
                f"too long{why}. Its unfinished work was left as it was; run it again"
            )

    def release(self) -> None:
        """Remove the object, unless it is another's. The work is done: a failure is no reason to do it again."""
        life = self._life
        shown = max(self._since, life.shown)
        sure = not (self._taken_over or self._lost) and self._since > life.silent_until and self._is_recent(shown)
        try:
            if sure:
                _remove(self._locks.fs, self._path)
            else:
                self.remove_if_mine()
        except OSError as e:
            log.warning("the lock %s could not be removed (%s): others take it over soon", self._path, reason(e))
            life.leftovers.append(self.remove_if_mine)

    def remove_if_mine(self) -> None:
        self._remove_if_mine(self._path)

    def remove_dead(self, path: str, ages: dict[str, float]) -> bool:
        """Remove a lock of a dead process; return whether it was one.

        Args:
            path: of the lock.
            ages: what is there, and for how many seconds.
        """
        there = self._locks.read(path)
        about = _parsed(there)
        lease = self._locks.lease_of(about)
        silent = min(ages[path], ages.get(lease, ages[path]))
        if there is None or not (is_gone(about) or silent > (self._timings.sweep if lease else self._timings.older)):
            return False
        announced = _announcement(path, there)
        if self._locks.create(announced, self._content):
            return False
        try:
            if self._locks.read(path) != there:
                return False
            _remove(self._locks.fs, path)
            return True
        finally:
            self._remove_if_mine(announced)

    def _is_recent(self, shown: float) -> bool:
        return _moment() - shown < self._timings.lease / 2

    def _remove_if_mine(self, path: str) -> None:
        if self._locks.read(path) == self._content:
            _remove(self._locks.fs, path)

    def _is_dead(self, path: str, there: bytes) -> bool:
        """Look at a lock and at the heartbeats of its holder; return whether the holder is dead."""
        about = _parsed(there)
        if is_gone(about):
            return True
        lease = self._locks.lease_of(about)
        heartbeat = self._locks.read(lease) if lease else None
        if lease and _dead.get(lease, b"") == heartbeat:
            return True
        now = time.monotonic()
        before = self._watched.get(path)
        silent, looked = before[2:] if before and before[:2] == (there, heartbeat) else (0.0, now)
        # During a pause of this process it misses the holder's heartbeats.
        silent += min(now - looked, 2 * self._timings.poll)
        self._watched[path] = (there, heartbeat, silent, now)
        if silent < (self._timings.lease if lease else self._timings.older):
            return False
        if lease:
            _dead[lease] = heartbeat
        return True

    def _take_over(self, path: str, dead: bytes) -> bool:
        """Take a lock from a dead holder; return whether that worked.

        Two that wait see the same dead lock. Only one of them can create the object that announces the takeover, and
        it checks that the lock is still the dead one before it writes its own.
        """
        announced = _announcement(path, dead)
        if self._locks.create(announced, self._content):
            other = self._locks.read(announced)
            if other is None:
                return False
            is_ours = other == self._content
            if not is_ours and not (self._is_dead(announced, other) and self._take_over(announced, other)):
                return False
        try:
            if self._locks.read(path) != dead or not self._is_dead(path, dead):
                return False
            self._taken_over, self._since = True, _moment()
            self._locks.fs.pipe_file(path, self._content)
            return self._locks.read(path) == self._content
        finally:
            self._remove_if_mine(announced)


def _moment() -> float:
    """Return the seconds of a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(_CLOCK)


def _remove(fs: Any, path: str) -> None:
    """Remove an object; it may be gone already."""
    with suppress(FileNotFoundError):
        fs.rm_file(path)


def _announcement(path: str, dead: bytes) -> str:
    return f"{path}.{hashlib.md5(dead, usedforsecurity=False).hexdigest()}"


def _parsed(content: bytes | None) -> dict[str, Any]:
    """Return what a lock or a lease says about its process; nothing if it says nothing."""
    try:
        about = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _owner_of(content: bytes | None) -> str:
    about = _parsed(content)
    return f"{about.get('owner', 'an unknown process')} since {about.get('since', 'an unknown time')} (UTC)"
