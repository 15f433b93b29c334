"""The directory of Dagster's records: what a new one has, and what becomes of one that an earlier version made."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._daemon.monitoring import execute_run_monitoring_iteration

from nbia_pipeline.cli import home
from nbia_pipeline.cli.home import DAGSTER_YAML, dagster_home
from nbia_pipeline.cli.main import main
from nbia_pipeline.defs.slots import FREE_AFTER_SECONDS, OWNER_TAG, owned
from nbia_pipeline.lake.lock import HOST

BEFORE_MONITORING = """\
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    default_limit: 4
"""
MONITORING = """\
run_monitoring:
  enabled: true
  start_timeout_seconds: 300
  cancel_timeout_seconds: 300
  free_slots_after_run_end_seconds: 60
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DAGSTER_HOME, which is not there yet."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def written(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "dagster.yaml").write_text(text)
    return folder / "dagster.yaml"


@dg.op
def nothing() -> None:
    pass


@dg.job
def small() -> None:
    nothing()


def test_a_new_home_bounds_the_pool_and_frees_the_slots_of_runs_that_ended(folder: Path) -> None:
    assert dagster_home() == folder
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] == FREE_AFTER_SECONDS
        assert instance.run_monitoring_max_runtime_seconds == 0, "a run may take days"
        assert instance.global_op_concurrency_default_limit == 4
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None and queue.max_concurrent_runs == 4


def test_monitoring_leaves_runs_alone_that_no_launcher_started(folder: Path) -> None:
    dagster_home()
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        run = instance.create_run_for_job(small, **owned(), status=dg.DagsterRunStatus.STARTED)
        daemon: Any = type("Daemon", (), {"instance": instance, "create_request_context": lambda self: None})()
        errors = list(execute_run_monitoring_iteration(daemon, logging.getLogger("daemon")))
        assert errors == [None]
        after = instance.get_run_by_id(run.run_id)
        assert after is not None and after.status is dg.DagsterRunStatus.STARTED


@pytest.mark.parametrize("text", [BEFORE_MONITORING, BEFORE_MONITORING + MONITORING], ids=["first", "second"])
def test_a_home_of_an_earlier_version_gets_the_present_text(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file = written(folder, text)
    dagster_home()
    assert file.read_text() == DAGSTER_YAML
    assert [p.name for p in folder.iterdir()] == ["dagster.yaml"]
    assert capsys.readouterr().err == ""


def test_a_home_that_somebody_changed_is_left_alone_and_what_is_missing_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = BEFORE_MONITORING.replace("4", "2")
    file = written(folder, changed)
    dagster_home()
    assert file.read_text() == changed
    err = capsys.readouterr().err
    assert err.startswith(f"nbia-pipeline: {file} has no run_monitoring: ") and err.count("\n") == 1
    file.write_text(f"{changed}run_monitoring: {{enabled: false}}\n")
    dagster_home()
    assert capsys.readouterr().err == ""


def test_a_home_that_cannot_be_changed_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(folder, BEFORE_MONITORING)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    dagster_home()
    assert file.read_text() == BEFORE_MONITORING
    assert "has no run_monitoring" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_home_without_a_readable_file_is_left_to_dagster(
    folder: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    if content is not None:
        (folder / "dagster.yaml").write_bytes(content)
    assert home.dagster_home() == folder
    assert capsys.readouterr().err == ""


def test_dev_records_killed_runs_as_failed_before_it_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dagster_home()
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        new = owned()
        new["tags"][OWNER_TAG] = f"{HOST}.999999999-1.{new['run_id']}"
        instance.create_run_for_job(small, **new, status=dg.DagsterRunStatus.STARTED)
        started: list[list[str]] = []
        monkeypatch.setattr("os.execv", lambda _, words: started.append(words))
        monkeypatch.setenv("PATH", os.environ["PATH"])  # it is changed
        monkeypatch.chdir(folder)
        assert main(["dev", "--port", "3001", "--json", "--host", "::1"]) == 0
        assert started[0][1:4] == ["-m", "dagster", "dev"]
        assert started[0][6:] == ["--log-format", "json", "--port", "3001", "--host", "::1"]
        after = instance.get_run_by_id(new["run_id"])
        assert after is not None and after.status is dg.DagsterRunStatus.FAILURE
