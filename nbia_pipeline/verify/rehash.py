"""Read the files of the lake again, and compare them with their receipts."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import islice, takewhile
from typing import Any

from nbia_pipeline import stopping
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.lock import soon_if_interrupted
from nbia_pipeline.mirror.commit import carry_over
from nbia_pipeline.mirror.receipt import BY_DIGESTS, MD5_AND_FIGURES
from nbia_pipeline.mirror.repair import NoAnswer, Proofs
from nbia_pipeline.schema.tables import INSTANCES
from nbia_pipeline.text import logger
from nbia_pipeline.verify.compare import compare_files, differs_from_archive, lists_others
from nbia_pipeline.verify.inventory import Inventory, StoredSeries, VerifyResult, record, stored_series

log = logger(__name__)

THREADS = 3
# Series whose rows of `instances` are in memory at a time; a series can have thousands of rows.
CHUNK_SERIES = 200
RECORD_SECONDS = 60.0
# A run that replaces a series meanwhile makes it look damaged: old rows, new files. So it is read again this often.
REREADS = 3

ExtraCheck = Callable[[StoredSeries, Sequence[dict[str, Any]]], str | None]
"""Returns what else is wrong with a series whose files are as they were fetched, None if nothing is; takes the rows of
its files as well."""

_ROW = ["SeriesInstanceUID", "SOPInstanceUID", "Path", "Size", "MD5"]


@dataclass(frozen=True)
class PlannedCollection:
    """The series of a collection that are to be read.

    Attributes:
        collection: its name.
        series: how many of its series.
        bytes: size of their files by their receipts.
        urgency: the smallest comes first: what was found damaged, then what has gone unchecked for longest.
        only: UIDs of the series, None for all.
    """

    collection: str
    series: int
    bytes: int
    urgency: tuple[bool, datetime]
    only: frozenset[str] | None = None


@dataclass
class VerifyRun:
    """What was read again, and the result.

    Attributes:
        wanted: series that were to be read.
        wanted_bytes: size of their files by their receipts.
        checked: series that were read.
        files: files that were read.
        bytes: what was read.
        seconds: how long it took.
        stopped: True if it ended before everything was read.
        damaged: the series that are not as they were fetched.
    """

    wanted: int
    wanted_bytes: int
    checked: int = 0
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    stopped: bool = False
    damaged: list[VerifyResult] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.seconds if self.seconds else 0.0

    def add(self, result: VerifyResult) -> None:
        """Count the result of a series."""
        self.checked += 1
        self.files += result.files
        self.bytes += result.bytes
        if result.finding is not None:
            self.damaged.append(result)


def plan_verification(
    lake: Lake, collections: Sequence[str], *, sample: int | None = None, seed: int = 0, damaged_only: bool = False
) -> list[PlannedCollection]:
    """Return what is to be read, the most urgent collection first.

    Args:
        lake: the lake.
        collections: which of it.
        sample: read only this many series, chosen at random.
        seed: makes the choice of a sample repeatable.
        damaged_only: read only series that were found damaged before, and not fetched again since.
    """
    chosen: dict[str, frozenset[str] | None] = dict.fromkeys(collections)
    if sample is not None:
        chosen = dict(_sample(lake, sorted(collections), sample, seed))
    elif damaged_only:
        chosen = {name: frozenset(s.uid for s in Inventory(lake, name) if s.finding) for name in collections}
    planned = [plan_series(lake, name, only) for name, only in chosen.items()]
    return sorted((p for p in planned if p.series), key=lambda p: (p.urgency, p.collection))


def plan_series(lake: Lake, collection: str, only: frozenset[str] | None = None) -> PlannedCollection:
    """Return what is to be read of a collection.

    Args:
        lake: the lake.
        collection: which one.
        only: UIDs of the series, None for all that are in the lake.
    """
    stored = Inventory(lake, collection, only)
    return PlannedCollection(collection, len(stored), stored.bytes, stored.urgency, only)


def read_again(
    lake: Lake,
    planned: Sequence[PlannedCollection],
    *,
    threads: int = THREADS,
    extra_check: ExtraCheck | None = None,
    enough: Callable[[VerifyRun], bool] = lambda run: False,
    on_progress: Callable[[VerifyRun], None] = lambda run: None,
) -> VerifyRun:
    """Read the files of series again, and record the results in the lake.

    A series that looks damaged is read once more with fresh tables, as a run may have been replacing it. Results are
    recorded every minute, so that little is lost when it is stopped.

    Args:
        lake: the lake.
        planned: what to read, in order: see :func:`plan_verification`.
        threads: series read at a time.
        extra_check: called with every series whose files are as they were fetched, from any thread.
        enough: called before each series; once it returns True, no other is begun.
        on_progress: called after each series.

    Raises:
        LakeError: the tables of the lake cannot be read.
    """
    run = VerifyRun(sum(p.series for p in planned), sum(p.bytes for p in planned))
    started = recorded_at = time.monotonic()
    unrecorded: list[VerifyResult] = []

    def over() -> bool:
        run.seconds = time.monotonic() - started
        run.stopped = run.stopped or enough(run)
        return run.stopped

    try:
        with stopping.threads(threads, "nbia-verify") as pool:
            reader = _Reader(lake, pool, 2 * threads, over, extra_check)
            for part in planned:
                for result in reader.results(Inventory(lake, part.collection, part.only)):
                    run.add(result)
                    unrecorded.append(result)
                    run.seconds = time.monotonic() - started
                    if time.monotonic() - recorded_at > RECORD_SECONDS:
                        record(lake, unrecorded)
                        unrecorded, recorded_at = [], time.monotonic()
                    on_progress(run)
    finally:
        with soon_if_interrupted():
            record(lake, unrecorded)
    return run


def digest_check(client: NbiaClient) -> ExtraCheck:
    """Return a check against the archive's own digests of a series: the archive may have replaced its files silently.

    It passes a series that the archive had no digest of when it was fetched, or has none now, and all where the archive
    does not answer for digests. Of a series whose set of instances was proven by count and size, the instances are
    listed as well.
    """
    proofs = Proofs(client)

    def check(series: StoredSeries, rows: Sequence[dict[str, Any]]) -> str | None:
        try:
            digest = proofs.md5_of_series(series.uid) if series.verified_by in BY_DIGESTS else None
        except NoAnswer as e:
            log.warning("series %s is not compared with the archive: %s", series.uid, e)
            return None
        md5s = md5s_of(rows)
        different = differs_from_archive(client, (series.uid, series.digest), digest, lambda: md5s)
        if different is None and series.verified_by == MD5_AND_FIGURES:
            different = lists_others(client, series.uid, md5s)
        return different and f"outdated: {different}"

    return check


def md5s_of(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the MD5s of files by SOPInstanceUID."""
    return {row["SOPInstanceUID"]: row["MD5"] for row in rows}


@dataclass(frozen=True)
class _Reader:
    """Threads that read series."""

    _lake: Lake
    _pool: ThreadPoolExecutor
    _ahead: int
    _over: Callable[[], bool]
    _extra_check: ExtraCheck | None

    def results(self, series: Iterable[StoredSeries]) -> Iterator[VerifyResult]:
        """Yield the results of series of one collection until it is over; what looks damaged is read again."""
        waiting = iter(series)
        while chunk := list(islice(waiting, CHUNK_SERIES)):
            suspects, left = [], len(chunk)
            for result in self._read(chunk, self._over):
                left -= 1
                if result.finding is None:
                    yield result
                else:
                    suspects.append(result)
            yield from self._read_suspects(suspects)
            if left:  # the time is up
                return

    def _read(self, series: Sequence[StoredSeries], over: Callable[[], bool]) -> Iterator[VerifyResult]:
        rows = _rows(self._lake, series)
        calls = (partial(self._check, one, rows[one.uid]) for one in takewhile(lambda _: not over(), series))
        yield from stopping.in_order(self._pool, calls, self._ahead)

    def _check(self, series: StoredSeries, rows: Sequence[dict[str, Any]]) -> VerifyResult:
        result = compare_files(self._lake, series, rows)
        if result.finding is not None or self._extra_check is None:
            return result
        finding = self._extra_check(series, rows)
        return replace(result, finding=finding, outdated=finding is not None)

    def _read_suspects(self, suspects: list[VerifyResult]) -> Iterator[VerifyResult]:
        for _ in range(REREADS):
            if not suspects:
                return
            before = {s.series.uid: s.series for s in suspects}
            fresh = _as_committed(self._lake, suspects[0].series.collection, frozenset(before))
            suspects = []
            for result in self._read(fresh, lambda: False):
                if result.finding is None or _same_receipt(result.series, before[result.series.uid]):
                    yield result
                else:
                    suspects.append(result)
        yield from suspects


def _as_committed(lake: Lake, collection: str, uids: frozenset[str]) -> list[StoredSeries]:
    """Return series by tables that include what runs published meanwhile; pruned series are left out."""
    try:
        carry_over(lake, collection, clear_mark=False)
    except LakeError as e:
        log.warning("%s: cannot commit what runs may have published in the meantime: %s", collection, e)
    return stored_series(lake, collection, uids)


def _sample(lake: Lake, collections: Sequence[str], size: int, seed: int) -> Iterator[tuple[str, frozenset[str]]]:
    """Choose series by their positions, so that not all UIDs of the lake are in memory at once."""
    counts = {name: len(Inventory(lake, name)) for name in collections}
    total = sum(counts.values())
    positions = sorted(random.Random(seed).sample(range(total), min(size, total)))  # noqa: S311 - no secret
    first = 0
    for name, count in counts.items():
        here = [p - first for p in positions if first <= p < first + count]
        first += count
        if here:
            uids = sorted(s.uid for s in Inventory(lake, name))
            yield name, frozenset(uids[p] for p in here)


def _rows(lake: Lake, series: Sequence[StoredSeries]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of table ``instances`` of series of one collection, by their UID."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    if series:
        uids = {s.uid for s in series}
        table = lake.read_rows(INSTANCES, series[0].collection, "SeriesInstanceUID", uids, _ROW)
        for row in table.to_pylist():
            found[row["SeriesInstanceUID"]].append(row)
    return found


def _same_receipt(one: StoredSeries, other: StoredSeries) -> bool:
    """Return whether a series had the same receipt both times it was read, whatever was recorded in between."""
    return replace(one, checked_at=other.checked_at, finding=other.finding) == other
