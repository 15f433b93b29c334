"""The series next to some series in the reference graph, as table ``series_references`` has it."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import pyarrow.compute as pc

from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.headers import SERIES_REFERENCES

_UID, _TARGET = "SeriesInstanceUID", "ReferencedSeriesInstanceUID"
_COLUMNS = [_UID, "Collection", _TARGET, "ReferencedCollection", "Resolution", "Stated"]


class Neighbor(NamedTuple):
    """A series that one of some given series refers to, or that refers to one of them.

    Attributes:
        SeriesInstanceUID: of the neighbor.
        Collection: the collection that it is in; None if that is not known.
        Of: SeriesInstanceUID of the given series.
        Resolution: of the reference: held, listed, elsewhere, moved or unknown.
    """

    SeriesInstanceUID: str
    Collection: str | None
    Of: str
    Resolution: str


def neighbors(lake: Lake, series_uids: Collection[str], *, annotations: bool) -> list[Neighbor]:
    """Return the neighbors of some series by the references that files state, each pair once.

    What follows from a common FrameOfReferenceUID only is left out, and so are references of a series to itself. The
    tables know of the files that the asset ``headers`` has read, and of no others.

    Args:
        lake: whose table ``series_references`` is read, of all collections.
        series_uids: the given series.
        annotations: return what refers to them; else what they refer to.

    Raises:
        LakeError: the lake cannot be read.
    """
    given, found = (_TARGET, _UID) if annotations else (_UID, _TARGET)
    collection = "Collection" if annotations else "ReferencedCollection"
    pairs: dict[tuple[str, str], Neighbor] = {}
    for name in lake.collections_of(SERIES_REFERENCES):
        rows = lake.read_table(SERIES_REFERENCES, name, _COLUMNS)
        chosen = pc.and_(among(rows[given], series_uids), pc.and_(rows["Stated"], pc.is_valid(rows[found])))
        for row in rows.filter(chosen).to_pylist():
            if row[_UID] != row[_TARGET]:
                one = Neighbor(row[found], row[collection], row[given], row["Resolution"])
                pairs.setdefault((one.SeriesInstanceUID, one.Of), one)
    return list(pairs.values())
