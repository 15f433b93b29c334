"""How many requests one host gets at a time: one limiter per host, shared by all threads and clients of a process.

Across the processes of a run, the Dagster pool of the assets keeps the limit.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from nbia_pipeline import stopping

MAX_IN_FLIGHT = 8
GROW_AFTER = 25


class Limiter:
    """Bounds the requests in flight to one host, and learns from its refusals.

    The limit halves when the host has too much to do, never below one, and grows back by one after
    `grow_after` good answers in a row. Requests that were in flight together count as one refusal: eight of them
    halve the limit once.

    Args:
        max_in_flight: most requests in flight.
        grow_after: good answers until the limit grows by one.
        clock: seconds, monotonic.
        sleep: waits for seconds.

    Attributes:
        max_in_flight: most requests in flight, when all goes well.
        limit: most requests in flight at present.
        in_flight: requests in flight at present.
    """

    def __init__(
        self,
        max_in_flight: int = MAX_IN_FLIGHT,
        *,
        grow_after: int = GROW_AFTER,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = stopping.sleep,
    ) -> None:
        self._grow_after = grow_after
        self._clock = clock
        self._sleep = sleep
        self._freed = threading.Condition()
        self.in_flight = 0
        self._answered = 0
        self._refusals = 0
        self._quiet_until = clock()
        self._mine = threading.local()
        self.max_in_flight = self.limit = 0
        self.allow(max_in_flight)

    def allow(self, max_in_flight: int) -> None:
        """Set the maximum; a limit that had shrunk stays where it is."""
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight is {max_in_flight}: it must be at least 1")
        with self._freed:
            shrunk = self.limit < self.max_in_flight
            self.max_in_flight = max_in_flight
            self.limit = min(self.limit, self.max_in_flight) if shrunk else self.max_in_flight
            self._freed.notify_all()

    @contextmanager
    def slot(self) -> Iterator[int]:
        """Wait for a slot, and hold it: also while the body of the answer is read.

        A thread that holds a slot already gets no second one: at a limit of one it would wait for itself.

        Yields:
            The number of refusals so far, for :meth:`refused`.
        """
        if getattr(self._mine, "holds", False):
            yield self._refusals
            return
        began = self._take()
        self._mine.holds = True
        try:
            yield began
        finally:
            self._mine.holds = False
            with self._freed:
                self.in_flight -= 1
                self._freed.notify()

    def answered(self) -> None:
        """Count a good answer."""
        with self._freed:
            self._answered += 1
            if self._answered >= self._grow_after:
                self._answered = 0
                if self.limit < self.max_in_flight:
                    self.limit += 1
                    self._freed.notify()

    def refused(self, began: int, seconds: float | None = None) -> None:
        """Count a sign that the host has too much to do: 429, 503, a time-out.

        Args:
            began: what :meth:`slot` yielded. A request that began before the last refusal does not halve the limit
                again.
            seconds: how long the host asks to wait (Retry-After): no thread begins a request earlier.
        """
        with self._freed:
            self._answered = 0
            if began >= self._refusals:
                self.limit = max(1, self.limit // 2)
                self._refusals += 1
            if seconds is not None:
                self._quiet_until = max(self._quiet_until, self._clock() + seconds)

    def _take(self) -> int:
        while True:
            with self._freed:
                while self.in_flight >= self.limit:
                    self._freed.wait(stopping.LOOK_SECONDS)
                    stopping.expect_running()
                pause = self._quiet_until - self._clock()
                if pause <= 0:
                    self.in_flight += 1
                    return self._refusals
                # This thread was woken for a slot that it does not take yet.
                self._freed.notify()
            self._sleep(pause)


_limiters: dict[str, Limiter] = {}
_lock = threading.Lock()


def limiter_of(url: str, max_in_flight: int) -> Limiter:
    """Return the limiter of the host of `url`; the last to ask sets its maximum."""
    host = urlsplit(url).netloc.rpartition("@")[2].lower()
    with _lock:
        limiter = _limiters.setdefault(host, Limiter(max_in_flight))
    limiter.allow(max_in_flight)
    return limiter


def _forget_inherited() -> None:
    """Start from scratch after a fork: the threads that hold slots are not in the child."""
    global _lock
    _lock = threading.Lock()
    _limiters.clear()


os.register_at_fork(after_in_child=_forget_inherited)
