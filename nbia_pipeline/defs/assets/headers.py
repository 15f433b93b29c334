"""The headers of the files of a collection: plan which parts of the tables are stale, read them in steps, finish.

Inside: a graph with dynamic outputs, as the images are. One mapped step writes some shards, of several collections
where these are small; it reads files and calls no archive. Where nothing is stale there is no such step.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import dagster as dg
import pyarrow.compute as pc
from pydantic import Field

from nbia_pipeline import stopping
from nbia_pipeline.defs.assets.fetch_op import RETRY, SHOWN, digest_of, peak_memory
from nbia_pipeline.defs.assets.images import expect_all, short_config
from nbia_pipeline.defs.assets.partitioned import failure_of, record
from nbia_pipeline.defs.failures import as_failure, interrupts_end_the_run
from nbia_pipeline.defs.metadata import materialization_metadata, preview_of, records, stored_bytes
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.errors import error_text
from nbia_pipeline.headers.shards import Shard, ShardReport, bounded, plan_headers, write_shard
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.reading.sql import write_catalog
from nbia_pipeline.schema.headers import ANNOTATIONS, INSTANCE_HEADERS, INSTANCE_REFERENCES, SERIES_GEOMETRY
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import duration_text, shown, size_text

NAME = "headers"
STEP_INSTANCES = 50_000
"""Files that one step reads, or some more: half a minute's work, and what a re-execution repeats."""


class HeadersConfig(dg.Config):
    """What one run reads."""

    full: bool = Field(
        default=False,
        description="Read the headers of all files again, and divide the tables into as many parts as there should be "
        "for their number.",
    )
    max_instances: int | None = Field(
        default=None,
        ge=1,
        description="Read no further series once this many files are read; the rest is left for a later run. Not with "
        "full, which would read the same ones again each time.",
    )


def build_headers_asset(naming: Naming, settings: Settings) -> dg.AssetsDefinition:
    """Return the ``headers`` asset of one archive: three ops, of which one plans, one reads, one finishes."""
    plan, read = _build_plan_op(naming, settings), _build_read_op(naming, settings)
    finish = _build_finish_op(naming, settings)

    @dg.graph_multi_asset(
        name=naming.key(NAME).to_python_identifier(),
        outs={"result": dg.AssetOut(key=naming.key(NAME))},
        partitions_def=naming.partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        ins={"images": dg.AssetIn(key=naming.key("images"), dagster_type=dg.Nothing)},
        config=short_config(HeadersConfig, plan),
    )
    def headers(images: Any) -> Any:
        found, summary = plan(images)
        return finish(summary, found.map(read).collect())

    return headers


# --- plan


def _build_plan_op(naming: Naming, settings: Settings) -> dg.OpDefinition:
    @dg.op(
        name=naming.of(f"plan_{NAME}"),
        ins={"after": dg.In(dg.Nothing)},
        out={
            "found": dg.DynamicOut(list, io_manager_key=naming.steps),
            "summary": dg.Out(dict, io_manager_key=naming.steps),
        },
        config_schema=HeadersConfig.to_config_schema().as_field(),
        required_resource_keys={naming.lake},
    )
    def plan_op(context: dg.OpExecutionContext) -> Any:
        started, config = time.time(), HeadersConfig(**context.op_config)
        if config.full and config.max_instances:
            raise dg.Failure("full reads all files: leave max_instances out, or full", allow_retries=False)
        with as_failure(settings):
            lake = naming.lake_of(context).open()
            stale, failed = _plan(settings, lake, list(context.partition_keys), full=config.full)
        batches = {}
        for number, step in enumerate(in_steps(bounded(stale, config.max_instances))):
            key, content = f"h{number:05d}", [shard.to_json() for shard in step]
            batches[key] = digest_of(content)
            yield dg.DynamicOutput(content, mapping_key=key, output_name="found")
        files: Counter[str] = Counter()
        for shard in stale if config.max_instances else ():
            files[shard.collection] += shard.instances
        known = {"batches": batches, "started": started, "bounded": files, "failed": failed}
        yield dg.Output(known, output_name="summary")

    return plan_op


def _plan(
    settings: Settings, lake: Lake, collections: Sequence[str], *, full: bool
) -> tuple[list[Shard], dict[str, str]]:
    """Return the stale shards of the collections of a run, and why others cannot be planned."""
    stale: list[Shard] = []
    failed: dict[str, str] = {}
    for collection in filter(settings.reads_headers_of, collections):
        stopping.expect_running()
        try:
            stale += plan_headers(lake, collection, full=full)
        except LakeError as e:
            if len(collections) == 1:
                raise
            failed[collection] = error_text(e, settings.name_of)
    return stale, failed


def files_to_read(shard: Shard) -> int:
    """Return how many files a shard is planned to read, or some more: a series is read as a whole."""
    return shard.instances if shard.most is None else min(shard.instances, shard.most)


def in_steps(shards: Iterable[Shard]) -> Iterator[list[Shard]]:
    """Yield shards in lists, each for one step."""
    step: list[Shard] = []
    for shard in shards:
        step.append(shard)
        if sum(map(files_to_read, step)) >= STEP_INSTANCES:
            yield step
            step = []
    if step:
        yield step


# --- read


def _build_read_op(naming: Naming, settings: Settings) -> dg.OpDefinition:
    @dg.op(
        name=naming.of(f"read_{NAME}"),
        retry_policy=RETRY,
        out=dg.Out(dict, io_manager_key=naming.steps),
        required_resource_keys={naming.lake},
    )
    @interrupts_end_the_run()
    def read(context: dg.OpExecutionContext, step: list[Any]) -> dict[str, Any]:
        key, started = str(context.get_mapping_key()), time.perf_counter()
        reports: list[ShardReport] = []
        failed: dict[str, str] = {}
        with as_failure(settings):
            lake = naming.lake_of(context).open()
        for shard in map(Shard.from_json, step):
            try:
                reports.append(write_shard(lake, shard))
            except LakeError as e:  # one collection must not keep the others
                failed[shard.collection] = error_text(e, settings.name_of)
        if failed:
            failure = failure_of(failed, len({report.collection for report in reports} - failed.keys()))
            failure.allow_retries = False
            raise failure
        files, seconds = sum(report.instances_read for report in reports), time.perf_counter() - started
        context.log.info(shown(f"{key}: the headers of {files:,} files read in {duration_text(seconds)}"))
        return {
            "batch": key,
            "digest": digest_of(step),
            "shards": [report.to_json() for report in reports],
            "peak_memory_bytes": peak_memory(),
        }

    return read


# --- finish


def _build_finish_op(naming: Naming, settings: Settings) -> dg.OpDefinition:
    @dg.op(
        name=naming.of(f"finish_{NAME}"),
        out=dg.Out(dg.Nothing, io_manager_key=naming.io),
        required_resource_keys={naming.lake},
    )
    def finish_op(context: dg.AssetExecutionContext, summary: dict[str, Any], reports: list[Any]) -> Any:
        expect_all(summary, reports)
        of_run = _figures(summary, reports)
        made: dict[str, dict[str, Any]] = {}
        failed: dict[str, str] = dict(summary["failed"])
        with as_failure(settings):
            lake = naming.lake_of(context).open()
            for collection in context.partition_keys:
                if collection in failed:
                    continue
                if settings.reads_headers_of(collection):
                    made[collection] = _metadata(lake, collection, of_run)
                else:
                    made[collection] = off(settings)
            write_catalog(lake)
        if failed:  # an output would be one of all partitions
            record(context, naming.key(NAME), made)
            raise failure_of(failed, len(made))
        for collection, metadata in made.items():
            context.add_asset_metadata(metadata, partition_key=collection)
        yield dg.Output(None)

    return finish_op


def off(settings: Settings) -> dict[str, Any]:
    """Return the metadata of a collection whose headers are not read."""
    return {"skipped": f"off: {settings.name_of('headers')} leaves the collection out"}


def _figures(summary: dict[str, Any], reports: list[Any]) -> dict[str, Any]:
    """Return what a run did: seconds, files read by collection, those that a bound left, and its peak memory."""
    read: Counter[str] = Counter()
    for report in (ShardReport.from_json(one) for r in reports for one in r["shards"]):
        read[report.collection] += report.instances_read
    memory = max((r["peak_memory_bytes"] for r in reports), default=0)
    left = {collection: files - read[collection] for collection, files in summary["bounded"].items()}
    return {"seconds": time.time() - summary["started"], "read": read, "left": left, "memory": memory}


def _metadata(lake: Lake, collection: str, of_run: dict[str, Any]) -> dict[str, Any]:
    rows, size = lake.count_rows(INSTANCE_HEADERS, collection), stored_bytes(lake, INSTANCE_HEADERS, collection)
    seconds, files = of_run["seconds"], of_run["read"].total()
    rate = {"files_per_second": round(files / max(seconds, 1e-3)), "peak_memory": size_text(of_run["memory"])}
    return {
        **materialization_metadata(INSTANCE_HEADERS, lake, rows, size, seconds, collection),
        "files": rows,
        "bytes_per_file": round(size / rows) if rows else 0,
        "read_files": of_run["read"][collection],
        "left_files": of_run["left"].get(collection, 0),
        **(rate if files else {}),
        **_geometry(lake, collection),
        INSTANCE_REFERENCES.name: lake.count_rows(INSTANCE_REFERENCES, collection),
        ANNOTATIONS.name: lake.count_rows(ANNOTATIONS, collection),
        **_problems(lake, collection),
        **preview_of(lake, INSTANCE_HEADERS, collection),
    }


def _geometry(lake: Lake, collection: str) -> dict[str, Any]:
    """Return how many series of planes are regular volumes."""
    regular = lake.read_table(SERIES_GEOMETRY, collection, ["RegularVolume"])["RegularVolume"]
    volumes = pc.sum(regular).as_py() or 0
    share = f"{volumes:,} of {len(regular):,} series of planes are regular volumes"
    return {"geometry": share if len(regular) else "no series of planes", "regular_volumes": volumes}


def _problems(lake: Lake, collection: str) -> dict[str, Any]:
    """Return how many files have problems, and the first of them as a table."""
    files, rows = 0, list[dict[str, str]]()
    for piece in lake.read_pieces(INSTANCE_HEADERS, collection, ["Path", "Problems"]):
        odd = piece.filter(pc.greater(pc.list_value_length(piece["Problems"]), 0))
        files += odd.num_rows
        for row in odd.slice(0, SHOWN - len(rows)).to_pylist():
            rows.append({"file": row["Path"], "problem": row["Problems"][0]})
    return {"files_with_problems": files, **({"problems": records(rows)} if rows else {})}
