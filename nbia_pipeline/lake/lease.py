"""How a process shows that it lives while it holds locks; see :mod:`nbia_pipeline.lake.object_lock`."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nbia_pipeline.lake.errors import reason
from nbia_pipeline.lake.lock import is_dead, this_machine, this_process
from nbia_pipeline.text import logger

log = logger(__name__)

LEASE = ".lease"
# The clock that goes on while the machine sleeps, where there is one.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True)
class LockTimings:
    """The timings of locks, in seconds.

    Attributes:
        beat: between two heartbeats of a process that holds locks.
        lease: without a heartbeat, after which its locks are taken over; some beats.
        older: the lease of a version before 0.3, whose locks name no life, and are themselves rewritten.
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


class Life:
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
        self.shown = moment()
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
            sent = moment()
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
                remove(self._fs, self.path)
            except OSError as e:
                log.warning("%s could not be removed (%s): a later run does it", self.path, reason(e))

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


def moment() -> float:
    """Return the seconds of a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(_CLOCK)


def remove(fs: Any, path: str) -> None:
    """Remove an object; it may be gone already."""
    with suppress(FileNotFoundError):
        fs.rm_file(path)


def is_gone(about: dict[str, Any]) -> bool:
    """Return whether the process that wrote an object is one of this machine that is dead."""
    return bool(this_machine()) and about.get("machine") == this_machine() and is_dead(str(about.get("owner")))


def parsed(content: bytes | None) -> dict[str, Any]:
    """Return what a lock or a lease says about its process; nothing if it says nothing."""
    try:
        about = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}
