"""What of the archive's answers fits no column: kept as a table, and whether an answer lost a column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.archive import BadAnswer
from nbia_pipeline.archive.conformance import Nonconformity
from nbia_pipeline.lake import DamagedFile, Lake, Lock
from nbia_pipeline.lake.damage import read_or_empty
from nbia_pipeline.lake.layout import NO_COLLECTION
from nbia_pipeline.lake.table_file import Rows, TableFile
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.status import API
from nbia_pipeline.schema.tables import (
    BODY_PARTS,
    COLLECTIONS,
    CONFORMANCE,
    MANUFACTURERS,
    MODALITIES,
    SERIES_METADATA,
    TEXT,
)
from nbia_pipeline.text import logger

log = logger(__name__)

LOST = "What it recorded of other tables is recorded again when they are listed"

MOST_ROWS = 10_000
"""Most rows of ``conformance`` for one table of a collection; a value that is odd in every row is odd once."""

# So many values of a column can vanish because series were revised or withdrawn; more are no accident.
FEW = 10

ENRICHED = {
    COLLECTIONS.name: ("PatientCount", "Description", "DescriptionURI", "DescriptionTimestamp"),
    SERIES_METADATA.name: ("SOPClassUID", "StudyID", "AnnotationSize", "TimeStamp"),
    **{table.name: ("PatientCount",) for table in (MODALITIES, BODY_PARTS, MANUFACTURERS)},
}
"""Columns by table that other calls fill than its listing: an archive may lack these calls, so they are never lost."""


def record_nonconformities(
    lake: Lake,
    table: Table,
    found: Sequence[Nonconformity],
    collection: str | None,
    kept: pa.ChunkedArray | None = None,
) -> None:
    """Replace what ``conformance`` has of a table of a collection.

    Args:
        lake: the lake.
        table: which table was listed.
        found: what in the answers did not fit.
        collection: the collection that was asked about; None for a table of the entire archive.
        kept: keys of rows that were not asked for again: what was found about these stays.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    partition = collection or NO_COLLECTION
    if not found and not lake.has_table(CONFORMANCE, partition):
        return
    fresh = pa.Table.from_pylist([_row(table, one, partition) for one in found[:MOST_ROWS]], CONFORMANCE.schema)
    with lake.lock(Lock.CONFORMANCE, partition):
        rows = read_or_empty(lake, CONFORMANCE, partition, lost=LOST)
        stays = pc.not_equal(rows["TableName"], table.name)
        if kept is not None:
            stays = pc.or_(stays, pc.is_in(rows["RowKey"], value_set=kept))
        rows = pa.concat_tables([rows.filter(stays), fresh])
        order = [(name, "ascending") for name in ("TableName", "RowKey", "ColumnName")]
        lake.write_table(CONFORMANCE, rows.sort_by(order), partition, may_empty=True)


def _row(table: Table, one: Nonconformity, collection: str) -> dict[str, str | None]:
    # Some tables take their values from several answers, of which not each fills a table of its own.
    column = one.column if one.table == table.name else f"{one.table}.{one.column}"
    names = CONFORMANCE.schema.names
    return dict(zip(names, (collection, table.name, one.key, column, one.value, one.why), strict=True))


def lost_columns(
    lake: Lake,
    table: Table,
    api: str,
    rows: Rows,
    found: Sequence[Nonconformity],
    collection: str | None,
) -> list[str]:
    """Return the columns that the table of the lake has values in, and the new rows none, against all likelihood.

    A column without any value is suspicious if every row had one, or many had, or if the archive sends a key that no
    column takes: it may have been renamed. A single odd value is no loss of a column. Dialects serve different columns,
    so only answers in the same are compared.

    A table that is damaged is replaced by whatever was listed, with a warning.

    Args:
        lake: the lake, with the old table.
        table: which table.
        api: dialect of the new rows.
        rows: the new rows.
        found: what in them does not fit.
        collection: the partition.
    """
    try:
        return _lost_columns(lake, table, api, rows, found, collection)
    except DamagedFile as e:
        log.warning("%s. It is replaced by what the archive lists now", e)
        return []


def _lost_columns(
    lake: Lake,
    table: Table,
    api: str,
    rows: Rows,
    found: Sequence[Nonconformity],
    collection: str | None,
) -> list[str]:
    if not rows.num_rows or lake.read_properties(table, collection).get(API) != api:
        return []
    counts = lake.count_values(table, collection)
    renamed = bool(unknown_keys(table, found))
    odd = Counter(one.column for one in found if one.table == table.name and one.key is not None)
    lost = []
    for name in set(table.schema.names).difference(ENRICHED.get(table.name, ()), table.key):
        if counts.get(name) and odd[name] != 1 and _lacks(rows, name):
            before = lake.read_table(table, collection, columns=[name])[name]
            count = _values(before)
            if count and (count == len(before) or count >= FEW or renamed):
                lost.append(name)
    return sorted(lost, key=table.schema.names.index)


def _lacks(rows: Rows, column: str) -> bool:
    return rows.lacks(column) if isinstance(rows, TableFile) else _values(rows[column]) == 0


def _values(column: pa.ChunkedArray) -> int:
    """Return how many values a column has; an empty text is none."""
    values: pa.ChunkedArray = column.filter(pc.not_equal(column, "")) if column.type == TEXT else column.drop_null()
    return len(values)


def unknown_keys(table: Table, found: Sequence[Nonconformity]) -> list[str]:
    """Return the keys that the archive sends for a table and that no column takes."""
    names = table.schema.names
    return [one.column for one in found if one.table == table.name and one.key is None and one.column not in names]


def expect_columns(
    table: Table, lost: Sequence[str], found: Sequence[Nonconformity], collection: str | None, rows: int
) -> None:
    """Refuse an answer that lost columns, as an empty one is refused.

    Raises:
        BadAnswer: it did; the text names them, and the keys that are there instead.
    """
    if not lost:
        return
    instead = unknown_keys(table, found)
    new = f", and has {', '.join(instead)} instead, which no column takes" if instead else ""
    if odd := sorted({one.column for one in found if one.key is not None}.intersection(lost)):
        new += f"; what it sends for {', '.join(odd)} does not fit, see table conformance"
    of = f" of {collection!r}" if collection else ""
    raise BadAnswer(
        f"none of the {rows} rows of {table.name}{of} that the archive sent has {', '.join(lost)} any longer{new}: "
        "the old table was left as it was. If the archive is right, allow it once: nbia-pipeline run "
        "--allow-lost-columns, or allow_lost_columns in the run config"
    )
