"""The elements of a little endian data set, from its bytes: where each is, sequences and their items included.

PS3.5, sections 7.1 (elements) and 7.5 (sequences). VRs that the bytes do not state are those of pydicom's dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from struct import Struct

from pydicom.datadict import dictionary_VR, private_dictionary_VR

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
"""A length that is not stated."""

LONG_FORM = {vr.encode(): vr for vr in "OB OD OF OL OV OW SQ SV UC UN UR UT UV".split()}
SHORT_FORM = {vr.encode(): vr for vr in "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()}
EXPLICIT_HEAD = Struct("<HH2sH").unpack_from
IMPLICIT_HEAD = Struct("<HHL").unpack_from
LONG = Struct("<L").unpack_from

# As in pydicom, a longer value of VR UN has no other VR: PS3.5, 6.2.2 has writers use UN for what is too long.
_LONGEST_UNKNOWN = 0xFFFF
_ITEM_BYTES = b"\xfe\xff\x00\xe0"

Creators = dict[int, bytes]
"""Private creators of a data set, by the first tag of their blocks."""

_Place = tuple[bool, int, bool, Creators]
"""What is around an element: whether it is a sequence, where it ends, if that is known, and its private creators."""


class Odd(Exception):
    """The bytes do not go on as those of an ordinary data set; pydicom may know more."""


def walk(
    buffer: bytes, at: int, end: int, explicit: bool, creators: Creators | None = None
) -> Iterator[tuple[int, str, int, int]]:
    """Yield the elements of a data set, depth first and in the order of the file.

    A sequence comes before its items, an item before its elements, whether their lengths are defined or not.

    Args:
        buffer: has the data set.
        at: where its first element begins.
        end: where it ends.
        explicit: whether elements state their VR.
        creators: private creators that come before, see :func:`element`.

    Yields:
        Tag, VR, position of the value in `buffer`, and its length in bytes, which may be :data:`UNDEFINED` for a
        sequence or an item. Of an item the tag is ``ITEM`` and the VR empty; at the end of an item and of a sequence
        comes ``(ITEM_END, "", at, 0)`` or ``(SEQUENCE_END, "", at, 0)``. A VR may be one that pydicom calls ambiguous,
        such as ``US or SS``.

    Raises:
        Odd: the bytes do not go on as they should.
    """
    around: list[_Place] = []
    here: _Place = False, end, True, creators or {}
    while True:
        in_items, limit, defined, known = here
        # Nearly all elements are public ones in the short form: these first, a few times as fast as the others.
        while explicit and not in_items and at + 8 <= limit:
            group, number, stated, length = EXPLICIT_HEAD(buffer, at)
            if stated not in SHORT_FORM or group & 1 or at + 8 + length > limit:
                break
            yield group << 16 | number, SHORT_FORM[stated], at + 8, length
            at += 8 + length
        if at == limit and defined:
            if not around:
                return
            yield (SEQUENCE_END if in_items else ITEM_END), "", at, 0
            here = around.pop()
            continue
        tag, vr, at, length = _delimiter(buffer, at, limit) if in_items else element(buffer, at, limit, explicit, known)
        if vr == "SQ" or (in_items and tag == ITEM):
            yield tag, vr, at, length
            around.append(here)
            here = vr == "SQ", *_end(at, length, limit), {}
        elif tag == (SEQUENCE_END if in_items else ITEM_END) and around and not defined:
            yield tag, "", at - 8, 0
            here = around.pop()
        elif at + length > limit or tag >> 16 == 0xFFFE:
            raise _no_end(at)
        else:
            yield tag, vr, at, length
            at += length


def element(buffer: bytes, at: int, limit: int, explicit: bool, creators: Creators) -> tuple[int, str, int, int]:
    """Return the element at a position as :func:`walk` yields it.

    Args:
        buffer: has the data set.
        at: where the element begins.
        limit: where what is around it ends.
        explicit: whether it states its VR.
        creators: private creators by the first tag of their blocks; that of this element is added.

    Raises:
        Odd: it is no ordinary element. Whether all of its value is there is not looked at.
    """
    if at + 8 > limit:
        raise _no_end(at)
    group, number, length = IMPLICIT_HEAD(buffer, at)
    tag, vr, at = group << 16 | number, "", at + 8
    if group == 0xFFFE:
        return tag, "", at, 0
    if explicit:
        vr, at, length = _stated(buffer, at, limit)
    if group & 1 and 0x10 <= number < 0x100:
        creators[group << 16 | number << 8] = buffer[at : min(at + length, limit)] if length < 0x100 else b""
    if vr in ("", "UN") and (group & 1 or vr == "" or length < _LONGEST_UNKNOWN):
        known = vr_of(tag, creators.get(tag & 0xFFFFFF00, b""))
        if vr and known == "SQ":
            raise Odd(f"a sequence at byte {at} has VR UN")
        vr = known
    if length == UNDEFINED and vr != "SQ" and group != 0x7FE0:
        # What pydicom does not know and has items is a sequence.
        if explicit or vr != "UN" or buffer[at : at + 4] != _ITEM_BYTES:
            raise Odd(f"an element at byte {at} has no length")
        vr = "SQ"
    return tag, vr, at, length


def _stated(buffer: bytes, at: int, limit: int) -> tuple[str, int, int]:
    """Return the VR that an element states, the position of its value and its length; `at` is after its head."""
    stated, short = buffer[at - 4 : at - 2], buffer[at - 2] | buffer[at - 1] << 8
    if stated in SHORT_FORM:
        return SHORT_FORM[stated], at, short
    if stated not in LONG_FORM or at + 4 > limit:
        raise Odd(f"an element at byte {at - 8} has no VR")
    return LONG_FORM[stated], at + 4, LONG(buffer, at)[0]


def _delimiter(buffer: bytes, at: int, limit: int) -> tuple[int, str, int, int]:
    if at + 8 > limit:
        raise _no_end(at)
    group, number, length = IMPLICIT_HEAD(buffer, at)
    if group != 0xFFFE:
        raise Odd(f"no item at byte {at}")
    return group << 16 | number, "", at + 8, length if number == 0xE000 else 0


@lru_cache(maxsize=1 << 16)
def vr_of(tag: int, creator: bytes = b"") -> str:
    """Return the VR of an element from pydicom's dictionaries, UN if they do not have it.

    Args:
        tag: of the element.
        creator: value of the element of the private creator, for a private element.
    """
    number = tag & 0xFFFF
    try:
        if not tag >> 16 & 1:
            return "UL" if not number else str(dictionary_VR(tag))
        if number < 0x100:
            return "LO" if number >= 0x10 else "UL" if not number else "UN"
        return str(private_dictionary_VR(tag, creator.decode("latin1").rstrip("\0 ")))
    except KeyError:
        return "UN"


def _end(at: int, length: int, limit: int) -> tuple[int, bool]:
    """Return where a sequence or item ends at the latest, and whether that is known to be its end."""
    if length == UNDEFINED:
        return limit, False
    if at + length > limit:
        raise _no_end(at)
    return at + length, True


def _no_end(at: int) -> Odd:
    return Odd(f"what begins at byte {at} has no end")
