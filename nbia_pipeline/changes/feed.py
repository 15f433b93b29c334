"""The feed of changes: every listing of a collection is compared with the last one, and what is new is appended.

The feed (``series_changes``) is written first, the state (``series_seen``) after it. The state says how many rows
of the feed it accounts for, so after a crash between the two the next look finds the rows that the state lacks,
and applies them. Nothing is noted twice, nothing is left out, and no row is ever taken back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.changes.diff import UID, Observation, diff, replay
from nbia_pipeline.lake import Lake, LakeError, Lock
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.status import ABSENT_AT, API, CHANGES, KEPT, LISTED_AT
from nbia_pipeline.schema.tables import COLLECTIONS, SERIES, SERIES_CHANGES, SERIES_SEEN, TIME
from nbia_pipeline.settings import matching

WITHDRAWAL_HOURS = 6.0

_READS = 5


@dataclass(frozen=True)
class ChangeSummary:
    """What a look at the listings of a collection brought.

    Attributes:
        changes: the new rows of the feed; with those that a crashed run wrote and could not tell of.
        rows: how many rows the feed has now.
        listed: series that were listed last.
        missing: series that are missing from the last listing, and not withdrawn yet.
    """

    changes: pa.Table
    rows: int
    listed: int
    missing: int


@dataclass(frozen=True)
class _CollectionListing:
    """What the ``collections`` table tells of the presence of collections."""

    names: frozenset[str]
    kept: list[str]
    listed_at: datetime | None

    def tells_of(self, collection: str) -> bool:
        """Tell whether it would name the collection if the archive listed it; else it was left out by choice."""
        return bool(self.listed_at and self.names and matching(self.kept, [collection]))

    def lacks(self, collection: str) -> bool:
        return self.tells_of(collection) and collection not in self.names


@dataclass
class _State:
    seen: pa.Table
    properties: dict[str, str]


@dataclass(frozen=True)
class _Listing:
    rows: pa.Table
    listed_at: datetime
    properties: dict[str, str]  # of the state that knows it


def record_changes(
    lake: Lake, collection: str, *, run_id: str = "", wait: timedelta = timedelta(hours=WITHDRAWAL_HOURS)
) -> ChangeSummary:
    """Take the listings of a collection into account that were not yet; without any, nothing is written.

    A listing is the ``series`` table, or the absence of the collection from a later ``collections`` table that
    would have named it.

    Args:
        lake: the lake.
        collection: which one.
        run_id: Dagster run, for the feed.
        wait: a withdrawal is believed once a series was missing for so long, from one listing to another.

    Raises:
        LakeError: the collection was never listed.
    """
    # Not the lock of the collection, which others may hold while they wait for the archive.
    with lake.lock(Lock.CHANGES, collection) as expect_held:
        census = _census(lake)
        if _is_up_to_date(lake, collection, census):
            return _noted(lake, collection, SERIES_CHANGES.schema.empty_table())
        series, told = read_listing(lake, SERIES, collection)
        state = _State(*read_listing(lake, SERIES_SEEN, collection))
        noted = [_unaccounted(lake, collection, state)]
        state.seen = replay(state.seen, noted[0], series)
        for listing in _news(collection, series, told, census, state):
            exact = listing.properties.get(API) is not None and listing.properties.get(API) == state.properties.get(API)
            seeing = Observation(listing.listed_at, clock.utc_now(), run_id, wait, exact)
            changes, state.seen = diff(state.seen, listing.rows, seeing)
            state.properties = listing.properties
            expect_held()
            _append(lake, collection, changes)
            _keep(lake, collection, state)
            noted.append(changes)
        if _clear_absence(collection, census, state) or (noted[0].num_rows and len(noted) == 1):
            expect_held()
            _keep(lake, collection, state)
        del series, state
        return _noted(lake, collection, pa.concat_tables(noted))


def withdrawn_series(lake: Lake, collection: str) -> frozenset[str]:
    """Return the UIDs of the series whose withdrawal is believed now.

    One that a listing names which the feed did not take into account yet is not among them: it may be back.
    """
    seen = lake.read_table(SERIES_SEEN, collection, columns=[UID, "Withdrawn"])
    withdrawn = frozenset(seen.filter(seen["Withdrawn"])[UID].to_pylist())
    if withdrawn and not is_recorded(lake, collection):
        return withdrawn.difference(lake.read_table(SERIES, collection, columns=[UID])[UID].to_pylist())
    return withdrawn


def present_series(lake: Lake, collection: str) -> pa.Table:
    """Return the rows of ``series`` without those that are withdrawn.

    The two differ for a collection that vanished as a whole: its last listing stays in the table.
    """
    series = lake.read_table(SERIES, collection)
    withdrawn = withdrawn_series(lake, collection)
    if not withdrawn:
        return series
    return series.filter(pc.invert(pc.is_in(series[UID], value_set=pa.array(sorted(withdrawn), pa.string()))))


def vanished_collections(lake: Lake) -> list[str]:
    """Return the collections with a state that the last ``collections`` table would have named, and does not."""
    census = _census(lake)
    return [c for c in lake.collections_of(SERIES_SEEN) if census.lacks(c)]


def returned_collections(lake: Lake) -> list[str]:
    """Return the collections whose absence was noted, and which the last ``collections`` table names again.

    To acknowledge them forgets the absence. Else a later one would count as its confirmation.
    """
    census = _census(lake)
    return [c for c in lake.collections_of(SERIES_SEEN) if _is_back(c, census, lake.read_properties(SERIES_SEEN, c))]


def is_recorded(lake: Lake, collection: str) -> bool:
    """Tell whether the feed took the present ``series`` table into account."""
    listed_at = lake.read_properties(SERIES, collection).get(LISTED_AT)
    return listed_at is not None and listed_at == lake.read_properties(SERIES_SEEN, collection).get(LISTED_AT)


def read_listing(lake: Lake, table: Table, collection: str | None = None) -> tuple[pa.Table, dict[str, str]]:
    """Return the rows and the facts of a table, both of the same file.

    Raises:
        LakeError: it is replaced all the time.
    """
    for _ in range(_READS):
        properties = lake.read_properties(table, collection)
        rows = lake.read_table(table, collection)
        if lake.read_properties(table, collection) == properties:
            return rows, properties
    raise LakeError(f"table {table.name} of {collection or 'the archive'!r} changes while it is read: try later")


def _moment(text: str | None) -> datetime:
    return datetime.fromisoformat(text or "0001-01-01")


def _census(lake: Lake) -> _CollectionListing:
    """Return the last list of collections. The client vouches for it: never empty, never that of a refused token."""
    rows, told = read_listing(lake, COLLECTIONS)
    listed_at = _moment(told[LISTED_AT]) if LISTED_AT in told else None
    return _CollectionListing(frozenset(rows["Collection"].to_pylist()), json.loads(told.get(KEPT, "[]")), listed_at)


def _is_up_to_date(lake: Lake, collection: str, census: _CollectionListing) -> bool:
    """Tell by facts alone, without reading a row, that there is nothing to do.

    Raises:
        LakeError: the collection was never listed.
    """
    listed_at = lake.read_properties(SERIES, collection).get(LISTED_AT)
    known = lake.read_properties(SERIES_SEEN, collection)
    if listed_at is None and not known:
        raise LakeError(f"the series table of {collection!r} was never listed: materialize series first")
    return (
        listed_at in (None, known.get(LISTED_AT))
        and lake.count_rows(SERIES_CHANGES, collection) <= int(known.get(CHANGES, 0))
        and not _is_absent(collection, census, listed_at, known)
        and not _is_back(collection, census, known)
    )


def _is_absent(collection: str, census: _CollectionListing, listed_at: str | None, known: dict[str, str]) -> bool:
    """Tell whether the list of collections lacks this one, and is later than anything known of it."""
    latest = max(_moment(listed_at), _moment(known.get(ABSENT_AT)))
    return census.lacks(collection) and census.listed_at is not None and census.listed_at > latest


def _is_back(collection: str, census: _CollectionListing, known: dict[str, str]) -> bool:
    """Tell whether the list of collections names this one again, after an absence that was taken into account."""
    if ABSENT_AT not in known or collection not in census.names:
        return False
    return census.listed_at is not None and census.listed_at > _moment(known[ABSENT_AT])


def _unaccounted(lake: Lake, collection: str, state: _State) -> pa.Table:
    """Return the rows of the feed that the state lacks: a run crashed after it had written them."""
    known = int(state.properties.get(CHANGES, 0))
    if lake.count_rows(SERIES_CHANGES, collection) <= known:
        return SERIES_CHANGES.schema.empty_table()
    return lake.read_table(SERIES_CHANGES, collection).slice(known)


def _news(
    collection: str, series: pa.Table, told: dict[str, str], census: _CollectionListing, state: _State
) -> Iterator[_Listing]:
    """Yield the listings that the state does not know, in the order of time."""
    listed_at = told.get(LISTED_AT)
    # Other, not later: the file is the newest listing there is, whatever the clock did meanwhile.
    if series.num_rows and listed_at and listed_at != state.properties.get(LISTED_AT):
        known = {name: told[name] for name in (LISTED_AT, API) if name in told}
        yield _Listing(series, _moment(listed_at), known)
    if census.listed_at and _is_absent(collection, census, listed_at, state.properties):
        yield _Listing(
            series.slice(0, 0), census.listed_at, {**state.properties, ABSENT_AT: census.listed_at.isoformat()}
        )


def _clear_absence(collection: str, census: _CollectionListing, state: _State) -> bool:
    """Forget an absence that a later list of the collections contradicts; return whether there was one."""
    if not _is_back(collection, census, state.properties):
        return False
    # What is missing from a later moment on than the last listing of series is missing by that absence alone.
    forgiven = pc.greater(state.seen["MissingSince"], pa.scalar(_moment(state.properties[LISTED_AT]), TIME))
    forgiven = pc.fill_null(pc.and_(forgiven, pc.invert(state.seen["Withdrawn"])), False)
    since = pc.if_else(forgiven, pa.scalar(None, TIME), state.seen["MissingSince"])
    at = state.seen.schema.get_field_index("MissingSince")
    state.seen = state.seen.set_column(at, state.seen.schema.field(at), since)
    state.properties = {name: value for name, value in state.properties.items() if name != ABSENT_AT}
    return True


def _append(lake: Lake, collection: str, changes: pa.Table) -> None:
    if changes.num_rows:
        feed = lake.read_table(SERIES_CHANGES, collection)
        lake.write_table(SERIES_CHANGES, pa.concat_tables([feed, changes]), collection)


def _keep(lake: Lake, collection: str, state: _State) -> None:
    state.properties = {**state.properties, CHANGES: str(lake.count_rows(SERIES_CHANGES, collection))}
    lake.write_table(SERIES_SEEN, state.seen, collection, properties=state.properties)


def _noted(lake: Lake, collection: str, changes: pa.Table) -> ChangeSummary:
    seen = lake.read_table(SERIES_SEEN, collection, columns=["MissingSince", "Withdrawn"])
    missing = pc.and_(pc.is_valid(seen["MissingSince"]), pc.invert(seen["Withdrawn"]))
    return ChangeSummary(
        changes,
        rows=lake.count_rows(SERIES_CHANGES, collection),
        listed=seen["MissingSince"].null_count,
        missing=pc.sum(missing).as_py() or 0,
    )
