"""What the lake holds by its receipts, and when the files of each series were last read again.

The notes are table ``verifications``, one partition per collection. They make verification go round: what was
found damaged comes first, until it is mended; then what was not looked at for longest. A fetch is a look, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.lake import Lake, Lock
from nbia_pipeline.lake.layout import series_path
from nbia_pipeline.schema.tables import IMAGE_SERIES, VERIFICATIONS

_COLUMNS = "SeriesInstanceUID StudyInstanceUID PatientID Bytes SeriesMD5 FetchedAt Proof".split()
_NOTED = "SeriesInstanceUID SeriesMD5 VerifiedAt Finding".split()


@dataclass(frozen=True)
class StoredSeries:
    """A series whose files shall be in the lake: its receipt says so.

    Attributes:
        collection: exact spelling.
        uid: SeriesInstanceUID.
        path: directory of its files, relative to the lake.
        bytes: sum of the sizes of its files.
        digest: SeriesMD5 of the receipt.
        seen: when its files were fetched or last read again.
        finding: what was wrong with them then, or None.
        proof: what proved them when they were fetched.
    """

    collection: str
    uid: str
    path: str
    bytes: int
    digest: str | None
    seen: datetime
    finding: str | None = None
    proof: str | None = None


@dataclass(frozen=True)
class VerifyResult:
    """What the files of a series are now.

    Attributes:
        held: the series.
        files: how many were read.
        bytes: how much that was.
        finding: what is wrong, None if they are as they were fetched.
        outdated: True if they are, but the archive has others now.
    """

    held: StoredSeries
    files: int
    bytes: int
    finding: str | None
    outdated: bool = False

    def __str__(self) -> str:
        return f"{self.held.collection}: series {self.held.uid}, {self.finding or 'as it was fetched'}"


def stored_series(lake: Lake, collection: str) -> list[StoredSeries]:
    """Return the series that the lake holds of a collection, in the order in which they want to be read again.

    These are the complete ones and those withdrawn ones whose files are there: receipts that state a size.

    Args:
        lake: the lake.
        collection: which partition.
    """
    receipts = lake.read_table(IMAGE_SERIES, collection, columns=_COLUMNS)
    rows = receipts.filter(pc.is_valid(receipts["Bytes"]))
    noted = lake.read_table(VERIFICATIONS, collection, columns=_NOTED)
    notes = {uid: rest for uid, *rest in _tuples(noted)}
    found = [_held(collection, row, notes.get(row[0])) for row in _tuples(rows)]
    return sorted(found, key=lambda h: (h.finding is None, h.seen, h.uid))


def note(lake: Lake, verdicts: Iterable[VerifyResult]) -> None:
    """Keep what was found, for the order of the next round and for the asset check.

    Raises:
        LakeError: the lake cannot be written.
    """
    by_collection: dict[str, list[dict[str, Any]]] = {}
    for verdict in verdicts:
        by_collection.setdefault(verdict.held.collection, []).append(_noted(verdict))
    for collection, rows in by_collection.items():
        fresh = pa.Table.from_pylist(rows, schema=VERIFICATIONS.schema)
        with lake.lock(Lock.VERIFICATIONS, collection):
            old = lake.read_table(VERIFICATIONS, collection)
            kept = old.filter(pc.invert(pc.is_in(old["SeriesInstanceUID"], fresh["SeriesInstanceUID"])))
            both = pa.concat_tables([kept, fresh]).sort_by("SeriesInstanceUID")
            lake.write_table(VERIFICATIONS, both, collection)


def _tuples(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def _held(collection: str, row: tuple[Any, ...], noted: list[Any] | None) -> StoredSeries:
    uid, study, patient, size, digest, fetched, proof = row
    path = series_path(collection, patient, study, uid)
    seen = fetched or datetime.min  # noqa: DTZ901 - the tables state no zone
    finding = None
    # A note about files that were fetched anew since says nothing about those that are there.
    if noted is not None and noted[0] == digest and noted[1] >= seen:
        seen, finding = noted[1:]
    return StoredSeries(collection, uid, path, size, digest, seen, finding, proof)


def _noted(verdict: VerifyResult) -> dict[str, Any]:
    held = verdict.held
    return {
        "SeriesInstanceUID": held.uid,
        "Collection": held.collection,
        "SeriesMD5": held.digest,
        "VerifiedAt": clock.utc_now(),
        "Finding": verdict.finding,
    }
