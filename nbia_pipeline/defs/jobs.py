"""The jobs: catalogue, tables, images, and tables with images as one. In this order they are the main job."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import dagster as dg

from nbia_pipeline.defs.naming import Naming

CATALOG = ("collections", "modalities", "body_parts", "manufacturers")
TABLES = ("patients", "studies", "series", "series_changes", "series_metadata")
IMAGES = ("images",)

CATALOG_JOB = "catalogue"
TABLES_JOB = "tables"
IMAGES_JOB = "images"
UPDATE_JOB = "update"

ARCHIVE_TAG = "nbia/archive"

# Dagster's tags of a run over a range of partitions, and over one.
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
PARTITION = "dagster/partition"


def build_jobs(names: Naming) -> list[dg.UnresolvedAssetJobDefinition]:
    """Return the jobs of one archive; each runs the checks of its assets too."""

    def job(what: str, assets: Collection[str], description: str) -> dg.UnresolvedAssetJobDefinition:
        return dg.define_asset_job(
            names.of(what),
            selection=dg.AssetSelection.assets(*(names.key(a) for a in assets)),
            description=description,
            tags={ARCHIVE_TAG: names.prefix},
        )

    # Tables may share a run and images may not; the job of both takes one collection at a time, which is what we want.
    # Dagster says so at every load, when it resolves the job.
    warnings.filterwarnings("ignore", message=f"Asset job {names.of(UPDATE_JOB)} materializes assets with varying")
    return [
        job(CATALOG_JOB, CATALOG, "The tables of the whole archive; registers new collections as partitions."),
        job(TABLES_JOB, TABLES, "Patients, studies, series, their changes and metadata, of collections."),
        job(IMAGES_JOB, IMAGES, "The image files of a collection, verified."),
        job(UPDATE_JOB, (*TABLES, *IMAGES), "The tables of a collection, then its image files."),
    ]


def images_config(names: Naming, **fields: Any) -> dict[str, Any]:
    """Return the run config of a job with images; none where nothing is asked for.

    Args:
        names: of the archive.
        fields: of :class:`~nbia_pipeline.defs.assets.images.ImagesConfig`.
    """
    images = names.key("images").to_python_identifier()
    return {"ops": {images: {"ops": {names.of("plan_images"): {"config": fields}}}}} if fields else {}
