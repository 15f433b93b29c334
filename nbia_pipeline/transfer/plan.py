"""What is wanted minus what is there: the series to fetch, and their batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime, time
from typing import Any

import pyarrow as pa

COMPLETE = "complete"
PENDING = "pending"
UNAVAILABLE = "unavailable"
QUARANTINED = "quarantined"

BATCH_BYTES = 2_000_000_000
BATCH_SERIES = 200


@dataclass(frozen=True)
class WantedSeries:
    """A series as the archive lists it: who it is, and the fingerprint of its content.

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
        return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WantedSeries:
        """Return what :meth:`to_json` was made of."""
        times = {k: datetime.fromisoformat(values[k]) for k in ("TimeStamp", "DateReleased") if values[k]}
        return cls(**{**values, **times})


COLUMNS = [f.name for f in fields(WantedSeries)]


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        todo: the series to fetch, in the order of their UIDs.
        left: wanted as well, but beyond the bounds of this run.
        done: how many are in the lake, complete and with the same fingerprint.
    """

    todo: list[WantedSeries]
    left: list[WantedSeries]
    done: int


def wanted_series(series: pa.Table) -> list[WantedSeries]:
    """Return the rows of a ``series`` table as wanted series, in the order of their UIDs."""
    rows = series.select(COLUMNS).to_pylist()
    return sorted((WantedSeries(**row) for row in rows), key=lambda w: w.SeriesInstanceUID)


def make_plan(
    series: pa.Table, receipts: pa.Table, *, max_bytes: int | None = None, max_series: int | None = None
) -> Plan:
    """Compare what the archive lists with what the lake holds.

    Args:
        series: rows of the ``series`` table.
        receipts: rows of the ``image_series`` table, with those of the journal.
        max_bytes: most bytes to fetch, None for no bound; the first series is always planned.
        max_series: most series to fetch, None for no bound.
    """
    columns = [*COLUMNS, "Status"]
    complete = {r["SeriesInstanceUID"]: r for r in receipts.select(columns).to_pylist() if r["Status"] == COMPLETE}
    wanted = wanted_series(series)
    missing = [w for w in wanted if not same_content(w, complete.get(w.SeriesInstanceUID))]
    todo: list[WantedSeries] = []
    planned = 0
    for one in missing:
        planned += one.FileSize or 0
        if todo and ((max_bytes is not None and planned > max_bytes) or len(todo) == max_series):
            break
        todo.append(one)
    return Plan(todo, missing[len(todo) :], len(wanted) - len(missing))


def same_content(wanted: WantedSeries, receipt: dict[str, Any] | None) -> bool:
    """Tell whether a receipt is of the content that the archive lists now."""
    if receipt is None:
        return False
    same_numbers = (wanted.ImageCount, wanted.FileSize) == (receipt["ImageCount"], receipt["FileSize"])
    return (
        same_numbers
        and _same_time(wanted.TimeStamp, receipt["TimeStamp"])
        and _same_time(wanted.DateReleased, receipt["DateReleased"])
    )


def _same_time(a: datetime | None, b: datetime | None) -> bool:
    """Compare two times; one that is a bare day (v4 keeps no more) equals any time of that day."""
    if a is None or b is None or a == b:
        return a == b
    return a.date() == b.date() and time(0) in (a.time(), b.time())


def batches(
    todo: Iterable[WantedSeries], max_bytes: int = BATCH_BYTES, max_series: int = BATCH_SERIES
) -> Iterator[list[WantedSeries]]:
    """Cut the series to fetch into batches bounded by bytes and count; each holds one series at least."""
    batch: list[WantedSeries] = []
    size = 0
    for one in todo:
        if batch and (size + (one.FileSize or 0) > max_bytes or len(batch) == max_series):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one.FileSize or 0
    if batch:
        yield batch
