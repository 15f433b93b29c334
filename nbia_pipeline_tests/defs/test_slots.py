"""Slots in the pool of an archive: those of dead runs are freed, those of others are not, and a wait is reported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.execution.plan.active import ActiveExecution

from nbia_pipeline.defs import executor, slots
from nbia_pipeline.defs.slots import LAUNCHED_TAG, OWNER_TAG, owned, release_dead_runs, watched
from nbia_pipeline.lake.lock import HOST, this_process
from nbia_pipeline_tests.helpers.processes import at_most
from nbia_pipeline_tests.helpers.ticker import MONDAY, Make

POOL = "nbia_api"
ELSEWHERE = "another-machine.1-2"


@dg.op(pool=POOL)
def call_archive() -> None:
    pass


@dg.job
def small() -> None:
    call_archive()


@pytest.fixture(scope="module")
def _one_slot() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test({"concurrency": {"pools": {"default_limit": 1}}}) as instance:
        instance.event_log_storage.initialize_concurrency_limit_to_default(POOL)
        yield instance


@pytest.fixture
def instance(_one_slot: dg.DagsterInstance) -> dg.DagsterInstance:
    """An instance without runs, whose pool has one slot."""
    for run in _one_slot.get_runs():
        _one_slot.delete_run(run.run_id)
    return _one_slot


@pytest.fixture
def dead() -> str:
    """The name of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return f"{HOST}.{process.pid}-1"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "POLL_SECONDS", 0.05)


def started(instance: dg.DagsterInstance, owner: str, *steps: str, **tags: str) -> str:
    """Make a run in progress of a process, whose steps asked for a slot each, and return its ID."""
    run_id = str(uuid.uuid4())
    all_tags = {**({OWNER_TAG: f"{owner}.{run_id}"} if owner else {}), **tags}
    instance.create_run_for_job(small, run_id=run_id, tags=all_tags, status=dg.DagsterRunStatus.STARTED)
    for step in steps:
        instance.event_log_storage.claim_concurrency_slot(POOL, run_id, step)
    return run_id


def release(instance: dg.DagsterInstance) -> list[str]:
    said: list[str] = []
    release_dead_runs(instance, POOL, said.append)
    return said


def status(instance: dg.DagsterInstance, run_id: str) -> str:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status.value


def in_pool(instance: dg.DagsterInstance) -> tuple[set[str], set[str]]:
    """Return which runs have slots, and which runs asked for one."""
    info = instance.event_log_storage.get_concurrency_info(POOL)
    return info.active_run_ids, {step.run_id for step in info.pending_steps}


def test_a_run_that_was_killed_is_recorded_as_failed_and_its_slots_are_free(
    instance: dg.DagsterInstance, dead: str
) -> None:
    run_id = started(instance, dead, "has a slot", "waits for one")
    said = release(instance)
    assert in_pool(instance) == (set(), set())
    assert status(instance, run_id) == "FAILURE"
    assert said == [
        "earlier runs that were killed are recorded as failed now, and the slots that they had in the pool nbia_api "
        f"are free: {run_id[:8]}"
    ]
    (failure,) = instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    assert failure.dagster_event and "The process of this run is gone" in str(failure.dagster_event.message)
    assert release(instance) == []


def test_a_run_that_was_killed_while_it_waited_waits_no_longer(instance: dg.DagsterInstance, dead: str) -> None:
    alive = started(instance, this_process(), "has a slot")
    run_id = started(instance, dead, "waits for one")
    assert in_pool(instance) == ({alive}, {alive, run_id})
    release(instance)
    assert in_pool(instance) == ({alive}, {alive})
    assert (status(instance, alive), status(instance, run_id)) == ("STARTED", "FAILURE")


def test_a_run_that_was_killed_before_it_took_the_slot_assigned_to_it_has_none(
    instance: dg.DagsterInstance, dead: str
) -> None:
    storage: Any = instance.event_log_storage
    run_id = started(instance, dead)
    storage.add_pending_step(POOL, run_id, "assigned", should_assign=True)
    assert not storage.has_unassigned_slots(POOL)
    release(instance)
    assert storage.has_unassigned_slots(POOL)


def test_a_run_that_was_killed_between_two_steps_is_recorded_as_failed(instance: dg.DagsterInstance, dead: str) -> None:
    run_id = started(instance, dead)
    assert len(release(instance)) == 1
    assert status(instance, run_id) == "FAILURE"


@pytest.mark.parametrize(
    "owner", [this_process(), f"{HOST}.{os.getppid()}", ELSEWHERE, ""], ids=["own", "live", "elsewhere", "unknown"]
)
def test_a_run_that_may_be_alive_is_left_alone(instance: dg.DagsterInstance, owner: str) -> None:
    run_id = started(instance, owner, "has a slot", "waits for one")
    assert release(instance) == []
    assert in_pool(instance) == ({run_id}, {run_id})
    assert status(instance, run_id) == "STARTED"


def test_a_copy_of_the_tag_of_a_dead_run_says_nothing_about_its_re_execution(
    instance: dg.DagsterInstance, dead: str
) -> None:
    run_id = started(instance, "", "has a slot", **{OWNER_TAG: f"{dead}.{uuid.uuid4()}"})
    assert release(instance) == []
    assert status(instance, run_id) == "STARTED"


@pytest.mark.parametrize(("owner", "seconds", "freed"), [(ELSEWHERE, 60, False), (ELSEWHERE, -1, True), ("", -1, True)])
def test_a_run_that_ended_keeps_its_slots_for_a_moment_only(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, owner: str, seconds: int, freed: bool
) -> None:
    monkeypatch.setattr(slots, "FREE_AFTER_SECONDS", seconds)
    run_id = started(instance, owner, "has a slot")
    instance.report_run_canceled(instance.get_run_by_id(run_id))  # type: ignore[arg-type]
    assert bool(release(instance)) == freed
    assert in_pool(instance)[0] == (set() if freed else {run_id})
    assert status(instance, run_id) == "CANCELED"


def test_a_run_that_ended_and_whose_process_is_dead_keeps_no_slot(instance: dg.DagsterInstance, dead: str) -> None:
    run_id = started(instance, dead, "has a slot")
    instance.report_run_canceled(instance.get_run_by_id(run_id))  # type: ignore[arg-type]
    release(instance)
    assert in_pool(instance) == (set(), set())
    assert status(instance, run_id) == "CANCELED"


@pytest.mark.parametrize("server_lives", [False, True])
@pytest.mark.parametrize("worker_lives", [False, True])
def test_a_run_that_dagster_launched_is_dead_if_its_code_server_and_its_process_are(
    instance: dg.DagsterInstance, dead: str, server_lives: bool, worker_lives: bool, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        if server_lives:
            server.listen()
        run_id = started(instance, "", "has a slot", **{LAUNCHED_TAG: f'{{"host": "localhost", "socket": "{path}"}}'})
        pid = os.getpid() if worker_lives else int(dead.split(".")[1].split("-")[0])
        instance.report_engine_event(
            "Started process for run", instance.get_run_by_id(run_id), EngineEventData.in_process(pid)
        )
        release(instance)
    lives = server_lives or worker_lives
    assert status(instance, run_id) == ("STARTED" if lives else "FAILURE")
    assert in_pool(instance)[0] == ({run_id} if lives else set())


def test_a_tick_releases_dead_runs_before_it_looks_for_runs_in_progress(make: Make, dead: str) -> None:
    ticker = make()
    run_id = started(ticker.instance, dead)
    ticker.tick("nbia_image_backlog", MONDAY)
    assert status(ticker.instance, run_id) == "FAILURE"


# --- a run that waits


def wait_behind(
    instance: dg.DagsterInstance, then: Callable[[], None], on_canceled: Callable[[str], object] = lambda run_id: None
) -> tuple[dg.ExecuteInProcessResult, list[str]]:
    """Run a job that has to wait, do something when that is reported; return the result and what was reported."""
    said: list[str] = []

    def report(sentence: str) -> None:
        said.append(sentence)
        if sentence.startswith("waiting"):
            then()

    with at_most(60), watched(instance, POOL, report, on_canceled):
        return small.execute_in_process(instance=instance, **owned()), said


def test_a_wait_names_pool_and_runs_and_ends_with_them(instance: dg.DagsterInstance) -> None:
    before = started(instance, ELSEWHERE, "has a slot")
    result, said = wait_behind(instance, lambda: instance.event_log_storage.free_concurrency_slots_for_run(before))
    assert result.success
    assert len(said) == 1
    assert f"waiting for one of the 1 slots of the pool nbia_api, which are taken by the runs {before[:8]} (" in said[0]
    assert f"(small, {ELSEWHERE}). It goes on as soon as one is free" in said[0]
    assert "dagster instance concurrency set nbia_api 2" in said[0]
    assert status(instance, before) == "STARTED"
    blocked = [e.message for e in result.all_events if "blocked by limit for pool nbia_api" in str(e.message)]
    assert blocked, "the UI shows nothing"


def test_a_run_that_waits_goes_on_when_the_one_before_it_is_killed(instance: dg.DagsterInstance) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        before = started(instance, f"{HOST}.{process.pid}", "has a slot")
        result, said = wait_behind(instance, process.kill)
    assert result.success
    assert [sentence.split(" ", 1)[0] for sentence in said] == ["waiting", "earlier"]
    assert status(instance, before) == "FAILURE"


def test_a_run_that_waits_goes_on_where_a_killed_one_freed_its_slot_and_assigned_it_to_nobody(
    instance: dg.DagsterInstance,
) -> None:
    storage: Any = instance.event_log_storage
    before = started(instance, ELSEWHERE, "has a slot")

    def free_without_assigning() -> None:
        storage._free_concurrency_slots(before)
        storage._remove_pending_steps(before)

    result, _ = wait_behind(instance, free_without_assigning)
    assert result.success


def test_a_pool_without_a_limit_is_never_waited_for() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        result, said = wait_behind(instance, lambda: None)
    assert result.success and said == []


def test_a_run_that_waits_pauses_between_two_looks(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look = ActiveExecution.get_next_step

    def counted(execution: ActiveExecution) -> Any:
        looks.append(time.monotonic())
        return look(execution)

    monkeypatch.setattr(ActiveExecution, "get_next_step", counted)
    before = started(instance, ELSEWHERE, "has a slot")
    wait_behind(instance, lambda: instance.event_log_storage.free_concurrency_slots_for_run(before))
    assert len(looks) <= 2 + (looks[-1] - looks[0]) / executor.PAUSE_SECONDS


def test_it_is_reported_that_a_run_of_this_process_was_canceled(instance: dg.DagsterInstance) -> None:
    before = started(instance, ELSEWHERE, "has a slot")
    canceled: list[str] = []

    def terminate() -> None:
        """Do what the UI does with runs that no code server launched."""
        for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
            instance.report_run_canceling(run)

    def on_canceled(run_id: str) -> None:
        canceled.append(run_id)
        instance.event_log_storage.free_concurrency_slots_for_run(before)

    result, _ = wait_behind(instance, terminate, on_canceled)
    assert set(canceled) == {result.run_id}
