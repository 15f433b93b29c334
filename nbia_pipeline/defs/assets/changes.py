"""The feed of changes as an asset: what changed from one listing to the next, recorded once."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from nbia_pipeline.archive import ArchiveError, ClientOptions
from nbia_pipeline.changes.diff import ADDED, kinds_of
from nbia_pipeline.changes.feed import WITHDRAWAL_HOURS, ChangeSummary, record_changes
from nbia_pipeline.changes.reasons import AskReasons, Reasons
from nbia_pipeline.defs.assets.partitioned import each_partition, partitioned_asset, record
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.metadata import first_rows, materialization_metadata, stored_bytes
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.mirror.prune import mark_withdrawn
from nbia_pipeline.schema.tables import COLLECTIONS, SERIES, SERIES_CHANGES
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import logger

log = logger(__name__)

_SHOWN = ("Change", "ColumnName", "OldValue", "NewValue", "PatientID", "SeriesInstanceUID", "Reason")
# Reasons are optional: an archive that is down must not hold up the feed for long.
REASON_OPTIONS = ClientOptions(connect_timeout=10, read_timeout=60, tries=2, max_backoff=5)
# With at least this many series, a listing that lacks more than half of them deserves a warning.
LARGE_COLLECTION = 20


class ChangesConfig(dg.Config):
    """When a withdrawal is confirmed."""

    withdrawal_hours: float = Field(
        default=WITHDRAWAL_HOURS,
        ge=0,
        le=876_000,  # a hundred years: more is no time that a calendar has
        description="A series is withdrawn once it has been missing for this many hours between two full listings.",
    )


def build_changes_asset(naming: Naming, settings: Settings) -> dg.AssetsDefinition:
    """Return the ``series_changes`` asset of one archive."""

    @partitioned_asset(naming, SERIES_CHANGES, after=[COLLECTIONS, SERIES], calls_archive=False)
    def series_changes(context: dg.AssetExecutionContext, config: ChangesConfig) -> dg.MaterializeResult[Any]:
        with as_failure(settings):
            lake = naming.lake_of(context).open()

            def make(collection: str) -> dict[str, Any]:
                reasons = reasons_from(naming, context)
                return record_collection(lake, collection, context.run.run_id, config, reasons)[1]

            each_partition(naming, settings, SERIES_CHANGES, context, lake, make)
        return dg.MaterializeResult()

    return series_changes


def record_collections(
    naming: Naming, context: dg.AssetExecutionContext, lake: Lake, collections: list[str], config: ChangesConfig
) -> None:
    """Record the changes of some collections, from a step of another asset; damage stops its collection only."""
    for collection in collections:
        reasons = reasons_from(naming, context)
        try:
            summary, metadata = record_collection(lake, collection, context.run.run_id, config, reasons)
        except DamagedFile as e:
            log.warning("the changes of %s are not recorded now: %s", collection, e)
            continue
        if summary.changes.num_rows:
            record(context, naming.key(SERIES_CHANGES.name), {collection: metadata})


def reasons_from(naming: Naming, context: dg.AssetExecutionContext) -> AskReasons:
    """Return what asks the archive why it withdrew series; it connects only when it is called."""

    def ask(series_uids: Sequence[str]) -> dict[str, str]:
        try:
            with naming.archive_of(context).client(REASON_OPTIONS) as client:
                return Reasons(client).of(series_uids)
        except ArchiveError as e:
            log.warning("the archive cannot be asked why it withdrew %d series: %s", len(series_uids), e)
            return {}

    return ask


def record_collection(
    lake: Lake, collection: str, run_id: str, config: ChangesConfig, reasons: AskReasons = lambda series_uids: {}
) -> tuple[ChangeSummary, dict[str, Any]]:
    """Record what the last listings of a collection changed, and return it with the metadata for the UI.

    The receipts of series that are withdrawn, or that returned, are updated.
    """
    started = time.perf_counter()
    wait = timedelta(hours=config.withdrawal_hours)
    summary = record_changes(lake, collection, run_id=run_id, wait=wait, reasons=reasons)
    mark_withdrawn(lake, collection)
    size = stored_bytes(lake, SERIES_CHANGES, collection)
    seconds = time.perf_counter() - started
    metadata = materialization_metadata(SERIES_CHANGES, lake, summary.rows, size, seconds, collection)
    return summary, {**metadata, **_figures(summary)}


def _figures(summary: ChangeSummary) -> dict[str, Any]:
    """Return how many series changed, the first changes, and how many are missing but not withdrawn yet."""
    figures: dict[str, Any] = {**kinds_of(summary.changes), "listed": summary.listed, "missing": summary.missing}
    if summary.changes.num_rows:
        figures["first_changes"] = first_rows(_notable(summary.changes), [SERIES_CHANGES.column(c) for c in _SHOWN])
    warnings = list(summary.rebuilt)
    known = summary.missing + summary.listed
    if summary.missing > summary.listed and known >= LARGE_COLLECTION:
        warnings.append(
            f"{summary.missing} of {known} series are missing from the last listing. They count as withdrawn only if a "
            "listing some hours later lacks them too"
        )
    return {**figures, **({"warning": "\n".join(warnings)} if warnings else {})}


def _notable(changes: pa.Table) -> pa.Table:
    """Return the changes with those first that are not additions, of which there are often thousands."""
    added = pc.equal(changes["Change"], ADDED)
    return pa.concat_tables([changes.filter(pc.invert(added)), changes.filter(added)])
