"""The header of a file that is odd, read by pydicom, by the same rules.

Odd are big endian and deflated files, elements out of order or repeated, another encoding than the one stated, no
prefix, a broken end. What comes before the place where pydicom gives up is in the header; the rest stays in the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from struct import error as StructError
from struct import pack
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial

from nbia_pipeline.headers.parse.charset import DEFAULT, encodings_of, quiet
from nbia_pipeline.headers.parse.elements import ITEM, ITEM_END, LONG_FORM, UNDEFINED, Odd, vr_of, walk
from nbia_pipeline.headers.parse.header import Header, More, Place
from nbia_pipeline.headers.parse.json import SPECIFIC_CHARACTER_SET, Nested, bulk
from nbia_pipeline.headers.parse.recoded import Value, as_bytes, encoded, is_signed, members, syntax_of
from nbia_pipeline.headers.parse.source import BIG, EXPLICIT, File, readings
from nbia_pipeline.headers.parse.template import LARGE, NEEDED, Elements, Entry
from nbia_pipeline.headers.parse.typed import DOSE_COLUMN, DOSE_SEQUENCE, INDEX, creators_of, first_dose
from nbia_pipeline.headers.parse.walker import PIXEL_GROUP, json_object, take_pixels

DEFER = 1 << 24
"""pydicom leaves longer values in the file: Header has where they are, but what is in them is not looked at."""

_CREATORS = INDEX["PrivateCreators"]


def read_odd(path: str, head: bytes, size: int, more: More) -> Header:
    """Return the header of a file that is no ordinary one; without JSON if it is none of DICOM.

    Args:
        path: of the file in the lake.
        head: its first bytes, 64 KiB if it has as many.
        size: of the file in bytes.
        more: reads more of it; its errors are raised.
    """
    why = "no data set is found in it"
    for file in readings(head, size, more):
        try:
            with quiet():
                found = _Reading(path, head, file).read()
        except Odd as e:
            why = str(e)
        except Exception as e:  # noqa: BLE001 - pydicom and Python raise anything for the bytes of a broken file
            why = f"{type(e).__name__}: {e}"
        else:
            found.size = size if found.size is None else found.size
            if not file.errors:
                return found
        if file.errors:
            raise file.errors[0]
    return Header(size=None, problems=[f"it cannot be read: {why[:200]}"])


class _Places:
    """Where the elements of a data set are, by what pydicom asks before it reads each.

    Attributes:
        found: tag, VR if it is stated, position of the value, and its length.
        next: the element at which reading stopped, if it did.
    """

    def __init__(self, file: File, most: int | None) -> None:
        self.found: list[Place] = []
        self.next: Place | None = None
        self._file, self._most = file, most

    def stop(self, tag: Any, vr: str | None, length: int) -> bool:
        """Take note of an element, and return whether to stop before it."""
        at = self._file.tell()
        # Of the first element it may ask twice, the first time in the midst of its head.
        if self.found and self.found[-1][0] == tag and at - self.found[-1][2] in (2, 6):
            self.found.pop()
        place = int(tag), vr or "", at, length
        if tag >> 16 == PIXEL_GROUP or len(self.found) == self._most:
            self.next = place
            return True
        self.found.append(place)
        return False

    def ends(self) -> Iterator[tuple[Place, int]]:
        """Yield each element, and where the next one begins."""
        following = [*self.found[1:], self.next] if self.found else []
        for place, after in zip(self.found, following, strict=True):
            yield place, _begin(after) if after else self._file.length


class _Reading:
    """One file, of which one reading is tried."""

    def __init__(self, path: str, head: bytes, file: File) -> None:
        self._uri, self._head, self._file = f"{path}?inflated" if file.inflated else path, head, file
        self._found = Header()
        self._parts: dict[int, str] = {}
        self._elements = Elements(True)
        self._buffer, self._syntax = b"", EXPLICIT

    def read(self) -> Header:
        """Return the header.

        Raises:
            Odd: this is no data set of an instance.
            Exception: whatever pydicom raises.
        """
        found, file = self._found, self._file
        data, places = self._dataset(file)
        if not _makes_sense(data, self._head[128:132] == b"DICM"):
            raise Odd("no data set is found in it")
        found.meta, self._syntax = self._meta(data), syntax_of(data)
        self._begin(data)
        self._all(file, data, places)
        while places.next and places.next[0] >> 16 == PIXEL_GROUP:
            end = self._pixels(file, places.next)
            if end + 8 > file.size:
                break
            file = file.after(end, self._syntax)
            data, places = self._dataset(file)
            self._all(file, data, places)
        found.values[_CREATORS] = creators_of(self._elements.around.creators)
        found.encodings = self._elements.around.encodings
        if file.inflated:
            found.pixels, found.size = (None, None), None
        found.json, found.buffer = json_object(self._parts[tag] for tag in sorted(self._parts)), self._buffer
        return found

    def _dataset(self, file: File) -> tuple[Any, _Places]:
        """Return what pydicom reads, up to an element that it cannot read."""
        most = None
        while True:
            file.seek(0)
            places = _Places(file, most)
            try:
                data = read_partial(file, places.stop, defer_size=DEFER, force=True)  # type: ignore[arg-type]
                if not places.found or places.found[-1][0] in data:
                    return data, places
                error = "it cannot be read"
            except Exception as e:
                if file.errors or not places.found:
                    raise
                error = f"{type(e).__name__}: {e}"[:200]
            most = len(places.found) - 1
            tag, vr, at, _ = places.found[-1]
            offset = file.offset(at)
            self._in_the_file(tag, vr or "UN", offset, file.size - offset, f"{error}; all that follows is in the file")

    def _in_the_file(self, tag: int, vr: str, offset: int, length: int, why: str = "") -> None:
        """Leave an element in the file."""
        if why:
            self._found.problems.append(f"{tag:08X}: {why}")
        self._found.omitted.append((tag, vr, offset, length))
        self._parts[tag] = f'"{tag:08X}":{bulk(vr, self._uri, offset, length)},'

    def _meta(self, data: Any) -> str:
        """Return the JSON of group 0002."""
        meta, at, found = Elements(True), 132, dict[int, Entry]()
        meta.begin()
        if self._head[128:at] == b"DICM":
            with contextlib.suppress(Odd, StructError, IndexError):
                while self._head[at : at + 2] == b"\2\0":
                    entry = meta.entry(self._head, at)
                    if entry.tag in found:
                        self._found.problems.append(f"{entry.tag:08X}: it occurs again; it is in the file only")
                        self._found.omitted.append((entry.tag, "UN", at + 8, len(entry.raw) - 8))
                    found.setdefault(entry.tag, entry)
                    at += len(entry.raw)
        if not found:
            values = [(tag, vr, value) for tag, vr, value in members(data.file_meta) if isinstance(value, bytes)]
            found = {tag: meta.read(tag, vr, encoded(tag, vr, value), value) for tag, vr, value in values if vr != "SQ"}
        for entry in found.values():
            self._note(entry)
        return json_object(found[tag].json for tag in sorted(found))

    def _begin(self, data: Dataset) -> None:
        self._elements.begin()
        stated = data.get_item(SPECIFIC_CHARACTER_SET) if SPECIFIC_CHARACTER_SET in data else None
        value, around = as_bytes(getattr(stated, "value", None)), self._elements.around
        around.encodings = encodings_of(value) if value else DEFAULT
        around.signed = is_signed(data)
        self._elements.use_encodings()

    def _all(self, file: File, data: Dataset, places: _Places) -> None:
        """Take all elements of a data set."""
        last: dict[int, tuple[int, int]] = {}
        for (tag, vr, at, stated), end in places.ends():
            self._found.elements += 1
            if tag in last:
                offset, length = last[tag]
                self._in_the_file(tag, vr or "UN", offset, length, "it occurs again; what it was before is in the file")
            last[tag] = file.offset(at), end - at
            if stated != UNDEFINED and at + stated > file.length:
                missing = at + stated - file.length
                self._found.problems.append(f"{tag:08X}: the file ends {missing} bytes before the end of the value")
        for tag, vr, value in members(data):
            self._one(tag, vr, value, *last.get(tag, (0, 0)))

    def _one(self, tag: int, vr: str, value: Value, offset: int, length: int) -> None:
        """Take an element, whose value is in the file from `offset` on."""
        around = self._elements.around
        try:
            raw = encoded(tag, vr, value, bool(around.signed))
        except (ValueError, StructError, RecursionError) as e:
            self._in_the_file(tag, vr, offset, length, str(e))
            return
        if tag & 0x10000 and 0x10 <= tag & 0xFFFF < 0x100 and isinstance(value, bytes):
            around.creators[tag & 0xFFFF0000 | (tag & 0xFF) << 8] = value
        if vr == "SQ" or tag in NEEDED:
            head = 12 if vr in LONG_FORM.values() else 8
            self._found.top.append((tag, vr, len(self._buffer) + head, len(raw) - head))
            self._buffer += raw
        if value is None or length > LARGE:
            self._in_the_file(tag, vr, offset, length)
        elif vr == "SQ":
            self._sequence(tag, raw, offset, length)
            if self._syntax != BIG and _repeats(self._file.part(offset, length), self._syntax == EXPLICIT):
                self._found.problems.append(f"{tag:08X}: elements in it occur again; what they were is in the file")
                self._found.omitted.append((tag, "SQ", offset, length))
        elif isinstance(value, bytes):
            entry = self._elements.read(tag, vr, raw, value)
            self._parts[tag] = entry.json
            self._note(entry)

    def _note(self, entry: Entry) -> None:
        self._found.problems += entry.problems
        for index, column in entry.columns:
            self._found.values[index] = column

    def _sequence(self, tag: int, raw: bytes, offset: int, length: int) -> None:
        if tag == DOSE_SEQUENCE:
            self._found.values[DOSE_COLUMN] = first_dose(raw, 0, True)
        try:
            nested = Nested(raw, 0, True, self._elements.around, ("", 0))
        except (Odd, StructError) as e:
            self._in_the_file(tag, "SQ", offset, length, str(e))
            return
        self._found.problems += nested.problems
        if nested.deep:
            self._in_the_file(tag, "SQ", offset, length)
        else:
            self._parts[tag] = f'"{tag:08X}":{nested.json},'

    def _pixels(self, file: File, place: Place) -> int:
        """Take note of an element of group 7FE0, and return where it ends in the file."""
        tag, vr, at, length = place
        found, offset = self._found, file.offset(at)
        if found.size is None:
            found.size = file.offset(_begin(place))
        found.elements += 1
        return take_pixels(found, file, (tag, vr or "OW", offset, length))


def _repeats(items: bytes, explicit: bool) -> bool:
    """Return whether an item of a sequence has an element twice: pydicom keeps the last one only."""
    # As the elements of an item, of which no more than its sequence is known.
    head = pack("<HH2sHL", 8, 0x1140, b"SQ", 0, len(items)) if explicit else pack("<HHL", 8, 0x1140, len(items))
    around: list[set[int]] = [set()]
    try:
        for tag, vr, _, _ in walk(head + items, 0, len(head) + len(items), explicit):
            if tag == ITEM:
                around.append(set())
            elif tag == ITEM_END:
                around.pop()
            elif vr and tag in around[-1]:
                return True
            else:
                around[-1].add(tag)
    except (Odd, StructError):
        pass
    return False


def _makes_sense(data: Dataset, has_prefix: bool) -> bool:
    """Return whether most elements are of the standard: pydicom finds some in anything."""
    known = [vr_of(tag) != "UN" for tag in map(int, data.keys()) if tag >> 16 > 2 and not tag >> 16 & 1]
    return sum(known) * 2 > len(known) if known else len(data) > 0 and has_prefix


def _begin(place: Place) -> int:
    """Return where an element begins whose value is at a place."""
    _, vr, at, _ = place
    return at - (12 if vr in LONG_FORM.values() else 8)
