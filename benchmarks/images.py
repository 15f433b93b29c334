"""Images: whole series to disk, by us and by those who do the same.

Three collections of an embedded archive: 30 series of 60 slices of 512 x 512, as fast as the archive sends them; 300
series of four small images, where every answer comes 150 ms late, as one across an ocean does; and the road, 60 series
of 20 to 60 MB on the wire, 80 ms away, where a connection gets 5 MB/s and all of them together 40. The sides:

* ``engine``: nbia_pipeline without Dagster, everything verified;
* ``engine-unflushed``: the same without a flush (``NBIA_FSYNC=off``); left out unless named;
* ``dagster``: the same as ``nbia-pipeline run`` does it, with Dagster's records; the time is that of its images;
* ``tcia_utils``: ten threads; verifies nothing;
* ``nbiatoolkit``: ten processes; compares digests;
* ``curl``: ``curl --parallel``, then unzip, one zip after the other; verifies nothing; not on the road;
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
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from image_archive import LARGE, ROAD, SMALL, Facts, server_words, warmed
from image_report import LINES, PEERS, UNFLUSHED, YARDSTICK, Line, Run, Runs, judge, report
from image_sides import ARCHIVE, SIDES, Job
from measuring import cpu_seconds_of, expect_disk, run_measured, serving
from results import Results, add_option

COLLECTIONS = {"large": LARGE, "small": SMALL, "road": ROAD}
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
            parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in took.parts.items())
            print(
                f"round {number + 1}  {side:<12} work {took.work:6.2f} s, process {took.seconds:6.2f} s, "
                f"CPU {took.work_cpu:6.2f} s, {took.peak_mb:5.0f} MB" + (f"; {parts}" if parts else ""),
                flush=True,
            )
    return runs


def run_set(name: str, options: argparse.Namespace, pythons: dict[str, Path], served: Served, where: Path) -> None:
    """Measure one set, and report and judge it."""
    facts = warm(name, served, options.results)
    line: Line = LINES[name]
    if name == "small":
        line = Line(options.latency)
    slow_down(served, line)
    rounds = options.road_rounds if name == "road" else options.rounds
    runs = measure(_sides_of(name, options.sides), pythons, served, facts, where, rounds)
    slow_down(served, Line())
    report(name, line, runs, facts, options.results)
    judge(name, line, runs, facts, options.results)


def warm(name: str, served: Served, results: Results) -> Facts:
    """Have all images of a set sent once, rendered and deflated, and return what the archive lists."""
    print(f"\nwarming {COLLECTIONS[name]!r}", flush=True)
    before = cpu_seconds_of(served.pid)
    facts = warmed(served.url, COLLECTIONS[name])
    if name == "large":
        spent = (cpu_seconds_of(served.pid) - before) / (facts.bytes / 1e9)
        results.add("the embedded archive renders, deflates and sends", (spent, "CPU s per GB of files"))
    return facts


def slow_down(served: Served, line: Line) -> None:
    """Have the archive answer over such a line."""
    from nbia_pipeline.embedded.control.client import Control

    control = Control(served.control)
    control.latency(line.latency)
    control.bandwidth(line.each)
    control.line(line.all)


def _sides_of(name: str, sides: Sequence[str]) -> list[str]:
    return [side for side in sides if name != "road" or (not side.startswith(YARDSTICK) and side != UNFLUSHED)]


# --- the command


def main() -> int:
    options = _options()
    options.results = Results(options.json)
    kind = expect_disk(options.folder)
    pythons = pythons_of(options.sides)
    print(
        f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}, {kind}, "
        f"load before {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    numbers = [getattr(options, f"{name}_series") if name in options.sets else 0 for name in COLLECTIONS]
    with (
        serving(*server_words(numbers[0], options.slices, *numbers[1:])) as line,
        tempfile.TemporaryDirectory(prefix="nbia-bench-", dir=options.folder) as temporary,
    ):
        served = Served(**json.loads(line))
        for name in options.sets:
            run_set(name, options, pythons, served, Path(temporary) / name)
    finished: int = options.results.finish()
    return finished


def pythons_of(sides: Sequence[str]) -> dict[str, Path]:
    """Return the Python that each side runs in; environments of others are made where they are missing.

    Raises:
        SystemExit: a program of the system is missing.
    """
    from peers import newest_tcia_utils, tested

    missing = [name for name in ("curl", "unzip") if not shutil.which(name)]
    if missing and any(side.startswith(YARDSTICK) for side in sides):
        raise SystemExit(f"{' and '.join(missing)} not found: install, or leave the sides curl out (--sides)")
    theirs = dict(zip(PEERS, (newest_tcia_utils, tested), strict=True))
    return {side: theirs[side]() if side in theirs else Path(sys.executable) for side in sides}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Images, against tcia_utils, nbiatoolkit and curl with unzip.")
    usual = [side for side in SIDES if side != UNFLUSHED]
    parser.add_argument("--sets", type=_among(COLLECTIONS), default=list(COLLECTIONS), help="which (default: all)")
    parser.add_argument("--sides", type=_among(SIDES), default=usual, help=f"comma-separated, of {', '.join(SIDES)}")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: %(default)s)")
    parser.add_argument("--road-rounds", type=int, default=1, help="those of the road (default: %(default)s)")
    for name, count in (("large", 30), ("small", 300), ("road", 60)):
        said = f"series of the set {name} (default: %(default)s)"
        parser.add_argument(f"--{name}-series", type=int, default=count, help=said)
    parser.add_argument("--slices", type=int, default=60, help="slices of each large series (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.15, help="seconds, of the small set (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="directory to work in (default: the system's for temporary files)")
    add_option(parser)
    return parser.parse_args()


def _among(known: Sequence[str] | dict[str, object]) -> object:
    def chosen(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return names

    return chosen


if __name__ == "__main__":
    sys.exit(main())
