"""Where a sequence without length ends, also while only a part of it is there."""

from __future__ import annotations

import random

import pytest

from nbia_pipeline.headers.parse.elements import Odd
from nbia_pipeline.headers.parse.items import Items
from nbia_pipeline_tests.helpers.dicom_bytes import element, nested


def frames(count: int, vr: str) -> bytes:
    """Return a sequence of items of several layouts, which have no length but for one in five."""

    def one(number: int) -> bytes:
        inner = nested(0x00082112, element(0x00081155, vr, f"1.2.{number}"), vr=vr and "SQ", items=number % 3)
        rest = element(0x00104000, vr and "LT", "\xfe\xff\xdd\xe0" * (number % 2)) + element(0x00400555, vr and "SQ")
        return inner + rest

    items = [nested(0x00081140, one(n), vr=vr and "SQ")[12 if vr else 8 : -8] for n in range(count)]
    stated = element(0x00081140, "SQ", b"\xfe\xff\x00\xe0\x04\0\0\0" + b"\xfe\xff\xdd\xe0")[12:]
    return (
        b"".join(stated + item if n % 5 == 0 else item for n, item in enumerate(items)) + b"\xfe\xff\xdd\xe0" + bytes(4)
    )


@pytest.mark.parametrize("vr", ["UI", ""])
def test_the_end_is_found_in_one_piece_and_in_many(vr: str) -> None:
    data = frames(60, vr)
    assert Items(0, bool(vr)).end(data + b"rest") == len(data)
    assert Items(3, bool(vr)).end(b"abc" + data) == len(data) + 3
    assert [Items(0, bool(vr)).end(data[:cut]) for cut in range(0, len(data), 7)] == [None] * len(
        range(0, len(data), 7)
    )
    chance, items, there = random.Random(1), Items(0, bool(vr)), 0
    while (end := items.end(data[:there])) is None:
        assert there < len(data)
        there += chance.randint(1, 40)
    assert end == len(data)


def test_depth_has_no_bound() -> None:
    deep = element(0x00100010, "PN", "A")
    for _ in range(1000):
        deep = nested(0x00081140, deep)
    assert Items(12, True).end(deep) == len(deep)


@pytest.mark.parametrize(
    "data",
    [
        element(0x00100010, "PN", "A"),
        b"\xfe\xff\x0d\xe0\0\0\0\0",
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff\xfe\xff\xdd\xe0\0\0\0\0",
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff",
    ],
)
def test_what_is_no_sequence_is_odd(data: bytes) -> None:
    with pytest.raises(Odd):
        Items(0, True).end(data + bytes(20))
