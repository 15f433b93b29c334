"""A code location with an instance and a lake of one's own, on an archive that may change."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import duckdb

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import SERIES_CHANGES
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.places import Place

COLLECTIONS = ["HeadNeckMix", "Lung Phantom CT", "QIN_Breast.v2", "TCGA-DEMO"]
QIN = "QIN_Breast.v2"
TABLES = ("series", "series_changes", "series_metadata")
Change = tuple[str, str, str | None, str | None, str | None, int]


class Pipeline:
    """A code location, an instance and a lake of one's own."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.settings = settings
        self.instance = instance
        self.definitions = build_definitions(settings)
        self.lake = Lake(settings.lake)

    def run(self, job: str, **how: Any) -> dg.ExecuteInProcessResult:
        return self.definitions.resolve_job_def(f"nbia_{job}").execute_in_process(
            instance=self.instance, raise_on_error=False, **how
        )

    def run_tables(self, **how: Any) -> dg.ExecuteInProcessResult:
        return self.run(
            "tables",
            tags={
                "dagster/asset_partition_range_start": COLLECTIONS[0],
                "dagster/asset_partition_range_end": COLLECTIONS[-1],
            },
            **how,
        )

    def sql(self, table: str, query: str) -> list[Any]:
        """Ask DuckDB, the reader that we did not write; the table is called t."""
        pattern = f"{self.settings.lake}/tables/{table}/**/*.parquet"
        source = f"WITH t AS (SELECT * FROM read_parquet('{pattern}', hive_partitioning = true)) "
        return duckdb.execute(source + query).fetchall()

    def sentence(self, result: dg.ExecuteInProcessResult) -> str:
        """Return what the failed steps say."""
        failures = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
        assert failures, "no step failed"
        return " ".join(str(f.description) for f in failures if f is not None)


class LivePipeline(Pipeline):
    """An archive that can be changed, a pipeline on it, and a clock that both live by."""

    def __init__(self, url: str, control: Operations, lake: Place, instance: dg.DagsterInstance, api: str) -> None:
        super().__init__(Settings(archive=url, api=api, lake=str(lake), images=("*",), headers=()), instance)
        self.control = control
        self.time = datetime(2026, 3, 1, 12)  # noqa: DTZ001 - the tables state no zone
        self.later(0)

    def later(self, hours: float) -> None:
        self.time += timedelta(hours=hours)
        self.control.now(self.time)

    def materialize(self, *assets: str, collection: str | None = QIN, **config: Any) -> dg.ExecuteInProcessResult:
        """Run assets by themselves, and fail with their sentence if they do."""
        self.control.requests(clear=True)
        keys = [dg.AssetKey(["nbia", a]) for a in assets]
        job = self.definitions.resolve_implicit_global_asset_job_def()
        ops = {f"nbia__{asset}": {"config": values} for asset, values in config.items()}
        result = job.execute_in_process(
            instance=self.instance,
            partition_key=collection,
            asset_selection=keys,
            run_config={"ops": ops},
            raise_on_error=False,
        )
        assert result.success, self.sentence(result)
        return result

    def look(self, hours: float = 1, collection: str = QIN) -> list[Change]:
        """Let time pass, list a collection, and return the changes that are new in DuckDB."""
        self.later(hours)
        before = self.feed(collection)
        self.materialize(*TABLES, collection=collection)
        after = self.feed(collection)
        assert after[: len(before)] == before, "the feed is append-only"
        return after[len(before) :]

    def feed(self, collection: str) -> list[Change]:
        if not self.lake.collections_of(SERIES_CHANGES):
            return []
        columns = "SeriesInstanceUID, Change, ColumnName, OldValue, NewValue, Version"
        return self.sql("series_changes", f"SELECT {columns} FROM t WHERE Collection = '{collection}'")

    def asked(self) -> Counter[str]:
        return Counter(r["endpoint"] for r in self.control.requests() if r["endpoint"] != "token")

    def uids(self, collection: str = QIN) -> list[str]:
        rows = self.control.series(collection)
        return [r["SeriesInstanceUID"] for r in rows if r["Visibility"] == 1]

    def metadata_of(self, asset: str, collection: str = QIN) -> dict[str, Any]:
        found = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey(["nbia", asset]), asset_partitions=[collection]), limit=1
        )
        event = found.records[0].asset_materialization
        assert event is not None
        return {name: value.value for name, value in event.metadata.items()}
