"""The data lake: where files are kept, and how they are replaced; knows storage, and nothing of HTTP or Dagster."""

from nbia_pipeline.lake.errors import DamagedFile, LakeError, WouldEmpty
from nbia_pipeline.lake.lake import Lake
from nbia_pipeline.lake.lock import Lock

__all__ = ["DamagedFile", "Lake", "LakeError", "Lock", "WouldEmpty"]
