"""Ways in which the pipeline could be wrong, and for each a story that must then go wrong.

A mutation replaces a constant or a function of the pipeline. Its story is a short script: the pipeline as it is gets
through it, the mutated one does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from nbia_pipeline import clock
from nbia_pipeline.archive import ArchiveError, NbiaClient
from nbia_pipeline.changes import catalog, feed, present
from nbia_pipeline.changes import cursor as cursors
from nbia_pipeline.changes.diff import UID
from nbia_pipeline.defs import sensors
from nbia_pipeline.defs.assets import tables
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.table_file import TableFile
from nbia_pipeline.schema.status import API, LISTED_AT
from nbia_pipeline_tests.simulation.archive import FIRST, START
from nbia_pipeline_tests.simulation.ending import expect_images, expect_metadata
from nbia_pipeline_tests.simulation.script import BACKLOG, CATALOG, RECONCILE, TICK, Step
from nbia_pipeline_tests.simulation.world import ArchiveYear

Mutate = Callable[[pytest.MonkeyPatch], None]

GAMMA = list(FIRST["Gamma.v2"])


@dataclass(frozen=True)
class Mutation:
    """One way to be wrong.

    Attributes:
        name: what is wrong.
        mutate: makes it so.
        story: what happens.
        given: what is true in the story whether the pipeline is wrong or not, such as a crash.
        ends: what must hold at the end.
    """

    name: str
    mutate: Mutate
    story: Sequence[Step]
    given: Mutate = lambda patch: None
    ends: Sequence[Callable[[ArchiveYear], None]] = field(default=())


def at(day: float, do: str, **args: Any) -> Step:
    """Return a step, so many days after the first morning."""
    return Step(START + timedelta(days=day, hours=8), do, args)


def midnight(day: int) -> datetime:
    return START + timedelta(days=day)


BEGIN = (at(0, CATALOG), at(0.01, RECONCILE), at(0.02, TICK))


def _set(target: str, value: Any) -> Mutate:
    return lambda patch: patch.setattr(f"nbia_pipeline.{target}", value)


# --- the sensor


def _believe_an_empty_feed(patch: pytest.MonkeyPatch) -> None:
    class Believed(dict[Any, Any]):
        def __bool__(self) -> bool:
            return True

    honest = cursors.buckets_of
    patch.setattr(sensors, "buckets_of", lambda *words: Believed(honest(*words)))


def _move_the_cursor_on_failure(patch: pytest.MonkeyPatch) -> None:
    honest = sensors._updated_series_tick

    def look(names: Any, settings: Any, context: dg.SensorEvaluationContext) -> Any:
        try:
            return honest(names, settings, context)
        except ArchiveError as e:
            now = clock.utc_now()
            before = cursors.read_cursor(context.cursor, now)
            assert before is not None
            moved = cursors.Cursor(now.date(), before.sequence, before.digests)
            return dg.SensorResult(skip_reason=str(e), cursor=moved.encode())

    patch.setattr(sensors, "_updated_series_tick", look)


def _since_today(self: cursors.Cursor, today: date) -> date:
    return today


def _uid_only(series: pa.Table) -> pa.ChunkedArray:
    lines: pa.ChunkedArray = series[UID]
    return lines


def _forget_the_seen(patch: pytest.MonkeyPatch) -> None:
    honest = cursors.next_cursor

    def forgetful(*words: Any, **more: Any) -> cursors.Cursor:
        cursor = honest(*words, **more)
        return cursors.Cursor(cursor.day, cursor.sequence)

    patch.setattr(sensors, "next_cursor", forgetful)


BACK_DATED = (
    *BEGIN,
    at(1, TICK),
    at(8.9, "add", name="n1", collection="Beta CT", released=midnight(9)),  # an answer without rows moves no cursor
    at(9, TICK),
)

SENSOR = (
    Mutation(
        "no overlap",
        _set("changes.cursor.OVERLAP", timedelta(0)),
        (*BACK_DATED, at(10, "add", name="n2", collection="Alpha", released=midnight(6)), at(10.1, TICK)),
    ),
    Mutation(
        "an overlap of a day",
        _set("changes.cursor.OVERLAP", timedelta(days=1)),
        (*BACK_DATED, at(10, "add", name="n2", collection="Alpha", released=midnight(5)), at(10.1, TICK)),
    ),
    Mutation(
        "the cursor on today",
        _set("changes.cursor.Cursor.since", _since_today),
        (*BEGIN, at(5, TICK), at(5.1, "add", name="n1", collection="Alpha", released=midnight(5)), at(5.2, TICK)),
    ),
    Mutation(
        "series known by their UID only",
        _set("changes.cursor._lines", _uid_only),
        (
            *BEGIN,
            at(2, "add", name="n1", collection="Alpha", released=midnight(2)),
            at(2.1, TICK),
            at(3, "edit", names=["n1"], SeriesDescription="another"),
            at(3.1, TICK),
        ),
    ),
    Mutation(
        "an empty feed believed",
        _believe_an_empty_feed,
        (
            *BEGIN,
            at(2, "add", name="n1", collection="Alpha", released=midnight(2)),
            at(2.1, TICK),
            at(3, "faults", faults=[{"kind": "empty", "endpoint": "getUpdatedSeries"}]),
            at(3.1, TICK),
            at(3.2, "calm"),
            at(3.3, TICK),
        ),
    ),
    Mutation(
        "the cursor moved by a tick that failed",
        _move_the_cursor_on_failure,
        (
            *BEGIN,
            at(1, TICK),
            at(2, "faults", faults=[{"kind": "status", "status": 503}]),
            at(2.1, "add", name="n1", collection="Alpha", released=midnight(2)),
            at(11, TICK),
            at(12, "calm"),
            at(12.1, TICK),
        ),
    ),
    Mutation(
        "nothing remembered of what was seen",
        _forget_the_seen,
        (*BEGIN, at(2, "add", name="n1", collection="Alpha", released=midnight(2)), at(2.1, TICK), at(2.2, TICK)),
    ),
    Mutation(
        "a run key that does not tell the news",
        _set("defs.sensors._short", lambda *texts: "news"),
        (
            *BEGIN,
            at(2, "add", name="n1", collection="Alpha", released=midnight(2)),
            at(2.1, TICK),
            at(3, "add", name="n2", collection="Alpha", released=midnight(3)),
            at(3.1, TICK),
        ),
    ),
)


# --- the feed of changes


def _wait(hours: float) -> Mutate:
    def impatient(*words: Any, wait: timedelta, **more: Any) -> feed.ChangeSummary:
        return feed.record_changes(*words, wait=timedelta(hours=hours), **more)

    return _set("defs.assets.changes.record_changes", impatient)


def _believe_an_empty_listing(patch: pytest.MonkeyPatch) -> None:
    def ask(client: NbiaClient, name: str, collection: str, take: Any = pa.concat_tables) -> Any:
        return client._taken(name, take, collection=collection)

    def write(table: Any, client: NbiaClient, lake: Lake, fetch: Any, collection: str | None = None) -> None:
        properties = {LISTED_AT: clock.utc_now().isoformat(), API: client.api}
        fetched = fetch()
        properties |= fetched.properties
        lake.write_table(table, fetched.rows, collection, properties=properties, may_empty=True)

    def every_listing(lake: Lake, collection: str, series: TableFile, *_: Any) -> Any:
        yield feed._Listing(series, present.moment(series.properties[LISTED_AT]), dict(series.properties))

    patch.setattr("nbia_pipeline.archive.calls.Calls._rows_of_collection", ask)
    patch.setattr(tables, "_write", write)
    patch.setattr(feed, "_new_listings", every_listing)


def _believe_an_empty_list_of_collections(patch: pytest.MonkeyPatch) -> None:
    honest = Lake.write_table

    def write(lake: Lake, *words: Any, **more: Any) -> int:
        return honest(lake, *words, **{**more, "may_empty": True})

    patch.setattr(catalog, "kept_collections", lambda settings, listed, known=(): listed)
    patch.setattr(Lake, "write_table", write)


def _dies_once(patch: pytest.MonkeyPatch) -> None:
    """Let the first run after the second day die between its two writes, whichever comes first."""
    honest_append, honest_keep = feed._append, feed._write_state
    written: list[str] = []
    dead: list[bool] = []

    def note(what: str) -> None:
        if clock.utc_now() > START + timedelta(days=2):
            written.append(what)
            if len(written) == 2 and not dead:
                dead.append(True)
                raise LakeError("the process ends here")

    def append(*words: Any) -> None:
        note("feed")
        honest_append(*words)

    def keep(*words: Any) -> None:
        note("state")
        honest_keep(*words)

    patch.setattr(feed, "_append", append)
    patch.setattr(feed, "_write_state", keep)


def _state_first(patch: pytest.MonkeyPatch) -> None:
    append, keep = feed._append, feed._write_state
    waiting: list[pa.Table] = []

    def keep_then_append(lake: Lake, collection: str, state: Any) -> None:
        keep(lake, collection, state)
        while waiting:
            append(lake, collection, waiting.pop())

    patch.setattr(feed, "_append", lambda lake, collection, rows: waiting.append(rows))
    patch.setattr(feed, "_write_state", keep_then_append)


def _never(*_: Any, **__: Any) -> bool:
    return False


SHORTLY_HIDDEN = (
    *BEGIN,
    at(2, "hide", names=["a1"]),
    at(2.1, RECONCILE),
    at(2.15, "calm"),
    at(2.3, RECONCILE),  # not five hours later
    at(2.4, "show", names=["a1"]),
    at(3, RECONCILE),
)

CHANGES = (
    Mutation("one listing believed for a withdrawal", _wait(0), SHORTLY_HIDDEN),
    Mutation("two listings believed that are not far apart", _wait(4), SHORTLY_HIDDEN),
    Mutation(
        "a withdrawal never believed",
        _wait(10_000),
        (*BEGIN, at(2, "delete", names=["a1"]), at(2.1, RECONCILE), at(2.4, RECONCILE)),
    ),
    Mutation(
        "an empty listing believed",
        _believe_an_empty_listing,
        (
            *BEGIN,
            at(2, "faults", faults=[{"kind": "empty", "endpoint": "getSeries"}]),
            at(2.1, RECONCILE),
            at(2.5, RECONCILE),
            at(2.6, "calm"),
            at(3, RECONCILE),
        ),
    ),
    Mutation(
        "an empty list of collections believed",
        _believe_an_empty_list_of_collections,
        (*BEGIN, at(2, "faults", faults=[{"kind": "empty", "endpoint": "getCollectionValues"}]), at(2.1, CATALOG)),
    ),
    Mutation(
        "the state written before the feed",
        _state_first,
        (
            *BEGIN,
            at(2, "faults", faults=[{"kind": "drop", "endpoint": "none"}]),  # for the world expects no success then
            at(2.1, "edit", names=["a1"], LicenseName="CC0"),
            at(2.2, RECONCILE),
            at(2.3, "calm"),
            at(3, RECONCILE),
        ),
        given=_dies_once,
    ),
    Mutation(
        "a collection that vanishes not missed",
        _set("changes.present.CollectionListing.lacks_since", _never),
        (*BEGIN, at(2, "hide", names=GAMMA), at(2.1, CATALOG), at(2.4, CATALOG), at(2.41, RECONCILE)),
    ),
    Mutation(
        "an absence not cleared",
        _set("changes.present.CollectionListing.ends_absence", _never),
        (
            *BEGIN,
            at(2, "hide", names=GAMMA),
            at(2.1, CATALOG),
            at(2.2, "show", names=GAMMA),
            at(2.21, CATALOG),
            at(2.3, "hide", names=GAMMA),
            at(2.5, CATALOG),
            at(3, CATALOG),
        ),
    ),
)


# --- what moves


def _as_many(value: bool) -> Callable[..., Any]:
    def same(series: pa.Table, receipts: pa.Table, fingerprint: Any = None) -> pa.ChunkedArray:
        known = receipts[UID].is_valid()
        return known if value else pa.chunked_array([pa.array([False] * series.num_rows)])

    return same


DIFFERENCE = (
    Mutation(
        "everything fetched again",
        _set("mirror.plan.same_contents", _as_many(False)),
        (
            *BEGIN,
            at(1, BACKLOG),
            at(2, "add", name="n1", collection="Alpha", released=midnight(2)),
            at(2.1, TICK),
        ),
    ),
    Mutation(
        "a revised series not fetched again",
        _set("mirror.plan.same_contents", _as_many(True)),
        (
            *BEGIN,
            at(1, BACKLOG),
            at(2, "replace", names=["a1"], hidden=False),
            at(2.1, RECONCILE),
            at(2.2, BACKLOG),
        ),
        ends=(expect_images,),
    ),
    Mutation(
        "metadata of a revised series not asked again",
        _set("changes.metadata.uids_of", lambda *words: set()),
        (*BEGIN, at(2, "edit", names=["a1"], LicenseName="CC0"), at(2.1, RECONCILE)),
        ends=(expect_metadata,),
    ),
)

MUTATIONS = (*SENSOR, *CHANGES, *DIFFERENCE)
