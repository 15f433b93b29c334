"""DICOM files byte by byte, as no library writes them."""

from __future__ import annotations

import struct
import zlib

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
BIG, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
CT = "1.2.840.10008.5.1.4.1.1.2"
PREAMBLE = bytes(128) + b"DICM"
UNDEFINED = b"\xff" * 4

_LONG_FORM = "OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()


def element(tag: int, vr: str | bytes, value: str | bytes = b"", order: str = "<") -> bytes:
    """Return an element; without a VR an implicit one."""
    content = value.encode("latin1") if isinstance(value, str) else value
    content += b"\0" * (len(content) % 2) if vr == "UI" or not vr else b" " * (len(content) % 2)
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if not vr:
        return head + struct.pack(order + "I", len(content)) + content
    if vr in _LONG_FORM:
        return head + str(vr).encode() + struct.pack(order + "HI", 0, len(content)) + content
    return head + (vr if isinstance(vr, bytes) else vr.encode()) + struct.pack(order + "H", len(content)) + content


def long_form(tag: int, vr: str, value: bytes) -> bytes:
    """Return an element in the long form, which its VR may not have."""
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr.encode(), 0, len(value)) + value


def short_form(tag: int, vr: str, value: bytes) -> bytes:
    """Return an element in the short form, which its VR may not have."""
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def nested(tag: int, content: bytes = b"", *, vr: str = "SQ", items: int = 1, order: str = "<") -> bytes:
    """Return a sequence of undefined length, with items of undefined length."""
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + (vr.encode() + b"\0\0" if vr else b"")
    inner = "<" if vr == "UN" else order
    start, end, last = (struct.pack(inner + "HH", 0xFFFE, n) for n in (0xE000, 0xE00D, 0xE0DD))
    return head + UNDEFINED + (start + UNDEFINED + content + end + bytes(4)) * items + last + bytes(4)


def deflated(content: bytes, wbits: int = -15) -> bytes:
    """Return deflated bytes: raw, or with the header of zlib."""
    stream = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return stream.compress(content) + stream.flush()


def meta(syntax: str | None = EXPLICIT, sop: str = "1.2.5.1", length: int | None = None) -> bytes:
    """Return the meta group; `length` overrules what it states to be its own."""
    group = element(0x00020002, "UI", CT) + element(0x00020003, "UI", sop)
    group += element(0x00020010, "UI", syntax) if syntax is not None else b""
    return element(0x00020000, "UL", struct.pack("<I", len(group) if length is None else length)) + group


def data_set(
    sop: str | bytes = "1.2.5.1",
    series: str | bytes = "1.2.5",
    number: str | bytes = "7",
    *,
    implicit: bool = False,
    order: str = "<",
    first: bytes = b"",
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """Return a data set with the identity of an instance.

    Args:
        sop: SOPInstanceUID.
        series: SeriesInstanceUID.
        number: InstanceNumber.
        implicit: whether there are no VRs.
        order: of the bytes.
        first: what comes before everything else.
        before: what comes between the two UIDs.
        after: what comes at the end.
    """

    def one(tag: int, vr: str, value: str | bytes) -> bytes:
        return element(tag, "" if implicit else vr, value, order)

    return (
        first
        + one(0x00080016, "UI", CT)
        + one(0x00080018, "UI", sop)
        + one(0x00080060, "CS", "CT")
        + before
        + one(0x00100010, "PN", "A^B")
        + one(0x0020000E, "UI", series)
        + one(0x00200013, "IS", number)
        + one(0x00280010, "US", struct.pack(order + "H", 8))
        + after
    )
