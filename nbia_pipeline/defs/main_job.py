"""The main job: everything that the settings ask for, in order: catalog, tables, images.

These are the jobs that the UI, the schedules and the sensors run. Here they run one after the other in one process,
with their events in the Dagster instance.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.defs.assets.partitioned import FAILED_COLLECTIONS
from nbia_pipeline.defs.failures import INTERRUPTS
from nbia_pipeline.defs.jobs import (
    CATALOG,
    CATALOG_JOB,
    HEADERS,
    IMAGES_JOB,
    RANGE_END,
    RANGE_START,
    TABLES_JOB,
    images_config,
    tables_config,
)
from nbia_pipeline.defs.naming import Naming, contiguous_ranges
from nbia_pipeline.defs.resources import one_login
from nbia_pipeline.defs.slots import owned
from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.lake.damage import read_or_empty
from nbia_pipeline.lake.lock import soon_if_interrupted
from nbia_pipeline.mirror.commit import commit_journal
from nbia_pipeline.mirror.selection import NotRead, SelectionError, Selections
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.status import COMPLETE, PENDING, QUARANTINED, UNAVAILABLE
from nbia_pipeline.schema.tables import (
    COLLECTIONS,
    COUNTED,
    IMAGE_SERIES,
    SERIES,
)
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import did_you_mean, matching, unmatched

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Outcome:
    """What a run of the main job did.

    Attributes:
        collections: what the lake has now, by collection: the rows of each table; ``wanted`` series, whose files
            should be there (0 where images are not mirrored), and the number of those that are, verified
            (``complete``); series that are ``not_selected``; ``files`` and ``bytes`` of all complete series.
        fetched: figures of the images by the name that their asset gives them: what this run fetched, repaired,
            skipped and left, and what could not be fetched.
        headers: by asset of headers and collection, the figures that it gives.
        seconds: how long each part took.
        runs: by job and what it was for, the ID of the run.
        contact_sheet: of one of the collections whose images were mirrored, as metadata.
        checks: by asset, check and collection, the result of the last evaluation: None if it passed, else what it
            found.
        warnings: what the other checks found, whose failure is a hint, not a problem.
        failures: one sentence for every step that failed.
        interrupted: True if it was stopped before it had done everything.
    """

    collections: dict[str, Counter[str]] = field(default_factory=dict)
    fetched: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    headers: dict[tuple[str, str | None], dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    runs: dict[str, str] = field(default_factory=dict)
    contact_sheet: dg.MarkdownMetadataValue | None = None
    checks: dict[str, str | None] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failed_checks(self) -> dict[str, str]:
        """What the checks found that failed last, by asset, check and collection."""
        return {name: found for name, found in self.checks.items() if found is not None}

    @property
    def of_headers(self) -> dict[str, int]:
        """How many files were read, have a header that is read, have problems in it; references and orphans."""
        names = ("read_files", "files", "files_with_problems", "references", "orphans")
        return {name: sum(figures.get(name, 0) for figures in self.headers.values()) for name in names}

    @property
    def problems(self) -> list[str]:
        """Every failed step and every check that failed last, in one sentence each."""
        return [*self.failures, *(f"{name}: {found}" for name, found in self.failed_checks.items())]


class Stop(Protocol):
    """The request to stop that a process may get."""

    @property
    def signal(self) -> int | None:
        """Number of the signal, None as long as there is none."""

    def arm(self) -> None:
        """Handle the signals again, whose handlers Dagster replaces while a job runs."""


class _NoStop:
    signal = None

    def arm(self) -> None:
        """Do nothing: Dagster's handlers stay."""


def run_main_job(
    settings: Settings,
    naming: Naming,
    job_of: Callable[[str], dg.JobDefinition],
    instance: dg.DagsterInstance,
    on_progress: Callable[[str], None] = lambda line: None,
    images: Mapping[str, Any] | None = None,
    *,
    collections: Sequence[str] = (),
    allow_lost_columns: bool = False,
    tags: Mapping[str, str] | None = None,
    stop: Stop | None = None,
    on_tables: Callable[[list[str]], None] = lambda collections: None,
) -> Outcome:
    """Materialize everything that the settings ask for.

    A collection that fails does not stop the others; the outcome names it. After an interrupt nothing more begins.

    Args:
        settings: where the data come from and where they go.
        naming: the names of the archive's assets and jobs.
        job_of: returns a job by its name.
        instance: where Dagster keeps the events and the partitions.
        on_progress: called with one line per part done.
        images: which images to fetch, and how much of them: fields of ``ImagesConfig``. None: all.
        collections: only these, or globs, of those that the settings ask for; none: all.
        allow_lost_columns: take answers in which a column is empty that was full before.
        tags: those of each run.
        stop: the request to stop that a process has which handles signals itself.
        on_tables: called when the tables are there, with the collections whose images come next; what it raises ends
            the run.

    Raises:
        LakeError: the lake cannot be read.
    """
    runner = _Runner(job_of, naming, instance, on_progress, stop or _NoStop(), tags or {}, on_tables)
    try:
        with one_login():
            if not _materialize(settings, runner, images, collections, allow_lost_columns=allow_lost_columns):
                return runner.outcome
    except INTERRUPTS:
        runner.outcome.interrupted = True
    lake = Lake(settings.lake)
    kept = lake.read_table(COLLECTIONS, columns=["Collection"])["Collection"].to_pylist()
    runner.outcome.collections = {c: summarize(lake, c, settings) for c in sorted(kept)}
    return runner.outcome


def _materialize(
    settings: Settings,
    runner: _Runner,
    images: Mapping[str, Any] | None,
    collections: Sequence[str],
    *,
    allow_lost_columns: bool,
) -> bool:
    """Run the jobs; False if nothing can be done at all."""
    naming = runner.naming
    # Alone and first: if the archive or the lake cannot be used at all, that is reported once, and early.
    if not runner.run(CATALOG_JOB, "collections", asset_selection=[naming.key(COLLECTIONS.name)]):
        return False
    values = [naming.key(asset) for asset in CATALOG if asset != COLLECTIONS.name]
    runner.run(CATALOG_JOB, "values", asset_selection=values)
    lake = Lake(settings.lake, fsync=settings.fsync)
    kept = lake.read_table(COLLECTIONS, columns=["Collection"])["Collection"].to_pylist()
    if collections:
        _expect_known(collections, kept)
        kept = matching(collections, kept)
    tables = tables_config(naming, allow_lost_columns=True) if allow_lost_columns else None
    registered = list(runner.instance.get_dynamic_partitions(str(naming.partitions.name)))
    for stretch in _stretches(kept, registered):
        runner.run_range(TABLES_JOB, stretch, tables)
    mirrored = [c for c in kept if settings.mirrors_images_of(c) and _rows(lake, SERIES, c)]
    runner.on_tables(mirrored)
    for stretch in _stretches(mirrored, registered):
        _mirror(runner, lake, stretch, images_config(naming, **_less(images or {}, runner.outcome.fetched)))
    return True


def _expect_known(collections: Sequence[str], kept: Sequence[str]) -> None:
    for name, similar in unmatched(collections, kept).items():
        hint = did_you_mean(similar, "the table of collections names those that are mirrored")
        raise SelectionError(f"no collection that is mirrored is {name!r}: {hint}")


def _stretches(collections: list[str], registered: list[str]) -> list[list[str]]:
    """Return the collections in as few lists as there are ranges of partitions."""
    at = registered.index
    return [registered[at(first) : at(last) + 1] for first, last in contiguous_ranges(collections, registered)]


def _less(images: Mapping[str, Any], fetched: Mapping[str, int]) -> dict[str, Any]:
    """Return what is asked for, with bounds that are less what was fetched; a plan alone where one is used up."""
    left = dict(images)
    for bound, what in (("max_bytes", "bytes"), ("max_series", "series")):
        if bound in left:
            left[bound] -= fetched.get(f"fetched_{what}", 0) + fetched.get(f"referenced_{what}", 0)
    if any(left.get(bound, 1) < 1 for bound in ("max_bytes", "max_series")):
        left = {**left, "max_bytes": None, "max_series": 0}
    return left


def _mirror(runner: _Runner, lake: Lake, collections: list[str], config: Mapping[str, Any]) -> None:
    """Run the job of the images of neighboring collections, and again for the others where it failed for some.

    Dagster skips the later steps of a run in which one failed: for what was fetched they are run then.
    """
    began, before = clock.utc_now(), dict(runner.outcome.fetched)
    try:
        done = runner.run_range(IMAGES_JOB, collections, config)
        if not done and runner.outcome.fetched == before:
            _count(runner, lake, collections, began)
    except INTERRUPTS:  # its last step, which commits and has the figures, was not run
        for collection in collections:
            with soon_if_interrupted():
                commit_journal(lake, collection)
        with soon_if_interrupted():
            _count(runner, lake, collections, began)
        raise
    rest = [c for c in collections if c not in runner.failed]
    if done or not runner.failed:
        return
    counted = dict(runner.outcome.fetched)
    for stretch in _stretches(rest, collections):
        runner.run_range(IMAGES_JOB, stretch, config)
    runner.outcome.fetched.clear()
    runner.outcome.fetched.update(counted)


def _count(runner: _Runner, lake: Lake, collections: list[str], began: datetime) -> None:
    for collection in collections:
        figures = figures_since(read_or_empty(lake, IMAGE_SERIES, collection, lost="It is not counted"), began)
        for name, number in figures.items():
            runner.outcome.fetched[name] += number


def figures_since(receipts: pa.Table, began: datetime) -> Counter[str]:
    """Return the figures of the asset of images, by its receipts: what was fetched since a time (UTC), and what not."""
    complete = receipts.filter(pc.equal(receipts["Status"], COMPLETE))
    new = complete.filter(pc.greater_equal(complete["FetchedAt"], pa.scalar(began, complete["FetchedAt"].type)))
    figures = Counter(receipts["Status"].to_pylist())
    return Counter(
        fetched_series=new.num_rows,
        fetched_files=pc.sum(new["ImageCount"]).as_py() or 0,
        fetched_bytes=pc.sum(new["Bytes"]).as_py() or 0,
        healed_instances=pc.sum(new["Healed"]).as_py() or 0,
        skipped_series=complete.num_rows - new.num_rows,
        left_series=figures[PENDING],
        **{status: figures[status] for status in (QUARANTINED, UNAVAILABLE)},
    )


def summarize(lake: Lake, collection: str, settings: Settings) -> Counter[str]:
    """Return what the lake has of a collection: see :attr:`Outcome.collections`."""
    columns = ["SeriesInstanceUID", "Status", "ImageCount", "Bytes"]
    receipts = read_or_empty(lake, IMAGE_SERIES, collection, columns, lost="Its figures are not shown")
    complete = receipts.filter(pc.equal(receipts["Status"], COMPLETE))
    figures = Counter({table.name: _rows(lake, table, collection) for table in COUNTED})
    mirrored = settings.mirrors_images_of(collection)
    figures["complete"] = complete.num_rows
    figures["wanted"] = figures[SERIES.name] if mirrored else 0
    selections = Selections(settings.select)
    if mirrored and selections.entry(collection):
        with suppress(NotRead, DamagedFile):  # the step failed that should have read it
            series = lake.read_file(SERIES, collection)
            wanted = selections.wanted(lake, collection, series)["SeriesInstanceUID"]
            figures["wanted"] = len(wanted)
            figures["not_selected"] = series.num_rows - len(wanted)
            figures["complete"] = pc.sum(pc.is_in(complete["SeriesInstanceUID"], value_set=wanted)).as_py() or 0
    figures["files"] = pc.sum(complete["ImageCount"]).as_py() or 0
    figures["bytes"] = pc.sum(complete["Bytes"]).as_py() or 0
    return figures


def _rows(lake: Lake, table: Table, collection: str) -> int:
    """Return how many rows a table has; none if it is damaged: then the step failed that should have listed it."""
    try:
        return lake.count_rows(table, collection)
    except DamagedFile:
        return 0


@dataclass
class _Runner:
    job_of: Callable[[str], dg.JobDefinition]
    naming: Naming
    instance: dg.DagsterInstance
    on_progress: Callable[[str], None]
    stop: Stop
    tags: Mapping[str, str]
    on_tables: Callable[[list[str]], None]
    outcome: Outcome = field(default_factory=Outcome)
    failed: set[str] = field(default_factory=set)
    """The collections that the last run failed for, as far as its steps name them."""

    def run_range(self, job: str, collections: list[str], config: Mapping[str, Any] | None = None) -> bool:
        """Run one job over neighboring collections; see :meth:`run`."""
        first, last = collections[0], collections[-1]
        label = first if first == last else f"{first} to {last}"
        return self.run(job, label, config, tags={RANGE_START: first, RANGE_END: last})

    def run(
        self,
        job: str,
        label: str,
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        **how: Any,
    ) -> bool:
        """Run one job and add its results to the outcome; False if it failed.

        Raises:
            KeyboardInterrupt: the process is asked to stop.
        """
        started, tagged = time.perf_counter(), owned({**self.tags, **(tags or {})})
        self.failed = set()
        self.outcome.runs[f"{job} {label}"] = tagged["run_id"]
        self.instance.add_event_listener(tagged["run_id"], self._tell)
        try:
            result = self.job_of(self.naming.of(job)).execute_in_process(
                instance=self.instance,
                run_config={**_QUIET, **(config or {})},
                raise_on_error=False,
                **tagged,
                **how,
            )
        finally:
            self.stop.arm()
            if self.stop.signal is not None:
                self._cancel(tagged["run_id"])
        seconds = time.perf_counter() - started
        self.outcome.seconds[job] += seconds
        word = "stopped" if self.stop.signal is not None else "done" if result.success else "FAILED"
        self.on_progress(f"  {job:<10} {label:<32} {word:>7} {seconds:7.1f} s")
        for event in result.all_events:
            self._take(event)
        if self.stop.signal is not None:
            raise KeyboardInterrupt  # Dagster ends the run at most, and forgets the signal if it came between two steps
        return bool(result.success)

    def _cancel(self, run_id: str) -> None:
        """Call a run canceled that Dagster calls failed, or not ended, because it knows of no request to stop it."""
        run = self.instance.get_run_by_id(run_id)
        if run is not None and run.status not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED):
            self.instance.report_run_canceled(run, "The process was asked to stop.")

    def _tell(self, entry: Any) -> None:
        """Pass on what a step tells a person: its plan, and how far a batch is."""
        skipped = entry.user_message.startswith("Skipping step ")  # Dagster's own, of what was not asked for
        if entry.dagster_event is None and entry.level == logging.INFO and not skipped:
            self.on_progress(f"    {entry.user_message}")

    def _take(self, event: dg.DagsterEvent) -> None:
        if event.is_step_failure:
            error = event.step_failure_data.error
            if error is not None and error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
                raise KeyboardInterrupt  # that of a program that has no handler of ours
            sentence = _sentence(event)
            if sentence not in self.outcome.failures:
                self.outcome.failures.append(sentence)
            data = event.step_failure_data.user_failure_data
            names: Any = data and data.metadata.get(FAILED_COLLECTIONS)
            self.failed.update(names.value if names else ())
        elif event.event_type_value == "ASSET_CHECK_EVALUATION":
            self._take_check(event.asset_check_evaluation_data)
        elif event.is_step_materialization:
            self._take_figures(event.step_materialization_data.materialization)

    def _take_figures(self, made: dg.AssetMaterialization) -> None:
        figures = {name: entry.value for name, entry in made.metadata.items() if isinstance(entry.value, int)}
        if made.asset_key in map(self.naming.key, HEADERS):
            self.outcome.headers[made.asset_key.path[-1], made.partition] = figures
        if made.asset_key != self.naming.key("images"):
            return
        for name, number in figures.items():
            self.outcome.fetched[name] += number
        if failed := figures.get("referenced_failed"):
            self.outcome.failures.append(
                f"{failed} series that references lead to could not be fetched: table image_series has the reasons"
            )
        sheet = made.metadata.get("contact_sheet")
        if isinstance(sheet, dg.MarkdownMetadataValue):
            self.outcome.contact_sheet = self.outcome.contact_sheet or sheet

    def _take_check(self, evaluation: Any) -> None:
        name = " ".join(filter(None, (evaluation.asset_key.path[-1], evaluation.check_name, evaluation.partition)))
        for found in (self.outcome.checks, self.outcome.warnings):
            found.pop(name, None)
        if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.WARN:
            self.outcome.warnings[name] = str(evaluation.description)
        else:
            self.outcome.checks[name] = None if evaluation.passed else str(evaluation.description)


def _sentence(event: dg.DagsterEvent) -> str:
    """Return the message of a failed step: that of its Failure, else of its error."""
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error is not None else f"step {event.step_key} failed"
