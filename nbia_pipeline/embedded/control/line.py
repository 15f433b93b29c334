"""How fast answers are sent: what one connection gets, and what all of them get together.

Nothing waits in here: who sends asks when a slice has left, and sleeps until then.
"""

from __future__ import annotations

LARGEST_SLICE = 64 * 1024
"""Bytes that are sent at once: an answer that begins waits for one slice of each of the others at the most."""

CATCH_UP_SECONDS = 0.05
"""How late a slice may be before the time is lost: sleeps end late, and buffers on the way bridge that."""

_SLICES_PER_SECOND = 20


class Line:
    """A line that all answers share.

    Each answer has one slice at a time on the way. So those that want more than there is get equal shares, and what
    others cannot use is theirs.
    """

    def __init__(self, rate: float) -> None:
        """Take the bytes per second of all answers together."""
        self.rate = rate
        self._free = float("-inf")

    def sent(self, size: int, now: float) -> float:
        """Put a slice into the queue; return when its last byte has left, in seconds on the clock of `now`."""
        self._free = max(self._free, now - CATCH_UP_SECONDS) + size / self.rate
        return self._free


class Pace:
    """The pace of one answer: that of its connection, and of the line that it shares."""

    def __init__(self, rate: float | None, line: Line | None, now: float) -> None:
        """Take the bytes per second of the connection, None for no limit, and the line."""
        self._rate, self._line = rate, line
        self._due = now

    @property
    def slice_bytes(self) -> int:
        """How much to send at once."""
        rates = [rate for rate in (self._rate, self._line and self._line.rate) if rate]
        return max(1, min(LARGEST_SLICE, int(min(rates) / _SLICES_PER_SECOND)))

    def sent(self, size: int, now: float) -> float:
        """Take the next slice; return when its last byte has left, in seconds on the clock of `now`."""
        if self._rate:
            self._due = max(self._due, now - CATCH_UP_SECONDS) + size / self._rate
        return max(self._due, self._line.sent(size, now)) if self._line else self._due
