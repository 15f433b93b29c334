"""The feed of changes: every listing of a collection is compared with the last one, and what changed is appended.

The feed (``series_changes``) is written first, the state (``series_seen``) after it. The state says how many rows
of the feed it accounts for, so after a crash between the two the next call finds the rows that the state lacks,
and applies them. Nothing is recorded twice, nothing is left out, and no row is ever removed. The file that each of the
two replaced last is kept, for :mod:`~nbia_pipeline.changes.rebuild`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.changes.diff import UID, WITHDRAWN, Observation, diff, diff_in_pieces, replay, uids_of, with_reasons
from nbia_pipeline.changes.present import CollectionListing, collection_listing, moment
from nbia_pipeline.changes.reasons import AskReasons
from nbia_pipeline.changes.rebuild import rebuild_feed
from nbia_pipeline.lake import Lake, LakeError, Lock
from nbia_pipeline.lake.table_file import Packed, TableFile
from nbia_pipeline.schema.arrow import repeats, with_column
from nbia_pipeline.schema.status import ABSENT_AT, API, CHANGES, LISTED_AT
from nbia_pipeline.schema.tables import SERIES, SERIES_CHANGES, SERIES_SEEN, TIME

WITHDRAWAL_HOURS = 6.0


@dataclass(frozen=True)
class ChangeSummary:
    """What the new listings of a collection changed.

    Attributes:
        changes: the new rows of the feed, with those that a crashed run wrote and could not report.
        rows: how many rows the feed has now.
        listed: series in the last listing.
        missing: series that are missing from the last listing, and not withdrawn yet.
        rebuilt: what of feed and state was damaged or missing, and what is lost with it, in a sentence each.
    """

    changes: pa.Table
    rows: int
    listed: int
    missing: int
    rebuilt: Sequence[str] = ()


@dataclass
class _State:
    rows: TableFile | Packed
    properties: dict[str, str]


@dataclass(frozen=True)
class _Listing:
    rows: TableFile
    listed_at: datetime
    properties: dict[str, str]  # of the state that accounts for it


def record_changes(
    lake: Lake,
    collection: str,
    *,
    run_id: str = "",
    wait: timedelta = timedelta(hours=WITHDRAWAL_HOURS),
    reasons: AskReasons = lambda series_uids: {},
) -> ChangeSummary:
    """Record what the new listings of a collection changed; without a new listing nothing is written.

    A listing is the ``series`` table, or the absence of the collection from a later ``collections`` table that
    would have named it. A feed or a state that is damaged or missing is rebuilt first, see
    :mod:`~nbia_pipeline.changes.rebuild`.

    Args:
        lake: the lake.
        collection: which one.
        run_id: Dagster run, for the feed.
        wait: a withdrawal is confirmed once a series has been missing for this long, from one listing to another.
        reasons: asks why series were withdrawn; called if there are any, as the feed is append-only.

    Raises:
        LakeError: the collection was never listed.
    """
    # Not the lock of the collection, which others may hold while they wait for the archive.
    with lake.lock(Lock.CHANGES, collection) as expect_held:
        rebuilt = rebuild_feed(lake, collection)
        collections = collection_listing(lake)
        if _is_up_to_date(lake, collection, collections):
            return _summary(lake, collection, SERIES_CHANGES.schema.empty_table(), rebuilt)
        series, seen = lake.read_file(SERIES, collection), lake.read_file(SERIES_SEEN, collection)
        state = _State(seen, seen.properties)
        recorded = [_unaccounted(lake, collection, state)]
        if recorded[0].num_rows:
            replayed = replay(seen.to_table(), recorded[0], series.to_table())
            state.rows = Packed(SERIES_SEEN.schema, [replayed])
        for listing in _new_listings(lake, collection, series, collections, state):
            exact = listing.properties.get(API) is not None and listing.properties.get(API) == state.properties.get(API)
            observation = Observation(listing.listed_at, clock.utc_now(), run_id, wait, exact)
            changes, state.rows = _compared(state.rows, listing.rows, observation)
            state.properties = listing.properties
            if withdrawn := sorted(uids_of(changes, [WITHDRAWN])):
                changes = with_reasons(changes, reasons(withdrawn))
            expect_held()
            _append(lake, collection, changes)
            _write_state(lake, collection, state)
            recorded.append(changes)
        if _clear_absence(collection, collections, state) or (recorded[0].num_rows and len(recorded) == 1):
            expect_held()
            _write_state(lake, collection, state)
        del series, seen, state
        return _summary(lake, collection, pa.concat_tables(recorded), rebuilt)


def _is_up_to_date(lake: Lake, collection: str, collections: CollectionListing) -> bool:
    """Return whether there is nothing to do, by properties alone: no row is read.

    Raises:
        LakeError: the collection was never listed.
    """
    listed_at = lake.read_properties(SERIES, collection).get(LISTED_AT)
    state = lake.read_properties(SERIES_SEEN, collection)
    if listed_at is None and not state:
        raise LakeError(f"the series table of {collection!r} was never listed: materialize series first")
    return (
        listed_at in (None, state.get(LISTED_AT))
        and lake.count_rows(SERIES_CHANGES, collection) <= int(state.get(CHANGES, 0))
        and not collections.lacks_since(collection, listed_at, state)
        and not collections.ends_absence(collection, state)
    )


def _compared(state: TableFile | Packed, listing: TableFile, observation: Observation) -> tuple[pa.Table, Packed]:
    """Return the changes from a state to a listing, and the next state; of a large one only parts are in memory."""
    changes = [SERIES_CHANGES.schema.empty_table()]

    def next_state() -> Iterator[pa.Table]:
        for changed, rows in _differences(state, listing, observation):
            if changed.num_rows:  # one without rows may hold on to a piece
                changes.append(changed)
            yield rows

    packed = Packed(SERIES_SEEN.schema, next_state())
    return pa.concat_tables(changes), packed


def _differences(
    state: TableFile | Packed, listing: TableFile, observation: Observation
) -> Iterator[tuple[pa.Table, pa.Table]]:
    uids = listing[UID]
    if not observation.exact or repeats(uids):
        return iter([diff(state.to_table(), listing.to_table(), observation)])
    at = pc.index_in(uids, value_set=state[UID])
    return diff_in_pieces(state.pieces(), listing.pieces(), at, state.num_rows, observation)


def _unaccounted(lake: Lake, collection: str, state: _State) -> pa.Table:
    """Return the rows of the feed that the state lacks: a run crashed after it had written them."""
    known = int(state.properties.get(CHANGES, 0))
    if lake.count_rows(SERIES_CHANGES, collection) <= known:
        return SERIES_CHANGES.schema.empty_table()
    return lake.read_table(SERIES_CHANGES, collection).slice(known)


def _new_listings(
    lake: Lake, collection: str, series: TableFile, collections: CollectionListing, state: _State
) -> Iterator[_Listing]:
    """Yield the listings that the state does not account for, in the order of time."""
    properties = series.properties
    listed_at = properties.get(LISTED_AT)
    # Different, not later: the file is the newest listing there is, whatever the clock did meanwhile.
    if series.num_rows and listed_at and listed_at != state.properties.get(LISTED_AT):
        kept = {name: properties[name] for name in (LISTED_AT, API) if name in properties}
        yield _Listing(series, moment(listed_at), kept)
    if collections.lacks_since(collection, listed_at, state.properties):
        absent = {**state.properties, ABSENT_AT: collections.listed_at.isoformat()}
        yield _Listing(TableFile.of(SERIES.schema, []), collections.listed_at, absent)


def _clear_absence(collection: str, collections: CollectionListing, state: _State) -> bool:
    """Clear an absence that a later list of the collections contradicts; return whether there was one."""
    if not collections.ends_absence(collection, state.properties):
        return False
    # A series that is missing since a later moment than the last listing of series is missing by that absence alone.
    rows = state.rows.to_table()
    cleared = pc.greater(rows["MissingSince"], pa.scalar(moment(state.properties.get(LISTED_AT)), TIME))
    cleared = pc.fill_null(pc.and_(cleared, pc.invert(rows["Withdrawn"])), False)
    since = pc.if_else(cleared, pa.scalar(None, TIME), rows["MissingSince"])
    state.rows = Packed(SERIES_SEEN.schema, [with_column(rows, "MissingSince", since)])
    state.properties = {name: value for name, value in state.properties.items() if name != ABSENT_AT}
    return True


def _append(lake: Lake, collection: str, changes: pa.Table) -> None:
    if changes.num_rows:
        pieces = itertools.chain(lake.read_pieces(SERIES_CHANGES, collection), [changes])
        feed = TableFile.of(SERIES_CHANGES.schema, pieces, collection)
        lake.write_table(SERIES_CHANGES, feed, collection, keep_earlier=True)


def _write_state(lake: Lake, collection: str, state: _State) -> None:
    state.properties = {**state.properties, CHANGES: str(lake.count_rows(SERIES_CHANGES, collection))}
    seen = TableFile.of(SERIES_SEEN.schema, state.rows.pieces(), collection, state.properties)
    lake.write_table(SERIES_SEEN, seen, collection, keep_earlier=True)


def _summary(lake: Lake, collection: str, changes: pa.Table, rebuilt: Sequence[str]) -> ChangeSummary:
    seen = lake.read_table(SERIES_SEEN, collection, columns=["MissingSince", "Withdrawn"])
    missing = pc.and_(pc.is_valid(seen["MissingSince"]), pc.invert(seen["Withdrawn"]))
    return ChangeSummary(
        changes,
        rows=lake.count_rows(SERIES_CHANGES, collection),
        listed=seen["MissingSince"].null_count,
        missing=pc.sum(missing).as_py() or 0,
        rebuilt=rebuilt,
    )
