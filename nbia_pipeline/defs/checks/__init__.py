"""The asset checks: the tables and files of the lake are consistent, and nothing that is listed is missing.

A check of a partitioned asset covers the partitions of its run, and each of them has its own result. Checks that cannot
cover everything each time show what they covered.
"""

import dagster as dg

from nbia_pipeline.defs.checks import annotations, headers, images, tables
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.settings import Settings

__all__ = ["build_checks"]


def build_checks(naming: Naming, settings: Settings) -> list[dg.AssetChecksDefinition]:
    """Return the checks of one archive."""
    optional = annotations.build_checks(naming, settings) if settings.annotations else []
    if settings.reads_headers:
        optional += headers.build_checks(naming, settings)
    return [*tables.build_checks(naming, settings), *images.build_checks(naming, settings), *optional]
