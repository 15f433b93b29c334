"""The traffic of an archive: the record of requests, and which fault is applied to which."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.line import Line, Pace

MOST_RECORDS = 1_000_000
"""Requests that are kept; earlier ones are dropped."""


@dataclass
class Exchange:
    """One request and its answer.

    Attributes:
        method: GET or POST.
        path: path below the base URL, like ``/services/v2/getSeries``.
        query: first value of each parameter.
        form: first value of each field of a form; read only while faults are planned.
        headers: headers of the request, by name in lower case; not part of the plain data, because they hold tokens.
        status: status of the answer; None if there was none.
        sent: bytes of the body that were sent.
        fault: kind of the fault that was applied; None without one.
        began: when the request arrived, on the monotonic clock.
        seconds: how long the answer took.
    """

    method: str
    path: str
    query: Mapping[str, str]
    form: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    status: int | None = None
    sent: int = 0
    fault: str | None = None
    began: float = field(default_factory=time.monotonic)
    seconds: float | None = None

    @property
    def endpoint(self) -> str:
        """Last part of the path."""
        return self.path.rsplit("/", 1)[-1]

    def names(self, uid: str) -> bool:
        """Return whether a parameter or a field is `uid`, or a list that contains it."""
        return any(uid in value.split(",") for value in (*self.query.values(), *self.form.values()))

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        names = ("method", "path", "endpoint", "query", "status", "seconds", "fault")
        return {**{name: getattr(self, name) for name in names}, "bytes": self.sent}


@dataclass
class _Planned:
    """A fault, and how many requests matched it and met it so far."""

    fault: Fault
    seen: int = 0
    applied: int = 0

    def matches(self, exchange: Exchange) -> bool:
        """Return whether the fault is one of this request."""
        endpoint, series = self.fault.endpoint, self.fault.series
        if endpoint is not None and not f"{exchange.path}/".endswith(f"/{endpoint.strip('/')}/"):
            return False
        return series is None or exchange.names(series)

    def applies(self, chance: random.Random) -> bool:
        """Decide whether the fault is applied to the next request that matches, and count."""
        fault = self.fault
        self.seen += 1
        if self.seen <= fault.skip or (fault.times is not None and self.applied >= fault.times):
            return False
        if fault.probability < 1 and chance.random() >= fault.probability:
            return False
        self.applied += 1
        return True


class Traffic:
    """The requests of an archive and their faults. All methods may be called from several threads.

    Attributes:
        latency: seconds before every answer.
        bandwidth: bytes per second of every answer; None: no limit.
        line: the line that all answers share; None: no limit.
    """

    def __init__(self, latency: float = 0.0, bandwidth: float | None = None, line: float | None = None) -> None:
        """Take what :meth:`reset` returns to; `line` is bytes per second of all answers together."""
        self._first = latency, bandwidth, line
        self._lock = threading.Lock()
        self._records: deque[Exchange] = deque(maxlen=MOST_RECORDS)
        self.reset()

    @property
    def quiet(self) -> bool:
        """Whether no fault is planned."""
        return not self._planned

    def pace(self, now: float) -> Pace | None:
        """Return the pace of an answer that begins `now`; None without a limit."""
        return Pace(self.bandwidth, self.line, now) if self.bandwidth or self.line else None

    def plan(self, faults: Iterable[Fault], seed: int) -> None:
        """Set the faults of the requests from now on; the first that applies wins; `seed` of their chances."""
        with self._lock:
            self._planned = list(map(_Planned, faults))
            self._chance = random.Random(seed)  # noqa: S311 - tests want it repeatable

    def add(self, faults: Iterable[Fault]) -> None:
        """Let more go wrong, after what is planned already."""
        with self._lock:
            self._planned += map(_Planned, faults)

    def strike(self, exchange: Exchange) -> Fault | None:
        """Return the fault to apply to a request, or None."""
        with self._lock:
            for planned in self._planned:
                if planned.matches(exchange) and planned.applies(self._chance):
                    exchange.fault = planned.fault.kind
                    return planned.fault
        return None

    def record(self, exchange: Exchange) -> None:
        """Keep a request in the record."""
        self._records.append(exchange)

    def exchanges(self) -> list[Exchange]:
        """Return the requests so far, in order."""
        return list(self._records)

    def requests(self, clear: bool = False) -> list[dict[str, Any]]:
        """Return the requests so far as plain data, and drop them if `clear`."""
        with self._lock:
            records = self.exchanges()
            if clear:
                self._records.clear()
        return [record.as_dict() for record in records]

    def reset(self) -> None:
        """Return to the start: no planned fault, no recorded request."""
        self.latency, self.bandwidth, line = self._first
        self.line = Line(line) if line else None
        self.plan((), 0)
        self._records.clear()
