"""What the tables of the archive and the receipts say of some series, in whatever collection they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.parquet import Among
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.status import COMPLETE, WITHDRAWN
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES, SERIES_SEEN

_UID = "SeriesInstanceUID"
_BOTH = [_UID, "StudyInstanceUID", "PatientID", "ImageCount"]


@dataclass(frozen=True, slots=True)
class KnownSeries:
    """One series.

    Attributes:
        collection: the collection that has its files, else one that lists it.
        study: StudyInstanceUID.
        patient: PatientID.
        modality: None if it is not listed, and never was.
        instances: of the files that the lake has, else as the archive lists them.
        held: whether the lake has its files.
        listed: whether the archive lists it.
    """

    collection: str
    study: str | None
    patient: str | None
    instances: int | None
    modality: str | None = None
    held: bool = False
    listed: bool = False


def known_series(lake: Lake, uids: Collection[str], first: str = "") -> dict[str, KnownSeries]:
    """Return what the lake knows of some series, by their UIDs; those that it does not know are left out.

    Args:
        lake: the lake.
        uids: which series.
        first: the collection in which most of them are, if that is known.

    Raises:
        LakeError: the lake cannot be read.
    """
    found: dict[str, KnownSeries] = {}
    left = set(uids)
    for name in sorted(_collections(lake), key=lambda name: (name != first, name)):
        if left:
            for uid, one in series_of(lake, name, left).items():
                if one.held or uid not in found:
                    found[uid] = one
            left -= {uid for uid in left if uid in found and found[uid].held}
    return found


def _collections(lake: Lake) -> set[str]:
    return {*lake.collections_of(SERIES), *lake.collections_of(IMAGE_SERIES)}


def series_of(lake: Lake, name: str, uids: Collection[str]) -> dict[str, KnownSeries]:
    """Return what one collection has of some series; see :func:`known_series`."""
    listed = {row[_UID]: row for row in _rows(lake, SERIES, name, uids, [*_BOTH, "Modality"])}
    receipts = _rows(lake, IMAGE_SERIES, name, uids, [*_BOTH, "Status", "Bytes"])
    # As mirror/series.py:has_files, of a package above this one.
    held = {
        r[_UID]: r for r in receipts if r["Status"] == COMPLETE or (r["Status"] == WITHDRAWN and r["Bytes"] is not None)
    }
    unlisted = held.keys() - listed.keys()
    seen = {row[_UID]: row for row in _rows(lake, SERIES_SEEN, name, unlisted, [_UID, "Modality"])} if unlisted else {}
    found = {}
    for uid in listed.keys() | held.keys():
        about = held.get(uid) or listed[uid]
        modality = (listed.get(uid) or seen.get(uid) or {}).get("Modality")
        found[uid] = KnownSeries(
            name,
            about["StudyInstanceUID"],
            about["PatientID"],
            about["ImageCount"],
            modality,
            held=uid in held,
            listed=uid in listed,
        )
    return found


def _rows(
    lake: Lake, table: Table, collection: str, uids: Collection[str], columns: list[str]
) -> Iterator[dict[str, Any]]:
    for piece in lake.read_pieces(table, collection, columns, where=(_UID, Among(uids))):
        yield from piece.filter(among(piece[_UID], uids)).to_pylist()
