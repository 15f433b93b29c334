"""What identifies a DICOM file: four elements near its beginning, and nothing else of it.

The archive's own file is right even if it is an odd one, so this reader accepts whatever leaves the identity readable:
no preamble, prefix or meta group, another encoding than the one stated, elements out of order, anything broken after
the identity. It looks at 1 MiB at most, of a deflated file after inflating, however large the file is or claims to be.
A full parser takes 200 to 330 µs for an ordinary file, and inflates a deflated one as a whole; this one takes 50.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from nbia_pipeline.lake.layout import NAME_BYTES

MOST_BYTES = 1 << 20
"""So much of a file is looked at; what lies between, such as a large private element, is skipped unread."""
MOST_ELEMENTS = 1 << 15
"""So many elements are walked, those inside sequences included: as many as fit in 1 MiB if they have contents."""

_HEAD_BYTES = 1 << 14
_PIECE_BYTES = 1 << 10

_PREFIX = b"DICM"
_PREAMBLE = 128
_DEFLATED = (b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.95", b"1.2.840.10008.1.2.4.205")
_UNDEFINED = 0xFFFFFFFF
_LONGEST_VALUE = 1024
_LONGEST_UID = NAME_BYTES - len(".dcm")  # 64 in the standard; a file is named by it

_TRANSFER_SYNTAX = 0x00020010
_SOP_CLASS = 0x00080016
_SOP_INSTANCE = 0x00080018
_SERIES = 0x0020000E
_INSTANCE_NUMBER = 0x00200013
_TAGS = frozenset({_SOP_CLASS, _SOP_INSTANCE, _SERIES, _INSTANCE_NUMBER})
_NEEDED = {_SOP_INSTANCE: "SOPInstanceUID", _SERIES: "SeriesInstanceUID"}

_DELIMITERS = 0xFFFE
_ENDS = (0xFFFEE00D, 0xFFFEE0DD)  # of an item, of a sequence
_NEAR = 0x100 << 16
_NO_TEXT = 0x2020  # a length below this has no letter or sign where a VR would be

_HEAD = 8  # bytes of a tag, and of a length or a VR with a short one

_LONG_FORM = "OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()


class NotDicom(Exception):
    """A file that cannot be attributed to an instance and its series; the text says why."""


class _Broken(Exception):
    """The elements do not go on at this position."""


class _TooFar(Exception):
    """What is looked for does not come early enough."""


@dataclass(frozen=True)
class Header:
    """What identifies an instance.

    Attributes:
        SOPInstanceUID: DICOM (0008,0018).
        SeriesInstanceUID: DICOM (0020,000E).
        SOPClassUID: DICOM (0008,0016), or None.
        InstanceNumber: DICOM (0020,0013), or None where it is absent or not a number that a column can hold.
    """

    SOPInstanceUID: str
    SeriesInstanceUID: str
    SOPClassUID: str | None
    InstanceNumber: int | None


def read_header(file: bytes | Path) -> Header:
    """Return the header of a DICOM file.

    The elements of the data set count, whatever the meta group says.

    Args:
        file: its whole contents, or its path.

    Raises:
        NotDicom: it is empty, not DICOM, or its SOPInstanceUID and SeriesInstanceUID cannot be read.
    """
    with file.open("rb") if isinstance(file, Path) else io.BytesIO(file) as opened:
        return header_of(opened)


def header_of(file: BinaryIO) -> Header:
    """Return the header of an open DICOM file, of which 1 MiB is read at most; see :func:`read_header`."""
    plain = _Source(file)
    if not plain.size:
        raise NotDicom("it is empty (0 bytes)")
    best = None
    for found in _attempts(plain):
        if header := found.header():
            return header
        if best is None or len(found.values) > len(best.values):
            best = found
    if best is not None and (best.values or plain.prefixed):
        raise NotDicom(best.problem())
    if plain.prefixed:
        raise NotDicom("it has no data set that can be read")
    raise NotDicom(f"it is not DICOM: it begins with {plain.beginning!r}")


# --- the bytes


class _Source:
    """A file, read in pieces as far as they are needed.

    Attributes:
        size: of the file.
        prefixed: whether it has DICOM's prefix.
        beginning: what a person may recognize it by.
        buffer: a part of it.
        base: the position of this part.
        elements: how many elements were walked.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.buffer = head = file.read(_HEAD_BYTES)
        self.base = self.elements = 0
        self.beginning = head[:16]
        self.prefixed = _PREFIX in (head[:4], head[_PREAMBLE : _PREAMBLE + 4])
        self._left = MOST_BYTES - len(head)
        self._file = file

    def part(self, at: int, size: int) -> bytes:
        """Return the `size` bytes at a position; raises like :meth:`load`."""
        index = at - self.base
        if index < 0 or index + size > len(self.buffer):
            self.load(at, size)
            index = 0
        return self.buffer[index : index + size]

    def load(self, at: int, size: int) -> None:
        """Let `buffer` begin with the `size` bytes at a position.

        Raises:
            _Broken: there are not so many.
            _TooFar: more than `MOST_BYTES` would have been looked at.
        """
        if at + size > self.size:
            raise _Broken
        if size > self._left:
            raise _TooFar
        self._file.seek(at)
        self.base, self.buffer = at, self._file.read(min(max(size, _PIECE_BYTES), self._left))
        self._left -= len(self.buffer)
        if len(self.buffer) < size:  # of what was inflated in part
            raise _TooFar


def _inflated(file: _Source, at: int) -> _Source:
    """Return the first MiB of the deflated rest of a file."""
    # The standard wants raw deflate. No such stream begins like the header of zlib, which some writers add.
    first, second = file.part(at, 2)
    stream = zlib.decompressobj(15 if first & 15 == 8 and (first << 8 | second) % 31 == 0 else -15)
    plain = bytearray()
    try:
        while len(plain) < MOST_BYTES and not stream.eof and at < file.size:
            piece = file.part(at, min(_PIECE_BYTES, file.size - at))
            plain += stream.decompress(piece, MOST_BYTES - len(plain))
            at += len(piece)
    except (zlib.error, _TooFar):  # what came before is enough, perhaps
        pass
    source = _Source(io.BytesIO(plain))
    if len(plain) == MOST_BYTES:
        source.size = sys.maxsize
    return source


# --- elements


class _Encoding:
    """How elements are written. Explicit ones may have implicit ones among them, as sequences do."""

    def __init__(self, *, little: bool, explicit: bool) -> None:
        order: Literal["little", "big"] = "little" if little else "big"
        letters = range(ord("A"), ord("Z") + 1)
        self.explicit = explicit
        # Group, number, VR as a number, and length; where there is no VR, both are the length.
        self.head = struct.Struct("<4H" if little else ">4H").unpack_from
        self.long = struct.Struct("<I" if little else ">I").unpack_from
        self.long_form = frozenset(int.from_bytes(vr.encode(), order) for vr in _LONG_FORM)
        self.short_form = frozenset(int.from_bytes((a, b), order) for a in letters for b in letters) - self.long_form
        self.unknown = int.from_bytes(b"UN", order)


_LITTLE = _Encoding(little=True, explicit=True)
_LITTLE_IMPLICIT = _Encoding(little=True, explicit=False)
_BIG = _Encoding(little=False, explicit=True)

# What may come before the data set, by its first two bytes.
_META_GROUPS = {b"\2\0": _LITTLE, b"\0\2": _BIG, b"\0\0": _LITTLE_IMPLICIT}
_MOST_META_ELEMENTS = 200

_Element = tuple[int, int, int, _Encoding]
"""Tag, position of the body, its length, and how the elements in a body of undefined length are written."""


def _element(source: _Source, at: int, encoding: _Encoding) -> _Element:
    """Return the element at a position."""
    source.elements += 1
    if source.elements > MOST_ELEMENTS:
        raise _TooFar
    index = at - source.base
    if index < 0 or index + _HEAD > len(source.buffer):  # as source.part does it, which costs a call
        source.load(at, _HEAD)
        index = at - source.base
    group, number, vr, short = encoding.head(source.buffer, index)
    tag = group << 16 | number
    (length,) = encoding.long(source.buffer, index + 4)
    if not encoding.explicit or group == _DELIMITERS or length == _UNDEFINED:
        return tag, at + 8, length, encoding
    if vr in encoding.short_form:
        if short or _goes_on(source, at + 8, tag, encoding):
            return tag, at + 8, short, encoding
        return _either(source, at, tag, vr, short, encoding)
    if vr in encoding.long_form:
        return _long_form(source, at, tag, vr, encoding) if not short else _either(source, at, tag, vr, short, encoding)
    if length < _NO_TEXT:  # an implicit element
        return tag, at + 8, length, encoding
    fits = [n for n in (length, short) if _goes_on(source, at + 8 + n, tag, encoding)]  # or a VR that is none
    return tag, at + 8, [*fits, length][0], encoding


def _long_form(source: _Source, at: int, tag: int, vr: int, encoding: _Encoding) -> _Element:
    (length,) = encoding.long(source.part(at + 8, 4))
    # The contents of an unknown sequence are little endian and implicit, whatever is around it (CP-246).
    return tag, at + 12, length, _LITTLE if vr == encoding.unknown else encoding


def _either(source: _Source, at: int, tag: int, vr: int, short: int, encoding: _Encoding) -> _Element:
    """Return an element that may have its length at either place: some writers mistake the form.

    They use the long form for every VR, or for none, or for those that they do not know. What follows shows which.
    """
    try:
        element = _long_form(source, at, tag, vr, encoding)
    except _Broken:
        return tag, at + 8, short, encoding
    _, body, length, _ = element
    undefined = length == _UNDEFINED and vr in encoding.long_form
    return element if undefined or _goes_on(source, body + length, tag, encoding) else (tag, at + 8, short, encoding)


def _goes_on(source: _Source, at: int, tag: int, encoding: _Encoding) -> bool:
    """Return whether the element that follows comes after `tag`, and not far after it."""
    try:
        group, number, _, _ = encoding.head(source.part(at, _HEAD))
    except (_Broken, _TooFar):
        return False
    following: int = group << 16 | number
    return group == _DELIMITERS or tag < following < tag + _NEAR


def _after(source: _Source, element: _Element) -> int:
    """Return where an element ends; what has no length is walked, item by item."""
    _, at, length, encoding = element
    if length != _UNDEFINED:
        return at + length
    around = [encoding]
    while around:
        tag, at, length, encoding = _element(source, at, around[-1])
        if tag in _ENDS:
            around.pop()
        elif length == _UNDEFINED:
            around.append(encoding)
        else:
            at += length
    return at


# --- the identity


class _Found:
    """The values that one reading of the file found, and how it ended where it did not reach all."""

    def __init__(self) -> None:
        self.values: dict[int, bytes] = {}
        self.ended = ""

    def text(self, tag: int) -> str:
        """Return a value without padding; empty if it is absent or not text."""
        # Of several values, the archive has the first.
        value = self.values.get(tag, b"").split(b"\0")[0].split(b"\\")[0].strip()
        text = value.decode("ascii") if value.isascii() else ""
        return text if text.isprintable() and len(text) <= _LONGEST_UID else ""

    def identified(self) -> bool:
        """Return whether the instance and its series are known."""
        return bool(self.text(_SOP_INSTANCE) and self.text(_SERIES))

    def header(self) -> Header | None:
        """Return what was found; None if the instance or its series is not known."""
        sop, series, kind, number = map(self.text, (_SOP_INSTANCE, _SERIES, _SOP_CLASS, _INSTANCE_NUMBER))
        return Header(sop, series, kind or None, _number(number)) if sop and series else None

    def problem(self) -> str:
        """Return why the file cannot be attributed."""
        tag, name = next((tag, name) for tag, name in _NEEDED.items() if not self.text(tag))
        if tag not in self.values:
            return f"it has no {name}{self.ended}"
        value = self.values[tag].strip(b"\0 ")
        return f"its {name} is not a UID: {value[:64]!r}" if value else f"its {name} is empty"


def _attempts(file: _Source) -> Iterator[_Found]:
    """Yield what is found by each reading of the file that makes sense, the likeliest first."""
    for start in _starts(file):
        try:
            syntax, at = _meta(file, start)
            if syntax in _DEFLATED:
                yield from _readings(_inflated(file, at), 0)
        except (_Broken, _TooFar):
            continue
        yield from _readings(file, at)


def _starts(file: _Source) -> tuple[int, ...]:
    if file.prefixed:
        return (4 if file.beginning.startswith(_PREFIX) else _PREAMBLE + 4,)
    return 0, _PREAMBLE


def _meta(file: _Source, at: int) -> tuple[bytes, int]:
    """Return the TransferSyntaxUID of the meta group, empty if it has none, and where the data set begins.

    The group ends with its last element: the length that it states is not always right. A command group, as of a
    message that was saved as it came, is passed over as well.
    """
    syntax = b""
    for _ in range(_MOST_META_ELEMENTS):
        encoding = _META_GROUPS.get(file.part(at, 2))
        if encoding is None:
            return syntax, at
        element = tag, body, length, _ = _element(file, at, encoding)
        if tag == _TRANSFER_SYNTAX:
            syntax = file.part(body, length).rstrip(b"\0 ")
        at = _after(file, element)
    raise _Broken


def _readings(source: _Source, at: int) -> Iterator[_Found]:
    """Yield what is found in a data set, read as its first element suggests.

    That is surer than the transfer syntax: files with another encoding than they state are known, and no length of an
    element that comes first looks like a VR. The inverse is not as sure: the first VR may be broken.
    """
    try:
        first = source.part(at, 6)
    except (_Broken, _TooFar):
        return
    if first[0] < first[1]:
        yield _walk(source, at, _BIG)
    elif first[4:6].isalpha() and first[4:6].isupper():
        yield _walk(source, at, _LITTLE)
    else:
        yield _walk(source, at, _LITTLE_IMPLICIT)
        yield _walk(source, at, _LITTLE)


def _walk(source: _Source, at: int, encoding: _Encoding) -> _Found:
    """Walk the elements up to the last one that is needed, or to the end if they are out of order."""
    found = _Found()
    last, in_order, begin = -1, True, at
    try:
        while len(found.values) < len(_TAGS):
            if in_order and encoding.explicit:
                at, last = _past_ordinary(source, at, last, found.values, encoding)
            element = tag, body, length, _ = _element(source, at, encoding)
            begin = at
            if tag <= last:
                in_order = False
            elif tag > _INSTANCE_NUMBER and in_order and found.identified():
                break
            last = tag
            if tag in _TAGS and tag not in found.values:
                if length > _LONGEST_VALUE:
                    raise _Broken
                found.values[tag] = source.part(body, length)
            at = body + length if length < _UNDEFINED else _after(source, element)
    except _Broken:
        found.ended = "" if at == source.size else f": its elements are broken after byte {begin}"
    except _TooFar:
        found.ended = f" within the first {MOST_BYTES >> 20} MiB, and no more of it is read"
    return found


def _past_ordinary(
    source: _Source, at: int, last: int, values: dict[int, bytes], encoding: _Encoding
) -> tuple[int, int]:
    """Walk the elements that are ordinary, a few times as fast as the others; return where they end, and the last tag.

    Nearly all are: in order, in the short form of an explicit one, and in the buffer.
    """
    head, buffer, short_form = encoding.head, source.buffer, encoding.short_form
    index, end = at - source.base, len(source.buffer)
    while 0 <= index <= end - _HEAD:
        group, number, vr, length = head(buffer, index)
        tag, following = group << 16 | number, index + _HEAD + length
        if not last < tag <= _INSTANCE_NUMBER or vr not in short_form or following > end:
            break
        if not length and not _goes_on(source, source.base + following, tag, encoding):  # see _element
            break
        if tag in _TAGS:
            if length > _LONGEST_VALUE:
                break
            values[tag] = buffer[index + _HEAD : following]
        source.elements += 1
        last, index = tag, following
    return source.base + index, last


def _number(text: str) -> int | None:
    """Return an InstanceNumber that a column can hold, else None: it identifies nothing, and sites write anything."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if abs(number) < 2**31 else None
