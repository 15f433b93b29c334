"""Rounds of mirroring on one disk, the cuts of each, and the report of what became of them."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.embedded.server.archive import Archive
from nbia_pipeline_tests.helpers import truth
from nbia_pipeline_tests.power_cut.disks import FILE_SYSTEMS, Disk, command, logged, mounted
from nbia_pipeline_tests.power_cut.lakes import (
    OPTIONS,
    Held,
    differences,
    false_receipts,
    held,
    leftovers,
    lost_files,
    mirror_all,
    run_process,
    without_times,
)
from nbia_pipeline_tests.power_cut.logged_disk import FLUSH, after_the_cut, entries

COMMIT_SECONDS = (300, 1, 300)
"""Of the file systems of the first disks, in turns."""
HOURS_BETWEEN = 7
"""Long enough for a withdrawal to be confirmed."""
DURING, AFTER = "during a run", "after its end"
ENGINE, FILES, COMMAND = "engine", "files", "command"
"""What runs: the engine alone; the same as if no file system could be flushed as a whole; or ``nbia-pipeline run``."""
SLOWER = 3
"""So many times fewer cuts where the command runs."""


@dataclass(frozen=True)
class Round:
    """One run, and what surrounds it.

    Attributes:
        run: which kind of run it is.
        hours: by how much its clock is ahead.
        before: what the lake held before.
        after: what it holds since.
        start: where the log was when the run began.
        ended: where it was when the run said that a collection is finished.
        end: where it was when the run ended well.
        idle: where it was some seconds later.
    """

    run: str
    hours: int
    before: Held
    after: Held
    start: int
    ended: dict[str, int]
    end: int
    idle: int

    def promised(self, moment: int) -> set[str]:
        """Return the series that were finished at a moment: by this run, or before it and untouched by it."""
        receipts = self.after.contents.receipts
        ended = {uid for uid, row in receipts.items() if self.ended.get(row["Collection"], self.end) <= moment}
        before = {uid: without_times(row) for uid, row in self.before.contents.receipts.items()}
        return ended | {uid for uid, row in receipts.items() if before.get(uid) == without_times(row)}


@dataclass
class Report:
    """What became of the cuts.

    Attributes:
        counts: by file system, model and moment: cuts, lakes that recovered, and what was found before that.
        findings: what went wrong, in words.
    """

    counts: dict[tuple[str, str, str], Counter[str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def add(self, row: tuple[str, str, str], figures: Counter[str]) -> None:
        """Count a cut."""
        self.counts.setdefault(row, Counter()).update(figures)

    def total(self) -> Counter[str]:
        """Return the sums over all cuts."""
        return sum(self.counts.values(), Counter())

    def is_clean(self) -> bool:
        """Return whether nothing was lost or damaged, and every lake recovered."""
        total = self.total()
        return not (total["lost"] or total["unreadable"] or total["false"]) and total["recovered"] == total["cuts"]

    def as_json(self) -> str:
        """Return the same for a program."""
        return json.dumps({"total": self.total(), "findings": self.findings})

    def table(self, *, findings: bool = True) -> str:
        """Return the counts as text, and in front of them what was found."""
        columns = ("cuts", "recovered", "lost", "unreadable", "false")
        head = f"{'file system':<12}{'disk keeps':<14}{'cut':<15}" + "".join(f"{c:>12}" for c in columns)
        lines = [
            f"{kind:<12}{model:<14}{when:<15}" + "".join(f"{found[c]:>12}" for c in columns)
            for (kind, model, when), found in [*sorted(self.counts.items()), (("all", "", ""), self.total())]
        ]
        return "\n".join((*(self.findings if findings else ()), head, *lines))


@dataclass
class Cuts:
    """A series of rounds on one disk, and the cuts of each.

    Attributes:
        url: the archive.
        archive: the same, in this process.
        options: the command line.
        chance: of the seed.
        report: what is found.
    """

    url: str
    archive: Archive
    options: argparse.Namespace
    chance: random.Random
    report: Report

    def disk(self, number: int, file_system: str, run: str, folder: Path) -> None:
        """Let rounds pass on a new disk, the numberth one."""
        self.archive.control.reset()
        with logged(folder, file_system, COMMIT_SECONDS[number % len(COMMIT_SECONDS)]) as disk:
            before = held(disk.lake)
            for number in range(self.options.runs):
                if number:
                    self._change_archive(number)
                done = self._round(disk, before, number, run)
                self._cut(disk, done, file_system, folder)
                before = done.after

    def _change_archive(self, number: int) -> None:
        """Add, revise, move and hide some series."""
        control, public = self.archive.control, truth.facts_of(self.archive, self._public())
        hidden, same, longer, moved, like = self.chance.sample(sorted(public), 5)
        control.hide(hidden)
        control.replace(same, hidden=False)
        control.replace(longer, hidden=False, slices=self.chance.randint(3, 12))
        control.edit(moved, PatientID=f"renamed-{number}")
        control.add_series(public[like]["Collection"], like=like, slices=self.chance.randint(3, 12))

    def _public(self) -> list[str]:
        with NbiaClient(self.url, options=OPTIONS) as client:
            return client.collection_values()

    def _round(self, disk: Disk, before: Held, number: int, run: str) -> Round:
        """Run, wait a while, and return what happened."""
        hours, ended = HOURS_BETWEEN * number if run != COMMAND else 0, {}

        def on_line(line: str) -> None:
            if run != COMMAND:  # it says the collections that are finished
                ended[line] = disk.position()

        start = disk.position()
        self._run(run, disk.lake, hours, on_line)
        end = disk.position()
        time.sleep(self.options.seconds)
        after, idle = held(disk.lake), disk.position()
        expected = truth.truth(self.archive, self._public()).files
        assert expected.items() <= after.contents.files.items(), "a run that ended well lacks files of the archive"
        return Round(run, hours, before, after, start, ended, end, idle)

    def _run(self, run: str, lake: Path, hours: int, on_line: Callable[[str], None] = lambda line: None) -> None:
        """Run in a process of its own."""
        words = ["nbia_pipeline_tests.power_cut", run, self.url, str(lake), str(hours)]
        if run == COMMAND:
            words = ["nbia_pipeline", "run"]
        own = {"NBIA_ARCHIVE": self.url, "NBIA_IMAGES": "*", "NBIA_LAKE": str(lake), "NBIA_FSYNC": self.options.fsync}
        run_process(words, on_line, **own)

    def _moments(self, disk: Disk, done: Round) -> Iterator[tuple[str, int]]:
        """Yield moments at which the power fails: at any write, or just before or after a flush; first at the end."""
        found = entries(disk.log)
        cuts = self.options.cuts if done.run != COMMAND else max(1, self.options.cuts // SLOWER)
        ends = [e.end for e in found]
        around = {ends[max(0, n + step)] for n, e in enumerate(found) if e.offset == FLUSH for step in (-1, 0)}
        after = [done.end, *(end for end in ends if done.end < end <= done.idle)]
        yield AFTER, done.end
        for when, at in ((AFTER, after), (DURING, [e for e in ends if done.start <= e < done.end] or [done.start])):
            near = [end for end in at if end in around] or at
            for number in range(1 if when == AFTER else 0, cuts):
                yield when, self.chance.choice(near if number % 2 else at)

    def _cut(self, disk: Disk, done: Round, file_system: str, folder: Path) -> None:
        """Cut the power at some moments of a round, and see what is left."""
        for number, (when, moment) in enumerate(self._moments(disk, done)):
            model, image = self.options.models[number % len(self.options.models)], folder / "cut"
            command("cp", "--sparse=always", disk.made, image)
            after_the_cut(image, disk.log, moment, model, self.chance)
            with mounted(image, folder / "after", FILE_SYSTEMS[file_system].beside) as mount_point:
                figures, sentences = _check(mount_point / "lake", done, moment)
                failure = self._recover(mount_point / "lake", done)
            figures.update(cuts=1, recovered=int(not failure))
            self.report.add((file_system, model, when), figures)
            where = f"{file_system}, seed {self.options.seed}, {done.run}, {done.hours} h, {model}, {when}, {moment}"
            self.report.findings += [f"{where}: {s}" for s in (*sentences, *([failure] if failure else []))]

    def _recover(self, lake: Path, done: Round) -> str:
        """Run on a disk after the cut; return what is wrong, nothing if the lake is as if nothing had happened."""
        try:
            if done.run != COMMAND:
                list(mirror_all(self.url, lake, done.hours, fsync=False))  # quicker; this disk has had its cut
            else:
                self._run(done.run, lake, done.hours)
        except Exception as e:  # noqa: BLE001 - whatever it is, it is what is reported
            return f"did not recover: {type(e).__name__}: {e}"
        return differences(held(lake), done.after) or "".join(leftovers(lake)[:1])


def _check(lake: Path, done: Round, moment: int) -> tuple[Counter[str], list[str]]:
    """Return what is wrong on a disk after the cut, in figures and in words."""
    now = held(lake)
    lost = lost_files(now.contents, done.after.contents, done.promised(moment))
    false = false_receipts(now.contents)
    figures = Counter(lost=len(lost), unreadable=len(now.unreadable), false=len(false))
    kinds = (("lost", lost), ("unreadable", now.unreadable), ("complete without its files", false))
    return figures, [f"{kind}: {len(found)}, {found[0]} ..." for kind, found in kinds if found]
