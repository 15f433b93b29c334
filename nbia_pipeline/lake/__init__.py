"""The data lake: where things lie, and how they are replaced whole; knows storage, and nothing of HTTP or Dagster."""

from nbia_pipeline.lake.errors import LakeError, WouldEmpty
from nbia_pipeline.lake.lake import Lake
from nbia_pipeline.lake.lock import Lock

__all__ = ["Lake", "LakeError", "Lock", "WouldEmpty"]
