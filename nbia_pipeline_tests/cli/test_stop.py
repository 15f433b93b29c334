"""One SIGINT or SIGTERM stops a run, whatever it is waiting for: in processes of their own, with real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from filelock import FileLock

from nbia_pipeline.cli.home import DAGSTER_YAML
from nbia_pipeline.cli.run import run_main_job
from nbia_pipeline.cli.signals import ONE_REQUEST_SECONDS
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.lock import Lock
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import Fault, pass_on, silence
from nbia_pipeline_tests.helpers.processes import IN_ORDER, contents, environment, leftovers

pytestmark = pytest.mark.slow

QIN = "QIN_Breast.v2"
REACHED_SECONDS = 240
STOPPED_SECONDS = 15  # it is a matter of one or two; the machine may be busy
ONLY = {"NBIA_COLLECTIONS": QIN, "NBIA_IMAGES": "*"}

# The endpoint at which the archive falls silent, after so many true answers, and how.
SILENT: dict[str, tuple[str, int, Fault]] = {
    "a login": ("token", 0, silence()),
    "the list of collections": ("getCollectionValues", 0, silence()),
    "the descriptions": ("getCollectionDescriptions", 0, silence()),
    "the series": ("getSeries", 0, silence()),
    "metadata": ("getSeriesMetaData", 1, silence()),
    "a pause that the archive asks for": ("getSeriesMetaData", 0, Fault("status", status=503, retry_after="60")),
    "a zip": ("getImageWithMD5Hash", 2, silence()),
    "the second half of a zip": ("getImageWithMD5Hash", 1, Fault("stall", fraction=0.5)),
    "an image by itself": ("getSingleImage", 0, silence()),
    "the list of a series' images": ("getSOPInstanceUIDs", 0, silence()),
    "a digest, in a check": ("getMD5Hierarchy", 0, silence()),
}
# What is not asked where a zip proves that it is the whole series.
ONLY_OF_A_SHORT_ZIP = ("getSingleImage", "getSOPInstanceUIDs")


class Run:
    """A run in a process group of its own, which gets one signal, as from a terminal."""

    def __init__(self, folder: Path, url: str, *words: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nbia_pipeline", *(words or ("run",))],
            cwd=folder,
            env=environment(folder, NBIA_ARCHIVE=url, **ONLY),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + REACHED_SECONDS
        while not reached():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self, sent: signal.Signals, expected: str = IN_ORDER) -> str:
        """Send the signal, expect that the run ends soon and without a further word, and return what it printed."""
        os.killpg(self.process.pid, sent)
        try:
            out, err = self.process.communicate(timeout=STOPPED_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            raise
        assert self.process.returncode == 128 + sent
        assert err == expected
        return out


def stopped_at(moment: str, sent: signal.Signals, folder: Path, archive: TestArchive) -> str:
    endpoint, answers, fault = SILENT[moment]
    archive.faults.reset()
    archive.faults.inject(endpoint, *[pass_on()] * answers)
    archive.faults.inject(endpoint, fault, times=20)
    if endpoint in ONLY_OF_A_SHORT_ZIP:
        archive.faults.inject("getImageWithMD5Hash", Fault("lost_file"), times=20)
    run = Run(folder, archive.url)
    run.wait_until(lambda: archive.faults.count(endpoint) > answers)
    if endpoint == "getImageWithMD5Hash":  # what the true answers bring is to be finished
        journal = folder / "a lake" / ".staging" / "journal" / QIN
        run.wait_until(lambda: len(list(journal.glob("*.json"))) == answers)
    time.sleep(0.5)  # so that the others wait as well
    out = run.stop(sent)
    assert [name for name in leftovers(folder) if name != "failed"] == []
    assert "Stopped   interrupted" in out
    archive.faults.reset()
    return out


def main_job(lake: Path, url: str, home: Path) -> dict[str, int]:
    """Do what a run does, without signals, and return the figures of the images."""
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        settings = Settings(archive=url, lake=str(lake), collections=(QIN,), images=("*",), headers=())
        outcome = run_main_job(settings, instance)
    assert outcome.problems == []
    return dict(outcome.fetched)


def expect_undisturbed(folder: Path, archive: TestArchive) -> None:
    """Run to the end, and expect that only what was missing is fetched, and the lake of a run without trouble."""
    receipts = Lake(str(folder / "a lake")).read_table(IMAGE_SERIES, QIN)
    there = receipts["Status"].to_pylist().count("complete")
    archive.faults.reset()
    figures = main_job(folder / "a lake", archive.url, folder / "to the end")
    assert (figures["fetched_series"], figures["skipped_series"]) == (5 - there, there)
    assert archive.faults.count("getImageWithMD5Hash") == 5 - there
    assert leftovers(folder) == []
    other = folder / "other"
    main_job(other / "a lake", archive.url, folder / "undisturbed")
    assert contents(folder) == contents(other)


def test_a_run_ends_at_one_signal_and_the_next_one_goes_on(archive: TestArchive, tmp_path: Path) -> None:
    stopped_at("the series", signal.SIGINT, tmp_path, archive)
    out = stopped_at("the second half of a zip", signal.SIGTERM, tmp_path, archive)
    done = Lake(str(tmp_path / "a lake")).read_table(IMAGE_SERIES, QIN)["Status"].to_pylist().count("complete")
    assert f"Fetched   {done} series" in out
    assert done == 1
    assert "; 0 series were already in the lake" in out
    assert f"{done} of 5" in out
    assert f"Pending   {5 - done} series, for a later run." in out
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        last = instance.get_runs(limit=1)[0]
        assert (last.job_name, last.status) == ("nbia_images", dg.DagsterRunStatus.CANCELED)
        assert instance.event_log_storage.get_concurrency_info("nbia_api").active_slot_count == 0
    expect_undisturbed(tmp_path, archive)


def test_a_run_that_waits_for_a_place_in_the_pool_ends_at_a_signal(archive: TestArchive, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text(DAGSTER_YAML)
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        instance.event_log_storage.set_concurrency_slots("nbia_api", 0)

        def waits() -> bool:
            return bool(instance.event_log_storage.get_concurrency_info("nbia_api").pending_step_count)

        run = Run(tmp_path, archive.url)
        run.wait_until(waits)
        under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        run.stop(signal.SIGTERM if under_nohup else signal.SIGHUP)  # the terminal is gone
        assert not waits()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_before_anything_begins_a_signal_ends_the_process_with_one_word(tmp_path: Path, sent: signal.Signals) -> None:
    run = Run(tmp_path, "http://127.0.0.1:9/nbia-api")
    maps = Path(f"/proc/{run.process.pid}/maps")
    run.wait_until(lambda: "pydantic_core" in maps.read_text())
    assert run.stop(sent, "nbia-pipeline: interrupted\n") == ""
    assert not (tmp_path / "a lake").exists()


def test_sigterm_is_handled_after_a_job_of_dagster_where_sigint_is_ignored() -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
from dagster._utils.interrupts import capture_interrupts
from nbia_pipeline.cli.signals import STOP, handled
with handled(process_ends=True):
    STOP.begin()
    with capture_interrupts():
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    STOP.arm()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except KeyboardInterrupt:
        raise SystemExit(STOP.exit_code)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=STOPPED_SECONDS, check=False).returncode == 143


def test_a_second_signal_ends_a_process_that_does_not_end(tmp_path: Path) -> None:
    code = """
import time
from nbia_pipeline.cli.signals import STOP, handled
with handled(process_ends=True):
    STOP.begin()
    try:
        print("begun", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("once", flush=True)
        time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "once\n"
        time.sleep(ONE_REQUEST_SECONDS + 0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(STOPPED_SECONDS) == 143


def test_a_process_that_asks_itself_to_stop_ends_as_by_a_signal() -> None:
    code = """
import threading, time
from nbia_pipeline.cli.signals import STOP, handled
with handled(process_ends=True):
    STOP.begin()
    try:
        threading.Thread(target=STOP.request).start()
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(%s)
        STOP.request()
        time.sleep(0.5)
        print("in order")
        raise SystemExit(STOP.exit_code)
"""
    arguments = [sys.executable, "-c", code % (ONE_REQUEST_SECONDS + 0.2)]
    process = subprocess.run(arguments, timeout=STOPPED_SECONDS, stdout=subprocess.PIPE, check=False)
    assert (process.returncode, process.stdout) == (143, b"in order\n")


def test_a_command_ends_without_a_word_when_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    (tmp_path / "tables" / "series").mkdir(parents=True)  # a lake without files
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "nbia_pipeline", "prune", "--lake", str(tmp_path)],
        env=environment(tmp_path),
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (128 + signal.SIGPIPE, b"")


def test_every_moment(archive: TestArchive, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In the same lake one after the other, so that each begins where the last one was stopped."""
    if not request.config.getoption("--every-moment"):
        pytest.skip("takes minutes: make test-stop")
    for number, moment in enumerate(SILENT):
        stopped_at(moment, (signal.SIGINT, signal.SIGTERM)[number % 2], tmp_path, archive)
    lock = tmp_path / "a lake" / Lock.COLLECTION.path(QIN)
    with FileLock(lock):
        run = Run(tmp_path, archive.url)
        run.wait_until(lambda: archive.faults.count("getPatientStudy") > 0)
        time.sleep(10)
        run.stop(signal.SIGTERM, f"left to the next run: another process holds the lock {lock}\n{IN_ORDER}")
    expect_undisturbed(tmp_path, archive)
    archive.faults.reset()
    archive.faults.inject("getMD5Hierarchy", silence(), times=20)
    run = Run(tmp_path, archive.url, "verify", "--ask-archive")
    run.wait_until(lambda: archive.faults.count("getMD5Hierarchy") > 0)
    read = "nbia-pipeline: interrupted; what was read is recorded, and the next call with --for continues from there\n"
    run.stop(signal.SIGINT, read)
