"""How much is asked of one host at a time: one limiter per host, shared by all threads of a process.

Over the processes of a run the limit is kept by the Dagster pool of the assets; here it is kept over threads,
whichever client they use.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

IN_FLIGHT = 8
GROW_AFTER = 25


class Limiter:
    """Bounds the requests in flight to one host, and learns from its refusals.

    The limit halves when the host has too much to do, never below one, and grows back by one after
    `grow_after` answers in a row that came well. Requests that were in flight together count as one refusal:
    eight of them halve the limit once.

    Args:
        most: most requests in flight.
        grow_after: answers until the limit grows by one.
        clock: seconds, monotonic.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        most: int = IN_FLIGHT,
        *,
        grow_after: int = GROW_AFTER,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._most = self._limit = _at_least_one(most)
        self._grow_after = grow_after
        self._clock = clock
        self._sleep = sleep
        self._freed = threading.Condition()
        self._in_flight = 0
        self._answered = 0
        self._refusals = 0
        self._quiet_until = clock()
        self._mine = threading.local()

    @property
    def most(self) -> int:
        """Most requests in flight, when all goes well."""
        return self._most

    @property
    def limit(self) -> int:
        """Most requests in flight at present."""
        return self._limit

    @property
    def in_flight(self) -> int:
        """Requests in flight at present."""
        return self._in_flight

    def allow(self, most: int) -> None:
        """Set the maximum; a limit that had shrunk stays where it is."""
        with self._freed:
            shrunk = self._limit < self._most
            self._most = _at_least_one(most)
            self._limit = min(self._limit, self._most) if shrunk else self._most
            self._freed.notify_all()

    @contextmanager
    def slot(self) -> Iterator[int]:
        """Wait for a place, and hold it: also while the body of the answer is read.

        A call made by a thread that holds a place already needs no second one: at a limit of one it would wait
        for itself.

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
                self._in_flight -= 1
                self._freed.notify()

    def answered(self) -> None:
        """Note an answer that came well."""
        with self._freed:
            self._answered += 1
            if self._answered >= self._grow_after:
                self._answered = 0
                if self._limit < self._most:
                    self._limit += 1
                    self._freed.notify()

    def refused(self, began: int, seconds: float | None = None) -> None:
        """Note that the host has too much to do: 429, 503, a time-out.

        Args:
            began: what :meth:`slot` gave. A request that began before the last refusal does not halve the limit
                again.
            seconds: how long the host asks to be left alone (Retry-After): no thread begins a request before.
        """
        with self._freed:
            self._answered = 0
            if began >= self._refusals:
                self._limit = max(1, self._limit // 2)
                self._refusals += 1
            if seconds is not None:
                self._quiet_until = max(self._quiet_until, self._clock() + seconds)

    def _take(self) -> int:
        while True:
            with self._freed:
                while self._in_flight >= self._limit:
                    self._freed.wait()
                pause = self._quiet_until - self._clock()
                if pause <= 0:
                    self._in_flight += 1
                    return self._refusals
                # This thread was woken for a place that it does not take yet.
                self._freed.notify()
            self._sleep(pause)


_limiters: dict[str, Limiter] = {}
_lock = threading.Lock()


def limiter_of(url: str, most: int) -> Limiter:
    """Return the limiter of the host of `url`; the last to ask sets its maximum.

    Args:
        url: any address at the host.
        most: most requests in flight.
    """
    host = urlsplit(url).netloc.rpartition("@")[2].lower()
    with _lock:
        known = _limiters.get(host)
        if known is None:
            return _limiters.setdefault(host, Limiter(most))
    known.allow(most)
    return known


def _at_least_one(most: int) -> int:
    if most < 1:
        raise ValueError(f"{most} requests in flight: at least one is needed")
    return most


def _forget_inherited() -> None:
    """Start afresh after a fork: the threads that hold places are not in the child."""
    global _lock
    _lock = threading.Lock()
    _limiters.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
