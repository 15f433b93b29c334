"""Headers of files as rows of ``instance_headers``, ``instance_references`` and ``annotations``."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from nbia_pipeline.headers.graph.edges import Edge, edges
from nbia_pipeline.headers.graph.regions import Region, regions
from nbia_pipeline.headers.parse.charset import replaced
from nbia_pipeline.headers.parse.elements import Odd
from nbia_pipeline.headers.parse.header import Header, More
from nbia_pipeline.headers.parse.odd import read_odd
from nbia_pipeline.headers.parse.typed import INDEX, NAMES
from nbia_pipeline.headers.parse.walker import Walker
from nbia_pipeline.schema.headers import ANNOTATIONS, INSTANCE_HEADERS, INSTANCE_REFERENCES
from nbia_pipeline.schema.tables import Table

_STUDY, _PATIENT, _CLASS = (INDEX[name] for name in ("StudyInstanceUID", "PatientID", "SOPClassUID"))
_OF_FILE = ("ElementCount", "HeaderBytes", "PixelDataOffset", "PixelDataLength", "Header", "FileMeta", "Omitted")
_OWN = ("SOPInstanceUID", "SeriesInstanceUID", "Collection", "SeriesMD5", "Path")

_LONGEST_REMEMBERED, _MOST_REMEMBERED = 4096, 1000

# The files of a series may be in several batches, and each thread reads its own.
_of_thread = threading.local()


class Known(NamedTuple):
    """What the lake knows of a file, from its receipt and from table ``instances``; its size is in bytes."""

    SOPInstanceUID: str
    SeriesInstanceUID: str
    StudyInstanceUID: str | None
    PatientID: str | None
    Collection: str
    SOPClassUID: str | None
    SeriesMD5: str | None
    Path: str
    Size: int | None = None


class Batch:
    """Files whose headers are read, best one series after the other; then the rows of the tables of all of them."""

    def __init__(self) -> None:
        self._walker: Walker = _of_thread.__dict__.setdefault("walker", Walker())
        self._known: list[Known] = []
        self._values: list[list[Any]] = []
        self._of_file: list[tuple[Any, ...]] = []
        self._problems: list[list[str] | None] = []
        self._edges: list[tuple[Any, ...]] = []
        self._regions: list[tuple[Any, ...]] = []
        self._referred: dict[Any, tuple[list[Edge], list[Region], list[str]]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, known: Known, head: bytes, size: int, more: More) -> None:
        """Read the header of a file; whatever the file contains, this makes a row.

        Args:
            known: what the lake knows of it.
            head: its first bytes, 64 KiB if it has as many.
            size: of the file in bytes.
            more: returns other bytes of it, from an offset on; its errors are raised.
        """
        try:
            found = self._walker.read(known.Path, head, size, more)
        except Odd:
            found = read_odd(known.Path, head, size, more)
        values = found.values
        if found.json is None:
            values[_STUDY], values[_PATIENT] = known.StudyInstanceUID, known.PatientID
            values[_CLASS] = known.SOPClassUID
        if found.top:
            self._refer(known, found)
        self._known.append(known)
        self._values.append(values)
        offset, length = found.pixels
        omitted = _omitted(found) if found.omitted else None
        self._of_file.append((found.elements, found.size, offset, length, found.json, found.meta, omitted))
        self._problems.append(found.problems or None)

    def _refer(self, known: Known, found: Header) -> None:
        """Take references and annotations; slices of a series often have the same ones."""
        kind, (buffer, explicit) = found.values[_CLASS] or "", (found.buffer, found.explicit)
        key: Any = None
        if all(length <= _LONGEST_REMEMBERED for _, _, _, length in found.top):
            contents = [(tag, vr, buffer[at : at + length]) for tag, vr, at, length in found.top]
            key = (kind, explicit, found.encodings, *contents)
        referred = self._referred.get(key)
        if referred is None:
            problems: list[str] = []
            text = partial(replaced, encodings=found.encodings)
            of_edges = edges(kind, found.top, buffer, explicit, text, problems)
            of_regions = regions(kind, found.top, buffer, explicit, text, problems, of_edges)
            referred = of_edges, of_regions, problems
            if key and len(self._referred) < _MOST_REMEMBERED:
                self._referred[key] = referred
        own = (known.SOPInstanceUID, known.SeriesInstanceUID, known.Collection)
        self._edges += [(*own, kind or None, known.SeriesMD5, *edge) for edge in referred[0]]
        self._regions += [(*own, *region) for region in referred[1]]
        found.problems += referred[2]

    def tables(self) -> dict[str, pa.Table]:
        """Return the tables by name, with the rows of the files in the order in which they were added."""
        headers: dict[str, Iterable[Any]] = {name: [getattr(k, name) for k in self._known] for name in _OWN}
        headers.update(_columns(NAMES, self._values))
        headers.update(_columns(_OF_FILE, self._of_file))
        headers["Problems"] = self._problems
        own = ("SOPInstanceUID", "SeriesInstanceUID", "Collection")
        of_edges = _columns((*own, "SOPClassUID", "SeriesMD5", *Edge._fields), self._edges)
        of_regions = _columns((*own, *Region._fields), self._regions)
        return {
            table.name: _table(table, columns)
            for table, columns in (
                (INSTANCE_HEADERS, headers),
                (INSTANCE_REFERENCES, of_edges),
                (ANNOTATIONS, of_regions),
            )
        }


def _omitted(found: Header) -> list[tuple[str, str, int, int]]:
    return [(f"{tag:08X}", vr, offset, length) for tag, vr, offset, length in found.omitted]


def _columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Iterable[Any]]:
    return dict(zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True))


def _table(table: Table, columns: dict[str, Iterable[Any]]) -> pa.Table:
    schema = table.schema
    return pa.Table.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
