"""The difference between what is known of a collection's series and a new listing of them. Pure: no disk, no clock.

State in, listing in; changes out, state out. The state is a table ``series_seen``, the changes are rows of
``series_changes``. Applied to a state, the changes give the next one: :func:`replay`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.schema.arrow import among, first_of_each, same_times, same_values, values_by, with_column
from nbia_pipeline.schema.tables import SERIES, SERIES_CHANGES, SERIES_SEEN, TIME

ADDED = "added"
REVISED = "revised"
WITHDRAWN = "withdrawn"
RETURNED = "returned"
KINDS = (ADDED, REVISED, WITHDRAWN, RETURNED)

UID = "SeriesInstanceUID"
COMPARED = [c.name for c in SERIES.columns if c.name not in (UID, "Collection")]

_IDENTITY = [UID, "StudyInstanceUID", "PatientID", "Collection"]


@dataclass(frozen=True)
class Observation:
    """When and how a listing was made.

    Attributes:
        listed_at: when the archive was asked (UTC).
        recorded_at: when its changes are recorded (UTC).
        run_id: by which Dagster run.
        wait: a withdrawal is confirmed once a series has been missing for this long, from one listing to another.
        exact: the listing is in the same dialect as the state. Otherwise a column that is entirely null on one side
            is not compared, and a time that is a bare day equals any time of that day (v4 keeps no more).
    """

    listed_at: datetime
    recorded_at: datetime
    run_id: str
    wait: timedelta
    exact: bool = True


def diff(state: pa.Table, listed: pa.Table, observation: Observation) -> tuple[pa.Table, pa.Table]:
    """Compare a listing with the state, and return the changes and the next state.

    Every series with a change gets one version more. A series that returns with other values has a row
    ``returned`` and rows ``revised`` of the same version. An absence is recorded in the state only, until it has
    lasted long enough.

    Args:
        state: table ``series_seen``; without rows before the first listing.
        listed: table ``series``; of rows with the same UID the first counts.
        observation: when and how it was listed.
    """
    listed = first_of_each(listed, UID)
    at = pc.index_in(listed[UID], value_set=state[UID])
    fresh = _as_state(_chosen(listed, pc.is_null(at)), version=1)
    now, returned, revisions = _present(state, at.drop_null(), _chosen(listed, pc.is_valid(at)), observation)
    gone, lost = _absent(_chosen(state, pc.invert(pc.is_in(state[UID], value_set=listed[UID]))), observation)
    changes = [
        _rows(fresh, ADDED, observation),
        _rows(now.filter(returned), RETURNED, observation),
        *(_rows(now.filter(where), REVISED, observation, *values) for where, values in revisions),
        _rows(gone.filter(lost), WITHDRAWN, observation),
    ]
    return pa.concat_tables(changes), pa.concat_tables([now, gone, fresh])


def diff_in_pieces(
    state: Iterator[pa.Table], listed: Iterator[pa.Table], at: pa.ChunkedArray, count: int, observation: Observation
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield what :func:`diff` returns, piece by piece, so that memory does not grow with the collection.

    In a listing in the order of the last one, the pieces of the state that are needed at a time are one or two; in any
    other order more.

    Args:
        state: its pieces.
        listed: those of the listing, in which no series is there twice.
        at: row by row of the listing, the row of the state; null for none.
        count: rows of the state.
        observation: an exact one: of others, a column is judged as a whole.
    """
    is_listed = pc.is_in(pa.array(range(count), at.type), value_set=at)
    held, start, end = SERIES_SEEN.schema.empty_table(), 0, 0  # rows of the state from `start` to `end`
    done = 0

    def unlisted(rows: pa.Table, first: int) -> pa.Table:
        return rows.filter(pc.invert(is_listed.slice(first, rows.num_rows)))

    for piece in listed:
        rows = at.slice(done, piece.num_rows).drop_null()
        done += piece.num_rows
        while end <= (pc.max(rows).as_py() if len(rows) else -1):
            held = pa.concat_tables([held, next(state)])
            end = start + held.num_rows
        known = held.take(pc.subtract(rows, pa.scalar(start, rows.type)))
        # No later row of the listing needs those before its first.
        first = pc.min(at.slice(done)).as_py()
        passed = (end if first is None else min(first, end)) - start
        yield diff(pa.concat_tables([known, unlisted(held.slice(0, passed), start)]), piece, observation)
        held, start = held.slice(passed), start + passed
    for rest in state:
        yield diff(unlisted(rest, end), SERIES.schema.empty_table(), observation)
        end += rest.num_rows


def _chosen(table: pa.Table, mask: Any) -> pa.Table:
    """Return the rows that a mask selects; without a copy where it selects all or none."""
    if not pc.any(mask, min_count=0).as_py():
        return table.slice(0, 0)
    return table if pc.all(mask).as_py() else table.filter(mask)


def _present(state: pa.Table, at: Any, listed: pa.Table, observation: Observation) -> tuple[pa.Table, Any, list[Any]]:
    """Compare the series that are listed and known, column by column: a copy of a whole listing is large.

    Row by row, `at` is the index of `listed` in the state. Returns their next state; which of them returned; and for
    each column with differences where those are, and the column, the old values and the new ones.
    """
    returned = state["Withdrawn"].take(at)
    moved, revisions = returned, []
    for column in COMPARED:
        old, new = state[column].take(at), listed[column]
        where = _differs(old, new, observation.exact)
        if pc.any(where, min_count=0).as_py():
            moved = pc.or_(moved, where)
            values = (pc.cast(side.filter(where), pa.string()) for side in (old, new))
            revisions.append((where, (column, *values)))
    version = pc.add(state["Version"].take(at), pc.cast(moved, pa.int64()))
    return _as_state(listed, version), returned, revisions


def _absent(gone: pa.Table, observation: Observation) -> tuple[pa.Table, Any]:
    """Return the next state of the series that are not listed, and which of them count as withdrawn from now on."""
    since = pc.coalesce(gone["MissingSince"], pa.scalar(observation.listed_at, TIME))
    long_ago = pc.less_equal(since, pa.scalar(observation.listed_at - observation.wait, TIME))
    lost = pc.and_(long_ago, pc.invert(gone["Withdrawn"]))
    withdrawn = pc.or_(gone["Withdrawn"], lost)
    version = pc.add(gone["Version"], pc.cast(lost, pa.int64()))
    return _as_state(gone.select(SERIES.schema.names), version, since, withdrawn), lost


def _differs(old: pa.ChunkedArray, new: pa.ChunkedArray, exact: bool) -> Any:
    """Return where two columns differ; see :class:`Observation` for columns that are not `exact`."""
    if not exact and len(old) in (old.null_count, new.null_count):
        return _all(False, len(old), pa.bool_())
    same = same_times if old.type == TIME and not exact else same_values
    return pc.invert(same(old, new))


def _as_state(series: pa.Table, version: Any, since: Any = None, withdrawn: Any = False) -> pa.Table:
    """Return rows of ``series`` as rows of ``series_seen``."""
    columns = [series[name] for name in SERIES.schema.names]
    for value, kind in ((since, TIME), (withdrawn, pa.bool_()), (version, pa.int64())):
        columns.append(value if isinstance(value, pa.ChunkedArray) else _all(value, series.num_rows, kind))
    return pa.table(columns, schema=SERIES_SEEN.schema)


def _all(value: Any, count: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), count)


def _rows(
    series: pa.Table, change: str, observation: Observation, column: str | None = None, old: Any = None, new: Any = None
) -> pa.Table:
    """Return rows of ``series_changes`` for rows of ``series_seen``."""
    text, count = pa.string(), series.num_rows
    values: dict[str, Any] = {
        **{name: series[name] for name in (*_IDENTITY, "Version")},
        "Change": _all(change, count, text),
        "ColumnName": _all(column, count, text),
        "OldValue": _all(None, count, text) if old is None else old,
        "NewValue": _all(None, count, text) if new is None else new,
        "SeenAt": _all(observation.recorded_at, count, TIME),
        "ListedAt": _all(observation.listed_at, count, TIME),
        "RunID": _all(observation.run_id, count, text),
        "Reason": _all(None, count, text),
    }
    return pa.table([values[name] for name in SERIES_CHANGES.schema.names], schema=SERIES_CHANGES.schema)


def replay(state: pa.Table, changes: pa.Table, listed: pa.Table) -> pa.Table:
    """Apply changes to the state that they were made from, and return the state that they led to.

    Args:
        state: table ``series_seen``.
        changes: rows of ``series_changes``, in their order.
        listed: the present ``series`` table: it has the values of added series, of which the feed has the names only.
    """
    if not changes.num_rows:
        return state
    unknown = changes.filter(pc.invert(pc.is_in(changes[UID], value_set=state[UID])))
    first = first_of_each(unknown, UID).select([*_IDENTITY, "Version"])
    here = listed.filter(pc.is_in(listed[UID], value_set=first[UID]))
    nameless = first.filter(pc.invert(pc.is_in(first[UID], value_set=listed[UID])))
    bare = pa.Table.from_pylist(nameless.select(_IDENTITY).to_pylist(), schema=SERIES.schema)
    state = pa.concat_tables([state, *(_as_state(rows, version=1) for rows in (first_of_each(here, UID), bare))])
    moves = changes.filter(pc.not_equal(changes["Change"], ADDED))
    touched = pc.is_in(state[UID], value_set=moves[UID])
    rows = {row[UID]: row for row in state.filter(touched).to_pylist()}
    for change in moves.to_pylist():
        _apply(change, rows[change[UID]])
    moved = pa.Table.from_pylist(list(rows.values()), schema=SERIES_SEEN.schema)
    return pa.concat_tables([state.filter(pc.invert(touched)), moved])


def _apply(change: dict[str, Any], row: dict[str, Any]) -> None:
    row["Version"] = change["Version"]
    if change["Change"] == REVISED:
        row[change["ColumnName"]] = value_of(change["ColumnName"], change["NewValue"])
    elif change["Change"] == WITHDRAWN:
        row["Withdrawn"], row["MissingSince"] = True, row["MissingSince"] or change["ListedAt"]
    else:
        row["Withdrawn"], row["MissingSince"] = False, None


def value_of(column: str, text: str | None) -> Any:
    """Return the value of a column of ``series`` that an ``OldValue`` or ``NewValue`` represents."""
    return pa.scalar(text, pa.string()).cast(SERIES.column(column).type).as_py()


def with_reasons(changes: pa.Table, reasons: Mapping[str, str]) -> pa.Table:
    """Return changes with the reasons of the withdrawals among them, by UID."""
    texts = pc.if_else(pc.equal(changes["Change"], WITHDRAWN), values_by(changes[UID], reasons), changes["Reason"])
    return with_column(changes, "Reason", texts)


def kinds_of(changes: pa.Table) -> dict[str, int]:
    """Return by kind of change how many series had one."""
    return {kind: len(uids_of(changes, [kind])) for kind in KINDS}


def uids_of(changes: pa.Table, kinds: Iterable[str]) -> set[str]:
    """Return the UIDs of the series with a change of one of these kinds."""
    return set(changes.filter(among(changes["Change"], kinds))[UID].to_pylist())
