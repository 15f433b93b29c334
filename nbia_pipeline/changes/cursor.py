"""What the feed of updated series said last time, and what is new in it: kept small, whatever it says.

getUpdatedSeries answers "released after this day", by days, and releases can be dated back. So it is asked from a
week before the last time, and what was seen then is subtracted. What was seen is kept as one digest for all that a
collection released on a day: a series more, one less, or any other value in its row is another digest.

Whatever is lost here is found by the next listing of the whole collection; nothing here decides about content.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

OVERLAP = timedelta(days=7)
CURSOR_BYTES = 8_000
SLOTS = 32

_VERSION = 1
_DIGEST_BYTES = 8
_NULL, _BETWEEN, _END = "\x00", "\x1f", "\x1e"

Bucket = tuple[str, date]
"""What a collection released on a day."""

Seen = Mapping[Bucket, str]
"""Digest by bucket."""


class CursorError(ValueError):
    """A cursor that cannot be read; the text says what one looks like."""


@dataclass(frozen=True)
class Cursor:
    """Where the sensor stands.

    Attributes:
        day: day (UTC) of the last time that the feed was read whole.
        edition: counts the ticks that brought news. A series that is hidden, shown, hidden and shown again brings
            the same news twice; the edition tells them apart.
        seen: digest by bucket. Where those of each collection would take too much room, the collections share
            `SLOTS` slots, whose numbers stand in the place of their names.
        shared: whether they do.
    """

    day: date
    edition: int
    seen: Seen = field(default_factory=dict)
    shared: bool = False

    def since(self, today: date) -> date:
        """Return the day to ask from: the overlap before the last time, and at the latest before today."""
        return min(self.day, today) - OVERLAP

    def sees(self, since: date) -> bool:
        """Tell whether something was seen that an answer from `since` on should hold again."""
        return any(day > since for _, day in self.seen)

    def encode(self) -> str:
        """Return the cursor as text."""
        seen: dict[str, dict[str, str]] = defaultdict(dict)
        for (place, day), digest in sorted(self.seen.items()):
            seen[day.isoformat()][place] = digest
        known = {"v": _VERSION, "day": self.day.isoformat(), "edition": self.edition, "shared": self.shared}
        return json.dumps({**known, "seen": seen}, ensure_ascii=False, separators=(",", ":"))


def first_cursor(day: date, now: datetime) -> Cursor:
    """Return a cursor that has seen nothing.

    Args:
        day: releases from a week before this day on are asked for.
        now: the present moment: what is new after a fresh start is never taken for what was new before it.
    """
    return Cursor(day, edition=int((now - datetime(1970, 1, 1)).total_seconds()))  # noqa: DTZ001 - both without a zone


def read_cursor(text: str | None, now: datetime) -> Cursor | None:
    """Return the cursor of a text; None where there is none yet.

    A plain day, like ``2026-01-01``, is what a person may set: everything since then (and the week before it) is
    news.

    Raises:
        CursorError: the text is neither.
    """
    if not text or not text.strip():
        return None
    try:
        return first_cursor(date.fromisoformat(text.strip()), now)
    except ValueError:
        pass  # not a day, so it is one of ours
    try:
        known = json.loads(text)
        if known["v"] != _VERSION:
            raise CursorError(f"the cursor is of version {known['v']}, this program writes {_VERSION}: {_REMEDY}")
        seen = {(p, date.fromisoformat(d)): str(x) for d, places in known["seen"].items() for p, x in places.items()}
        return Cursor(date.fromisoformat(known["day"]), int(known["edition"]), seen, bool(known["shared"]))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, CursorError):
            raise
        raise CursorError(f"the cursor {text[:60]!r} cannot be read: {_REMEDY}") from e


_REMEDY = "set it to a day to start from, like 2026-01-01, or empty it to start from now"


def buckets_of(series: pa.Table, since: date) -> dict[Bucket, str]:
    """Return the digest of each bucket of an answer.

    Only whole days count: of `since` itself the archive sends the releases with a time of day, and not those at
    midnight. A row without a collection belongs to none and is left out.

    Args:
        series: rows of getUpdatedSeries, with ``Collection`` and ``DateReleased``; every column counts.
        since: the day that was asked for.
    """
    days = pc.cast(series["DateReleased"], pa.date32(), safe=False)
    rows = pa.table({"Collection": series["Collection"], "Day": days, "Line": _lines(series)})
    rows = rows.filter(pc.and_(pc.is_valid(rows["Collection"]), pc.greater(days, pa.scalar(since))))
    if not rows.num_rows:
        return {}
    rows = rows.sort_by([(name, "ascending") for name in rows.column_names])
    sizes = rows.group_by(["Collection", "Day"]).aggregate([([], "count_all")])
    sizes = sizes.sort_by([("Collection", "ascending"), ("Day", "ascending")])
    ends = np.cumsum(sizes["count_all"].to_numpy())
    offsets, text = _text_of(rows["Line"])
    digests: dict[Bucket, str] = {}
    begin = 0
    for collection, day, end in zip(sizes["Collection"].to_pylist(), sizes["Day"].to_pylist(), ends, strict=True):
        digests[collection, day] = _digest(text[offsets[begin] : offsets[end]])
        begin = end
    return digests


def news_of(before: Cursor, found: Seen) -> dict[str, str]:
    """Return the collections with buckets that are new or other than before, each with a name for its news.

    The name is the same for the same news after the same cursor, and another one otherwise. Buckets that are gone
    are no news: only a listing of the whole collection can tell what happened to them.

    Args:
        before: what was seen the last time.
        found: what was found now, from ``before.since(today)`` on.
    """
    changes: dict[str, list[str]] = defaultdict(list)
    now = _share(found, before.day) if before.shared else found
    for bucket, digest in found.items():
        place = _slot(bucket, before.day) if before.shared else bucket
        if before.seen.get(place) != now[place]:
            changes[bucket[0]].append(f"{bucket[1]} {before.seen.get(place)} {digest}")
    return {
        collection: _digest(_BETWEEN.join([str(before.edition), *sorted(lines)]).encode())
        for collection, lines in sorted(changes.items())
    }


def next_cursor(before: Cursor, found: Seen, today: date, news: bool) -> Cursor:
    """Return the cursor after an answer was dealt with.

    What an answer of the next time cannot hold any more is dropped, and so is what has vanished: a series that
    returns is news again.

    Args:
        before: the cursor of this time.
        found: the digests of the answer.
        today: the present day (UTC).
        news: whether there was any.
    """
    kept = {bucket: digest for bucket, digest in found.items() if bucket[1] > today - OVERLAP}
    after = Cursor(today, before.edition + news, kept)
    if len(after.encode().encode()) <= CURSOR_BYTES:
        return after
    return Cursor(today, after.edition, _share(kept, today), shared=True)


def _share(found: Seen, day: date) -> dict[Bucket, str]:
    """Return one digest for all collections of a slot, by day: a bounded number, whatever was released."""
    members: dict[Bucket, list[str]] = defaultdict(list)
    for bucket, digest in found.items():
        members[_slot(bucket, day)].append(_BETWEEN.join([bucket[0], bucket[1].isoformat(), digest]))
    return {slot: _digest(_END.join(sorted(lines)).encode()) for slot, lines in members.items()}


def _slot(bucket: Bucket, day: date) -> Bucket:
    """Return the slot that a bucket goes into; days after the day after `day` share one."""
    return str(zlib.crc32(bucket[0].encode()) % SLOTS), min(bucket[1], day + timedelta(days=2))


def _lines(series: pa.Table) -> pa.ChunkedArray:
    """Return each row as one text that tells it from any other."""
    cells: Iterable[pa.ChunkedArray] = (pc.fill_null(pc.cast(c, pa.string()), _NULL) for c in series.columns)
    return pc.binary_join_element_wise(*cells, pa.scalar(_END), _BETWEEN)


def _text_of(lines: pa.ChunkedArray) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], memoryview]:
    """Return the offsets of texts and their bytes, without a Python object for each."""
    large = pa.concat_arrays([c.cast(pa.large_string()) for c in lines.chunks])
    _, offsets, text = large.buffers()
    return np.frombuffer(offsets, np.int64, len(large) + 1, large.offset * 8), memoryview(text)


def _digest(data: bytes | memoryview) -> str:
    short = hashlib.sha256(data).digest()[:_DIGEST_BYTES]
    return base64.urlsafe_b64encode(short).decode().rstrip("=")
