"""What was released in a collection, as a report: nothing is written to the lake, the UI shows the figures."""

from datetime import date, datetime, timezone
from typing import Any

import dagster as dg
import pyarrow as pa
from pydantic import Field

from nbia_pipeline import clock
from nbia_pipeline.changes.released import LOOK_BACK, PATIENT_COLUMNS, STUDY_COLUMNS, Released, ask_released
from nbia_pipeline.defs.assets.partitioned import quiet_asset
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.metadata import records
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.schema.tables import COLLECTIONS
from nbia_pipeline.settings import Settings, SettingsError

NAME = "news"
SHOWN = 50


class ReleasedConfig(dg.Config):
    """The day to start from."""

    since: str | None = Field(
        default=None,
        description="A day like 2024-01-01. Default: the day of the last report of the collection, or 30 days ago.",
    )


def build_released_asset(naming: Naming, settings: Settings) -> dg.AssetsDefinition:
    """Return the asset of one archive that reports releases; its key is ``news``."""

    @quiet_asset(
        key=naming.key(NAME),
        partitions_def=naming.partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[naming.key(COLLECTIONS.name)],
        required_resource_keys={naming.archive},
        pool=naming.pool,
    )
    def released(context: dg.AssetExecutionContext, config: ReleasedConfig) -> dg.MaterializeResult[Any]:
        with as_failure(settings), naming.archive_of(context).client() as client:
            for collection in context.partition_keys:
                since = _day(config.since) if config.since else _since(context.instance, naming.key(NAME), collection)
                metadata = _metadata(since, ask_released(client, collection, since))
                context.add_asset_metadata(metadata, partition_key=collection)
        return dg.MaterializeResult()

    return released


def _metadata(since: date, found: Released) -> dict[str, Any]:
    return {
        "since": since.isoformat(),
        "patients": found.patients.num_rows,
        "studies": found.studies.num_rows,
        "first_patients": _shown(found.patients, PATIENT_COLUMNS),
        "first_studies": _shown(found.studies, STUDY_COLUMNS),
    }


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as e:
        raise SettingsError(f"since is {text!r}: use a day such as 2024-01-01") from e


def _since(instance: dg.DagsterInstance, key: dg.AssetKey, collection: str) -> date:
    """Return the day of the last report: more may have been released on that day since."""
    last = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[collection]), limit=1
    ).records
    if last:
        return datetime.fromtimestamp(last[0].timestamp, timezone.utc).date()
    return clock.utc_now().date() - LOOK_BACK


def _shown(table: pa.Table, columns: tuple[str, ...]) -> dg.TableMetadataValue:
    """Return the first rows of a table for the UI."""
    rows = table.slice(0, SHOWN).select(list(columns)).to_pylist()
    texts = ({name: "" if value is None else str(value) for name, value in row.items()} for row in rows)
    return records(texts, dict.fromkeys(columns, "string"))
