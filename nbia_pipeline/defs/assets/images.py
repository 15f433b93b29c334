"""The images of a collection: plan, fetch in batches that Dagster spreads over processes, finish.

Inside: a graph with dynamic outputs. One mapped step is one batch of series; re-execution from failure
repeats only the batches that failed, and a new run plans afresh from what the lake holds.
"""

import time
from typing import Any

import dagster as dg
from pydantic import Field

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.defs.assets.fetch_op import build_fetch_op
from nbia_pipeline.defs.assets.finish import build_finish_op
from nbia_pipeline.defs.assets.settling import committed, listed_series
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.metadata import definition_metadata
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.commit import staged_by_journal
from nbia_pipeline.mirror.licenses import keep_licenses
from nbia_pipeline.mirror.plan import BATCH_SERIES, Plan, batches, expect_room, make_plan
from nbia_pipeline.mirror.selection import Selection, with_lists
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES
from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline.text import size_text

DESCRIPTION = (
    "The image files of the collection, one per instance, each verified. Every series is there whole or not at "
    "all; its receipt is in table image_series, its files are listed in table instances."
)


class RunBounds(dg.Config):
    """How much one run fetches, and how it is cut. What is left gets the status ``pending``."""

    max_bytes: int | None = Field(default=None, ge=1, description="Fetch no more bytes than this; the rest waits.")
    max_series: int | None = Field(default=None, ge=1, description="Fetch no more series than this; the rest waits.")
    retry: bool = Field(
        default=True,
        description="Try again what is quarantined or unavailable and did not change since. False: of these only what "
        "was unavailable a day ago.",
    )
    batch_series: int = Field(
        default=BATCH_SERIES,
        ge=1,
        description="Series per batch at the most. A batch is what a process takes, and what re-execution repeats.",
    )


class ImagesConfig(RunBounds):
    """What one run fetches: a selection, and bounds. What is left gets the status ``pending``."""

    modalities: list[str] = Field(default=[], description="Only these modalities, like CT; any case. None: all.")
    body_parts: list[str] = Field(default=[], description="Only these values of BodyPartExamined; any case. None: all.")
    patients: list[str] = Field(default=[], description="Only these PatientIDs, exactly as listed. None: all.")
    series: list[str] = Field(default=[], description="Only these SeriesInstanceUIDs. None: all.")
    manifest: str | None = Field(
        default=None,
        description="Path of a .tcia manifest, on the machine that runs this step: only its series, with those named.",
    )
    cart: str | None = Field(
        default=None, description="Name of a shared cart: only its series, with those named. API v2 only."
    )

    def selection(self, client: NbiaClient) -> Selection:
        """Return which series are wanted.

        Raises:
            SelectionError: the manifest or the cart names no series.
            ArchiveError: the archive cannot be asked for the cart.
        """
        fields = (self.modalities, self.body_parts, self.patients, self.series)
        return with_lists(Selection(*map(tuple, fields)), manifest=self.manifest, cart=self.cart, client=client)


def build_images_asset(names: Naming, settings: Settings) -> dg.AssetsDefinition:
    """Return the ``images`` asset of one archive."""
    plan, fetch, finish = _plan_op(names, settings), build_fetch_op(names, settings), build_finish_op(names, settings)

    @dg.graph_asset(
        name="images",
        key_prefix=names.prefix,
        partitions_def=names.partitions,
        description=DESCRIPTION,
        group_name="images",
        kinds={"dicom", "file"},
        metadata=definition_metadata(IMAGE_SERIES),
        ins={"series": dg.AssetIn(key=names.key(SERIES.name), dagster_type=dg.Nothing)},
    )
    def images(series: Any) -> Any:
        found, summary = plan(series)
        return finish(summary, found.map(fetch).collect())

    return images


def _plan_op(names: Naming, settings: Settings) -> dg.OpDefinition:
    @dg.op(
        name=names.of("plan_images"),
        ins={"after": dg.In(dg.Nothing)},
        out={"found": dg.DynamicOut(list), "summary": dg.Out(dict)},
        required_resource_keys={names.archive, names.lake},
    )
    def plan_images(context: dg.OpExecutionContext, config: ImagesConfig) -> Any:
        collection = context.partition_key
        started = time.time()
        with as_failure(settings), names.archive_of(context).client() as client:
            _expect_mirrored(settings, collection)
            lake = names.lake_of(context).open()
            selection = config.selection(client)
            series = listed_series(lake, collection)
            receipts = committed(lake, collection, series)
            swept = lake.sweep(keep=staged_by_journal(lake))
            plan = make_plan(
                series,
                receipts,
                selection=selection,
                max_bytes=config.max_bytes,
                max_series=config.max_series,
                retry=config.retry,
            )
            context.log.info(f"{collection}: {plan_text(plan, lake)}" + (f", {swept} leftovers swept" if swept else ""))
            expect_room(lake, plan)
            keep_licenses(client, lake, collection, series)
        yield from planned_outputs(plan, config.batch_series, started)

    return plan_images


def planned_outputs(plan: Plan, batch_series: int, started: float, **properties: Any) -> Any:
    """Yield the outputs of a plan op: ``found``, one for each batch, and ``summary`` for the finish op.

    Args:
        plan: what to fetch.
        batch_series: series per batch at the most.
        started: when the run began, seconds since 1970.
        facts: what else the finish op shall know, as plain JSON values.
    """
    planned = list(batches(plan.todo, max_series=batch_series))
    keys = [f"b{n:05d}" for n in range(len(planned))]
    for key, batch in zip(keys, planned, strict=True):
        yield dg.DynamicOutput([WantedSeries.to_json(w) for w in batch], mapping_key=key, output_name="found")
    summary = {"batches": keys, "done": plan.done, "left": len(plan.left), "started": started, **properties}
    yield dg.Output(summary, output_name="summary")


def plan_text(plan: Plan, lake: Lake) -> str:
    """Return what a run will do, before a byte moves: what it fetches, what is there, what the disk has free."""
    free = lake.free_bytes()
    parts = [
        f"{plan.figures.series} series to fetch ({plan.files:,} files, {size_text(plan.bytes)})",
        f"{plan.done} of {plan.wanted} in the lake ({size_text(plan.done_figures.bytes)})",
    ]
    if plan.left:
        parts.append(f"{len(plan.left)} left for a later run")
    if plan.given_up:
        parts.append(f"{plan.given_up} tried in vain before and left out")
    if plan.unselected:
        parts.append(f"{plan.unselected} not selected")
    if free is not None:
        parts.append(f"{size_text(free)} free on the disk")
    return ", ".join(parts)


def _expect_mirrored(settings: Settings, collection: str) -> None:
    if not settings.mirrors_images_of(collection):
        raise SettingsError(
            f"the images of {collection!r} are not mirrored: add the collection to {settings.name_of('images')} if "
            "they should be"
        )
