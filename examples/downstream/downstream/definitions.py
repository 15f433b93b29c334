"""The archive of the NBIA_* variables, and beside its assets those of this project."""

import dagster as dg

from downstream import assets
from nbia_pipeline import build_definitions
from nbia_pipeline.settings import Settings


@dg.definitions
def defs() -> dg.Definitions:
    """Return both in one code location, which the inputs of the second need."""
    own = dg.Definitions(assets=dg.load_assets_from_modules([assets], group_name="downstream"))
    return dg.Definitions.merge(build_definitions(Settings.from_env()), own)
