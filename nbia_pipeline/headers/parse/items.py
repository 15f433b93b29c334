"""Where a sequence ends that does not state its length: its items are passed over."""

from __future__ import annotations

import struct

from nbia_pipeline.headers.parse.elements import IMPLICIT_HEAD, ITEM, ITEM_END, SEQUENCE_END, UNDEFINED, Odd, element
from nbia_pipeline.headers.parse.layouts import Layouts


class Items:
    """The items of a sequence without length, which are passed over while more and more of a file is in memory."""

    def __init__(self, at: int, explicit: bool) -> None:
        """Take the position of the first item, and whether elements state their VR."""
        self._at, self._explicit = at, explicit
        # Of the sequences that are open, and where the first elements of the open items are.
        self._layouts = [Layouts(explicit)]
        self._begins: list[int] = []

    def end(self, buffer: bytes) -> int | None:
        """Return where the sequence ends; None if that is beyond the buffer.

        Raises:
            Odd: the bytes do not go on as they should.
        """
        while self._layouts:
            if self._at + 8 > len(buffer):
                return None
            within_item = len(self._begins) == len(self._layouts)
            after = self._after_element(buffer) if within_item else self._after_item(buffer)
            if after > len(buffer):
                return None
            self._at = after
        return self._at

    def _after_item(self, buffer: bytes) -> int:
        """Return what follows an item, or its head if it has no length, or the delimiter of the sequence."""
        length: int
        group, number, length = IMPLICIT_HEAD(buffer, self._at)
        tag, begin = group << 16 | number, self._at + 8
        if tag == SEQUENCE_END:
            self._layouts.pop()
        elif tag != ITEM:
            raise Odd(f"no item at byte {self._at}")
        elif length != UNDEFINED:
            return begin + length
        elif known := self._layouts[-1].find(buffer, begin, len(buffer), length):
            return begin + known[0].size
        else:
            self._begins.append(begin)
        return begin

    def _after_element(self, buffer: bytes) -> int:
        """Return what follows an element, or its head if it is a sequence without length, or an item's delimiter."""
        try:
            tag, vr, begin, length = element(buffer, self._at, len(buffer), self._explicit, {})
        except (Odd, struct.error):
            return len(buffer) + 1  # it may be cut off
        if tag == ITEM_END:
            self._layouts[-1].learn(buffer, self._begins.pop(), begin, UNDEFINED)
        elif tag >> 16 == 0xFFFE or (length == UNDEFINED and vr != "SQ"):
            raise Odd(f"an element at byte {self._at} has no end")
        elif length == UNDEFINED:
            self._layouts.append(Layouts(self._explicit))
        else:
            return begin + length
        return begin
