"""The authenticated client of an NBIA archive; knows HTTP, and nothing of disks or Dagster."""

from nbia_pipeline.archive.client import NbiaClient, SeriesSize
from nbia_pipeline.archive.errors import (
    ArchiveError,
    ArchiveUnreachable,
    BadAnswer,
    LoginRefused,
    NotAvailable,
    NotServed,
    ServerError,
)
from nbia_pipeline.archive.rate_limit import Limiter
from nbia_pipeline.archive.transport import ClientOptions

__all__ = [
    "ArchiveError",
    "ArchiveUnreachable",
    "BadAnswer",
    "ClientOptions",
    "Limiter",
    "LoginRefused",
    "NbiaClient",
    "NotAvailable",
    "NotServed",
    "SeriesSize",
    "ServerError",
]
