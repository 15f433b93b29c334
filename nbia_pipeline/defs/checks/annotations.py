"""The check of the annotation files: those that the archive announces are in the lake."""

from collections.abc import Iterator

import dagster as dg

from nbia_pipeline.defs.checks.check import Finding, Report, Subject, build_check
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.annotations.fetch import annotations_due
from nbia_pipeline.schema.tables import ANNOTATION_FILES
from nbia_pipeline.settings import Settings


def build_checks(naming: Naming, settings: Settings) -> list[dg.AssetChecksDefinition]:
    """Return the check of the annotation files of one archive; a warning, because they are optional."""
    return [
        build_check(
            naming,
            settings,
            ANNOTATION_FILES,
            "complete",
            "Every series with complete images has the annotation files that the archive announces.",
            complete,
            severity=dg.AssetCheckSeverity.WARN,
        )
    ]


def complete(subject: Subject) -> Report:
    """Compare the table of annotation files, and the sizes of the files, with what the archive announces."""
    return Report(incomplete(subject.lake, subject.collection), remedy=lambda first: "nbia-pipeline run")


def incomplete(lake: Lake, collection: str) -> Iterator[Finding]:
    """Yield the series without annotation files that the archive announces, or with others."""
    for series in annotations_due(lake, collection, retry=True):
        why = series.older[0]["Finding"] if series.older else None
        why = why or "not fetched yet, changed since, or removed"
        yield Finding(f"annotation files of series {series.uid} are missing: {why}", series.uid)
