"""What the archive sends that fits no table, as Dagster shows it: a figure, and a check that warns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nbia_pipeline.defs.jobs import tables_config
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import edited
from nbia_pipeline_tests.helpers.pipeline import COLLECTIONS, QIN, Pipeline


@pytest.fixture
def pipeline(archive: TestArchive, tmp_path: Path) -> Iterator[Pipeline]:
    settings = Settings(archive=archive.url, lake=str(tmp_path / "lake"), collections=(QIN,))
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        pipeline = Pipeline(settings, instance)
        instance.add_dynamic_partitions("nbia_collections", [QIN])
        yield pipeline


def rename(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["TotalSize"] = row.pop("FileSize")


def conformance(result: dg.ExecuteInProcessResult, asset: str) -> dg.AssetCheckEvaluation:
    (check,) = [
        e
        for e in result.get_asset_check_evaluations()
        if e.check_name == "conformance" and e.asset_key.path[-1] == asset
    ]
    return check


def test_an_archive_with_a_series_without_collection_is_mirrored_with_a_warning(
    archive: TestArchive, pipeline: Pipeline
) -> None:
    archive.faults.inject("getCollectionValues", edited(lambda rows: rows.insert(1, {})))
    result = pipeline.run("catalogue")
    assert result.success
    check = conformance(result, "collections")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "Collection: 1 of 5 rows have none, and were left out" in str(check.description)
    (event,) = [
        e.step_materialization_data.materialization
        for e in result.all_events
        if e.is_step_materialization and e.asset_key == dg.AssetKey(["nbia", "collections"])
    ]
    assert event.metadata["nonconforming"].value == 1
    assert set(pipeline.instance.get_dynamic_partitions("nbia_collections")) == {QIN}
    assert len(COLLECTIONS) == 4
    assert pipeline.sql("conformance", "SELECT Collection, TableName, ColumnName FROM t") == [
        ("~archive", "collections", "Collection")
    ]


def test_a_renamed_key_is_a_warning_at_first_and_an_error_later_unless_it_is_allowed(
    archive: TestArchive, pipeline: Pipeline
) -> None:
    def run(**config: Any) -> dg.ExecuteInProcessResult:
        archive.faults.inject("getSeries", edited(rename))
        return pipeline.run("tables", partition_key=QIN, **config)

    result = run()
    assert result.success
    check = conformance(result, "series")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "TotalSize" in str(check.description)
    assert "no row has AnnotationsFlag, FileSize" in str(check.description)
    assert pipeline.sql("series", "SELECT count(*), count(FileSize) FROM t") == [(5, 0)]

    archive.faults.reset()
    result = pipeline.run("tables", partition_key=QIN)
    assert conformance(result, "series").passed
    assert pipeline.sql("series", "SELECT count(FileSize) FROM t") == [(5,)]

    refused = run()
    assert not refused.success
    assert "has FileSize any longer, and has TotalSize instead" in pipeline.sentence(refused)
    assert pipeline.sql("series", "SELECT count(FileSize) FROM t") == [(5,)]
    assert pipeline.sql("conformance", "SELECT ColumnName FROM t WHERE TableName = 'series'") == [("TotalSize",)]

    assert run(run_config=tables_config(Naming(), allow_lost_columns=True)).success
    assert pipeline.sql("series", "SELECT count(FileSize) FROM t") == [(0,)]
