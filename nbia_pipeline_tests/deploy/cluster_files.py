"""The files of a deployment on a cluster, as Dagster reads them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.system_config.objects import ResolvedRunConfig
from dagster._core.workspace.load import location_origins_from_yaml_paths

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.scale_out.cluster import DEPLOY, commands, settings


def job_of(kind: str, monkeypatch: pytest.MonkeyPatch, **secrets: str) -> tuple[dg.JobDefinition, Any]:
    """Return the job of images with the variables of a deployment, and the configuration of its executor."""
    for name, value in {**settings(kind), **secrets}.items():
        monkeypatch.setenv(name, value)
    job = build_definitions(Settings.from_env()).resolve_job_def(Naming().of("images"))
    return job, ResolvedRunConfig.build(job, {}).execution.execution_engine_config


def code_location(kind: str) -> tuple[str, int, str]:
    """Return host, port and name of the code server in the workspace of a deployment."""
    (origin,) = location_origins_from_yaml_paths([str(DEPLOY / kind / "workspace.yaml")])
    return origin.host, origin.port, origin.location_name  # type: ignore[attr-defined]


def missing_programs(kind: str) -> set[str]:
    """Return the programs of a Procfile that the environment of the tests lacks."""
    programs = {line.split()[1] for line in commands(kind).values() if line.split()[0] == "exec"}
    return {name for name in programs if not (Path(sys.executable).parent / name).exists()}


def instance_but_for_logs(kind: str) -> tuple[Any, Any]:
    """Return the instance of a deployment without what becomes of printed lines, and that, loaded."""
    found = yaml.safe_load((DEPLOY / kind / "dagster.yaml").read_text())
    logs = found.pop("compute_logs")
    return found, getattr(importlib.import_module(logs["module"]), logs["class"])()
