"""Read the files of the lake again, and compare them with what was noted when they were fetched."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.receipt import MD5
from nbia_pipeline.mirror.unpack import series_md5
from nbia_pipeline.schema.tables import INSTANCES
from nbia_pipeline.verify.inventory import StoredSeries, VerifyResult, note, stored_series

log = logging.getLogger(__name__)

THREADS = 3
PIECE_BYTES = 1 << 20
# Series whose rows of `instances` are in memory at a time; a series can have thousands of rows.
CHUNK_SERIES = 200
NOTE_SECONDS = 60.0
# While a run replaces a series, what is found wrong may be its old rows beside its new files.
LOOKS = 3
SHOWN = 3

ExtraCheck = Callable[[StoredSeries], str | None]
"""Says what else is wrong with a series whose files are as they were fetched, None if nothing is."""

_ROW = ["SeriesInstanceUID", "Path", "Size", "MD5"]


@dataclass(frozen=True)
class Share:
    """What is to be read of one collection.

    Attributes:
        collection: its name.
        series: how many of its series.
        bytes: size of their files by their receipts.
        urgency: the least one comes first: what was found damaged, then what was not read for longest.
        only: UIDs of the series, None for all.
    """

    collection: str
    series: int
    bytes: int
    urgency: tuple[bool, datetime]
    only: frozenset[str] | None = None


@dataclass
class VerifyRun:
    """What was read again, and what came of it.

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


def plan_verification(
    lake: Lake, collections: Sequence[str], *, sample: int | None = None, seed: int = 0, damaged_only: bool = False
) -> list[Share]:
    """Return what is to be read, in the order in which the collections want to be.

    Args:
        lake: the lake.
        collections: which of it.
        sample: read only so many series, chosen at random.
        seed: makes the choice of a sample repeatable.
        damaged_only: read only what was found damaged before, and not fetched anew since.
    """
    if sample is not None:
        chosen = _sample(lake, sorted(collections), sample, seed)
        shares = [share_of(lake, name, only) for name, only in chosen.items()]
    elif damaged_only:
        damaged = {name: [h for h in stored_series(lake, name) if h.finding] for name in collections}
        shares = [_share(name, held, frozenset(h.uid for h in held)) for name, held in damaged.items() if held]
    else:
        shares = [_share(name, held) for name in collections if (held := stored_series(lake, name))]
    return sorted(shares, key=lambda s: (s.urgency, s.collection))


def share_of(lake: Lake, collection: str, only: frozenset[str] | None = None) -> Share:
    """Return what is to be read of a collection.

    Args:
        lake: the lake.
        collection: which one.
        only: UIDs of the series, None for all that it holds.
    """
    return _share(collection, _chosen(lake, collection, only), only)


def read_again(
    lake: Lake,
    shares: Sequence[Share],
    *,
    threads: int = THREADS,
    opinion: ExtraCheck | None = None,
    enough: Callable[[VerifyRun], bool] = lambda done: False,
    tell: Callable[[VerifyRun], None] = lambda done: None,
) -> VerifyRun:
    """Read the files of series again, and note in the lake what was found.

    Sizes are compared first, then MD5s. What looks damaged is looked at once more with fresh tables, for a run may
    have been replacing it. What was read is noted every minute, so that a stop costs little.

    Args:
        lake: the lake.
        shares: what to read, in order: see :func:`plan_verification`.
        threads: series read at a time.
        opinion: asked about every series whose files are as they were fetched, from any thread.
        enough: asked before each series; no other is begun once it says True.
        tell: called after each series.

    Raises:
        LakeError: the tables of the lake cannot be read.
    """
    done = VerifyRun(sum(s.series for s in shares), sum(s.bytes for s in shares))
    started = time.monotonic()

    def over() -> bool:
        done.seconds = time.monotonic() - started
        done.stopped = done.stopped or enough(done)
        return done.stopped

    reader = _Reader(lake, threads, over, opinion)
    try:
        for share in shares:
            for verdict in reader.verdicts(_chosen(lake, share.collection, share.only)):
                _count(done, verdict)
                done.seconds = time.monotonic() - started
                tell(done)
    finally:
        reader.close()
    done.seconds = time.monotonic() - started
    return done


def digest_check(client: NbiaClient) -> ExtraCheck:
    """Return what asks the archive for its own digest of a series: it may have replaced it without a sign.

    A series that the archive had no digest of when it was fetched, or has none now, is let pass.
    """

    def opinion(held: StoredSeries) -> str | None:
        digest = client.md5_hierarchy(series_uid=held.uid) if held.proof == MD5 else None
        if digest is None or digest == held.digest:
            return None
        return f"outdated: the archive has other files, its digest is {digest}, that of the lake {held.digest}"

    return opinion


def check_series(lake: Lake, held: StoredSeries, rows: Sequence[dict[str, Any]], stop: threading.Event) -> VerifyResult:
    """Compare the files of a series with its rows of table ``instances``.

    Args:
        lake: the lake.
        held: the series.
        rows: Path, Size and MD5 of each of its files.
        stop: set to give up in the middle of a file.

    Returns:
        What is wrong: files that are missing, truncated, changed or unreadable; files that no row names; rows that
        are not those of the receipt.

    Raises:
        LakeError: the directory cannot be listed.
    """
    sizes = lake.sizes(held.path)
    wrong: dict[str, list[str]] = {}
    read = 0
    for row in rows:
        path = row["Path"]
        kind = _size_is_wrong(sizes.pop(path, None), row["Size"])
        if kind is None:
            read += row["Size"]
            kind = _content_is_wrong(lake, path, row["MD5"], stop)
        if kind is not None:
            wrong.setdefault(kind, []).append(path.rsplit("/", 1)[-1])
    if sizes:
        wrong["extra"] = [path.removeprefix(f"{held.path}/") for path in sorted(sizes)]
    if series_md5([row["MD5"] for row in rows]) != held.digest:
        wrong["other files than the receipt: the rows of table instances,"] = [f"{len(rows)} of them"]
    return VerifyResult(held, len(rows), read, _finding(wrong, len(rows)))


class _Stopped(Exception):
    """The reading was given up."""


class _Reader:
    """Threads that read series, and a place for what they found until it is noted."""

    def __init__(self, lake: Lake, threads: int, over: Callable[[], bool], opinion: ExtraCheck | None) -> None:
        self._lake = lake
        self._opinion = opinion
        self._over = over
        self._ahead = 2 * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="nbia-verify")
        self._stop = threading.Event()
        self._found: list[VerifyResult] = []
        self._noted = time.monotonic()

    def verdicts(self, series: Sequence[StoredSeries]) -> Iterator[VerifyResult]:
        """Yield the verdicts on series of one collection until it is over; what looks damaged is looked at again."""
        waiting = iter(series)
        while chunk := list(islice(waiting, CHUNK_SERIES)):
            suspects = []
            for verdict in self._look(chunk, self._over):
                if verdict.finding is None:
                    yield self._keep(verdict)
                else:
                    suspects.append(verdict)
            for verdict in self._look_again(suspects):
                yield self._keep(verdict)

    def close(self) -> None:
        """Stop reading, and note what was found until now."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._note()

    def _look(self, series: Sequence[StoredSeries], over: Callable[[], bool]) -> Iterator[VerifyResult]:
        rows = _rows(self._lake, series)
        begun: deque[Future[VerifyResult]] = deque()
        for held in series:
            if over():
                break
            begun.append(self._pool.submit(self._check, held, rows.get(held.uid, [])))
            if len(begun) >= self._ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()

    def _check(self, held: StoredSeries, rows: Sequence[dict[str, Any]]) -> VerifyResult:
        verdict = check_series(self._lake, held, rows, self._stop)
        if verdict.finding is not None or self._opinion is None:
            return verdict
        finding = self._opinion(held)
        return replace(verdict, finding=finding, outdated=finding is not None)

    def _look_again(self, suspects: list[VerifyResult]) -> Iterator[VerifyResult]:
        for _ in range(LOOKS):
            if not suspects:
                return
            before = {v.held.uid: v.held for v in suspects}
            fresh = self._as_held_now(suspects[0].held.collection, before)
            suspects = []
            for verdict in self._look(fresh, lambda: False):
                if verdict.finding is None or _same_receipt(verdict.held, before[verdict.held.uid]):
                    yield verdict
                else:
                    suspects.append(verdict)
        yield from suspects

    def _as_held_now(self, collection: str, uids: dict[str, StoredSeries]) -> list[StoredSeries]:
        """Return series as the tables hold them once they are up to what runs published; pruned ones are not there."""
        try:
            commit(self._lake, collection, clear_mark=False)
        except LakeError as e:
            log.warning("%s: cannot take over what runs may have published meanwhile: %s", collection, e)
        return [h for h in stored_series(self._lake, collection) if h.uid in uids]

    def _keep(self, verdict: VerifyResult) -> VerifyResult:
        self._found.append(verdict)
        if time.monotonic() - self._noted > NOTE_SECONDS:
            self._note()
        return verdict

    def _note(self) -> None:
        found, self._found, self._noted = self._found, [], time.monotonic()
        try:
            note(self._lake, found)
        except LakeError as e:
            log.warning("cannot note which series were verified, the next round begins with them again: %s", e)


def _share(collection: str, held: Sequence[StoredSeries], only: frozenset[str] | None = None) -> Share:
    urgency = min(((h.finding is None, h.seen) for h in held), default=(True, datetime.max))  # noqa: DTZ901
    return Share(collection, len(held), sum(h.bytes for h in held), urgency, only)


def _chosen(lake: Lake, collection: str, only: frozenset[str] | None) -> list[StoredSeries]:
    return [h for h in stored_series(lake, collection) if only is None or h.uid in only]


def _sample(lake: Lake, collections: Sequence[str], size: int, seed: int) -> dict[str, frozenset[str]]:
    """Choose series by their positions, so that not all UIDs of the lake are in memory at once."""
    counts = {name: len(stored_series(lake, name)) for name in collections}
    total = sum(counts.values())
    positions = sorted(random.Random(seed).sample(range(total), min(size, total)))  # noqa: S311 - no secret
    chosen: dict[str, frozenset[str]] = {}
    first = 0
    for name, count in counts.items():
        here = [p - first for p in positions if first <= p < first + count]
        first += count
        if here:
            uids = sorted(h.uid for h in stored_series(lake, name))
            chosen[name] = frozenset(uids[p] for p in here)
    return chosen


def _rows(lake: Lake, series: Sequence[StoredSeries]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of table ``instances`` of series of one collection, by their UID."""
    found: dict[str, list[dict[str, Any]]] = {}
    if series:
        uids = {h.uid for h in series}
        table = lake.read_rows(INSTANCES, series[0].collection, "SeriesInstanceUID", uids, _ROW)
        for row in table.to_pylist():
            found.setdefault(row["SeriesInstanceUID"], []).append(row)
    return found


def _count(done: VerifyRun, verdict: VerifyResult) -> None:
    done.checked += 1
    done.files += verdict.files
    done.bytes += verdict.bytes
    if verdict.finding is not None:
        done.damaged.append(verdict)


def _same_receipt(one: StoredSeries, other: StoredSeries) -> bool:
    """Tell whether two looks were at the same files by their receipts, whatever was noted in between."""
    return replace(one, seen=other.seen, finding=other.finding) == other


def _size_is_wrong(found: int | None, expected: int) -> str | None:
    if found is None:
        return "missing"
    if found < expected:
        return "truncated"
    return None if found == expected else "longer than it was"


def _content_is_wrong(lake: Lake, path: str, expected: str, stop: threading.Event) -> str | None:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with lake.told(f"read {path}"), lake.open(path) as file:
            while piece := file.read(PIECE_BYTES):
                if stop.is_set():
                    raise _Stopped
                digest.update(piece)
    except LakeError as e:
        log.warning("%s", e)
        return "unreadable"
    return None if digest.hexdigest() == expected else "changed"


def _finding(wrong: dict[str, list[str]], files: int) -> str | None:
    """Return what is wrong in one sentence, like ``of 20 files: missing 1.2.dcm; changed 1.3.dcm``."""
    if not wrong:
        return None
    parts = []
    for kind, names in wrong.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        parts.append(f"{kind} {', '.join(names[:SHOWN])}{more}")
    return f"of {files} files: {'; '.join(parts)}"
