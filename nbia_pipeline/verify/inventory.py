"""The series whose files should be in the lake by their receipts, and when these files were last checked.

Results are kept in table ``verifications``, one partition per collection. They set the order of verification: series
that were found damaged come first, until they are fetched again; then those that have gone unchecked for longest. A
fetch counts as a check.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.lake import Lake, LakeError, Lock
from nbia_pipeline.lake.damage import read_or_empty
from nbia_pipeline.lake.layout import series_path
from nbia_pipeline.schema.tables import IMAGE_SERIES, VERIFICATIONS
from nbia_pipeline.text import logger

log = logger(__name__)

_RECEIPT = "SeriesInstanceUID StudyInstanceUID PatientID Bytes SeriesMD5 FetchedAt Proof".split()
LOST = "When series were last read again is not known: they are read in the order in which they were fetched"
_RESULT = "SeriesInstanceUID SeriesMD5 VerifiedAt Finding".split()


@dataclass(frozen=True)
class StoredSeries:
    """A series whose files should be in the lake, by its receipt.

    Attributes:
        collection: exact spelling.
        uid: SeriesInstanceUID.
        path: directory of its files, relative to the lake.
        bytes: sum of the sizes of its files.
        digest: SeriesMD5 of the receipt.
        checked_at: when its files were fetched or last read again (UTC).
        finding: what was wrong with them then, or None.
        verified_by: how they were verified when they were fetched: column Proof of the receipt.
    """

    collection: str
    uid: str
    path: str
    bytes: int
    digest: str | None
    checked_at: datetime
    finding: str | None = None
    verified_by: str | None = None


@dataclass(frozen=True)
class VerifyResult:
    """How the files of a series compare with its receipt.

    Attributes:
        series: the series.
        files: how many were read.
        bytes: how much that was.
        finding: what is wrong, None if they are unchanged since they were fetched.
        outdated: True if they are, but the archive has others now.
    """

    series: StoredSeries
    files: int
    bytes: int
    finding: str | None
    outdated: bool = False

    def __str__(self) -> str:
        return f"{self.series.collection}: series {self.series.uid}, {self.finding or 'as it was fetched'}"


def stored_series(lake: Lake, collection: str, only: frozenset[str] | None = None) -> list[StoredSeries]:
    """Return the series of a collection that are in the lake, in the order in which they should be read again.

    These are the complete ones, and those withdrawn ones whose files are there: receipts that state a size.

    Args:
        lake: the lake.
        collection: which partition.
        only: UIDs of the series, None for all.
    """
    receipts = lake.read_table(IMAGE_SERIES, collection, columns=_RECEIPT)
    results = {uid: rest for uid, *rest in _tuples(read_or_empty(lake, VERIFICATIONS, collection, _RESULT, lost=LOST))}
    rows = _tuples(receipts.filter(pc.is_valid(receipts["Bytes"])))
    stored = [_stored(collection, row, results.get(row[0])) for row in rows if only is None or row[0] in only]
    return sorted(stored, key=lambda s: (s.finding is None, s.checked_at, s.uid))


def record(lake: Lake, results: Iterable[VerifyResult]) -> None:
    """Keep results, for the order of the next verification and for the asset check; warn where that fails."""
    by_collection: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_collection[result.series.collection].append(
            {
                "SeriesInstanceUID": result.series.uid,
                "Collection": result.series.collection,
                "SeriesMD5": result.series.digest,
                "VerifiedAt": clock.utc_now(),
                "Finding": result.finding,
            }
        )
    try:
        for collection, rows in by_collection.items():
            fresh = pa.Table.from_pylist(rows, schema=VERIFICATIONS.schema)
            with lake.lock(Lock.VERIFICATIONS, collection):
                old = read_or_empty(lake, VERIFICATIONS, collection, lost=LOST)
                kept = old.filter(pc.invert(pc.is_in(old["SeriesInstanceUID"], fresh["SeriesInstanceUID"])))
                both = pa.concat_tables([kept, fresh]).sort_by("SeriesInstanceUID")
                lake.write_table(VERIFICATIONS, both, collection)
    except LakeError as e:
        log.warning("cannot record which series were verified; the next run begins with them again: %s", e)


def _tuples(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def _stored(collection: str, row: tuple[Any, ...], result: list[Any] | None) -> StoredSeries:
    uid, study, patient, size, digest, fetched, verified_by = row
    path = series_path(collection, patient, study, uid)
    checked_at = fetched or datetime.min  # noqa: DTZ901 - the tables state no zone
    finding = None
    # A result from before the last fetch is not about the files that are there now.
    if result is not None and result[0] == digest and result[1] >= checked_at:
        checked_at, finding = result[1:]
    return StoredSeries(collection, uid, path, size, digest, checked_at, finding, verified_by)
