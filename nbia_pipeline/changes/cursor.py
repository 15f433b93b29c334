"""The cursor of the sensor of updated series: what the last answer contained, in a bounded number of bytes.

getUpdatedSeries answers "released after this day", by days, and releases can be back-dated. So it is asked from a
week before the last time, and what it answered then is subtracted. The cursor keeps one digest of all that a
collection released on a day: one series more, one less, or another value in a row gives a different digest.

What is missed here is found by the next listing of the entire collection; nothing here decides about content.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.text import TextError

OVERLAP = timedelta(days=7)
CURSOR_BYTES = 8_000
UNDATED = date.min  # of a series without a day of release
SLOTS = 32

_VERSION = 1
_SHOWN = 60  # characters of a cursor that cannot be read
_DIGEST_BYTES = 8
_NULL, _BETWEEN, _END = "\x00", "\x1f", "\x1e"

Bucket = tuple[str, date]
"""What a collection released on a day."""

Digests = Mapping[Bucket, str]
"""Digest by bucket."""


class CursorError(TextError, ValueError):
    """The cursor cannot be read; the text says what a valid one looks like."""


@dataclass(frozen=True)
class Cursor:
    """What the sensor knows after a tick.

    Attributes:
        day: day (UTC) of the last complete answer.
        sequence: counts the ticks that found something new. A series that is hidden, shown, hidden and shown again
            gives the same digest twice; the sequence number distinguishes the two.
        digests: digest by bucket. Where those of each collection would take too many bytes, the collections share
            `SLOTS` slots, whose numbers replace their names.
        shared: whether the collections share slots.
    """

    day: date
    sequence: int
    digests: Digests = field(default_factory=dict)
    shared: bool = False

    def since(self, today: date) -> date:
        """Return the day to ask from: the overlap before the last answer, or before today if that is earlier."""
        return _days_later(min(self.day, today), -OVERLAP.days)

    def expects_rows(self, since: date) -> bool:
        """Return whether the last answer had rows that an answer from `since` on should contain again."""
        return any(day > since for _, day in self.digests)

    def encode(self) -> str:
        """Return the cursor as JSON; its keys are those of saved cursors and stay as they are."""
        seen: dict[str, dict[str, str]] = defaultdict(dict)
        for (name, day), digest in sorted(self.digests.items()):
            seen[day.isoformat()][name] = digest
        fields = {"v": _VERSION, "day": self.day.isoformat(), "edition": self.sequence, "shared": self.shared}
        return json.dumps({**fields, "seen": seen}, ensure_ascii=False, separators=(",", ":"))


def first_cursor(day: date, now: datetime) -> Cursor:
    """Return a cursor without digests.

    Args:
        day: releases from a week before this day on are asked for.
        now: the present moment (UTC). It begins the sequence, so that no run key of an earlier start is used again.
    """
    return Cursor(day, sequence=int((now - datetime(1970, 1, 1)).total_seconds()))  # noqa: DTZ001 - both without a zone


def read_cursor(text: str | None, now: datetime) -> Cursor | None:
    """Return the cursor of a text; None where there is none yet.

    A person may set a plain day, like ``2026-01-01``: everything since then (and the week before it) counts as new.

    Raises:
        CursorError: the text is neither a day nor a saved cursor.
    """
    if not text or not text.strip():
        return None
    with suppress(ValueError):  # it is not a day: a saved cursor, then
        return first_cursor(date.fromisoformat(text.strip()), now)
    try:
        saved = json.loads(text)
        if saved["v"] != _VERSION:
            stated = str(saved["v"])[:_SHOWN]
            raise CursorError(f"the cursor has version {stated}, this program reads {_VERSION}: {_REMEDY}")
        digests = {(n, date.fromisoformat(d)): str(x) for d, names in saved["seen"].items() for n, x in names.items()}
        return Cursor(date.fromisoformat(saved["day"]), int(saved["edition"]), digests, bool(saved["shared"]))
    except CursorError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise CursorError(f"the cursor {text[:_SHOWN]!r} cannot be read: {_REMEDY}") from e


_REMEDY = "set it to a day to start from, like 2026-01-01, or empty it to start from now"


def buckets_of(series: pa.Table, since: date) -> dict[Bucket, str]:
    """Return the digest of each bucket of an answer.

    Only whole days count: of `since` itself the archive sends the releases with a time of day, and not those at
    midnight. A row without a collection is left out. Servers before May 2024 send no day of release: what they send
    goes into the bucket of one day, whose digest also changes when a release becomes too old to be sent.

    Args:
        series: rows of getUpdatedSeries, with ``Collection`` and ``DateReleased``; every column counts.
        since: the day that was asked for.
    """
    days = pc.fill_null(pc.cast(series["DateReleased"], pa.date32(), safe=False), UNDATED)
    sent = pc.or_(pc.greater(days, pa.scalar(since)), pc.is_null(series["DateReleased"]))
    lines = pc.cast(_lines(series), pa.large_string())
    rows = pa.table({"Collection": series["Collection"], "Day": days, "Line": lines})
    rows = rows.filter(pc.and_(pc.is_valid(rows["Collection"]), sent)).sort_by("Line")
    buckets = rows.group_by(["Collection", "Day"], use_threads=False).aggregate([("Line", "list")])
    # Joined by Arrow, without a Python object for each line.
    texts = pc.binary_join(buckets["Line_list"], pa.scalar("", pa.large_string()))
    names = zip(buckets["Collection"].to_pylist(), buckets["Day"].to_pylist(), strict=True)
    return {bucket: _digest(text.as_py().encode()) for bucket, text in zip(names, texts, strict=True)}


def changed_buckets(before: Cursor, found: Digests) -> dict[Bucket, str | None]:
    """Return the new or changed buckets of an answer, each with its digest in the last answer.

    Where the collections share slots, these are all the buckets of a slot that changed.
    """
    now = _by_slot(found, before.day) if before.shared else found
    keys = {bucket: _slot(bucket, before.day) if before.shared else bucket for bucket in found}
    return {bucket: before.digests.get(key) for bucket, key in keys.items() if before.digests.get(key) != now[key]}


def changed_collections(before: Cursor, found: Digests) -> dict[str, str]:
    """Return the collections with new or changed buckets, each with a digest of these.

    The digest is the same for the same buckets after the same cursor, and another one otherwise. Buckets that are gone
    do not count: only a listing of the entire collection can show what happened to them.

    Args:
        before: the cursor of the last answer.
        found: the digests of this answer, from ``before.since(today)`` on.
    """
    changes: dict[str, list[str]] = defaultdict(list)
    for bucket, known in changed_buckets(before, found).items():
        changes[bucket[0]].append(f"{bucket[1]} {known} {found[bucket]}")
    return {
        collection: _digest(_BETWEEN.join([str(before.sequence), *sorted(lines)]).encode())
        for collection, lines in sorted(changes.items())
    }


def next_cursor(before: Cursor, found: Digests, today: date, changed: bool) -> Cursor:
    """Return the cursor after an answer.

    Buckets that the next answer can no longer contain are dropped, and so are those that have vanished: a series
    that returns counts as new.

    Args:
        before: the cursor before the answer.
        found: the digests of the answer.
        today: the present day (UTC).
        changed: whether the answer had new or changed buckets.
    """
    since = _days_later(today, -OVERLAP.days)
    kept = {bucket: digest for bucket, digest in found.items() if bucket[1] > since or bucket[1] == UNDATED}
    after = Cursor(today, before.sequence + changed, kept)
    if len(after.encode().encode()) <= CURSOR_BYTES:
        return after
    return Cursor(today, after.sequence, _by_slot(kept, today), shared=True)


def _by_slot(found: Digests, day: date) -> dict[Bucket, str]:
    """Return one digest for all collections of a slot, by day: a bounded number of digests."""
    members: dict[Bucket, list[str]] = defaultdict(list)
    for bucket, digest in found.items():
        members[_slot(bucket, day)].append(_BETWEEN.join([bucket[0], bucket[1].isoformat(), digest]))
    return {slot: _digest(_END.join(sorted(lines)).encode()) for slot, lines in members.items()}


def _slot(bucket: Bucket, day: date) -> Bucket:
    """Return the slot that a bucket goes into; days after the day after `day` share one."""
    return str(zlib.crc32(bucket[0].encode()) % SLOTS), min(bucket[1], _days_later(day, 2))


def _days_later(day: date, days: int) -> date:
    """Return the day so many days later; the first or the last day there is where that would be beyond it."""
    return date.fromordinal(min(max(day.toordinal() + days, date.min.toordinal()), date.max.toordinal()))


def _lines(series: pa.Table) -> pa.ChunkedArray:
    """Return each row as one text; different rows have different texts."""
    cells: Iterable[pa.ChunkedArray] = (pc.fill_null(pc.cast(c, pa.string()), _NULL) for c in series.columns)
    return pc.binary_join_element_wise(*cells, pa.scalar(_END), _BETWEEN)


def _digest(data: bytes) -> str:
    short = hashlib.sha256(data).digest()[:_DIGEST_BYTES]
    return base64.urlsafe_b64encode(short).decode().rstrip("=")
