"""The software-defined assets: what the archive holds, as tables and files of the lake."""

from nbia_pipeline.assets.carts import build_cart_asset
from nbia_pipeline.assets.images import build_images_asset
from nbia_pipeline.assets.news import build_news_asset
from nbia_pipeline.assets.tables import build_table_assets

__all__ = ["build_cart_asset", "build_images_asset", "build_news_asset", "build_table_assets"]
