"""The metadata of a collection's series, requested only for series that were added, revised or returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.archive.endpoints import metadata_columns
from nbia_pipeline.changes.diff import ADDED, RETURNED, REVISED, UID, uids_of
from nbia_pipeline.changes.listing import Fetched
from nbia_pipeline.changes.present import is_recorded
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.damage import damage_of
from nbia_pipeline.lake.table_file import Rows, TableFile, pieces_where
from nbia_pipeline.schema.arrow import among, places_in, repeats
from nbia_pipeline.schema.status import API, CHANGES, LISTED_AT, SERVED
from nbia_pipeline.schema.tables import SERIES, SERIES_CHANGES, SERIES_METADATA

# With eight calls of 0.2 to 0.4 s in flight, this many take two to four minutes; the bulk call takes one request.
SINGLE_UP_TO = 5_000

# Columns of the bulk calls that version 0.1.0 did not keep.
_NOT_IN_0_1 = {"PixelSpacing", "SliceThickness"}


def metadata_of(client: NbiaClient, lake: Lake, collection: str, *, full: bool = False, calls: str = "auto") -> Fetched:
    """Return the metadata of the series that the collection's ``series`` table lists.

    Its figures are ``asked``, the series that the archive was asked about, ``kept``, those whose rows the lake had
    and which did not change since, and ``single_calls``, those of the first that took a call of their own.

    The archive is asked about a series if the table has no row of it, or if it was added, revised or returned since
    by the feed of changes; about all series if the feed does not account for the present listing, or if the rows
    came in another dialect. A series without metadata has no row, and is asked about again the next time. If the calls
    serve more columns than those by which the rows came, the rows without any of these are asked for again, once.

    Args:
        client: the archive.
        lake: the lake; it is only read.
        collection: which one.
        full: ask about every series.
        calls: ``bulk``; ``single``, one call more for each series where the dialect has one, for the columns that the
            bulk call lacks; or ``auto``: single for collections of at most :data:`SINGLE_UP_TO` series, so that the
            table of a collection is complete, or lacks the same columns in all rows.

    Raises:
        LakeError: the ``series`` table was not materialized yet.
    """
    listed = lake.read_file(SERIES, collection)[UID]
    listed = pa.chunked_array([pc.unique(listed)]) if repeats(listed) else listed
    if not len(listed):
        raise LakeError(f"the series table has no rows for {collection!r}: materialize series first")
    single = calls == "single" or (calls == "auto" and len(listed) <= SINGLE_UP_TO)
    in_bulk = metadata_columns(client.api, single=False)
    served = metadata_columns(client.api, single=single)
    properties = {LISTED_AT: clock.utc_now().isoformat(), API: client.api, SERVED: " ".join(sorted(served))}
    # What is damaged is asked for again as a whole; write_listing warns of it.
    known = {} if damage_of(lake, SERIES_METADATA, collection) else lake.read_properties(SERIES_METADATA, collection)
    feed = lake.read_table(SERIES_CHANGES, collection, columns=[UID, "Change"])
    current = is_recorded(lake, collection)
    if current:
        properties[CHANGES] = str(feed.num_rows)
    rows: Rows = SERIES_METADATA.schema.empty_table()
    stays = pa.chunked_array([], pa.bool_())
    if not full and current and CHANGES in known and known.get(API) == client.api:
        # The rows of the feed that the table does not account for name the series to ask for again.
        stale = uids_of(feed.slice(int(known[CHANGES])), [ADDED, REVISED, RETURNED])
        rows = lake.read_file(SERIES_METADATA, collection)
        before = frozenset(known[SERVED].split()) if SERVED in known else in_bulk - _NOT_IN_0_1
        stale |= set(rows[UID].filter(_all_null(rows, served - before)).to_pylist())
        stays = pc.and_not(pc.is_valid(places_in(rows[UID], listed)), among(rows[UID], stale))
    kept = rows[UID].filter(stays)
    wanted = pc.unique(listed.filter(pc.is_null(places_in(listed, kept)))).to_pylist()
    singly = served - in_bulk
    figures = {"asked": len(wanted), "kept": len(listed) - len(wanted), "single_calls": len(wanted) if singly else 0}
    if not wanted:
        properties[LISTED_AT] = known.get(LISTED_AT, properties[LISTED_AT])
        return Fetched(_file(collection, pieces_where(rows, stays), properties), properties, figures, kept)
    fetched = client.series_metadata(wanted, single=single)
    if singly and pc.all(_all_null(fetched, singly), min_count=0).as_py():
        properties[SERVED] = " ".join(sorted(in_bulk))  # no single call was answered: the next run asks again
    file = _file(collection, chain(pieces_where(rows, stays), [fetched]), properties)
    return Fetched(file, properties, figures, kept)


def _file(collection: str, pieces: Iterable[pa.Table], properties: Mapping[str, str]) -> TableFile:
    return TableFile.of(SERIES_METADATA.schema, pieces, collection, properties)


def _all_null(rows: Rows, columns: frozenset[str]) -> pa.ChunkedArray:
    """Return which rows are null in all of some columns; none of the rows if there are no such columns."""
    found = pa.chunked_array([pa.repeat(bool(columns), rows.num_rows)])
    for name in columns:
        found = pc.and_(found, pc.is_null(rows[name]))
    return found
