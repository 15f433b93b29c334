"""The images of the collections of a run: plan, fetch in batches that Dagster spreads over processes, finish.

Inside: a graph with dynamic outputs. One mapped step is one batch of series, of several collections where these are
small; re-execution from failure repeats only the batches that failed, and a new run makes a new plan from what the lake
contains.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import dagster as dg
import pyarrow.compute as pc
from pydantic import Field

from nbia_pipeline import stopping
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.defs.assets.fetch_op import build_fetch_op, digest_of, failed_table
from nbia_pipeline.defs.assets.follow_op import asked_of, build_follow_op, references_metadata
from nbia_pipeline.defs.assets.partitioned import failure_of, record
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.metadata import LABELS, contact_sheet_metadata, histogram, size_classes
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.errors import error_text
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.layout import collection_path
from nbia_pipeline.lake.table_file import Rows
from nbia_pipeline.mirror.commit import carry_over
from nbia_pipeline.mirror.engine import Mirror, listed_series
from nbia_pipeline.mirror.plan import BATCH_SERIES, EVERYTHING, NO_BOUNDS, Bounds, Plan
from nbia_pipeline.mirror.receipt import problem_rows
from nbia_pipeline.mirror.selection import Selection, SelectionError, Selections, with_lists
from nbia_pipeline.reading.sql import write_catalog
from nbia_pipeline.schema.status import COMPLETE, PENDING, QUARANTINED, UNAVAILABLE, WITHDRAWN
from nbia_pipeline.schema.tables import SERIES
from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline.text import duration_text, shown, size_text

NAME = "images"
# The last step waits for the disk or the store most of the time.
FINISHED_AT_A_TIME = 4

STATUSES = (COMPLETE, PENDING, UNAVAILABLE, QUARANTINED, WITHDRAWN)


class RunBounds(dg.Config):
    """How much one run fetches of all its collections, and how it is cut. The rest gets the status ``pending``."""

    max_bytes: int | None = Field(
        default=None, ge=1, description="Fetch at most this many bytes; the rest is left for a later run."
    )
    max_series: int | None = Field(
        default=None,
        ge=0,
        description="Fetch at most this many series; the rest is left for a later run. 0: only plan.",
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

    with_references: list[str] = Field(
        default=[],
        description="Fetch besides, within the same bounds: `images`, what the selected series refer to, also in other "
        "studies and collections; `annotations`, what refers to them.",
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
    """Return the ``images`` asset of one archive: three ops, of which one plans, one fetches a batch, one commits."""
    after = {"after": dg.In(dg.Nothing)}
    plan = build_plan_op(naming, settings, NAME, ImagesConfig, partial(_plan, settings), after)
    fetch, finish = build_fetch_op(naming, settings, NAME), _build_finish_op(naming, settings)
    follow = build_follow_op(naming, settings, NAME, Selections(settings.select))

    # Not a `graph_asset`, which knows no policy for backfills.
    @dg.graph_multi_asset(
        name=naming.key(NAME).to_python_identifier(),
        outs={"result": dg.AssetOut(key=naming.key(NAME))},
        partitions_def=naming.partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        ins={"series": dg.AssetIn(key=naming.key(SERIES.name), dagster_type=dg.Nothing)},
        config=short_config(ImagesConfig, plan),
    )
    def images(series: Any) -> Any:
        found, summary, asked = plan(series)
        reports = found.map(fetch).collect()
        return finish([summary, follow(asked, reports)], reports)

    return images


def _plan(
    settings: Settings, context: dg.OpExecutionContext, config: ImagesConfig, mirror: Mirror
) -> tuple[Plan, dict[str, Any]]:
    """Plan for the collections of the run; those that cannot be planned are left to the last step, which fails."""
    collections = list(context.partition_keys)
    mirrored = [c for c in collections if settings.mirrors_images_of(c)]
    names = settings.name_of("images")
    failed: dict[str, Exception] = {
        c: SettingsError(f"the images of {c!r} are not mirrored: add the collection to {names} to mirror them")
        for c in collections
        if c not in mirrored
    }
    plan = Plan([], [], [], {})
    asked = asked_of(config.with_references, [], EVERYTHING, NO_BOUNDS)
    if mirrored:
        selection = config.selection(mirror.client)
        plan, unplanned = mirror.plan_all(mirrored, selection, config.bounds(), on_progress=partial(tell, context))
        failed |= unplanned
        asked = asked_of(config.with_references, list(plan.parts), selection, config.bounds())
    if failed and not plan.parts:
        if len(failed) == 1:
            raise next(iter(failed.values()))
        raise failure_of({c: error_text(e, settings.name_of) for c, e in failed.items()}, 0)
    left = Counter(w.Collection for w in (*plan.left, *plan.no_room))
    partitions = {
        c: {"done": part.done_figures.series, "left": left[c], "unasked": part.unselected, "unwanted": part.unwanted}
        for c, part in plan.parts.items()
    }
    return plan, {
        "partitions": partitions,
        "failed": {c: error_text(e, settings.name_of) for c, e in failed.items()},
        **asked,
    }


def tell(context: dg.OpExecutionContext, line: str) -> None:
    """Log a line of a plan for a person."""
    context.log.info(shown(line))


def _build_finish_op(naming: Naming, settings: Settings) -> dg.OpDefinition:
    @dg.op(
        name=naming.of(f"finish_{NAME}"),
        out=dg.Out(dg.Nothing, io_manager_key=naming.io),
        required_resource_keys={naming.lake},
    )
    def finish_op(context: dg.AssetExecutionContext, summaries: list[Any], reports: list[Any]) -> Any:
        summary, followed = summaries[0], summaries[1:]
        expect_all(summary, reports)
        with as_failure(settings):
            lake = naming.lake_of(context).open()
            made, failed = _finish(settings, context, lake, summary, reports)
            write_catalog(lake)
        for name, known in made.items():
            of_run = run_metadata(summary["started"], reports, counts_of(reports, name), **summary["partitions"][name])
            of_references = references_metadata([f["references"][name] for f in followed if name in f["references"]])
            made[name] = {**known, **of_run, **of_references}
        if failed:  # an output would be one of all partitions
            record(context, naming.key(NAME), made)
            raise failure_of(failed, len(made))
        for name, metadata in made.items():
            context.add_asset_metadata(metadata, partition_key=name)
        yield dg.Output(None)

    return finish_op


def _finish(
    settings: Settings, context: Any, lake: Lake, summary: dict[str, Any], reports: list[Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Commit the collections of the run, each by itself; return their metadata, and why others failed."""
    made: dict[str, Any] = {}
    failed: dict[str, str] = dict(summary.get("failed", {}))
    collections = [c for c in context.partition_keys if c not in failed]
    with stopping.threads(FINISHED_AT_A_TIME, "nbia-finish") as pool:
        finish = partial(_finish_collection, context, lake, Selections(settings.select))
        begun = {c: pool.submit(finish, c, reports) for c in collections}
        for collection, future in begun.items():
            try:
                made[collection] = future.result()
            except (LakeError, SelectionError) as e:
                if len(begun) == 1 and not failed:
                    raise
                failed[collection] = error_text(e, settings.name_of)
    return made, failed


def _finish_collection(
    context: Any, lake: Lake, selections: Selections, collection: str, reports: list[Any]
) -> dict[str, Any]:
    series = listed_series(lake, collection)
    receipts = carry_over(lake, collection, series, selections.wanted(lake, collection, series))
    complete = (p.filter(pc.equal(p["Status"], COMPLETE)) for p in receipts.pieces(["Status", "Bytes"]))
    sizes = (size for piece in complete for size in piece["Bytes"].to_pylist())
    fetched = [sum(r["sizes"][n] for r in counts_of(reports, collection)) for n in range(len(LABELS))]
    return {
        **contact_sheet_metadata(context.log, lake, collection, receipts, series),
        "dagster/partition_row_count": receipts.num_rows,
        "path": dg.MetadataValue.path(lake.url(collection_path(collection))),
        **receipts_metadata(receipts),
        "series_sizes": dg.MetadataValue.md(histogram(size_classes(sizes), fetched)),
    }


# --- what the images and a cart share


def build_plan_op(
    naming: Naming,
    settings: Settings,
    what: str,
    config_type: type[Config],
    make_plan: Callable[[dg.OpExecutionContext, Config, Mirror], tuple[Plan, dict[str, Any]]],
    ins: Mapping[str, dg.In] | None = None,
) -> dg.OpDefinition:
    """Return the op that plans: it has the outputs ``found``, one for each batch, and ``summary`` for the last op.

    A third one, ``asked``, is there if references are to be followed, for the op that does this, which is skipped else.

    Args:
        what: what is fetched, as part of the op's name.
        config_type: what a run can be asked for.
        make_plan: returns the plan, and what else the last op must know, as plain JSON values.
        ins: inputs of the op.
    """

    @dg.op(
        name=naming.of(f"plan_{what}"),
        ins=ins,
        out={
            "found": dg.DynamicOut(list, io_manager_key=naming.steps),
            "summary": dg.Out(dict, io_manager_key=naming.steps),
            "asked": dg.Out(dict, io_manager_key=naming.steps, is_required=False),
        },
        config_schema=config_type.to_config_schema().as_field(),
        required_resource_keys={naming.archive, naming.lake},
    )
    def plan_op(context: dg.OpExecutionContext) -> Any:
        started = time.time()
        config = config_type(**context.op_config)
        with as_failure(settings), naming.archive_of(context).client() as client:
            mirror = Mirror(client, naming.lake_of(context).open(), selections=Selections(settings.select))
            plan, more = make_plan(context, config, mirror)
        batches = {}
        for number, batch in enumerate(plan.batches(config.batch_series)):
            key, content = f"b{number:05d}", [w.to_json() for w in batch]
            batches[key] = digest_of(content)
            yield dg.DynamicOutput(content, mapping_key=key, output_name="found")
        asked = more.pop("references", None)
        yield dg.Output({"batches": batches, "started": started, **more}, output_name="summary")
        if asked:
            yield dg.Output(asked, output_name="asked")

    return plan_op


def short_config(config_type: type[dg.Config], op: dg.OpDefinition, *, of_job: bool = False) -> dg.ConfigMapping:
    """Return the mapping by which the config of a graph, or the run config of a job, is that of one of its ops."""

    def mapped(config: dict[str, Any]) -> dict[str, Any]:
        ops = {op.name: {"config": config}}
        return {"ops": ops} if of_job else ops

    return dg.ConfigMapping(
        config_fn=mapped,
        config_schema=config_type.to_config_schema().as_field(),
    )


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
            "of a re-execution from failure: it does only what is missing",
            allow_retries=False,
        )


def receipts_metadata(receipts: Rows) -> dict[str, Any]:
    """Return what receipts state: how many have which status, bytes in the lake, and what is missing and why."""
    status = Counter({one["values"]: one["counts"] for one in pc.value_counts(receipts["Status"]).to_pylist()})
    complete = pc.equal(receipts["Status"], COMPLETE)
    size = pc.sum(receipts["Bytes"].filter(complete)).as_py() or 0
    problems = problem_rows(receipts)
    return {
        **{s: status[s] for s in STATUSES},
        "size": size_text(size),
        "bytes": size,
        **({"problems": failed_table(problems)} if problems else {}),
    }


def run_metadata(
    started: float,
    reports: list[Any],
    counts: list[Any],
    done: int,
    left: int,
    *,
    unasked: int = 0,
    unwanted: int = 0,
) -> dict[str, Any]:
    """Return what a run did, for people and as numbers; its seconds, rate and memory are always those of the run.

    Args:
        started: when the run began, in seconds since 1970.
        reports: those of its batches.
        counts: what of these counts, such as that of one collection.
        done: series that were in the lake before.
        left: series that are left for a later run.
        unasked: series that the selection of the run left out.
        unwanted: series that the lasting selection leaves out.
    """

    def total(name: str) -> int:
        return sum(c[name] for c in counts)

    seconds = max(time.time() - started, 1e-3)
    rate = sum(r["bytes"] for r in reports) / seconds
    memory = max((r["peak_memory_bytes"] for r in reports), default=0)
    skipped = done + total("already_there")
    return {
        "fetched": f"{total('fetched'):,} series, {total('files'):,} files, {size_text(total('bytes'))}; "
        f"{skipped:,} series were in the lake already",
        **({"rate": f"{size_text(rate)}/s in {duration_text(seconds)}"} if reports else {}),
        **({"peak_memory": size_text(memory)} if reports else {}),
        "fetched_series": total("fetched"),
        "fetched_files": total("files"),
        "fetched_bytes": total("bytes"),
        "healed_instances": total("healed"),
        "skipped_series": skipped,
        "left_series": left,
        "seconds": round(seconds, 3),
        "bytes_per_second": round(rate),
        "peak_memory_bytes": memory,
        **({"not_asked_series": unasked} if unasked else {}),
        **({"not_selected_series": unwanted} if unwanted else {}),
    }


def counts_of(reports: list[Any], partition: str) -> list[Any]:
    """Return what batches did for a partition."""
    return [r["partitions"][partition] for r in reports if partition in r["partitions"]]
