"""The metadata of a collection's series, requested only for series that were added, revised or returned."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.diff import ADDED, RETURNED, REVISED, UID, uids_of
from nbia_pipeline.changes.listing import Fetched
from nbia_pipeline.changes.present import is_recorded
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.status import API, CHANGES, LISTED_AT
from nbia_pipeline.schema.tables import SERIES, SERIES_CHANGES, SERIES_METADATA


def metadata_of(client: NbiaClient, lake: Lake, collection: str, *, full: bool = False) -> Fetched:
    """Return the metadata of the series that the collection's ``series`` table lists.

    Its figures are ``asked``, the series that the archive was asked about, and ``kept``, those whose rows the lake had
    and which did not change since.

    The archive is asked about a series if the table has no row of it, or if it was added, revised or returned since
    by the feed of changes; about all series if the feed does not account for the present listing, or if the rows
    came in another dialect. A series without metadata has no row, and is asked about again the next time.

    Args:
        client: the archive.
        lake: the lake; it is only read.
        collection: which one.
        full: ask about every series.

    Raises:
        LakeError: the ``series`` table was not materialized yet.
    """
    listed = pc.unique(lake.read_table(SERIES, collection, columns=[UID])[UID])
    if not len(listed):
        raise LakeError(f"the series table has no rows for {collection!r}: materialize series first")
    properties = {LISTED_AT: clock.utc_now().isoformat(), API: client.api}
    known = lake.read_properties(SERIES_METADATA, collection)
    feed = lake.read_table(SERIES_CHANGES, collection)
    current = is_recorded(lake, collection)
    if current:
        properties[CHANGES] = str(feed.num_rows)
    rows = SERIES_METADATA.schema.empty_table()
    if not full and current and CHANGES in known and known.get(API) == client.api:
        # The rows of the feed that the table does not account for name the series to ask for again.
        stale = uids_of(feed.slice(int(known[CHANGES])), [ADDED, REVISED, RETURNED])
        rows = lake.read_table(SERIES_METADATA, collection)
        rows = rows.filter(pc.and_not(pc.is_in(rows[UID], value_set=listed), among(rows[UID], stale)))
    wanted = listed.filter(pc.invert(pc.is_in(listed, value_set=rows[UID]))).to_pylist()
    figures = {"asked": len(wanted), "kept": len(listed) - len(wanted)}
    kept = rows[UID].to_pylist()
    if not wanted:
        return Fetched(rows, {**properties, LISTED_AT: known[LISTED_AT]}, figures, kept)
    return Fetched(pa.concat_tables([rows, client.series_metadata(wanted)]), properties, figures, kept)
