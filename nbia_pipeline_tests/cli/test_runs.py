"""``nbia-pipeline runs``: which records of Dagster go, and which stay."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import grpc
import pytest

from nbia_pipeline.cli.main import main
from nbia_pipeline.defs.old_runs import lost_runs
from nbia_pipeline.defs.slots import LAUNCHED_TAG

PARTITIONS = dg.DynamicPartitionsDefinition(name="collections")
KEY = dg.AssetKey("table")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dg.asset(partitions_def=PARTITIONS)
def table() -> None:
    print("printed by a step")


@dg.asset
def catalog() -> None: ...


@contextmanager
def answering(path: str) -> Iterator[None]:
    """A gRPC server on a socket, as a code server is."""
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    yield
    server.stop(None).wait()


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\nrun_monitoring: {enabled: true}\n")
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("collections", ["A", "B"])
        yield instance


def materialize(records: dg.DagsterInstance, asset: dg.AssetsDefinition, partition: str | None = None) -> str:
    done = dg.materialize([asset], instance=records, partition_key=partition, run_config=QUIET)
    return done.run_id


def age(home: Path, *run_ids: str) -> None:
    """Let runs be a year older."""
    with sqlite3.connect(home / "history" / "runs.db") as opened:
        for run_id in run_ids:
            opened.execute(
                "UPDATE runs SET create_timestamp = datetime('now', '-365 days') WHERE run_id = ?", (run_id,)
            )


def test_old_runs_go_and_every_partition_keeps_its_last_one(
    records: dg.DagsterInstance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last_of_a, last_of_b = (materialize(records, table, name) for name in ("A", "A", "B"))
    old_catalog, new_catalog = materialize(records, catalog), materialize(records, catalog)
    age(tmp_path / "home", first, last_of_a, last_of_b, old_catalog)
    capsys.readouterr()

    assert main(["runs", "--delete-after", "30"]) == 1
    assert "add --yes" in capsys.readouterr().err
    assert len(records.get_runs()) == 5

    assert main(["runs", "--delete-after", "30", "--yes"]) == 0
    told = capsys.readouterr().out
    assert told == (
        "Older than 30 days: 2 runs; 2 more stay, because each is the last run of an asset or a partition.\nDeleted 2 "
        "runs.\n"
    )
    assert {run.run_id for run in records.get_runs()} == {last_of_a, last_of_b, new_catalog}
    assert records.get_materialized_partitions(KEY) == {"A", "B"}
    logs = {path.name for path in (tmp_path / "home" / "storage").iterdir()}
    assert {first, old_catalog} & logs == set()
    assert {last_of_a, last_of_b} <= logs

    assert main(["runs", "--delete-after", "30", "--yes"]) == 0
    assert capsys.readouterr().out.startswith("Older than 30 days: 0 runs; 2 more")


def test_without_the_rule_a_partition_would_count_as_missing(records: dg.DagsterInstance) -> None:
    """What Dagster does: the reason for the rule. Where this changes, the rule may go."""
    materialize(records, table, "A")
    records.delete_run(materialize(records, table, "B"))
    assert records.get_materialized_partitions(KEY) == {"A"}


def test_runs_that_a_code_server_lost_are_recorded_as_ended(
    records: dg.DagsterInstance, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    socket = str(tmp_path / "code.sock")
    server = {LAUNCHED_TAG: json.dumps({"host": "localhost", "socket": socket})}
    other = {LAUNCHED_TAG: json.dumps({"host": "elsewhere", "port": 4000})}
    run_ids = []
    for tags, status in (
        (server, dg.DagsterRunStatus.STARTED),
        (server, dg.DagsterRunStatus.CANCELING),
        (server, dg.DagsterRunStatus.SUCCESS),
        (other, dg.DagsterRunStatus.STARTED),
        ({}, dg.DagsterRunStatus.STARTED),
    ):
        run = dg.DagsterRun(job_name="job", tags=tags, status=status)
        records.add_run(run)
        run_ids.append(run.run_id)
    note = tmp_path / "lost"
    assert main(["runs", "--lost", socket, str(note)]) == 0
    assert set(note.read_text().split()) == set(run_ids[:2])
    assert lost_runs(records, "elsewhere:4000") == [run_ids[3]]
    with answering(socket):
        assert main(["runs", "--fail", socket, str(note)]) == 0
    found = [end.status.value for run_id in run_ids if (end := records.get_run_by_id(run_id))]
    assert found == ["FAILURE", "CANCELED", "SUCCESS", "STARTED", "STARTED"]
    assert "Recorded as failed" in capsys.readouterr().out


def test_nothing_is_recorded_while_the_server_does_not_answer(
    records: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nbia_pipeline.defs.old_runs.READY_SECONDS", 0.2)
    run = dg.DagsterRun(job_name="job", status=dg.DagsterRunStatus.STARTED)
    records.add_run(run)
    (tmp_path / "lost").write_text(f"{run.run_id}\n")
    assert main(["runs", "--fail", str(tmp_path / "none.sock"), str(tmp_path / "lost")]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert records.get_run_by_id(run.run_id) == run
