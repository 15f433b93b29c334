"""deploy/compose and the other files of deploy/, read as the programs read them. No Docker engine ran them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from nbia_pipeline.defs.executor import executor_of
from nbia_pipeline.settings import VARIABLES, Settings
from nbia_pipeline_tests.helpers.units import DEPLOY, UNITS, setting, settings, variables

COMPOSE = DEPLOY / "compose" / "compose.yaml"
UNIT_OF = {"code": "nbia-code.service", "daemon": "nbia-daemon.service", "webserver": "nbia-webserver.service"}
DOCKERFILE = DEPLOY / "kubernetes" / "Dockerfile"


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


@pytest.mark.parametrize("service", UNIT_OF)
def test_a_service_runs_the_command_of_the_unit(service: str) -> None:
    """The unit's command is run on a real PostgreSQL by test_systemd.py."""
    command = services()[service]["command"]
    words = shlex.split(command[2].strip().splitlines()[-1]) if command[:2] == ["sh", "-c"] else command
    unit = setting(UNIT_OF[service], "ExecStart").replace("/opt/nbia/bin/", "")
    for theirs, ours in (
        ("--socket /run/nbia/code.sock", "--host 0.0.0.0 --port 4000"),
        ("--host 127.0.0.1 --port 3000", "--host 0.0.0.0 --port 3000"),
    ):
        unit = unit.replace(theirs, ours)
    assert [word for word in words if word != "exec"] == shlex.split(unit)


def test_the_code_server_is_where_the_workspace_says() -> None:
    (location,) = yaml.safe_load((DEPLOY / "compose" / "workspace.yaml").read_text())["load_from"]
    assert location["grpc_server"] == {"host": "code", "port": 4000, "location_name": "nbia_pipeline"}
    assert "--lost code:4000 " in services()["code"]["command"][2]


def test_only_this_machine_reaches_the_ui() -> None:
    ports = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert ports == {"webserver": ["127.0.0.1:3000:3000"]}


@pytest.mark.parametrize(
    "file", [UNITS / "environment", DEPLOY / "compose" / "environment.example"], ids=lambda p: p.name
)
def test_the_settings_of_an_example_are_accepted_and_hold_no_secret(file: Path) -> None:
    told = variables(file)
    assert not any(value for name, value in told.items() if "PASSWORD" in name or "SECRET" in name)
    settings = Settings.from_env(told)
    assert settings.collections == ("LIDC-IDRI", "TCGA-*")
    executor = executor_of(settings)
    assert executor is not None and executor.name == "multiprocess"
    assert {name for name in told if name.startswith("NBIA_")} <= set(VARIABLES)


def test_compose_accepts_the_file(tmp_path: Path) -> None:
    compose = next((words for words in (["docker-compose"], ["docker", "compose"]) if _has(words)), None)
    if compose is None:
        pytest.skip("there is no Docker Compose")
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    place = tmp_path / "deploy" / "compose"
    (place / ".env").write_text("DAGSTER_PG_PASSWORD=a-password\nNBIA_ARCHIVE=tcia\n")
    done = subprocess.run([*compose, "config"], cwd=place, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    made = yaml.safe_load(done.stdout)["services"]
    assert made["code"]["environment"]["DAGSTER_PG_PASSWORD"] == "a-password"
    assert made["db"]["environment"]["POSTGRES_PASSWORD"] == "a-password"
    assert made["code"]["read_only"] is True


def _has(words: list[str]) -> bool:
    if not shutil.which(words[0]):
        return False
    return subprocess.run([*words, "version"], capture_output=True, timeout=60).returncode == 0


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    place = tmp_path / "units"
    shutil.copytree(UNITS, place)
    for file in place.rglob("*.service"):  # it looks whether the programs are there
        file.write_text(re.sub(r"/opt/nbia/bin/\S+", "/bin/true", file.read_text()))
    names = sorted(file.name for file in place.iterdir() if file.suffix in (".service", ".timer", ".target"))
    assert len(names) == 8
    done = subprocess.run(
        [analyze, "verify", "--man=no", *names],
        env={"SYSTEMD_UNIT_PATH": f"{place}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_unit_is_hardened_and_has_its_secrets_from_a_file() -> None:
    for unit in sorted(file.name for file in UNITS.glob("*.service")):
        told = dict(settings(unit))
        assert told["User"] == "nbia"
        assert told["ProtectSystem"] == "strict"
        assert told["NoNewPrivileges"] == "yes"
        assert told["CapabilityBoundingSet"] == ""
        assert told["EnvironmentFile"] == "/etc/nbia/environment"


def test_the_image_has_no_secret_and_is_not_of_root() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert [
        line for line in lines if line.startswith(("ARG", "ENV")) and re.search("PASS|SECRET|KEY|TOKEN", line)
    ] == []
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert [name for name in copied if not (DEPLOY.parent / name).exists()] == []
    assert {f"!{name}" for name in copied} <= set((DEPLOY.parent / ".dockerignore").read_text().split())
