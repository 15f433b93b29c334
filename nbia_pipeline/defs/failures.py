"""From our errors to Dagster's failures: one clear sentence, with its facts as metadata."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from nbia_pipeline.archive import ArchiveError
from nbia_pipeline.lake import LakeError
from nbia_pipeline.mirror.selection import SelectionError
from nbia_pipeline.settings import SettingsError

OURS = (ArchiveError, LakeError, SettingsError, SelectionError)
"""Errors whose text is made for a person: it says what was wrong, where, and what to do."""


@contextmanager
def as_failure() -> Iterator[None]:
    """Turn an error of the archive, the lake, the settings or a selection into a `dagster.Failure`.

    Only what may pass by itself may be retried by a retry policy.
    """
    try:
        yield
    except OURS as e:
        raise failure(e) from e


def failure(e: Exception) -> dg.Failure:
    """Return the failure for one of our errors."""
    metadata: dict[str, str | int] = {"error": type(e).__name__}
    if isinstance(e, ArchiveError):
        if e.endpoint:
            metadata["endpoint"] = e.endpoint
        if e.status is not None:
            metadata["status"] = e.status
    return dg.Failure(str(e), metadata=metadata, allow_retries=isinstance(e, ArchiveError) and e.retryable)
