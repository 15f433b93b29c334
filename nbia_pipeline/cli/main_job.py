"""The main job from start to end, in one process: catalogue, tables, images, and what came of it.

The same jobs that the UI, the schedules and the sensors run; here they run one after the other, with
their events in the Dagster instance, and the end is a summary for a terminal.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import pyarrow.compute as pc

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.jobs import CATALOG, RANGE_END, RANGE_START, images_config
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.defs.partitions import contiguous_ranges
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.schema.tables import COLLECTIONS, IMAGE_SERIES, PATIENTS, SERIES, SERIES_METADATA, STUDIES
from nbia_pipeline.settings import Settings

PARTITIONED = (PATIENTS, STUDIES, SERIES, SERIES_METADATA)

# Figures of the metadata of the images asset, and the check that all of them are there.
FIGURES = (
    "fetched_series",
    "fetched_files",
    "fetched_bytes",
    "healed_instances",
    "skipped_series",
    "left_series",
    "quarantined",
    "unavailable",
)
IMAGES_COMPLETE = "images complete"

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class CollectionSummary:
    """What the lake holds of one collection.

    Attributes:
        collection: its name.
        rows: number of rows by table.
        complete: series whose files are in the lake, verified.
        wanted: series whose files shall be in the lake; 0 where images are not mirrored.
        files: image files.
        bytes: their size.
    """

    collection: str
    rows: dict[str, int]
    complete: int
    wanted: int
    files: int
    bytes: int


@dataclass
class Outcome:
    """What a run of the main job did.

    Attributes:
        collections: what the lake holds now.
        fetched: figures of the images by the name that their asset gives them: what this run moved, healed, skipped
            and left, and what could not be had.
        partly: True if only some of the images were asked for.
        seconds: how long each part took.
        checks: by asset and check, how its last evaluation came out: None if it passed, else what it found.
        warnings: what the other checks found, whose failure is a hint and no problem.
        failures: one sentence for every step that failed.
    """

    collections: list[CollectionSummary] = field(default_factory=list)
    fetched: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[str, float] = field(default_factory=dict)
    checks: dict[str, str | None] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    partly: bool = False

    @property
    def failed_checks(self) -> dict[str, str]:
        """What the checks found that failed last, by asset and check.

        That images are missing is no finding where only some were asked for, unless they could not be had.
        """
        failed = {name: found for name, found in self.checks.items() if found is not None}
        if self.partly and not (self.fetched["quarantined"] or self.fetched["unavailable"]):
            failed.pop(IMAGES_COMPLETE, None)
        return failed

    @property
    def problems(self) -> list[str]:
        """Every failed step and every check that failed last, in one sentence each."""
        return [*self.failures, *(f"{name}: {found}" for name, found in self.failed_checks.items())]


def run_main_job(
    settings: Settings,
    instance: dg.DagsterInstance,
    tell: Callable[[str], None] = lambda line: None,
    images: Mapping[str, Any] | None = None,
) -> Outcome:
    """Materialize everything that the settings ask for.

    A collection that fails costs only itself; the outcome names it.

    Args:
        settings: where the data come from and where they go.
        instance: where Dagster keeps the events and the partitions.
        tell: called with one line per part done.
        images: which images to fetch, and how much of them: fields of ``ImagesConfig``. All if there are none.

    Raises:
        KeyboardInterrupt: the person pressed Ctrl-C; what was finished stays.
        LakeError: the lake cannot be read.
    """
    names = Naming()
    runner = _Runner(build_definitions(settings, names), names, instance, tell)
    # First alone: where the archive or the lake cannot be used at all, it says so once, and soon.
    if not runner.run("catalogue", "collections", asset_selection=[names.key(COLLECTIONS.name)]):
        return runner.outcome
    runner.run("catalogue", "values", asset_selection=[names.key(a) for a in CATALOG if a != COLLECTIONS.name])
    lake = Lake(settings.lake)
    kept = lake.read_table(COLLECTIONS, columns=["Collection"])["Collection"].to_pylist()
    registered = list(instance.get_dynamic_partitions(str(names.partitions.name)))
    for first, last in contiguous_ranges(kept, registered):
        label = first if first == last else f"{first} to {last}"
        tags = {RANGE_START: first, RANGE_END: last}
        runner.run("tables", label, tags=tags)
    for collection in (c for c in kept if settings.mirrors_images_of(c)):
        if lake.count_rows(SERIES, collection):
            runner.run("images", collection, config=images_config(names, **(images or {})), partition_key=collection)
    runner.outcome.partly = bool(images)
    runner.outcome.collections = [summarise(lake, c, settings) for c in sorted(kept)]
    return runner.outcome


def summarise(lake: Lake, collection: str, settings: Settings) -> CollectionSummary:
    """Return what the lake holds of a collection."""
    receipts = lake.read_table(IMAGE_SERIES, collection, columns=["Status", "ImageCount", "Bytes"])
    complete = receipts.filter(pc.equal(receipts["Status"], COMPLETE))
    rows = {table.name: lake.count_rows(table, collection) for table in PARTITIONED}
    return CollectionSummary(
        collection,
        rows,
        complete=complete.num_rows,
        wanted=rows[SERIES.name] if settings.mirrors_images_of(collection) else 0,
        files=pc.sum(complete["ImageCount"]).as_py() or 0,
        bytes=pc.sum(complete["Bytes"]).as_py() or 0,
    )


class _Runner:
    def __init__(
        self, definitions: dg.Definitions, names: Naming, instance: dg.DagsterInstance, tell: Callable[[str], None]
    ) -> None:
        self._definitions = definitions
        self._names = names
        self._instance = instance
        self._tell = tell
        self.outcome = Outcome()

    def run(self, what: str, label: str = "", config: Mapping[str, Any] | None = None, **how: Any) -> bool:
        """Run one job and take its results into the outcome; False if it failed."""
        started = time.perf_counter()
        result = self._definitions.resolve_job_def(self._names.of(what)).execute_in_process(
            instance=self._instance, run_config={**_QUIET, **(config or {})}, raise_on_error=False, **how
        )
        seconds = time.perf_counter() - started
        self.outcome.seconds[what] = self.outcome.seconds.get(what, 0.0) + seconds
        for event in result.all_events:
            self._take(event)
        word = "done" if result.success else "FAILED"
        self._tell(f"  {what:<10} {label:<32} {word:>6} {seconds:7.1f} s")
        return bool(result.success)

    def _take(self, event: dg.DagsterEvent) -> None:
        if event.is_step_failure:
            error = event.step_failure_data.error
            if error is not None and error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
                raise KeyboardInterrupt  # Dagster ends the run and goes on; a person wants all of it to end
            self._blame(_sentence(event))
        elif event.event_type_value == "ASSET_CHECK_EVALUATION":
            self._take_check(event.asset_check_evaluation_data)
        elif event.is_step_materialization and event.asset_key == self._names.key("images"):
            metadata = event.step_materialization_data.materialization.metadata
            for name in FIGURES:
                self.outcome.fetched[name] += int(str(metadata[name].value))

    def _blame(self, sentence: str) -> None:
        if sentence not in self.outcome.failures:
            self.outcome.failures.append(sentence)

    def _take_check(self, evaluation: Any) -> None:
        name = f"{evaluation.asset_key.path[-1]} {evaluation.check_name}"
        for found in (self.outcome.checks, self.outcome.warnings):
            found.pop(name, None)
        if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.WARN:
            self.outcome.warnings[name] = str(evaluation.description)
        else:
            self.outcome.checks[name] = None if evaluation.passed else str(evaluation.description)


def _sentence(event: dg.DagsterEvent) -> str:
    """Return the sentence of a failed step: that of its Failure, else of its error."""
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error is not None else f"step {event.step_key} failed"
