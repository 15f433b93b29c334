"""The references of a collection: which series its files name, and where the lake or the archive has these.

Targets are looked up in all collections, so that files which a run has fetched for one can complete the references of
another: the table of such a one is made again too, and materialized for its own partition.
"""

import time
from collections import Counter
from typing import Any

import dagster as dg
import pyarrow as pa

from nbia_pipeline.defs.assets.headers import off
from nbia_pipeline.defs.assets.partitioned import each_partition, record, table_asset
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.metadata import first_rows, materialization_metadata, preview, records, stored_bytes
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.headers.graph.resolve import affected, orphans, write_references
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.schema.headers import SERIES_REFERENCES
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import shown

NAME = "references"
ORPHANS = "Modality Role Resolution ReferencedInstances Missing SeriesInstanceUID ReferencedSeriesInstanceUID"
"""Columns of the table of orphans; UIDs come last, since a page is not wide enough for two."""


def build_references_asset(naming: Naming, settings: Settings) -> dg.AssetsDefinition:
    """Return the ``references`` asset of one archive: the table series_references, made of tables of the lake only."""

    @table_asset(
        naming,
        SERIES_REFERENCES,
        asset=NAME,
        calls_archive=False,
        partitions_def=naming.partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[naming.key("headers")],
    )
    def references(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        def make(collection: str) -> dict[str, Any]:
            return _make(lake, collection) if settings.reads_headers_of(collection) else off(settings)

        with as_failure(settings):
            lake = naming.lake_of(context).open()
            each_partition(naming, settings, SERIES_REFERENCES, context, lake, make, asset=NAME)
            record(context, naming.key(NAME), _others(context, lake))
        return dg.MaterializeResult()

    return references


def _make(lake: Lake, collection: str) -> dict[str, Any]:
    """Write the table of a collection, and return its metadata."""
    started = time.perf_counter()
    table = write_references(lake, collection)
    seconds, size = time.perf_counter() - started, stored_bytes(lake, SERIES_REFERENCES, collection)
    lost = orphans(table)
    columns = [SERIES_REFERENCES.column(name) for name in ORPHANS.split()]
    return {
        **materialization_metadata(SERIES_REFERENCES, lake, table.num_rows, size, seconds, collection),
        "references": table.num_rows,
        **Counter(table["Resolution"].to_pylist()),
        **({"by_role": _by_role(table)} if table.num_rows else {}),
        "orphans": lost.num_rows,
        **({"first_orphans": first_rows(lost, columns)} if lost.num_rows else {}),
        **preview(SERIES_REFERENCES, table),
    }


def _by_role(table: pa.Table) -> dg.TableMetadataValue:
    """Return how many references there are, by what refers, in which role, to what, and where that is."""
    keys = ["Modality", "Role", "ReferencedModality", "Resolution"]
    counts = Counter(zip(*(table[name].to_pylist() for name in keys), strict=True))
    ranked = sorted(counts.items(), key=lambda one: (-one[1], str(one[0])))
    return records({**{k: v or "" for k, v in zip(keys, key, strict=True)}, "references": n} for key, n in ranked)


def _others(context: dg.AssetExecutionContext, lake: Lake) -> dict[str, dict[str, Any]]:
    """Make the tables of collections again that are not of the run, and refer to files of those that are."""
    made: dict[str, dict[str, Any]] = {}
    collections = set(context.partition_keys)
    if not set(lake.collections_of(SERIES_REFERENCES)) - collections:
        return made
    for collection in context.partition_keys:
        try:
            for other in affected(lake, collection):
                if other not in collections and other not in made:
                    made[other] = _make(lake, other)
        except LakeError as e:  # a table of another collection must not fail this one
            context.log.warning(shown(f"references to {collection} from other collections are as they were: {e}"))
    return made
