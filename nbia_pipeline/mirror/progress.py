"""The progress of a batch, logged at a pace that a person can follow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.text import duration_text, size_text

FIRST_SECONDS = 10.0
NEXT_SECONDS = 30.0


class Progress:
    """Counts the series of a batch that are done, and reports its progress from time to time.

    A line after ten seconds, then one every half minute: in Dagster each is a row of a database.

    Args:
        batch: the series to fetch.
        on_progress: takes a line; called from any thread, one at a time.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        batch: Sequence[WantedSeries],
        on_progress: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_progress = on_progress
        self._clock = clock
        self._lock = threading.Lock()
        self._series = len(batch)
        self._announced = sum(w.FileSize or 0 for w in batch)
        self._started = clock()
        self._due = self._started + FIRST_SECONDS
        self._passed = 0
        self.receipts: list[Receipt] = []

    def add(self, receipt: Receipt) -> None:
        """Take the outcome of a series, from any thread."""
        with self._lock:
            self.receipts.append(receipt)
            self._passed += receipt.wanted.FileSize or 0
            if self._clock() >= self._due:
                self._on_progress(self.line())
                self._due = self._clock() + NEXT_SECONDS

    def line(self) -> str:
        """Return the progress of the batch: series, bytes, rate, and the time left at this rate."""
        seconds = max(self._clock() - self._started, 1e-3)
        fetched = sum(i.Size for r in self.receipts for i in r.instances)
        done, todo = len(self.receipts), self._series - len(self.receipts)
        # By bytes, because series differ in size; by series where the archive announces no sizes.
        share = self._passed / self._announced if self._announced else done / max(self._series, 1)
        left = f", {duration_text(seconds / share - seconds)} left" if todo and share else ""
        rate = f"{size_text(fetched / seconds)}/s"
        return f"{done} of {self._series} series, {size_text(fetched)}, {rate}, {duration_text(seconds)}{left}"
