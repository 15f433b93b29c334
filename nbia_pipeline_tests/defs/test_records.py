"""Dagster's records while a command runs: the same rows, in files that stay open."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution import compute_logs as theirs_of_output
from dagster._core.storage.event_log.sqlite import sqlite_event_log as theirs_of_events
from sqlalchemy import MetaData, event

from nbia_pipeline.defs import records
from nbia_pipeline.defs.records import kept_open

sqlite_event_log: Any = theirs_of_events
compute_logs: Any = theirs_of_output


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


def schema_of(file: Path) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        return [mode, *rows, *connection.execute("SELECT * FROM alembic_version")]


def test_the_tables_of_a_file_are_made_in_one_transaction(tmp_path: Path) -> None:
    made: list[bool] = []

    def note(_: MetaData, connection: Any, **how: Any) -> None:
        made.append(connection.connection.dbapi_connection.in_transaction)

    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        as_ever = small.execute_in_process(instance=instance).run_id
        event.listen(MetaData, "after_create", note)
        try:
            with kept_open():
                first, second = (small.execute_in_process(instance=instance).run_id for _ in range(2))
        finally:
            event.remove(MetaData, "after_create", note)
        assert made == [True, True]
        files = [next((tmp_path / "history").rglob(f"{run}.db")) for run in (as_ever, first, second)]
        assert schema_of(files[0])[0] == "wal"
        assert schema_of(files[1]) == schema_of(files[0])
        assert schema_of(files[2]) == schema_of(files[0])


def test_no_process_copies_what_steps_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        with monkeypatch.context() as patched, kept_open():
            patched.setattr(compute_logs.subprocess, "Popen", refuse)
            assert small.execute_in_process(instance=instance).success
        assert "a process was started" not in capfd.readouterr().err
        run = small.execute_in_process(instance=instance).run_id
        assert list(tmp_path.rglob(f"{run}/compute_logs/*.err"))
