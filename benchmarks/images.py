"""Images: whole series to disk, by us and by those who do the same.

Two collections of an embedded archive: 30 series of 60 slices of 512 x 512, as fast as the archive sends them, and
300 series of four small images, where every answer comes 150 ms late, as one across an ocean does. The sides:

* ``engine``: nbia_pipeline without Dagster, everything verified;
* ``engine-unflushed``: the same without a flush (``NBIA_FSYNC=off``); left out unless named;
* ``dagster``: the same as ``nbia-pipeline run`` does it, with Dagster's records; the time is that of its images;
* ``tcia_utils``: ten threads; verifies nothing;
* ``nbiatoolkit``: ten processes; compares digests;
* ``curl``: ``curl --parallel``, then unzip, one zip after the other; verifies nothing;
* ``curl-spread``: the same with as many unzips at a time as there are processors.

Each side is a fresh process over the same archive, which was warmed before: it renders and deflates an image once.
Rounds are interleaved and the figures are medians. After every run all files on disk are compared with the digests
that the archive lists; what is written is flushed before the next side begins, and removed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from image_archive import LARGE, SMALL, Facts, server_words, warmed
from image_sides import ARCHIVE, SIDES, Job
from measuring import Measured, cpu_seconds_of, run_measured, serving, verdict

ENGINE = "engine"
UNFLUSHED = "engine-unflushed"
DAGSTER = "dagster"
PEERS = ("tcia_utils", "nbiatoolkit")
YARDSTICK = "curl"

PEER_BAR = 2.0
YARDSTICK_BAR = 1.3
DAGSTER_BAR = 0.8
DAGSTER_SECONDS = 60.0
LATENCY_BAR = 1.2
FLUSH_BAR = 1.15
CONCURRENCY = 8
"""Requests that ours has in flight at a time."""

_OF_IMAGES = ("getImage", "getSingleImage", "getSOPInstanceUIDs", "getDCMImage", "getMD5", "getM5")


@dataclass(frozen=True)
class Served:
    """An archive that runs.

    Attributes:
        url: base URL.
        control: address of its control interface.
        pid: its process.
    """

    url: str
    control: str
    pid: int


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


# --- one run


def run_side(side: str, python: Path, served: Served, facts: Facts, folder: Path) -> Run:
    """Run one side in a fresh process, measure it, and compare what is on disk with what the archive lists.

    Raises:
        SystemExit: it failed, or a file is missing, wrong or too much.
    """
    from nbia_pipeline.embedded.control.client import Control

    folder.mkdir(parents=True)
    (folder / "tmp").mkdir()
    job = Job(side, served.url, facts.collection, facts.uids, str(folder))
    note = folder / "job.json"
    note.write_text(json.dumps(asdict(job)))
    control = Control(served.control)
    control.requests(clear=True)
    before = cpu_seconds_of(served.pid)
    # Its temporary files belong on the same disk as its results, whatever the machine's /tmp is.
    variables = {ARCHIVE: served.url, "TMPDIR": str(folder / "tmp")}
    words = [python, Path(__file__).with_name("image_sides.py"), note]
    measured = run_measured(words, folder, whole_tree=True, variables=variables)
    spent = cpu_seconds_of(served.pid) - before
    requests = sum(r["endpoint"].startswith(_OF_IMAGES) for r in control.requests(clear=True))
    check_files(side, job.files, facts)
    shutil.rmtree(folder)
    os.sync()  # or the next side would pay for writing this one's files
    return Run(measured, requests, spent)


def check_files(side: str, folder: Path, facts: Facts) -> None:
    """Make sure that just the files of a collection are on disk, byte for byte.

    Raises:
        SystemExit: they are not.
    """
    files = sorted(folder.rglob("*.dcm"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = sorted(pool.map(_md5, files))
    size = sum(file.stat().st_size for file in files)
    if digests != facts.digests or size != facts.bytes:
        raise SystemExit(
            f"{side} left {len(files)} files of {size} bytes, the archive lists {len(facts.digests)} of {facts.bytes}; "
            f"{len(set(digests) & set(facts.digests))} digests agree"
        )


def _md5(file: Path) -> str:
    found = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as opened:
        while piece := opened.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


# --- one set


def measure(sides: Sequence[str], pythons: dict[str, Path], served: Served, facts: Facts, where: Path, n: int) -> Runs:
    """Run all sides `n` times, each round in another order.

    Args:
        sides: names of the sides.
        pythons: the Python that each runs in.
        served: the archive.
        facts: the collection.
        where: directory for the files.
        n: rounds.
    """
    runs: Runs = {side: [] for side in sides}
    for number in range(n):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            run = run_side(side, pythons[side], served, facts, where / f"{number}-{side}")
            runs[side].append(run)
            took = run.measured
            print(
                f"round {number + 1}  {side:<12} work {took.work:6.2f} s, process {took.seconds:6.2f} s, "
                f"CPU {took.work_cpu:6.2f} s, {took.peak_mb:5.0f} MB",
                flush=True,
            )
    return runs


def median(runs: Sequence[Run], what: Callable[[Run], float]) -> float:
    """Return the median of a figure."""
    return statistics.median(map(what, runs))


def work(runs: Sequence[Run]) -> float:
    """Return the median seconds of the work."""
    return median(runs, lambda run: run.measured.work)


def report(title: str, runs: Runs, facts: Facts) -> None:
    """Print the medians of a set, with bars as long as the throughput."""
    rounds = len(next(iter(runs.values())))
    print(
        f"\n{title}: {len(facts.uids)} series, {len(facts.digests):,} files, {facts.bytes / 1e6:,.0f} MB on disk, "
        f"{facts.wire_bytes / 1e6:,.0f} MB on the wire; medians of {rounds} rounds"
    )
    print(
        f"{'':<12} {'s':>7} {'MB/s':>7} {'process s':>10} {'CPU s':>7} {'peak MB':>8} {'requests':>9} "
        f"{'archive CPU s':>14}"
    )
    best = min(map(work, runs.values()))
    for side, taken in runs.items():
        seconds = work(taken)
        print(
            f"{side:<12} {seconds:7.2f} {facts.bytes / seconds / 1e6:7.0f} "
            f"{median(taken, lambda run: run.measured.seconds):10.2f} "
            f"{median(taken, lambda run: run.measured.work_cpu):7.2f} "
            f"{max(run.measured.peak_mb for run in taken):8.0f} {median(taken, lambda run: run.requests):9.0f} "
            f"{median(taken, lambda run: run.archive_cpu):14.2f}  {'#' * round(30 * best / seconds)}"
        )


def judge_large(runs: Runs) -> bool:
    """Print how ours stands to the others on the large set; return whether all bars hold."""
    holds = True
    if ENGINE not in runs:
        return holds
    ours = work(runs[ENGINE])
    peers = {side: work(runs[side]) for side in PEERS if side in runs}
    if peers:
        best = min(peers, key=lambda side: peers[side])
        holds &= _say(
            f"{peers[best] / ours:.2f} times {best}, the best peer, bar {PEER_BAR}", peers[best] / ours >= PEER_BAR
        )
    if YARDSTICK in runs:
        ratio = work(runs[YARDSTICK]) / ours
        holds &= _say(f"{ratio:.2f} times curl and unzip, bar {YARDSTICK_BAR}", ratio >= YARDSTICK_BAR)
    if "curl-spread" in runs:
        print(f"engine  {work(runs['curl-spread']) / ours:.2f} times curl and one unzip per processor")
    if UNFLUSHED in runs:
        ratio = ours / work(runs[UNFLUSHED])
        holds &= _say(f"{ratio:.2f} times the seconds without flushing, bar {FLUSH_BAR}", ratio <= FLUSH_BAR)
    if DAGSTER in runs:
        holds &= _judge_dagster(ours / work(runs[DAGSTER]), work(runs[DAGSTER]))
    return holds


def _judge_dagster(ratio: float, seconds: float) -> bool:
    if seconds < DAGSTER_SECONDS:
        print(f"dagster {ratio:.2f} of the engine; not judged below a minute: raise --large-series")
        return True
    print(f"dagster {ratio:.2f} of the engine, bar {DAGSTER_BAR}: {verdict(ratio >= DAGSTER_BAR)}")
    return ratio >= DAGSTER_BAR


def judge_small(runs: Runs, latency: float) -> bool:
    """Print how near the engine comes to what latency allows; return whether the bar holds."""
    if ENGINE not in runs:
        return True
    if UNFLUSHED in runs:
        print(f"engine  {work(runs[ENGINE]) / work(runs[UNFLUSHED]):.2f} times the seconds without flushing")
    requests = median(runs[ENGINE], lambda run: run.requests)
    bound = requests * latency / CONCURRENCY
    ratio = work(runs[ENGINE]) / bound
    spoken = f"{requests:.0f} requests x {latency * 1000:.0f} ms / {CONCURRENCY} at a time = {bound:.2f} s"
    return _say(f"{ratio:.2f} of the latency bound ({spoken}), bar {LATENCY_BAR}", ratio <= LATENCY_BAR)


def _say(sentence: str, holds: bool) -> bool:
    print(f"engine  {sentence}: {verdict(holds)}")
    return holds


# --- the command


def main() -> int:
    options = _options()
    pythons = pythons_of(options.sides)
    large = 0 if options.small_only else options.large_series
    small = 0 if options.large_only else options.small_series
    print(
        f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}, "
        f"load before {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    holds = True
    with (
        serving(*server_words(large, options.slices, small)) as line,
        tempfile.TemporaryDirectory(prefix="nbia-bench-", dir=options.folder) as temporary,
    ):
        served = Served(**json.loads(line))
        if large:
            holds &= run_large(options, pythons, served, Path(temporary) / "large")
        if small:
            holds &= run_small(options, pythons, served, Path(temporary) / "small")
    return 0 if holds else 1


def run_large(options: argparse.Namespace, pythons: dict[str, Path], served: Served, where: Path) -> bool:
    """Measure the large set; return whether its bars hold."""
    facts = warm(served, LARGE)
    runs = measure(options.sides, pythons, served, facts, where, options.rounds)
    report("large set", runs, facts)
    return judge_large(runs)


def run_small(options: argparse.Namespace, pythons: dict[str, Path], served: Served, where: Path) -> bool:
    """Measure the small set, with latency; return whether its bar holds."""
    from nbia_pipeline.embedded.control.client import Control

    facts = warm(served, SMALL)
    Control(served.control).latency(options.latency)
    runs = measure(options.sides, pythons, served, facts, where, options.rounds)
    report(f"small set, {options.latency * 1000:.0f} ms latency", runs, facts)
    return judge_small(runs, options.latency)


def warm(served: Served, collection: str) -> Facts:
    """Have all images of a collection rendered and deflated, and return what the archive lists."""
    print(f"\nwarming {collection!r}", flush=True)
    return warmed(served.url, collection)


def pythons_of(sides: Sequence[str]) -> dict[str, Path]:
    """Return the Python that each side runs in; environments of others are made where they are missing.

    Raises:
        SystemExit: a program of the system is missing.
    """
    from peers import newest_tcia_utils, tested

    missing = [name for name in ("curl", "unzip") if not shutil.which(name)]
    if missing and any(side.startswith(YARDSTICK) for side in sides):
        raise SystemExit(f"{' and '.join(missing)} not found: install, or leave the sides curl out (--sides)")
    theirs = {"tcia_utils": newest_tcia_utils, "nbiatoolkit": tested}
    return {side: theirs[side]() if side in theirs else Path(sys.executable) for side in sides}


_USUAL = [side for side in SIDES if side != UNFLUSHED]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Images, against tcia_utils, nbiatoolkit and curl with unzip.")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--sides", type=_sides, default=_USUAL, help=f"comma-separated, of {', '.join(SIDES)}")
    parser.add_argument("--large-only", action="store_true", help="leave the small set out")
    parser.add_argument("--small-only", action="store_true", help="leave the large set out")
    parser.add_argument("--large-series", type=int, default=30, help="series of the large set (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=60, help="slices of each of them (default: %(default)s)")
    parser.add_argument("--small-series", type=int, default=300, help="series of the small set (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.15, help="seconds, of the small set (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="directory to work in (default: the system's for temporary files)")
    return parser.parse_args()


def _sides(text: str) -> list[str]:
    sides = [name.strip() for name in text.split(",")]
    unknown = [name for name in sides if name not in SIDES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(SIDES)}")
    return sides


if __name__ == "__main__":
    sys.exit(main())
