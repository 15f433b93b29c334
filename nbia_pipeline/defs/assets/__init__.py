"""The software-defined assets: what the archive contains, as tables and files of the lake."""

from nbia_pipeline.defs.assets.annotations import build_annotations_asset
from nbia_pipeline.defs.assets.headers import build_headers_asset
from nbia_pipeline.defs.assets.images import build_images_asset
from nbia_pipeline.defs.assets.references import build_references_asset
from nbia_pipeline.defs.assets.released import build_released_asset
from nbia_pipeline.defs.assets.tables import build_table_assets

__all__ = [
    "build_annotations_asset",
    "build_headers_asset",
    "build_images_asset",
    "build_references_asset",
    "build_released_asset",
    "build_table_assets",
]
