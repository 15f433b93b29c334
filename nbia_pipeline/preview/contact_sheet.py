"""The contact sheet of a collection: a picture in the lake, drawn again only if it would change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.layout import contact_sheet_path
from nbia_pipeline.lake.table_file import Rows
from nbia_pipeline.preview.choose import Chosen, choose, digest_of
from nbia_pipeline.preview.pixels import NotDrawable, jpeg_extra, phases_of, picture_of
from nbia_pipeline.preview.sheet import Tile, as_png, digest_in, draw_sheet
from nbia_pipeline.schema.tables import INSTANCES

VERSION = "2"
"""Increase it when the drawing changes, so that old sheets are drawn again."""


@dataclass(frozen=True)
class ContactSheet:
    """The picture of a collection.

    Attributes:
        path: of the file, relative to the lake.
        png: its content.
        series: how many it shows.
        drawn: True if it was drawn now, False if the one in the lake was still valid.
        undrawn: why images are not drawn, by SeriesInstanceUID; only of a sheet that was drawn now.
    """

    path: str
    png: bytes
    series: int
    drawn: bool
    undrawn: dict[str, str] = field(default_factory=dict)


def contact_sheet(lake: Lake, collection: str, receipts: Rows, series: Rows) -> ContactSheet | None:
    """Return the contact sheet of a collection; None if none of its series is in the lake.

    One file of each chosen series is read (two if it has phases), and none if the sheet in the lake is still valid.

    Args:
        receipts: the collection's rows of ``image_series``.
        series: its rows of ``series``.

    Raises:
        LakeError: the picture cannot be written. A series that cannot be read gets a tile with the reason.
    """
    chosen = choose(receipts, series)
    if not chosen:
        return None
    path = contact_sheet_path(collection)
    digest = _digest(chosen)
    old = lake.read_bytes(path)
    if old is not None and digest_in(old) == digest:
        return ContactSheet(path, old, len(chosen), drawn=False)
    images = [c for c in chosen if c.label_only is None]
    files = files_in_order(lake, collection, images)
    tiles = [_tile(lake, one, files.get(one.SeriesInstanceUID, [])) for one in chosen]
    png = as_png(draw_sheet(collection, tiles), digest)
    lake.put_bytes(path, png)
    failed = {t.chosen.SeriesInstanceUID: t.note for t in tiles if t.note and t.chosen.label_only is None}
    return ContactSheet(path, png, len(chosen), drawn=True, undrawn=failed)


def _digest(chosen: Sequence[Chosen]) -> str:
    """Return the digest of a sheet; another one where the extra for JPEG may draw what had only a label."""
    return digest_of(chosen, f"{VERSION}+jpeg" if jpeg_extra() else VERSION)


def _tile(lake: Lake, chosen: Chosen, paths: list[str]) -> Tile:
    if chosen.label_only is not None:
        return Tile(chosen, note=chosen.label_only)
    if not paths:
        return Tile(chosen, note="not drawn: none of its files is in the index")
    try:
        with lake.open(middle_of(paths)) as file:
            phases = phases_of(file)
            if phases == 1 or len(paths) % phases:
                return Tile(chosen, picture_of(file, chosen.Modality))
        with lake.open(middle_of(paths, phases)) as file:
            return Tile(chosen, picture_of(file, chosen.Modality))
    except (NotDrawable, LakeError) as e:
        return Tile(chosen, note=f"not drawn: {e}")


def middle_of(paths: Sequence[str], phases: int = 1) -> str:
    """Return the middle file of a series, or of its middle phase: the middle of all files may be the end of a phase."""
    slices = len(paths) // phases
    return paths[phases // 2 * slices + slices // 2]


def files_in_order(lake: Lake, collection: str, chosen: Sequence[Chosen]) -> dict[str, list[str]]:
    """Return the paths of the files of each series, by SeriesInstanceUID, in the order of InstanceNumber."""
    columns = ["SeriesInstanceUID", "InstanceNumber", "SOPInstanceUID", "Path"]
    found = lake.read_rows(INSTANCES, collection, "SeriesInstanceUID", {c.SeriesInstanceUID for c in chosen}, columns)
    by_series: dict[str, list[str]] = defaultdict(list)
    for row in sorted(found.to_pylist(), key=lambda r: (r["InstanceNumber"] or 0, r["SOPInstanceUID"])):
        by_series[row["SeriesInstanceUID"]].append(row["Path"])
    return by_series
