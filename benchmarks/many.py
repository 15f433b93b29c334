"""Many small collections: their images in one run, against one run for each collection.

An archive of its own has collections of three small series. Their tables are listed first. Then the job `images` runs
in this process, as `nbia-pipeline run` executes it, with an instance in SQLite: over the range of all collections, and,
in another lake, over one collection after the other. With `--queued`, some collections are mirrored as runs of the
daemon's queue, too: processes that its launcher starts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg

    from nbia_pipeline.embedded.catalog.model import Catalog
    from nbia_pipeline.embedded.control.client import Control
    from nbia_pipeline.settings import Settings

COLLECTIONS = 200
SERIES = 3
LOGIN = {"token", "logout"}
RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
TIMES_BAR = 5.0
QUEUED_SECONDS = 600
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Cost:
    """What the images of some collections took.

    Attributes:
        runs: how many runs.
        seconds: wall clock.
        cpu: seconds of processor time of this process.
        requests: to the archive, logins left out.
        rows: of Dagster's event log.
    """

    runs: int
    seconds: float
    cpu: float
    requests: int
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.runs} runs: {self.seconds:.1f} s, {self.cpu:.1f} s CPU, {self.requests} requests, {self.rows} rows"
        )


def names(collections: int) -> list[str]:
    return [f"Small {number:03d}" for number in range(collections)]


def catalog(collections: int) -> Catalog:
    """Return an archive of so many collections of three series of four images of 64 x 64."""
    import pyarrow as pa
    from image_archive import SMALL_MATRIX, SMALL_SLICES, _plans, _row

    from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Catalog
    from nbia_pipeline.embedded.phantoms.store import PhantomStore

    plans = [p for name in names(collections) for p in _plans(name, SERIES, SMALL_MATRIX, SMALL_SLICES)]
    store = PhantomStore(plans)
    return Catalog(pa.Table.from_pylist([_row(plan, store) for plan in plans], schema=CATALOG_SCHEMA), store)


def tables(settings: Settings, instance: dg.DagsterInstance, collections: list[str]) -> None:
    """List all collections in one run."""
    from nbia_pipeline.definitions import build_definitions

    instance.add_dynamic_partitions("nbia_collections", collections)
    job = build_definitions(settings).resolve_job_def("nbia_tables")
    tags = dict(zip(RANGE, (collections[0], collections[-1]), strict=True))
    if not job.execute_in_process(instance=instance, tags=tags, run_config=_QUIET, raise_on_error=False).success:
        raise SystemExit("the tables were not listed")


def in_process(
    settings: Settings, instance: dg.DagsterInstance, ranges: list[tuple[str, str]], control: Control
) -> Cost:
    """Mirror collections in runs of this process, one after the other."""
    from measuring import cpu_seconds

    from nbia_pipeline.definitions import build_definitions
    from nbia_pipeline.defs.resources import one_login

    job = build_definitions(settings).resolve_job_def("nbia_images")
    control.requests(clear=True)
    started, cpu, rows = time.perf_counter(), cpu_seconds(), 0
    with one_login():
        for ends in ranges:
            tags = dict(zip(RANGE, ends, strict=True))
            done = job.execute_in_process(instance=instance, tags=tags, run_config=_QUIET, raise_on_error=False)
            if not done.success:
                why = [str(e.step_failure_data.user_failure_data) for e in done.all_events if e.is_step_failure]
                raise SystemExit(f"the run over {ends} failed: {'; '.join(why)}")
            rows += len(instance.all_logs(done.run_id))
    seconds, used = time.perf_counter() - started, cpu_seconds() - cpu
    asked = Counter(r["endpoint"] for r in control.requests(clear=True))
    return Cost(len(ranges), seconds, used, sum(n for name, n in asked.items() if name not in LOGIN), rows)


def queued(settings: Settings, home: Path, collections: list[str], control: Control) -> list[Cost]:
    """Mirror collections in runs of the daemon's queue: one for each, then, in another lake, one for all."""
    import subprocess

    import dagster as dg
    from measuring import side_environment

    environment = {**side_environment(), "DAGSTER_HOME": str(home), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    environment |= {"NBIA_ARCHIVE": settings.archive, "NBIA_IMAGES": "*", "NBIA_ANNOTATIONS": "off"}
    costs = []
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for each, ranges in ((1, [(c, c) for c in collections]), (0, [(collections[0], collections[-1])])):
            lake = f"{settings.lake}-{each}"
            tables(settings.model_copy(update={"lake": lake}), instance, collections)
            control.requests(clear=True)
            words = [sys.executable, "-m", "dagster", "dev", "-m", "nbia_pipeline.definitions", "-p", str(31000 + each)]
            with subprocess.Popen(
                words,
                env={**environment, "NBIA_LAKE": lake},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            ) as process:
                try:
                    costs.append(_queue(instance, f"http://127.0.0.1:{31000 + each}/graphql", ranges, control))
                finally:
                    process.terminate()
    return costs


LAUNCH = """
mutation ($p: ExecutionParams!) {
  launchPipelineExecution(executionParams: $p) { __typename ... on LaunchRunSuccess { run { runId } } }
}"""


def _queue(instance: dg.DagsterInstance, url: str, ranges: list[tuple[str, str]], control: Control) -> Cost:
    import dagster as dg
    import requests

    def launch(ends: tuple[str, str]) -> str:
        selector = {
            "repositoryLocationName": "nbia_pipeline.definitions",
            "repositoryName": "__repository__",
            "pipelineName": "nbia_images",
        }
        tags = [{"key": key, "value": value} for key, value in zip(RANGE, ends, strict=True)]
        params = {"selector": selector, "mode": "default", "executionMetadata": {"tags": tags}}
        answer = requests.post(url, json={"query": LAUNCH, "variables": {"p": params}}, timeout=60).json()
        return str(answer["data"]["launchPipelineExecution"]["run"]["runId"])

    deadline = time.monotonic() + QUEUED_SECONDS
    while True:
        try:
            runs = [launch(ranges[0])]
            break
        except (requests.ConnectionError, KeyError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
    started = time.perf_counter()
    runs += [launch(ends) for ends in ranges[1:]]
    while True:
        ended = [run for run in instance.get_runs(dg.RunsFilter(run_ids=runs)) if run.is_finished]
        if len(ended) == len(runs):
            break
        if time.monotonic() > deadline:
            raise SystemExit("the runs did not end")
        time.sleep(0.5)
    seconds = time.perf_counter() - started
    if any(run.status != dg.DagsterRunStatus.SUCCESS for run in ended):
        raise SystemExit("a queued run failed")
    asked = Counter(r["endpoint"] for r in control.requests(clear=True))
    rows = sum(len(instance.all_logs(run)) for run in runs)
    return Cost(len(runs), seconds, 0.0, sum(n for name, n in asked.items() if name not in LOGIN), rows)


def main() -> int:
    """Measure, print, and return 1 if a bar does not hold."""
    from measuring import serving
    from results import Results, add_option

    parser = argparse.ArgumentParser(description="Images of many collections: one run, against a run for each.")
    parser.add_argument("--collections", type=int, default=COLLECTIONS, help="how many (default: %(default)s)")
    parser.add_argument("--queued", type=int, default=20, help="as runs of the daemon, too; 0: none (default: 20)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer (default: 0)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.serve:
        _serve(options.collections, options.latency)
        return 0
    import dagster as dg
    from image_archive import warmed

    from nbia_pipeline.defs.records import kept_open
    from nbia_pipeline.embedded.control.client import Control
    from nbia_pipeline.settings import Settings

    how = ("--serve", "--collections", str(options.collections), "--latency", str(options.latency))
    results, collections = Results(options.json), names(options.collections)
    with serving(str(Path(__file__).resolve()), *how) as line, tempfile.TemporaryDirectory(prefix="nbia-bench-") as at:
        doors, found = json.loads(line), {}
        control = Control(doors["control"])
        for collection in collections:  # images are drawn when they are sent for the first time
            warmed(doors["url"], collection)
        for what, ranges in (
            ("one run", [(collections[0], collections[-1])]),
            ("a run each", [(c, c) for c in collections]),
        ):
            folder = Path(at) / what.replace(" ", "-")
            settings = Settings(
                archive=doors["url"], lake=str(folder / "lake"), images=("*",), annotations=False, headers=()
            )
            (folder / "home").mkdir(parents=True)
            with kept_open(), dg.DagsterInstance.local_temp(str(folder / "home")) as instance:
                tables(settings, instance, collections)
                cost = found[what] = in_process(settings, instance, ranges, control)
            print(f"{what}: {cost}", flush=True)
            results.add(f"images of {len(collections)} collections, {what}", *_figures(cost))
        times = found["a run each"].seconds / found["one run"].seconds
        results.at_least(TIMES_BAR, "one run is faster than a run each", times, "times")
        if options.queued:
            home = Path(at) / "home"
            home.mkdir()
            (home / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
            settings = Settings(
                archive=doors["url"], lake=str(Path(at) / "queued"), images=("*",), annotations=False, headers=()
            )
            for cost in queued(settings, home, collections[: options.queued], control):
                print(f"queued: {cost}", flush=True)
                results.add(f"images of {options.queued} collections, {cost.runs} runs of the daemon", *_figures(cost))
    return results.finish()


def _figures(cost: Cost) -> list[Any]:
    figures = [(cost.seconds, "s"), (cost.cpu, "s of processor time"), (cost.requests, "requests"), (cost.rows, "rows")]
    return [figure for figure in figures if figure[0]]


def _serve(collections: int, latency: float) -> None:
    from nbia_pipeline.embedded.server.run import serve

    serve(
        catalog(collections),
        latency=latency,
        control_port=0,
        ready=lambda at: print(json.dumps({"url": at.url, "control": at.control_url}), flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
