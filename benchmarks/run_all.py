"""All benchmarks, one after the other, and one table of what they found: ``make bench``.

Each script runs in a process of its own and leaves its figures and bars (see :mod:`results`). One that fails or misses
a bar does not keep the others from running. A complete run writes ``docs/benchmarks.json`` and from it the sections
between the marks in ``docs/benchmarks.md`` and ``README.md``. Some benchmarks alone (``--only``) replace their part, if
machine and versions are those of the others; a quick try (``--quick``) writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import expect_disk
from results import Row, read, rows_of, spoken

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STORE = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- written by `make bench`: do not edit -->", "<!-- end of what `make bench` wrote -->"

_PACKAGES = ("dagster", "pyarrow", "isal")
_OF_OTHERS = ("tcia_utils", "nbiatoolkit")
_LONGEST_SECONDS = 3600.0

Found = dict[str, Any]
"""Machine, versions, and of each benchmark when it ran, at which commit, how long, and its rows."""


@dataclass(frozen=True)
class Bench:
    """A script.

    Attributes:
        name: its name here.
        script: its file.
        words: its options.
        quick: those of a quick try, whose figures mean nothing.
    """

    name: str
    script: str
    words: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()


_FEW = tuple("--rounds 1 --large-series 3 --slices 10 --small-series 12 --road-series 1".split())
_SIDES = ("--sides", "engine,engine-unflushed,dagster,tcia_utils,nbiatoolkit,curl,curl-spread")
_SMALL_FILES = tuple("--giant-mib 256 --other-mib 32 --other-files 2".split())
_FEW_OBJECTS = tuple("--rounds 1 --series 3 --large-series 3 --slices 10 --giant-mib 64".split())
_ALL = (
    Bench("demo", "demo.py", quick=("--rounds", "1")),
    Bench("no-op", "no_op.py", quick=("--series", "2000")),
    Bench("memory", "memory.py", quick=_SMALL_FILES),
    Bench(
        "client", "client.py", ("--rounds", "2"), tuple("--rounds 1 --calls 200 --peer-calls 20 --small-only".split())
    ),
    Bench("tables", "tables.py", quick=("--rounds", "1", "--collections", "lungct_diagnosis,cptac_pda")),
    Bench("tick", "tick.py", quick=("--catalogs", "demo")),
    Bench("records", "event_log.py"),
    Bench("processor", "processor.py"),
    Bench("object-store", "object_store.py", quick=_FEW_OBJECTS),
    Bench("many", "many.py", quick=("--collections", "4", "--queued", "0")),
    Bench("images", "images.py", ("--rounds", "3", *_SIDES), (*_FEW, "--sides", "engine,dagster,tcia_utils")),
)
BENCHES = tuple(bench for bench in _ALL if (HERE / bench.script).exists())
"""In this order; the images last, because they fill the disk's caches."""


# --- running


def main() -> int:
    options = _options()
    if options.render:
        write(json.loads(STORE.read_text()))
        return 0
    chosen = [bench for bench in BENCHES if bench.name in options.only]
    found: Found = {"machine": machine(options.folder), "versions": versions(), "benches": {}}
    load = os.getloadavg()[0]
    print(f"{found['machine']}; load before {load:.1f}", flush=True)
    for bench in chosen:
        found["benches"][bench.name] = run(bench, options)
    complete = len(chosen) == len(BENCHES)
    print("\n" + "\n".join(lines(found)))
    if not options.quick:
        keep(found, complete)
    missed = sum(len(missing(rows_of(one["rows"]))) + bool(one["failed"]) for one in found["benches"].values())
    return 1 if missed else 0


def run(bench: Bench, options: argparse.Namespace) -> Found:
    """Run one script and return what it found."""
    print(f"\n=== {bench.name}", flush=True)
    commit, started = commit_of_this(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="nbia-bench-", dir=options.folder) as folder:
        left = Path(folder) / "rows.json"
        words = [*(bench.quick if options.quick else bench.words), "--json", str(left)]
        # All of them find their temporary files there.
        code = _call([sys.executable, str(HERE / bench.script), *words], folder)
        rows = read(left) if left.exists() else []
    failed = "" if left_rows(code, rows) else f"it ended with exit code {code}"
    return {
        "date": dt.date.today().isoformat(),  # noqa: DTZ011 - the day where it ran
        "commit": commit,
        "seconds": round(time.perf_counter() - started),
        "failed": failed,
        "rows": [asdict(row) for row in rows],
    }


def left_rows(code: int, rows: Sequence[Row]) -> bool:
    """Return whether a script came to its end: it says with 1 that a bar does not hold."""
    return bool(rows) and code == (1 if missing(rows) else 0)


def missing(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose bars do not hold."""
    return [row for row in rows if row.holds is False]


def _call(words: list[str], folder: str) -> int:
    with subprocess.Popen(words, env={**os.environ, "TMPDIR": folder}) as process:
        try:
            return process.wait(_LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            return process.wait()
        except BaseException:
            process.terminate()  # it takes its archive along
            raise


# --- where


def machine(folder: Path | None) -> str:
    """Return the machine in words."""
    with contextlib.suppress(OSError):
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = models[0].partition(":")[2].strip() if models else platform.machine()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        disk = expect_disk(folder)
        return f"{os.cpu_count()} processors ({model}), {memory:.0f} GB of memory, {disk}, {platform.system()}"
    return f"{os.cpu_count()} processors ({platform.machine()}), {platform.system()}"


def versions() -> dict[str, str]:
    """Return the versions of what is measured and of what it depends on."""
    from peers import newest_tcia_utils, tested

    found = {"Python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    ask = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    for name, python in zip(_OF_OTHERS, (newest_tcia_utils(), tested()), strict=True):
        said = subprocess.run([str(python), "-c", ask, name], capture_output=True, text=True, check=True)
        found[name] = said.stdout.strip()
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def commit_of_this() -> str:
    """Return the commit of the project, with a plus sign if files differ from it; empty outside of Git."""
    said = [_git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")]
    # What this script writes itself does not count.
    own = {f" M {file.relative_to(ROOT)}" for file in (STORE, PAGE, README)}
    return said[0].strip() + ("+" if set(said[1].splitlines()) - own else "")


def _git(*words: str) -> str:
    with contextlib.suppress(OSError):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.rstrip()
    return ""


# --- what came out


def lines(found: Found) -> list[str]:
    """Return what was found as Markdown: where and when, then one table."""
    benches: dict[str, Found] = found["benches"]
    if not benches:
        return ["Nothing has been measured yet: `make bench`."]
    rows = [(name, row) for name, one in benches.items() for row in rows_of(one["rows"])]
    judged = [row for _, row in rows if row.holds is not None]
    kept = sum(bool(row.holds) for row in judged)
    used = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    minutes = sum(one["seconds"] for one in benches.values()) / 60
    text = [
        f"{found['machine']}. {used}.",
        *_when(benches),
        f"{kept} of {len(judged)} bars hold. All of it took {minutes:.0f} minutes.",
    ]
    table = ["| bench | what | found | bar | holds | rounds |", "|---|---|---|---|---|---|"]
    for name, row in rows:
        holds = {None: "", True: "yes", False: "**no**"}[row.holds]
        table.append(f"| {name} | {row.what} | {row.found} | {row.bar} | {holds} | {row.rounds} |")
    for name, one in benches.items():
        if one["failed"]:
            table.append(f"| {name} | **failed** | {one['failed']} | | **no** | |")
    return [*text, "", *table]


def _when(benches: dict[str, Found]) -> Iterator[str]:
    """Yield when and at which commits they ran."""
    told: dict[str, list[str]] = {}
    for name, one in benches.items():
        told.setdefault(f"{one['date']}, commit {one['commit']}", []).append(name)
    for moment, names in told.items():
        yield f"{moment}." if len(told) == 1 else f"{moment}: {', '.join(names)}."


_SIDES_OF_README = {"nbia_pipeline": "engine", "through Dagster": "dagster", "tcia_utils": "tcia_utils"}
_SETS_OF_README = {
    "300 series of 4 small images, 150 ms away": "small",
    "60 series of 20 to 60 MB, 80 ms away, 40 MB/s": "road",
    "30 series of 60 large images, as fast as they come": "large",
}


def readme_lines(found: Found) -> list[str]:
    """Return the table of the README: seconds of each side; before it, where they were measured."""
    seconds = {
        row.what: spoken(*row.figures[0])
        for one in found["benches"].values()
        for row in rows_of(one["rows"])
        if row.figures and row.figures[0][1] == "s"
    }
    sides = {**_SIDES_OF_README, "nbiatoolkit": "nbiatoolkit"}
    table = [f"| | {' | '.join(sides)} |", "|---|" + "---|" * len(sides)]
    for spelled, name in _SETS_OF_README.items():
        cells = [seconds.get(f"{name} set, `{side}`", "–") for side in sides.values()]
        table.append(f"| {spelled} | {' | '.join(cells)} |")
    tables = {what: text for what, text in seconds.items() if what.startswith("1,044,191 series, `")}
    ours, theirs = (
        next((text for what, text in tables.items() if f"`{side}`" in what), "–")
        for side in ("nbia_pipeline", "tcia_utils")
    )
    days = sorted({one["date"] for one in found["benches"].values()})
    where = [f"{found['machine']}; {days[-1]}.", ""] if days else []
    return [*where, *table, f"| tables of 1,044,191 series | – | {ours} | {theirs} | – |"]


def keep(found: Found, complete: bool) -> None:
    """Write what was found to the store and the pages; a part only beside what is comparable."""
    stored = json.loads(STORE.read_text()) if STORE.exists() else {"benches": {}}
    if not complete:
        if stored["benches"] and any(stored[key] != found[key] for key in ("machine", "versions")):
            print(f"\nnothing is written: {STORE.name} is of another machine or of other versions")
            return
        benches = {**stored["benches"], **found["benches"]}
        found = {**found, "benches": {b.name: benches[b.name] for b in BENCHES if b.name in benches}}
    STORE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write(found)


def write(found: Found) -> None:
    """Write the sections of the pages."""
    for page, section in ((PAGE, lines(found)), (README, readme_lines(found))):
        page.write_text(with_section(page.read_text(), section))
        print(f"written: {page.relative_to(ROOT)}")


def with_section(text: str, section: list[str]) -> str:
    """Return a page with other lines between the marks.

    Raises:
        SystemExit: the page has no marks.
    """
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not begin or not end:
        raise SystemExit(f"a page has lost its marks {BEGIN} and {END}")
    return "".join([before, begin, "\n", *(f"{line}\n" for line in section), "\n", end, after])


def _options() -> argparse.Namespace:
    names = [bench.name for bench in BENCHES]
    parser = argparse.ArgumentParser(description="All benchmarks, and one table of what they found.")
    parser.add_argument("--only", type=_names, default=names, help=f"comma-separated, of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="a try of each that takes seconds; nothing is written")
    parser.add_argument("--folder", type=Path, help="directory to work in, on a disk (default: the system's)")
    parser.add_argument("--render", action="store_true", help=f"write the pages again from {STORE.name}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return parser.parse_args()


def _names(text: str) -> list[str]:
    known, names = [bench.name for bench in BENCHES], [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
