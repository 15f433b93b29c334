"""The tables of headers in the readers that people use: all parts, lists, structs, and any element by its tag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nbia_pipeline.headers.shards import plan, plan_headers, write_shard
from nbia_pipeline.lake.layout import TABLES
from nbia_pipeline.reading.frames import dataset
from nbia_pipeline.reading.lake import Lake
from nbia_pipeline.reading.sql import CATALOG, write_catalog
from nbia_pipeline.schema.headers import ANNOTATIONS, INSTANCE_HEADERS, INSTANCE_REFERENCES
from nbia_pipeline_tests.helpers.held import NAME, Held, uid_of
from nbia_pipeline_tests.helpers.readers import POLARS, polars

SERIES, FILES = 6, 2
KIDNEY = {"Value": "64033007", "Scheme": "SCT", "Meaning": "Kidney"}
SEGMENTS: list[dict[str, Any]] = [
    {"SOPInstanceUID": "1.1", "Kind": "segment", "Number": 1, "Type": KIDNEY, "AnatomicRegion": None},
    {
        "SOPInstanceUID": "1.1",
        "Kind": "segment",
        "Number": 2,
        "Type": None,
        "AnatomicRegion": {**KIDNEY, "Scheme": None},
    },
]
FRAMES = [[1, 2, 3], None, []]
SQL: Any = duckdb.sql


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake with tables of headers in several parts, and some rows of what a header refers to."""
    lake = Lake(str(tmp_path_factory.mktemp("read") / "lake"))
    held = Held(lake)
    held.put(range(SERIES), FILES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MOST_INSTANCES", SERIES * FILES // 2)
        for shard in plan_headers(lake, NAME):
            write_shard(lake, shard)
    lake.write_table(ANNOTATIONS, rows_of(ANNOTATIONS.schema, SEGMENTS), NAME)
    references = [{"SOPInstanceUID": f"1.{n}", "Frames": frames} for n, frames in enumerate(FRAMES)]
    lake.write_table(INSTANCE_REFERENCES, rows_of(INSTANCE_REFERENCES.schema, references), NAME, part=1)
    write_catalog(lake)
    return lake


def rows_of(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    blank = {**dict.fromkeys(schema.names), "SeriesInstanceUID": "1", "Collection": NAME}
    return pa.Table.from_pylist([{**blank, **row} for row in rows], schema=schema)


def by_catalog(lake: Lake) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(Path(lake.uri, CATALOG).read_text(encoding="utf-8"))
    return connection


def test_every_reader_finds_the_same_rows_of_all_parts(lake: Lake) -> None:
    assert len(lake.parts_of(INSTANCE_HEADERS, NAME)) > 1
    names = [field.name for field in INSTANCE_HEADERS.schema]
    expected = sorted(lake.arrow("instance_headers").to_pylist(), key=lambda row: row["SOPInstanceUID"])
    assert len(expected) == SERIES * FILES
    assert {row["SeriesInstanceUID"] for row in expected} == set(map(uid_of, range(SERIES)))
    assert expected[0]["PixelSpacing"] == [0.5, 0.5] and expected[0]["SliceThickness"] == 1.25
    assert expected[0]["ImagePositionPatient"] == [0.0, 0.0, 1000.5] and '"vr"' in expected[0]["Header"]
    folder = Path(lake.uri, TABLES, "instance_headers")
    pattern = f"{folder}/*/*.parquet"

    def same(found: list[dict[str, Any]]) -> bool:
        return [{name: row[name] for name in names} for row in found] == expected

    for ask, source in (
        (lake.sql, "instance_headers"),
        (by_catalog(lake).sql, "instance_headers"),
        (SQL, f"'{pattern}'"),
    ):
        assert same(ask(f"FROM {source} ORDER BY SOPInstanceUID").arrow().read_all().to_pylist())
    if POLARS:
        assert same(polars.read_parquet(pattern, hive_partitioning=True).sort("SOPInstanceUID").to_dicts())
    assert same(pq.read_table(folder).sort_by("SOPInstanceUID").to_pylist())
    assert same(dataset(lake, INSTANCE_HEADERS).to_table().sort_by("SOPInstanceUID").to_pylist())
    frame = lake.frame("instance_headers").sort_values("SOPInstanceUID")
    read = pd.read_parquet(folder).sort_values("SOPInstanceUID")
    for found in (frame, read):
        assert found.SliceThickness.tolist() == [row["SliceThickness"] for row in expected]
        assert found.Header.tolist() == [row["Header"] for row in expected]
        assert [list(value) for value in found.PixelSpacing] == [row["PixelSpacing"] for row in expected]
    assert frame.InstanceNumber.dtype == "Int64"


def test_queries_find_columns_and_any_element_by_its_tag(lake: Lake) -> None:
    for ask in (lake.sql, by_catalog(lake).sql):
        query = "SELECT SliceThickness, count(*) FROM instance_headers WHERE Modality = 'CT' GROUP BY 1"
        assert ask(query).fetchall() == [(1.25, SERIES * FILES)]
        query = "SELECT DISTINCT Header->>'$.0008103E.Value[0]' FROM instance_headers"
        assert ask(query).fetchall() == [("version 00000001",)]
        query = "SELECT SeriesInstanceUID FROM series_geometry WHERE RegularVolume AND SliceSpacing <= 1.25 ORDER BY 1"
        assert ask(query).fetchall() == [(uid_of(number),) for number in range(SERIES)]


def test_lists_and_structs_are_those_that_were_written(lake: Lake) -> None:
    there = by_catalog(lake)
    for ask in (lake.sql, there.sql):
        assert ask("SELECT Frames FROM instance_references ORDER BY SOPInstanceUID").fetchall() == [
            (frames,) for frames in FRAMES
        ]
        query = "SELECT Type, AnatomicRegion, Type.Meaning FROM annotations ORDER BY Number"
        assert ask(query).fetchall() == [
            (row["Type"], row["AnatomicRegion"], row["Type"] and row["Type"]["Meaning"]) for row in SEGMENTS
        ]
    assert there.sql("FROM annotations").types == lake.sql("FROM annotations").types
    frame = lake.frame("annotations")
    assert frame.Type[0] == KIDNEY and frame.Type[1] is None and frame.Number.tolist() == [1, 2]
    if POLARS:
        frame = polars.read_parquet(f"{lake.uri}/{TABLES}/annotations/*/*.parquet").sort("Number")
        assert frame["Type"].to_list() == [row["Type"] for row in SEGMENTS]
