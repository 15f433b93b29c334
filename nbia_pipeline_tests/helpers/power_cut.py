"""Lakes on disks whose power fails: what a run had called finished must be there, and the next run must set all right.

A file system is made on a disk that logs its writes (:mod:`~nbia_pipeline_tests.helpers.logged_disk`), a lake is
mirrored onto it in several runs, and between them the archive adds, revises and hides series. From the log, the disk
is made again as it was at moments during a run and after its end; each of these is mounted, which lets the file system
recover, and read by readers that are not the engine's. Then a run on it must make it the lake that nothing happened
to. ``make test-power-cut`` does so for a while, and prints a table; it needs root, FUSE and loop devices. All mounts are
in a namespace of the process: they are gone when it is, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from nbia_pipeline import clock
from nbia_pipeline.archive import ClientOptions, NbiaClient
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.demo.catalog import demo_catalog
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline_tests.helpers import truth
from nbia_pipeline_tests.helpers.archives import serving
from nbia_pipeline_tests.helpers.logged_disk import (
    FLUSH,
    LIBC,
    MODELS,
    after_the_cut,
    die_with_parent,
    entries,
    mount,
)
from nbia_pipeline_tests.helpers.processes import environment

CANNOT = 77
"""Exit code where the system lacks what this needs; the reason is in stderr."""
MB_OF_DISK = 512
OPTIONS = ClientOptions(connect_timeout=5, read_timeout=60, tries=3, backoff=0.01, max_backoff=0.05)
# A second between the commits of the file system's journal, so that what it writes late is seen within seconds.
FILE_SYSTEMS = {
    "ext4": (["mkfs.ext4", "-q", "-F", "-E", "nodiscard"], "commit=1"),
    "xfs": (["mkfs.xfs", "-q", "-K"], "nodiscard"),
    "btrfs": (["mkfs.btrfs", "-q", "-K"], "commit=1,nodiscard"),
}
HOURS_BETWEEN = 7
"""Long enough for a withdrawal to be confirmed."""
DURING, AFTER = "during a run", "after its end"
_OF_TIME = ("FetchedAt", "SeenAt", "ListedAt", "VerifiedAt", "MissingSince", "RunID")
_NOT_COMPARED = ("verifications",)  # a sample
_NEW_MOUNTS, _RECURSIVE, _PRIVATE = 0x20000, 1 << 14, 1 << 18


class Missing(Exception):
    """The system lacks what a disk like this needs."""


def available() -> list[str]:
    """Return the file systems that this machine can make and mount."""
    known = Path("/proc/filesystems").read_text().split()
    return [name for name, (make, _) in FILE_SYSTEMS.items() if name in known and shutil.which(make[0])]


def enter() -> None:
    """Give this process mounts of its own, which end with it.

    Raises:
        Missing: the system lacks what the disks need, or does not allow it.
    """
    if os.geteuid() != 0:
        raise Missing("a power cut needs a disk of its own: run as root")
    for needed in ("/dev/fuse", "/dev/loop-control"):
        if not os.access(needed, os.W_OK):
            raise Missing(f"a power cut needs a disk of its own: there is no {needed} here that can be opened")
    if not available():
        raise Missing("a power cut needs a file system of its own: install mkfs.ext4, mkfs.xfs or mkfs.btrfs")
    if LIBC.unshare(_NEW_MOUNTS):
        raise Missing("a power cut needs mounts of its own: this process must not make any (CAP_SYS_ADMIN)")
    mount("none", "/", "none", "", _RECURSIVE | _PRIVATE)


def command(*words: str | Path, **options: Any) -> None:
    """Run a command of the system.

    Raises:
        Missing: it failed, with its own words.
    """
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode:
        raise Missing(f"{' '.join(map(str, words))}: {done.stderr.strip()}")


@contextlib.contextmanager
def mounted(device: Path, folder: Path, options: str = "") -> Iterator[Path]:
    """Mount a file as a disk; the loop device goes with the mount."""
    folder.mkdir(exist_ok=True)
    command("mount", "-o", ",".join(filter(None, ("loop", options))), device, folder)
    try:
        yield folder
    finally:
        command("umount", folder)


@dataclass(frozen=True)
class Disk:
    """A disk that logs, with a file system that is mounted.

    Attributes:
        made: the image as it was when the log began.
        log: its log.
        lake: a directory on it.
    """

    made: Path
    log: Path
    lake: Path


@contextlib.contextmanager
def logged(folder: Path, file_system: str) -> Iterator[Disk]:
    """Make a file system on a disk that logs, and mount it."""
    make, options = FILE_SYSTEMS[file_system]
    image, made = folder / "image", folder / "made"
    command("truncate", "-s", f"{MB_OF_DISK}M", image)
    command(*make, image)
    command("cp", "--sparse=always", image, made)
    words = [sys.executable, "-m", "nbia_pipeline_tests.helpers.logged_disk", str(image), str(folder / "log")]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        if server.stdout.readline() != "ready\n":
            raise Missing(f"a disk that logs cannot be mounted: {server.communicate()[1].splitlines()[-1]}")
        try:
            with mounted(Path(f"{image}.disk"), folder / "live", options) as live:
                yield Disk(made, folder / "log", live / "lake")
        finally:
            command("umount", f"{image}.disk")
    finally:
        server.kill()
        server.communicate()


# --- runs, and what lakes hold


def mirror_all(url: str, lake: Path, hours: int) -> Iterator[str]:
    """Mirror all collections with the engine, some hours from now, and yield each that ended well."""
    present = clock.utc_now
    clock.utc_now = lambda: present() + timedelta(hours=hours)
    try:
        with NbiaClient(url, options=OPTIONS) as client:
            for collection in client.collection_values():
                result = Mirror(client, Lake(str(lake))).run(collection)
                if result.failed or result.left:
                    raise AssertionError(f"{collection}: {result}")
                yield collection
    finally:
        clock.utc_now = present


@dataclass(frozen=True)
class Held:
    """What a lake holds, read without the engine.

    Attributes:
        contents: files, receipts and instances.
        tables: rows of each file of a table by its path, without times.
        unreadable: files of tables that cannot be read.
    """

    contents: truth.Contents
    tables: dict[str, list[str]]
    unreadable: list[str]


def held(lake: Path) -> Held:
    """Read a lake, file by file; damaged tables are left out."""
    tables: dict[str, list[dict[str, Any]]] = {}
    unreadable = []
    for path in sorted((lake / "tables").rglob("*.parquet")):
        name = path.relative_to(lake / "tables").as_posix()
        try:
            tables[name] = pq.ParquetFile(path).read().to_pylist()
        except (OSError, pa.ArrowException):
            unreadable.append(name)
    found = (p for top in ("images", "annotations") for p in (lake / top).rglob("*") if p.is_file())
    files = {p.relative_to(lake).as_posix(): hashlib.md5(p.read_bytes()).hexdigest() for p in found}
    receipts = {r["SeriesInstanceUID"]: r for r in _rows(tables, "image_series")}
    instances = {r["SOPInstanceUID"]: r for r in _rows(tables, "instances")}
    timeless = {
        name: sorted(str({c: v for c, v in row.items() if c not in _OF_TIME}) for row in rows)
        for name, rows in tables.items()
        if name.split("/")[0] not in _NOT_COMPARED
    }
    return Held(truth.Contents(files, receipts, instances), timeless, unreadable)


def _rows(tables: dict[str, list[dict[str, Any]]], table: str) -> list[dict[str, Any]]:
    """Return the rows of a table with the collection, which is in the path."""
    parts = ((name.split("/"), rows) for name, rows in tables.items())
    return [{**row, "Collection": unquote(path[1])[11:]} for path, rows in parts if path[0] == table for row in rows]


def _timeless(row: dict[str, Any] | None) -> dict[str, Any] | None:
    return row and {c: v for c, v in row.items() if c not in _OF_TIME}


def false_receipts(contents: truth.Contents) -> list[str]:
    """Return the series that are complete by their receipt, and whose files are not those of the receipt."""
    digests: dict[str, list[str]] = {uid: [] for uid in contents.receipts}
    for row in contents.instances.values():
        there = contents.files.get(row["Path"]) == row["MD5"]
        digests.setdefault(row["SeriesInstanceUID"], []).append(row["MD5"] if there else "")
    return [
        uid
        for uid, receipt in contents.receipts.items()
        if receipt["Status"] == "complete"
        and hashlib.md5("".join(sorted(digests[uid])).encode()).hexdigest() != receipt["SeriesMD5"]
    ]


def lost_files(now: truth.Contents, promised: truth.Contents, series: set[str]) -> list[str]:
    """Return the files of some series that a lake must have and has not, and `receipt of ...` for receipts."""
    rows = (row for row in promised.instances.values() if row["SeriesInstanceUID"] in series)
    files = [row["Path"] for row in rows if now.files.get(row["Path"]) != row["MD5"]]
    differ = (u for u in sorted(series) if _timeless(now.receipts.get(u)) != _timeless(promised.receipts[u]))
    return [*files, *(f"receipt of {uid}" for uid in differ)]


# --- cuts


@dataclass(frozen=True)
class Round:
    """One run, and what surrounds it.

    Attributes:
        hours: by how much its clock is ahead.
        before: what the lake held before.
        after: what it holds since.
        start: where the log was when the run began.
        ended: where it was when the run said that a collection is finished.
        end: where it was when the run ended well.
        idle: where it was some seconds later.
    """

    hours: int
    before: Held
    after: Held
    start: int
    ended: dict[str, int]
    end: int
    idle: int

    def promised(self, moment: int) -> set[str]:
        """Return the series that were finished at a moment: by this run, or before it and untouched by it."""
        before = self.before.contents.receipts
        return {
            uid
            for uid, row in self.after.contents.receipts.items()
            if self.ended.get(row["Collection"], self.end) <= moment or _timeless(before.get(uid)) == _timeless(row)
        }


@dataclass
class Report:
    """What became of the cuts.

    Attributes:
        counts: by file system, model and moment: cuts, lakes that recovered, and what was found before that.
        findings: what went wrong, in words.
    """

    counts: dict[tuple[str, str, str], Counter[str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def add(self, row: tuple[str, str, str], **figures: int) -> None:
        self.counts.setdefault(row, Counter()).update(figures)

    def total(self) -> Counter[str]:
        return sum(self.counts.values(), Counter())

    def table(self) -> str:
        columns = ("cuts", "recovered", "lost", "unreadable", "false")
        head = f"{'file system':<12}{'disk keeps':<14}{'cut':<15}" + "".join(f"{c:>12}" for c in columns)
        lines = [
            f"{kind:<12}{model:<14}{when:<15}" + "".join(f"{found[c]:>12}" for c in columns)
            for (kind, model, when), found in [*sorted(self.counts.items()), (("all", "", ""), self.total())]
        ]
        return "\n".join((head, *lines))


@dataclass
class Cuts:
    """A series of rounds on one disk, and the cuts of each.

    Attributes:
        url: the archive.
        control: what can be done to it.
        options: the command line.
        chance: of the seed.
        report: what is found.
    """

    url: str
    control: Operations
    options: argparse.Namespace
    chance: random.Random
    report: Report

    def disk(self, file_system: str, run: str, folder: Path) -> None:
        """Let rounds pass on a new disk."""
        self.control.reset()
        with logged(folder, file_system) as disk:
            before = held(disk.lake)
            for number in range(self.options.runs):
                if number:
                    self._change_archive(number)
                done = self._round(disk, before, number, run)
                self._cut(disk, done, file_system, run, folder)
                before = done.after

    def _change_archive(self, number: int) -> None:
        """Add, revise, move and hide some series."""
        restricted = {row["Collection"] for row in self.control.series()} - set(self._public())
        rows = [r for r in self.control.series() if r["Visibility"] == 1 and r["Collection"] not in restricted]
        rows = sorted(rows, key=lambda row: str(row["SeriesInstanceUID"]))
        hidden, same, longer, moved, like = self.chance.sample(rows, 5)
        self.control.hide(hidden["SeriesInstanceUID"])
        self.control.replace(same["SeriesInstanceUID"], hidden=False)
        self.control.replace(longer["SeriesInstanceUID"], hidden=False, slices=self.chance.randint(3, 12))
        self.control.edit(moved["SeriesInstanceUID"], PatientID=f"renamed-{number}")
        self.control.add_series(like["Collection"], slices=self.chance.randint(3, 12))

    def _public(self) -> list[str]:
        with NbiaClient(self.url, options=OPTIONS) as client:
            return client.collection_values()

    def _round(self, disk: Disk, before: Held, number: int, run: str) -> Round:
        """Run, wait a while, and return what happened."""
        start, hours, ended = disk.log.stat().st_size, HOURS_BETWEEN * number if run == "engine" else 0, {}
        with self._started(run, disk.lake, hours) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if run == "engine":
                    ended[line.strip()] = disk.log.stat().st_size
            failed = process.wait()
        end = disk.log.stat().st_size
        if failed:
            raise AssertionError(f"the run that should only lose its power ended with {failed}")
        time.sleep(self.options.seconds)
        return Round(hours, before, held(disk.lake), start, ended, end, disk.log.stat().st_size)

    @contextlib.contextmanager
    def _started(self, run: str, lake: Path, hours: int) -> Iterator[subprocess.Popen[str]]:
        with tempfile.TemporaryDirectory(prefix="power-cut-home-") as home:
            own = {"NBIA_ARCHIVE": self.url, "NBIA_IMAGES": "*", "NBIA_LAKE": str(lake)}
            variables = environment(Path(home), NBIA_FSYNC=self.options.fsync, **own)
            words = [sys.executable, "-m", __spec__.name, "run", self.url, str(lake), str(hours)]
            if run == "command":
                words = [sys.executable, "-m", "nbia_pipeline", "run"]
            log = Path(home, "stderr").open("w+")
            with log, subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, stderr=log, text=True) as process:
                yield process
                if process.returncode:
                    log.seek(0)
                    sys.stderr.write(log.read())

    def _moments(self, disk: Disk, done: Round) -> Iterator[tuple[str, int]]:
        """Yield moments at which the power fails: around flushes and at any write, the end of the run among them."""
        found = entries(disk.log)
        for when, first, last in ((DURING, done.start, done.end), (AFTER, done.end, done.idle)):
            inside = [n for n, e in enumerate(found) if first <= e.end <= last]
            flushes = [n for n in inside if found[n].offset == FLUSH]
            at = [last if when == DURING else first]
            for number in range(self.options.cuts):
                n = self.chance.choice(flushes if flushes and number % 2 else inside or [-1])
                at.append(found[n - number % 4 // 2].end if n > 0 else first)
            # The end of a run is the first moment after it.
            yield from ((when, max(first, min(last, m))) for m in (at[1:] if when == DURING else at[:-1]))

    def _cut(self, disk: Disk, done: Round, file_system: str, run: str, folder: Path) -> None:
        for number, (when, moment) in enumerate(self._moments(disk, done)):
            model = self.options.models[number % len(self.options.models)]
            image = folder / "cut"
            command("cp", "--sparse=always", disk.made, image)
            after_the_cut(image, disk.log, moment, model, self.chance)
            with mounted(image, folder / "after") as mount_point:
                figures, sentences = self._check(mount_point / "lake", done, moment)
                failure = self._recover(mount_point / "lake", done, run)
            figures.update(cuts=1, recovered=int(not failure))
            self.report.add((file_system, model, when), **figures)
            where = f"{file_system}, seed {self.options.seed}, {run}, {done.hours} h, {model}, byte {moment}, {when}"
            self.report.findings += [f"{where}: {s}" for s in (*sentences, *([failure] if failure else []))]

    def _check(self, lake: Path, done: Round, moment: int) -> tuple[Counter[str], list[str]]:
        """Return what is wrong on a disk after the cut, in figures and in words."""
        now = held(lake)
        lost = lost_files(now.contents, done.after.contents, done.promised(moment))
        false = false_receipts(now.contents)
        figures = Counter(lost=len(lost), unreadable=len(now.unreadable), false=len(false))
        kinds = (("lost", lost), ("unreadable", now.unreadable), ("complete without its files", false))
        return figures, [f"{kind}: {len(found)}, {found[0]} ..." for kind, found in kinds if found]

    def _recover(self, lake: Path, done: Round, run: str) -> str:
        """Run on a disk after the cut; return what is wrong, nothing if the lake is as if nothing had happened."""
        try:
            if run == "engine":
                list(mirror_all(self.url, lake, done.hours))
            else:
                with self._started(run, lake, done.hours) as process:
                    output = process.communicate()[0]
                if process.returncode:
                    return f"did not recover: {output[-300:]}"
        except Exception as e:  # noqa: BLE001 - whatever it is, it is what is reported
            return f"did not recover: {type(e).__name__}: {e}"
        return differences(held(lake), done.after) or "".join(truth.leftovers(lake)[:1])


def differences(one: Held, other: Held) -> str:
    """Return in which files or tables two lakes differ, nothing if they do not."""
    pairs = ((one.contents.files, other.contents.files), (one.tables, other.tables))
    names = [name for a, b in pairs for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    return f"differs from a lake without a cut: {len(names)} files, {names[0]} ..." if names else ""


# --- the command


def main() -> int:
    """Cut the power again and again; return 0 if nothing was lost and all recovered."""
    if sys.argv[1:2] == ["run"]:
        for collection in mirror_all(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])):
            print(collection, flush=True)
        return 0
    options = _options()
    die_with_parent()
    report = Report()
    try:
        enter()
        app = create_app(demo_catalog())
        with serving(app) as url:
            cuts = Cuts(url, app.state.archive.control, options, random.Random(options.seed), report)
            for number in range(options.disks):
                run = options.run[number % len(options.run)]
                for kind in options.file_systems or available():
                    with tempfile.TemporaryDirectory(prefix="power-cut-") as folder:
                        cuts.disk(kind, run, Path(folder))
                    print(f"disk {number + 1}, {kind}, {run}: {dict(report.total())}", file=sys.stderr, flush=True)
    except Missing as e:
        print(e, file=sys.stderr)
        return CANNOT
    total = report.total()
    if options.json:
        rows = [{"row": row, **found} for row, found in report.counts.items()]
        print(json.dumps({"rows": rows, "findings": report.findings}))
    else:
        print("\n".join((*report.findings, report.table())))
    return int(any(total[kind] for kind in ("lost", "unreadable", "false")) or total["recovered"] < total["cuts"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Mirror onto disks whose power fails.")
    split = "comma-separated (default: %(default)s)"
    parser.add_argument("--disks", type=int, default=4, help="disks of each file system (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs on each disk (default: %(default)s)")
    parser.add_argument("--cuts", type=int, default=6, help="cuts during each run, and after (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="how long after a run to cut (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--file-systems", type=_split, help="comma-separated (default: those that this machine has)")
    parser.add_argument("--models", type=_split, default=list(MODELS), help=split)
    parser.add_argument("--run", type=_split, default=["engine", "engine", "engine", "command"], help=split)
    parser.add_argument("--fsync", choices=("on", "off"), default="on", help="NBIA_FSYNC (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args()


def _split(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
