"""The statuses of a receipt, and the properties of a table's file as a whole."""

from __future__ import annotations

COMPLETE = "complete"
PENDING = "pending"
UNAVAILABLE = "unavailable"
QUARANTINED = "quarantined"
WITHDRAWN = "withdrawn"

# Properties of a table's file, kept beside its rows (:meth:`Lake.read_properties`). Every table from the
# archive has the first two.

LISTED_AT = "listed_at"
"""When the archive was asked: UTC, ISO 8601, the moment before the question."""

API = "api"
"""Dialect that it was asked in, ``v2`` or ``v4``: they serve other columns and other precisions of time."""

KEPT = "kept"
"""Of ``collections``: JSON list of the names or globs that said which collections to keep."""

CHANGES = "changes"
"""How many rows of ``series_changes`` the file accounts for: the feed is append-only, so that is a place in it."""

ABSENT_AT = "absent_at"
"""Of ``series_seen``: the last listing of all collections that was taken into account (its ``listed_at``)."""
