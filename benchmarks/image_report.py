"""What came out of the image benchmark: medians of each side, and the bars."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from image_archive import Facts
from measuring import Measured
from results import Results

ENGINE = "engine"
UNFLUSHED = "engine-unflushed"
DAGSTER = "dagster"
PEERS = ("tcia_utils", "nbiatoolkit")
YARDSTICK = "curl"

# The large set: processor time of ours, per GB of files on disk; times as fast as the best peer.
LARGE_PEER_BAR = 1.5
CPU_BAR = 4.8
FLUSH_BAR = 1.15
# The small set: of the best peer's seconds; Dagster's seconds, of the engine's.
SMALL_PEER_BAR = 0.6
SMALL_DAGSTER_BAR = 1.2
# The road: times as fast as the best peer; of what the line carries.
ROAD_PEER_BAR = 1.15
LINE_BAR = 0.9
# Wherever a run through Dagster takes a minute: the engine's seconds, of Dagster's.
DAGSTER_BAR = 0.8
DAGSTER_SECONDS = 60.0


@dataclass(frozen=True)
class Line:
    """The way to the archive.

    Attributes:
        latency: seconds before every answer.
        each: bytes per second of a connection; None: no limit.
        all: bytes per second of all connections together; None: no limit.
    """

    latency: float = 0.0
    each: float | None = None
    all: float | None = None

    def __str__(self) -> str:
        far = [f"{self.latency * 1000:.0f} ms latency"] if self.latency else []
        wide = [f"{self.each / 1e6:.0f} MB/s per connection"] if self.each else []
        total = [f"{self.all / 1e6:.0f} MB/s in all"] if self.all else []
        return ", ".join([*far, *wide, *total])


LINES = {"large": Line(), "small": Line(0.15), "road": Line(0.08, 5e6, 40e6)}
"""The way to the archive in each set."""


@dataclass(frozen=True)
class Run:
    """What one side took in one round.

    Attributes:
        measured: time, processor time and memory of the side.
        requests: calls about images that the archive counted.
        archive_cpu: seconds of processor time of the archive meanwhile.
    """

    measured: Measured
    requests: int
    archive_cpu: float


Runs = dict[str, list[Run]]


def median(runs: Sequence[Run], what: Callable[[Run], float]) -> float:
    """Return the median of a figure."""
    return statistics.median(map(what, runs))


def work(runs: Sequence[Run]) -> float:
    """Return the median seconds of the work."""
    return median(runs, lambda run: run.measured.work)


def work_cpu(runs: Sequence[Run]) -> float:
    """Return the median seconds of processor time of the work."""
    return median(runs, lambda run: run.measured.work_cpu)


def report(name: str, line: Line, runs: Runs, facts: Facts, results: Results) -> None:
    """Print and keep the medians of a set, with bars as long as the throughput."""
    rounds = len(next(iter(runs.values())))
    print(
        f"\n{name} set{f', {line}' if str(line) else ''}: {len(facts.uids)} series, {len(facts.digests):,} files, "
        f"{facts.bytes / 1e6:,.0f} MB on disk, {facts.wire_bytes / 1e6:,.0f} MB on the wire; medians of {rounds} rounds"
    )
    print(
        f"{'':<16} {'s':>7} {'MB/s':>7} {'process s':>10} {'CPU s':>7} {'peak MB':>8} {'requests':>9} "
        f"{'archive CPU s':>14}"
    )
    best = min(map(work, runs.values()))
    files, disk, wire = len(facts.digests), round(facts.bytes / 1e6), round(facts.wire_bytes / 1e6)
    size = ((len(facts.uids), "series"), (files, "files"), (disk, "MB on disk"), (wire, "MB on the wire"))
    results.add(f"{name} set, complete on every side", *size, rounds=rounds)
    for side, taken in runs.items():
        seconds, cpu, peak = work(taken), work_cpu(taken), max(run.measured.peak_mb for run in taken)
        rate, process = facts.bytes / seconds / 1e6, median(taken, lambda run: run.measured.seconds)
        requests, archive = (median(taken, lambda run, of=of: getattr(run, of)) for of in ("requests", "archive_cpu"))
        print(
            f"{side:<16} {seconds:7.2f} {rate:7.0f} {process:10.2f} {cpu:7.2f} {peak:8.0f} {requests:9.0f} "
            f"{archive:14.2f}  {'#' * round(30 * best / seconds)}"
        )
        results.add(
            f"{name} set, `{side}`",
            *((seconds, "s"), (rate, "MB/s"), (process, "s process"), (cpu, "s CPU"), (round(peak), "MB")),
            *((round(requests), "requests"), (archive, "s CPU of the archive"), *_parts(taken)),
            rounds=rounds,
        )


def _parts(taken: Sequence[Run]) -> list[tuple[float, str]]:
    """Return the medians of the parts of the work, where a side has some."""
    return [(median(taken, lambda run, of=of: run.measured.parts[of]), f"s {of}") for of in taken[0].measured.parts]


def judge(name: str, line: Line, runs: Runs, facts: Facts, results: Results) -> None:
    """Compare a set with its bars."""
    rounds = len(next(iter(runs.values())))
    if ENGINE not in runs:
        return
    ours, peers = work(runs[ENGINE]), {side: work(runs[side]) for side in PEERS if side in runs}
    if peers:
        _judge_peers(name, ours, peers, rounds, results)
    if name == "large":
        spent = work_cpu(runs[ENGINE]) / (facts.bytes / 1e9)
        results.at_most(CPU_BAR, "large set, the engine's processor time", spent, "s per GB of files", rounds)
    if line.all:
        _judge_line(name, facts.wire_bytes / line.all, ours, peers, rounds, results)
    if UNFLUSHED in runs:
        ratio, what = ours / work(runs[UNFLUSHED]), f"{name} set, seconds with flushing, of those without"
        if name == "large":
            results.at_most(FLUSH_BAR, what, ratio, "", rounds)
        else:
            print(f"{what}: {ratio:.2f}")
            results.add(what, (ratio, ""), rounds=rounds)
    if DAGSTER in runs:
        _judge_dagster(name, ours, work(runs[DAGSTER]), rounds, results)


def _judge_peers(name: str, ours: float, peers: dict[str, float], rounds: int, results: Results) -> None:
    best = min(peers, key=lambda side: peers[side])
    against = f"{name} set, the engine against the best peer, {best}"
    if name == "small":
        results.at_most(SMALL_PEER_BAR, f"{against}, seconds", ours / peers[best], "of theirs", rounds)
    else:
        bar = LARGE_PEER_BAR if name == "large" else ROAD_PEER_BAR
        results.at_least(bar, f"{against}, throughput", peers[best] / ours, "times", rounds)


def _judge_line(name: str, full: float, ours: float, peers: dict[str, float], rounds: int, results: Results) -> None:
    """Compare with the seconds that a line takes which is full all the time."""
    results.at_least(LINE_BAR, f"{name} set, the engine, of what the line carries", full / ours, "", rounds)
    for side, seconds in peers.items():
        print(f"{name} set, {side}: {full / seconds:.2f} of what the line carries in {full:.1f} s")
    if peers:
        # Nobody is faster than the line: the throughput of the best peer cannot be exceeded by more.
        what = f"{name} set, a line that is full all the time against the best peer"
        results.add(what, (full, "s"), (min(peers.values()) / full, "times"), rounds=rounds)


def _judge_dagster(name: str, ours: float, theirs: float, rounds: int, results: Results) -> None:
    what = f"{name} set, through Dagster, seconds of the engine's"
    if name == "small":
        results.at_most(SMALL_DAGSTER_BAR, what, theirs / ours, "times", rounds)
    elif theirs >= DAGSTER_SECONDS:
        results.at_least(DAGSTER_BAR, f"{name} set, through Dagster, throughput", ours / theirs, "of it", rounds)
    else:
        print(f"{what}: {theirs / ours:.2f} times; not judged below a minute")
        results.add(what, (theirs / ours, "times"), rounds=rounds)
