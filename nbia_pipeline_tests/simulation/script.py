"""What happens in a year: a script of steps, as plain data. The same seed gives the same year.

A script is made without looking at any archive: it knows by itself which series are there, hidden or deleted, so that
every step makes sense. Printed, it is what one needs to play it again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from nbia_pipeline_tests.simulation.archive import FIRST, START

DAYS = 365

TICK = "tick"
BACKLOG = "backlog"
CATALOG = "catalogue"
RECONCILE = "reconcile"
PERSON = "person"
PIPELINE = (TICK, BACKLOG, CATALOG, RECONCILE, PERSON)
"""Steps of the pipeline: the sensors, the schedules, and a person who runs the images of all collections by hand.

All others are operations of the archive, with `names` of series for UIDs, or its weather: `faults`, `calm`."""

OUTAGES: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"kind": "status", "status": 503},),
    ({"kind": "status", "status": 500},),
    ({"kind": "drop"},),
    ({"kind": "html"},),
    ({"kind": "empty"},),
    ({"kind": "empty", "endpoint": "getSeries"}, {"kind": "empty", "endpoint": "getUpdatedSeries"}),
    ({"kind": "empty", "endpoint": "getCollectionValues"}, {"kind": "empty", "endpoint": "getSeries"}),
    ({"kind": "status", "status": 401},),
    ({"kind": "end_early", "endpoint": "getSeries"}, {"kind": "end_early", "endpoint": "getUpdatedSeries"}),
    ({"kind": "cut", "probability": 0.3}, {"kind": "status", "status": 502, "probability": 0.3}),
    ({"kind": "expire_tokens", "probability": 0.4},),
    ({"kind": "missing_file", "endpoint": "getImageWithMD5Hash"},),
)
"""What a bad time can be like."""


@dataclass(frozen=True)
class Step:
    """One thing that happens.

    Attributes:
        at: when, in UTC.
        do: what, see :data:`PIPELINE`.
        args: the details.
    """

    at: datetime
    do: str
    args: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        details = " ".join(f"{name}={value!r}" for name, value in self.args.items())
        return f"{self.at:%Y-%m-%d %H:%M} {self.do} {details}".rstrip()


def text_of(script: Sequence[Step]) -> str:
    """Return a script to be read by a person."""
    return "\n".join(map(str, script))


def ending(after: datetime) -> list[Step]:
    """Return the steps by which everything must be told: two listings, far enough apart, in calm weather."""
    steps = [Step(after, "calm")]
    for hours in (1, 8):
        steps.append(Step(after + timedelta(hours=hours), CATALOG))
        steps.append(Step(after + timedelta(hours=hours, minutes=5), RECONCILE))
    steps.append(Step(after + timedelta(hours=9), TICK))
    steps.append(Step(after + timedelta(hours=10), PERSON))
    return steps


def random_year(seed: int, days: int = DAYS) -> list[Step]:
    """Return the year of a seed, without its ending."""
    return _Author(seed).year(days)


class _Author:
    """Who writes a year, day by day, and remembers what there is."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.collection = {name: c for c, series in FIRST.items() for name in series}
        self.listed = set(self.collection)
        self.hidden: set[str] = set()
        self.steps: list[Step] = []
        self.added = 0
        self.fresh_collections = ["Delta", "Epsilon (limited)", "Zeta"]
        self.storm_until: datetime | None = None

    def year(self, days: int) -> list[Step]:
        self._at(START + timedelta(hours=2), CATALOG)
        self._at(START + timedelta(hours=3), RECONCILE)
        self._at(START + timedelta(hours=4), TICK)
        for day in range(1, days):
            self._day(START + timedelta(days=day))
        return sorted(self.steps, key=lambda step: step.at)

    def _day(self, midnight: datetime) -> None:
        if self.storm_until and midnight >= self.storm_until:
            self._at(midnight, "calm")
            self.storm_until = None
        listed = self.chance.random()
        if listed < 0.035:
            self._reconcile(midnight + timedelta(hours=2))
        happened = self.chance.random() < 0.11
        at = midnight + timedelta(hours=5, minutes=self.chance.randrange(600))
        if happened:
            for _ in range(self.chance.choice((1, 1, 2, 3))):
                self._something(at)
                at += timedelta(minutes=5)
        if happened or self.chance.random() < 0.12:
            at += timedelta(minutes=self.chance.randrange(1, 200))
            self._at(at, TICK)
            if self.chance.random() < 0.25:  # released at the same day again, after a look
                self._something(at + timedelta(minutes=20))
                self._at(at + timedelta(minutes=self.chance.randrange(30, 120)), TICK)
        if self.chance.random() < 0.04:
            self._at(midnight + timedelta(hours=22), BACKLOG)
        if self.chance.random() < 0.02:  # twice a day: sooner and later than a withdrawal needs
            self._reconcile(midnight + timedelta(hours=23 - self.chance.choice((0, 3, 9))))

    def _reconcile(self, at: datetime) -> None:
        if self.chance.random() < 0.8:
            self._at(at, CATALOG)
        self._at(at + timedelta(hours=1), RECONCILE)

    # --- what happens to the archive

    def _something(self, at: datetime) -> None:
        events = {
            self._release: 10,
            self._release_dated_back: 6,
            self._revise: 6,
            self._replace: 4,
            self._hide: 5,
            self._show: 6,
            self._delete: 2,
            self._new_collection: 1,
            self._vanish: 1,
            self._storm: 3,
            self._hide_at_fetch: 1,
        }
        self.chance.choices(list(events), weights=list(events.values()))[0](at)

    def _add(self, at: datetime, collection: str, **args: Any) -> None:
        self.added += 1
        name = f"s{self.added}"
        self.collection[name] = collection
        self.listed.add(name)
        self._at(at, "add", name=name, collection=collection, **args)

    def _release(self, at: datetime) -> None:
        today = at.replace(hour=0, minute=0)
        released = self.chance.choice((today, today, at, today.replace(hour=23, minute=59), None))
        self._add(at, self._some_collection(), released=released)

    def _release_dated_back(self, at: datetime) -> None:
        days = self.chance.choice((1, 2, 4, 6, 7, 8, 20, 90, 400))
        day = at.replace(hour=0, minute=0) - timedelta(days=days)
        if self.chance.random() < 0.3 and self.listed:
            self._at(at, "back_date", names=[self._one(self.listed)], day=day)
        else:
            self._add(at, self._some_collection(), released=day)

    def _revise(self, at: datetime) -> None:
        if not self.listed:
            return
        texts = ("CC BY 4.0", "", None, "Thorax, 'à' \"2\"", "null")
        column = self.chance.choice(("LicenseName", "SeriesDescription", "BodyPartExamined", "ProtocolName"))
        changes: dict[str, Any] = {column: self.chance.choice(texts)}
        if self.chance.random() < 0.3:
            changes["DateReleased"] = at.replace(hour=0, minute=0)
        if self.chance.random() < 0.2:
            changes |= {"SeriesNumber": self.chance.randrange(9), "AnnotationsFlag": self.chance.choice((True, None))}
        self._at(at, "edit", names=[self._one(self.listed)], **changes)

    def _replace(self, at: datetime) -> None:
        if not self.listed:
            return
        name = self._one(self.listed)
        hidden = self.chance.random() < 0.5
        slices = self.chance.choice((None, None, 1, 3))
        self._at(at, "replace", names=[name], hidden=hidden, slices=slices)
        if hidden:
            self.listed.discard(name)
            self.hidden.add(name)

    def _hide(self, at: datetime) -> None:
        if len(self.listed) > 4:
            name = self._one(self.listed)
            self.listed.discard(name)
            self.hidden.add(name)
            self._at(at, "hide", names=[name])

    def _show(self, at: datetime) -> None:
        names = sorted(self.hidden)[: self.chance.choice((1, 9))]
        if names:
            self.hidden.difference_update(names)
            self.listed.update(names)
            self._at(at, "show", names=names)

    def _delete(self, at: datetime) -> None:
        if len(self.listed) > 4:
            name = self._one(self.listed | self.hidden)
            self.listed.discard(name)
            self.hidden.discard(name)
            self._at(at, "delete", names=[name])

    def _new_collection(self, at: datetime) -> None:
        if self.fresh_collections:
            name = self.fresh_collections.pop(0)
            for _ in range(2):
                self._add(at, name, released=at.replace(hour=0, minute=0))

    def _vanish(self, at: datetime) -> None:
        """Let a collection vanish as a whole, for a time or for ever; two others at least stay."""
        there = sorted({self.collection[name] for name in self.listed})
        if len(there) > 2:
            collection = self.chance.choice(there)
            names = sorted(name for name in self.listed if self.collection[name] == collection)
            self.listed.difference_update(names)
            if self.chance.random() < 0.7:
                self.hidden.update(names)
                self._at(at, "hide", names=names)
            else:
                self._at(at, "delete", names=names)

    def _storm(self, at: datetime) -> None:
        if self.storm_until is None:
            self._at(at, "faults", faults=list(self.chance.choice(OUTAGES)), seed=self.chance.randrange(99))
            self.storm_until = at + timedelta(days=self.chance.choice((0, 1, 3, 9)))

    def _hide_at_fetch(self, at: datetime) -> None:
        """Let the next series be hidden after it was listed, when its images are asked for."""
        if self.storm_until is None:
            self._release(at)
            name = f"s{self.added}"
            self._at(
                at, "faults", faults=[{"kind": "hide", "endpoint": "getImageWithMD5Hash", "series": name, "times": 1}]
            )
            self._at(at + timedelta(minutes=2), TICK)
            self._at(at + timedelta(minutes=3), "calm")
            self._at(at + timedelta(minutes=4), "show", names=[name])

    # --- helpers

    def _at(self, at: datetime, do: str, **args: Any) -> None:
        self.steps.append(Step(at, do, args))

    def _one(self, names: set[str]) -> str:
        return self.chance.choice(sorted(names))

    def _some_collection(self) -> str:
        return self.chance.choice(sorted({self.collection[name] for name in self.listed} or {"Alpha"}))
