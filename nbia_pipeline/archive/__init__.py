"""The authenticated client of an NBIA archive; knows HTTP, and nothing of disks or Dagster."""

from nbia_pipeline.archive.client import NbiaClient
from nbia_pipeline.archive.errors import ArchiveError, ArchiveUnreachable, BadAnswer, LoginRefused, NotAvailable
from nbia_pipeline.archive.session import Patience

__all__ = [
    "ArchiveError",
    "ArchiveUnreachable",
    "BadAnswer",
    "LoginRefused",
    "NbiaClient",
    "NotAvailable",
    "Patience",
]
