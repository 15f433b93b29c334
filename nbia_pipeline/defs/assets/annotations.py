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
from nbia_pipeline.schema.tables import ANNOTATION_FILES, SERIES_METADATA
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import size_text


class AnnotationsConfig(dg.Config):
    """What a run of ``annotation_files`` asks for again."""

    retry: bool = Field(
        default=False,
        description="Fetch annotation files again where something other than announced arrived before. Each such "
        "series costs a download of all its images.",
    )


def build_annotations_asset(naming: Naming, settings: Settings) -> dg.AssetsDefinition:
    """Return the ``annotation_files`` asset of one archive."""

    @table_asset(
        naming,
        ANNOTATION_FILES,
        partitions_def=naming.partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[naming.key("images"), naming.key(SERIES_METADATA.name)],
    )
    def annotation_files(context: dg.AssetExecutionContext, config: AnnotationsConfig) -> dg.MaterializeResult[Any]:
        with as_failure(settings):
            lake = naming.lake_of(context).open()

            def make(collection: str) -> dict[str, Any]:
                started, result = time.perf_counter(), AnnotationsResult()
                if due := annotations_due(lake, collection, retry=config.retry):
                    with naming.archive_of(context).client() as client:
                        result = fetch_annotations(client, lake, collection, due)
                return _metadata(lake, collection, result, time.perf_counter() - started)

            each_partition(naming, settings, ANNOTATION_FILES, context, lake, make)
        return dg.MaterializeResult()

    return annotation_files


def _metadata(lake: Lake, collection: str, result: AnnotationsResult, seconds: float) -> dict[str, Any]:
    table = lake.read_table(ANNOTATION_FILES, collection)
    size = stored_bytes(lake, ANNOTATION_FILES, collection)
    problems = [{"series": uid, "what": what} for uid, what in result.problems.items()]
    return {
        **materialization_metadata(ANNOTATION_FILES, lake, table.num_rows, size, seconds, collection),
        "annotation_bytes": pc.sum(table["Size"]).as_py() or 0,
        "annotation_size": size_text(pc.sum(table["Size"]).as_py() or 0),
        **preview(ANNOTATION_FILES, table),
        "fetched_series": result.series,
        "fetched_files": result.files,
        "fetched_bytes": result.bytes,
        "left_series": result.left,
        **({"problems": failed_table(problems)} if problems else {}),
    }
