"""Whatever a collection is called, readers that guess types from paths take its name for text."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import decode, empty_part_path, looks_like_text, table_path
from nbia_pipeline.schema.tables import INSTANCES, STUDIES
from nbia_pipeline_tests.helpers.places import Place, file_system_of, path_in, place_at
from nbia_pipeline_tests.helpers.readers import POLARS, polars

Reader = Callable[[Place], list[Any]]


def by_duckdb(folder: Place) -> list[Any]:
    found = duckdb.execute("SELECT Collection FROM read_parquet(?)", [f"{folder}/*/*.parquet"]).fetchall()
    return [name for (name,) in found]


def by_dataset(folder: Place) -> list[Any]:
    names: list[Any] = (
        ds.dataset(path_in(folder), filesystem=file_system_of(folder), partitioning="hive")
        .to_table()["Collection"]
        .to_pylist()
    )
    return names


def by_pyarrow(folder: Place) -> list[Any]:
    names: list[Any] = pq.read_table(path_in(folder), filesystem=file_system_of(folder))["Collection"].to_pylist()
    return names


def by_pandas(folder: Place) -> list[Any]:
    return pd.read_parquet(path_in(folder), filesystem=file_system_of(folder))["Collection"].tolist()


def by_polars(folder: Place) -> list[Any]:
    names: list[Any] = polars.read_parquet(f"{folder}/")["Collection"].to_list()
    return names


READERS: list[Reader] = [by_duckdb, by_dataset, by_pyarrow, by_pandas, *([by_polars] if POLARS else [])]

NAMES = """007 0 -5 +5 1e5 1.5 1_000 1,000 0x10 2024-01-01 2024-01-01T10:00:00 1/2/2024 10:00 true False null NULL None
    NaN nan NA n/a NaT inf -inf Infinity epoch now today t % - . .5 1. ٣ ½ ~ ~empty 4D-Lung""".split()


def write(lake: Lake, *names: str) -> Place:
    for name in names:
        lake.write_table(STUDIES, studies(name), name)
    return place_at(lake.uri, "tables", STUDIES.name)


def studies(name: str) -> pa.Table:
    return pa.Table.from_pylist([{"StudyInstanceUID": "1.2", "Collection": name}], schema=STUDIES.schema)


def read(folder: Place) -> dict[str, list[Any]]:
    return {reader.__name__: sorted(reader(folder), key=str) for reader in READERS}


@pytest.mark.parametrize("name", [*NAMES, " ", " 7", "2024-01-01 10:00:00", "2024 01 01", "1 000"])
def test_a_name_is_text_to_every_reader(place: Place, name: str) -> None:
    lake = Lake(str(place))
    folder = write(lake, name)
    assert read(folder) == {reader.__name__: [name] for reader in READERS}
    assert lake.collections_of(STUDIES) == [name]
    assert lake.read_table(STUDIES, name).equals(studies(name))
    assert folder.joinpath("Collection=~empty").exists() == (not looks_like_text(name))


def test_names_of_all_kinds_together_are_text_to_every_reader(place: Place) -> None:
    names = [*NAMES, "LIDC-IDRI", "Müller/x"]
    lake = Lake(str(place))
    folder = write(lake, *names)
    assert read(folder) == {reader.__name__: sorted(names) for reader in READERS}
    assert lake.collections_of(STUDIES) == sorted(names)


NAME = st.one_of(
    st.text(st.sampled_from("0123456789+-.eExX_:/ TZnaif"), min_size=1, max_size=6),
    st.sampled_from(NAMES).flatmap(
        lambda name: st.sampled_from([name.upper(), name.lower(), name.title(), f"{name} "])
    ),
    st.dates().map(str),
    st.datetimes().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8),
)


@settings(max_examples=60, deadline=None)
@given(NAME)
def test_any_name_is_text_to_every_reader(place: Place, name: str) -> None:
    lake = Lake(str(place / uuid.uuid4().hex))
    assert read(write(lake, name)) == {reader.__name__: [name] for reader in READERS}


AS_TEXT = ds.partitioning(pa.schema([("Collection", pa.string())]), flavor="hive")
NULL = "__HIVE_DEFAULT_PARTITION__"


def by_recipe(folder: Path) -> dict[str, list[Any]]:
    """Read with the type stated, as docs/reading.md has it."""
    duck = duckdb.execute(
        f"SELECT Collection FROM read_parquet('{folder}/*/*.parquet', hive_types = {{'Collection': VARCHAR}})"
    )
    frame = pd.read_parquet(folder, partitioning=AS_TEXT)["Collection"]
    found = {
        "duckdb": [name for (name,) in duck.fetchall()],
        "pyarrow": ds.dataset(folder, partitioning=AS_TEXT).to_table()["Collection"].to_pylist(),
        "pandas": frame.astype(object).where(frame.notna(), None).tolist(),
    }
    if POLARS:
        found["polars"] = polars.read_parquet(folder, hive_schema={"Collection": polars.String})["Collection"].to_list()
    return {reader: sorted(names, key=str) for reader, names in found.items()}


@pytest.mark.parametrize("names", [[name] for name in NAMES] + [["007", "LIDC-IDRI"], ["-5", NULL], [NULL]])
def test_where_the_type_is_stated_no_part_without_rows_is_needed(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        path = tmp_path / table_path("t", name)
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"n": [1]}), path)
    expected = sorted((None if name == NULL else name for name in names), key=str)
    assert set(map(tuple, by_recipe(tmp_path / "tables" / "t").values())) == {tuple(expected)}


def test_a_name_that_can_only_be_text_needs_no_part_without_rows(place: Place) -> None:
    folder = write(Lake(str(place)), "LIDC-IDRI", "nullable", "True North", "Ärzte", "e5")
    assert not folder.joinpath("Collection=~empty").exists()
    assert sorted(by_pandas(folder)) == ["LIDC-IDRI", "True North", "e5", "nullable", "Ärzte"]


def test_a_table_that_is_written_piece_by_piece_is_read_the_same_way(place: Place) -> None:
    lake = Lake(str(place))
    rows = pa.Table.from_pylist([{"SOPInstanceUID": "1", "Collection": "007"}], schema=INSTANCES.schema)
    lake.write_pieces(INSTANCES, [rows], "007")
    assert read(place / "tables" / "instances") == {reader.__name__: ["007"] for reader in READERS}


@pytest.mark.disk("what identifies a file")
def test_the_part_without_rows_has_the_columns_of_this_version_and_is_written_once(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    write(lake, "007")
    part = tmp_path / empty_part_path(STUDIES.name)
    assert pq.read_schema(part).equals(pq.read_schema(tmp_path / table_path(STUDIES.name, "007")), check_metadata=True)
    written = part.stat().st_ino
    write(lake, "008")
    assert part.stat().st_ino == written
    lake.put_bytes(empty_part_path(STUDIES.name), b"of an older version")
    write(lake, "007")
    assert by_duckdb(tmp_path / "tables" / "studies") == ["007", "008"]


def test_null_is_encoded_and_comes_back() -> None:
    for name in ("null", "NULL", "Null"):
        segment = table_path("series", name).split("/")[2].removeprefix("Collection=")
        assert segment.lower() != "null" and decode(segment) == name
