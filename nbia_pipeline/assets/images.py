"""The images of a collection: plan, fetch in batches that Dagster spreads over processes, finish.

Inside: a graph with dynamic outputs. One mapped step is one batch of series; re-execution from failure
repeats only the batches that failed, and a new run plans afresh from what the lake holds.
"""

import resource
import sys
import time
from collections import Counter
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.assets.presentation import definition_metadata
from nbia_pipeline.failures import as_failure
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.layout import collection_path
from nbia_pipeline.names import Names
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES
from nbia_pipeline.settings import SettingsError
from nbia_pipeline.transfer.fetch import fetch_batch
from nbia_pipeline.transfer.plan import COMPLETE, QUARANTINED, UNAVAILABLE, WantedSeries, batches, make_plan
from nbia_pipeline.transfer.receipts import Receipt, settle, staged_by_journal

DESCRIPTION = (
    "The image files of the collection, one per instance, each verified. Every series is there whole or not at "
    "all; its receipt is in table image_series, its files are listed in table instances."
)
_RETRY = dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


class ImagesConfig(dg.Config):
    """Bounds of one run; what is left gets the status ``pending``."""

    max_bytes: int | None = None
    max_series: int | None = None


def build_images_asset(names: Names) -> dg.AssetsDefinition:
    """Return the ``images`` asset of one archive."""
    plan, fetch, finish = _plan_op(names), _fetch_op(names), _finish_op(names)

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


def _plan_op(names: Names) -> dg.OpDefinition:
    @dg.op(
        name=names.of("plan_images"),
        ins={"after": dg.In(dg.Nothing)},
        out={"found": dg.DynamicOut(list), "summary": dg.Out(dict)},
        required_resource_keys={names.archive, names.lake},
    )
    def plan_images(context: dg.OpExecutionContext, config: ImagesConfig) -> Any:
        collection = context.partition_key
        with as_failure():
            _expect_mirrored(names, context, collection)
            lake = names.lake_of(context).open()
            series = listed_series(lake, collection)
            receipts = settle(lake, collection, series)
            swept = lake.sweep(keep=staged_by_journal(lake))
        plan = make_plan(series, receipts, max_bytes=config.max_bytes, max_series=config.max_series)
        planned = list(batches(plan.todo))
        size = sum(w.FileSize or 0 for w in plan.todo)
        context.log.info(
            f"{collection}: {len(plan.todo)} series ({size:,} bytes) to fetch in {len(planned)} batches, "
            f"{plan.done} in the lake, {len(plan.left)} left for a later run, {swept} leftovers swept"
        )
        keys = [f"b{n:05d}" for n in range(len(planned))]
        for key, batch in zip(keys, planned, strict=True):
            yield dg.DynamicOutput([w.to_json() for w in batch], mapping_key=key, output_name="found")
        yield dg.Output(
            {"batches": keys, "done": plan.done, "left": len(plan.left), "started": time.time()},
            output_name="summary",
        )

    return plan_images


def _fetch_op(names: Names) -> dg.OpDefinition:
    @dg.op(
        name=names.of("fetch_images"),
        pool=names.pool,
        retry_policy=_RETRY,
        required_resource_keys={names.archive, names.lake},
    )
    def fetch_images(context: dg.OpExecutionContext, batch: list[Any]) -> dict[str, Any]:
        wanted = [WantedSeries.from_json(w) for w in batch]
        started = time.perf_counter()
        with as_failure(), names.archive_of(context).client() as client:
            lake = names.lake_of(context).open()
            # Its receipts are in the journal, which the last step carries over into the tables, or the next plan.
            receipts = fetch_batch(client, lake, wanted)
        report = batch_report(receipts, time.perf_counter() - started)
        context.log.info(f"{context.get_mapping_key()}: {report}")
        return {**report, "batch": context.get_mapping_key()}

    return fetch_images


def _finish_op(names: Names) -> dg.OpDefinition:
    @dg.op(
        name=names.of("finish_images"),
        out=dg.Out(dg.Nothing),
        required_resource_keys={names.lake},
    )
    def finish_images(context: dg.OpExecutionContext, summary: dict[str, Any], reports: list[Any]) -> Any:
        missing = set(summary["batches"]) - {r["batch"] for r in reports}
        if missing:
            # Dask's executor, for one, drops dynamic steps and calls the run a success.
            raise dg.Failure(f"the executor did not run {len(missing)} of {len(summary['batches'])} batches")
        with as_failure():
            lake = names.lake_of(context).open()
            receipts = settle(lake, context.partition_key, listed_series(lake, context.partition_key))
        yield dg.Output(None, metadata=images_metadata(lake, context.partition_key, receipts, summary, reports))

    return finish_images


def listed_series(lake: Lake, collection: str) -> pa.Table:
    """Return the collection's rows of the ``series`` table.

    Raises:
        LakeError: it was not materialised yet.
    """
    series = lake.read_table(SERIES, collection)
    if not series.num_rows:
        raise LakeError(f"the series table has no rows for {collection!r}: materialise series first")
    return series


def _expect_mirrored(names: Names, context: dg.OpExecutionContext, collection: str) -> None:
    if not names.archive_of(context).settings().mirrors_images_of(collection):
        raise SettingsError(
            f"the images of {collection!r} are not mirrored: add the collection to NBIA_IMAGES if they shall be"
        )


def batch_report(receipts: list[Receipt], seconds: float) -> dict[str, Any]:
    """Return what a batch did, as plain JSON values."""
    fetched = [i for r in receipts for i in r.instances]
    status = Counter(r.status for r in receipts)
    return {
        "fetched": status[COMPLETE],
        "files": len(fetched),
        "bytes": sum(i.Size for i in fetched),
        "quarantined": status[QUARANTINED],
        "unavailable": status[UNAVAILABLE],
        "seconds": round(seconds, 3),
        "peak_memory_bytes": _peak_memory(),
    }


def _peak_memory() -> int:
    """Return the most memory that this process ever held, in bytes; macOS counts bytes, others kilobytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def images_metadata(
    lake: Lake, collection: str, receipts: pa.Table, summary: dict[str, Any], reports: list[Any]
) -> dict[str, Any]:
    """Return the figures of a run and of the partition that it leaves behind."""
    complete = receipts.filter(pc.equal(receipts["Status"], COMPLETE))
    fetched = sum(r["bytes"] for r in reports)
    seconds = max(time.time() - summary["started"], 1e-3)
    status = Counter(receipts["Status"].to_pylist())
    return {
        "dagster/partition_row_count": receipts.num_rows,
        "path": dg.MetadataValue.path(lake.url(collection_path(collection))),
        **{s: status[s] for s in ("complete", "pending", "unavailable", "quarantined")},
        "bytes": pc.sum(complete["Bytes"]).as_py() or 0,
        "fetched_series": sum(r["fetched"] for r in reports),
        "fetched_files": sum(r["files"] for r in reports),
        "fetched_bytes": fetched,
        "skipped_series": summary["done"],
        "left_series": summary["left"],
        "seconds": round(seconds, 3),
        "bytes_per_second": round(fetched / seconds),
        "peak_memory_bytes": max((r["peak_memory_bytes"] for r in reports), default=0),
    }
