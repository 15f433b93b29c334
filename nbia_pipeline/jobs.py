"""The jobs: catalogue, tables, images. In this order they are the main job."""

from __future__ import annotations

import dagster as dg

from nbia_pipeline.names import Names

CATALOGUE = ("collections", "modalities", "body_parts", "manufacturers")
TABLES = ("patients", "studies", "series", "series_metadata")


def build_jobs(names: Names) -> list[dg.UnresolvedAssetJobDefinition]:
    """Return the jobs of one archive; each runs the checks of its assets too."""

    def job(what: str, assets: tuple[str, ...], description: str) -> dg.UnresolvedAssetJobDefinition:
        return dg.define_asset_job(
            names.of(what),
            selection=dg.AssetSelection.assets(*(names.key(a) for a in assets)),
            description=description,
            tags={"nbia/archive": names.prefix},
        )

    return [
        job("catalogue", CATALOGUE, "The tables of the whole archive; registers new collections as partitions."),
        job("tables", TABLES, "Patients, studies, series and series metadata of collections."),
        job("images", ("images",), "The image files of a collection, verified."),
    ]
