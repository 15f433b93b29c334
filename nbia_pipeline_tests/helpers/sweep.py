"""Let the disk fail at every operation of every scenario, one after the other, and look at the lake each time.

For all of it, in as many processes as there are processors, with a table at the end::

    python -m nbia_pipeline_tests.helpers.sweep [--every N] [SCENARIO ...]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline_tests.helpers import failing_disk
from nbia_pipeline_tests.helpers.agreement import disagreements, everything, unexpected
from nbia_pipeline_tests.helpers.archives import serving
from nbia_pipeline_tests.helpers.failing_disk import KINDS
from nbia_pipeline_tests.helpers.failing_runs import BROKEN, DONE, KILLED, REFUSED, End, Forker, Run
from nbia_pipeline_tests.helpers.scenarios import SCENARIOS, Scenario
from nbia_pipeline_tests.helpers.small_archive import AFTER, BEFORE, small_catalog

_OURS = re.compile(
    r"cannot [^\n]+ in the lake [^\n]+ \((?P<reason>[^()\n]+)\): check that you may write there and that "
    r"there is room"
)


@dataclass
class Sweep:
    """Two archives, before and after everything happened, and what makes runs on a failing disk.

    Attributes:
        before: address of the archive before.
        after: address of the archive after.
        forker: makes the runs.
        folder: for the lakes.
        logs: sort and text of the operations of an undisturbed run, by scenario.
        failures: how often an operation did fail.
        bases: lake with which a scenario begins, what is wrong with it, and what the undisturbed one has, by scenario.
    """

    before: str
    after: str
    forker: Forker
    folder: Path
    logs: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    failures: int = 0
    bases: dict[str, tuple[Path, set[str], dict[str, object]]] = field(default_factory=dict)

    def operations(self, name: str, kind: str) -> list[str]:
        """Return the operations of an undisturbed run that can fail in some way, in order: name and path."""
        if name not in self.logs:
            lake, log = self._fresh(name, "counted"), self.folder / "log"
            end = self._run(SCENARIOS[name], lake, log=str(log))
            assert end.how == DONE, end
            self.logs[name] = [
                (int(sort), text) for sort, _, text in (line.partition(" ") for line in log.read_text().splitlines())
            ]
        return [text for sort, text in self.logs[name] if sort & KINDS[kind].sorts]

    def attempt(self, name: str, kind: str, number: int) -> list[str]:
        """Let an operation of a scenario fail, and return what is wrong then, or after one more run."""
        scenario, (_, wrong_before, expected) = SCENARIOS[name], self._base(name)
        lake = self._fresh(name, "tried")
        end = self._run(scenario, lake, kind=kind, number=number)
        self.failures += end.reached
        wrong = [*_wrong_with_end(end, kind), *(disagreements(lake) - wrong_before)]
        wrong += [f"left behind: {path}" for path in unexpected(lake, between_runs=KINDS[kind].removes)]
        if end.how == DONE:
            wrong += [f"said to be done: {text}" for text in _differences(everything(lake), expected)]
        wrong += [f"the next run: {end}" for end in self._again(scenario, lake) if end != End(DONE)]
        wrong += [f"after the next run: {text}" for text in _differences(everything(lake), expected)]
        wrong += [f"after the next run: {text}" for text in disagreements(lake)]
        return wrong + [f"left behind by the next run: {path}" for path in unexpected(lake, between_runs=True)]

    def _run(self, scenario: Scenario, lake: Path, **words: Any) -> End:
        return self.forker.run(Run(scenario.step.__name__, self.after, str(lake), scenario.hours, **words))

    def _again(self, scenario: Scenario, lake: Path) -> list[End]:
        """Do what is done after a failure; return how that ended."""
        runs = [Run(step.__name__, self.after, str(lake), scenario.hours + 1) for step in scenario.again]
        return [self.forker.run(run) for run in runs]

    def _base(self, name: str) -> tuple[Path, set[str], dict[str, object]]:
        if name not in self.bases:
            scenario, lake = SCENARIOS[name], self.folder / f"base-{len(self.bases)}" / "lake"
            lake.parent.mkdir()
            for step, changed, hours in scenario.base:
                end = self.forker.run(Run(step.__name__, self.after if changed else self.before, str(lake), hours))
                assert end == End(DONE)
            undisturbed = self.folder / "undisturbed"
            _copy(lake, undisturbed)
            ends = [self._run(scenario, undisturbed), *self._again(scenario, undisturbed)]
            assert set(ends) == {End(DONE)}, ends
            assert not disagreements(undisturbed) and not unexpected(undisturbed, between_runs=True)
            self.bases[name] = lake, disagreements(lake), everything(undisturbed)
        return self.bases[name]

    def _fresh(self, name: str, copy: str) -> Path:
        base, lake = self._base(name)[0], self.folder / copy
        _copy(base, lake)
        return lake


@contextmanager
def sweeping(folder: Path) -> Iterator[Sweep]:
    """Serve both archives, and prepare the process that makes the runs; all of it below a folder."""
    with ExitStack() as stack:
        before, after = (stack.enter_context(serving(create_app(small_catalog(s)))) for s in (BEFORE, AFTER))
        forker = stack.enter_context(Forker(failing_disk.build(folder)))
        yield Sweep(before, after, forker, folder)


def _copy(lake: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    if lake.exists():
        shutil.copytree(lake, to)


def _wrong_with_end(end: End, kind: str) -> Iterator[str]:
    """Say what is wrong with how a run ended that a disk made fail."""
    if end.how == BROKEN or (end.how == KILLED and KINDS[kind].error):
        yield f"it ended with {end.how}: {end.text}"
    if end.how == DONE and end.failed:
        yield f"the disk failed, but it is taken for a failure of the archive: {end.failed}"
    if end.how == REFUSED:
        ours = _OURS.fullmatch(end.text)
        if not ours or KINDS[kind].words not in ours["reason"]:
            yield f"it does not say what is the matter: {end.text}"


def _differences(lake: dict[str, object], expected: dict[str, object]) -> Iterator[str]:
    for name in sorted({*lake, *expected}):
        if lake.get(name) != expected.get(name):
            yield f"{name} is {lake.get(name)}, not {expected.get(name)}"


# --- all of it


def _part(name: str, first: int, every: int) -> Counter[tuple[str, str]]:
    """Let every so many-th operation of a scenario fail, print what is wrong, and return how many were of each kind."""
    counts: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder, sweeping(Path(folder)) as sweep:
        for kind in KINDS:
            operations = sweep.operations(name, kind)
            for number in range(first, len(operations) + 1, every):
                before = sweep.failures
                wrong = sweep.attempt(name, kind, number)
                counts["failed", kind] += sweep.failures - before
                counts["survived", kind] += sweep.failures - before and not wrong
                if wrong:
                    where = f"{name}, {kind} at {number}: {operations[number - 1]}"
                    print("\n    ".join([where, *wrong]), flush=True)
    return counts


def main() -> int:
    """Sweep; print what is wrong, and a line for each scenario and kind; return 1 if anything was."""
    parser = argparse.ArgumentParser(description="Let the disk fail at every operation.")
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], help="which ones (default: all)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only at every N-th operation")
    options = parser.parse_args()
    parts = os.cpu_count() or 1
    bad = 0
    with ProcessPoolExecutor(parts) as pool:
        for name in options.scenarios or SCENARIOS:
            futures = [
                pool.submit(_part, name, 1 + part * options.every, parts * options.every) for part in range(parts)
            ]
            counts = sum((future.result() for future in futures), Counter[tuple[str, str]]())
            for kind in KINDS:
                failed, survived = counts["failed", kind], counts["survived", kind]
                bad += failed - survived
                print(f"{name:<40}{kind:<26}{failed:>6,} failed {survived:>6,} survived", flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
