"""Elements that pydicom has read, as explicit little endian ones, with their values byte for byte.

So the rules of :mod:`nbia_pipeline.headers.parse.json` hold for them as for any file.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack
from typing import Any

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from nbia_pipeline.headers.parse.elements import LONG_FORM, SHORT_FORM, UNDEFINED, Creators, vr_of
from nbia_pipeline.headers.parse.json import PIXEL_REPRESENTATION, settled
from nbia_pipeline.headers.parse.source import BIG, EXPLICIT, IMPLICIT

Value = bytes | list[Dataset] | None

_UNITS = {"AT": 2, "US": 2, "SS": 2, "UL": 4, "SL": 4, "FL": 4, "FD": 8, "SV": 8, "UV": 8}
_LONGEST_UNKNOWN = 0xFFFF
_STATED_LONG = frozenset(LONG_FORM.values())
_STATED = _STATED_LONG.union(SHORT_FORM.values())


def members(data: Dataset, signed: bool = False) -> Iterator[tuple[int, str, Value]]:
    """Yield the elements of a data set, tags ascending: tag, VR and value.

    A value is bytes in little endian, or the items of a sequence; of a sequence that cannot be read it is its bytes.
    It is None if pydicom has not read it, since it is large.

    Args:
        data: the data set.
        signed: whether PixelRepresentation of the data set around it is 1.
    """
    creators: Creators = {}
    signed = is_signed(data, signed)
    # All of them first: pydicom converts some elements when it is asked for others.
    all_of_them: list[tuple[int, Any]] = [
        (int(tag), data.get_item(tag, keep_deferred=True)) for tag in sorted(data.keys())
    ]
    for tag, found in all_of_them:
        vr, raw = _vr(found, creators), found.value
        if isinstance(raw, bytes) and tag & 0x10000 and 0x10 <= tag & 0xFFFF < 0x100:
            creators[tag & 0xFFFF0000 | (tag & 0xFF) << 8] = raw
        if vr == "SQ":
            yield tag, vr, _items(data, found)
            continue
        if isinstance(found, DataElement):
            raw = as_bytes(raw)
        elif raw is not None and not found.is_little_endian:
            raw = _swapped(vr, raw)
        elif raw is None and not found.length:
            raw = b""
        yield tag, settled(vr, signed, len(raw or b"")), raw


def as_bytes(value: object) -> bytes:
    """Return a value as bytes, also one that pydicom has converted for its own use: texts, such as a character set."""
    if isinstance(value, bytes):
        return value
    texts = value if isinstance(value, MultiValue) else [value] if isinstance(value, str) else []
    return "\\".join(map(str, texts)).encode("latin1", "replace")


def syntax_of(data: Dataset) -> bytes:
    """Return a transfer syntax that elements of a data set have, which may not be the one that the file states."""
    for tag in sorted(data.keys()):
        found: Any = data.get_item(tag, keep_deferred=True)
        if isinstance(found, RawDataElement):
            return IMPLICIT if found.is_implicit_VR else EXPLICIT if found.is_little_endian else BIG
    return EXPLICIT


def is_signed(data: Dataset, around: bool = False) -> bool:
    """Return whether PixelRepresentation of a data set is 1."""
    stated: Any = data.get_item(PIXEL_REPRESENTATION, keep_deferred=True) if PIXEL_REPRESENTATION in data else None
    value = getattr(stated, "value", None)
    return b"\1" in value if isinstance(value, bytes) else around


def encoded(tag: int, vr: str, value: Value, signed: bool = False) -> bytes:
    """Return an element as an explicit little endian one.

    Raises:
        ValueError: what it has inside cannot be read.
    """
    if vr == "SQ" and isinstance(value, bytes):
        raise ValueError(f"sequence {tag:08X} cannot be read")
    content = value if isinstance(value, bytes) else b"".join(_item(item, signed) for item in value or ())
    head = pack("<HH", tag >> 16, tag & 0xFFFF)
    if vr in _STATED_LONG:
        return head + vr.encode() + pack("<HL", 0, len(content)) + content
    if len(content) > 0xFFFF:
        return head + pack("<2sHL", b"UN", 0, len(content)) + content
    return head + pack("<2sH", vr.encode("latin1")[:2], len(content)) + content


def _item(item: Dataset, signed: bool) -> bytes:
    signed = is_signed(item, signed)
    content = b"".join(encoded(tag, vr, value, signed) for tag, vr, value in members(item, signed))
    return pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


def _items(data: Dataset, found: RawDataElement | DataElement) -> Value:
    if isinstance(found, RawDataElement):
        if found.value is None and found.length:
            return None
        try:
            value = data[found.tag].value
        except Exception:  # noqa: BLE001 - pydicom raises anything for the bytes of a broken sequence
            return found.value or b""
        return list(value) if isinstance(value, Sequence) else found.value or b""
    return list(found.value) if isinstance(found.value, Sequence) else []


def _vr(found: RawDataElement | DataElement, creators: Creators) -> str:
    """Return the VR as :func:`~nbia_pipeline.headers.parse.elements.element` does; see pydicom's ``raw_element_vr``."""
    vr = str(found.VR) if found.VR is not None else ""
    tag = int(found.tag)
    short = not isinstance(found, RawDataElement) or found.length < _LONGEST_UNKNOWN
    if vr and not (vr == "UN" and (tag & 0x10000 or short)):
        return vr if vr in _STATED else "UN"
    known = vr_of(tag, creators.get(tag & 0xFFFFFF00, b""))
    if known == "UN" and isinstance(found, RawDataElement) and found.length == UNDEFINED:
        return "OB"
    return known


def _swapped(vr: str, value: bytes) -> bytes:
    size = _UNITS.get(vr)
    if size is None or len(value) % size:
        return value
    swapped = bytearray(len(value))
    for n in range(size):
        swapped[n::size] = value[size - 1 - n :: size]
    return bytes(swapped)
