"""What a client must return, worked out from the facts of the catalogue in plain Python."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import pyarrow as pa

from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.schema import TABLES, Form, Shape

Row = dict[str, Any]
PUBLIC = ("HeadNeckMix", "Lung Phantom CT", "QIN_Breast.v2", "TCGA-DEMO")
RESTRICTED = "Thorax-Trial (limited)"


def uids_of(rows: Iterable[Row]) -> list[str]:
    """Return the SeriesInstanceUIDs of rows of series."""
    return [row["SeriesInstanceUID"] for row in rows]


def visible(demo: Catalog, *collections: str) -> list[Row]:
    """Return the facts of the visible series of `collections`, by default of the public ones."""
    wanted = collections or PUBLIC
    return [r for r in demo.series.to_pylist() if r["Visibility"] == 1 and r["Collection"] in wanted]


def sent(rows: Iterable[Row], shape: Shape) -> list[Row]:
    """Return `rows` as a table of `shape`: what it does not serve is null; v4 loses times of day."""
    assert shape.table is not None
    days = {k.column for k in shape.keys if k.form is Form.US_DAY}
    served = {k.column: k.source or k.column for k in shape.keys if k.column is not None}
    return [
        {c: _day(r[c]) if c in days else r[served[c]] if c in served else None for c in shape.table.schema.names}
        for r in rows
    ]


def _day(value: Any) -> Any:
    return value.replace(hour=0, minute=0, second=0, microsecond=0) if isinstance(value, datetime) else value


def first_of_each(rows: Iterable[Row], *key: str) -> list[Row]:
    """Return the first row of every value of `key`."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        found.setdefault(tuple(row[k] for k in key), row)
    return list(found.values())


def studies(rows: list[Row]) -> list[Row]:
    """Return one row per study with the number of its series."""
    counts = Counter(r["StudyInstanceUID"] for r in rows)
    return [{**r, "SeriesCount": counts[r["StudyInstanceUID"]]} for r in first_of_each(rows, "StudyInstanceUID")]


def patients_by(rows: list[Row], column: str, change: Callable[[str], str] = str) -> list[Row]:
    """Return each value of a column, after `change`, with its number of patients."""
    pairs = {(None if r[column] is None else change(r[column]), r["Collection"], r["PatientID"]) for r in rows}
    counts = Counter(value for value, _, _ in pairs)
    return [{column: value, "PatientCount": count} for value, count in counts.items()]


def sanitised(row: Row) -> Row:
    """Return a row as getSeriesMetaData of v2 shows it."""
    return {
        **row,
        **{c: row[c] and re.sub(r"[^A-Za-z0-9 .\-]", "", row[c]) for c in ("StudyDescription", "SeriesDescription")},
        "Manufacturer": row["Manufacturer"] and row["Manufacturer"].replace(",", " "),
        "AnnotationsFlag": row["AnnotationsFlag"] is not None,
        "AnnotationSize": row["AnnotationSize"] or 0,
    }


def assert_same(table: pa.Table, rows: list[Row], name: str) -> None:
    """Compare a table with rows, in any order, value by value."""
    schema = TABLES[name].schema
    assert table.schema.equals(schema, check_metadata=True)
    assert _sorted(table.to_pylist()) == _sorted([{n: r.get(n) for n in schema.names} for r in rows])


def _sorted(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: [str(value) for value in row.values()])
