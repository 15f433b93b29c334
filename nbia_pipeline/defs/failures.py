"""From our errors to Dagster's failures: one clear sentence, with its properties as metadata."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from nbia_pipeline.archive import ArchiveError
from nbia_pipeline.archive.errors import forget_causes
from nbia_pipeline.errors import OURS, error_text
from nbia_pipeline.settings import Settings

INTERRUPTS = (KeyboardInterrupt, dg.DagsterExecutionInterruptedError)


@contextmanager
def as_failure(settings: Settings) -> Iterator[None]:
    """Turn an error of the archive, the lake, the settings or a selection into a `dagster.Failure`.

    A retry policy retries only what may succeed when it is tried again.
    """
    try:
        yield
    except OURS as e:
        raise failure(e, settings) from e


class _Interrupted(dg.DagsterError, dg.DagsterExecutionInterruptedError):
    """An interrupt that a retry policy lets pass: it restarts a step at any that is no DagsterError."""


# By this name the executor of several processes knows the interrupt of a step.
_Interrupted.__name__ = dg.DagsterExecutionInterruptedError.__name__


@contextmanager
def interrupts_end_the_run() -> Iterator[None]:
    """Keep the retry policy of an op from taking an interrupt for a failure."""
    try:
        yield
    except INTERRUPTS as e:
        raise _Interrupted("the step was interrupted") from e


def failure(e: Exception, settings: Settings) -> dg.Failure:
    """Return the failure for one of our errors; see :func:`as_failure`."""
    metadata: dict[str, str | int] = {"error": type(e).__name__}
    if isinstance(e, ArchiveError):
        if e.endpoint:
            metadata["endpoint"] = e.endpoint
        if e.status is not None:
            metadata["status"] = e.status
    forget_causes(e)  # Dagster prints and stores their texts
    retryable = isinstance(e, ArchiveError) and e.retryable
    return dg.Failure(error_text(e, settings.name_of), metadata=metadata, allow_retries=retryable)
