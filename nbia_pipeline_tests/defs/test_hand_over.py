"""What the steps of a run hand to each other, and what is lost of it when processes are killed.

Dagster's re-execution from failure is known to leave out mapped steps after a kill (its issues 19490, 30077, 30248).
The kills here are real: of a run in a process group of its own, at the moments that these issues describe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nbia_pipeline.defs.hand_over import StepFiles
from nbia_pipeline.defs.jobs import RETRY_WHOLE, images_config
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline_tests.defs import test_images_asset
from nbia_pipeline_tests.defs.test_images_asset import (
    BREAST,
    MULTIPROCESS,
    ROOT,
    Mirror,
    kept,
    metadata,
    mirror,
    tables,
)

pytestmark = pytest.mark.slow

__all__ = ["kept", "mirror", "tables"]  # the fixtures

KILL = "NBIA_TEST_KILL"
ONE_AT_A_TIME: dict[str, Any] = {"multiprocess": {**MULTIPROCESS["multiprocess"], "max_concurrent": 1}}


def files_of(mirror: Mirror, run_id: str) -> dict[str, Any]:
    """Return what the steps of a run left in the lake, by path."""
    folder = Path(mirror.lake.uri, ".staging/runs", run_id)
    return {p.relative_to(folder).as_posix(): json.loads(p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("executor", [MULTIPROCESS], ids=["multiprocess"])
def test_steps_hand_over_json_in_the_lake_and_nothing_on_a_disk_of_dagster(
    kept: Mirror, executor: dict[str, Any], tmp_path: Path
) -> None:
    result = kept.run(executor, batch_series=3)
    assert result.success
    found = files_of(kept, result.run_id)
    assert set(found) == {
        "nbia__images.nbia_plan_images/found.b00000.json",
        "nbia__images.nbia_plan_images/found.b00001.json",
        "nbia__images.nbia_plan_images/summary.json",
        "nbia__images.nbia_fetch_images%5Bb00000%5D/result.json",
        "nbia__images.nbia_fetch_images%5Bb00001%5D/result.json",
    }
    reports = [value for path, value in found.items() if "fetch" in path]
    assert sum(r["fetched"] for r in reports) == 5
    assert {r["batch"]: r["digest"] for r in reports} == found["nbia__images.nbia_plan_images/summary.json"]["batches"]
    assert not [p for p in (tmp_path / "storage").rglob("*") if "images" in p.as_posix() and p.is_file()]


@pytest.mark.parametrize("content", [None, b"", b'[{"Serie'], ids=["gone", "empty", "half"])
def test_a_re_execution_whose_files_are_gone_says_what_to_do(mirror: Mirror, content: bytes | None) -> None:
    first = mirror.run(batch_series=3)
    (folder,) = Path(mirror.lake.uri, ".staging/runs").iterdir()
    plan = folder / "nbia__images.nbia_plan_images/summary.json"
    plan.unlink()
    if content is not None:
        plan.write_bytes(content)
    again = dg.execute_job(
        mirror.job,
        instance=mirror.instance,
        tags={"dagster/partition": BREAST},
        run_config={"execution": {"config": {"in_process": {}}}},
        reexecution_options=dg.ReexecutionOptions(first.run_id, ["nbia__images.nbia_finish_images"]),
    )
    assert not again.success
    (failed,) = [e.step_failure_data for e in again.all_events if e.is_step_failure]
    assert failed.user_failure_data is not None, failed.error
    said = str(failed.user_failure_data.description)
    assert said.startswith("the result of an earlier step is not in the lake (.staging/runs/")
    assert "Launch a new run" in said


# --- kills


def killed_job(archive: str, lake: str) -> dg.JobDefinition:
    """Return the job of a run that kills all its processes at the moment that the environment names."""
    moment = os.environ.get(KILL, "")
    if moment.startswith("process "):
        counted = Path(lake, "processes")
        with counted.open("a") as file:
            file.write(".")
        if counted.stat().st_size == int(moment.split()[1]):
            os.killpg(0, signal.SIGKILL)
    for name in ("handle_output", "load_input"):
        setattr(StepFiles, name, _killing(getattr(StepFiles, name), name, moment))
    return test_images_asset.images_job(archive, lake)


def _killing(method: Any, name: str, moment: str) -> Any:
    def call(self: StepFiles, context: Any, *values: Any) -> Any:
        output = context if name == "handle_output" else context.upstream_output
        if moment == f"{name} {'.'.join(output.get_identifier()[1:])}":
            os.killpg(0, signal.SIGKILL)
        return method(self, context, *values)

    return call


def main() -> None:
    """Execute a run that is killed; the arguments are the archive, the lake, and the configuration of the executor."""
    archive, lake, run_id, executor = sys.argv[1:]
    job = dg.build_reconstructable_job(
        __name__ if __name__ != "__main__" else "nbia_pipeline_tests.defs.test_hand_over",
        "killed_job",
        reconstructable_kwargs={"archive": archive, "lake": lake},
        reconstructor_working_directory=str(ROOT),
    )
    with dg.DagsterInstance.get() as instance:
        created = instance.create_run_for_job(
            job.get_definition(),
            run_id=run_id,
            tags={"dagster/partition": BREAST},
            run_config={
                "execution": {"config": json.loads(executor)},
                **images_config(Naming(), batch_series=2),
            },
            job_code_origin=job.get_python_origin(),
        )
        list(dg._core.execution.api.execute_run_iterator(job, created, instance))


MOMENTS = {
    "while the plan hands over its batches": "handle_output nbia__images.nbia_plan_images.found.b00001",
    "before the plan hands over its summary": "handle_output nbia__images.nbia_plan_images.summary",
    "before any batch (30248)": "load_input nbia__images.nbia_plan_images.found.b00000",
    "during a batch (19490)": "handle_output nbia__images.nbia_fetch_images[b00001].result",
    "between a batch and the last step": "load_input nbia__images.nbia_plan_images.summary",
    # The processes that load the job: of the run, of the plan, of the first batch, of the second.
    "before a worker begins (30077)": "process 4",
}


ALWAYS = ("before any batch (30248)", "during a batch (19490)", "before a worker begins (30077)")


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_the_last_step_fails_or_is_complete(
    request: pytest.FixtureRequest, kept: Mirror, tmp_path: Path, moment: str
) -> None:
    if moment not in ALWAYS and not request.config.getoption("--every-moment"):
        pytest.skip("it takes some seconds: make test-stop")
    kept.instance.add_dynamic_partitions("nbia_collections", [BREAST])
    run_id = "11111111-2222-3333-4444-555555555555"
    executor = ONE_AT_A_TIME if MOMENTS[moment].startswith("process") else {"in_process": {}}
    command = [sys.executable, "-m", __name__, kept.archive.url, kept.lake.uri, run_id, json.dumps(executor)]
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path), KILL: MOMENTS[moment]}
    ended = subprocess.run(command, env=environment, cwd=ROOT, start_new_session=True, capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    run = kept.instance.get_run_by_id(run_id)
    assert run is not None
    kept.instance.report_run_failed(run)

    again = dg.execute_job(
        kept.job,
        instance=kept.instance,
        tags={"dagster/partition": BREAST},
        run_config={"execution": {"config": {"in_process": {}}}},
        reexecution_options=dg.ReexecutionOptions.from_failure(run_id, kept.instance),
    )
    materialized = [e for e in again.all_events if e.is_step_materialization]
    if again.success and materialized:
        kept.expect_whole()
        assert metadata(again)["complete"] == 5
    else:
        assert not materialized
        third = kept.run()
        assert third.success
        assert metadata(third)["complete"] == 5
        kept.expect_whole()


def test_retries_by_the_daemon_plan_anew(mirror: Mirror) -> None:
    definitions = mirror.job.get_definition()
    assert RETRY_WHOLE.items() <= definitions.run_tags.items()


if __name__ == "__main__":
    main()
