"""What Dagster records of partitions on a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.pipeline import COLLECTIONS, Pipeline

pytestmark = pytest.mark.slow


def test_the_files_of_the_events_stay_open_while_partitions_are_recorded(
    demo_archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_after: dict[str, list[bool]] = {}
    store = SqliteEventLogStorage.store_event

    def stored(self: SqliteEventLogStorage, event: Any) -> None:
        store(self, event)
        if event.dagster_event and event.dagster_event.is_step_materialization:
            # SQLite removes its journal when the last connection is closed.
            here = [Path(f"{self.path_for_shard(s)}-wal").exists() for s in ("index", event.run_id)]
            open_after.setdefault(event.dagster_event.partition, []).append(all(here))

    monkeypatch.setattr(SqliteEventLogStorage, "store_event", stored)
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        pipeline = Pipeline(Settings(archive=demo_archive, lake=str(tmp_path / "lake")), instance)
        instance.add_dynamic_partitions("nbia_collections", COLLECTIONS)
        result = pipeline.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey(["nbia", "patients"])],
            tags={
                "dagster/asset_partition_range_start": COLLECTIONS[0],
                "dagster/asset_partition_range_end": COLLECTIONS[-1],
            },
        )
        assert result.success
    assert open_after == {collection: [True] for collection in COLLECTIONS}
    assert not list((tmp_path / "history" / "runs").glob("*-wal")), "a connection was left open"
