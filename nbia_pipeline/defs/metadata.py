"""How tables look in the Dagster UI: the columns of the definition, the figures of a materialization."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pyarrow as pa

from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.schema import Column, Table

_TYPE_NAMES = {
    pa.string(): "string",
    pa.int64(): "int64",
    pa.float64(): "double",
    pa.bool_(): "bool",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp",
}


def column_schema(table: Table) -> dg.TableSchema:
    """Return the columns of a table for the UI: type, meaning, unit, DICOM tag."""
    return dg.TableSchema(columns=[_column(c, c.name in table.key) for c in table.columns])


def _column(column: Column, in_key: bool) -> dg.TableColumn:
    tag = f" DICOM ({column.tag})." if column.tag else ""
    unit = f" Unit: {column.unit}." if column.unit else ""
    return dg.TableColumn(
        name=column.name,
        type=_TYPE_NAMES[column.type],
        description=column.description + unit + tag,
        constraints=dg.TableColumnConstraints(nullable=not in_key, unique=False),
        tags={"dicom": column.tag.replace(",", "-")} if column.tag else {},
    )


def definition_metadata(table: Table) -> dict[str, Any]:
    """Return the metadata of a table's asset definition."""
    return {
        "dagster/column_schema": column_schema(table),
        "dagster/table_name": table.name,
        "key": ", ".join(table.key),
    }


def materialization_metadata(
    table: Table, lake: Lake, rows: int, size: int, seconds: float, collection: str | None = None
) -> dict[str, Any]:
    """Return the figures of one written table or partition: rows, bytes, seconds and where it lies."""
    count = "dagster/row_count" if collection is None else "dagster/partition_row_count"
    return {
        count: rows,
        "bytes": size,
        "seconds": round(seconds, 3),
        "path": dg.MetadataValue.path(lake.url(table_path(table.name, collection))),
    }
