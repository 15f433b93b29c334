"""The header of a file, from its bytes: of files that are ordinary little endian ones, which nearly all are."""

from __future__ import annotations

from collections.abc import Iterable
from struct import error as StructError
from typing import Protocol

from nbia_pipeline.headers.parse.elements import IMPLICIT_HEAD, ITEM, SEQUENCE_END, UNDEFINED, Odd, element
from nbia_pipeline.headers.parse.header import Header, More, Place
from nbia_pipeline.headers.parse.items import Items
from nbia_pipeline.headers.parse.json import PIXEL_REPRESENTATION, SPECIFIC_CHARACTER_SET, Nested, bulk, settled
from nbia_pipeline.headers.parse.template import LARGE, Differs, Elements, Entry
from nbia_pipeline.headers.parse.typed import DOSE_COLUMN, DOSE_SEQUENCE, INDEX, creators_of, first_dose

MOST_BYTES = 1 << 29
"""So much of a header is in memory; pydicom reads a larger one, in pieces."""
PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
"""FloatPixelData, DoubleFloatPixelData, PixelData."""

PIXEL_GROUP = 0x7FE0

_PREFIX_END = 132
_IMPLICIT = "1.2.840.10008.1.2"
# Big endian, GE's private big endian, deflated ones.
_ODD_SYNTAXES = frozenset(
    "1.2.840.10008.1.2.2 1.2.840.113619.5.2 "
    "1.2.840.10008.1.2.1.99 1.2.840.10008.1.2.4.95 1.2.840.10008.1.2.4.205".split()
)
_SEQUENCE_END_BYTES = b"\xfe\xff\xdd\xe0\0\0\0\0"
_CREATORS, _SYNTAX = INDEX["PrivateCreators"], INDEX["TransferSyntaxUID"]


class _Window:
    """The part of a file that is in memory: its beginning, without large values that were passed over.

    Attributes:
        buffer: the bytes.
        shift: position in the file of what is at a position of the buffer, less that position.
        size: of the file in bytes.
    """

    def __init__(self, head: bytes, size: int, more: More) -> None:
        self.buffer, self.size, self._more = head[:size], size, more
        self.shift = 0

    def need(self, end: int) -> bytes:
        """Return the buffer, which then has what is before a position in it.

        Raises:
            Odd: the file, or what may be in memory, ends before.
        """
        missing = end - len(self.buffer)
        if missing > 0:
            at = len(self.buffer) + self.shift
            if at + missing > self.size or end > MOST_BYTES:
                raise Odd(f"the file ends in what begins before byte {self.size}")
            self.buffer += self._more(at, min(max(missing, LARGE), self.size - at))
            if end > len(self.buffer):
                raise Odd("the file is shorter than it was")
        return self.buffer

    def need_more(self) -> None:
        """Double what is there."""
        rest = self.size - self.shift - len(self.buffer)
        if not rest:
            raise Odd("the file ends in a sequence")
        self.need(len(self.buffer) + min(rest, max(len(self.buffer), LARGE)))

    def left(self, at: int) -> int:
        """Return how many bytes of the file follow a position of the buffer."""
        return self.size - self.shift - at

    def jump(self, at: int) -> int:
        """Return the position in the buffer of what is beyond it, or of what is there already."""
        beyond = max(0, at - len(self.buffer))
        self.shift += beyond
        return at - beyond

    def part(self, at: int, length: int) -> bytes:
        """Return some bytes by their position in the file, which need not be in the buffer."""
        here = at - self.shift
        if 0 <= here <= len(self.buffer) - length:
            return self.buffer[here : here + length]
        return self._more(at, length)


class Walker:
    """Reads the headers of files, best one series after the other."""

    def __init__(self) -> None:
        self._meta = Elements(True)
        self._data = {explicit: Elements(explicit) for explicit in (False, True)}

    def read(self, path: str, head: bytes, size: int, more: More) -> Header:
        """Return the header of a file.

        Args:
            path: of the file in the lake.
            head: its first bytes, 64 KiB if it has as many.
            size: of the file in bytes.
            more: reads more of it.

        Raises:
            Odd: it is no ordinary little endian file.
        """
        if head[_PREFIX_END - 4 : _PREFIX_END] != b"DICM":
            raise Odd("there is no prefix")
        try:
            return self._by_template(head, size, more)
        except (Differs, Odd, StructError, ValueError, LookupError):
            pass
        try:
            return self._by_elements(path, _Window(head, size, more))
        except (StructError, ValueError, LookupError) as e:
            raise Odd("its bytes do not go on as they should") from e

    def _by_template(self, head: bytes, size: int, more: More) -> Header:
        found, parts, parts_of_meta = Header(buffer=head), list[str](), list[str]()
        at = self._meta.match(head, _PREFIX_END, found, parts_of_meta)
        if head[at : at + 2] == b"\2\0":
            raise Differs
        syntax = self._meta.values[_SYNTAX]
        found.explicit, found.elements = _is_explicit(syntax, head, at), 0
        data = self._data[found.explicit]
        at = data.match(head, at, found, parts)
        if at == size:
            found.size = size
        else:
            self._ordinary_pixels(head, at, size, more, found)
        found.values, found.encodings = data.values[:], data.around.encodings
        found.values[_SYNTAX] = syntax
        found.json, found.meta = json_object(parts), json_object(parts_of_meta)
        return found

    def _ordinary_pixels(self, head: bytes, at: int, size: int, more: More, found: Header) -> None:
        """Take note of pixel data with which the file ends, as nearly all files do."""
        tag, _, begin, length = element(head, at, len(head), found.explicit, {})
        if tag != 0x7FE00010:
            raise Differs
        if length == UNDEFINED:
            last = head[size - 8 : size] if size <= len(head) else more(size - 8, 8)
            if last != _SEQUENCE_END_BYTES or size - 8 < begin:
                raise Differs
        elif begin + length != size:
            raise Differs
        found.size, found.pixels = at, (begin, None if length == UNDEFINED else length)
        found.elements += 1

    def _by_elements(self, path: str, window: _Window) -> Header:
        found, parts, parts_of_meta = Header(), list[str](), list[str]()
        at = _Reading(self._meta, path, window, found, parts_of_meta).read(_PREFIX_END, meta=True)
        syntax = found.values[_SYNTAX]
        found.explicit, found.elements = _is_explicit(syntax, window.need(at + 8), at), 0
        _Reading(self._data[found.explicit], path, window, found, parts).read(at)
        found.encodings = self._data[found.explicit].around.encodings
        if found.size is None:
            found.size = window.size
        found.json, found.meta, found.buffer = json_object(parts), json_object(parts_of_meta), window.buffer
        return found


class _Reading:
    """One data set that is read element by element; it becomes the template if it is small and ordinary."""

    def __init__(self, elements: Elements, path: str, window: _Window, found: Header, parts: list[str]) -> None:
        self._elements, self._path, self._window, self._found, self._parts = elements, path, window, found, parts
        self._entries: list[Entry] = []
        self._ordinary = True
        elements.begin()

    def read(self, at: int, meta: bool = False) -> int:
        """Read elements to the end of the file, or those of group 0002, and return where they end."""
        try:
            at = self._read(at, meta)
        except BaseException:
            self._elements.forget()
            raise
        values = self._found.values
        values[_CREATORS] = creators_of(self._elements.around.creators)
        if self._ordinary:
            self._elements.learn(self._entries, values)
        else:
            self._elements.forget()
        return at

    def _read(self, at: int, meta: bool) -> int:
        window, last = self._window, -1
        while (left := window.left(at)) > 0:
            if left < 8:
                self._found.problems.append(f"{left} bytes follow the last element")
                self._ordinary = False
                break
            buffer = window.need(at + 8)
            group = buffer[at] | buffer[at + 1] << 8
            if (group == 2) != meta:
                if group == 2:
                    raise Odd("group 0002 is not at the beginning")
                break
            if group == PIXEL_GROUP:
                tag, at = self._pixels(at)
            else:
                tag, at = self._one(at)
            if tag <= last:
                raise Odd(f"element {tag:08X} is out of order")
            last = tag
            self._found.elements += 1
        return at

    def _one(self, at: int) -> tuple[int, int]:
        """Read an element; return its tag, and where the next one begins."""
        found, around = self._found, self._elements.around
        try:
            entry = self._elements.entry(self._window.buffer, at)
            following = at + len(entry.raw)
        except (Odd, StructError, IndexError):
            entry, following = self._unusual(at)
        self._parts.append(entry.json)
        self._entries.append(entry)
        self._ordinary = self._ordinary and bool(entry.raw) and found.size is None
        for index, value in entry.columns:
            found.values[index] = value
        found.problems += entry.problems
        if entry.place:
            vr, offset, length = entry.place
            found.top.append((entry.tag, vr, at + offset, length))
        if entry.tag >> 16 & 1 == 0:
            encodings = around.encodings
            around.note(
                entry.tag, entry.raw[8:] if entry.tag in (SPECIFIC_CHARACTER_SET, PIXEL_REPRESENTATION) else b""
            )
            if around.encodings is not encodings:
                self._elements.use_encodings()
        return entry.tag, following

    def _unusual(self, at: int) -> tuple[Entry, int]:
        """Read an element that is large, or not yet in memory."""
        window, elements = self._window, self._elements
        buffer = window.need(at + min(12, window.left(at)))
        tag, vr, begin, length = element(buffer, at, len(buffer), elements.explicit, elements.around.creators)
        if vr == "SQ":
            return self._sequence(at, tag, begin, length)
        if length > window.left(begin) or length == UNDEFINED:
            raise Odd(f"the file ends in element {tag:08X}")
        if length <= LARGE:
            entry = elements.entry(window.need(begin + length), at)
            return entry, at + len(entry.raw)
        vr = settled(vr, None if tag < PIXEL_REPRESENTATION else elements.around.signed, length)
        return self._in_the_file(tag, vr, begin, length), window.jump(begin + length)

    def _in_the_file(self, tag: int, vr: str, begin: int, length: int) -> Entry:
        offset = begin + self._window.shift
        self._found.omitted.append((tag, vr, offset, length))
        return Entry(tag, b"", f'"{tag:08X}":{bulk(vr, self._path, offset, length)},')

    def _sequence(self, at: int, tag: int, begin: int, length: int) -> tuple[Entry, int]:
        window, explicit, around = self._window, self._elements.explicit, self._elements.around
        end = self._end(begin) if length == UNDEFINED else begin + length
        buffer = window.need(end)
        if end - begin > LARGE:
            entry = self._in_the_file(tag, "SQ", begin, end - begin)
        else:
            nested = Nested(buffer, at, explicit, around, (self._path, window.shift))
            self._found.omitted += nested.deep
            entry = Entry(tag, b"", f'"{tag:08X}":{nested.json},', problems=tuple(nested.problems))
            if not nested.deep:
                entry = entry._replace(raw=buffer[at:end])
        columns = ((DOSE_COLUMN, first_dose(buffer, at, explicit)),) if tag == DOSE_SEQUENCE else ()
        size = end - begin - 8 if length == UNDEFINED else length
        return entry._replace(columns=columns, place=("SQ", begin - at, size)), end

    def _end(self, begin: int) -> int:
        """Return where a sequence of undefined length ends."""
        window = self._window
        items = Items(begin, self._elements.explicit)
        while (end := items.end(window.buffer)) is None:
            window.need_more()
        return end

    def _pixels(self, at: int) -> tuple[int, int]:
        """Take note of an element of group 7FE0; return its tag, and where the next one begins."""
        window, found = self._window, self._found
        buffer = window.need(at + min(12, window.left(at)))
        tag, vr, begin, length = element(buffer, at, len(buffer), self._elements.explicit, {})
        offset = begin + window.shift
        if found.size is None:
            found.size = at + window.shift
        end = take_pixels(found, window, (tag, settled(vr, False, length), offset, length))
        self._ordinary = self._ordinary and tag == 0x7FE00010
        return tag, window.jump(end - window.shift)


class Readable(Protocol):
    """A file of which parts can be read, by their positions in it."""

    size: int

    def part(self, at: int, length: int) -> bytes:
        """Return bytes of the file."""
        ...


def take_pixels(found: Header, file: Readable, place: Place) -> int:
    """Take note of an element of group 7FE0: tag, VR, position in the file, length. Return where it ends there."""
    tag, vr, offset, length = place
    end = end_of_fragments(file, offset) if length == UNDEFINED else offset + length
    if end > file.size:
        found.problems.append(f"{tag:08X}: the file ends {end - file.size} bytes before the end of the value")
        end = file.size
    if tag in PIXELS:
        found.pixels = offset, None if length == UNDEFINED else length
    else:
        found.omitted.append((tag, vr, offset, end - offset))
    return end


def end_of_fragments(file: Readable, at: int) -> int:
    """Return where encapsulated pixel data end that begin at `at`; beyond the end of the file if they do not end.

    Raises:
        Odd: they are no fragments.
    """
    if file.size - 8 >= at and file.part(file.size - 8, 8) == _SEQUENCE_END_BYTES:
        return file.size
    while file.size - at >= 8:
        tag, length = _fragment(file.part(at, 8))
        at += 8 + length
        if tag == SEQUENCE_END:
            return at
    return max(at, file.size + 8)


def _fragment(head: bytes) -> tuple[int, int]:
    group, number, length = IMPLICIT_HEAD(head, 0)
    tag = group << 16 | number
    if tag not in (ITEM, SEQUENCE_END):
        raise Odd("pixel data are no fragments")
    return tag, length if tag == ITEM else 0


def _is_explicit(syntax: str | None, buffer: bytes, at: int) -> bool:
    """Return whether elements state their VR.

    Raises:
        Odd: they are big endian, or deflated, or not what the transfer syntax says.
    """
    if syntax is None or syntax in _ODD_SYNTAXES:
        raise Odd(f"its transfer syntax is {syntax}")
    explicit = buffer[at + 4 : at + 6].isalpha() and buffer[at + 4 : at + 6].isupper()
    if explicit == (syntax == _IMPLICIT):
        raise Odd("its transfer syntax is not the one that it states")
    return explicit


def json_object(parts: Iterable[str]) -> str:
    """Return a JSON object of members that end with a comma."""
    return f"{{{''.join(parts)[:-1]}}}"
