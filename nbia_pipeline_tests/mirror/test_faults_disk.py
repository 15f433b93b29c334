"""A disk that is full, a lake that cannot be written, two runs in one lake: never half a series, and nothing lost."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.server.fault_injection import FaultedRequest
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline_tests.helpers import truth
from nbia_pipeline_tests.helpers.faults import custom
from nbia_pipeline_tests.helpers.mirrored_archive import DOWNLOADS, MirroredArchive

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MIRROR = [sys.executable, "-m", "nbia_pipeline_tests.helpers.mirror_once"]
HASHED = "getImageWithMD5Hash"
SLICES = 14

Remount = Callable[[str], None]


@pytest.fixture
def small_disk(site: MirroredArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remount]:
    """A file system in memory under the lake; gives what changes its options, like ``size=2m`` or ``ro``.

    A plan does not see how small it is, as if it were filled only afterwards.
    """
    monkeypatch.setattr(Lake, "free_bytes", lambda self: None)
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "nbia-test", disk], capture_output=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    site.folder = disk / "lake"

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("kilobytes", [60, 400, 1000, 1700, 2400, 2900])
@pytest.mark.disk("a full or read-only file system")
def test_a_full_disk_ends_the_run_and_more_room_completes_it(
    site: MirroredArchive, small_disk: Remount, kilobytes: int
) -> None:
    small_disk(f"size={kilobytes}k")
    with pytest.raises(LakeError, match="No space left"):
        site.run()
    site.expect_nothing_wrong()
    # It does not get better by trying.
    held = truth.contents(site.folder).files
    with pytest.raises(LakeError, match="No space left"):
        site.run()
    assert held.items() <= truth.contents(site.folder).files.items()
    site.expect_nothing_wrong()
    small_disk("size=64m")
    site.run()
    site.folder.with_name("undisturbed").mkdir()
    site.expect_true()


@pytest.mark.parametrize("kind", ["lost_file", "no_files"])
@pytest.mark.disk("a full or read-only file system")
def test_a_disk_that_is_full_while_a_series_is_mended(site: MirroredArchive, small_disk: Remount, kind: str) -> None:
    site.wrong(Fault(kind, HASHED))
    small_disk("size=1300k")
    with pytest.raises(LakeError, match="No space left"):
        site.run()
    site.expect_nothing_wrong()
    small_disk("size=64m")
    site.run()
    site.expect_true()


@pytest.mark.disk("a full or read-only file system")
def test_a_full_disk_keeps_the_old_version(site: MirroredArchive, small_disk: Remount) -> None:
    site.run()
    uid = site.uid(28)
    old = truth.contents(site.folder)
    site.control.replace(uid, hidden=False)
    used = sum(p.stat().st_blocks * 512 for p in Path(site.lake.uri).rglob("*") if p.is_file())
    small_disk(f"size={used // 1024 + 300}k")
    with pytest.raises(LakeError, match="No space left"):
        site.run()
    assert truth.contents(site.folder).files == old.files
    small_disk("size=64m")
    assert [r.wanted.SeriesInstanceUID for r in site.run()] == [uid]
    site.expect_true()


def test_a_file_that_grows_beyond_a_limit(site: MirroredArchive, store: str) -> None:
    """A limit of the process, as a quota is: small files pass, larger ones do not."""
    what_to_do = "check that you may write there" if store == "disk" else "make room there, or set TMPDIR"
    words = [*MIRROR, site.url, str(site.folder)]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    done = subprocess.run(words, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert os.strerror(errno.EFBIG) in done.stderr and what_to_do in done.stderr
    site.collections = tuple(sorted({c["Collection"] for c in site.control.series()} - {"Thorax-Trial (limited)"}))
    site.expect_nothing_wrong()
    assert subprocess.run(words, cwd=ROOT, timeout=60).returncode == 0
    site.expect_true()


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.disk("what a file is in the way of")
def test_something_in_the_way_of_a_verified_series(site: MirroredArchive, level: int) -> None:
    """The journal has the series already, but it cannot take its place: it must not count as there."""
    uid = site.uid(SLICES)
    path = next(row["Path"] for row in site.expected().instances.values() if row["SeriesInstanceUID"] == uid)
    in_the_way = (site.folder / path).parents[level]
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("in the way")
    with pytest.raises(LakeError, match="cannot publish images"):
        site.run()
    in_the_way.unlink()
    site.expect_nothing_wrong()
    assert uid not in truth.finished(site.folder, site.archive, site.collections)
    site.run()
    site.expect_true()


# --- read-only


@pytest.mark.disk("a full or read-only file system")
def test_a_lake_that_is_read_only_from_the_start(site: MirroredArchive, small_disk: Remount) -> None:
    small_disk("ro")
    with pytest.raises(LakeError, match="Read-only"):
        site.run()
    assert site.asked(HASHED) == 0 and not site.folder.exists()
    small_disk("rw")
    site.run()
    site.expect_true()


@pytest.mark.parametrize("after", [1, 12])
@pytest.mark.disk("a full or read-only file system")
def test_a_lake_that_becomes_read_only(site: MirroredArchive, small_disk: Remount, after: int) -> None:
    """What cannot be removed any more is swept by the next run: so the first is a process of its own."""
    site.collections = _all_public(site)
    asked = itertools.count()

    async def act(request: FaultedRequest) -> None:
        if next(asked) == after:
            await _until_it_works(lambda: small_disk("ro"))
        await request.pass_on()

    site.around.inject(HASHED, custom(act), times=50)
    done = subprocess.run([*MIRROR, site.url, str(site.folder)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert os.strerror(errno.EROFS) in done.stderr and "check that you may write there" in done.stderr
    small_disk("rw")
    truth.expect_whole_or_absent(site.folder, site.expected())
    assert len(truth.finished(site.folder, site.archive, site.collections)) <= after
    site.run()
    site.expect_true()


async def _until_it_works(remount: Callable[[], None]) -> None:
    """A disk becomes read-only only while no file is open for writing."""
    for _ in range(200):
        try:
            remount()
            return
        except subprocess.CalledProcessError:
            await asyncio.sleep(0.005)
    raise AssertionError("the disk is always busy")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write where permissions forbid it; a read-only mount stands in")
@pytest.mark.disk("permissions")
def test_a_lake_without_permission(site: MirroredArchive) -> None:
    site.folder.mkdir(mode=0o555)
    with pytest.raises(LakeError, match="Permission denied"):
        site.run()
    assert site.asked(HASHED) == 0 and list(site.folder.iterdir()) == []
    site.folder.chmod(0o755)
    site.run()
    site.expect_true()


@pytest.mark.disk("what a file is in the way of")
def test_a_lake_below_a_file(site: MirroredArchive, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    site.folder = tmp_path / "file" / "lake"
    with pytest.raises(LakeError, match="check that you may write there"):
        site.run()
    assert site.asked(HASHED) == 0


# --- two at once


def _all_public(site: MirroredArchive) -> tuple[str, ...]:
    return tuple(
        sorted({row["Collection"] for row in site.control.series()} - site.archive.holdings.catalog.restricted)
    )


def test_two_processes_at_once(site: MirroredArchive) -> None:
    site.collections = _all_public(site)
    words = [*MIRROR, site.url, str(site.folder)]
    runs = [subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(run.communicate(timeout=60)[1], run.returncode) for run in runs]
    assert ends == [("", 0), ("", 0)]
    asked = Counter(r.query["SeriesInstanceUID"] for r in site.around.seen if r.endpoint in DOWNLOADS)
    assert set(asked.values()) <= {1, 2}
    site.expect_true()


def test_two_threads_at_once_while_series_are_replaced_and_zips_are_short(site: MirroredArchive) -> None:
    site.run()
    for uid in site.expected().receipts:
        site.control.replace(uid, hidden=False)
    site.wrong(Fault("lost_file", HASHED, probability=0.3), Fault("missing_file", HASHED, probability=0.2), seed=4)
    problems: list[BaseException] = []

    def run() -> None:
        try:
            replace(site).run()
        except BaseException as e:  # noqa: BLE001 - told below
            problems.append(e)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    site.expect_true()
