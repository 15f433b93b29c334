"""One new series in an archive of a million: what it costs to notice it, and what the run costs that follows.

The embedded archive runs in a process of its own, first with the demo, then with the index of the Imaging Data Commons
(``--catalog idc``, 1,044,191 series). Of a collection of each size the lake gets its tables by a first run, and
receipts and an index of files, one for each series, as if every image had been fetched: idc has no files. Then, through
Dagster as the daemon does it:

- a tick of the sensor that finds nothing,
- a series is added to the collection and released today; the tick that finds it,
- the run that this tick requests, with all its checks: tables of the collection, then the images of the one series;
  it has a process of its own, as the daemon starts one for each run, and the most memory that this process held counts,
- a tick after it.

Counted are the requests at the archive, the bytes of its answers (images included), and wall-clock seconds. Logins and
logouts count as requests. A tick costs five at the most, whatever the size of the archive: an empty answer is asked for
again with a fresh token. The run logs in once, lists each table of one collection once, asks for the metadata of one
series, fetches one series, and holds at most 400 MB, imports included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from measuring import Measured, lines_of, run_measured, timed
from results import Results, add_option

if TYPE_CHECKING:
    import dagster as dg

    from nbia_pipeline.embedded.control.client import Control
    from nbia_pipeline.lake import Lake

COLLECTIONS = {
    "demo": ["TCGA-DEMO"],
    "idc": ["lungct_diagnosis", "cptac_pda", "ispy2", "nlst"],
}
"""Of the index: one of 61 series, of two thousand, of thirty thousand, and of half a million."""

SENSOR = "nbia_updated_series"
TICK_REQUESTS = 5
RUN_LOGINS = 1
RUN_MB = 400
LOGIN, LOGOUT = ("token",), ("logout",)
LISTS = ("getPatient", "getPatientStudy", "getSeries")
METADATA = ("getSeriesMetadata2", "getSeriesMetaData")
DOWNLOADS = ("getImageWithMD5Hash",)
CHECKS = ("getMD5Hierarchy",)

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What something took.

    Attributes:
        seconds: wall clock.
        bytes: of the answers.
        requests: how often each endpoint was asked.
    """

    seconds: float
    bytes: int
    requests: Counter[str] = field(default_factory=Counter)

    def times(self, endpoints: tuple[str, ...]) -> int:
        """Return how often some endpoints were asked."""
        return sum(self.requests[name] for name in endpoints)


@dataclass(frozen=True)
class Found:
    """What was measured with one collection.

    Attributes:
        archive: series of the archive.
        collection: name.
        series: how many it has.
        nothing: a tick that finds nothing.
        found: the tick that finds the new series.
        run: the run that it requests.
        process: what the process of this run took.
        after: the tick after it.
    """

    archive: int
    collection: str
    series: int
    nothing: Cost
    found: Cost
    run: Cost
    process: Measured
    after: Cost

    @property
    def ticks(self) -> dict[str, Cost]:
        """The ticks."""
        return {"nothing new": self.nothing, "one new series": self.found, "after the run": self.after}


# --- the archive


@contextlib.contextmanager
def archive(catalog: str) -> Iterator[tuple[str, Control]]:
    """Run an embedded archive with its control interface; give its address and the control."""
    from nbia_pipeline.embedded.control.client import Control

    words = ["-m", "nbia_pipeline", "archive", "--catalog", catalog, "--port", "0", "--control-port", "0"]
    with lines_of(*words, count=2) as (url, control):
        yield url, Control(control.partition(" ")[2])


# --- the pipeline


class Pipeline:
    """A code location over one collection, a Dagster instance on disk, and a lake, in a folder."""

    def __init__(self, url: str, control: Control, collection: str, folder: Path) -> None:
        import dagster as dg

        from nbia_pipeline.definitions import build_definitions
        from nbia_pipeline.lake import Lake
        from nbia_pipeline.settings import Settings

        names = (collection,)
        settings = Settings(archive=url, lake=str(folder / "lake"), collections=names, images=names)
        self.collection = collection
        self.lake: Lake = Lake(settings.lake)
        self.instance: dg.DagsterInstance = dg.DagsterInstance.local_temp(
            str(folder), overrides={"telemetry": {"enabled": False}}
        )
        self._control = control
        self._cursor: str | None = None
        self._definitions = build_definitions(settings)
        self._repository = self._definitions.get_repository_def()

    def tick(self) -> Any:
        """Evaluate the sensor as the daemon does, and keep its cursor."""
        import dagster as dg

        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            cursor=self._cursor,
            repository_def=self._repository,
            resources=dict(self._definitions.resources or {}),
        ) as context:
            tick = self._repository.get_sensor_def(SENSOR).evaluate_tick(context)
        self._cursor = tick.cursor or self._cursor
        return tick

    def run(self, job: str, **how: Any) -> None:
        """Run a job in this process.

        Raises:
            SystemExit: it failed.
        """
        config = {**how.pop("run_config", {}), **_QUIET}
        result = self._definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance, run_config=config, raise_on_error=False, **how
        )
        if not result.success:
            raise SystemExit(f"{job} of {self.collection} failed: {[e.message for e in result.all_events][-3:]}")

    def cost_of(self, do: Callable[[], T]) -> tuple[T, Cost]:
        """Do something, and return what it returns and what it took."""
        self._control.requests(clear=True)
        started = time.perf_counter()
        done = do()
        seconds = time.perf_counter() - started
        asked = self._control.requests()
        return done, Cost(seconds, sum(r["bytes"] for r in asked), Counter(r["endpoint"] for r in asked))


def pretend_fetched(lake: Lake, collection: str, files: int) -> int:
    """Write receipts and index as if all images had been fetched, `files` of each series; return how many series."""
    import pyarrow as pa
    from no_op import instances

    from nbia_pipeline import clock
    from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES

    series = lake.read_table(SERIES, collection).sort_by("SeriesInstanceUID")
    said: dict[str, Any] = {"Status": "complete", "Attempts": 1, "Healed": 0, "Proof": "md5", "SeriesMD5": "0" * 32}
    said["FetchedAt"] = clock.utc_now()
    columns = [
        series["FileSize"]
        if f.name == "Bytes"
        else series[f.name]
        if f.name in series.column_names
        else pa.repeat(pa.scalar(said.get(f.name), f.type), series.num_rows)
        for f in IMAGE_SERIES.schema
    ]
    lake.write_table(IMAGE_SERIES, pa.table(columns, schema=IMAGE_SERIES.schema), collection)
    lake.write_pieces(INSTANCES, instances(series, collection, files), collection)
    return series.num_rows


def measure(url: str, control: Control, collection: str, in_archive: int, folder: Path, files: int) -> Found:
    """Measure with one collection.

    Raises:
        SystemExit: the sensor does not ask for just one run.
    """
    import datetime as dt

    pipeline = Pipeline(url, control, collection, folder)
    pipeline.run("nbia_catalogue")
    pipeline.run("nbia_tables", partition_key=collection)
    series = pretend_fetched(pipeline.lake, collection, files)
    pipeline.tick()
    _, nothing = pipeline.cost_of(pipeline.tick)
    control.add_series(collection, patient="NEW-1", released=dt.datetime.now(dt.timezone.utc).date())
    tick, found = pipeline.cost_of(pipeline.tick)
    if [r.partition_key for r in tick.run_requests] != [collection]:
        raise SystemExit(f"the sensor asks for {tick.run_requests}: {tick.skip_message}")
    (request,) = tick.run_requests
    how = {"partition_key": collection, "run_config": dict(request.run_config), "tags": dict(request.tags)}
    asked = Asked(url, control.url, collection, str(folder), request.job_name, how)
    process, run = pipeline.cost_of(lambda: run_apart(asked))
    _, after = pipeline.cost_of(pipeline.tick)
    pipeline.instance.dispose()
    return Found(in_archive, collection, series, nothing, found, run, process, after)


@dataclass(frozen=True)
class Asked:
    """A run for a process of its own: archive and its control, collection, folder, job, and how it is run."""

    url: str
    control: str
    collection: str
    folder: str
    job: str
    how: dict[str, Any]


def run_apart(asked: Asked) -> Measured:
    """Run a job in a fresh process, and measure it."""
    folder = Path(asked.folder)
    note = folder / "asked.json"
    note.write_text(json.dumps(asdict(asked)))
    return run_measured([sys.executable, __file__, "--run", note], folder)


def do_run(note: Path) -> None:
    """Run what a note asks for; this is the process of the run."""
    from nbia_pipeline.embedded.control.client import Control

    asked = Asked(**json.loads(note.read_text()))
    folder = Path(asked.folder)
    pipeline = Pipeline(asked.url, Control(asked.control), asked.collection, folder)
    with timed(folder):
        pipeline.run(asked.job, **asked.how)
    pipeline.instance.dispose()


# --- what came out


def show(rows: list[Found]) -> None:
    """Print a table, and what the runs asked."""
    print("\n| archive | collection | series | what | requests | bytes | seconds |\n|---|---|---|---|---|---|---|")
    for row in rows:
        for what, cost in {**row.ticks, "the run": row.run}.items():
            where = f"{row.archive:,} | {row.collection} | {row.series:,}"
            print(f"| {where} | {what} | {cost.requests.total()} | {cost.bytes:,} | {cost.seconds:.2f} |")
    print()
    for row in rows:
        asked = ", ".join(f"{name} {times}" for name, times in row.run.requests.most_common())
        print(f"the run of {row.collection} asked: {asked} (getMD5Hierarchy, getSOPInstanceUIDs: a check)")


def judge(rows: list[Found], results: Results) -> None:
    """Keep the figures, and compare them with the bars."""
    for row in rows:
        where = f"{row.series:,} series of {row.archive:,}"
        for what, cost in row.ticks.items():
            results.add(f"{where}, tick, {what}", *_figures(cost))
        process = row.process
        more = ((process.work_cpu, "s CPU"), (process.seconds, "s process"), (round(process.peak_mb), "MB"))
        logins = ((row.run.times(LOGIN), "logins"), (row.run.times(LOGOUT), "logouts"))
        # The seconds are those of the run, without the imports of its process.
        results.add(f"{where}, run for one new series", *_figures(row.run)[:2], (process.work, "s"), *more, *logins)
    ticks = [cost for row in rows for cost in row.ticks.values()]
    results.at_most(TICK_REQUESTS, "every tick, requests", max(t.requests.total() for t in ticks), "")
    # A small collection is asked for the metadata of its new series in two ways, in bulk and singly.
    for what, names in (("lists of each table", LISTS), ("calls for metadata of each kind", METADATA)):
        results.at_most(1, f"every run, {what}", max(row.run.requests[n] for row in rows for n in names), "")
    results.at_most(1, "every run, series fetched", max(row.run.times(DOWNLOADS) for row in rows), "")
    if any(row.run.times(DOWNLOADS) != 1 for row in rows):
        raise SystemExit("a run fetched no series")
    results.at_most(RUN_LOGINS, "every run, logins", max(row.run.times(LOGIN) for row in rows), "")
    largest = max(rows, key=lambda row: row.series)
    what = f"run for one new series of {largest.series:,}, peak memory"
    results.at_most(RUN_MB, what, round(largest.process.peak_mb), "MB")


def _figures(cost: Cost) -> list[tuple[float, str]]:
    return [(cost.requests.total(), "requests"), _size(cost.bytes), (cost.seconds, "s")]


def _size(size: int) -> tuple[float, str]:
    return (size / 1e6, "MB of answers") if size >= 1e6 else (round(size / 1e3), "kB of answers")


def main() -> int:
    """Measure all, print it, and return 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalogs", default="demo,idc", help="which archives (default: demo,idc)")
    parser.add_argument("--collections", help="which collections of idc (default: one of each size)")
    parser.add_argument("--files", type=int, default=1, help="files of each series, in the index (default: 1)")
    parser.add_argument("--folder", type=Path, help="directory to work in (default: the system's for temporary files)")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.run is not None:
        do_run(options.run)
        return 0
    rows = []
    for catalog in options.catalogs.split(","):
        chosen = COLLECTIONS[catalog]
        if options.collections and catalog == "idc":
            chosen = options.collections.split(",")
        with archive(catalog) as (url, control):
            in_archive = SERIES_IN[catalog]
            for collection in chosen:
                with tempfile.TemporaryDirectory(prefix="nbia-bench-", dir=options.folder) as folder:
                    rows.append(measure(url, control, collection, in_archive, Path(folder), options.files))
    show(rows)
    results = Results(options.json)
    judge(rows, results)
    return results.finish()


SERIES_IN = {"demo": 31, "idc": 1_044_191}
"""How many series the archives have."""


if __name__ == "__main__":
    sys.exit(main())
