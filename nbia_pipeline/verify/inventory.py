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
from nbia_pipeline.reading.sql import write_catalog
from nbia_pipeline.schema.arrow import among, places_in, same_values, taken
from nbia_pipeline.schema.tables import IMAGE_SERIES, VERIFICATIONS
from nbia_pipeline.text import logger

log = logger(__name__)

_UID = "SeriesInstanceUID"
_RECEIPT = [_UID, *"StudyInstanceUID PatientID Bytes SeriesMD5 Proof".split()]
# Series that are in memory at a time.
PART_SERIES = 10_000
_NEVER = pa.scalar(datetime.min, pa.timestamp("us"))  # noqa: DTZ901 - the tables state no zone
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


class Inventory:
    """The series of a collection that are in the lake: complete ones, and withdrawn ones whose files are there.

    These are the receipts that state a size. Only some of them are in memory at a time.

    Args:
        lake: the lake.
        collection: which partition.
        only: UIDs of the series, None for all.
    """

    def __init__(self, lake: Lake, collection: str, only: frozenset[str] | None = None) -> None:
        self.collection = collection
        self._receipts = lake.read_file(IMAGE_SERIES, collection)
        results = read_or_empty(lake, VERIFICATIONS, collection, _RESULT, lost=LOST)
        sizes, uids = self._receipts["Bytes"], self._receipts[_UID]
        stored = pc.is_valid(sizes) if only is None else pc.and_(pc.is_valid(sizes), among(uids, only))
        self.bytes: int = pc.sum(sizes.filter(stored)).as_py() or 0
        self._rows = pc.indices_nonzero(stored)
        checked_at = pc.fill_null(self._receipts["FetchedAt"].filter(stored), _NEVER)
        finding = pa.chunked_array([pa.nulls(len(self), pa.string())])
        if results.num_rows:
            at = places_in(uids.filter(stored), results[_UID])
            digest, when, found = (taken(results[name], at) for name in _RESULT[1:])
            same = same_values(digest, self._receipts["SeriesMD5"].filter(stored))
            # A result from before the last fetch is not about the files that are there now.
            valid = pc.fill_null(pc.and_(same, pc.greater_equal(when, checked_at)), False)
            checked_at = pc.if_else(valid, when, checked_at)
            finding = pc.if_else(valid, found, pa.scalar(None, pa.string()))
        self._state = pa.table([pc.is_null(finding), checked_at, finding], ["sound", "checked_at", "finding"])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def damaged(self) -> int:
        """How many were found damaged, and have not been fetched again since."""
        return pc.sum(pc.invert(self._state["sound"])).as_py() or 0

    @property
    def urgency(self) -> tuple[bool, datetime]:
        """The smallest of all: what was found damaged, then what has gone unchecked for longest."""
        sound = self._state["sound"]
        first = pc.min(sound).as_py()
        if first is None:
            return True, datetime.max  # noqa: DTZ901 - the tables state no zone
        return first, pc.min(self._state["checked_at"].filter(pc.equal(sound, first))).as_py()

    def __iter__(self) -> Iterator[StoredSeries]:
        """Yield the series in the order in which they should be read again."""
        uids = taken(self._receipts[_UID], self._rows)
        order = [(name, "ascending") for name in ("sound", "checked_at", _UID)]
        places = pc.sort_indices(self._state.append_column(_UID, uids), sort_keys=order)
        del uids
        for first in range(0, len(places), PART_SERIES):
            here = places.slice(first, PART_SERIES)
            rows = self._rows.take(here)
            stored = pc.is_in(pa.array(range(self._receipts.num_rows), rows.type), value_set=rows)
            # As they are in the file, which may be another order.
            receipts = self._receipts.filter(stored, _RECEIPT).take(pc.sort_indices(pc.sort_indices(rows)))
            state = self._state.select(["checked_at", "finding"]).take(here)
            for row in zip(*(column.to_pylist() for column in [*receipts.columns, *state.columns]), strict=True):
                yield _stored(self.collection, *row)


def stored_series(lake: Lake, collection: str, only: frozenset[str] | None = None) -> list[StoredSeries]:
    """Return the series of an :class:`Inventory`, in its order."""
    return list(Inventory(lake, collection, only))


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
        write_catalog(lake)
    except LakeError as e:
        log.warning("cannot record which series were verified; the next run begins with them again: %s", e)


def _stored(
    collection: str,
    uid: str,
    study: str,
    patient: str,
    size: int,
    digest: str | None,
    verified_by: str | None,
    checked_at: datetime,
    finding: str | None,
) -> StoredSeries:
    path = series_path(collection, patient, study, uid)
    return StoredSeries(collection, uid, path, size, digest, checked_at, finding, verified_by)
