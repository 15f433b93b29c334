"""A real ``nbia-pipeline dev``, and the interface that its pages use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from nbia_pipeline_tests.helpers.processes import environment

PATIENCE_SECONDS = 180

LAUNCH = """
mutation ($p: ExecutionParams!) {
  launchPipelineExecution(executionParams: $p) { __typename ... on LaunchRunSuccess { run { runId } } }
}"""
BACKFILL = """
mutation ($p: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $p) { __typename ... on LaunchBackfillSuccess { backfillId } }
}"""
TERMINATE = "mutation ($r: String!) { terminateRun(runId: $r) { __typename } }"
STATUS = "query ($r: ID!) { runOrError(runId: $r) { ... on Run { status } } }"
LOADED = """{
  workspaceOrError { ... on Workspace {
    locationEntries { name loadStatus locationOrLoadError { ... on PythonError { message } } }
  } }
}"""


class Page:
    """The GraphQL interface of a running `dagster dev`."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/graphql"

    def ask(self, query: str, **variables: Any) -> Any:
        reply = requests.post(self.url, json={"query": query, "variables": variables}, timeout=30).json()
        assert "errors" not in reply, reply
        return reply["data"]

    def wait_until_loaded(self) -> list[Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                entries = self.ask(LOADED)["workspaceOrError"]["locationEntries"]
            except requests.ConnectionError:
                entries = []
            if entries and all(e["loadStatus"] == "LOADED" for e in entries):
                assert all("message" not in e["locationOrLoadError"] for e in entries), entries
                return list(entries)
            time.sleep(0.5)
        raise AssertionError("the code location did not load")

    def launch(self, job: str, **tags: str) -> str:
        """Launch a job as the UI does, and return the ID of the run."""
        selector = {
            "repositoryLocationName": "nbia_pipeline",
            "repositoryName": "__repository__",
            "pipelineName": job,
        }
        named = [{"key": k.replace("__", "/"), "value": v} for k, v in tags.items()]
        params = {"selector": selector, "mode": "default", "executionMetadata": {"tags": named}}
        return str(self.ask(LAUNCH, p=params)["launchPipelineExecution"]["run"]["runId"])

    def backfill(self, asset: str, partitions: list[str]) -> str:
        """Materialize partitions of an asset as the UI does, and return the ID of the backfill."""
        params = {"assetSelection": [{"path": asset.split("/")}], "partitionNames": partitions, "tags": []}
        return str(self.ask(BACKFILL, p=params)["launchPartitionBackfill"]["backfillId"])

    def terminate(self, run: str) -> str:
        """Terminate a run as the UI does, and return what kind of answer that got."""
        return str(self.ask(TERMINATE, r=run)["terminateRun"]["__typename"])

    def end_of(self, run: str) -> str:
        """Wait for the end of a run, and return its status."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            status = str(self.ask(STATUS, r=run)["runOrError"]["status"])
            if status in ("SUCCESS", "FAILURE", "CANCELED"):
                return status
            time.sleep(0.5)
        raise AssertionError(f"{run} did not end")

    def materialize(self, job: str, **tags: str) -> str:
        """Launch a job, wait for its end, and return its status."""
        return self.end_of(self.launch(job, **tags))


@contextmanager
def serving_ui(tmp_path: Path, **variables: str) -> Iterator[Page]:
    """Run `nbia-pipeline dev` in a directory, with a temporary directory of its own for the embedded archive."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "nbia_pipeline", "dev", "--port", str(port)],
        cwd=tmp_path,
        env=environment(tmp_path, TMPDIR=str(tmp_path / "tmp"), **variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield Page(port)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)
