"""The calls that only enrich: a server may lack one, refuse it, break or be slow, and the work goes on without it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from nbia_pipeline.archive.errors import ArchiveError, ArchiveUnreachable, BadAnswer, LoginRefused, NotServed
from nbia_pipeline.archive.tokens import TOKEN_PATH
from nbia_pipeline.text import logger

log = logger(__name__)

T = TypeVar("T")

FEW_TRIES = 2
"""Most attempts at a call that is not needed."""

SECONDS = 60.0
"""Longest silence of the archive in a call that is not needed: each process meets a server that is too slow itself."""

GIVE_UP = 3
"""After this many failures in a row a call is not made again; after the first, if it would fail each time."""

_bounds: ContextVar[tuple[int | None, float | None]] = ContextVar("bounds", default=(None, None))


class OptionalCalls:
    """Keeps account of the optional calls of one client, by name; usable from any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: Counter[str] = Counter()
        self._lacking: set[str] = set()
        self._warnings: dict[str, str] = {}

    @property
    def warnings(self) -> list[str]:
        """What the archive did not answer so far, in one sentence for each call."""
        with self._lock:
            return list(self._warnings.values())

    def ask(self, name: str, call: Callable[[], T], what: str) -> T | None:
        """Return what a call returns, None where it fails; see :meth:`Calls.optional`."""
        if self.given_up(name):
            return None
        try:
            with in_haste():
                answer = call()
        except ArchiveError as e:
            if not concerns_one_call(e):
                raise
            self.failed(name, e)
            self.do_without(name, what, e)
            return None
        self.answered(name)
        return answer

    def given_up(self, name: str) -> bool:
        """Return whether a call failed too often to be made again."""
        with self._lock:
            return self._failures[name] >= GIVE_UP

    def lacks(self, name: str) -> bool:
        """Return whether the archive lacks a call or refuses it, and not only fails to answer."""
        with self._lock:
            return name in self._lacking

    def answered(self, name: str) -> None:
        """Forget earlier failures of a call."""
        with self._lock:
            self._failures[name] = 0

    def failed(self, name: str, why: ArchiveError) -> bool:
        """Count a failure of a call; return whether it is given up."""
        with self._lock:
            self._failures[name] += GIVE_UP if _lasting(why) else 1
            if _lasting(why) and not too_slow(why):
                self._lacking.add(name)
            return self._failures[name] >= GIVE_UP

    def do_without(self, name: str, what: str, why: ArchiveError) -> None:
        """Log that the work goes on without the answer to a call: as a warning the first time."""
        sentence = f"the archive does not answer for {what}: {why}"
        with self._lock:
            level = logging.INFO if name in self._warnings else logging.WARNING
            self._warnings.setdefault(name, sentence)
        log.log(level, sentence)


def concerns_one_call(e: ArchiveError) -> bool:
    """Return whether an error is one of the call that was made; without a token, no other would succeed."""
    return e.endpoint != TOKEN_PATH


def may_succeed_singly(e: ArchiveError) -> bool:
    """Return whether calls for one thing each are worth a try where a call for many fails.

    They are if it is missing, refused, broken or too slow, but not while the archive is busy or away.
    """
    return concerns_one_call(e) and (too_slow(e) or not isinstance(e, ArchiveUnreachable))


@contextmanager
def in_haste(tries: int | None = FEW_TRIES) -> Iterator[None]:
    """Make the calls of this thread without long waits, and with few attempts; None for as many as usual."""
    before = _bounds.set((tries, SECONDS))
    try:
        yield
    finally:
        _bounds.reset(before)


def most_tries() -> int | None:
    """Return how many attempts a call of this thread is worth, None for as many as the client is set to."""
    return _bounds.get()[0]


def most_seconds() -> float | None:
    """Return how long a silence a call of this thread is worth, None for as long as the client is set to."""
    return _bounds.get()[1]


def _lasting(e: ArchiveError) -> bool:
    """Return whether a call would fail with other arguments, too: the archive lacks it, refuses it or is too slow.

    A page of a proxy has status 200 or none, and a plain 500 may be about one collection or one series.
    """
    missing = isinstance(e, BadAnswer) and e.status not in (None, 200)
    return missing or too_slow(e) or isinstance(e, (LoginRefused, NotServed))


def too_slow(e: ArchiveError) -> bool:
    """Return whether the archive took too long for a call, here or at a proxy."""
    return e.status == 504 or (e.status is None and e.overloaded)
