"""Items of a long sequence that equal each other but for some values: most frames of a segmentation do.

Whether an item has a known layout takes one comparison of all bytes between these values. Where heads are the same in
the same places, a reader finds the same elements; so what was found in one item holds for others, with their values.
"""

from __future__ import annotations

import struct
from typing import Any

from nbia_pipeline.headers.parse.elements import SEQUENCE_END, UNDEFINED, Odd, walk

INSTANCE, POSITION, _PLANE = 0x00081155, 0x00200032, 0x00209113

# What a reference says besides its instance is part of a layout: class, frames, segments, codes, series, study.
_SAME = frozenset(
    (0x00081150, 0x00081160, 0x0062000B, 0x00080100, 0x00080102, 0x00080104, 0x0020000E, 0x0020000D, 0x0040A124)
)
_MOST = 32
_MOST_MISSES = 200
_MOST_BYTES = 1 << 14


class Alike(dict[int, Any]):
    """The elements of an item, which has a known layout."""

    __slots__ = ("layout", "values_of")

    def __init__(self, layout: Layout, values: tuple[bytes, ...]) -> None:
        self.layout, self.values_of = layout, values

    def instances(self) -> list[bytes]:
        """Return the values of (0008,1155), in the order of the file."""
        return [self.values_of[n] for n in self.layout.instances]

    def position(self) -> bytes | None:
        """Return the first value of (0020,0032) in PlanePositionSequence."""
        return None if self.layout.position is None else self.values_of[self.layout.position]


class Layout:
    """The layout of one item.

    Attributes:
        size: bytes of the item.
        instances: places of the values of (0008,1155) among those that differ.
        position: place of the first value of (0020,0032) in PlanePositionSequence.
        references: the references that were found in the first item; None before.
        frame: the same of what regions need.
    """

    def __init__(self, buffer: bytes, at: int, after: int, length: int, explicit: bool) -> None:
        """Take the layout of the item from `at` to before `after`; raises Odd if it is no ordinary one."""
        self._values, self._sequences = list[tuple[int, int, int]](), list[tuple[int, int, int]]()
        form, heads, head_at, differing, of_plane = "<", [], at, list[int](), list[bool]()
        around: list[tuple[int, int]] = []
        for tag, vr, start, size in walk(buffer, at, after - 8 if length == UNDEFINED else after, explicit):
            if vr == "SQ":
                around.append((tag, start))
            elif tag == SEQUENCE_END:
                outer, first = around.pop()
                self._sequences += [] if around else [(outer, first - at, start - at)]
            elif vr == "UN":
                raise Odd("what it contains may be a sequence")
            elif vr:
                self._values += [] if around else [(tag, start - at, start + size - at)]
                if tag not in _SAME:
                    form += f"{start - head_at}s{size}s"
                    heads.append(buffer[head_at:start])
                    differing.append(tag)
                    of_plane.append(tag == POSITION and [outer for outer, _ in around] == [_PLANE])
                    head_at = start + size
        heads.append(buffer[head_at:after])
        self._unpack = struct.Struct(f"{form}{after - head_at}s").unpack_from
        self._heads, self._explicit, self.size = tuple(heads), explicit, after - at
        self.instances = [n for n, tag in enumerate(differing) if tag == INSTANCE]
        self.position = of_plane.index(True) if True in of_plane else None
        self.references: list[list[Any]] | None = None
        self.frame: Any = None

    def fields(self, buffer: bytes, at: int) -> tuple[bytes, ...] | None:
        """Return heads and values by turns if what begins at a position has this layout.

        Raises:
            struct.error: there are fewer bytes.
        """
        fields = self._unpack(buffer, at)
        return fields if fields[::2] == self._heads else None

    def item(self, buffer: bytes, at: int, depth: int, fields: tuple[bytes, ...]) -> Alike:
        """Return the elements of an item that begins at a position; its sequences are of a depth, and not yet read."""
        item = Alike(self, fields[1::2])
        for tag, start, end in self._sequences:
            item[tag] = at + start, at + end, self._explicit, depth
        for tag, start, end in self._values:
            item[tag] = buffer[at + start : at + end]
        return item


class Layouts:
    """The layouts of the items of one sequence, the latest first."""

    def __init__(self, explicit: bool) -> None:
        self._explicit = explicit
        self._known: dict[int, list[Layout]] = {}
        self._misses = 0

    def find(self, buffer: bytes, at: int, limit: int, length: int) -> tuple[Layout, tuple[bytes, ...]] | None:
        """Return the layout of an item, with its heads and values; None if its layout is not known.

        Args:
            buffer: has the item.
            at: where its first element begins.
            limit: where it ends at the latest, which is not beyond the buffer.
            length: what it states as its length.
        """
        known = self._known.get(length, [])
        for n, layout in enumerate(known):
            if at + layout.size <= limit and (fields := layout.fields(buffer, at)):
                if n:
                    known.insert(0, known.pop(n))
                return layout, fields
        return None

    def learn(self, buffer: bytes, at: int, after: int, length: int) -> None:
        """Remember the layout of an item that has none of the known ones, unless most have one of their own."""
        self._misses += 1
        if self._misses < _MOST_MISSES and after - at <= _MOST_BYTES:
            known = self._known.setdefault(length, [])
            try:
                known.insert(0, Layout(buffer, at, after, length, self._explicit))
            except Odd:
                self._misses = _MOST_MISSES
            del known[_MOST:]
