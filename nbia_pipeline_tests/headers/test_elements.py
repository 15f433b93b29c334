"""The primitive: elements, sequences and items in the order of the bytes."""

from __future__ import annotations

import struct

import pytest

from nbia_pipeline.headers.parse.elements import ITEM, ITEM_END, SEQUENCE_END, UNDEFINED, Odd, walk
from nbia_pipeline_tests.helpers.dicom_bytes import element, nested

EMPTY = (0x00081140, "SQ")


def tags(data: bytes, explicit: bool = True) -> list[tuple[int, str]]:
    """Return the tags and VRs of what is found."""
    return [(tag, vr) for tag, vr, _, _ in walk(data, 0, len(data), explicit)]


def defined(tag: int, *items: bytes, vr: str = "SQ") -> bytes:
    """Return a sequence whose length is stated, with items whose length is."""
    return element(tag, vr, b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items))


def test_sequences_come_before_their_items_and_end_after_them() -> None:
    inner = element(0x00081155, "UI", "1.2")
    expected = [(0x00081140, "SQ"), (ITEM, ""), (0x00081155, "UI"), (ITEM_END, ""), (SEQUENCE_END, "")]
    assert tags(nested(0x00081140, inner)) == expected
    assert tags(defined(0x00081140, inner)) == expected
    implicit = element(0x00081155, "", "1.2\0")
    assert tags(nested(0x00081140, implicit, vr=""), explicit=False) == expected
    assert tags(defined(0x00081140, implicit, vr=""), explicit=False) == expected


def test_positions_are_those_of_the_values() -> None:
    data = element(0x00080060, "CS", "CT") + defined(0x00081140, element(0x00081155, "UI", "1.2")) + nested(0x00082112)
    found = list(walk(data, 0, len(data), True))
    assert found[0] == (0x00080060, "CS", 8, 2)
    assert found[1] == (0x00081140, "SQ", 22, 20)
    assert found[2] == (ITEM, "", 30, 12)
    assert data[found[3][2] :][: found[3][3]] == b"1.2\0"
    assert found[6] == (0x00082112, "SQ", 54, UNDEFINED)
    assert found[7] == (ITEM, "", 62, UNDEFINED)


def test_no_item_no_element_and_depth() -> None:
    assert tags(defined(0x00081140)) == [EMPTY, (SEQUENCE_END, "")]
    deep = element(0x00100010, "PN", "A")
    for _ in range(3000):
        deep = nested(0x00081140, deep)
    assert len(tags(deep)) == 4 * 3000 + 1


def test_vrs_that_are_not_stated_are_those_of_the_dictionaries() -> None:
    data = element(0x00131010, "", "x") + element(0x00280106, "", b"\1\0") + element(0x00091001, "", "x")
    assert tags(data, explicit=False) == [(0x00131010, "UN"), (0x00280106, "US or SS"), (0x00091001, "UN")]
    private = element(0x00190010, "", "GEMS_ACQU_01") + element(0x00191002, "", b"\1\0\0\0")
    assert tags(private, explicit=False) == [(0x00190010, "LO"), (0x00191002, "SL")]
    assert tags(element(0x00190010, "LO", "GEMS_ACQU_01") + element(0x00191002, "UN", b"\1\0\0\0"))[1][1] == "SL"
    assert tags(element(0x00100010, "UN", "A^B")) == [(0x00100010, "PN")]


@pytest.mark.parametrize(
    "data",
    [
        element(0x00080060, "CS", "CT")[:-1],
        element(0x00080060, "CS", "CT") + b"\0\0\0",
        nested(0x00081140, b"abc"),
        nested(0x00081140)[:-8],
        defined(0x00081140, b"")[:-1],
        element(0x00081140, "SQ", b"no items"),
        element(0x00081140, "UN", b"\xfe\xff\x00\xe0\0\0\0\0"),
        element(0x00080060, b"??", "CT"),
        struct.pack("<HH2sHI", 8, 0x60, b"OB", 0, UNDEFINED),
        struct.pack("<HHI", 0xFFFE, 0xE00D, 0),
        nested(0x00081140, struct.pack("<HHI", 0xFFFE, 0xE000, 0)),
    ],
)
def test_what_does_not_go_on_is_odd(data: bytes) -> None:
    with pytest.raises(Odd):
        tags(data)
