"""What a person does in the Dagster UI, through the same interface that its pages use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline_tests.helpers.processes import environment

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 180

LAUNCH = """
mutation ($p: ExecutionParams!) {
  launchPipelineExecution(executionParams: $p) { __typename ... on LaunchRunSuccess { run { runId } } }
}"""
STATUS = "query ($r: ID!) { runOrError(runId: $r) { ... on Run { status } } }"
LOADED = "{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus } } } }"


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
                return list(entries)
            time.sleep(0.5)
        raise AssertionError("the code location did not load")

    def materialize(self, job: str, **tags: str) -> str:
        """Launch a job as the UI does, wait for its end, and return its status."""
        selector = {
            "repositoryLocationName": "nbia_pipeline",
            "repositoryName": "__repository__",
            "pipelineName": job,
        }
        named = [{"key": k.replace("__", "/"), "value": v} for k, v in tags.items()]
        params = {"selector": selector, "mode": "default", "executionMetadata": {"tags": named}}
        run = self.ask(LAUNCH, p=params)["launchPipelineExecution"]["run"]["runId"]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            status = str(self.ask(STATUS, r=run)["runOrError"]["status"])
            if status in ("SUCCESS", "FAILURE", "CANCELED"):
                return status
            time.sleep(0.5)
        raise AssertionError(f"{job} did not end")


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Page]:
    """`nbia-pipeline dev` in an empty directory, with a temporary directory of its own for the embedded archive."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "nbia_pipeline", "dev", "--port", str(port)],
        cwd=tmp_path,
        env=environment(tmp_path, TMPDIR=str(tmp_path / "tmp")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        yield Page(port)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_person_can_materialise_everything_from_the_ui(dev: Page, tmp_path: Path) -> None:
    assert [e["name"] for e in dev.wait_until_loaded()] == ["nbia_pipeline"]
    assert dev.materialize("nbia_catalogue") == "SUCCESS"
    assert dev.materialize("nbia_tables", dagster__partition="QIN_Breast.v2") == "SUCCESS"
    assert dev.materialize("nbia_images", dagster__partition="QIN_Breast.v2") == "SUCCESS"
    receipts = Lake(str(tmp_path / "a lake")).read_table(IMAGE_SERIES, "QIN_Breast.v2")
    assert receipts["Status"].to_pylist() == ["complete"] * 5

    records = list((tmp_path / "tmp").glob("nbia-pipeline-*/*.json"))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while records and time.monotonic() < deadline:
        time.sleep(0.5)
        records = [r for r in records if r.exists()]
    assert records == [], "the embedded archive outlived the steps that needed it"
