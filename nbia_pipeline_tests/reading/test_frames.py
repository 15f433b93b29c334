"""Tables as data frames and Arrow tables, and in SQL: by Lake.sql, and by any DuckDB with the lake's catalog.sql."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nbia_pipeline.reading.frames import MissingExtra, NotInLake
from nbia_pipeline.reading.lake import Lake
from nbia_pipeline.reading.sql import CATALOG, catalog_sql, write_catalog
from nbia_pipeline.schema import TABLES
from nbia_pipeline.schema import tables as t

TCGA, QIN = "TCGA-DEMO", "QIN_Breast.v2"


def few_series(*uids: str, **values: Any) -> pa.Table:
    """Return rows of ``series``, null but for some values."""
    blank = dict.fromkeys(t.SERIES.schema.names)
    rows = [{**blank, "SeriesInstanceUID": uid, **values} for uid in uids]
    return pa.Table.from_pylist(rows, schema=t.SERIES.schema)


@pytest.fixture
def odd(tmp_path: Path) -> Lake:
    """A lake of one table, of collections whose names look like something else, in a folder whose name is a pattern."""
    lake = Lake(str(tmp_path / "o'dd [l]ake*"))
    lake.write_table(t.SERIES, few_series("1.1", "1.2", Collection="007", Modality="CT"), "007")
    lake.write_table(t.SERIES, few_series("2.1", Collection="2024-01-01", StudyDate=date(2001, 2, 3)), "2024-01-01")
    old = few_series("3.1", Collection="Älter %41").drop_columns(["Collection", "Modality"])
    path = Path(lake.uri, "tables/series/Collection=%C3%84lter%20%2541/part-0.parquet")
    path.parent.mkdir()
    pq.write_table(old, path)
    write_catalog(lake)
    return lake


# --- frames


def test_a_frame_has_types_that_keep_null_apart(mirrored: Lake) -> None:
    frame = mirrored.frame("series", TCGA)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        **dict.fromkeys(t.SERIES.schema.names, "string"),
        **dict.fromkeys(("SeriesNumber", "ImageCount", "FileSize"), "Int64"),
        **{name: str(frame[name].dtype) for name in ("SeriesDate", "StudyDate", "TimeStamp", "DateReleased")},
        "AnnotationsFlag": "boolean",
    }
    assert pd.api.types.is_datetime64_dtype(frame.StudyDate) and pd.api.types.is_datetime64_dtype(frame.TimeStamp)
    assert frame.Site.isna().all(), "v2 does not serve it"
    rows = mirrored.read_table(t.SERIES, TCGA).to_pylist()
    assert frame.FileSize.tolist() == [row["FileSize"] for row in rows]
    assert frame.StudyDate.dt.date.tolist() == [row["StudyDate"] for row in rows]
    sizes = frame.groupby("Modality").FileSize.sum().to_dict()
    assert sizes == {m: sum(r["FileSize"] for r in rows if r["Modality"] == m) for m in ("CT", "MR", "PT", "SEG")}


def test_collections_and_columns_are_those_that_were_asked_for(mirrored: Lake) -> None:
    columns = ["Modality", "Collection"]
    both = mirrored.frame("series", [TCGA, QIN], columns)
    assert list(both.columns) == columns
    assert both.Collection.tolist() == [TCGA] * 9 + [QIN] * 5
    assert mirrored.frame("series").Collection.nunique() == 3
    assert mirrored.arrow("series", QIN, columns).to_pylist() == both.iloc[9:].to_dict("records")
    assert mirrored.frame("collections", columns=["Collection"]).empty, "the engine by itself writes no catalog"


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda lake: lake.frame("serie"), "there is no table 'serie': did you mean series or series_seen?"),
        (lambda lake: lake.frame("series", "TCGA-DEM"), "has no collection 'TCGA-DEM': did you mean TCGA-DEMO?"),
        (lambda lake: lake.arrow("series", columns=["Modalty"]), "has no column 'Modalty': did you mean Modality?"),
        (lambda lake: lake.frame("modalities", TCGA), "table modalities has no partitions: read it without"),
        (lambda lake: lake.images("xyz"), "has no collection 'xyz': it can be HeadNeckMix, QIN_Breast.v2, TCGA-DEMO"),
        (
            lambda lake: lake.volume("1.2.3"),
            "has a series '1.2.3': its collection is not mirrored, or the UID is wrong",
        ),
        (lambda lake: Lake(f"{lake.uri}x").frame("series"), "there is no lake with tables at"),
        (lambda lake: Lake(f"{lake.uri}x").sql("FROM series"), "there is no lake with tables at"),
    ],
    ids=["table", "collection", "column", "unpartitioned", "images", "series", "lake", "lake-sql"],
)
def test_what_the_lake_does_not_have_is_an_error_that_says_what_it_has(
    mirrored: Lake, ask: Callable[[Lake], Any], text: str
) -> None:
    with pytest.raises(NotInLake) as e:
        ask(mirrored)
    assert text in str(e.value)


def test_what_is_optional_is_imported_when_it_is_used() -> None:
    code = (
        "import sys, nbia_pipeline; assert 'pyarrow' not in sys.modules; nbia_pipeline.Lake\n"
        "print({'duckdb', 'pandas', 'polars', 'pydicom', 'SimpleITK'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


# --- SQL


def test_every_table_is_a_view(mirrored: Lake) -> None:
    assert {name for (name,) in mirrored.sql("SHOW TABLES").fetchall()} == set(TABLES)
    query = """
        SELECT series.Modality, count(*), sum(Bytes)::BIGINT FROM series JOIN image_series USING (SeriesInstanceUID)
        WHERE series.Collection = ? GROUP BY 1 ORDER BY 1
    """
    assert mirrored.sql(query, [TCGA]).fetchall() == [
        ("CT", 4, 2485564),
        ("MR", 1, 483266),
        ("PT", 2, 368108),
        ("SEG", 2, 46378),
    ]
    assert mirrored.sql("FROM modalities").fetchall() == []


def test_sql_without_duckdb_names_the_extra(mirrored: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtra, match=r"^duckdb is not installed: pip install 'nbia-pipeline\[duckdb\]'$"):
        mirrored.sql("FROM series")


EXPECTED = [
    ("007", "1.1", "CT", None),
    ("007", "1.2", "CT", None),
    ("2024-01-01", "2.1", None, date(2001, 2, 3)),
    ("Älter %41", "3.1", None, None),
]
ASKED = "SELECT Collection, SeriesInstanceUID, Modality, StudyDate FROM series ORDER BY ALL"


def by_catalog(lake: Lake, *before: str) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB that has read the file, as its command line does."""
    connection = duckdb.connect()
    for statement in (*before, Path(lake.uri, CATALOG).read_text(encoding="utf-8")):
        connection.execute(statement)
    return connection


def test_names_are_text_and_lost_columns_null_in_every_reader(odd: Lake) -> None:
    assert odd.sql(ASKED).fetchall() == EXPECTED
    assert by_catalog(odd).sql(ASKED).fetchall() == EXPECTED
    assert odd.frame("series").SeriesInstanceUID.tolist() == ["1.1", "1.2", "2.1", "3.1"]
    for folder in Path(odd.uri, "tables/series").iterdir():  # nothing else shows that 007 is no number
        if folder.name != "Collection=007":
            shutil.rmtree(folder)
    assert odd.sql(ASKED).fetchall() == by_catalog(odd).sql(ASKED).fetchall() == EXPECTED[:2]


def test_the_catalog_has_a_view_of_every_table_with_its_columns_and_types(mirrored: Lake) -> None:
    here, there = by_catalog(mirrored), mirrored.sql("FROM series")  # the same types as through Arrow
    for table in TABLES.values():
        found = here.sql(f'FROM "{table.name}"')
        assert found.columns == table.schema.names
        assert found.count("*").fetchall() == mirrored.sql(f'SELECT count(*) FROM "{table.name}"').fetchall()
    assert here.sql("FROM series").types == there.types
    assert here.sql("FROM instances ORDER BY ALL").fetchall() == mirrored.sql("FROM instances ORDER BY ALL").fetchall()


def test_the_catalog_follows_the_tables_and_is_written_only_when_it_changes(odd: Lake) -> None:
    path = Path(odd.uri, CATALOG)
    assert by_catalog(odd).sql("FROM modalities").fetchall() == []
    before = path.stat()
    odd.write_table(t.SERIES, few_series("9.9", Collection="new"), "new")
    write_catalog(odd)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(by_catalog(odd).sql("FROM series").fetchall()) == 5, "a new collection needs no new file"
    odd.write_table(t.MODALITIES, pa.table({"Modality": ["CT"], "PatientCount": [3]}, schema=t.MODALITIES.schema))
    write_catalog(odd)
    assert by_catalog(odd).sql("FROM modalities").fetchall() == [("CT", 3)]


def test_a_copy_of_the_lake_is_read_where_it_is(odd: Lake, tmp_path: Path) -> None:
    shutil.move(odd.uri, tmp_path / "moved")
    moved = Lake(str(tmp_path / "moved"))
    with pytest.raises(duckdb.IOException, match="No files found"):
        by_catalog(moved)
    connection = by_catalog(moved, f"SET VARIABLE nbia_lake = '{moved.uri}'")
    assert connection.sql(ASKED).fetchall() == EXPECTED
    write_catalog(moved)  # as the next run does
    assert by_catalog(moved).sql(ASKED).fetchall() == EXPECTED


def test_the_catalog_of_an_object_store_says_how_duckdb_gets_there() -> None:
    text = catalog_sql("s3://bucket/lake", {"series"})
    assert "INSTALL httpfs; LOAD httpfs; CREATE SECRET (TYPE s3, PROVIDER credential_chain);" in text
    assert "coalesce(getvariable('nbia_lake'), 's3://bucket/lake') || '/tables/series/*/*.parquet'" in text


@pytest.mark.stores("moto")
@pytest.mark.not_on_disk
def test_a_lake_in_an_object_store_is_read_in_every_way(lake: Lake) -> None:
    lake = Lake(lake.uri)
    lake.write_table(t.SERIES, few_series("1.1", "1.2", Collection="007", Modality="CT"), "007")
    write_catalog(lake)
    assert (lake.read_bytes(CATALOG) or b"").decode() == catalog_sql(lake.uri, {"series"})
    assert lake.sql(ASKED).fetchall() == EXPECTED[:2]
    assert lake.frame("series", "007", ["Modality"]).Modality.tolist() == ["CT", "CT"]
