"""The cases: an executor and a place of the lake each, with or without a kill; and what became of each."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import psycopg2

from nbia_pipeline.defs.jobs import CATALOG_JOB, IMAGES_JOB, RANGE_END, RANGE_START, TABLES_JOB, images_config
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline_tests.scale_out import cluster
from nbia_pipeline_tests.scale_out.archive import COLLECTION
from nbia_pipeline_tests.scale_out.compare import Contents, contents, expect_equal, rows_of
from nbia_pipeline_tests.scale_out.hosts import Host, Network, descendants
from nbia_pipeline_tests.scale_out.services import ARCHIVE, BUCKET, POSTGRES, Services

WORKER, CHILD = "a worker", "a process of a worker"
"""What is killed: a host with all its processes, or one process in which a batch runs."""
DISK, STORE = "disk", "object store"

_BEFORE_THE_KILL = 5
_LONGEST_SECONDS = 600
_ESTABLISHED = "01"  # in /proc/net/tcp
_PARTITIONS = """query($path: [String!]!) { assetNodeOrError(assetKey: {path: $path}) {
  ... on AssetNode { partitionKeys } } }"""


@dataclass(frozen=True)
class Case:
    """An executor, where the lake is, and what is killed.

    Attributes:
        executor: its name in the table.
        place: of the lake.
        deployment: a folder of ``deploy``.
        given: NBIA_EXECUTOR, None for that of the deployment.
        workers: their hosts, with the process of the Procfile that each runs.
        kill: what is killed after some batches; nothing if empty.
    """

    executor: str
    place: str
    deployment: str = "celery"
    given: str | None = None
    workers: tuple[tuple[str, str], ...] = ()
    kill: str = ""

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.executor}, {self.place}" + (f", {self.kill} killed" if self.kill else "")


_CELERY: dict[str, Any] = {"deployment": "celery", "workers": (("worker1", "worker"), ("worker2", "worker"))}
_RAY: dict[str, Any] = {"deployment": "ray", "workers": (("head", "head"), ("node", "node"))}
CASES = (
    Case("one process", DISK, given="in_process"),
    Case("one process", STORE, given="in_process"),
    Case("multiprocess", DISK, given="multiprocess"),
    Case("multiprocess", STORE, given="multiprocess"),
    Case("Celery, 2 workers", STORE, **_CELERY),
    Case("Celery, 2 workers", STORE, kill=WORKER, **_CELERY),
    Case("Celery, 2 workers", STORE, kill=CHILD, **_CELERY),
    Case("Ray, 2 nodes", STORE, **_RAY),
    Case("Ray, 2 nodes", STORE, kill=WORKER, **_RAY),
)
"""The first is what the lakes of the others must be equal to."""


@dataclass
class Found:
    """What a case took.

    Attributes:
        tables: seconds of the run of the table of series.
        rows: rows of that table.
        images: seconds of the run of the images, or of both runs if one was retried.
        lost: seconds from the kill until a batch that it stopped was known to be lost.
        again: seconds from the kill until such a batch began again.
        end: what became of the run that the kill hit: SUCCESS or FAILURE, the latter followed by a run that succeeded.
        contents: of the lake.
    """

    tables: float = 0
    rows: int = 0
    images: float = 0
    lost: float | None = None
    again: float | None = None
    end: str = "SUCCESS"
    contents: Contents = field(default_factory=dict)


def run(case: Case, network: Network, services: Services, batch_series: int, say: Callable[[str], None]) -> Found:
    """Start the processes of a case, mirror with them, and end them.

    Args:
        case: which.
        network: of its hosts.
        services: those that it shares with the other cases; its database and its lake are its own.
        batch_series: series of a batch.
        say: is told what happens.

    Raises:
        AssertionError: a run failed that must not, or hangs.
    """
    _new_database(services)
    lake = f"{BUCKET}/{CASES.index(case)}" if case in CASES else f"{BUCKET}/other"
    variables = {**services.variables, "NBIA_LAKE": f"s3://{lake}"}
    if case.place == DISK:
        variables["NBIA_LAKE"] = cluster.ON_CONTROL
    if case.given is not None:
        variables["NBIA_EXECUTOR"] = case.given
    before = len(network.hosts)
    try:
        running = cluster.start(network, case.deployment, variables, case.workers)
        found = _mirror(case, running, batch_series, say)
        fs, root = fsspec.filesystem("file"), str(running.control.folder / "lake")
        if case.place == STORE:
            fs, root = file_system(services.variables), lake
        found.contents, found.rows = contents(fs, root), rows_of(fs, root, "series")
        return found
    finally:
        for host in network.hosts[before:]:
            host.kill()


def file_system(variables: Mapping[str, str]) -> Any:
    """Return the object store as fsspec has it."""
    return fsspec.filesystem(
        "s3",
        key=variables["AWS_ACCESS_KEY_ID"],
        secret=variables["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=variables["AWS_ENDPOINT_URL_S3"],
        skip_instance_cache=True,
    )


def _new_database(services: Services) -> None:
    password = services.variables["DAGSTER_PG_PASSWORD"]
    where = {"host": services.host.address, "port": POSTGRES, "user": "dagster", "password": password}
    connection = psycopg2.connect(dbname="postgres", **where)
    connection.autocommit = True
    for line in ("DROP DATABASE IF EXISTS dagster WITH (FORCE)", "CREATE DATABASE dagster"):
        connection.cursor().execute(line)
    connection.close()


def _mirror(case: Case, running: cluster.Cluster, batch_series: int, say: Callable[[str], None]) -> Found:
    names, found = Naming(), Found()
    running.succeeded(running.launch(names.of(CATALOG_JOB)), 120)
    path = ["nbia", "series"]
    keys = running.ask(_PARTITIONS, path=path)["assetNodeOrError"]["partitionKeys"]
    ends = {RANGE_START: keys[0], RANGE_END: keys[-1]}
    found.tables = running.succeeded(running.launch(names.of(TABLES_JOB), assets=["series"], tags=ends), 300)
    this = {"dagster/partition": COLLECTION}
    running.succeeded(running.launch(names.of(TABLES_JOB), tags=this), 120)
    config = images_config(names, batch_series=batch_series)
    images = running.launch(names.of(IMAGES_JOB), config=config, tags=this)
    if not case.kill:
        found.images = running.succeeded(images, _LONGEST_SECONDS)
        return found
    killed = _kill(case, running, images)
    say(f"{case.name}: killed")
    ended = running.ended(images, _LONGEST_SECONDS)
    found.images, found.end = ended["endTime"] - ended["startTime"], ended["status"]
    runs = [images]
    if found.end != "SUCCESS":
        say(f"{case.name}: {ended['endTime'] - killed:.1f} s after the kill: {running.failures(images)[-1][:500]}")
        runs.append(running.retry_of(images))
        found.images += running.succeeded(runs[-1], _LONGEST_SECONDS)
    found.lost, found.again = _after_the_kill(running, runs, killed)
    return found


def _fetches(running: cluster.Cluster, run_id: str) -> list[dict[str, Any]]:
    return [e for e in running.events(run_id) if "fetch_images" in (e["stepKey"] or "")]


def _kill(case: Case, running: cluster.Cluster, run_id: str) -> float:
    """Wait for some batches, kill, and return when that was."""
    until = time.monotonic() + _LONGEST_SECONDS
    while sum(e["eventType"] == "STEP_SUCCESS" for e in _fetches(running, run_id)) < _BEFORE_THE_KILL:
        running.status(run_id)
        assert time.monotonic() < until, f"there are no batches: {list(running.events(run_id))[-5:]}"
        time.sleep(0.2)
    victim = list(running.workers.values())[-1]
    while not (busy := _at_the_archive(victim)):
        assert time.monotonic() < until, f"{victim.name} has no batch"
        time.sleep(0.01)
    killed = time.time()
    if case.kill == WORKER:
        victim.kill()
    else:
        os.kill(busy[0], signal.SIGKILL)
    return killed


def _at_the_archive(host: Host) -> list[int]:
    """Return the processes of a host that are connected to the archive: a batch runs in each."""
    lines = Path(f"/proc/{host.pid or 'self'}/net/tcp").read_text().splitlines()[1:]
    connections = [line.split() for line in lines]
    here = {f"socket:[{c[9]}]" for c in connections if c[2].endswith(f":{ARCHIVE:04X}") and c[3] == _ESTABLISHED}
    pids = [pid for process in host.started for pid in descendants(process.pid)]
    return [pid for pid in pids if here & _opened(pid)]


def _opened(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(each.readlink()))
    return found


def _after_the_kill(running: cluster.Cluster, runs: list[str], killed: float) -> tuple[float | None, float | None]:
    """Return how many seconds after the kill a batch that it stopped was known to be lost, and began again."""
    stopped: set[str] = set()
    for event in _fetches(running, runs[0]):
        if event["timestamp"] > killed:
            break
        change = {"STEP_START": stopped.add, "STEP_SUCCESS": stopped.discard}.get(event["eventType"])
        if change is not None:
            change(event["stepKey"])
    events = [e for run_id in runs for e in _fetches(running, run_id) if e["timestamp"] > killed]
    known: dict[str, list[float]] = {"STEP_UP_FOR_RETRY": [], "STEP_START": [], "STEP_RESTARTED": []}
    for e in events:
        if e["eventType"] in known and e["stepKey"] in stopped:
            known[e["eventType"]].append(e["timestamp"] - killed)
    began = known["STEP_START"] + known["STEP_RESTARTED"]
    return min(known["STEP_UP_FOR_RETRY"] + began, default=None), min(began, default=None)


def check(case: Case, found: Found, wanted: Found) -> None:
    """Make sure that a case made the lake of the first case.

    Raises:
        AssertionError: it did not.
    """
    try:
        expect_equal(found.contents, wanted.contents)
    except AssertionError as e:
        raise AssertionError(f"{case.name}: {e}") from None
