"""What a lake has of each collection and how fresh that is, as its tables say; no file of an image is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow.compute as pc

from nbia_pipeline.changes.present import present_series
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.damage import read_or_empty
from nbia_pipeline.mirror.commit import current_receipts
from nbia_pipeline.mirror.plan import compare
from nbia_pipeline.mirror.receipt import problem_rows
from nbia_pipeline.mirror.selection import NotRead, Selections
from nbia_pipeline.mirror.series import has_files
from nbia_pipeline.schema.headers import INSTANCE_HEADERS
from nbia_pipeline.schema.status import COMPLETE, LISTED_AT, QUARANTINED, UNAVAILABLE, WITHDRAWN
from nbia_pipeline.schema.tables import SERIES, VERIFICATIONS
from nbia_pipeline.verify.inventory import LOST, Inventory
from nbia_pipeline.verify.refetch import unrepaired


@dataclass(frozen=True)
class CollectionStatus:
    """What the lake has of a collection.

    Attributes:
        listed: series that the archive listed last.
        wanted: those of them whose images are wanted.
        complete: those of these whose files are in the lake, verified and in their present version.
        pending: wanted series that are to be fetched.
        quarantined: series whose files could not be verified.
        unavailable: series whose files the archive refuses.
        withdrawn: series that the archive no longer lists, and whose files are in the lake.
        bytes: size of all image files of the collection in the lake.
        listed_at: when the series were listed (UTC); None if they never were.
        fetched_at: when the last series was fetched (UTC).
        verified_at: when the files of a series were last read again (UTC).
        headers: files whose headers are in the tables.
        damaged: series whose files were found damaged and not fetched again yet.
        problems: series that are not in the lake in their newest version, and why.
        note: what a person should know besides.
    """

    listed: int
    wanted: int
    complete: int
    pending: int
    quarantined: int
    unavailable: int
    withdrawn: int
    bytes: int
    listed_at: datetime | None
    fetched_at: datetime | None
    verified_at: datetime | None
    headers: int = 0
    damaged: int = 0
    problems: list[dict[str, str]] = field(default_factory=list)
    note: str | None = None

    @property
    def in_order(self) -> bool:
        """Whether nothing is missing or damaged but what is only not fetched yet."""
        return not (self.problems or self.damaged)


def status_of(lake: Lake, collection: str, selections: Selections, *, mirrored: bool) -> CollectionStatus:
    """Return what the lake has of a collection.

    Args:
        lake: the lake.
        collection: exact spelling.
        selections: which series are wanted.
        mirrored: whether images of the collection are wanted at all.

    Raises:
        LakeError: a table is damaged or cannot be read.
    """
    series = present_series(lake, collection)
    wanted, note = SERIES.schema.empty_table(), None
    try:
        wanted = selections.wanted(lake, collection, series) if mirrored else wanted
    except NotRead as e:
        note = str(e)
    receipts = current_receipts(lake, collection, series, wanted)
    missing = compare(wanted, receipts)
    status, stored = receipts["Status"], has_files(receipts)
    checks = read_or_empty(lake, VERIFICATIONS, collection, lost=LOST)
    listed_at = lake.read_properties(SERIES, collection).get(LISTED_AT)
    return CollectionStatus(
        listed=series.num_rows,
        wanted=wanted.num_rows,
        complete=missing.done_figures.series,
        pending=len(missing.never),
        quarantined=_count(status, QUARANTINED),
        unavailable=_count(status, UNAVAILABLE),
        withdrawn=pc.sum(pc.and_(pc.equal(status, WITHDRAWN), stored)).as_py() or 0,
        bytes=pc.sum(receipts["Bytes"].filter(stored)).as_py() or 0,
        listed_at=datetime.fromisoformat(listed_at) if listed_at else None,
        fetched_at=pc.max(receipts["FetchedAt"].filter(pc.equal(status, COMPLETE))).as_py(),
        verified_at=pc.max(checks["VerifiedAt"]).as_py(),
        headers=lake.count_rows(INSTANCE_HEADERS, collection),
        damaged=Inventory(lake, collection).damaged + unrepaired(lake, collection),
        problems=problem_rows(receipts),
        note=note,
    )


def _count(status: Any, value: str) -> int:
    return pc.sum(pc.equal(status, value)).as_py() or 0
