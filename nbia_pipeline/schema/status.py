"""The statuses of a receipt, and the properties of a table's file."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

COMPLETE = "complete"
"""All files of the series are in the lake, verified."""

PENDING = "pending"
"""The series is listed and not fetched yet, or must be fetched again."""

UNAVAILABLE = "unavailable"
"""The archive lists the series and refuses its files."""

QUARANTINED = "quarantined"
"""The files that the archive sends could not be verified."""

WITHDRAWN = "withdrawn"
"""The archive no longer lists the series; its files stay until they are pruned."""

# Properties of a table's file, kept with its rows (:meth:`Lake.read_properties`). Every table from the archive has
# the first two.

LISTED_AT = "listed_at"
"""When the archive was asked: UTC, ISO 8601, the moment before the request."""

API = "api"
"""Dialect of the request, ``v2`` or ``v4``: they serve different columns and different precisions of time."""

KEPT = "kept"
"""Of ``collections``: JSON list of the names or globs of the collections to keep."""

ARCHIVE = "archive"
"""Of ``collections``: the first part of the asset keys of the archive that the lake belongs to, and its address."""

CHANGES = "changes"
"""How many rows of ``series_changes`` the file accounts for: the feed is append-only, so this is a position in it."""

SELECTION = "selection"
"""Of ``selected_series``: the entry of the setting ``select`` that it was read for, as JSON."""

SERVED = "served"
"""Of ``series_metadata``: the columns that the calls serve by which it was fetched, separated by blanks."""

ABSENT_AT = "absent_at"
"""Of ``series_seen``: ``listed_at`` of the last list of collections that lacked this one, if it was recorded."""

HOLDS = "holds"
"""Of a part of ``instance_headers``: MD5 of the series in it, each as ``SeriesInstanceUID:SeriesMD5``, sorted."""

SHARDS = "shards"
"""Of the same: how many parts the collection has."""


def with_files(status: pa.ChunkedArray, size: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return for each receipt whether the lake has the files of its series; those of a withdrawn one stay.

    Args:
        status: column Status of the receipts.
        size: column Bytes of the receipts.
    """
    withdrawn = pc.and_(pc.equal(status, WITHDRAWN), pc.is_valid(size))
    return pc.fill_null(pc.or_kleene(pc.equal(status, COMPLETE), withdrawn), False)


def _is_time(text: str) -> bool:
    return datetime.fromisoformat(text).tzinfo is None


def _are_names(text: str) -> bool:
    names = json.loads(text)
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


_KINDS: dict[str, Callable[[str], bool]] = {
    LISTED_AT: _is_time,
    ABSENT_AT: _is_time,
    KEPT: _are_names,
    SHARDS: lambda text: text in ("1", "4", "16", "64", "256"),
    CHANGES: lambda text: text.isdecimal() and len(text) <= len(str(2**63)),
}


def is_property(name: str, value: str) -> bool:
    """Return whether a value states what the property of that name does, so that its readers can rely on it."""
    try:
        return name not in _KINDS or _KINDS[name](value)
    except (ValueError, RecursionError):
        return False
