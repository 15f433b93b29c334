"""Lakes whose tables are written row by row: series, their instances, and what these refer to. There are no files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from nbia_pipeline.headers.graph.resolve import resolve_references
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.headers import INSTANCE_HEADERS, INSTANCE_REFERENCES, SERIES_REFERENCES
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES

CT, OTHER, LISTED, GONE, SEG = "1.2.10", "1.2.20", "1.2.40", "1.2.50", "1.2.60"
IMAGES, RESULTS = "Images", "Results"


def rows(table: Table, values: Iterable[dict[str, Any]]) -> pa.Table:
    """Return rows of a table, null but for some values."""
    return pa.Table.from_pylist([{**dict.fromkeys(table.schema.names), **row} for row in values], table.schema)


class World:
    """A lake whose tables are written from lists of rows."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._rows: dict[tuple[Table, str], list[dict[str, Any]]] = {}

    def add(self, table: Table, collection: str, *values: dict[str, Any]) -> None:
        """Add rows to one collection of a table."""
        known = self._rows.setdefault((table, collection), [])
        known += [{"Collection": collection, **row} for row in values]
        known.sort(key=lambda row: (row["SeriesInstanceUID"], row.get("SOPInstanceUID") or ""))
        self.lake.write_table(table, rows(table, known), collection)

    def series(self, uid: str, collection: str, modality: str, images: int, *, held: bool = True, **more: Any) -> None:
        """Add a series with images ``<uid>.1`` and so on, of which the lake has the files if it is held."""
        about = {"SeriesInstanceUID": uid, "StudyInstanceUID": "1.1", "PatientID": "P1", "ImageCount": images, **more}
        self.add(SERIES, collection, {**about, "Modality": modality})
        status = {"Status": "complete", "Bytes": images} if held else {"Status": "pending"}
        self.add(IMAGE_SERIES, collection, {**about, **status})
        if held:
            self.add(INSTANCES, collection, *(instance(uid, n) for n in range(1, images + 1)))

    def refer(
        self, uid: str, collection: str, stated: str | None, *targets: str | None, role: str = "described"
    ) -> None:
        """Add references of the first instance of a series."""
        source = {"SeriesInstanceUID": uid, "SOPInstanceUID": f"{uid}.1", "Role": role, "Times": 1}
        named = {"StatedSeriesInstanceUID": stated}
        edges = ({**source, **named, "ReferencedSOPInstanceUID": target} for target in targets)
        self.add(INSTANCE_REFERENCES, collection, *edges)

    def head(self, uid: str, collection: str, modality: str, frame: str | None, study: str = "1.1") -> None:
        """Add the row of the header of the first instance of a series."""
        known = {"SOPInstanceUID": f"{uid}.1", "SeriesInstanceUID": uid, "StudyInstanceUID": study}
        self.add(INSTANCE_HEADERS, collection, {**known, "Modality": modality, "FrameOfReferenceUID": frame})

    def resolved(self, collection: str = RESULTS) -> dict[tuple[str, str, str | None], tuple[Any, ...]]:
        """Return the resolution, targets, missing ones and the collection by series, role and other series."""
        names = ("Resolution", "ReferencedInstances", "Missing", "ReferencedCollection")
        found = resolve_references(self.lake, collection).to_pylist()
        key = SERIES_REFERENCES.key
        assert len({tuple(row[k] for k in key) for row in found}) == len(found)
        return {tuple(row[k] for k in key): tuple(row[name] for name in names) for row in found}


def instance(uid: str, number: int) -> dict[str, Any]:
    """Return the row of an instance of a series."""
    return {"SOPInstanceUID": f"{uid}.{number}", "SeriesInstanceUID": uid, "InstanceNumber": number}


def few_series(lake: Lake) -> World:
    """Two CTs of four and two images and an MR that is not fetched in one collection, and a SEG in another one."""
    world = World(lake)
    world.series(CT, IMAGES, "CT", 4)
    world.series(OTHER, IMAGES, "CT", 2)
    world.series(LISTED, IMAGES, "MR", 3, held=False, StudyInstanceUID="1.9")
    world.series(SEG, RESULTS, "SEG", 1)
    return world
