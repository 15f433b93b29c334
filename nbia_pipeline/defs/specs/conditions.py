"""Declarative automation: the conditions under which Dagster requests tables and images, beside the sensors.

They see what Dagster knows: partitions, materializations and the time. What the archive released, only the sensors ask.
"""

from __future__ import annotations

import warnings
from typing import Any

import dagster as dg

from nbia_pipeline.defs.jobs import ARCHIVE_TAG, CATALOG, HEADERS, RETRY_WHOLE, TABLES, with_images
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import COLLECTIONS
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import matching

TICK_EVERY_SECONDS = 60

_When: Any = dg.AutomationCondition  # its overloads know no mixture of conditions


class Kept(dg.AutomationCondition[dg.AssetKey]):
    """True for the collections that the archive lists and a setting keeps.

    Args:
        settings: of the archive; the list is the table ``collections`` of its lake.
        setting: the field with names and globs: collections, images or headers.
    """

    def __init__(self, settings: Settings, setting: str = "collections") -> None:
        self._settings = settings
        self._setting = setting

    @property
    def name(self) -> str:
        """What the UI calls it."""
        return {"images": "collection_mirrored", "headers": "collection_read"}.get(self._setting, "collection_kept")

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        """Return which of the candidates are kept; the lake is read only where there are some."""
        wanted = context.candidate_subset
        if not wanted.is_empty:
            patterns = self._settings.names_of(self._setting)
            listed = Lake(self._settings.lake).read_table(COLLECTIONS, columns=["Collection"])["Collection"].to_pylist()
            kept = set(matching(patterns, listed)) & wanted.expensively_compute_partition_keys()
            wanted = wanted.compute_intersection_with_partition_keys(kept)
        return dg.AutomationResult(context, true_subset=wanted)


def conditions_of(settings: Settings) -> dict[str, dg.AutomationCondition[Any]]:
    """Return the conditions of the assets by their names; none unless the setting ``automation`` is on.

    The times are those of the schedules, in UTC.
    """
    if not settings.automation:
        return {}
    due = _When.newly_missing() | _When.cron_tick_passed(settings.reconcile_cron)
    listed = due.since_last_handled() & ~_When.in_progress() & Kept(settings)
    mirrored = _When.eager() & Kept(settings, "images")
    read = _When.eager() & Kept(settings, "headers")
    with_files = with_images(settings)
    return {
        **dict.fromkeys(CATALOG, _When.on_cron(settings.catalogue_cron)),
        **dict.fromkeys(TABLES, listed.with_label("new collection, or time to list it")),
        **dict.fromkeys(with_files, mirrored.with_label("listed or fetched since the last run")),
        **dict.fromkeys(set(HEADERS).intersection(with_files), read.with_label("fetched or read since the last run")),
    }


def build_automation(naming: Naming, settings: Settings) -> list[dg.AutomationConditionSensorDefinition]:
    """Return the sensor that evaluates the conditions of one archive, if its assets have any."""
    keys = [spec.key for spec in naming.specs.values() if spec.automation_condition]
    if not keys:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # use_user_code_server: `Kept` is known to this code only
        return [
            dg.AutomationConditionSensorDefinition(
                naming.of("automation"),
                target=dg.AssetSelection.assets(*keys),
                run_tags={ARCHIVE_TAG: naming.prefix, **RETRY_WHOLE},
                minimum_interval_seconds=TICK_EVERY_SECONDS,
                use_user_code_server=True,
                description="Evaluates the automation conditions of the assets, and requests those that are due.",
            )
        ]
