"""The schedules: the catalog, and the complete listing of every mirrored collection.

A complete listing finds what the feed of updated series cannot show: withdrawals, revisions without a new date, changed
licenses, releases back-dated by more than a week. The schedules are off until a person turns them on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import dagster as dg

from nbia_pipeline.defs.jobs import ARCHIVE_TAG, CATALOG_JOB, RANGE_END, RANGE_START, TABLES_JOB, Jobs
from nbia_pipeline.defs.naming import Naming, contiguous_ranges
from nbia_pipeline.errors import error_text
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.schema.tables import COLLECTIONS
from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline.text import matching

# Where one collection fails, Dagster skips the later steps of all others of its run; so a run has only a few.
COLLECTIONS_PER_RUN = 25

Requests = Iterator[dg.RunRequest | dg.SkipReason]


def build_schedules(naming: Naming, settings: Settings, jobs: Jobs) -> list[dg.ScheduleDefinition]:
    """Return the schedules of one archive, which run `jobs`; their times are UTC.

    Raises:
        SettingsError: Dagster does not accept a cron expression.
    """
    return [
        _checked(settings, "catalogue_cron", lambda: _catalog(naming, settings, jobs[CATALOG_JOB])),
        _checked(settings, "reconcile_cron", lambda: _reconcile(naming, settings, jobs[TABLES_JOB])),
    ]


def _checked(settings: Settings, field: str, build: Callable[[], dg.ScheduleDefinition]) -> dg.ScheduleDefinition:
    try:
        return build()
    except dg.DagsterInvalidDefinitionError as e:
        raise SettingsError(
            f"{settings.name_of(field)} is {getattr(settings, field)!r}: set it to a cron expression of five fields, "
            "such as '0 3 * * *' for three in the morning (UTC)"
        ) from e


def _catalog(naming: Naming, settings: Settings, job: dg.UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=naming.of("catalogue"),
        job=job,
        cron_schedule=settings.catalogue_cron,
        execution_timezone="UTC",
        tags={ARCHIVE_TAG: naming.prefix},
        description="Refreshes the collections and value lists; registers new collections as partitions.",
    )


def _reconcile(naming: Naming, settings: Settings, job: dg.UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=naming.of("reconcile"),
        job=job,
        cron_schedule=settings.reconcile_cron,
        execution_timezone="UTC",
        required_resource_keys={naming.lake},
        description=(
            "Lists every mirrored collection in full, and records which series were added, revised, withdrawn or "
            "returned. Run it after the catalog, which determines which collections there are."
        ),
    )
    def reconcile(context: dg.ScheduleEvaluationContext) -> Requests:
        try:
            lake = naming.lake_of(context).open(write=False)
            yield from _requests(naming, lake, settings.collections, context.instance)
        except LakeError as e:
            yield dg.SkipReason(f"Nothing was requested: {error_text(e, settings.name_of)}")

    return reconcile


def _requests(naming: Naming, lake: Lake, patterns: Sequence[str], instance: dg.DagsterInstance) -> Requests:
    """Yield runs over ranges of the listed collections.

    One that the archive no longer lists is left out; materializing `collections` records that it is gone.
    """
    listed = set(lake.read_table(COLLECTIONS, columns=["Collection"])["Collection"].to_pylist())
    registered = list(instance.get_dynamic_partitions(str(naming.partitions.name)))
    kept = [c for c in matching(patterns, registered) if c in listed]
    if not listed:
        yield dg.SkipReason("The table of collections is empty: materialize collections first")
        return
    for i in range(0, len(kept), COLLECTIONS_PER_RUN):
        for first, last in contiguous_ranges(kept[i : i + COLLECTIONS_PER_RUN], registered):
            yield dg.RunRequest(
                run_key=f"{first} to {last}",
                job_name=naming.of(TABLES_JOB),
                tags={RANGE_START: first, RANGE_END: last, ARCHIVE_TAG: naming.prefix},
            )
