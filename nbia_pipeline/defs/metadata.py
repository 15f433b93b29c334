"""What the Dagster UI shows: columns and figures of tables, sizes of series, and the contact sheet."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.lake.table_file import Rows, pieces_of
from nbia_pipeline.preview.contact_sheet import contact_sheet
from nbia_pipeline.preview.sheet import inline_markdown
from nbia_pipeline.schema import Column, Table
from nbia_pipeline.schema import headers as h
from nbia_pipeline.schema import tables as t
from nbia_pipeline.text import CELL_CHARACTERS, shown, size_text

_TYPE_NAMES = {
    pa.string(): "string",
    pa.int64(): "int64",
    pa.float64(): "double",
    pa.bool_(): "bool",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp",
}

# --- tables


def records(rows: Iterable[Mapping[str, str | int]], columns: Mapping[str, str] | None = None) -> dg.TableMetadataValue:
    """Return rows as a table for the UI, which shows a cell as text; texts are :func:`~nbia_pipeline.text.shown`.

    Args:
        rows: values by column.
        columns: type by column; may be left out where there is a row.
    """
    texts = [dg.TableRecord({n: v if isinstance(v, int) else shown(v) for n, v in row.items()}) for row in rows]
    schema = dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()]) if columns else None
    return dg.MetadataValue.table(texts, schema)


def _column(column: Column, in_key: bool, served: str | None) -> dg.TableColumn:
    tag = f" DICOM ({column.tag})." if column.tag else ""
    unit = f" Unit: {column.unit}." if column.unit else ""
    return dg.TableColumn(
        name=column.name,
        type=_TYPE_NAMES.get(column.type, str(column.type)),
        description=column.description + unit + tag + (f" {served}" if served else ""),
        constraints=dg.TableColumnConstraints(nullable=not in_key, unique=False),
        tags={"dicom": column.tag.replace(",", "-")} if column.tag else {},
    )


def definition_metadata(table: Table) -> dict[str, Any]:
    """Return the metadata of a table's asset definition; of each column the type, meaning, unit and DICOM tag."""
    return {
        "dagster/column_schema": dg.TableSchema(
            [_column(c, c.name in table.key, table.served.get(c.name)) for c in table.columns]
        ),
        "dagster/table_name": table.name,
        "key": ", ".join(table.key),
    }


def materialization_metadata(
    table: Table, lake: Lake, rows: int, size: int, seconds: float, collection: str | None = None
) -> dict[str, Any]:
    """Return the figures of one written table or partition: rows, its size for programs and people, seconds, path."""
    count = "dagster/row_count" if collection is None else "dagster/partition_row_count"
    path = table_path(table.name, collection)
    return {
        count: rows,
        "bytes": size,
        "size": size_text(size),
        "seconds": round(seconds, 3),
        "path": dg.MetadataValue.path(lake.url(path.rpartition("/")[0] if table.sharded else path)),
    }


# The columns that people look at first, without the long identifiers; of a table that is not named, all.
_MAIN = {
    t.COLLECTIONS: "Collection PatientCount Description",
    t.PATIENTS: "PatientID PatientSex EthnicGroup SpeciesDescription",
    t.STUDIES: "PatientID StudyDate StudyDescription PatientAge SeriesCount",
    t.SERIES: "PatientID Modality BodyPartExamined SeriesDescription ImageCount FileSize DateReleased LicenseName",
    t.SERIES_METADATA: "PatientID Modality SeriesDescription Manufacturer ManufacturerModelName StudyDate ImageCount",
    t.ANNOTATION_FILES: "PatientID Name Size Finding",
    h.INSTANCE_HEADERS: "PatientID Modality InstanceNumber Rows Columns PixelSpacing SliceThickness ElementCount",
    h.SERIES_REFERENCES: "Modality Role ReferencedCollection ReferencedModality Resolution ReferencedInstances Missing",
}
PREVIEW_ROWS = 10


def preview(table: Table, rows: Rows) -> dict[str, Any]:
    """Return the first rows of a table, with its main columns, as metadata; nothing where there are no rows."""
    columns = _MAIN[table].split() if table in _MAIN else table.schema.names
    first = next((piece for piece in pieces_of(rows, columns) if piece.num_rows), None)
    return {} if first is None else {"first_rows": first_rows(first, [table.column(name) for name in columns])}


def preview_of(lake: Lake, table: Table, collection: str) -> dict[str, Any]:
    """Return the first rows of one collection of a table as :func:`preview` does, without reading the others."""
    columns = _MAIN[table].split()
    first = next((piece for piece in lake.read_pieces(table, collection, columns) if piece.num_rows), None)
    return {} if first is None else preview(table, first)


def first_rows(rows: pa.Table, columns: Sequence[Column]) -> dg.TableMetadataValue:
    """Return the first rows as a table for the UI: sizes with a unit, long texts cut, as each event keeps its own."""
    found = rows.slice(0, PREVIEW_ROWS).select([c.name for c in columns]).to_pylist()
    return records(
        ({c.name: _cell(c, row[c.name]) for c in columns} for row in found), {c.name: "string" for c in columns}
    )


def _cell(column: Column, value: Any) -> str:
    if value is None:
        return ""
    if column.unit == "bytes":
        return size_text(value)
    return shown(str(value).removesuffix(" 00:00:00"), CELL_CHARACTERS)


def stored_bytes(lake: Lake, table: Table, collection: str) -> int:
    """Return the size of one partition of a table, 0 where there is none.

    Raises:
        LakeError: the lake cannot be read.
    """
    return sum(lake.sizes(table_path(table.name, collection).rpartition("/")[0]).values())


# --- how large the series are, as a small table with bars

MEGABYTE = 1_000_000
BOUNDS = tuple(n * MEGABYTE for n in (1, 3, 10, 30, 100, 300, 1000, 3000))
"""Sizes in bytes that separate the classes."""

LABELS = (
    "below 1 MB",
    "1 to 3 MB",
    "3 to 10 MB",
    "10 to 30 MB",
    "30 to 100 MB",
    "100 to 300 MB",
    "0.3 to 1 GB",
    "1 to 3 GB",
    "3 GB and more",
)
BAR = 30


def size_classes(sizes: Iterable[int]) -> list[int]:
    """Return how many sizes (bytes) fall into each class."""
    counts = [0] * len(LABELS)
    for size in sizes:
        counts[bisect_right(BOUNDS, size)] += 1
    return counts


def histogram(in_lake: Sequence[int], fetched: Sequence[int]) -> str:
    """Return a table in Markdown of the series in the lake, and of those that this run fetched, by class.

    It has a line for each class from the smallest to the largest that occurs.
    """
    used = [n for n, counts in enumerate(zip(in_lake, fetched, strict=True)) if any(counts)]
    lines = ["| series of | in the lake | fetched now | |", "|---|---:|---:|:---|"]
    for n in range(used[0], used[-1] + 1) if used else ():
        bar = "█" * -(-BAR * in_lake[n] // max(*in_lake, 1))
        lines.append(f"| {LABELS[n]} | {in_lake[n]:,} | {fetched[n]:,} | {bar} |")
    return "\n".join(lines)


# --- the contact sheet


def contact_sheet_metadata(
    log: dg.DagsterLogManager, lake: Lake, collection: str, receipts: Rows, series: Rows
) -> dict[str, Any]:
    """Return the contact sheet of a collection as metadata: the picture, and the path of the large one.

    A picture must never fail a run. What could not be drawn is logged as a warning, and marked on the sheet.

    Args:
        log: takes the warnings.
        receipts: the collection's rows of ``image_series``.
        series: its rows of ``series``.
    """
    try:
        sheet = contact_sheet(lake, collection, receipts, series)
        if sheet is None:
            return {}
        inline = inline_markdown(sheet.png, collection)
    except Exception as e:  # noqa: BLE001 - whatever it is: the images are in the lake, and the log has the error
        why = shown(f"could not be drawn: {type(e).__name__}: {e}")
        log.warning(shown(f"the contact sheet of {collection} {why}"))
        return {"contact_sheet": dg.MetadataValue.text(why)}
    if sheet.undrawn:
        uid, why = next(iter(sheet.undrawn.items()))
        many = f"{len(sheet.undrawn)} of the {sheet.series} series on the contact sheet of {collection}"
        log.warning(shown(f"{many} could not be drawn, the first: {uid}, {why}"))
    return {
        "contact_sheet": dg.MetadataValue.md(inline or "The picture is too large to show here."),
        "contact_sheet_path": dg.MetadataValue.path(lake.url(sheet.path)),
    }
