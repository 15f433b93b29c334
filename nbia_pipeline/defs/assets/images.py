"""The images of a collection: plan, fetch in batches that Dagster spreads over processes, finish.

Inside: a graph with dynamic outputs. One mapped step is one batch of series; re-execution from failure
repeats only the batches that failed, and a new run makes a new plan from what the lake contains.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import dagster as dg
import pyarrow.compute as pc
from pydantic import Field

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.defs.assets.fetch_op import build_fetch_op, digest_of, failed_table
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.metadata import LABELS, contact_sheet_metadata, definition_metadata, histogram, size_classes
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import collection_path
from nbia_pipeline.lake.table_file import Rows, rows_where
from nbia_pipeline.mirror.commit import carry_over
from nbia_pipeline.mirror.engine import Mirror, listed_series
from nbia_pipeline.mirror.plan import BATCH_SERIES, Bounds, Plan
from nbia_pipeline.mirror.selection import Selection, with_lists
from nbia_pipeline.mirror.series import refresh_failed
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.status import COMPLETE, PENDING, QUARANTINED, UNAVAILABLE, WITHDRAWN
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES
from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline.text import shown

NAME = "images"
DESCRIPTION = (
    "The image files of the collection, one per instance, each verified. A series is in the lake complete or not at "
    "all; its receipt is in table image_series, and its files are listed in table instances."
)
STATUSES = (COMPLETE, PENDING, UNAVAILABLE, QUARANTINED, WITHDRAWN)


class RunBounds(dg.Config):
    """How much one run fetches, and how it is cut. The rest gets the status ``pending``."""

    max_bytes: int | None = Field(
        default=None, ge=1, description="Fetch at most this many bytes; the rest is left for a later run."
    )
    max_series: int | None = Field(
        default=None, ge=1, description="Fetch at most this many series; the rest is left for a later run."
    )
    retry: bool = Field(
        default=True,
        description="Retry series that are quarantined or unavailable and have not changed since. False: of these, "
        "retry only what was unavailable a day ago or earlier.",
    )
    batch_series: int = Field(
        default=BATCH_SERIES,
        ge=1,
        description="Most series per batch. A batch is the unit that a process takes and that re-execution repeats; it "
        "has about 10 GB, where each series counts 1 MB besides its bytes.",
    )

    def bounds(self) -> Bounds:
        """Return how much to fetch."""
        return Bounds(self.max_bytes, self.max_series, self.retry)


class ImagesConfig(RunBounds):
    """What one run fetches: a selection, and bounds. The rest gets the status ``pending``."""

    modalities: list[str] = Field(default=[], description="Only these modalities, such as CT, in any case. None: all.")
    body_parts: list[str] = Field(default=[], description="Only these BodyPartExamined, in any case. None: all.")
    patients: list[str] = Field(default=[], description="Only these PatientIDs, exactly as listed. None: all.")
    series: list[str] = Field(default=[], description="Only these SeriesInstanceUIDs. None: all.")
    manifest: str | None = Field(
        default=None,
        description="Path of a .tcia manifest, an exported table or a list of UIDs, on the machine of this step: "
        "only its series, and those named.",
    )
    cart: str | None = Field(
        default=None, description="Name of a shared cart: only its series, and those named. API v2 only."
    )

    def selection(self, client: NbiaClient) -> Selection:
        """Return which series are wanted.

        Raises:
            SelectionError: the manifest or the cart names no series.
            ArchiveError: the archive cannot be asked for the cart.
        """
        fields = (self.modalities, self.body_parts, self.patients, self.series)
        return with_lists(Selection(*map(tuple, fields)), manifest=self.manifest, cart=self.cart, client=client)


Config = TypeVar("Config", bound=RunBounds)


def build_images_asset(naming: Naming, settings: Settings) -> dg.AssetsDefinition:
    """Return the ``images`` asset of one archive."""

    def make_plan(context: dg.OpExecutionContext, config: ImagesConfig, mirror: Mirror) -> tuple[Plan, dict[str, Any]]:
        collection = context.partition_key
        if not settings.mirrors_images_of(collection):
            raise SettingsError(
                f"the images of {collection!r} are not mirrored: add the collection to {settings.name_of('images')} "
                "to mirror them"
            )
        selection = config.selection(mirror.client)
        return mirror.plan(
            collection, selection, config.bounds(), on_progress=lambda line: context.log.info(shown(line))
        ), {}

    after = {"after": dg.In(dg.Nothing)}
    plan, fetch, finish = build_ops(naming, settings, NAME, ImagesConfig, make_plan, _finish, after)

    @dg.graph_asset(
        name=NAME,
        key_prefix=naming.prefix,
        partitions_def=naming.partitions,
        description=DESCRIPTION,
        group_name="images",
        kinds={"dicom", "file"},
        metadata=definition_metadata(IMAGE_SERIES),
        ins={"series": dg.AssetIn(key=naming.key(SERIES.name), dagster_type=dg.Nothing)},
    )
    def images(series: Any) -> Any:
        found, summary = plan(series)
        return finish(summary, found.map(fetch).collect())

    return images


def _finish(context: dg.OpExecutionContext, lake: Lake, summary: dict[str, Any], reports: list[Any]) -> dict[str, Any]:
    collection = context.partition_key
    series = listed_series(lake, collection)
    receipts = carry_over(lake, collection, series)
    complete = (p.filter(pc.equal(p["Status"], COMPLETE)) for p in receipts.pieces(["Status", "Bytes"]))
    sizes = (size for piece in complete for size in piece["Bytes"].to_pylist())
    fetched = [sum(r["sizes"][n] for r in reports) for n in range(len(LABELS))]
    return {
        **contact_sheet_metadata(context.log, lake, collection, receipts, series),
        "dagster/partition_row_count": receipts.num_rows,
        "path": dg.MetadataValue.path(lake.url(collection_path(collection))),
        **receipts_metadata(receipts),
        "series_sizes": dg.MetadataValue.md(histogram(size_classes(sizes), fetched)),
    }


# --- the steps of an asset of images


def build_ops(
    naming: Naming,
    settings: Settings,
    asset: str,
    config_type: type[Config],
    make_plan: Callable[[dg.OpExecutionContext, Config, Mirror], tuple[Plan, dict[str, Any]]],
    finish: Callable[[dg.OpExecutionContext, Lake, dict[str, Any], list[Any]], dict[str, Any]],
    ins: Mapping[str, dg.In] | None = None,
) -> tuple[dg.OpDefinition, dg.OpDefinition, dg.OpDefinition]:
    """Return the ops of an asset: the first plans, the second fetches a batch, the last commits and shows figures.

    The first has the outputs ``found``, one for each batch, and ``summary`` for the last.

    Args:
        asset: the one that the ops are parts of.
        config_type: what a run can be asked for.
        make_plan: returns the plan, and what else `finish` must know, as plain JSON values.
        finish: commits, and returns what the lake contains, as metadata.
        ins: inputs of the first op.
    """

    @dg.op(
        name=naming.of(f"plan_{asset}"),
        ins=ins,
        out={
            "found": dg.DynamicOut(list, io_manager_key=naming.steps),
            "summary": dg.Out(dict, io_manager_key=naming.steps),
        },
        config_schema=config_type.to_config_schema().as_field(),
        required_resource_keys={naming.archive, naming.lake},
    )
    def plan_op(context: dg.OpExecutionContext) -> Any:
        started = time.time()
        config = config_type(**context.op_config)
        with as_failure(settings), naming.archive_of(context).client() as client:
            plan, more = make_plan(context, config, Mirror(client, naming.lake_of(context).open()))
        batches = {}
        for number, batch in enumerate(plan.batches(config.batch_series)):
            key, content = f"b{number:05d}", [w.to_json() for w in batch]
            batches[key] = digest_of(content)
            yield dg.DynamicOutput(content, mapping_key=key, output_name="found")
        summary = {
            "batches": batches,
            "done": plan.done,
            "left": len(plan.left) + len(plan.no_room),
            "started": started,
            **more,
        }
        yield dg.Output(summary, output_name="summary")

    @dg.op(name=naming.of(f"finish_{asset}"), out=dg.Out(dg.Nothing), required_resource_keys={naming.lake})
    def finish_op(context: dg.OpExecutionContext, summary: dict[str, Any], reports: list[Any]) -> Any:
        expect_all(summary, reports)
        with as_failure(settings):
            metadata = finish(context, naming.lake_of(context).open(), summary, reports)
        yield dg.Output(None, metadata={**metadata, **run_metadata(summary, reports)})

    return plan_op, build_fetch_op(naming, settings, asset), finish_op


def expect_all(summary: dict[str, Any], reports: list[Any]) -> None:
    """Make sure that every planned batch was run, and this very batch.

    Dask's executor drops mapped steps and reports success. A re-execution from failure leaves out those that were
    running, or had not begun, when a process was killed (Dagster's issues 19490, 30077 and 30248); or it takes the
    report of an earlier plan, whose batch of that name had other series.

    Raises:
        Failure: some are missing.
    """
    missing = summary["batches"].items() - {r["batch"]: r["digest"] for r in reports}.items()
    if missing:
        raise dg.Failure(
            f"the executor did not run {len(missing)} of {len(summary['batches'])} batches: launch a new run instead "
            "of a re-execution from failure: it fetches only what is missing",
            allow_retries=False,
        )


def receipts_metadata(receipts: Rows) -> dict[str, Any]:
    """Return what receipts state: how many have which status, bytes in the lake, and what is missing and why."""
    status = Counter({one["values"]: one["counts"] for one in pc.value_counts(receipts["Status"]).to_pylist()})
    complete = pc.equal(receipts["Status"], COMPLETE)
    problems = problem_rows(receipts)
    return {
        **{s: status[s] for s in STATUSES},
        "bytes": pc.sum(receipts["Bytes"].filter(complete)).as_py() or 0,
        **({"problems": failed_table(problems)} if problems else {}),
    }


def problem_rows(receipts: Rows) -> list[dict[str, str]]:
    """Return the series that could not be fetched, or not in their newest version, with the reason."""
    refused = among(receipts["Status"], [QUARANTINED, UNAVAILABLE])
    which = pc.or_(refused, refresh_failed(receipts))
    rows = rows_where(receipts, which, ["SeriesInstanceUID", "Status", "Reason"]).to_pylist()
    return [{"series": r["SeriesInstanceUID"], "what": f"{r['Status']}: {r['Reason']}"} for r in rows]


def run_metadata(summary: dict[str, Any], reports: list[Any]) -> dict[str, Any]:
    """Return what the run did."""

    def total(name: str) -> int:
        return sum(r[name] for r in reports)

    seconds = max(time.time() - summary["started"], 1e-3)
    return {
        "fetched_series": total("fetched"),
        "fetched_files": total("files"),
        "fetched_bytes": total("bytes"),
        "healed_instances": total("healed"),
        "skipped_series": summary["done"] + total("already_there"),
        "left_series": summary["left"],
        "seconds": round(seconds, 3),
        "bytes_per_second": round(total("bytes") / seconds),
        "peak_memory_bytes": max((r["peak_memory_bytes"] for r in reports), default=0),
    }
