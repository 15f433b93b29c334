"""The sensors: one finds what was released since its last tick, the other which images remain to be fetched.

They decide nothing about content. A run that they request lists the collection again and compares it with the lake,
so a lost tick, or a superfluous request, costs time and nothing else. They are off until a person turns them on.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from datetime import date
from typing import TypeVar

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.archive import ArchiveError, ArchiveUnreachable, ClientOptions
from nbia_pipeline.changes.cursor import (
    UNDATED,
    Bucket,
    CursorError,
    buckets_of,
    changed_buckets,
    changed_collections,
    first_cursor,
    next_cursor,
    read_cursor,
)
from nbia_pipeline.changes.restricted import RestrictedReleases
from nbia_pipeline.defs.jobs import (
    ARCHIVE_TAG,
    CATALOG_JOB,
    IMAGES_JOB,
    TABLES_JOB,
    UPDATE_JOB,
    Jobs,
    collections_of,
    images_config,
)
from nbia_pipeline.defs.naming import Naming, with_partition
from nbia_pipeline.defs.resources import NbiaResource
from nbia_pipeline.defs.slots import release_dead_runs
from nbia_pipeline.errors import error_text
from nbia_pipeline.lake import DamagedFile, LakeError
from nbia_pipeline.lake.damage import damage_of
from nbia_pipeline.mirror.engine import preview
from nbia_pipeline.mirror.plan import Bounds
from nbia_pipeline.mirror.selection import Selections
from nbia_pipeline.schema.tables import SERIES
from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline.text import first_of, logger, matching, shown, size_text

log = logger(__name__)

# Dagster ends a tick after 60 s, but lets its function go on. So it ends on its own, well before that.
TICK_SECONDS = 45.0
TICK_OPTIONS = ClientOptions(connect_timeout=5, read_timeout=20, tries=2, max_backoff=5)

# A run that a sensor requests is bounded, so that one large collection does not hold up the others for days.
RUN_BYTES = 50_000_000_000

SHOWN = 5
SHOWN_SERIES = 3

WHY_TAG = "nbia/requested_for"
"""Tag of a run that a sensor requests: what for."""

IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

Tick = dg.SensorResult | dg.SkipReason
T = TypeVar("T")


def build_sensors(naming: Naming, settings: Settings, jobs: Jobs) -> list[dg.SensorDefinition]:
    """Return the sensors of one archive; `jobs` are what they request."""

    def sensor(
        name: str, look: Callable[[dg.SensorEvaluationContext], Tick], requested: Sequence[str], needs: str, text: str
    ) -> dg.SensorDefinition:
        @dg.sensor(
            name=naming.of(name),
            jobs=[jobs[job] for job in requested],
            minimum_interval_seconds=settings.poll_seconds,
            required_resource_keys={needs},
            description=text,
        )
        def tick(context: dg.SensorEvaluationContext) -> Tick:
            release_dead_runs(context.instance, naming.pool, context.log.warning)
            try:
                found = look(context)
            except (ArchiveError, LakeError, SettingsError, CursorError) as e:
                found = dg.SkipReason(f"Nothing was requested: {error_text(e, settings.name_of)}")
            return _shown(found)

        return tick

    return [
        sensor(
            "updated_series",
            lambda context: _updated_series_tick(naming, settings, context),
            (UPDATE_JOB, TABLES_JOB, CATALOG_JOB),
            naming.archive,
            "Asks the archive what was released since a week before the last tick, and requests one run for each "
            "collection with something new. On v4 the answer leaves out what the guest may not see: with an account, "
            "the smaller restricted collections are listed as well, and a warning names the others. The first tick "
            "only records "
            "what is there. To start from an earlier day, set the cursor to that day, such as 2026-01-01.",
        ),
        sensor(
            "image_backlog",
            lambda context: _image_backlog_tick(naming, settings, context),
            (IMAGES_JOB,),
            naming.lake,
            "Requests the next bounded run for each mirrored collection with series that are wanted and not fetched, "
            "one run at a time. It reads only the lake. Quarantined series are left to you, and unavailable ones are "
            "retried once a day.",
        ),
    ]


def _shown(tick: Tick) -> Tick:
    """Return what a tick found; the names in its reason are shown as text."""
    if isinstance(tick, dg.SkipReason):
        return dg.SkipReason(shown(tick.skip_message))
    return tick._replace(skip_reason=tick.skip_reason and dg.SkipReason(shown(tick.skip_reason.skip_message)))


# --- what was released


def _updated_series_tick(naming: Naming, settings: Settings, context: dg.SensorEvaluationContext) -> Tick:
    archive = naming.archive_of(context)
    now = clock.utc_now()
    today = now.date()
    before = read_cursor(context.cursor, now)
    since = (before or first_cursor(today, now)).since(today)
    registered = context.instance.get_dynamic_partitions(str(naming.partitions.name))

    def ask() -> tuple[dict[Bucket, str], pa.Table, dict[str, list[str]], bool]:
        with archive.client(TICK_OPTIONS) as client:
            rows = client.updated_series(since)
            found = buckets_of(rows, since)
            about = partitions_of({c for c, _ in found}, registered, client.collection_values)
            return found, rows, about, client.misses_updates

    began = time.monotonic()
    found, rows, about, incomplete = within(TICK_SECONDS, ask)
    note = ""
    if incomplete:
        restricted = _restricted_releases(archive, settings, since, TICK_SECONDS - (time.monotonic() - began))
        found = {**found, **restricted.carried(before.digests if before and not before.shared else {})}
        if note := restricted.note():
            context.log.warning(shown(note))
            note = f". {note[0].upper()}{note[1:]}"
    if before is None:
        started = next_cursor(first_cursor(today, now), found, today, changed=False)
        return dg.SensorResult(skip_reason=_started(found, since) + note, cursor=started.encode())
    if not found:
        return dg.SkipReason(_empty(since, suspicious=before.expects_rows(since)) + note)
    changed = changed_collections(before, found)
    cursor = next_cursor(before, found, today, changed=bool(changed)).encode()
    by_partition: dict[str, list[str]] = defaultdict(list)
    why: dict[str, str] = {}
    released = released_series(rows, changed_buckets(before, found))
    for collection, digest in changed.items():
        for partition in about.get(collection, [collection]):
            by_partition[partition].append(digest)
            why[partition] = released.get(collection, "")
    return _requests(naming, settings, context, by_partition, why, registered, cursor) or dg.SensorResult(
        skip_reason=_nothing_new(settings, changed, found, since) + note, cursor=cursor
    )


def _restricted_releases(archive: NbiaResource, settings: Settings, since: date, seconds: float) -> RestrictedReleases:
    """Return what was released in the collections that the guest may not see, as far as the time allows.

    What of it fails must not cost the tick: the public releases are known by then.
    """
    seen = RestrictedReleases()

    def look() -> None:
        with archive.client(TICK_OPTIONS) as member, archive.client(TICK_OPTIONS, guest=True) as guest:
            seen.look(member, guest, settings.collections, since)

    try:
        within(seconds, look)
    except ArchiveError as e:
        log.warning("the restricted collections were not listed completely: %s", e)
    return seen


def released_series(rows: pa.Table, buckets: Iterable[Bucket]) -> dict[str, str]:
    """Return which series an answer has in some buckets, in words by collection: how many, of which days, the first.

    Args:
        rows: the answer to getUpdatedSeries.
        buckets: what is new or changed in it.
    """
    days: dict[str, list[date]] = defaultdict(list)
    for collection, day in sorted(buckets):
        days[collection].append(day)
    of_day = pc.fill_null(pc.cast(rows["DateReleased"], pa.date32(), safe=False), UNDATED)
    found = {}
    for collection, some in days.items():
        new = pc.and_(pc.equal(rows["Collection"], collection), pc.is_in(of_day, value_set=pa.array(some)))
        uids = sorted(rows["SeriesInstanceUID"].filter(new).to_pylist())
        on = first_of([str(day) for day in some if day != UNDATED], SHOWN_SERIES)
        if uids:
            many = f"{len(uids):,} series" + (f" released {on}" if on else "")
            found[collection] = f"{many}: {first_of(uids, SHOWN_SERIES)}"
    return found


def _requests(
    naming: Naming,
    settings: Settings,
    context: dg.SensorEvaluationContext,
    changed: Mapping[str, Sequence[str]],
    why: Mapping[str, str],
    registered: Sequence[str],
    cursor: str,
) -> dg.SensorResult | None:
    """Return one run for each mirrored collection that changed, and the partitions of those that are new.

    Args:
        changed: the digests of what is new, by partition.
        why: which series these are, in words; for the log of the tick and the tags of the runs.
    """
    kept = sorted(with_partition(matching(settings.collections, changed)))
    if not kept:
        return None
    added = [c for c in kept if c not in set(registered)]
    jobs = {c: UPDATE_JOB if settings.mirrors_images_of(c) else TABLES_JOB for c in kept}
    runs = [_run(naming, jobs[c], c, _short(*changed[c]), why.get(c, "")) for c in kept]
    for collection in kept:
        context.log.info(shown(f"{collection}: {why.get(collection) or 'its releases changed'}"))
    if added:
        # The table of collections must have them too: until then they count as not listed.
        key = f"collections:{_short(added, cursor)}"
        runs.append(dg.RunRequest(run_key=key, job_name=naming.of(CATALOG_JOB), tags={ARCHIVE_TAG: naming.prefix}))
    return dg.SensorResult(
        run_requests=runs,
        dynamic_partitions_requests=[naming.partitions.build_add_request(added)] if added else [],
        cursor=cursor,
    )


def _run(naming: Naming, job: str, collection: str, key: str, why: str = "") -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{collection}:{key}",
        job_name=naming.of(job),
        partition_key=collection,
        run_config=None if job == TABLES_JOB else images_config(naming, retry=False, max_bytes=RUN_BYTES),
        tags={ARCHIVE_TAG: naming.prefix, **({WHY_TAG: shown(why)} if why else {})},
    )


def partitions_of(
    collections: Iterable[str], registered: Sequence[str], listed: Callable[[], Iterable[str]]
) -> dict[str, list[str]]:
    """Return by collection of an answer which partitions it is about: the one that is spelled exactly so.

    A spelling that the archive does not list, and that is no partition, stands for the partitions that differ from it
    in case only: the server ignores case.

    Args:
        collections: as the answer spells them.
        registered: the partitions.
        listed: returns the collections of the archive; called only if it matters.
    """
    alike = {
        c: [r for r in registered if r.casefold() == c.casefold()] for c in set(collections).difference(registered)
    }
    exact = set(listed()) if any(alike.values()) else set()
    return {c: [c] if c in exact or not alike.get(c) else alike[c] for c in collections}


def _started(found: Mapping[Bucket, str], since: date) -> str:
    known = f"the releases of {_collections(c for c, _ in found)} after {since} count as known"
    return (
        f"Started: {known if found else f'nothing was released after {since}'}; releases from now on count as "
        "new. If the lake does not have the tables yet, materialize them once by hand. To start from an earlier day, "
        "set the cursor to that day, such as 2026-01-01"
    )


def _empty(since: date, suspicious: bool) -> str:
    if suspicious:
        return (
            f"Suspicious: the archive says that nothing was released after {since}, but an earlier answer had such "
            "releases. The cursor was not changed; the next tick asks again"
        )
    return f"Nothing was released after {since}"


def _nothing_new(settings: Settings, changed: Iterable[str], found: Mapping[Bucket, str], since: date) -> str:
    if others := sorted(changed):
        kept = settings.name_of("collections")
        return f"New releases only in collections that {kept} leaves out: {first_of(others, SHOWN)}"
    return f"Nothing new: all releases of {_collections(c for c, _ in found)} after {since} are known already"


def _collections(names: Iterable[str]) -> str:
    count = len(set(names))
    return "1 collection" if count == 1 else f"{count or 'no'} collections"


def within(seconds: float, ask: Callable[[], T]) -> T:
    """Return the result of `ask`, which calls the archive, if it arrives in time.

    If it does not, it goes on until its own timeouts: a call that waits for the network cannot be interrupted.

    Raises:
        ArchiveUnreachable: it takes longer.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except Exception as e:  # noqa: BLE001 - raised again by answer.result()
            answer.set_exception(e)

    # Not a pool: the interpreter would wait for its threads at exit.
    threading.Thread(target=work, name="nbia-tick", daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except futures.TimeoutError:
        raise ArchiveUnreachable(
            f"the archive did not answer completely within {seconds:.0f} s: it may be busy; the next tick asks again. "
            "If the cursor is set to a day long past, set a later one: the reconcile schedule finds the rest"
        ) from None


# --- what is still to be fetched


def _image_backlog_tick(naming: Naming, settings: Settings, context: dg.SensorEvaluationContext) -> Tick:
    lake = naming.lake_of(context).open(write=False)
    registered = set(context.instance.get_dynamic_partitions(str(naming.partitions.name)))
    mirrored = [c for c in lake.collections_of(SERIES) if c in registered and settings.mirrors_images_of(c)]
    busy = collections_in_progress(naming, context.instance)
    selections = Selections(settings.select)
    today = clock.utc_now().date()
    deadline = time.monotonic() + TICK_SECONDS
    runs, damaged, last = [], [], None
    # Round-robin, starting after the collection where the last tick ended.
    for collection in sorted(mirrored, key=lambda c: (c <= (context.cursor or ""), c)):
        if time.monotonic() > deadline:
            break
        last = collection
        if collection in busy:
            continue
        try:
            if selections.is_outdated(lake, collection):  # its plan reads the manifest or the cart
                runs.append(_run(naming, IMAGES_JOB, collection, f"selection:{today}"))
                continue
            todo = preview(lake, collection, bounds=Bounds(retry=False), selections=selections).todo
        except DamagedFile as e:  # the others need not wait for it
            context.log.warning(shown(f"{collection}: {e}"))
            damaged.append(str(e))
            if not damage_of(lake, SERIES, collection):  # a run of the images rebuilds all the others
                runs.append(_run(naming, IMAGES_JOB, collection, f"{_short(e)}:{today}"))
            continue
        if todo:
            # With the day: a run that fetched nothing, because the archive was down, must not be the last one.
            key = f"{_short(*(json.dumps(w.to_json()) for w in todo))}:{today}"
            size = size_text(sum(w.FileSize or 0 for w in todo))
            why = (
                f"{len(todo):,} series to fetch, {size}: {first_of([w.SeriesInstanceUID for w in todo], SHOWN_SERIES)}"
            )
            context.log.info(shown(f"{collection}: {why}"))
            runs.append(_run(naming, IMAGES_JOB, collection, key, why))
    if runs:
        return dg.SensorResult(run_requests=runs, cursor=last)
    why = damaged[0] if damaged else _no_backlog(settings, mirrored, sorted(busy & set(mirrored)))
    return dg.SensorResult(skip_reason=f"Nothing was requested: {why}" if damaged else why, cursor=last)


def collections_in_progress(naming: Naming, instance: dg.DagsterInstance, besides: str = "") -> set[str]:
    """Return the collections with a run of images that is queued or in progress, whatever requested it.

    Args:
        naming: the names of the archive.
        instance: Dagster's.
        besides: id of a run that does not count.
    """
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=IN_PROGRESS))
    with_images = (naming.of(IMAGES_JOB), naming.of(UPDATE_JOB))
    registered = list(instance.get_dynamic_partitions(str(naming.partitions.name)))
    return {
        collection
        for run in runs
        if run.run_id != besides
        if run.job_name in with_images or naming.key("images") in (run.asset_selection or ())
        for collection in collections_of(run.tags, registered)
    }


def _no_backlog(settings: Settings, mirrored: Sequence[str], busy: Sequence[str]) -> str:
    if busy:
        return f"In progress: {first_of(busy, SHOWN)}; there is nothing else to fetch"
    if not mirrored:
        images = settings.name_of("images")
        return f"There is no series table yet for any collection whose images are mirrored ({images})"
    return f"Nothing to fetch: all wanted series of {_collections(mirrored)} are in the lake, or could not be fetched"


def _short(*texts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, texts)).encode()).hexdigest()[:16]
