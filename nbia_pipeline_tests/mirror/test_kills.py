"""A run that is killed at any moment, fifty times, and begun again: nothing is lost, nothing is fetched twice.

Half of the kills come from outside, when the archive has seen so many requests and a moment more; half come just
before a change of the disk: a directory made or moved, an entry of the journal written or removed, a lock, a table.
The moments follow from a seed; which thread is where at that moment does not.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline_tests.helpers import truth
from nbia_pipeline_tests.helpers.mirrored_archive import DOWNLOADS, MirroredArchive, mirrored_archive
from nbia_pipeline_tests.helpers.places import Place

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MIRROR = [sys.executable, "-m", "nbia_pipeline_tests.helpers.mirror_once"]
KILLED = -signal.SIGKILL
SERIES = 39

COUNTED: dict[str, tuple[int, int, int]] = {}

ROUNDS = 5
ALWAYS = 1
"""So many of the rounds are in every test run; the others are in `make test-stop`."""
KILLS = 10  # of each round, on a disk
KILLS_ON_A_STORE = 3  # where each run takes seconds
KILLS_OF_REPLACING = 8


@dataclass
class Runs:
    """Runs over the demo archive, each in a process of its own.

    Attributes:
        site: the archive and the lake.
        requests: of an undisturbed run.
        changes: of the disk by an undisturbed run.
        records: those of them that are of tables or journal.
    """

    site: MirroredArchive
    requests: int = 0
    changes: int = 0
    records: int = 0

    def finished(self) -> set[str]:
        """Return the series that need no fetch any more."""
        return truth.finished(self.site.folder, self.site.archive, self.site.collections)

    def until(self, requests: int, seconds: float) -> bool:
        """Run until the archive saw so many requests and some time passed; tell whether it was killed then."""
        before, seen = self.finished(), len(self.site.around.seen)
        run = self._start()
        while run.poll() is None and len(self.site.around.seen) < seen + requests:
            time.sleep(0.0005)
        time.sleep(seconds)
        run.kill()
        return self._was_killed(run, before, seen)

    def up_to_change(self, number: int) -> bool:
        """Run until just before a change of the disk; tell whether it was killed then."""
        return self._died(str(number))

    def up_to_record(self, number: int) -> bool:
        """Run until just before a change of tables or journal; tell whether it was killed then."""
        return self._died(f"record:{number}")

    def _died(self, at: str) -> bool:
        before, seen = self.finished(), len(self.site.around.seen)
        return self._was_killed(self._start(at), before, seen)

    def counted(self) -> tuple[int, int, int]:
        """Run to the end, and return how many requests there were, changes of the disk, and of tables or journal.

        Tables and images are moved into place, never written there: a kill within a write would be seen.
        """
        seen = len(self.site.around.seen)
        run = self._start("0")
        said, bad_request = run.communicate(timeout=60)
        assert run.returncode == 0, bad_request
        changes, records, *in_place = said.splitlines()
        assert in_place == []
        return len(self.site.around.seen) - seen, int(changes), int(records)

    def _start(self, *words: str) -> subprocess.Popen[str]:
        command = [*MIRROR, self.site.url, str(self.site.folder), *words]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _was_killed(self, run: subprocess.Popen[str], before: set[str], seen: int) -> bool:
        bad_request = run.communicate(timeout=60)[1]
        assert run.returncode in (0, KILLED), bad_request
        asked = {r.query["SeriesInstanceUID"] for r in self.site.around.seen[seen:] if r.endpoint in DOWNLOADS}
        assert not asked & before, "what was complete is fetched again"
        assert before <= self.finished(), "what was complete is lost"
        return run.returncode == KILLED


@pytest.fixture(scope="module")
def whole(demo: Catalog) -> Iterator[MirroredArchive]:
    """The archive, of which all that is public is mirrored."""
    with mirrored_archive(demo, Path("nowhere")) as site:
        site.collections = tuple(sorted({row["Collection"] for row in site.control.series()} - demo.restricted))
        yield site


@pytest.fixture
def counted(whole: MirroredArchive, place: Place, store: str) -> tuple[int, int, int]:
    """How much an undisturbed run over all of it asks and writes."""
    if store not in COUNTED:
        whole.folder = place / "counted"
        COUNTED[store] = Runs(whole).counted()
        assert truth.contents(whole.folder) == whole.expected()
        assert len(whole.expected().receipts) == SERIES
    return COUNTED[store]


@pytest.fixture
def runs(whole: MirroredArchive, counted: tuple[int, int, int], place: Place) -> Iterator[Runs]:
    whole.around.reset()
    whole.folder = place / "lake-0"
    yield Runs(whole, *counted)
    whole.control.reset()


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_run_killed_again_and_again_comes_out_as_if_nothing_had_happened(
    runs: Runs, seed: int, request: pytest.FixtureRequest
) -> None:
    if seed >= ALWAYS and not request.config.getoption("--every-moment"):
        pytest.skip("takes a quarter of a minute: make test-stop")
    chance = random.Random(seed)
    folder, kills = runs.site.folder, 0
    while kills < (KILLS if isinstance(folder, Path) else KILLS_ON_A_STORE):
        sort = kills % 4
        if sort == 0:
            killed = runs.up_to_change(chance.randint(1, runs.changes // 2))
        elif sort == 2:
            killed = runs.up_to_record(chance.randint(1, runs.records // 2))
        else:
            # At the last request tables are still to be written; hence the time.
            seconds = chance.choice([0.0, chance.uniform(0, 0.05)])
            killed = runs.until(chance.randint(1, runs.requests // 2), seconds)
        kills += killed
        truth.expect_whole_or_absent(runs.site.folder, runs.site.expected())
        if not killed:
            runs.site.expect_true()
            runs.site.folder = folder.with_name(f"{folder.name}-after-{kills}")
    runs.site.run()
    runs.site.expect_true()


def test_a_run_killed_while_it_replaces_a_series_leaves_the_old_or_the_new_one(runs: Runs) -> None:
    site, chance = replace(runs.site, collections=("QIN_Breast.v2",)), random.Random(7)
    runs, uid = replace(runs, site=site), site.uid(14)
    others = [row for row in site.control.series() if row["Collection"] not in site.collections]
    site.control.hide([row["SeriesInstanceUID"] for row in others])
    site.run()
    _, idle, _ = runs.counted()
    site.control.replace(uid, hidden=False)
    _, changes, _ = runs.counted()
    for number in range(KILLS_OF_REPLACING if isinstance(site.folder, Path) else KILLS_ON_A_STORE):
        old = site.expected()
        site.control.replace(uid, hidden=False, slices=14 - number % 2)
        new = site.expected()
        # Around the end of the download, where directories move.
        assert runs.up_to_change(chance.randint(idle // 2, changes))
        held = _of(truth.contents(site.folder).files, uid)
        if isinstance(site.folder, Path):
            assert held in (_of(old.files, uid), _of(new.files, uid), {})
        elif uid in truth.finished(site.folder, site.archive, site.collections):  # files are replaced one by one
            assert held == _of(new.files, uid)
        site.run()
        site.expect_true()


def _of(files: dict[str, str], uid: str) -> dict[str, str]:
    return {path: digest for path, digest in files.items() if f"/{uid}/" in path}
