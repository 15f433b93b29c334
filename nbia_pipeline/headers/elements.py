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


class Odd(Exception):
    """The bytes do not go on as those of an ordinary data set; pydicom may know more."""


def walk(buffer: bytes, at: int, end: int, explicit: bool) -> Iterator[tuple[int, str, int, int]]:
    """Yield the elements of a data set, depth first and in the order of the file.

    A sequence comes before its items, an item before its elements, whether their lengths are defined or not.

    Args:
        buffer: has the data set.
        at: where its first element begins.
        end: where it ends.
        explicit: whether elements state their VR.

    Yields:
        Tag, VR, position of the value in `buffer`, and its length in bytes, which may be :data:`UNDEFINED` for a
        sequence or an item. Of an item the tag is ``ITEM`` and the VR empty; at the end of an item and of a sequence
        comes ``(ITEM_END, "", at, 0)`` or ``(SEQUENCE_END, "", at, 0)``. A VR may be one that pydicom calls ambiguous,
        such as ``US or SS``.

    Raises:
        Odd: the bytes do not go on as they should.
    """
    around: list[tuple[bool, int, bool, dict[int, bytes]]] = []
    in_items, limit, defined, creators = False, end, True, {}
    while True:
        if at == limit and defined:
            if not around:
                return
            yield (SEQUENCE_END if in_items else ITEM_END), "", at, 0
            in_items, limit, defined, creators = around.pop()
            continue
        if at + 8 > limit:
            raise Odd(f"an element at byte {at} has no end")
        if in_items:
            group, number, length = IMPLICIT_HEAD(buffer, at)
            tag = group << 16 | number
            at += 8
            if tag == ITEM:
                yield ITEM, "", at, length
                around.append((in_items, limit, defined, creators))
                in_items, limit, defined, creators = False, *_end(at, length, limit), {}
            elif tag == SEQUENCE_END and not defined:
                yield SEQUENCE_END, "", at - 8, 0
                in_items, limit, defined, creators = around.pop()
            else:
                raise Odd(f"no item at byte {at - 8}")
            continue
        tag, vr, at, length = element(buffer, at, limit, explicit, creators)
        if vr == "SQ":
            yield tag, vr, at, length
            around.append((in_items, limit, defined, creators))
            in_items, limit, defined = True, *_end(at, length, limit)
        elif tag == ITEM_END and around and not defined:
            yield ITEM_END, "", at - 8, 0
            in_items, limit, defined, creators = around.pop()
        elif at + length > limit or tag >> 16 == 0xFFFE:
            raise Odd(f"an element at byte {at} has no end")
        else:
            yield tag, vr, at, length
            at += length


def element(
    buffer: bytes, at: int, limit: int, explicit: bool, creators: dict[int, bytes]
) -> tuple[int, str, int, int]:
    """Return the element at a position as :func:`walk` yields it; `creators` are those of the data set so far.

    Args:
        buffer: has the data set.
        at: where the element begins; 8 bytes of it are there.
        limit: where what is around it ends.
        explicit: whether it states its VR.
        creators: private creators by ``tag & 0xFFFFFF00`` of their elements; that of this element is added.

    Raises:
        Odd: it is no ordinary element. Whether all of its value is there is not looked at.
    """
    if explicit:
        group, number, stated, length = EXPLICIT_HEAD(buffer, at)
        at += 8
        vr = SHORT_FORM.get(stated)
        if vr is None:
            vr = LONG_FORM.get(stated)
            if vr is None:
                if group != 0xFFFE:
                    raise Odd(f"an element at byte {at - 8} has no VR")
                return group << 16 | number, "", at, 0
            if at + 4 > limit:
                raise Odd(f"an element at byte {at - 8} has no end")
            (length,) = LONG(buffer, at)
            at += 4
    else:
        group, number, length = IMPLICIT_HEAD(buffer, at)
        at, vr = at + 8, ""
        if group == 0xFFFE:
            return group << 16 | number, "", at, 0
    tag = group << 16 | number
    if group & 1 and 0x10 <= number < 0x100:
        creators[group << 16 | number << 8] = buffer[at : min(at + length, limit)] if length < 0x100 else b""
    if not explicit:
        vr = vr_of(tag, creators.get(tag & 0xFFFFFF00, b""))
    elif vr == "UN":
        if group & 1 or length < _LONGEST_UNKNOWN:
            vr = vr_of(tag, creators.get(tag & 0xFFFFFF00, b""))
        if vr == "SQ" or length == UNDEFINED:
            raise Odd(f"a sequence at byte {at} has VR UN")
    if length == UNDEFINED and vr != "SQ":
        if vr == "UN" and buffer[at : at + 4] == b"\xfe\xff\x00\xe0":
            vr = "SQ"
        elif group != 0x7FE0:
            raise Odd(f"an element at byte {at} has no length")
    return tag, vr, at, length


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
        raise Odd(f"a sequence at byte {at} has no end")
    return at + length, True
