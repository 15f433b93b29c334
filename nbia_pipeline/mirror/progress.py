"""How far a batch is: told at a pace that a person can follow, and that a database of events can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count

from nbia_pipeline import stopping
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.text import duration_text, logger, size_text

log = logger(__name__)

TICK_SECONDS = 0.5
FIRST_SECONDS = (1.0, 10.0)
NEXT_SECONDS = 30.0

listeners: list[Callable[[str], None]] = []
"""Called about twice a second with the present line of what this process fetches, and with an empty one at its end.

They are called from a thread of their own, one at a time: a terminal rewrites one line with what they get.
"""


class Progress:
    """Counts what is fetched of a batch, and tells how far it is.

    In Dagster each line is a row of a database: so there is one after a second, one after ten, then one every half
    minute.

    Args:
        name: whose series they are.
        batch: the series to fetch.
        on_progress: takes a line; called from another thread.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        batch: Sequence[WantedSeries],
        on_progress: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_progress = on_progress
        self._clock = clock
        self._lock = threading.Lock()
        self._name = name
        self._series = len(batch)
        self._announced = sum(w.FileSize or 0 for w in batch)
        self._started = clock()
        self._pace = chain(FIRST_SECONDS, count(FIRST_SECONDS[-1] + NEXT_SECONDS, NEXT_SECONDS))
        self._due = next(self._pace)
        self._in_flight: dict[str, int] = {}
        self._fetched = self._passed = 0
        self.receipts: list[Receipt] = []

    def arrived(self, wanted: WantedSeries, size: int) -> None:
        """Note that so many bytes of a series' files have arrived in this download of it, from any thread."""
        with self._lock:
            self._in_flight[wanted.SeriesInstanceUID] = size

    def add(self, receipt: Receipt) -> None:
        """Take the outcome of a series, from any thread."""
        with self._lock:
            self.receipts.append(receipt)
            self._in_flight.pop(receipt.wanted.SeriesInstanceUID, None)
            self._fetched += sum(i.Size for i in receipt.instances)
            self._passed += receipt.wanted.FileSize or 0

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell the progress while the block runs, whether or not a series is finished meanwhile."""
        ended = threading.Event()
        with stopping.threads(1, "nbia-progress") as pool:
            pool.submit(self._tell_until, ended)
            try:
                yield
            finally:
                ended.set()

    def tick(self) -> None:
        """Tell the progress to those who are due."""
        seconds = self._clock() - self._started
        if seconds >= self._due:
            self._on_progress(self.line())
            while self._due <= seconds:
                self._due = next(self._pace)
        for listener in list(listeners):
            listener(self.line())

    def line(self) -> str:
        """Return the progress of the batch: series, bytes, also of unfinished series, rate, and the time left at it."""
        with self._lock:
            done, in_flight = len(self.receipts), sum(self._in_flight.values())
            fetched, passed = self._fetched + in_flight, self._passed + in_flight
        seconds = max(self._clock() - self._started, 1e-3)
        todo = self._series - done
        # By bytes, because series differ in size; by series where the archive announces no sizes.
        share = min(passed / self._announced, 1.0) if self._announced else done / max(self._series, 1)
        left = f", {duration_text(seconds / share - seconds)} left" if todo and share else ""
        of = f" of {size_text(self._announced)}" if todo and self._announced else ""
        return (
            f"{self._name}: {done:,} of {self._series:,} series, {size_text(fetched)}{of}, "
            f"{size_text(fetched / seconds)}/s, {duration_text(seconds)}{left}"
        )

    def _tell_until(self, ended: threading.Event) -> None:
        try:
            while not ended.wait(TICK_SECONDS):
                stopping.expect_running()
                self.tick()
            for listener in list(listeners):
                listener("")
        except Exception as e:  # noqa: BLE001 - whatever a listener or a log raises, the fetching goes on
            log.warning("progress is no longer shown: %s", e)
