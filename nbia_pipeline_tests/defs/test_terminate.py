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

# What the worker of a run is, in the process that the launcher starts.
WORKER = """
import sys

import dagster as dg
from nbia_pipeline.definitions import defs

def images():
    return defs().resolve_job_def("nbia_images")

def mirror():
    return defs().resolve_job_def("nbia_mirror")

if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        partition = {"dagster/partition": "%s"} if sys.argv[1] == "images" else {}
        dg.execute_job(dg.reconstructable(globals()[sys.argv[1]]), instance, tags=partition)
"""


STEPS_IN_PROCESSES, MAIN_JOB = ("images", "multiprocess", "nbia_images"), ("mirror", "in_process", "nbia_mirror")


@pytest.mark.parametrize(
    ("job", "executor", "terminated"),
    [
        STEPS_IN_PROCESSES,
        ("images", "in_process", "nbia_images"),
        MAIN_JOB,
        ("mirror", "in_process", "nbia_images"),
    ],
    ids=["steps-in-processes", "steps-in-the-process-of-the-run", "main-job", "part-of-the-main-job"],
)
def test_a_run_that_is_terminated_is_canceled_and_keeps_what_is_finished(
    archive: TestArchive, tmp_path: Path, request: pytest.FixtureRequest, job: str, executor: str, terminated: str
) -> None:
    always = (job, executor, terminated) in (STEPS_IN_PROCESSES, MAIN_JOB)
    if not always and not request.config.getoption("--every-moment"):
        pytest.skip("takes a quarter of a minute: make test-stop")
    lake, home = Lake(str(tmp_path / "a lake")), tmp_path / "home"
    home.mkdir()
    (tmp_path / "worker.py").write_text(WORKER % QIN)
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        if job == "images":
            run_main_job(Settings(archive=archive.url, lake=lake.uri, collections=(QIN,), images=()), instance)
        archive.faults.inject("getImageWithMD5Hash", *[pass_on()] * 2)
        archive.faults.inject("getImageWithMD5Hash", Fault("stall", fraction=0.5), times=20)
        variables = {"NBIA_COLLECTIONS": QIN, "NBIA_IMAGES": "*", "NBIA_EXECUTOR": executor}
        worker = subprocess.Popen(
            [sys.executable, "worker.py", job],
            cwd=tmp_path,
            env=environment(tmp_path, NBIA_ARCHIVE=archive.url, **variables),
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
        run = instance.get_runs(dg.RunsFilter(job_name=terminated), limit=1)[0]
        instance.report_run_canceling(run)
        if terminated == f"nbia_{job}":  # else no code server knows the run, and there is no signal
            worker.send_signal(signal.SIGINT)
        try:
            worker.communicate(timeout=STOPPED_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.communicate()
            raise
        ended = {r.job_name: r.status for r in instance.get_runs() if not r.is_success}
        assert ended == dict.fromkeys({f"nbia_{job}", "nbia_images"}, dg.DagsterRunStatus.CANCELED)
        kinds = [e.dagster_event_type for e in instance.all_logs(run.run_id) if e.is_dagster_event]
        assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in kinds
        assert instance.event_log_storage.get_concurrency_info("nbia_api").active_slot_count == 0
    assert lake.read_table(IMAGE_SERIES, QIN)["Status"].to_pylist().count("complete") == 2
    assert [name for name in leftovers(tmp_path) if name != "failed"] == []
