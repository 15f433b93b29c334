"""The slots that the runs of an archive have in its pool, and those that dead runs had.

Dagster frees the slot of a step when the step ends, which never happens where the process is killed: the run stays
"started" and keeps its slots. Its run monitoring cannot tell that a process is gone (the default run launcher has no
check for that), but frees the slots of runs that are recorded as ended. So a dead run has to be recorded as failed.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import dagster as dg

from nbia_pipeline import clock
from nbia_pipeline.defs.executor import pauses
from nbia_pipeline.defs.jobs import ARCHIVE_TAG
from nbia_pipeline.lake.errors import reason
from nbia_pipeline.lake.lock import HOST, is_dead, this_process
from nbia_pipeline.text import first_of, logger

log = logger(__name__)

OWNER_TAG = "nbia/owner"
"""Tag of a run that ``nbia-pipeline run`` executes: its process, and its ID, because a re-execution gets a copy."""
LAUNCHED_TAG = ".dagster/grpc_info"
"""Dagster's tag of a run that its default launcher started: the address of the code server."""
_SOCKET = re.compile('"socket": "([^"]+)"')

# Not those in the queue, which have no process yet.
IN_PROGRESS = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

FREE_AFTER_SECONDS = 60
"""After the end of a run: its process may need a moment to free its slots itself."""
POLL_SECONDS = 5.0
AGAIN_SECONDS = 300.0
SHOWN = 4

Report = Callable[[str], None]
"""Takes a sentence for the person who runs the command."""


def owned(tags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the ID and the tags of a new run of this process, as arguments of ``execute_in_process``."""
    run_id = str(uuid.uuid4())
    return {"run_id": run_id, "tags": {**(tags or {}), OWNER_TAG: f"{this_process()}.{run_id}"}}


def release_dead_runs(instance: dg.DagsterInstance, pool: str, report: Report) -> None:
    """Record the dead runs of this machine as failed, and free the slots of runs that ended; report which.

    A run that is in progress is left alone if its process is, or was, on another machine, or is unknown.

    Args:
        instance: where Dagster keeps runs and slots.
        pool: of the archive.
        report: called with one sentence, if there were any.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    info = storage.get_concurrency_info(pool)
    with_slots = {slot.run_id for slot in info.claimed_slots} | {step.run_id for step in info.pending_steps}
    ours = {run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS)) if _is_ours(run)}
    ended = [run_id for run_id in sorted(with_slots | ours) if _has_ended(instance, run_id)]
    for run_id in ended:
        storage.free_concurrency_slots_for_run(run_id)
    if ended:
        report(
            "earlier runs that were killed are recorded as failed now, and the slots that they had in the pool "
            f"{pool} are free: {first_of([_short(run_id) for run_id in ended], SHOWN)}"
        )


def release_in_home(pool: str, report: Report) -> None:
    """Release dead runs in the instance of DAGSTER_HOME; see :func:`release_dead_runs`."""
    with dg.DagsterInstance.get() as instance:
        release_dead_runs(instance, pool, report)


@contextmanager
def watched(
    instance: dg.DagsterInstance, pool: str, report: Report, on_canceled: Callable[[str], object]
) -> Iterator[None]:
    """Release dead runs now, and again while a step of this process waits for a slot; report what it waits for.

    Args:
        instance: where Dagster keeps runs and slots.
        pool: of the archive.
        report: called with sentences, also from another thread.
        on_canceled: called from another thread, with the ID of a run of this process that was canceled. *Terminate*
            in the UI does no more than record that: only runs that a code server launched are interrupted.
    """
    release_dead_runs(instance, pool, report)
    stop, began = threading.Event(), clock.utc_now()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            try:
                look()
                if run_id := _own_canceled(instance, began):
                    on_canceled(run_id)
            except Exception as e:  # noqa: BLE001 - the run goes on; what stays wrong, it meets itself
                log.warning("the slots of the pool %s cannot be read: %s", pool, reason(e))

    look = _watcher(instance, pool, report)
    thread = threading.Thread(target=watch, name="nbia-slots", daemon=True)
    thread.start()
    try:
        with pauses():
            yield
    finally:
        stop.set()
        thread.join()


def _watcher(instance: dg.DagsterInstance, pool: str, report: Report) -> Callable[[], None]:
    """Return a function that looks once whether steps of this process wait."""
    waited: set[tuple[str, str]] = set()
    reported = -AGAIN_SECONDS

    def look() -> None:
        nonlocal waited, reported
        waiting = _own_waiting_steps(instance, pool)
        if waiting:
            release_dead_runs(instance, pool, report)
            _assign(instance, pool)
        # Every step waits for a moment: it is one that waited at the last look too.
        if waiting & waited and time.monotonic() - reported >= AGAIN_SECONDS:
            report(_sentence(instance, pool))
            reported = time.monotonic()
        waited = waiting

    return look


def _has_ended(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Return whether a run has ended, after recording the end of one that is dead."""
    record = instance.get_run_record_by_id(run_id)
    if record is None:
        return True  # it was deleted
    run = record.dagster_run
    if run.is_finished:
        end = record.end_time or record.update_timestamp.timestamp()
        return is_dead(_owner(run)) or time.time() - end > FREE_AFTER_SECONDS
    if not (is_dead(_owner(run)) or _launched_here_and_dead(instance, run)):
        return False
    instance.report_run_failed(
        run,
        "The process of this run is gone: it was killed, or its machine was restarted. What it had finished is in the "
        "lake; a new run continues from there.",
    )
    return True


def _is_ours(run: dg.DagsterRun) -> bool:
    return bool(_owner(run)) or ARCHIVE_TAG in run.tags


def _owner(run: dg.DagsterRun) -> str:
    """Return the process that executes a run of ``nbia-pipeline run``, "" for another run, even with a copied tag."""
    owner = run.tags.get(OWNER_TAG, "")
    return owner.removesuffix(f".{run.run_id}") if owner.endswith(run.run_id) else ""


def _launched_here_and_dead(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Return whether the code server of this machine that launched a run is dead, and the processes of the run too.

    Nothing names the machine. But the socket of a server that was killed stays there, and refuses to connect.
    """
    found = _SOCKET.search(run.tags.get(LAUNCHED_TAG, ""))
    if not found or not _refuses(found[1]):
        return False
    entries = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    data = [entry.dagster_event.engine_event_data for entry in entries if entry.dagster_event]
    processes = {str(each.metadata["pid"].value) for each in data if "pid" in each.metadata}
    return bool(processes) and all(is_dead(f"{HOST}.{pid}") for pid in processes)


def _refuses(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(path)
        except OSError as e:
            return isinstance(e, ConnectionRefusedError)
    return False


def _own_canceled(instance: dg.DagsterInstance, began: datetime) -> str:
    """Return the ID of a run of this process that was canceled since a time (UTC), "" if there is none."""
    canceled = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED], created_after=began
    )
    return next((run.run_id for run in instance.get_runs(canceled) if _owner(run) == this_process()), "")


def _own_waiting_steps(instance: dg.DagsterInstance, pool: str) -> set[tuple[str, str]]:
    """Return which steps of runs of this process are waiting for a slot."""
    if not instance.event_log_storage.supports_global_concurrency_limits:
        return set()
    info = instance.event_log_storage.get_concurrency_info(pool)
    taken = {(slot.run_id, slot.step_key) for slot in info.claimed_slots}
    waiting = {(step.run_id, step.step_key) for step in info.pending_steps} - taken
    return {step for step in waiting if (run := instance.get_run_by_id(step[0])) and _owner(run) == this_process()}


def _assign(instance: dg.DagsterInstance, pool: str) -> None:
    """Assign a free slot to the next step that waits: a process that is killed while it frees one does not."""
    storage: Any = instance.event_log_storage  # only storages in SQL have this method
    info = storage.get_concurrency_info(pool)
    if info.assigned_step_count < info.slot_count and hasattr(storage, "assign_pending_steps"):
        storage.assign_pending_steps([pool])


def _sentence(instance: dg.DagsterInstance, pool: str) -> str:
    info = instance.event_log_storage.get_concurrency_info(pool)
    runs = [run for run_id in sorted(info.active_run_ids) if (run := instance.get_run_by_id(run_id))]
    taken = [f"{_short(r.run_id)} ({r.job_name}, {_owner(r) or 'process unknown'})" for r in runs]
    return (
        f"waiting for one of the {info.slot_count} slots of the pool {pool}, which are taken by the runs "
        f"{first_of(taken, SHOWN)}. It goes on as soon as one is free. If one of these runs is not running any more, "
        "terminate it in the UI (nbia-pipeline dev, Runs). For more slots: "
        f"DAGSTER_HOME='{os.environ.get('DAGSTER_HOME', '')}' dagster instance concurrency set {pool} "
        f"{info.slot_count * 2 or 4}"
    )


def _short(run_id: str) -> str:
    return run_id[:8]  # as the UI shows it
