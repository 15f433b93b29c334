"""The jobs: catalog, tables, images, and tables with images as one. In this order they are the main job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from nbia_pipeline.defs.executor import one_process
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.settings import Settings

CATALOG = ("collections", "modalities", "body_parts", "manufacturers")
TABLES = ("patients", "studies", "series", "series_changes", "series_metadata")
IMAGES = ("images",)
ANNOTATIONS = ("annotation_files",)
HEADERS = ("headers", "references")

CATALOG_JOB = "catalogue"
TABLES_JOB = "tables"
IMAGES_JOB = "images"
UPDATE_JOB = "update"
MIRROR_JOB = "mirror"
CART_JOB = "cart"

ARCHIVE_TAG = "nbia/archive"

RETRY_WHOLE = {"dagster/retry_strategy": "ALL_STEPS"}
"""Tag of the runs with images, for Dagster's run retries, which else repeat what failed only: after a process was
killed, these leave out mapped steps (its issues 19490, 30077, 30248). A new plan leaves out what is in the lake.
"""

# Dagster's tags of a run over a range of partitions, and over one.
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
PARTITION = "dagster/partition"


def with_images(settings: Settings) -> tuple[str, ...]:
    """Return the assets of the images, with those that the settings have after them."""
    return (*IMAGES, *(ANNOTATIONS if settings.annotations else ()), *(HEADERS if settings.reads_headers else ()))


Jobs = dict[str, "dg.UnresolvedAssetJobDefinition"]  # a name for type checkers only
"""The jobs of an archive, by what they do: one of the constants above."""


def build_jobs(naming: Naming, settings: Settings, executor: dg.ExecutorDefinition) -> Jobs:
    """Return the jobs of assets of one archive; each runs the checks of its assets too.

    Args:
        executor: of the jobs with images. A process for each of the short steps of the others would take longer than
            the step.
    """

    def job(what: str, assets: Sequence[str], description: str, executor: dg.ExecutorDefinition) -> Any:
        selection = dg.AssetSelection.assets(*map(naming.key, assets))
        tags = {ARCHIVE_TAG: naming.prefix, **(RETRY_WHOLE if IMAGES[0] in assets else {})}
        return dg.define_asset_job(
            naming.of(what), selection=selection, description=description, tags=tags, executor_def=executor
        )

    images = with_images(settings)
    jobs: tuple[tuple[str, Sequence[str], str, dg.ExecutorDefinition], ...] = (
        (
            CATALOG_JOB,
            CATALOG,
            "The tables of the entire archive; registers new collections as partitions.",
            one_process,
        ),
        (
            TABLES_JOB,
            TABLES,
            "Patients, studies, series, their changes and their metadata, by collection.",
            one_process,
        ),
        (
            IMAGES_JOB,
            images,
            "The image files of a collection, verified; its annotation files; the headers of all.",
            executor,
        ),
        (UPDATE_JOB, (*TABLES, *images), "The tables of a collection, then its image files.", executor),
    )
    return {what: job(what, assets, text, where) for what, assets, text, where in jobs}


def collections_of(tags: Mapping[str, str], registered: Sequence[str]) -> list[str]:
    """Return the collections of a run by its tags: one, a range of those that are `registered`, or none."""
    if PARTITION in tags:
        return [tags[PARTITION]]
    ends = [tags.get(end) for end in (RANGE_START, RANGE_END)]
    if not all(end in registered for end in ends):
        return []
    first, last = (registered.index(str(end)) for end in ends)
    return list(registered[first : last + 1])


def images_config(naming: Naming, **fields: Any) -> dict[str, Any]:
    """Return the run config of a job with images, given fields of its ``ImagesConfig``; none where none is given."""
    images = naming.key("images").to_python_identifier()
    return {"ops": {images: {"config": fields}}} if fields else {}


def tables_config(naming: Naming, **fields: Any) -> dict[str, Any]:
    """Return the run config of a job with tables, given fields of ``ListingConfig`` for each listing of the archive."""
    listings = (naming.key(name).to_python_identifier() for name in TABLES if name != "series_changes")
    return {"ops": {name: {"config": fields} for name in listings}}
