"""Listings of the archive, written as tables of the lake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.archive import BadAnswer, NbiaClient
from nbia_pipeline.archive.conformance import collect
from nbia_pipeline.changes.conformance import expect_columns, lost_columns, record_nonconformities
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.table_file import Rows, TableFile
from nbia_pipeline.schema import Table
from nbia_pipeline.schema import tables as t
from nbia_pipeline.schema.arrow import with_column
from nbia_pipeline.schema.status import API, LISTED_AT
from nbia_pipeline.text import logger

log = logger(__name__)


@dataclass(frozen=True)
class Fetched:
    """What was fetched for a table.

    Attributes:
        rows: the rows.
        properties: of the table's file, besides when and in which dialect the archive was asked.
        figures: about the fetch, for people.
        kept: keys of rows that were not asked for, because the lake had them.
        warnings: what is not as it should be, in a sentence each.
    """

    rows: Rows
    properties: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    kept: pa.ChunkedArray | None = None
    warnings: Sequence[str] = ()


def _list_series(client: NbiaClient, collection: str) -> Fetched:
    """List series without having all of them in memory: their answer can have hundreds of megabytes."""
    properties = {LISTED_AT: clock.utc_now().isoformat(), API: client.api}

    def keep(pieces: Iterator[pa.Table]) -> TableFile:
        return TableFile.of(t.SERIES.schema, pieces, collection, properties)

    return Fetched(client.series_in_pieces(collection, keep), properties)


LISTED: Mapping[Table, Callable[[NbiaClient, str], Fetched]] = {
    t.PATIENTS: lambda client, collection: Fetched(client.patients(collection)),
    t.STUDIES: lambda client, collection: Fetched(client.studies(collection)),
    t.SERIES: _list_series,
}
"""The tables of a collection that are lists of the archive, and how each is asked for."""


def fetch_list(client: NbiaClient, table: Table, collection: str) -> Fetched:
    """Return the rows of one of :data:`LISTED`."""
    return LISTED[table](client, collection)


def with_earlier(fetched: Fetched, before: pa.Table, columns: Sequence[str]) -> Fetched:
    """Keep the earlier values of columns that only enrich and are now empty as a whole: that is no news, but a failure.

    Args:
        fetched: what was fetched; the first column of its rows is their key.
        before: the table as it was.
        columns: which ones.
    """
    rows: pa.Table = fetched.rows
    kept = []
    key = rows.schema.names[0]
    at = pc.index_in(rows[key], value_set=before[key].combine_chunks())
    for column in columns:
        if rows[column].null_count == rows.num_rows:
            earlier = before[column].combine_chunks().take(at.combine_chunks())
            if earlier.null_count < len(earlier):
                rows = with_column(rows, column, earlier)
                kept.append(column)
    if not kept:
        return fetched
    warning = f"the archive sent no {' and no '.join(kept)}: the values of the last run stay"
    log.warning(warning)
    return replace(fetched, rows=rows, warnings=[*fetched.warnings, warning])


def write_listing(
    lake: Lake,
    table: Table,
    api: str,
    fetch: Callable[[], Fetched],
    collection: str | None = None,
    *,
    allow_lost_columns: bool = False,
) -> tuple[Fetched, int]:
    """Write a table, or one collection of it, from its own fetch; return what was fetched, and the file's bytes.

    What in the answers does not fit the table is written to table ``conformance``; their number is the figure
    ``nonconforming``.

    Args:
        lake: where to.
        table: which one.
        api: the dialect that the archive is asked in.
        fetch: asks the archive.
        collection: the partition, None for an unpartitioned table.
        allow_lost_columns: take an answer that has no value any longer in a column that was full.

    Raises:
        BadAnswer: the archive has nothing in the collection, or the answer lost a column; the old table stays.
        ArchiveError: the archive cannot be asked.
        LakeError: the lake cannot be written; the old table stays.
    """
    # Before the question: what changes meanwhile belongs to a later listing.
    properties = {LISTED_AT: clock.utc_now().isoformat(), API: api}
    with collect() as found:
        try:
            fetched = fetch()
        except BadAnswer:
            if found:  # the check shows what the error may be about, such as a new name of the key
                record_nonconformities(lake, table, found, collection)
            raise
    if fetched.rows.num_rows == 0 and collection is not None:
        raise BadAnswer(
            f"the archive has nothing in {collection!r} for this account: the collection may be withdrawn, or "
            "restricted to another account. What the lake has was left unchanged"
        )
    lost = [] if allow_lost_columns else lost_columns(lake, table, api, fetched.rows, found, collection)
    if found or not fetched.kept or fetched.rows.num_rows > len(fetched.kept):  # unless nothing was asked
        record_nonconformities(lake, table, found, collection, fetched.kept)
    expect_columns(table, lost, found, collection, fetched.rows.num_rows)
    size = lake.write_table(table, fetched.rows, collection, properties={**properties, **fetched.properties})
    return replace(fetched, figures={**fetched.figures, "nonconforming": len(found)}), size
