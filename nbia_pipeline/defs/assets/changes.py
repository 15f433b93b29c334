"""The feed of changes as an asset: what the last listings show, noted once each."""

import time
from datetime import timedelta
from typing import Any

import dagster as dg
from pydantic import Field

from nbia_pipeline.changes.diff import REVISED, kinds_of
from nbia_pipeline.changes.feed import WITHDRAWAL_HOURS, ChangeSummary, record_changes
from nbia_pipeline.defs.assets.partitioned import each_partition, partitioned_asset, record
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.metadata import materialisation_metadata
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.mirror.prune import mark_withdrawn
from nbia_pipeline.schema.tables import COLLECTIONS, SERIES, SERIES_CHANGES
from nbia_pipeline.settings import Settings

SHOWN = 10
# From so many series on, a listing that lacks more than half of them is worth a warning.
LARGE_COLLECTION = 20


class ChangesConfig(dg.Config):
    """When a withdrawal is believed."""

    withdrawal_hours: float = Field(
        default=WITHDRAWAL_HOURS,
        ge=0,
        description="A series is withdrawn once it was missing for so long, from one full listing to another.",
    )


def build_changes_asset(names: Naming, settings: Settings) -> dg.AssetsDefinition:
    """Return the ``series_changes`` asset of one archive."""

    @partitioned_asset(names, SERIES_CHANGES, after=[COLLECTIONS, SERIES], calls_archive=False)
    def series_changes(context: dg.AssetExecutionContext, config: ChangesConfig) -> dg.MaterializeResult[Any]:
        with as_failure(settings):
            lake = names.lake_of(context).open()

            def make(collection: str) -> dict[str, Any]:
                return note_changes(lake, collection, context.run.run_id, config)[1]

            each_partition(names, settings, SERIES_CHANGES, context, lake, make)
        return dg.MaterializeResult()

    return series_changes


def note_collections(
    names: Naming, context: dg.AssetExecutionContext, lake: Lake, collections: list[str], config: ChangesConfig
) -> None:
    """Take the last listings of some collections into account, from a step of another asset."""
    for collection in collections:
        noted, metadata = note_changes(lake, collection, context.run.run_id, config)
        if noted.changes.num_rows:
            record(context, names.key(SERIES_CHANGES.name), {collection: metadata})


def note_changes(
    lake: Lake, collection: str, run_id: str, config: ChangesConfig
) -> tuple[ChangeSummary, dict[str, Any]]:
    """Take the last listings of a collection into account, and return what they brought and how the UI shows it.

    The receipts of series that are withdrawn or came back are told so.
    """
    started = time.perf_counter()
    noted = record_changes(lake, collection, run_id=run_id, wait=timedelta(hours=config.withdrawal_hours))
    mark_withdrawn(lake, collection)
    size = sum(lake.sizes(table_path(SERIES_CHANGES.name, collection)).values())
    seconds = time.perf_counter() - started
    metadata = materialisation_metadata(SERIES_CHANGES, lake, noted.rows, size, seconds, collection)
    return noted, {**metadata, **_figures(noted)}


def _figures(noted: ChangeSummary) -> dict[str, Any]:
    """Return what changed, in figures and by its first rows, and what is missing without being withdrawn yet."""
    figures: dict[str, Any] = {**kinds_of(noted.changes), "listed": noted.listed, "missing": noted.missing}
    if noted.changes.num_rows:
        figures["first_changes"] = dg.MetadataValue.table(
            [_shown(row) for row in noted.changes.slice(0, SHOWN).to_pylist()]
        )
    if noted.missing > noted.listed and noted.missing + noted.listed >= LARGE_COLLECTION:
        figures["warning"] = (
            f"{noted.missing} of {noted.missing + noted.listed} series are missing from the last listing. They count "
            "as withdrawn only if a listing some hours later lacks them too"
        )
    return figures


def _shown(change: dict[str, Any]) -> dg.TableRecord:
    values = {name: change[name] for name in ("SeriesInstanceUID", "PatientID", "Change", "Version")}
    if change["Change"] == REVISED:
        values |= {"ColumnName": change["ColumnName"], "OldValue": change["OldValue"], "NewValue": change["NewValue"]}
    texts = {name: value if isinstance(value, int) else _text(value) for name, value in values.items()}
    return dg.TableRecord({**dict.fromkeys(("ColumnName", "OldValue", "NewValue"), ""), **texts})


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
