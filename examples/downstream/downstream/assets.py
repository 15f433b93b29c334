"""An asset for each kind of input: pandas, Arrow, Polars, DuckDB, and images as numpy arrays.

The type of a parameter decides what it is. An asset with the partitions of its input gets its own collection, any other
gets all of them.
"""

import dagster as dg
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa

from nbia_pipeline import Images

collections = dg.DynamicPartitionsDefinition(name="nbia_collections")


@dg.asset(ins={"series": dg.AssetIn(["nbia", "series"], metadata={"columns": ["Modality", "FileSize"]})})
def bytes_by_modality(series: pd.DataFrame) -> pd.DataFrame:
    """The size of each modality, over all collections; only two columns are read."""
    return series.groupby("Modality", as_index=False).FileSize.sum()


@dg.asset(ins={"table": dg.AssetIn(["nbia", "collections"])})
def described_collections(table: pa.Table) -> pa.Table:
    """The collections that have a description; that table is of the entire archive."""
    return table.filter(table["DescriptionURI"].is_valid()).select(["Collection", "DescriptionURI"])


@dg.asset(ins={"series": dg.AssetIn(["nbia", "series"])}, partitions_def=collections)
def first_studies(series: pl.LazyFrame) -> pl.DataFrame:
    """The day of the first study of each patient of a collection."""
    return series.group_by("PatientID").agg(pl.col("StudyDate").min()).sort("PatientID").collect()


@dg.asset(ins={"receipts": dg.AssetIn(["nbia", "images"])}, partitions_def=collections)
def folders(receipts: duckdb.DuckDBPyRelation) -> pd.DataFrame:
    """Where the files of each series of a collection are, relative to the lake."""
    return receipts.filter("Status = 'complete'").select("SeriesInstanceUID, Path").order("Path").df()


@dg.asset(ins={"images": dg.AssetIn(["nbia", "images"])}, partitions_def=collections)
def mean_hounsfield(images: Images) -> pd.DataFrame:
    """The mean of each CT series of a collection, in Hounsfield units."""
    series = [one for one in images if one.Modality == "CT"]
    return pd.DataFrame(
        {
            "SeriesInstanceUID": [one.SeriesInstanceUID for one in series],
            "Mean": [float(one.volume().array.mean()) for one in series],
        }
    )
