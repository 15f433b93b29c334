"""What the last listings say: which series and collections are there, withdrawn, vanished or back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.changes.diff import UID, WITHDRAWN
from nbia_pipeline.lake import DamagedFile, Lake, LakeError
from nbia_pipeline.lake.table_file import Rows
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.status import ABSENT_AT, KEPT, LISTED_AT
from nbia_pipeline.schema.tables import COLLECTIONS, SERIES, SERIES_CHANGES, SERIES_SEEN
from nbia_pipeline.text import logger, matching

log = logger(__name__)

_READS = 5


@dataclass(frozen=True)
class CollectionListing:
    """The last list of the archive's collections: table ``collections``.

    The client guarantees that the list is not empty, and not that of a refused token.

    Attributes:
        names: the collections.
        kept: names or globs of the collections that the settings kept then.
        listed_at: when the archive was asked (UTC).
    """

    names: frozenset[str]
    kept: list[str]
    listed_at: datetime

    def lacks(self, collection: str) -> bool:
        """Return whether the archive did not list a collection that the settings keep."""
        return bool(self.names) and collection not in self.names and bool(matching(self.kept, [collection]))

    def lacks_since(self, collection: str, listed_at: str | None, state: Mapping[str, str]) -> bool:
        """Return whether it lacks a collection and is newer than all that is recorded of that one.

        Args:
            collection: its name.
            listed_at: property of the ``series`` table of the collection.
            state: properties of its ``series_seen``.
        """
        return self.lacks(collection) and self.listed_at > max(moment(listed_at), moment(state.get(ABSENT_AT)))

    def ends_absence(self, collection: str, state: Mapping[str, str]) -> bool:
        """Return whether it names a collection again whose absence is recorded in `state`."""
        return ABSENT_AT in state and collection in self.names and self.listed_at > moment(state[ABSENT_AT])


def moment(text: str | None) -> datetime:
    """Return the time that a property states; one before all others where there is none."""
    return datetime.fromisoformat(text or "0001-01-01")


def read_listing(lake: Lake, table: Table, collection: str | None = None) -> tuple[pa.Table, dict[str, str]]:
    """Return the rows and the properties of a table, both of the same file.

    Raises:
        LakeError: each read finds that the table was replaced meanwhile.
    """
    for _ in range(_READS):
        properties = lake.read_properties(table, collection)
        rows = lake.read_table(table, collection)
        if lake.read_properties(table, collection) == properties:
            return rows, properties
    raise LakeError(f"table {table.name} of {collection or 'the archive'!r} keeps changing: try again later")


def collection_listing(lake: Lake) -> CollectionListing:
    """Return the last list of collections; it names none where there is no such table yet, or a damaged one."""
    try:
        rows, properties = read_listing(lake, COLLECTIONS)
    except DamagedFile as e:
        log.warning("%s. Until then no collection counts as withdrawn or returned", e)
        return CollectionListing(frozenset(), [], moment(None))
    names = frozenset(rows["Collection"].to_pylist())
    return CollectionListing(names, json.loads(properties.get(KEPT, "[]")), moment(properties.get(LISTED_AT)))


def is_recorded(lake: Lake, collection: str) -> bool:
    """Return whether the feed accounts for the present ``series`` table of a collection."""
    listed_at = lake.read_properties(SERIES, collection).get(LISTED_AT)
    return listed_at is not None and listed_at == lake.read_properties(SERIES_SEEN, collection).get(LISTED_AT)


def withdrawn_series(lake: Lake, collection: str) -> frozenset[str]:
    """Return the UIDs of the series whose withdrawal is confirmed.

    A series in a listing that the feed does not account for yet is not one of them: it may be back.
    """
    seen = lake.read_file(SERIES_SEEN, collection)
    withdrawn = frozenset(seen.filter(seen["Withdrawn"], [UID])[UID].to_pylist())
    if withdrawn and not is_recorded(lake, collection):
        return withdrawn.difference(lake.read_table(SERIES, collection, columns=[UID])[UID].to_pylist())
    return withdrawn


def withdrawal_reasons(lake: Lake, collection: str) -> dict[str, str]:
    """Return why series were withdrawn the last time, by UID, where the archive said so."""
    feed = lake.read_table(SERIES_CHANGES, collection, columns=[UID, "Change", "Reason"])
    feed = feed.filter(pc.equal(feed["Change"], WITHDRAWN))
    last = dict(zip(feed[UID].to_pylist(), feed["Reason"].to_pylist(), strict=True))
    return {uid: reason for uid, reason in last.items() if reason}


def present_series(lake: Lake, collection: str) -> Rows:
    """Return the rows of ``series`` without those that are withdrawn.

    The two differ for a collection that vanished entirely: its last listing stays in the table.
    """
    series = lake.read_file(SERIES, collection)
    withdrawn = withdrawn_series(lake, collection)
    gone = among(series[UID], withdrawn) if withdrawn else pa.chunked_array([], pa.bool_())
    return series.filter(pc.invert(gone)) if pc.any(gone).as_py() else series


def vanished_collections(lake: Lake) -> list[str]:
    """Return the collections with recorded series that the last ``collections`` table should name, and does not."""
    listing = collection_listing(lake)
    return [c for c in lake.collections_of(SERIES_SEEN) if listing.lacks(c)]


def returned_collections(lake: Lake) -> list[str]:
    """Return the collections whose absence is recorded, and which the last ``collections`` table names again.

    To record their changes clears the absence. Otherwise a later absence would count as its confirmation.
    """
    listing = collection_listing(lake)
    recorded = lake.collections_of(SERIES_SEEN)
    return [c for c in recorded if _ends_absence(lake, listing, c)]


def _ends_absence(lake: Lake, listing: CollectionListing, collection: str) -> bool:
    """Return whether `listing` ends the absence of a collection, or may end it: to record it rebuilds its state."""
    try:
        return listing.ends_absence(collection, lake.read_properties(SERIES_SEEN, collection))
    except DamagedFile:
        return collection in listing.names
