"""How many requests one host gets at a time: one limiter per host, shared by all threads and clients of a process.

It is the only place that decides this. Across the processes of a run, the Dagster pool of the assets keeps the limit.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from urllib.parse import urlsplit

from nbia_pipeline import stopping
from nbia_pipeline.archive.bounds import NO_BOUND

MAX_IN_FLIGHT = 16
"""What TCIA's own command-line downloader has in flight."""
FIRST_LIMIT = 8
GROW_AFTER = 25
GROW_AFTER_SECONDS = 10.0
# A window ends when as many answers have come as may be in flight, or after this time: a large download takes minutes.
WINDOW_SECONDS = 1.0
# More requests in flight gain something if answers or bytes per second grow by this part of what they could grow by.
WORTH_IT = 0.25
# Where they gained nothing, so many windows pass before more are tried again.
PATIENCE = 30
# After a pause, so much may arrive at once as this time allows.
BURST_SECONDS = 1.0
LEAST_PIECE_BYTES = 1 << 10
# Answers are slow if they begin after twice the usual time and this.
SLOW_SECONDS = 0.1
# Not below this because answers are slow: the archive does not refuse.
LEAST_WHEN_SLOW = 4
_WINDOWS_OF_USUAL = 32


@dataclass
class _Window:
    """What happened during a short time at one limit."""

    began: float
    answers: int = 0
    bytes: int = 0
    full: bool = False
    """Whether as many requests were in flight at some moment as may be."""

    def rates(self, now: float) -> tuple[float, float]:
        """Return answers and bytes per second."""
        seconds = max(now - self.began, 1e-6)
        return self.answers / seconds, self.bytes / seconds


class Slot:
    """The place of one request among those in flight; see :meth:`Limiter.slot`.

    Args:
        limiter: whose.
        endpoint: that is asked.
        refusals: how often the host had refused when the request began.
        occupied: False if the place is another request's, within which this one is made.
    """

    def __init__(self, limiter: Limiter, endpoint: str, refusals: int, *, occupied: bool = True) -> None:
        self._limiter = limiter
        self._endpoint = endpoint
        self._began = limiter.clock()
        self.refusals = refusals
        self.occupied = occupied

    def answer_begins(self) -> None:
        """Note that the headers of the answer are there."""
        self._limiter.note_wait(self._endpoint, self._limiter.clock() - self._began)

    def received(self, count: int) -> None:
        """Note so many bytes of the body, and wait until the next may be read, where bytes per second are limited.

        At its end, 0, the slot is free: what follows needs no network.
        """
        self._limiter.note(count)
        if count:
            self._limiter.pace(count)
        else:
            self.free()

    @property
    def piece_bytes(self) -> int:
        """How much to read at a time: where bytes per second are limited, so little that no stream waits for long."""
        return self._limiter.piece_bytes

    def free(self) -> None:
        """Leave the place to another request."""
        if self.occupied:
            self.occupied = False
            self._limiter.release()


class Limiter:
    """Bounds the requests in flight to one host, by what it refuses and by what more of them gain.

    The limit begins at eight. While it is used up, it is doubled for a try, and stays there if more answers or bytes
    arrive per second, and answers do not begin later; else it returns, and the next try is some time later. It falls by
    a quarter while answers begin much later than usual. When the host has too much to do, it halves, never below one.
    What was lost in these ways is regained one by one, after `grow_after` good answers in a row each, or ten seconds:
    large downloads are few. Requests that were in flight together count as one refusal: eight of them halve the limit
    once.

    Args:
        max_in_flight: most requests in flight.
        bwlimit: most bytes per second, of all streams together; None: no limit.
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
        bwlimit: float | None = None,
        *,
        grow_after: int = GROW_AFTER,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = stopping.sleep,
    ) -> None:
        self._grow_after = grow_after
        self.clock = clock
        self._sleep = sleep
        self._freed = threading.Condition()
        self.in_flight = 0
        self._answered = 0
        self._refusals = 0
        self._quiet_until = clock()
        self._mine = threading.local()
        self._window = _Window(clock())
        self._waits: dict[str, list[float]] = defaultdict(list)  # until answers began, by endpoint
        self._usual: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_WINDOWS_OF_USUAL))
        self._before: tuple[float, float] | None = None  # the rates before a try
        self._patience = 0
        self._since_change = 0  # windows
        self._changed = clock()
        self._paid_until = clock() - BURST_SECONDS  # when all that has arrived will have been allowed
        self.max_in_flight = self.limit = self._useful = 0
        self.allow(max_in_flight, bwlimit)

    def allow(self, max_in_flight: int, bwlimit: float | None = None) -> None:
        """Set the maxima; a limit that had shrunk stays where it is."""
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight is {max_in_flight}: it must be at least 1")
        if bwlimit is not None and bwlimit < 1:
            raise ValueError(f"bwlimit is {bwlimit}: it must be at least 1 byte per second")
        self._bwlimit = bwlimit
        if max_in_flight == self.max_in_flight:
            return
        with self._freed:
            shrunk = self.limit < self._useful
            self.max_in_flight = max_in_flight
            self._useful = min(max_in_flight, max(self._useful, FIRST_LIMIT))
            self._set(min(self.limit, self._useful) if shrunk else self._useful)

    @contextmanager
    def slot(self, endpoint: str = "") -> Iterator[Slot]:
        """Wait for a slot, and occupy it until the body of the answer was read, or the block ends.

        A thread that occupies a slot already gets no second one: at a limit of one it would wait for itself.

        Args:
            endpoint: that is asked: answers of different ones take different times.
        """
        mine: Slot | None = getattr(self._mine, "slot", None)
        if mine is not None and mine.occupied:
            yield Slot(self, endpoint, mine.refusals, occupied=False)
            return
        slot = Slot(self, endpoint, self._take())
        self._mine.slot = slot
        try:
            yield slot
        finally:
            self._mine.slot = mine
            slot.free()

    def release(self) -> None:
        """Let another request begin."""
        with self._freed:
            self.in_flight -= 1
            self._freed.notify()

    def note(self, size: int) -> None:
        """Count what arrives of a body, 0 for its end."""
        with self._freed:
            self._window.bytes += size
            self._window.answers += not size
            self._adjust()

    def pace(self, size: int) -> None:
        """Wait as long as so many bytes that have arrived take at the bytes per second that are allowed."""
        bwlimit = self._bwlimit
        if bwlimit is None:
            return
        with self._freed:
            now = self.clock()
            self._paid_until = max(self._paid_until, now - BURST_SECONDS) + size / bwlimit
            wait = self._paid_until - now
        if wait > 0:
            self._sleep(wait)

    @property
    def piece_bytes(self) -> int:
        """How much to read of a body at a time: all streams together have a second's share then."""
        if self._bwlimit is None:
            return NO_BOUND
        return max(LEAST_PIECE_BYTES, int(self._bwlimit / self.max_in_flight))

    def note_wait(self, endpoint: str, seconds: float) -> None:
        """Note how long an answer took to begin."""
        with self._freed:
            self._waits[endpoint].append(seconds)

    def answered(self) -> None:
        """Count a good answer."""
        with self._freed:
            self._answered += 1
            if self._answered >= self._grow_after:
                self._answered = 0
                if self.limit < self._useful:
                    self._set(self.limit + 1)

    def refused(self, began: int, seconds: float | None = None) -> None:
        """Count a sign that the host has too much to do: 429, 503, a time-out.

        Args:
            began: the refusals of the request's slot. One that began before the last refusal does not halve the limit
                again.
            seconds: how long the host asks to wait (Retry-After): no thread begins a request earlier.
        """
        with self._freed:
            self._answered = 0
            if began >= self._refusals:
                self._set(max(1, self.limit // 2))
                self._refusals += 1
            if seconds is not None:
                self._quiet_until = max(self._quiet_until, self.clock() + seconds)

    def _take(self) -> int:
        while True:
            with self._freed:
                while self.in_flight >= self.limit:
                    self._freed.wait(stopping.LOOK_SECONDS)
                    stopping.expect_running()
                pause = self._quiet_until - self.clock()
                if pause <= 0:
                    self.in_flight += 1
                    if self.in_flight >= self.limit and not self._window.full:  # before that the rates show nothing
                        self._window = _Window(self.clock(), full=True)
                    return self._refusals
                # This thread was woken for a slot that it does not take yet.
                self._freed.notify()
            self._sleep(pause)

    # --- what more requests gain

    def _adjust(self) -> None:
        """At the end of a window, change the limit by what it showed."""
        window, now = self._window, self.clock()
        if window.answers < self.limit and now - window.began < WINDOW_SECONDS:
            return
        self._window = _Window(now, full=self.in_flight >= self.limit)
        self._since_change += 1
        if self._are_slow() and self.limit > LEAST_WHEN_SLOW:
            self._set(max(LEAST_WHEN_SLOW, self.limit * 3 // 4))
        elif not window.full or not (self._since_change >= 2 or window.answers >= self.limit):
            return  # what began before the last change is still in it
        elif self._before is not None:
            self._judge(window.rates(now), self._before)
        elif self.limit < self._useful:
            if now - self._changed >= GROW_AFTER_SECONDS:
                self._set(self.limit + 1)
        elif self.limit < self.max_in_flight and self._since_change >= self._patience:
            self._before, self._since_change = window.rates(now), 0
            self.limit = min(self.max_in_flight, 2 * self.limit)
            self._freed.notify_all()

    def _are_slow(self) -> bool:
        """Return whether most answers began late, each compared with the usual time of its endpoint."""
        count = sum(map(len, self._waits.values()))
        if count < max(self.limit, LEAST_WHEN_SLOW):
            return False
        late = 0
        for endpoint, waits in self._waits.items():
            usual, now = self._usual[endpoint], median(waits)
            late += len(waits) * bool(usual and now > 2 * min(usual) + SLOW_SECONDS)
            usual.append(now)
        self._waits.clear()
        return 2 * late > count

    def _judge(self, after: tuple[float, float], before: tuple[float, float]) -> None:
        """Keep a limit that was tried if it gained something, else return to the one before."""
        could = self.limit / self._useful - 1
        gained = max(a / b - 1 if b else 0.0 for a, b in zip(after, before, strict=True))
        if gained >= WORTH_IT * could:
            self._useful = self.limit
        elif self._patience < PATIENCE:  # a quarter more fills the gaps between two answers
            self._useful = min(self.max_in_flight, self._useful + self._useful // 4)
        self._set(self._useful)

    def _set(self, limit: int) -> None:
        """Change the limit; a try is over then."""
        if self._before is not None and limit < self.limit:
            self._patience = PATIENCE
        self._before = None
        if limit != self.limit:
            self.limit, self._since_change, self._changed = limit, 0, self.clock()
            self._freed.notify_all()


_limiters: dict[str, Limiter] = {}
_lock = threading.Lock()


def limiter_of(url: str, max_in_flight: int, bwlimit: float | None = None) -> Limiter:
    """Return the limiter of the host of `url`; the last to ask sets its maxima."""
    host = urlsplit(url).netloc.rpartition("@")[2].lower()
    with _lock:
        limiter = _limiters.setdefault(host, Limiter(max_in_flight))
    limiter.allow(max_in_flight, bwlimit)
    return limiter


def _forget_inherited() -> None:
    """Start from scratch after a fork: the threads that hold slots are not in the child."""
    global _lock
    _lock = threading.Lock()
    _limiters.clear()


os.register_at_fork(after_in_child=_forget_inherited)
