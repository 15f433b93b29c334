"""*Terminate* in the UI: the run is canceled at once, without a retry, and keeps what is finished."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from nbia_pipeline.cli.run import run_main_job
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import Fault, pass_on
from nbia_pipeline_tests.helpers.processes import environment, leftovers

pytestmark = pytest.mark.slow

QIN = "QIN_Breast.v2"
REACHED_SECONDS = 240
STOPPED_SECONDS = 30

# What the worker of a run is, in the process that the launcher starts: each step in a process of its own.
WORKER = """
import dagster as dg
from nbia_pipeline.definitions import defs

def images():
    return defs().resolve_job_def("nbia_images")

if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        dg.execute_job(dg.reconstructable(images), instance, tags={"dagster/partition": "%s"})
"""


def test_a_run_that_is_terminated_is_canceled_and_keeps_what_is_finished(archive: TestArchive, tmp_path: Path) -> None:
    lake, home = Lake(str(tmp_path / "a lake")), tmp_path / "home"
    home.mkdir()
    (tmp_path / "worker.py").write_text(WORKER % QIN)
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        run_main_job(Settings(archive=archive.url, lake=lake.uri, collections=(QIN,), images=()), instance)
        archive.faults.inject("getImageWithMD5Hash", *[pass_on()] * 2)
        archive.faults.inject("getImageWithMD5Hash", Fault("stall", fraction=0.5), times=20)
        worker = subprocess.Popen(
            [sys.executable, "worker.py"],
            cwd=tmp_path,
            env=environment(tmp_path, NBIA_ARCHIVE=archive.url, NBIA_IMAGES="*"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        journal = tmp_path / "a lake" / ".staging" / "journal" / QIN
        deadline = time.monotonic() + REACHED_SECONDS
        while len(list(journal.glob("*.json"))) < 2:
            assert worker.poll() is None, worker.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)
        run = instance.get_runs(limit=1)[0]
        instance.report_run_canceling(run)
        worker.send_signal(signal.SIGINT)
        try:
            worker.communicate(timeout=STOPPED_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.communicate()
            raise
        ended = instance.get_run_by_id(run.run_id)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.CANCELED
        kinds = [e.dagster_event_type for e in instance.all_logs(run.run_id) if e.is_dagster_event]
        assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in kinds
    assert lake.read_table(IMAGE_SERIES, QIN)["Status"].to_pylist().count("complete") == 2
    assert [name for name in leftovers(tmp_path) if name != "failed"] == []
