"""A year of one archive and one pipeline: plays a script, and holds everything noted against the archive's own history.

It knows the archive's truth at every moment, and of the pipeline only what the lake and the wire show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from starlette.applications import Starlette

from nbia_pipeline.archive import ClientOptions
from nbia_pipeline.embedded.catalog.model import ImageStore
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.status import ABSENT_AT, LISTED_AT
from nbia_pipeline.schema.tables import COLLECTIONS, IMAGE_SERIES, SERIES, SERIES_CHANGES, SERIES_SEEN
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import matching
from nbia_pipeline_tests.helpers.tiny import running
from nbia_pipeline_tests.simulation import script as s
from nbia_pipeline_tests.simulation.archive import MIRRORED, START, first_uids, small_catalog
from nbia_pipeline_tests.simulation.daemon import Daemon
from nbia_pipeline_tests.simulation.model import COLUMNS, History, Note, Row, Rows, Watch
from nbia_pipeline_tests.simulation.reading import value_of

SENSOR = "nbia_updated_series"
BACKLOG_SENSOR = "nbia_image_backlog"
JOBS = {BACKLOG_SENSOR: "nbia_images", "nbia_catalogue": "nbia_catalogue", "nbia_reconcile": "nbia_tables"}
"""What is run where a request does not name its job."""

FEW_BYTES = 20_000
"""What a run of a sensor fetches at the most: some series, so that there is a backlog."""

QUICK = partial(ClientOptions, connect_timeout=2, read_timeout=2, backoff=0.001, max_backoff=0.005)

FINGERPRINT = ("ImageCount", "FileSize", "TimeStamp", "DateReleased")


class ArchiveYear:
    """An archive, a pipeline, and what both did so far.

    Attributes:
        time: the present moment in UTC, by which the pipeline lives.
        control: the archive.
        daemon: the pipeline.
        lake: what it wrote.
        history: what must be noted.
        ever_held: UIDs of the series whose files were in the lake at some time.
        really: whether runs are real ones from now on; None: as it comes.
    """

    def __init__(self, app: Starlette, url: str, instance: dg.DagsterInstance, folder: Path, **how: Any) -> None:
        self.time = START
        self._app = app
        self.control: Operations = app.state.archive.control
        self.zone = timedelta(hours=how.pop("zone", 0))
        settings = Settings(archive=url, lake=str(folder / "lake"), images=MIRRORED, headers=())
        self.lake = Lake(settings.lake)
        self.daemon = Daemon(settings, instance, str(folder), **how)
        self.history = History()
        self.uids = first_uids()
        self.ever_held: set[str] = set()
        self.really: bool | None = None
        self._held: dict[str, tuple[Any, ...]] = {}
        self._truth: tuple[int, Rows] = (-1, {})
        self._watch = Watch()
        self._stormy = False
        self._noted: Counter[str] = Counter()

    def play(self, script: Sequence[s.Step]) -> None:
        """Let everything of a script happen, and judge it on the way.

        Raises:
            AssertionError: the pipeline did not do what it must; the text names the step.
        """
        for step in script:
            self.time = step.at
            self.control.now(step.at + self.zone)
            try:
                self._do(step)
            except AssertionError as e:
                raise AssertionError(f"{step}: {e}") from e

    def _do(self, step: s.Step) -> None:
        if step.do == s.TICK:
            if self._tick():
                self._backlog()
        elif step.do == s.BACKLOG:
            self._backlog()
        elif step.do == s.CATALOG:
            self._scheduled("nbia_catalogue")
        elif step.do == s.RECONCILE:
            self._scheduled("nbia_reconcile")
        elif step.do == s.PERSON:
            self._images_by_hand()
        else:
            self._change(step.do, dict(step.args))

    # --- the archive

    def _change(self, do: str, args: dict[str, Any]) -> None:
        if do == "calm":
            self.control.faults()
            self._stormy = False
        elif do == "faults":
            named = [{**f, "series": self.uids[f["series"]]} if "series" in f else f for f in args["faults"]]
            self.control.faults(*(Fault(**f) for f in named), seed=args.get("seed", 0))
            self._stormy = True
        elif do == "add":
            name, released = args.pop("name"), args.pop("released", None)
            undated: dict[str, Any] = {} if released else {"DateReleased": None}
            self.uids[name] = self.control.add_series(**args, released=released, patient=name, **undated)
        else:
            names = args.pop("names")
            getattr(self.control, do)([self.uids[name] for name in names], **args)

    def truth(self) -> Rows:
        """Return what is visible now, as the archive knows it."""
        changes = len(self.control.events())
        if changes != self._truth[0]:
            rows = self.control.series()
            self._truth = changes, {row["SeriesInstanceUID"]: row for row in rows if row["Visibility"] == 1}
        return self._truth[1]

    def images(self) -> ImageStore:
        """Return the files that the archive has now."""
        store: ImageStore = self._app.state.archive.holdings.catalog.images
        return store

    # --- the pipeline

    def _tick(self) -> bool:
        """Let the sensor look, and run what it asks for; return whether it asked for something."""
        before = self.daemon.cursors.get(SENSOR)
        truth = self.truth()
        tick = self.daemon.tick(SENSOR)
        asked = {r.partition_key for r in tick.run_requests or [] if r.partition_key}
        if self._stormy and not asked and self.daemon.cursors.get(SENSOR) == before:
            return False  # it said that it could not look
        expected = self._watch.expected(truth)
        assert expected.must <= asked, f"the sensor does not ask for {expected.must - asked}: {tick.skip_message}"
        assert asked <= expected.may, f"the sensor asks for {asked - expected.may}, where nothing changed"
        if self.daemon.cursors.get(SENSOR) != before:
            self._watch.looked(truth, self.time.date())
        done = self._run_all(SENSOR, tick.run_requests or [])
        assert self._stormy or expected.must <= done, f"no run lists {expected.must - done}: its key was served before"
        return bool(done)

    def _backlog(self) -> None:
        tick = self.daemon.tick(BACKLOG_SENSOR)
        asked = {r.partition_key for r in tick.run_requests or []}
        assert asked <= set(self._outdated()), f"the backlog sensor asks for {asked}, of which nothing is to be fetched"
        self._run_all(BACKLOG_SENSOR, tick.run_requests or [])

    def _scheduled(self, schedule: str) -> None:
        tick = self.daemon.scheduled(schedule, self.time)
        requests = list(tick.run_requests or [])
        if schedule == "nbia_reconcile":
            asked = [collection for request in requests for collection in self.daemon.collections_of(request)]
            known = set(self.lake.read_table(COLLECTIONS)["Collection"].to_pylist()) & set(self.daemon.partitions())
            assert sorted(asked) == sorted(known), f"reconcile lists {asked}, not {known}: {tick.skip_message}"
        for request in requests:
            self._run(request.job_name or JOBS[schedule], request)

    def _images_by_hand(self) -> None:
        for collection in matching(MIRRORED, sorted({row["Collection"] for row in self.truth().values()})):
            self._run("nbia_images", dg.RunRequest(partition_key=collection))

    def _run_all(self, source: str, requests: Iterable[Any]) -> set[str]:
        """Run what was not run before; return the collections of it."""
        fresh = [request for request in requests if self.daemon.is_new(source, request)]
        for request in fresh:
            self._run(request.job_name or JOBS[source], request)
        return {collection for request in fresh for collection in self.daemon.collections_of(request)}

    def _run(self, job: str, request: Any) -> None:
        """Run it, and judge what the lake has afterwards."""
        truth = self.truth()
        self.control.requests(clear=True)
        done = self.daemon.run(job, request, self.really)
        present = {row["Collection"] for row in truth.values()}
        collections = self.daemon.collections_of(request)
        if not self._stormy and set(collections) <= present:
            assert done, f"the run {job} of {collections} failed in calm weather"
        self._judge_fetches(truth)
        if job in ("nbia_images", "nbia_update"):
            self._held |= self._held_of(collections)
            self.ever_held |= set(self._held)
        self._take_in(truth, present)
        if not self._stormy and job in ("nbia_tables", "nbia_update") and set(collections) <= present:
            for collection in collections:
                listed_at = self._listed_at(collection)
                assert listed_at == self.time.isoformat(), f"the run does not list {collection}"

    # --- judging

    def _take_in(self, truth: Rows, present: set[str]) -> None:
        """Let the history note the listings that the lake says it took into account now; the feed must say the same."""
        now = self.time.isoformat()
        if self.lake.read_properties(COLLECTIONS).get(LISTED_AT) == now:
            names = self.lake.read_table(COLLECTIONS, columns=["Collection"])["Collection"].to_pylist()
            assert sorted(names) == sorted(present), "the table of collections is not what the archive lists"
            self.history.catalogued(present, self.time)
        for collection in self.lake.collections_of(SERIES_SEEN):
            feed = self.history.feeds[collection]
            facts = self.lake.read_properties(SERIES_SEEN, collection)
            rows = {uid: row for uid, row in truth.items() if row["Collection"] == collection}
            listed = facts.get(LISTED_AT) == now or (self._stormy and self._fed_at(collection) == self.time)
            if listed and feed.listed_at != self.time:
                feed.list(rows, self.time)
            assert (facts.get(ABSENT_AT) == now) <= (collection not in present), f"{collection} is held to be gone"
            self.judge_feed(collection)

    def _listed_at(self, collection: str) -> str | None:
        """Return the listing that the feed took into account last."""
        return self.lake.read_properties(SERIES_SEEN, collection).get(LISTED_AT)

    def _fed_at(self, collection: str) -> datetime | None:
        """Return the listing of the last row of the feed: of a run that died it may be all that is left."""
        moments = self.lake.read_table(SERIES_CHANGES, collection, columns=["ListedAt"])["ListedAt"]
        last: datetime | None = moments[-1].as_py() if len(moments) else None
        return last

    def judge_feed(self, collection: str, again: bool = False) -> None:
        """Compare all that was noted of a collection with what must be: order, kinds, values, each once."""
        notes = self.history.feeds[collection].notes
        count = self.lake.count_rows(SERIES_CHANGES, collection)
        if not again and count == self._noted[collection] == sum(len(found) for _, found in notes):
            return
        rows = self.lake.read_table(SERIES_CHANGES, collection).to_pylist()
        told: list[tuple[datetime, list[Note]]] = []
        for row in rows:
            if not told or told[-1][0] != row["ListedAt"]:
                told.append((row["ListedAt"], []))
            told[-1][1].append(_note(row))
        for (at, found), (must_at, must) in zip(told, notes):  # noqa: B905 - what is longer is judged below
            assert (at, set(found)) == (must_at, must), (
                f"the feed of {collection} differs:\n{_difference(set(found), must)}"
            )
            assert len(found) == len(must), f"the feed of {collection} says something twice at {at}"
        assert len(told) == len(notes), f"the feed of {collection} has {len(told)} listings with news, not {len(notes)}"
        self._noted[collection] = len(rows)

    def _held_of(self, collections: Iterable[str]) -> dict[str, tuple[Any, ...]]:
        """Return the fingerprint of every series of some collections whose files are in the lake."""
        return {
            row["SeriesInstanceUID"]: tuple(row[c] for c in FINGERPRINT)
            for collection in collections
            for row in self.lake.read_table(IMAGE_SERIES, collection).to_pylist()
            if row["Bytes"] is not None
        }

    def _judge_fetches(self, truth: Rows) -> None:
        asked = Counter(
            str(r["query"].get("SeriesInstanceUID"))
            for r in self.control.requests()
            # Not getImage: of it the text of a licence is read, and no more.
            if r["endpoint"] == "getImageWithMD5Hash"
        )
        now = {uid: tuple(row[c] for c in FINGERPRINT) for uid, row in truth.items()}
        again = {uid for uid in asked if uid in self._held and self._held[uid] == now.get(uid)}
        assert not again, f"{again} is fetched, and was in the lake with the same content"
        twice = {uid for uid, times in asked.items() if times > 1}
        assert self._stormy or not twice, f"{twice} is fetched more than once in one run"

    def _outdated(self) -> Iterator[str]:
        """Yield the collections with a listed series that the lake does not hold as it was listed."""
        for collection, feed in self.history.feeds.items():
            for uid, known in feed.series.items():
                if not known.gone and self._held.get(uid) != tuple(known.row[c] for c in FINGERPRINT):
                    yield collection
            # A run over several collections, one of which failed: listed, and not taken into account yet.
            if self.lake.read_properties(SERIES, collection).get(LISTED_AT) != self._listed_at(collection):
                yield collection


def _note(row: Row) -> Note:
    column = row["ColumnName"]
    assert column is None or column in COLUMNS, f"{column} is noted, which v2 does not tell"
    old, new = (value_of(column, row[c]) for c in ("OldValue", "NewValue"))
    return Note(row["SeriesInstanceUID"], row["Version"], row["Change"], column, old, new)


def _difference(found: set[Note], must: set[Note]) -> str:
    lines = [f"  too much: {note}" for note in sorted(found - must, key=str)]
    return "\n".join([*lines, *(f"  not there: {note}" for note in sorted(must - found, key=str))])


@contextmanager
def a_world(folder: Path, patch: pytest.MonkeyPatch, *, real_every: int = 0, zone: float = 0) -> Iterator[ArchiveYear]:
    """Give a world that begins on the first of January 2026.

    Args:
        folder: for the lake.
        patch: for the clock and the waits.
        real_every: see :class:`~nbia_pipeline_tests.simulation.daemon.Daemon`.
        zone: hours by which the archive's clock is ahead of UTC.
    """
    with ExitStack() as stack:
        app = create_app(small_catalog())
        url = stack.enter_context(running(app))
        instance = stack.enter_context(dg.DagsterInstance.ephemeral(tempdir=str(folder)))
        patch.setattr("nbia_pipeline.defs.resources.ClientOptions", QUICK)
        patch.setattr("nbia_pipeline.defs.sensors.TICK_OPTIONS", QUICK(tries=2))
        patch.setattr("nbia_pipeline.defs.sensors.RUN_BYTES", FEW_BYTES)
        patch.setattr("nbia_pipeline.defs.assets.fetch_op.RETRY", dg.RetryPolicy(max_retries=0))
        world = ArchiveYear(app, url, instance, folder, real_every=real_every, zone=zone)
        patch.setattr("nbia_pipeline.clock.utc_now", lambda: world.time)
        yield world
