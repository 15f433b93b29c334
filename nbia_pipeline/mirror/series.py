"""A series as the archive lists it, and whether a receipt is of that content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from typing import Any, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.lake.table_file import Rows, pieces_of
from nbia_pipeline.schema.arrow import places_in, same_times, same_values, taken
from nbia_pipeline.schema.status import with_files
from nbia_pipeline.schema.tables import SERIES


@dataclass(frozen=True)
class WantedSeries:
    """A series as the archive lists it: its identity, and the fingerprint of its content.

    Attributes:
        SeriesInstanceUID: DICOM (0020,000E).
        StudyInstanceUID: DICOM (0020,000D).
        PatientID: DICOM (0010,0020).
        Collection: exact spelling.
        ImageCount: number of instances.
        FileSize: sum of the sizes of the files in bytes.
        TimeStamp: last submission of any image.
        DateReleased: release.
    """

    SeriesInstanceUID: str
    StudyInstanceUID: str
    PatientID: str
    Collection: str
    ImageCount: int | None
    FileSize: int | None
    TimeStamp: datetime | None
    DateReleased: datetime | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, for a step of another process."""
        return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WantedSeries:
        """Return what :meth:`to_json` was made of."""
        times = {k: datetime.fromisoformat(values[k]) for k in TIMES if values[k]}
        return expect_types(cls(**{**values, **times}))


T = TypeVar("T")


def expect_types(record: T) -> T:
    """Return a record that was read from JSON, whose values have the types of its fields, or are null.

    Raises:
        TypeError: one has another, or is a number beyond 64 bits.
    """
    kind: type = type(record)
    for name, types in _types_of(kind).items():
        value = getattr(record, name)
        if value is not None and (not isinstance(value, types) or (isinstance(value, int) and value.bit_length() > 63)):
            raise TypeError(f"{name} is {value!r}")
    return record


@cache
def _types_of(kind: type) -> dict[str, tuple[type, ...]]:
    """Return what values the fields of a class may have: of ``int | None`` and the like the part that is not null."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        parts = get_args(hint) if type(None) in get_args(hint) else (get_origin(hint) or hint,)
        found[name] = tuple(part for part in parts if part is not type(None))
    return found


COLUMNS = [f.name for f in fields(WantedSeries)]
TIMES = ("TimeStamp", "DateReleased")
FINGERPRINT = ("ImageCount", "FileSize", *TIMES)
"""What the content of a series is recognized by."""
IDENTITY = ("StudyInstanceUID", "PatientID")
"""What the path of its files says about a series besides its UID and collection: the archive may revise it."""
NEWER = tuple(f"Newer{name}" for name in FINGERPRINT)
"""Columns of a receipt: the fingerprint of the newer version that could not be fetched."""
NO_NEWER = dict.fromkeys(("RefreshFailedAt", *NEWER))
"""Their values in a receipt without such a version."""


def wanted_series(series: Rows) -> list[WantedSeries]:
    """Return the rows of a ``series`` table as wanted series, in the order of their UIDs."""
    rows = (row for piece in pieces_of(series, COLUMNS) for row in piece.to_pylist())
    return sorted((WantedSeries(**row) for row in rows), key=lambda w: w.SeriesInstanceUID)


def collections_of(wanted: Iterable[WantedSeries]) -> list[str]:
    """Return the collections of some series, sorted."""
    return sorted({w.Collection for w in wanted})


def named(collections: Sequence[str]) -> str:
    """Return the name of a collection, or how many collections there are."""
    return collections[0] if len(collections) == 1 else f"{len(collections)} collections"


def as_table(wanted: Iterable[WantedSeries]) -> pa.Table:
    """Return wanted series as rows of a ``series`` table, with the columns that they have."""
    schema = pa.schema([SERIES.schema.field(name) for name in COLUMNS])
    return pa.Table.from_pylist([vars(w) for w in wanted], schema=schema)


# --- is it in the lake?


class InOrder:
    """The columns of rows, in another order or with some left out; each is read when it is asked for.

    Args:
        rows: the rows.
        at: their places; null for a row that is all null.
    """

    def __init__(self, rows: Rows, at: pa.Array) -> None:
        self._rows = rows
        self.at = at

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        return taken(self._rows[column], self.at)


def in_order_of(series: Rows, receipts: Rows) -> InOrder:
    """Return, for every row of `series`, the row of `receipts` of the same series; all null where there is none."""
    return InOrder(receipts, places_in(series["SeriesInstanceUID"], receipts["SeriesInstanceUID"]))


Columns: TypeAlias = Rows | InOrder
"""What gives its columns by their names."""


def has_files(receipts: Columns) -> pa.ChunkedArray:
    """Return for each receipt whether the lake has the files of its series; those of a withdrawn one stay."""
    return with_files(receipts["Status"], receipts["Bytes"])


def refresh_failed(receipts: Columns) -> pa.ChunkedArray:
    """Return for each receipt whether the lake has the series, but its newest version could not be fetched."""
    return pc.and_(has_files(receipts), pc.is_valid(receipts["RefreshFailedAt"]))


def same_contents(series: Columns, receipts: Columns) -> pa.ChunkedArray:
    """Return for each series whether the receipt in its row is of the series as the archive lists it now.

    That is its content, and the patient and study that it belongs to. Null equals null, and nothing else. A time that
    is a bare day (v4 keeps no more) equals any time of that day.

    Args:
        series: rows of a ``series`` table.
        receipts: their receipts, as :func:`in_order_of` returns them.
    """
    same = same_fingerprints(series, receipts, FINGERPRINT)
    for name in IDENTITY:
        same = pc.and_(same, same_values(series[name], receipts[name]))
    return same


def same_fingerprints(series: Columns, receipts: Columns, fingerprint: Sequence[str]) -> pa.ChunkedArray:
    """Return for each series whether some columns of the receipt in its row are the fingerprint of its content.

    Args:
        series: rows of a ``series`` table.
        receipts: their receipts, as :func:`in_order_of` returns them.
        fingerprint: the columns of the receipts; ``NEWER`` for the version that could not be fetched.
    """
    same = pc.is_valid(receipts["SeriesInstanceUID"])
    for name, column in zip(FINGERPRINT, fingerprint, strict=True):
        equal = same_times if name in TIMES else same_values
        same = pc.and_(same, equal(series[name], receipts[column]))
    return same


def same_content(one: WantedSeries, other: WantedSeries) -> bool:
    """Return whether two listings of a series are of the same content."""
    return bool(same_contents(as_table([one]), as_table([other]))[0].as_py())
