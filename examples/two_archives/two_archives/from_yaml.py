"""The same as YAML: each archive is a component, defined in a folder of `defs`."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of both archives."""
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
