"""The files of a deployment with Ray. Ray itself is not needed to read them: `make scale-out` runs it."""

from __future__ import annotations

import pytest
import yaml
from dagster._core.storage.compute_log_manager import ComputeLogManager

from nbia_pipeline_tests.deploy.cluster_files import code_location, instance_but_for_logs, job_of, missing_programs
from nbia_pipeline_tests.scale_out.cluster import DEPLOY, commands


def test_the_executor_submits_to_the_cluster_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    job, config = job_of("ray", monkeypatch, RAY_JOBS="http://10.0.0.1:8265")
    assert job.executor_def.name == "ray"
    assert config["ray"]["address"] == "http://10.0.0.1:8265"
    assert config["ray"]["num_cpus"] == 1  # without it, Ray begins every step on the head


def test_no_secret_is_handed_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    _, config = job_of("ray", monkeypatch)
    assert not config["ray"].get("env_vars")  # its dashboard shows them: the nodes have them from their environment
    assert not config["ray"].get("runtime_env")


def test_the_processes_find_the_code_server_and_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODE_SERVER", "code")
    host, port, name = code_location("ray")
    assert (host, name) == ("code", "nbia_pipeline")
    assert f"-p {port} " in commands("ray")["code"]
    assert "$RAY_HEAD:6379" in commands("ray")["node"]
    assert "--port 6379" in commands("ray")["head"]
    assert missing_programs("ray") <= {"ray"}


def test_the_instance_is_that_of_one_machine() -> None:
    found, logs = instance_but_for_logs("ray")
    assert found == yaml.safe_load((DEPLOY / "dagster.yaml").read_text())  # which a test opens on a PostgreSQL
    assert isinstance(logs, ComputeLogManager)
