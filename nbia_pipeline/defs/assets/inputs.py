"""The tables and images of a lake as inputs of a user's own assets, in the type that the asset's parameter states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dagster as dg
from pydantic import Field

from nbia_pipeline.defs.resources import LakeResource
from nbia_pipeline.lake import LakeError
from nbia_pipeline.reading.frames import (
    MissingExtra,
    NotInLake,
    collections_in,
    dataset,
    expect_columns,
    optional,
    read,
    to_pandas,
)
from nbia_pipeline.reading.images import Images, images_of
from nbia_pipeline.reading.lake import Lake
from nbia_pipeline.reading.sql import relation
from nbia_pipeline.schema import TABLES, Table
from nbia_pipeline.schema.headers import INSTANCE_HEADERS, SERIES_REFERENCES
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.text import did_you_mean, first_of, shown, similar_names

IMAGES = "images"
_TABLES = {**TABLES, IMAGES: IMAGE_SERIES, "headers": INSTANCE_HEADERS, "references": SERIES_REFERENCES}
"""The tables that inputs have, by the names of the assets."""

Collections = list[str] | None
"""Names of collections, or None for a table of the entire archive."""
Columns = list[str] | None


class NbiaIOManager(dg.ConfigurableIOManager):
    """Gives tables and images of a lake to assets that depend on them; the assets of this package write them.

    An asset of the same code location takes them by the key of their asset. The type of its parameter decides what it
    gets: ``pandas.DataFrame`` (the default), ``pyarrow.Table``, ``polars.LazyFrame``, ``polars.DataFrame`` or
    ``duckdb.DuckDBPyRelation``; of the asset ``images`` also :class:`~nbia_pipeline.reading.images.Images`, which is
    the default there, while a frame has its receipts. A partitioned asset gets its own collections, any other all.

    Example:

    .. code-block:: python

        @dg.asset(ins={"series": dg.AssetIn(["nbia", "series"], metadata={"columns": ["Modality", "FileSize"]})})
        def bytes_by_modality(series: pd.DataFrame) -> dict[str, int]:
            return series.groupby("Modality").FileSize.sum().to_dict()
    """

    lake: LakeResource
    names: dict[str, str] = Field(
        default={}, description="Names of tables, and images, by the asset keys that a translator gave them."
    )

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Accept the output of an asset that has written its tables itself.

        Raises:
            Failure: it returned something else.
        """
        if obj is not None:
            raise dg.Failure(
                f"{context.asset_key.to_user_string()} returned a value, but this IO manager only reads what "
                "nbia_pipeline wrote: give the asset another io_manager_key",
                allow_retries=False,
            )

    def load_input(self, context: dg.InputContext) -> Any:
        """Return a table, or the images, of the partitions that the input depends on.

        Raises:
            Failure: the lake does not have them or cannot be read, or nothing is known of the type.
        """
        try:
            return self._load(context)
        except (LakeError, MissingExtra) as e:
            raise dg.Failure(str(e), allow_retries=False) from e

    def _load(self, context: dg.InputContext) -> Any:
        lake, key = self.lake.open(write=False), context.asset_key
        name = self.names.get(key.to_user_string(), key.path[-1])
        table = _TABLES.get(name)
        if table is None:
            raise NotInLake(
                f"{context.asset_key.to_user_string()} is not a table of the lake, so it cannot be an input"
            )
        collections = _collections(context, lake, table)
        wanted = _wanted(context)
        if name == IMAGES and wanted in (None, "Images"):
            return images_of(lake, collections)
        reader = READERS.get(wanted or "pandas.DataFrame")
        if reader is None:
            known = [*READERS, *(["Images"] if name == IMAGES else [])]
            hint = did_you_mean(similar_names(wanted or "", known), f"it can be {first_of(known)}")
            raise NotInLake(f"the input is of type {wanted}, which the lake cannot provide: {hint}")
        columns = (context.definition_metadata or {}).get("columns")
        expect_columns(table, columns)
        return reader(lake, table, collections, None if columns is None else list(columns))


def _wanted(context: dg.InputContext) -> str | None:
    """Return the type of the parameter as package and name, None where it states none."""
    kind = context.dagster_type.typing_type
    if kind is Images:
        return "Images"
    if context.dagster_type.is_any or not isinstance(kind, type):
        return None
    return f"{kind.__module__.partition('.')[0].lstrip('_')}.{kind.__qualname__}"


def _collections(context: dg.InputContext, lake: Lake, table: Table) -> Collections:
    """Return the collections of the partitions, in the order of the lake; of several, those that the lake has."""
    if not table.partitioned:
        return None
    if not context.has_asset_partitions:
        return collections_in(lake, table)
    keys = set(context.asset_partition_keys)
    stored = collections_in(lake, table)
    found = [name for name in stored if name in keys]
    if missing := sorted(keys.difference(stored)):
        if not found:
            collections_in(lake, table, missing)  # raises
        context.log.warning(shown(f"table {table.name} has no collection {first_of(missing)}: they are left out"))
    return found


# --- what a parameter can be


def _arrow(lake: Lake, table: Table, collections: Collections, columns: Columns) -> Any:
    return read(lake, table.name, collections, columns)


def _pandas(lake: Lake, table: Table, collections: Collections, columns: Columns) -> Any:
    return to_pandas(_arrow(lake, table, collections, columns))


def _polars(lake: Lake, table: Table, collections: Collections, columns: Columns) -> Any:
    return optional("polars", "polars").from_arrow(_arrow(lake, table, collections, columns))


def _lazy(lake: Lake, table: Table, collections: Collections, columns: Columns) -> Any:
    found = optional("polars", "polars").scan_pyarrow_dataset(dataset(lake, table, collections))
    return found if columns is None else found.select(columns)


def _duckdb(lake: Lake, table: Table, collections: Collections, columns: Columns) -> Any:
    found = relation(dataset(lake, table, collections), table.name)
    return found if columns is None else found.project(", ".join(f'"{name}"' for name in columns))


READERS: dict[str, Callable[[Lake, Table, Collections, Columns], Any]] = {
    "pandas.DataFrame": _pandas,
    "pyarrow.Table": _arrow,
    "polars.LazyFrame": _lazy,
    "polars.DataFrame": _polars,
    "duckdb.DuckDBPyRelation": _duckdb,
}
"""By package and name of a type, what reads it."""
