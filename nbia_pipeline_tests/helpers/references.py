"""What pydicom finds of the references of a file, element by element; and what the readers of references are given."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import NamedTuple

import pydicom
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from nbia_pipeline.headers.graph.edges import MANAGEMENT, NO_FILES, Edge, edges
from nbia_pipeline.headers.graph.regions import Region, regions
from nbia_pipeline.headers.parse.elements import ITEM, ITEM_END, SEQUENCE_END, Odd, walk

RT_STUDY = 0x30060012


class Opened(NamedTuple):
    """A data set as :func:`nbia_pipeline.headers.graph.edges.edges` takes it."""

    sop_class: str
    top: list[tuple[int, str, int, int]]
    buffer: bytes
    explicit: bool


def opened(file: bytes) -> Opened:
    """Return the data set of a file; what is not plain little endian, or has no meta group, is written anew."""
    data = pydicom.dcmread(io.BytesIO(file), force=True)
    syntax = data.file_meta.get("TransferSyntaxUID") if hasattr(data, "file_meta") else None
    length = data.file_meta.get("FileMetaInformationGroupLength") if syntax else None
    if syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian) and length is not None:
        at = 144 + length
        with contextlib.suppress(Odd):
            return of_bytes(file[at:], syntax == ExplicitVRLittleEndian, str(data.get("SOPClassUID", "")))
    return of_dataset(data)


def of_dataset(data: Dataset) -> Opened:
    """Return the sequences of a data set, written in explicit little endian."""
    some = Dataset()
    for element in data:
        if element.VR == "SQ" or element.tag == 0x00620001:
            some.add(element)
    return of_bytes(encoded(some), True, str(data.get("SOPClassUID", "")))


def encoded(data: Dataset, *, implicit: bool = False) -> bytes:
    """Return the bytes of a data set, in little endian."""
    target = DicomBytesIO()
    target.is_little_endian, target.is_implicit_VR = True, implicit
    write_dataset(target, data)
    return target.getvalue()


def of_bytes(buffer: bytes, explicit: bool, sop_class: str) -> Opened:
    """Return a data set with the places of its top-level elements."""
    top, depth = [], 0
    for element in walk(buffer, 0, len(buffer), explicit):
        if element[0] in (ITEM, ITEM_END):
            depth += 1 if element[0] == ITEM else -1
        elif not depth and element[0] != SEQUENCE_END:
            top.append(element)
    return Opened(sop_class, top, buffer, explicit)


def edges_of(what: Opened, problems: list[str] | None = None) -> list[Edge]:
    """Return the references of a data set in ASCII or Latin-1."""
    return edges(*what, lambda raw: raw.decode("latin1"), problems)


def regions_of(what: Opened, problems: list[str] | None = None, references: list[Edge] | None = None) -> list[Region]:
    """Return the segments and ROIs of a data set in ASCII or Latin-1."""
    return regions(*what, lambda raw: raw.decode("latin1"), problems, references)


def by_pydicom(data: Dataset, around: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield each reference to a file that pydicom finds: tags of the sequences around it, and the UID."""
    for element in data:
        if element.VR == "SQ":
            for item in element.value:
                yield from by_pydicom(item, (*around, int(element.tag)))
        elif element.tag == 0x00081155 and _names_a_file(data, around):
            values = [element.value] if element.VM == 1 else element.value or ()
            yield from ((around, name) for value in values if (name := str(value).strip(" \0\t\r\n")))


def _names_a_file(data: Dataset, around: tuple[int, ...]) -> bool:
    kind = str(data.get("ReferencedSOPClassUID", ""))
    return not set(around) & NO_FILES and around[-1:] != (RT_STUDY,) and not kind.startswith(MANAGEMENT)
