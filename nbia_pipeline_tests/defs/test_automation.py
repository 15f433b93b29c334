"""Automation conditions, evaluated as the daemon does, over a real lake and instance: what they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.pipeline import COLLECTIONS, Pipeline

pytestmark = pytest.mark.slow

TABLES = ("patients", "series", "series_changes", "series_metadata", "studies")
CATALOG = ("body_parts", "collections", "manufacturers", "modalities")
MIRRORED = "TCGA-DEMO"
NOON = datetime(2030, 3, 4, 12, tzinfo=timezone.utc)
IMAGES = {name: {MIRRORED} for name in ("images", "annotation_files", "headers", "references")}

Asked = dict[str, set[str | None]]


class Daemon:
    """A code location with conditions, whose ticks a test drives."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._cursor: dg.AssetDaemonCursor | None = None

    def tick(self, now: datetime) -> Asked:
        """Evaluate the conditions; returns by asset the partitions that are asked for."""
        result = dg.evaluate_automation_conditions(
            self.pipeline.definitions, self.pipeline.instance, cursor=self._cursor, evaluation_time=now
        )
        self._cursor = result.cursor
        keys = self.pipeline.definitions.resolve_all_asset_keys()
        found = {key.path[-1]: set(result.get_requested_partitions(key)) for key in keys}
        return {name: partitions for name, partitions in found.items() if partitions}


@pytest.fixture
def daemon(demo_archive: str, tmp_path: Path) -> Iterator[Daemon]:
    lake = str(tmp_path / "lake")
    settings = Settings(archive=demo_archive, lake=lake, images=("TCGA*",), automation=True)
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield Daemon(Pipeline(settings, instance))


def test_what_is_new_is_asked_for_and_nothing_else(daemon: Daemon) -> None:
    pipeline = daemon.pipeline

    def at(minutes: float) -> Asked:
        return daemon.tick(NOON + timedelta(minutes=minutes))

    assert at(0) == {}
    assert pipeline.run("catalogue").success
    pipeline.instance.add_dynamic_partitions("nbia_collections", ["gone from the archive"])
    new: Asked = {name: set(COLLECTIONS) for name in TABLES}
    assert at(1) == new | IMAGES, "new partitions, but for the one that the archive does not list"
    assert at(2) == {}, "it was asked for already"
    for collection in (MIRRORED, "HeadNeckMix"):
        assert pipeline.run("tables", partition_key=collection).success
    assert at(3) == IMAGES, "the series table of two collections was updated, and the images of one are mirrored"
    assert pipeline.run("images", partition_key=MIRRORED).success
    assert at(4) == {}
    night = {name: {None} for name in CATALOG} | new | IMAGES
    assert at(15.5 * 60) == night, "both crons have passed"
    assert at(15.5 * 60 + 1) == {}


def test_the_sensor_is_stopped_and_asks_in_one_backfill(daemon: Daemon) -> None:
    definitions, instance = daemon.pipeline.definitions, daemon.pipeline.instance
    repository = definitions.get_repository_def()
    assert {s.name for s in repository.sensor_defs} == {"nbia_automation", "nbia_image_backlog", "nbia_updated_series"}
    sensor = repository.get_sensor_def("nbia_automation")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED

    def tick(cursor: str | None) -> Any:
        with dg.build_sensor_context(instance, repository_def=repository, cursor=cursor) as context:
            return sensor.evaluate_tick(context)

    first = tick(None)
    assert not first.run_requests
    assert daemon.pipeline.run("catalogue").success
    (request,) = tick(first.cursor).run_requests
    assert request.tags["nbia/archive"] == "nbia" and request.tags["dagster/retry_strategy"] == "ALL_STEPS"
    asked = request.asset_graph_subset.partitions_subsets_by_asset_key
    found = {key.path[-1]: set(subset.get_partition_keys()) for key, subset in asked.items()}
    assert found == {name: set(COLLECTIONS) for name in TABLES} | IMAGES


def test_there_are_no_conditions_unless_they_are_wanted() -> None:
    repository = build_definitions(Settings()).get_repository_def()
    assert {sensor.name for sensor in repository.sensor_defs} == {"nbia_image_backlog", "nbia_updated_series"}
    assert not [spec for spec in build_definitions(Settings()).resolve_all_asset_specs() if spec.automation_condition]
