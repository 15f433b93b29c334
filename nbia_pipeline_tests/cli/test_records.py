"""Dagster's records while a command runs: the same rows, in files that stay open."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.event_log.sqlite import sqlite_event_log as theirs_of_events

from nbia_pipeline.cli import records
from nbia_pipeline.cli.records import kept_open

sqlite_event_log: Any = theirs_of_events


@dg.op
def told(context: dg.OpExecutionContext) -> None:
    for number in range(5):
        context.log.info(f"line {number}")


@dg.job
def small() -> None:
    told()


def files_of(home: Path, ending: str) -> set[str]:
    return {file.name.removesuffix(ending) for file in (home / "history").rglob(f"*.db{ending}")}


def test_files_stay_open_and_engines_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    theirs = sqlite_event_log.create_engine

    def create_engine(address: str, **how: Any) -> Any:
        made.append(address.rpartition("/")[2])
        return theirs(address, **how)

    monkeypatch.setattr(sqlite_event_log, "create_engine", create_engine)
    monkeypatch.setattr(records, "KEPT", 3)
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        with kept_open():
            first, second = (small.execute_in_process(instance=instance).run_id for _ in range(2))
            assert files_of(tmp_path, "-wal") == {"runs.db", "index.db", f"{second}.db"}
            assert sorted(made[-3:]) == sorted(["index.db", f"{first}.db", f"{second}.db"])
        assert files_of(tmp_path, "-wal") == set()
        assert sqlite_event_log.create_engine is create_engine
        for run in (first, second):
            lines = [entry.user_message for entry in instance.all_logs(run) if not entry.dagster_event]
            assert lines == [f"line {number}" for number in range(5)]
        assert {run.run_id for run in instance.get_runs()} == {first, second}
