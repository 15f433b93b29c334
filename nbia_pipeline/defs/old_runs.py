"""Dagster's records of runs: which of them may go, and which run cannot be alive any more.

Dagster deletes ticks by itself (``retention`` in ``dagster.yaml``), runs never. To delete a run deletes its events, and
with them the materializations that say which partitions are there: a partition whose last materialization was in that
run counts as missing from then on. So the last run of each partition stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta

import dagster as dg
import grpc

from nbia_pipeline import clock
from nbia_pipeline.defs.slots import IN_PROGRESS, LAUNCHED_TAG

ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
READY_SECONDS = 300
_IDS_OF_A_QUERY = 500


def records() -> dg.DagsterInstance:
    """Return the instance of DAGSTER_HOME; a context manager closes it."""
    return dg.DagsterInstance.get()


def old_runs(instance: dg.DagsterInstance, days: int) -> tuple[list[str], int]:
    """Return the IDs of the runs that may be deleted, and how many are as old but stay.

    Args:
        instance: where Dagster keeps its records.
        days: how old a run must be.
    """
    before = clock.utc_now() - timedelta(days=days)
    old = {run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=ENDED, created_before=before))}
    kept = old & set(_last_runs(instance)) if old else set()
    return sorted(old - kept), len(kept)


def delete_runs(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    """Delete runs, their events, and the files of what their steps printed, which Dagster leaves."""
    for run_id in run_ids:
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])


def _last_runs(instance: dg.DagsterInstance) -> Iterator[str]:
    """Yield the run of the last materialization of each asset, and of each partition that has one."""
    for key in instance.all_asset_keys():
        if (last := instance.get_latest_materialization_event(key)) is not None:
            yield last.run_id
        newest = instance.event_log_storage.get_latest_storage_id_by_partition(
            key, dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        ids = sorted(newest.values())
        for start in range(0, len(ids), _IDS_OF_A_QUERY):
            some = ids[start : start + _IDS_OF_A_QUERY]
            found = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=key, storage_ids=some), limit=len(some)
            )
            yield from (record.run_id for record in found.records)


def lost_runs(instance: dg.DagsterInstance, server: str) -> list[str]:
    """Return the IDs of the runs in progress that a code server launched which is only now about to start.

    Its runs are processes of the same unit or container, so none of them is left. Nothing else ends such a run:
    Dagster's run monitoring cannot look after a run that a code server launched.

    Args:
        instance: where Dagster keeps its records.
        server: address of the code server as the workspace has it: the path of its socket, or host:port.
    """
    runs = instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS))
    return [run.run_id for run in runs if _server_of(run) == server]


def wait_for_server(server: str) -> bool:
    """Return whether a code server answers within some minutes; its address is the path of its socket, or host:port."""
    channel = grpc.insecure_channel(f"unix:{server}" if server.startswith("/") else server)
    try:
        grpc.channel_ready_future(channel).result(timeout=READY_SECONDS)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True


def fail_runs(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> list[str]:
    """Record runs as ended whose processes are gone; return those that were not already.

    The daemon repeats such a run at once, if ``run_retries`` says so, and only once: the code server must answer again.
    """
    runs = [run for run_id in run_ids if (run := instance.get_run_by_id(run_id)) and not run.is_finished]
    for run in runs:
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run)
        else:
            instance.report_run_failed(
                run,
                "The process of this run ended with its code server, which was restarted. What it had finished is in "
                "the lake.",
            )
    return [run.run_id for run in runs]


def _server_of(run: dg.DagsterRun) -> str:
    """Return the address of the code server that launched a run, "" for another run."""
    if LAUNCHED_TAG not in run.tags:
        return ""
    told = json.loads(run.tags[LAUNCHED_TAG])
    return str(told.get("socket") or f"{told['host']}:{told['port']}")
