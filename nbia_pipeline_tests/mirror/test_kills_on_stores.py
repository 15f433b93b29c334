"""Runs into an object store that are killed at a moment that has a name, and two that write at the same time."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from nbia_pipeline_tests.helpers import truth
from nbia_pipeline_tests.helpers.mirrored_archive import BREAST, DOWNLOADS, MirroredArchive

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 60  # a guard: a run that waits for nothing takes a few

MOMENTS = {
    "in the middle of an upload": "put_object images/:30",
    "between an upload and its entry": "put_object journal/:3",
    "before the first table, with the lock of the collection": "put_object tables/instances/:1",
    "between the tables": "put_object tables/image_series/:2",
    "before the journal is emptied": "delete journal/:1",
    "while it takes a lock": "put_object locks/:6",
    "while it gives one back": "delete locks/:3",
}


def started(site: MirroredArchive, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nbia_pipeline_tests.helpers.mirror_once", site.url, str(site.folder), *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(run: subprocess.Popen[str]) -> tuple[int, str]:
    said = run.communicate(timeout=MOST_SECONDS)[1]
    return run.returncode, said


def expect_that_the_next_run_goes_on(site: MirroredArchive, die_at: str) -> None:
    assert ended(started(site, die_at, *site.collections)) == (-signal.SIGKILL, "")
    truth.expect_whole_or_absent(site.folder, site.expected())
    done = truth.finished(site.folder, site.archive, site.collections)
    before = len(site.around.seen)
    assert ended(started(site, "never", *site.collections)) == (0, "")
    again = {r.query["SeriesInstanceUID"] for r in site.around.seen[before:] if r.endpoint in DOWNLOADS}
    assert not again & done, "what was complete is fetched again"
    site.expect_true()


@pytest.mark.stores("seaweedfs")
@pytest.mark.not_on_disk
def test_a_run_that_is_killed_between_an_upload_and_its_entry_is_gone_on_with(site: MirroredArchive) -> None:
    expect_that_the_next_run_goes_on(site, MOMENTS["between an upload and its entry"])


@pytest.mark.not_on_disk
@pytest.mark.parametrize("die_at", MOMENTS.values(), ids=MOMENTS)
def test_a_run_that_is_killed_at_any_moment_is_gone_on_with(site: MirroredArchive, die_at: str) -> None:
    expect_that_the_next_run_goes_on(site, die_at)


@pytest.mark.stores("seaweedfs")
def test_two_processes_mirror_one_collection(site: MirroredArchive) -> None:
    runs = [started(site, "never", BREAST) for _ in range(2)]
    assert [ended(run) for run in runs] == [(0, ""), (0, "")]
    asked = Counter(r.query["SeriesInstanceUID"] for r in site.around.seen if r.endpoint in DOWNLOADS)
    assert set(asked.values()) <= {1, 2}
    site.expect_true()


def test_two_processes_mirror_two_collections(site: MirroredArchive) -> None:
    site.collections = (BREAST, "Lung Phantom CT")
    runs = [started(site, "never", name) for name in site.collections]
    assert [ended(run) for run in runs] == [(0, ""), (0, "")]
    asked = Counter(r.query["SeriesInstanceUID"] for r in site.around.seen if r.endpoint in DOWNLOADS)
    assert set(asked.values()) == {1}
    site.expect_true()
