"""What must be noted of an archive's history, worked out one series at a time, in plain Python.

It shares nothing with the pipeline but the promise: what a listing shows for the first time is noted once; a series is
withdrawn when two listings, six hours apart and nothing between that names it, lack it; the sensor finds every release
of the week before its last look, and asks for nothing that did not change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

WAIT = timedelta(hours=6)
WEEK = timedelta(days=7)

COLUMNS = (
    "StudyInstanceUID Modality ProtocolName SeriesDate SeriesDescription BodyPartExamined SeriesNumber "
    "AnnotationsFlag PatientID Manufacturer ManufacturerModelName SoftwareVersions ImageCount TimeStamp LicenseName "
    "LicenseURI CollectionURI FileSize DateReleased StudyDescription StudyDate ThirdPartyAnalysis"
).split()
"""What v2 tells of a series, beside its UID and its collection."""

FED = (
    "StudyInstanceUID Modality ProtocolName SeriesDate SeriesDescription BodyPartExamined SeriesNumber "
    "AnnotationsFlag PatientID Manufacturer ManufacturerModelName SoftwareVersions ImageCount DateReleased"
).split()
"""What of it getUpdatedSeries tells."""

Row = dict[str, Any]
Rows = dict[str, Row]
"""Rows by SeriesInstanceUID."""


@dataclass(frozen=True)
class Note:
    """One row of the feed of changes."""

    uid: str
    version: int
    change: str
    column: str | None = None
    old: Any = None
    new: Any = None


@dataclass
class _Known:
    row: Row
    version: int = 1
    since: datetime | None = None
    gone: bool = False


@dataclass
class Feed:
    """What is known of one collection, and all that was to be noted: by listing, in the order of time."""

    series: dict[str, _Known] = field(default_factory=dict)
    absent_since: datetime | None = None
    listed_at: datetime | None = None
    last: set[str] = field(default_factory=set)
    notes: list[tuple[datetime, set[Note]]] = field(default_factory=list)

    def list(self, rows: Rows, at: datetime) -> None:
        """Take a listing of the collection into account."""
        found: set[Note] = set()
        for uid, row in rows.items():
            found |= self._present(uid, {c: row[c] for c in COLUMNS})
        for uid in set(self.series) - set(rows):
            found |= self._missing(uid, at)
        self.absent_since, self.listed_at, self.last = None, at, set(rows)
        self._note(found, at)

    def absent(self, at: datetime) -> None:
        """Take into account that the archive does not list the collection."""
        self.absent_since = self.absent_since or at
        self._note({note for uid in self.series for note in self._missing(uid, at, whole=True)}, at)

    def named(self) -> None:
        """Take into account that the archive lists the collection: it was not gone for good."""
        self.absent_since = None

    @property
    def gone(self) -> set[str]:
        """UIDs of the series that count as withdrawn."""
        return {uid for uid, known in self.series.items() if known.gone}

    def _note(self, found: set[Note], at: datetime) -> None:
        if found:
            self.notes.append((at, found))

    def _present(self, uid: str, row: Row) -> set[Note]:
        known = self.series.get(uid)
        if known is None:
            self.series[uid] = _Known(row)
            return {Note(uid, 1, "added")}
        moved = [c for c in COLUMNS if known.row[c] != row[c]]
        known.version += bool(moved or known.gone)
        found = {Note(uid, known.version, "revised", c, known.row[c], row[c]) for c in moved}
        if known.gone:
            found.add(Note(uid, known.version, "returned"))
        known.row, known.gone, known.since = row, False, None
        return found

    def _missing(self, uid: str, at: datetime, whole: bool = False) -> set[Note]:
        known = self.series[uid]
        since = known.since or self.absent_since or at
        if not whole:
            known.since = since
        if known.gone or at - since < WAIT:
            return set()
        known.gone, known.since = True, since
        known.version += 1
        return {Note(uid, known.version, "withdrawn")}


class History:
    """What the listings of all collections showed."""

    def __init__(self) -> None:
        self.feeds: dict[str, Feed] = defaultdict(Feed)

    def catalogued(self, present: set[str], at: datetime) -> None:
        """Take a list of the collections into account."""
        for collection, feed in self.feeds.items():
            if collection in present:
                feed.named()
            else:
                feed.absent(at)


@dataclass(frozen=True)
class Expected:
    """What a look of the sensor must and may ask for."""

    must: set[str]
    may: set[str]


@dataclass
class Watch:
    """What the sensor saw the last time."""

    day: date | None = None
    seen: Mapping[str, Row] = field(default_factory=dict)

    def expected(self, rows: Rows) -> Expected:
        """Return which collections have news in the feed, as it is now, since the last look.

        Args:
            rows: all series that are visible now, with ``Collection``.
        """
        if self.day is None:
            return Expected(set(), set())
        since = self.day - WEEK
        now = {uid: row for uid, row in rows.items() if _released(row) > since}
        new = {uid for uid, row in now.items() if uid not in self.seen or _fed(row) != _fed(self.seen[uid])}
        left = {uid for uid, row in self.seen.items() if _released(row) > since and now.get(uid) != row}
        must = {now[uid]["Collection"] for uid in new}
        return Expected(must, must | {self.seen[uid]["Collection"] for uid in left})

    def looked(self, rows: Rows, day: date) -> None:
        """Remember what was there."""
        self.day, self.seen = day, rows


def _released(row: Row) -> date:
    moment: datetime | None = row["DateReleased"]
    return date.min if moment is None else moment.date()


def _fed(row: Row) -> Row:
    return {c: row[c] for c in FED}
