"""The authenticated client of an NBIA archive; knows HTTP, and nothing of disks or Dagster."""

from nbia_pipeline.archive.client import NbiaClient
from nbia_pipeline.archive.details import SeriesSize
from nbia_pipeline.archive.errors import (
    ArchiveError,
    ArchiveUnreachable,
    BadAnswer,
    LoginRefused,
    NotAvailable,
    NotServed,
)
from nbia_pipeline.archive.rate_limit import Limiter
from nbia_pipeline.archive.transport import Patience

__all__ = [
    "ArchiveError",
    "ArchiveUnreachable",
    "BadAnswer",
    "Limiter",
    "LoginRefused",
    "NbiaClient",
    "NotAvailable",
    "NotServed",
    "Patience",
    "SeriesSize",
]
