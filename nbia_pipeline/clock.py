"""The one clock of the pipeline, so that a test can let a year pass."""

from __future__ import annotations

from datetime import datetime, timezone


def utc_now() -> datetime:
    """Return the present moment in UTC, without a zone, as the tables keep it."""
    return datetime.now(timezone.utc).replace(tzinfo=None)
