"""Tables and images of the lake as inputs of assets, in each type and over each kind of partition mapping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from nbia_pipeline import Images, LakeResource, NbiaIOManager, build_definitions
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.reading.lake import Lake
from nbia_pipeline.settings import Settings

NAMING = Naming("tcia")
TCGA, QIN, HEAD = "TCGA-DEMO", "QIN_Breast.v2", "HeadNeckMix"
ANY = object()


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("tcia_collections", [TCGA, QIN, HEAD, "Never listed"])
        yield instance


def given(
    lake: Lake, instance: dg.DagsterInstance, kinds: dict[str, Any], partitions: tuple[str, str] | None, **metadata: Any
) -> dict[str, Any]:
    """Return what assets with inputs of these types get in a run, by the name of the input's asset, and the type's.

    They have the partitions of their inputs, or none.
    """
    got: dict[str, Any] = {}

    def asset_of(name: str, kind: Any) -> dg.AssetsDefinition:
        def take(table: Any) -> None:
            # Read while the step runs, as a user's asset would.
            got[name] = table.collect() if isinstance(table, pl.LazyFrame) else table

        take.__annotations__ = {"return": None} if kind is ANY else {"table": kind, "return": None}
        return dg.asset(
            name=name,
            ins={"table": dg.AssetIn(NAMING.key(name.split("_")[0]), metadata=metadata)},
            partitions_def=NAMING.partitions if partitions else None,
            backfill_policy=dg.BackfillPolicy.single_run() if partitions else None,
        )(take)

    own = dg.Definitions(assets=[asset_of(name, kind) for name, kind in kinds.items()])
    definitions = dg.Definitions.merge(build_definitions(Settings(lake=lake.uri), NAMING), own)
    ends = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    definitions.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey(name) for name in kinds],
        tags=dict(zip(ends, partitions, strict=True)) if partitions else None,
        instance=instance,
    )
    return got


def test_the_type_of_the_parameter_decides(mirrored: Lake, instance: dg.DagsterInstance) -> None:
    kinds = {
        "series_pandas": pd.DataFrame,
        "series_arrow": pa.Table,
        "series_lazy": pl.LazyFrame,
        "series_polars": pl.DataFrame,
        "series_duckdb": duckdb.DuckDBPyRelation,
        "series_any": ANY,
    }
    columns = ["Collection", "SeriesInstanceUID", "FileSize", "StudyDate"]
    got = given(mirrored, instance, kinds, (TCGA, QIN), columns=columns)
    types = {**kinds, "series_lazy": pl.DataFrame, "series_any": pd.DataFrame}
    assert {name: type(found) for name, found in got.items()} == types
    assert got["series_pandas"].equals(mirrored.frame("series", [QIN, TCGA], columns))
    assert got["series_any"].equals(got["series_pandas"])
    expected = mirrored.arrow("series", [QIN, TCGA], columns).to_pylist()
    assert len(expected) == 14
    assert got["series_arrow"].to_pylist() == expected
    assert got["series_polars"].to_dicts() == expected
    for rows in (got["series_lazy"].to_dicts(), got["series_duckdb"].to_arrow_table().to_pylist()):
        assert sorted(rows, key=lambda row: expected.index(row)) == expected


def test_images_are_series_with_their_files_or_their_receipts(mirrored: Lake, instance: dg.DagsterInstance) -> None:
    kinds = {"images_own": Images, "images_any": ANY, "images_pandas": pd.DataFrame}
    got = given(mirrored, instance, kinds, (QIN, QIN))
    for images in (got["images_own"], got["images_any"]):
        assert isinstance(images, Images)
        assert {s.SeriesInstanceUID for s in images} == set(mirrored.frame("series", QIN).SeriesInstanceUID)
    assert got["images_pandas"].equals(mirrored.frame("image_series", QIN))


def test_an_asset_without_partitions_gets_all_that_there_are(mirrored: Lake, instance: dg.DagsterInstance) -> None:
    got = given(mirrored, instance, {"series_lazy": pl.LazyFrame, "images_own": Images}, None)
    assert dict(got["series_lazy"]["Collection"].value_counts().rows()) == {TCGA: 9, QIN: 5, HEAD: 21}
    assert len(list(got["images_own"])) == 9 + 5 + 3


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (dict, {}, "the input is of type builtins.dict, which the lake cannot provide: it can be pandas.DataFrame, "),
        (Images, {}, "the input is of type Images, which the lake cannot provide"),
        (pd.DataFrame, {"partition": "Never listed"}, "table series of the lake"),
        (pl.LazyFrame, {"columns": ["Modalty"]}, "table series has no column 'Modalty': did you mean Modality?"),
        (duckdb.DuckDBPyRelation, {"columns": ["Modalty"]}, "table series has no column 'Modalty'"),
        (ANY, {"of": "other"}, "tcia/other is not a table of the lake, so it cannot be an input"),
    ],
    ids="dict images partition column sql-column other".split(),
)
def test_what_cannot_be_given_is_a_failure_that_says_why(
    mirrored: Lake, instance: dg.DagsterInstance, kind: Any, options: dict[str, Any], text: str
) -> None:
    context = dg.build_input_context(
        asset_key=dg.AssetKey(["tcia", options.get("of", "series")]),
        dagster_type=None if kind is ANY else dg.PythonObjectDagsterType(kind, name="Kind"),
        definition_metadata={"columns": options["columns"]} if "columns" in options else {},
        partition_key=options.get("partition", TCGA),
        asset_partition_key_range=dg.PartitionKeyRange(*[options.get("partition", TCGA)] * 2),
        asset_partitions_def=NAMING.partitions,
        instance=instance,
    )
    with pytest.raises(dg.Failure) as e:
        NbiaIOManager(lake=LakeResource(uri=mirrored.uri)).load_input(context)
    assert str(e.value.description).startswith(text)


def test_the_io_manager_stores_nothing(mirrored: Lake) -> None:
    manager, context = NbiaIOManager(lake=LakeResource(uri=mirrored.uri)), dg.build_output_context(asset_key="own")
    manager.handle_output(context, None)
    with pytest.raises(dg.Failure, match="own returned a value, but this IO manager only reads"):
        manager.handle_output(context, 1)
