"""How many series are downloaded at a time: as many as the archive and the processors can handle.

How many requests are in flight is bounded by the client, which steps back when the archive is busy. Here
the processors are watched: while downloads wait for the network, more of them help; once the processors are busy
unpacking and hashing, more of them only get in each other's way.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ADJUST_SECONDS = 0.1
# Parts of the processors' time that this process takes.
IDLE = 0.6
BUSY = 0.85


class Streams:
    """A number of slots: one more than processors at first, doubled when these are found idle, one less when busy.

    Args:
        most: highest number of slots.
        cores: processors.
        clock: seconds, monotonic.
        cpu: seconds of processor time that this process took.
    """

    def __init__(
        self,
        most: int,
        *,
        cores: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._cores = cores or os.cpu_count() or 1
        self._most = most
        self._least = self.allowed = min(most, self._cores + 1)
        self._clock = clock
        self._cpu = cpu
        self._measured = (clock(), cpu())
        self._taken = 0
        self._freed = threading.Condition()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait for a slot, and occupy it."""
        with self._freed:
            while self._taken >= self.allowed:
                self._freed.wait(ADJUST_SECONDS)
                self.adjust()
            self._taken += 1
        try:
            yield
        finally:
            with self._freed:
                self._taken -= 1
                self._freed.notify()

    def adjust(self) -> None:
        """Set the number of slots by what the processors did since the last time, if that is long enough ago."""
        now, used = self._clock(), self._cpu()
        seconds = now - self._measured[0]
        if seconds < ADJUST_SECONDS:
            return
        busy = (used - self._measured[1]) / seconds / self._cores
        self._measured = (now, used)
        if busy < IDLE:
            self.allowed = min(self._most, self.allowed * 2)
            self._freed.notify_all()
        elif busy > BUSY:
            self.allowed = max(self._least, self.allowed - 1)
