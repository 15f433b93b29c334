"""The services of deploy/systemd in a folder of one's own: started by the commands that are in the unit files."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
UNITS = DEPLOY / "systemd"
WAIT_SECONDS = 300
PORT = "3000"
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}

_LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}
"""
_RUNS = "{ runsOrError { ... on Runs { results { runId status jobName parentRunId } } } }"


def settings(unit: str) -> list[tuple[str, str]]:
    """Return the settings of a unit's section Service, those that all units share first."""
    text = (UNITS / "nbia-.service.d" / "common.conf").read_text() + (UNITS / unit).read_text().partition("[Service]")[
        2
    ]
    lines = [line for line in text.partition("[Install]")[0].splitlines() if "=" in line and not line.startswith("#")]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def setting(unit: str, name: str) -> str:
    """Return the one value of a setting."""
    (value,) = (v for n, v in settings(unit) if n == name)
    return value


def variables(file: Path) -> dict[str, str]:
    """Return what an environment file sets."""
    lines = [line for line in file.read_text().splitlines() if "=" in line and not line.startswith("#")]
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}


class Machine:
    """Folders that stand for those of the units, and their services."""

    def __init__(self, folder: Path, given: Mapping[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._places = {
            "/opt/nbia/bin": str(Path(sys.executable).parent),
            "/var/lib/nbia": f"{folder}/state",
            "/run/nbia": f"{folder}/run",
            "/etc/nbia": f"{folder}/etc",
        }
        self.folder, self.home = folder, folder / "state" / "dagster"
        for name in ("state", "run", "etc", "state/dagster"):
            (folder / name).mkdir(mode=0o700)
        shutil.copy(DEPLOY / "dagster.yaml", self.home)
        (folder / "etc" / "workspace.yaml").write_text(self.placed((UNITS / "workspace.yaml").read_text()))
        told = {name: self.placed(value) for name, value in variables(UNITS / "environment").items()}
        fixed = dict(v.split("=", 1) for n, v in settings("nbia-code.service") if n == "Environment")
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("NBIA_", "DAGSTER_"))}
        self.variables = {**inherited, **told, **{n: self.placed(v) for n, v in fixed.items()}, **given}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def placed(self, text: str) -> str:
        """Return a text with our folders for those of the units."""
        for theirs, ours in self._places.items():
            text = text.replace(theirs, ours)
        return text

    def start(self, unit: str) -> None:
        """Start a unit: what comes before its command, the command in a group of its own, and what comes after it."""
        how: dict[str, Any] = {"cwd": self.folder / "state", "env": self.variables, "stdin": subprocess.DEVNULL}
        with self._log(unit).open("ab") as log:
            for words in self._commands(unit, "ExecStartPre"):
                subprocess.run(words, stdout=log, stderr=log, check=True, timeout=WAIT_SECONDS, **how)
            (words,) = self._commands(unit, "ExecStart")
            if setpriv := shutil.which("setpriv"):  # it ends with the tests, even if they are killed
                words = [setpriv, "--pdeathsig", "KILL", "--", *words]
            self.running[unit] = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, **how)
            for words in self._commands(unit, "ExecStartPost"):
                subprocess.run(words, stdout=log, stderr=log, check=True, timeout=WAIT_SECONDS, **how)

    def _commands(self, unit: str, name: str) -> list[list[str]]:
        # Word by word: our folders may have spaces in their names.
        commands = [shlex.split(value) for each, value in settings(unit) if each == name]
        return [[str(self.port) if word == PORT else self.placed(word) for word in words] for words in commands]

    def stop(self, unit: str, number: int = signal.SIGTERM) -> int:
        """Send a signal to all processes of a unit, as systemd does, and return how the first of them ended."""
        process = self.running.pop(unit)
        os.killpg(process.pid, number)
        return process.wait(WAIT_SECONDS)

    def printed(self, unit: str) -> str:
        """Return what a unit printed."""
        return self._log(unit).read_text()

    def launch(self, job: str, **tags: str) -> str:
        """Ask the webserver for a run, as the UI does, and return its ID."""
        told = [{"key": name.replace("_", "/", 1), "value": value} for name, value in tags.items()]
        where = {"repositoryName": "__repository__", "repositoryLocationName": "nbia_pipeline", "jobName": job}
        params = {"selector": where, "runConfigData": {}, "executionMetadata": {"tags": told}}
        done = self._ask(_LAUNCH, params=params)["launchRun"]
        assert done["__typename"] == "LaunchRunSuccess", done
        return str(done["run"]["runId"])

    def runs(self) -> list[dict[str, Any]]:
        """Return the runs as the webserver lists them, the newest first."""
        found: list[dict[str, Any]] = self._ask(_RUNS)["runsOrError"]["results"]
        return found

    def run_with(self, **wanted: Any) -> dict[str, Any]:
        """Wait for a run with these values, and return it."""

        def find() -> dict[str, Any] | None:
            return next((r for r in self.runs() if all(r[n] == v for n, v in wanted.items())), None)

        found: dict[str, Any] = self.wait_for(find)
        return found

    def ended(self, run_id: str) -> str:
        """Wait for the end of a run, and return its status."""
        return str(
            self.wait_for(
                lambda: next((r for r in self.runs() if r["runId"] == run_id and r["status"] in ENDED), None)
            )["status"]
        )

    def wait_for_ui(self) -> None:
        """Wait until the webserver answers."""

        def answers() -> bool:
            try:
                return bool(self._ask("{ version }")["version"])
            except OSError:
                return False

        self.wait_for(answers)

    def wait_for(self, look: Any) -> Any:
        """Look again until there is something."""
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            if found := look():
                return found
            for unit, process in self.running.items():
                assert process.poll() is None, f"{unit} ended: {self.printed(unit)[-3000:]}"
            time.sleep(0.2)
        told = {unit: self.printed(unit)[-2000:] for unit in self.running}
        raise AssertionError(f"it takes too long: {json.dumps(told, indent=1)}")

    def _ask(self, query: str, **values: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": values}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            told = json.load(answer)
        assert "errors" not in told, told["errors"]
        data: dict[str, Any] = told["data"]
        return data

    def _log(self, unit: str) -> Path:
        return self.folder / f"{unit}.log"


@contextmanager
def machine(given: Mapping[str, str]) -> Iterator[Machine]:
    """Yield the folders and services; what still runs at the end is killed, and the folders are removed.

    Args:
        given: variables of the environment file with other values.
    """
    folder = Path(tempfile.mkdtemp(prefix="nbia-", dir="/tmp"))  # the path of a socket must be short
    made = Machine(folder, given)
    try:
        yield made
    finally:
        for unit in list(made.running):
            made.stop(unit, signal.SIGKILL)
        shutil.rmtree(folder)
