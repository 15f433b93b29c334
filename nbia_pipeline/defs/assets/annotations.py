"""The annotation files of a collection, beside its images. They are optional: what is not served fails nothing."""

import time
from typing import Any

import dagster as dg
import pyarrow.compute as pc
from pydantic import Field

from nbia_pipeline.defs.assets.fetch_op import failed_table
from nbia_pipeline.defs.assets.partitioned import each_partition, table_asset
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.metadata import materialization_metadata, preview, stored_bytes
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.annotations.fetch import AnnotationsResult, annotations_due, fetch_annotations
from nbia_pipeline.schema.tables import ANNOTATIONS, SERIES_METADATA
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import size_text


class AnnotationsConfig(dg.Config):
    """What a run of ``annotations`` asks for again."""

    retry: bool = Field(
        default=False,
        description="Fetch annotation files again where something other than announced arrived before. Each such "
        "series costs a download of all its images.",
    )


def build_annotations_asset(naming: Naming, settings: Settings) -> dg.AssetsDefinition:
    """Return the ``annotations`` asset of one archive."""

    @table_asset(
        naming,
        ANNOTATIONS,
        partitions_def=naming.partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[naming.key("images"), naming.key(SERIES_METADATA.name)],
    )
    def annotations(context: dg.AssetExecutionContext, config: AnnotationsConfig) -> dg.MaterializeResult[Any]:
        with as_failure(settings):
            lake = naming.lake_of(context).open()

            def make(collection: str) -> dict[str, Any]:
                started, result = time.perf_counter(), AnnotationsResult()
                if due := annotations_due(lake, collection, retry=config.retry):
                    with naming.archive_of(context).client() as client:
                        result = fetch_annotations(client, lake, collection, due)
                return _metadata(lake, collection, result, time.perf_counter() - started)

            each_partition(naming, settings, ANNOTATIONS, context, lake, make)
        return dg.MaterializeResult()

    return annotations


def _metadata(lake: Lake, collection: str, result: AnnotationsResult, seconds: float) -> dict[str, Any]:
    table = lake.read_table(ANNOTATIONS, collection)
    size = stored_bytes(lake, ANNOTATIONS, collection)
    problems = [{"series": uid, "what": what} for uid, what in result.problems.items()]
    return {
        **materialization_metadata(ANNOTATIONS, lake, table.num_rows, size, seconds, collection),
        "annotation_bytes": pc.sum(table["Size"]).as_py() or 0,
        "annotation_size": size_text(pc.sum(table["Size"]).as_py() or 0),
        **preview(ANNOTATIONS, table),
        "fetched_series": result.series,
        "fetched_files": result.files,
        "fetched_bytes": result.bytes,
        "left_series": result.left,
        **({"problems": failed_table(problems)} if problems else {}),
    }
