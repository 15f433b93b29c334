"""What Dagster's daemon does with the code location, at moments that a script chooses.

Sensors and schedules are evaluated as the daemon does, their partitions are added, their cursors kept, and a run key
is served once. A run is executed in one of two ways: *really*, as the job with its checks on the Dagster instance; or
*plainly*, by the functions that the assets of that job call, in the same order and with the same rule (what depends on
a failed asset is left out). A real run costs some tenths of a second, so a year takes a sample of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import dagster as dg
from dagster._core.instance.ref import InstanceRef

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.jobs import PARTITION, RANGE_END, RANGE_START
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.simulation.plain import PlainRuns

PARTITIONS = "nbia_collections"


class Daemon:
    """Ticks and runs.

    Attributes:
        cursors: by sensor, what its last tick left.
        counts: how many ticks were evaluated, and how many runs executed in which way.
    """

    def __init__(self, settings: Settings, instance: dg.DagsterInstance, folder: str, real_every: int) -> None:
        """Take the code location.

        Args:
            settings: of the code location.
            instance: may be ephemeral.
            folder: for a reference that Dagster wants with the instance, and does not use.
            real_every: each so many-th run is a real one; 0: none is.
        """
        self.instance = instance
        self.cursors: dict[str, str | None] = {}
        self.counts: Counter[str] = Counter()
        self._definitions = build_definitions(settings)
        self._repository = self._definitions.get_repository_def()
        # As they are: Dagster takes longer to make them anew for each tick than the tick takes.
        self._resources = {
            name: dg.ResourceDefinition.hardcoded_resource(value)
            for name, value in (self._definitions.resources or {}).items()
        }
        self._reference = InstanceRef.from_dir(folder)
        self._keys: set[tuple[str, str]] = set()
        self._real_every = real_every
        self._plain = PlainRuns(settings, self.partitions, self._register)

    def partitions(self) -> list[str]:
        """Return the registered collections."""
        return list(self.instance.get_dynamic_partitions(PARTITIONS))

    def tick(self, sensor: str) -> Any:
        """Evaluate a sensor, add its partitions and keep its cursor."""
        self.counts["ticks"] += 1
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self._reference,
            cursor=self.cursors.get(sensor),
            repository_def=self._repository,
            resources=self._resources,
        ) as context:
            tick = self._repository.get_sensor_def(sensor).evaluate_tick(context)
        for request in tick.dynamic_partitions_requests or []:
            self._register(list(request.partition_keys or ()))
        if tick.cursor is not None:
            self.cursors[sensor] = tick.cursor
        return tick

    def scheduled(self, schedule: str, now: datetime) -> Any:
        """Evaluate a schedule."""
        self.counts["ticks"] += 1
        with dg.build_schedule_context(
            instance=self.instance,
            instance_ref=self._reference,
            scheduled_execution_time=now.replace(tzinfo=timezone.utc),
            repository_def=self._repository,
            resources=self._resources,
        ) as context:
            # Else Dagster opens another one, by the reference.
            object.__setattr__(context, "_instance", self.instance)
            return self._repository.get_schedule_def(schedule).evaluate_tick(context)

    def is_new(self, source: str, request: Any) -> bool:
        """Return whether a run key was never served to a sensor before, and remember it; a run without one is new."""
        if not request.run_key:
            return True
        key = (source, str(request.run_key))
        known = key in self._keys
        self._keys.add(key)
        return not known

    def run(self, job: str, request: Any, really: bool | None = None) -> bool:
        """Execute a run; return whether it succeeded.

        Args:
            job: its name.
            request: of a sensor or a schedule.
            really: as the job itself; None: as it comes.
        """
        self.counts["runs"] += 1
        if really is None:
            really = bool(self._real_every) and self.counts["runs"] % self._real_every == 0
        self.counts["real runs"] += really
        if not really:
            return self._plain.run(job, self.collections_of(request), dict(request.run_config or {}))
        result = self._definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            partition_key=request.partition_key,
            run_config=dict(request.run_config or {}),
            tags=dict(request.tags or {}),
            asset_selection=list(request.asset_selection) if request.asset_selection else None,
        )
        return bool(result.success)

    def collections_of(self, request: Any) -> list[str]:
        """Return the collections of a run."""
        tags = request.tags or {}
        if request.partition_key or PARTITION in tags:
            return [request.partition_key or tags[PARTITION]]
        if RANGE_START not in tags:
            return []
        known = self.partitions()
        return known[known.index(tags[RANGE_START]) : known.index(tags[RANGE_END]) + 1]

    def _register(self, collections: Sequence[str]) -> None:
        self.instance.add_dynamic_partitions(PARTITIONS, list(collections))
