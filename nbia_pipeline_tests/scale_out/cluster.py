"""Dagster on hosts: webserver, daemon and code server on one, workers on others, as the files in ``deploy`` say."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests

from nbia_pipeline_tests.scale_out.hosts import ROOT, Host, Network, wait_for

DEPLOY = ROOT / "deploy"
ON_CONTROL = "on the disk of the control host"
"""A lake there, which only the processes of that host can reach."""
ENDED = ("SUCCESS", "FAILURE", "CANCELED")

_LAUNCH = """mutation($given: ExecutionParams!) { launchRun(executionParams: $given) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""
_STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status startTime endTime } } }"
_EVENTS = """query($id: ID!, $after: String) { logsForRun(runId: $id, afterCursor: $after) { ... on EventConnection {
  cursor hasMore events { ... on MessageEvent { eventType timestamp stepKey message }
  ... on ExecutionStepFailureEvent { error { message } } ... on RunFailureEvent { error { message } } } } } }"""
_LOCATIONS = """query { workspaceOrError { ... on Workspace { locationEntries { name loadStatus
  locationOrLoadError { __typename ... on PythonError { message } } } } } }"""
_RETRIES = """query($id: String!) { runsOrError(filter: {tags: [{key: "dagster/parent_run_id", value: $id}]}) {
  ... on Runs { results { runId } } } }"""


def commands(kind: str) -> dict[str, str]:
    """Return the commands of a deployment, from its Procfile."""
    lines = (DEPLOY / kind / "Procfile").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))


def settings(kind: str) -> dict[str, str]:
    """Return the variables that a deployment sets."""
    lines = (DEPLOY / kind / "environment").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@dataclass
class Cluster:
    """A deployment that runs.

    Attributes:
        kind: which, a folder of ``deploy``.
        variables: of all processes.
        control: host of webserver, daemon and code server.
        workers: hosts of the workers, by name.
    """

    kind: str
    variables: dict[str, str]
    control: Host
    workers: dict[str, Host] = field(default_factory=dict)

    # --- its processes

    def install(self, host: Host) -> None:
        """Give a host its own copy of the files of the deployment."""
        for file in (DEPLOY / self.kind).glob("*.yaml"):
            shutil.copy(file, host.folder / "dagster_home")

    def start(self, host: Host, process: str, variables: Mapping[str, str] | None = None) -> None:
        """Start a process of the Procfile on a host."""
        host.start(commands(self.kind)[process], {**self.variables, **(variables or {})})

    def wait(self) -> None:
        """Wait until the code location is loaded.

        Raises:
            AssertionError: it is not.
        """
        wait_for(self.control.address, 3000, host=self.control)
        until = time.monotonic() + 90
        while True:
            (entry,) = self.ask(_LOCATIONS)["workspaceOrError"]["locationEntries"]
            if entry["loadStatus"] == "LOADED":
                found = entry["locationOrLoadError"]
                assert "message" not in found, found["message"]
                return
            assert time.monotonic() < until, self.control.log()
            time.sleep(0.3)

    # --- its runs

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Return what the webserver answers.

        Raises:
            AssertionError: it answers with an error.
        """
        url = f"http://{self.control.address}:3000/graphql"
        answer = requests.post(url, json={"query": query, "variables": variables}, timeout=60).json()
        assert "errors" not in answer, answer["errors"]
        found: dict[str, Any] = answer["data"]
        return found

    def launch(
        self,
        job: str,
        assets: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Put a run into the queue and return its ID.

        Args:
            job: its job.
            assets: names of those that it materializes, all of the job's by default.
            config: its run config.
            tags: its tags.
        """
        selector: dict[str, Any] = {
            "repositoryLocationName": "nbia_pipeline",
            "repositoryName": "__repository__",
            "jobName": job,
        }
        if assets:
            selector["assetSelection"] = [{"path": ["nbia", asset]} for asset in assets]
            selector["assetCheckSelection"] = []
        given = {
            "selector": selector,
            "runConfigData": config or {},
            "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in (tags or {}).items()]},
        }
        return self._launched(self.ask(_LAUNCH, given=given)["launchRun"])

    def _launched(self, answer: dict[str, Any]) -> str:
        assert "run" in answer, answer
        found: str = answer["run"]["runId"]
        return found

    def retry_of(self, run_id: str, seconds: float = 90) -> str:
        """Wait for the run by which the daemon retries one that failed, and return its ID.

        Raises:
            AssertionError: it does not.
        """
        until = time.monotonic() + seconds
        while not (found := self.ask(_RETRIES, id=run_id)["runsOrError"]["results"]):
            assert time.monotonic() < until, f"run {run_id} is not retried: {self.control.log()}"
            time.sleep(0.5)
        retry: str = found[0]["runId"]
        return retry

    def status(self, run_id: str) -> dict[str, Any]:
        """Return status, start and end of a run.

        Raises:
            AssertionError: a process of the cluster has ended.
        """
        for host in (self.control, *self.workers.values()):
            host.expect_alive()
        found: dict[str, Any] = self.ask(_STATUS, id=run_id)["runOrError"]
        return found

    def ended(self, run_id: str, seconds: float) -> dict[str, Any]:
        """Wait until a run has ended, and return its status, start and end.

        Raises:
            AssertionError: it has not, after some seconds.
        """
        until = time.monotonic() + seconds
        while (found := self.status(run_id))["status"] not in ENDED:
            assert time.monotonic() < until, f"run {run_id} has not ended: {list(self.events(run_id))[-5:]}"
            time.sleep(0.5)
        return found

    def succeeded(self, run_id: str, seconds: float) -> float:
        """Wait until a run has ended well, and return how many seconds it took, without its time in the queue.

        Raises:
            AssertionError: it failed.
        """
        found = self.ended(run_id, seconds)
        assert found["status"] == "SUCCESS", f"{found['status']}: {self.failures(run_id)} {self.control.log()}"
        took: float = found["endTime"] - found["startTime"]
        return took

    def failures(self, run_id: str) -> list[str]:
        """Return the messages of what failed in a run."""
        failed = (e for e in self.events(run_id) if "FAILURE" in e["eventType"])
        return [e["message"] + ((e.get("error") or {}).get("message") or "") for e in failed]

    def events(self, run_id: str) -> Iterator[dict[str, Any]]:
        """Yield the events of a run: what, when (in seconds), of which step."""
        after = None
        while True:
            found = self.ask(_EVENTS, id=run_id, after=after)["logsForRun"]
            for event in found["events"]:
                yield {**event, "timestamp": int(event["timestamp"]) / 1000, "eventType": event["eventType"] or ""}
            if not found["hasMore"]:
                return
            after = found["cursor"]


def start(network: Network, kind: str, variables: Mapping[str, str], workers: Sequence[tuple[str, str]]) -> Cluster:
    """Start a deployment, and wait until its code location is loaded.

    Args:
        network: of its hosts.
        kind: a folder of ``deploy``.
        variables: of all processes, before those that the deployment sets.
        workers: hosts of workers, with the process of the Procfile that each runs.
    """
    control = network.host("control")
    hosts = {name: network.host(name) for name, _ in workers}
    first = next(iter(hosts.values()), control)
    own = {
        "CODE_SERVER": control.address,
        "RAY_HEAD": first.address,
        "RAY_JOBS": f"http://{first.address}:8265",
    }
    if variables["NBIA_LAKE"] == ON_CONTROL:
        own["NBIA_LAKE"] = str(control.inside / "lake")
    cluster = Cluster(kind, {**settings(kind), **variables, **own}, control, hosts)
    cluster.install(control)
    cluster.start(control, "code")
    wait_for(control.address, 4000, host=control)
    cluster.start(control, "webserver")
    cluster.start(control, "daemon")
    for name, process in workers:
        cluster.install(hosts[name])
        cluster.start(hosts[name], process)
    cluster.wait()
    return cluster
