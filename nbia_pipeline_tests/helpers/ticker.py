"""Real ticks of sensors and schedules, at moments that a test chooses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
import pytest

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.settings import Settings

PARTITIONS = "nbia_collections"
KNOWN = ["HeadNeckMix", "Lung Phantom CT", "QIN_Breast.v2", "TCGA-DEMO"]
MONDAY = datetime(2026, 3, 9, 8, 0)  # noqa: DTZ001 - long after every release of the demo, and without a zone


class Ticker:
    """What the daemon does with a code location: evaluates a tick, adds the partitions, keeps the cursor.

    Attributes:
        settings: of the code location.
        instance: a Dagster instance that a reference can be made of.
        cursors: by sensor, what the last tick left.
    """

    def __init__(self, settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = settings
        self.instance = instance
        self.cursors: dict[str, str | None] = {}
        self._definitions = build_definitions(settings)
        self._repository = self._definitions.get_repository_def()
        self._monkeypatch = monkeypatch

    def at(self, now: datetime) -> None:
        """Set the pipeline's clock."""
        self._monkeypatch.setattr("nbia_pipeline.clock.utc_now", lambda: now)

    def register(self, *collections: str) -> None:
        """Add partitions, as materializing `collections` does."""
        self.instance.add_dynamic_partitions(PARTITIONS, list(collections))

    def tick(self, sensor: str, now: datetime) -> Any:
        """Evaluate a sensor; returns what Dagster made of its answer."""
        self.at(now)
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            cursor=self.cursors.get(sensor),
            repository_def=self._repository,
            resources=self._resources(),
        ) as context:
            tick = self._repository.get_sensor_def(sensor).evaluate_tick(context)
        for request in tick.dynamic_partitions_requests or []:
            assert isinstance(request, dg.AddDynamicPartitionsRequest)
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        if tick.cursor is not None:
            self.cursors[sensor] = tick.cursor
        return tick

    def scheduled(self, schedule: str, now: datetime) -> Any:
        """Evaluate a schedule; returns what Dagster made of its answer."""
        self.at(now)
        with dg.build_schedule_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            scheduled_execution_time=now.replace(tzinfo=timezone.utc),
            repository_def=self._repository,
            resources=self._resources(),
        ) as context:
            return self._repository.get_schedule_def(schedule).evaluate_tick(context)

    def run(self, request: Any) -> dg.ExecuteInProcessResult:
        """Execute what a tick asked for."""
        return self._definitions.resolve_job_def(request.job_name).execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            partition_key=request.partition_key,
            run_config=dict(request.run_config),
            tags=dict(request.tags),
            asset_selection=list(request.asset_selection) if request.asset_selection else None,
        )

    def _resources(self) -> dict[str, Any]:
        return dict(self._definitions.resources or {})


Make = Callable[..., Ticker]


def day(n: float) -> datetime:
    return MONDAY + timedelta(days=n)


def asked(tick: Any) -> list[tuple[str, str]]:
    """Return the jobs and partitions that a tick asks for."""
    return [(r.job_name, r.partition_key) for r in tick.run_requests]
