"""Sequences as items with their elements, read no deeper than somebody looks; for references and annotations.

They are not made of :func:`nbia_pipeline.headers.parse.elements.walk`, which visits every element: of the 280,000
elements in a segmentation of 6,000 frames most are in sequences that say nothing here, or repeat another frame's, byte
for byte.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from functools import lru_cache

from nbia_pipeline.headers.parse.elements import EXPLICIT_HEAD, IMPLICIT_HEAD, LONG, LONG_FORM, UNDEFINED, vr_of
from nbia_pipeline.headers.parse.layouts import Layouts

DEPTH = 64
"""Sequences in each other that are read."""

_SHARED_BYTES = 4096
_LONG_BYTES = 1 << 16
_PADDING = b" \0\t\r\n"
_FIRST_ITEM = b"\xfe\xff\x00\xe0"

_is_whole = re.compile(rb"[+-]?\d{1,12}").fullmatch

referring = re.compile(rb"\x08\x00[\x55\x15]\x11|\x06\x30\x14\x00|\x40\x00\x24\xa1").search
"""Finds what a sequence with references has: one of the tags (0008,1155), (0008,1115), (3006,0014), (0040,A124)."""


class Unreadable(ValueError):
    """The bytes of a sequence do not go on as they should; the text says why."""


Top = Sequence[tuple[int, str, int, int]]
"""Top-level elements of a data set: tag, VR, where the value begins, length or UNDEFINED."""

Unread = tuple[int, "int | None", bool, int]
"""A sequence that nobody has looked into: where its items begin, where they end (None: a delimiter says so), whether
they have VRs, how deep it is. A plain tuple, since there are tens of thousands."""

Item = dict[int, "bytes | Unread | list[Item]"]
"""Elements by tag: values, or sequences."""


class Tree:
    """The sequences of one data set (PS3.5, 7.5) in little endian.

    Args:
        buffer: bytes that have them.
        problems: gets a sentence where the bytes do not go on as they should; what comes before is kept.

    Attributes:
        place: what sentences begin with.
    """

    def __init__(self, buffer: bytes, problems: list[str]) -> None:
        self.buffer, self.problems, self.place = buffer, problems, ""
        self._read: dict[object, list[Item]] = {}

    def problem(self, text: str) -> None:
        """Record what is wrong, each kind once."""
        line = f"{self.place}: {text}"
        if line not in self.problems:
            self.problems.append(line)

    def items(self, sequence: object) -> list[Item]:
        """Return the items of a sequence, which are read at the first time; none of what is no sequence."""
        if isinstance(sequence, list):
            return sequence
        if not isinstance(sequence, tuple):
            return []
        at, end, explicit, depth = sequence
        key = at if end is None or end - at > _SHARED_BYTES else (self.buffer[at:end], explicit)
        found = self._read.get(key)
        if found is None:
            self._read[key] = found = []
            try:
                self._items(at, end, explicit, depth, found)
            except (Unreadable, struct.error) as e:
                self.problem(str(e) if isinstance(e, Unreadable) else "its bytes end too early")
        return found

    def first(self, item: Item, *tags: int) -> Item:
        """Return the first item of the sequence in an item that is the first of `tags` to have one; else nothing."""
        for tag in tags:
            if tag in item and (items := self.items(item[tag])):
                return items[0]
        return {}

    def raw(self, value: object) -> bytes:
        """Return the bytes of a sequence that nobody has looked into; none of anything else."""
        return self.buffer[value[0] : value[1]] if isinstance(value, tuple) else b""

    def refers(self, value: object) -> bool:
        """Return whether a value is a sequence in which there may be references."""
        if isinstance(value, tuple):
            return referring(self.buffer, value[0], value[1]) is not None
        return isinstance(value, list)

    def _items(self, at: int, end: int | None, explicit: bool, depth: int, items: list[Item]) -> int:
        """Append items; return where the sequence ends.

        Raises:
            Unreadable: or struct.error; `items` has what comes before.
        """
        if depth > DEPTH:
            raise Unreadable(f"more than {DEPTH} sequences are in each other")
        buffer, limit = self.buffer, len(self.buffer) if end is None else end
        layouts = Layouts(explicit) if depth == 1 and limit - at > _LONG_BYTES else None
        while at < limit:
            group, number, length = IMPLICIT_HEAD(buffer, at)
            at += 8
            if group != 0xFFFE or number != 0xE000:
                if group == 0xFFFE and number == 0xE0DD and end in (None, at):
                    return at
                raise Unreadable("no item is where one should begin")
            if layouts and (known := layouts.find(buffer, at, limit, length)):
                layout, fields = known
                items.append(layout.item(buffer, at, depth + 1, fields))
                at += layout.size
                continue
            item: Item = {}
            first = at
            items.append(item)
            at = self._elements(at, limit, length, explicit, depth, item)
            if layouts:
                layouts.learn(buffer, first, at, length)
        if end is None:
            raise Unreadable("it has no end")
        return at

    def _elements(self, at: int, limit: int, length: int, explicit: bool, depth: int, item: Item) -> int:
        """Read the elements of an item; return where it ends."""
        buffer, stop = self.buffer, limit if length == UNDEFINED else at + length
        if stop > limit:
            raise Unreadable("an item is longer than what it is in")
        while at < stop:
            group, number, vr, short = EXPLICIT_HEAD(buffer, at)
            if group == 0xFFFE:
                if number == 0xE00D and length == UNDEFINED:
                    return at + 8
                raise Unreadable("an item ends where it should not")
            if vr in LONG_FORM or not explicit:
                at = self._long(at, stop, explicit, depth, item)
                continue
            after = at + 8 + short
            if after > stop:
                raise Unreadable("an element is longer than what it is in")
            item[group << 16 | number] = buffer[at + 8 : after]
            at = after
        if length == UNDEFINED:
            raise Unreadable("an item has no end")
        return at

    def _long(self, at: int, stop: int, explicit: bool, depth: int, item: Item) -> int:
        """Read an element with four bytes of length; return where it ends."""
        buffer = self.buffer
        length: int
        if explicit:
            group, number, vr, _ = EXPLICIT_HEAD(buffer, at)
            tag, sequence, unknown = group << 16 | number, vr == b"SQ", vr == b"UN"
            (length,) = LONG(buffer, at + 8)
            at += 12
        else:
            group, number, length = IMPLICIT_HEAD(buffer, at)
            tag = group << 16 | number
            sequence, unknown = (known := vr_of(tag)) == "SQ", known == "UN"
            at += 8
        if length == UNDEFINED:
            nested: list[Item] = []
            item[tag] = nested
            # Without a VR its items are in implicit form (PS3.5, 6.2.2).
            return self._items(at, None, explicit and sequence, depth + 1, nested)
        after = at + length
        if after > stop:
            raise Unreadable("an element is longer than what it is in")
        if sequence:
            item[tag] = at, after, explicit, depth + 1
        elif unknown and buffer.startswith(_FIRST_ITEM, at, after):
            item[tag] = at, after, False, depth + 1
        else:
            item[tag] = buffer[at:after]
        return after


_last: Tree | None = None


def tree_of(buffer: bytes, problems: list[str]) -> Tree:
    """Return the tree of a data set: the last one, if it is of the same bytes, with what was read of it."""
    global _last
    tree = _last
    if tree is None or tree.buffer is not buffer:
        _last = tree = Tree(buffer, problems)
    tree.problems = problems
    return tree


def top_sequence(top: Top, index: int, buffer: bytes, explicit: bool) -> tuple[Unread, int] | None:
    """Return the sequence that is element `index` of a data set, and up to where its bytes are at most; or None."""
    _, vr, at, length = top[index]
    if vr == "UN" and buffer.startswith(_FIRST_ITEM, at):
        explicit = False
    elif vr != "SQ":
        return None
    if length != UNDEFINED:
        return (at, at + length, explicit, 1), at + length
    return (at, None, explicit, 1), top[index + 1][2] if index + 1 < len(top) else len(buffer)


def value_of(item: Item, tag: int) -> bytes | None:
    """Return the bytes of an element; None if there is none, or if it is a sequence."""
    value = item.get(tag)
    return value if isinstance(value, bytes) else None


@lru_cache(maxsize=16384)
def _uids(value: bytes) -> tuple[str, ...]:
    return tuple(name for word in value.split(b"\\") if (name := word.strip(_PADDING).decode("latin1")))


def uids(value: object) -> tuple[str, ...]:
    """Return the UIDs of a value, without what they are padded with, and without empty ones."""
    return _uids(value) if isinstance(value, bytes) else ()


def uid(value: object) -> str | None:
    """Return the first UID of a value, or None."""
    return next(iter(uids(value)), None) if value else None


def whole_numbers(value: object) -> list[int]:
    """Return the numbers of a value of VR IS, without what is none."""
    words = value.split(b"\\") if isinstance(value, bytes) else ()
    return [int(word) for padded in words if _is_whole(word := padded.strip(_PADDING))]


def shorts(value: object) -> list[int]:
    """Return the numbers of a value of VR US."""
    return list(struct.unpack(f"<{len(value) // 2}H", value[: len(value) // 2 * 2])) if isinstance(value, bytes) else []


def forget() -> None:
    """Let go of the last tree."""
    global _last
    _last = None
