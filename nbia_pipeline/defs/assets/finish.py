"""The end of an images run: receipts into the tables, figures and the contact sheet into the asset's page."""

import time
from collections import Counter
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.defs.assets.fetch_op import failed_table
from nbia_pipeline.defs.assets.settling import committed, listed_series
from nbia_pipeline.defs.contact_sheet import contact_sheet_metadata
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.histogram import LABELS, histogram, size_classes
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import collection_path
from nbia_pipeline.mirror.commit import failed_refreshes
from nbia_pipeline.schema.status import COMPLETE, PENDING, QUARANTINED, UNAVAILABLE, WITHDRAWN
from nbia_pipeline.settings import Settings

STATUSES = (COMPLETE, PENDING, UNAVAILABLE, QUARANTINED, WITHDRAWN)


def build_finish_op(names: Naming, settings: Settings) -> dg.OpDefinition:
    """Return the op that ends a run over the images of a collection."""

    @dg.op(name=names.of("finish_images"), out=dg.Out(dg.Nothing), required_resource_keys={names.lake})
    def finish_images(context: dg.OpExecutionContext, summary: dict[str, Any], reports: list[Any]) -> Any:
        expect_all(summary, reports)
        collection = context.partition_key
        with as_failure(settings):
            lake = names.lake_of(context).open()
            series = listed_series(lake, collection)
            receipts = committed(lake, collection, series)
        metadata = {
            **contact_sheet_metadata(context.log, lake, collection, receipts, series),
            **holdings_metadata(lake, collection, receipts, reports),
            **run_metadata(summary, reports),
        }
        yield dg.Output(None, metadata=metadata)

    return finish_images


def expect_all(summary: dict[str, Any], reports: list[Any]) -> None:
    """Make sure that every planned batch was run: Dask's executor, for one, drops dynamic steps and says success."""
    missing = set(summary["batches"]) - {r["batch"] for r in reports}
    if missing:
        raise dg.Failure(f"the executor did not run {len(missing)} of {len(summary['batches'])} batches")


def holdings_metadata(lake: Lake, collection: str, receipts: pa.Table, reports: list[Any]) -> dict[str, Any]:
    """Return what the lake holds of a collection: counts, bytes, sizes, and what it does not hold and why."""
    status = Counter(receipts["Status"].to_pylist())
    sizes = receipts.filter(pc.equal(receipts["Status"], COMPLETE))["Bytes"].to_pylist()
    fetched = [sum(r["sizes"][n] for r in reports) for n in range(len(LABELS))]
    found = {
        "dagster/partition_row_count": receipts.num_rows,
        "path": dg.MetadataValue.path(lake.url(collection_path(collection))),
        **{s: status[s] for s in STATUSES},
        "bytes": sum(sizes),
        "series_sizes": dg.MetadataValue.md(histogram(size_classes(sizes), fetched)),
    }
    failed = problem_rows(receipts)
    return {**found, "problems": failed_table(failed)} if failed else found


def problem_rows(receipts: pa.Table) -> list[dict[str, str]]:
    """Return the series that could not be had, or not in their newest version, with the reason."""
    refused = pc.is_in(receipts["Status"], pa.array([QUARANTINED, UNAVAILABLE]))
    outdated = pc.is_in(receipts["SeriesInstanceUID"], pa.array(failed_refreshes(receipts), pa.string()))
    rows = receipts.filter(pc.or_(refused, outdated)).select(["SeriesInstanceUID", "Status", "Reason"]).to_pylist()
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
