"""Elements of one data set after the other: those that equal what the file before had are not read again.

Files of a series have most elements in common, byte for byte. What the file before had is kept as a template: stretches
of elements that did not change are compared as a whole. Other elements are looked up by their bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nbia_pipeline.headers.parse.elements import EXPLICIT_HEAD, SHORT_FORM, UNDEFINED, Odd, element
from nbia_pipeline.headers.parse.header import Header, Place
from nbia_pipeline.headers.parse.json import (
    PIXEL_REPRESENTATION,
    SPECIFIC_CHARACTER_SET,
    Around,
    Nested,
    Values,
    fragment,
    problem,
    settled,
    unknown,
)
from nbia_pipeline.headers.parse.typed import DOSE_COLUMN, DOSE_SEQUENCE, INDEX, NAMES, columns_of, first_dose

LARGE = 1 << 16
"""An element whose value has more bytes stays in the file."""

NEEDED = frozenset((0x00081155, 0x00620001))
"""Elements that are no sequences and that references or annotations depend on: they are in `top` as well."""

_CTP_GROUP = 0x0013
_CTP_COLLECTION = INDEX["CTPCollection"]
_new = tuple.__new__  # a NamedTuple's own takes three times as long
_MOST_REMEMBERED = 1 << 22  # bytes of elements
_MOST_ENCODINGS = 16
_LONGEST_REMEMBERED = 1 << 12


class Entry(NamedTuple):
    """An element as it was read: its bytes, its JSON with tag and comma, its values in columns, its place in `top`."""

    tag: int
    raw: bytes
    json: str
    columns: tuple[tuple[int, Any], ...] = ()
    problems: tuple[str, ...] = ()
    place: tuple[str, int, int] | None = None  # VR, position of the value in `raw`, length without delimiter


class _Run(NamedTuple):
    """Elements that follow each other, from `first` to before `last`; `raw` is None for one that changes."""

    first: int
    last: int
    raw: bytes | None
    json: str
    top: tuple[Place, ...]
    problems: tuple[str, ...]


class Differs(Exception):
    """A file has other elements than the one before."""


class Elements:
    """The elements of one data set after the other, of one encoding."""

    def __init__(self, explicit: bool) -> None:
        self.explicit = explicit
        self.around = Around()
        self.values: list[Any] = [None] * len(NAMES)
        self._entries: list[Entry] = []
        self._variable: set[int] = set()
        self._runs: list[_Run] = []
        self._memo: dict[Any, Entry] = {}
        self._memos: dict[tuple[str, ...], dict[Any, Entry]] = {}
        self._remembered = 0

    # --- by the template

    def match(self, buffer: bytes, at: int, found: Header, parts: list[str]) -> int:
        """Read elements as those of the data set before, and return where they end.

        Raises:
            Differs: they are others.
            Odd: the data set is no ordinary one.
        """
        if not self._runs:
            raise Differs
        changed = False
        for first, last, raw, json, top, problems in self._runs:
            if raw is None:
                at = self._changing(first, buffer, at, found, parts)
            elif buffer.startswith(raw, at):
                parts.append(json)
                if top:
                    found.top += [(tag, vr, at + offset, length) for tag, vr, offset, length in top]
                if problems:
                    found.problems += problems
                at += len(raw)
            else:
                changed = True
                for n in range(first, last):
                    at = self._one(n, buffer, at, found, parts)
        if changed:
            self._arrange()
        found.elements += len(self._entries)
        return at

    def _changing(self, n: int, buffer: bytes, at: int, found: Header, parts: list[str]) -> int:
        """Read an element that changes from file to file, as :meth:`_one` does, but faster if it is an ordinary one."""
        entry = self._entries[n]
        if not buffer.startswith(entry.raw, at):
            if not self.explicit:
                return self._one(n, buffer, at, found, parts)
            group, number, stated, length = EXPLICIT_HEAD(buffer, at)
            if entry.tag != group << 16 | number:
                raise Differs
            raw = buffer[at : at + 8 + length]
            known = self._memo.get(raw)
            if known is None:
                if stated not in SHORT_FORM or len(raw) < 8 + length or self._depends(group, number):
                    return self._one(n, buffer, at, found, parts)
                known = self.read(entry.tag, SHORT_FORM[stated], raw, raw[8:])
                if stated != b"UI":  # UIDs that change do not come again
                    self._remember(raw, known)
            self._entries[n] = entry = known
            for index, value in entry.columns:
                self.values[index] = value
        if entry.place or entry.problems:
            return self._one(n, buffer, at, found, parts)
        parts.append(entry.json)
        return at + len(entry.raw)

    @staticmethod
    def _depends(group: int, number: int) -> bool:
        """Return whether what is known of an element that states its VR depends on others of its data set."""
        return bool(group & 1) and (number <= 0xFF or group == _CTP_GROUP)

    def _one(self, n: int, buffer: bytes, at: int, found: Header, parts: list[str]) -> int:
        """Read the element at a place of the template."""
        entry = self._entries[n]
        if not buffer.startswith(entry.raw, at):
            tag, entry = entry.tag, self.entry(buffer, at)
            if entry.tag != tag or self._means_more(tag):
                raise Differs
            self._entries[n] = entry
            self._variable.add(n)
            for index, value in entry.columns:
                self.values[index] = value
        parts.append(entry.json)
        if entry.place:
            vr, offset, length = entry.place
            found.top.append((entry.tag, vr, at + offset, length))
        if entry.problems:
            found.problems += entry.problems
        return at + len(entry.raw)

    def _means_more(self, tag: int) -> bool:
        """Return whether the meaning of later elements depends on one."""
        signed = tag == PIXEL_REPRESENTATION and not self.explicit
        return signed or tag == SPECIFIC_CHARACTER_SET or bool(tag & 0x10000 and 0x10 <= tag & 0xFFFF < 0x100)

    def learn(self, entries: list[Entry], values: list[Any]) -> None:
        """Take the elements of a data set as the template."""
        tags = [entry.tag for entry in entries]
        if tags != [entry.tag for entry in self._entries]:
            self._variable = set()
        self._entries, self.values = entries, list(values)
        self._arrange()

    def forget(self) -> None:
        """Have no template."""
        self._entries, self._runs, self._variable = [], [], set()

    def _arrange(self) -> None:
        self._runs, first = [], 0
        for n in [*sorted(self._variable), len(self._entries)]:
            if n > first:
                self._runs.append(self._run(first, n))
            if n < len(self._entries):
                self._runs.append(_Run(n, n + 1, None, "", (), ()))
            first = n + 1

    def _run(self, first: int, last: int) -> _Run:
        entries, at, top = self._entries[first:last], 0, []
        for entry in entries:
            if entry.place:
                vr, offset, length = entry.place
                top.append((entry.tag, vr, at + offset, length))
            at += len(entry.raw)
        raw = b"".join(entry.raw for entry in entries)
        problems = tuple(p for entry in entries for p in entry.problems)
        return _Run(first, last, raw, "".join(entry.json for entry in entries), tuple(top), problems)

    # --- one by one

    def begin(self) -> None:
        """Begin a data set."""
        self.around = Around()
        self.use_encodings()

    def use_encodings(self) -> None:
        """Remember elements by their encodings, since the same bytes are another text in others."""
        encodings = self.around.encodings
        if len(self._memos) > _MOST_ENCODINGS:
            self._memos.clear()
        self._memo = self._memos.setdefault(encodings, {})

    def entry(self, buffer: bytes, at: int, limit: int | None = None) -> Entry:
        """Return the element at a position, which is no large one and is in the buffer as a whole.

        Raises:
            Odd: it is none, or it is not there as a whole.
        """
        limit = len(buffer) if limit is None else limit
        if self.explicit and at + 8 <= limit:
            group, number, stated, length = EXPLICIT_HEAD(buffer, at)
            if stated in SHORT_FORM and not self._depends(group, number):
                raw = buffer[at : at + 8 + length]
                found = self._memo.get(raw)
                if found is not None:
                    return found
                if len(raw) < 8 + length or group == 0:
                    raise Odd(f"no element at byte {at}")
                return self._remember(raw, self.read(group << 16 | number, SHORT_FORM[stated], raw, raw[8:]))
        tag, vr, begin, length = element(buffer, at, limit, self.explicit, self.around.creators)
        if vr == "SQ":
            return self._sequence(buffer, at, tag, begin, length)
        if length > LARGE or begin + length > limit or tag >> 16 in (0xFFFE, 0):
            raise Odd(f"no element at byte {at}")
        vr = settled(vr, None if tag < PIXEL_REPRESENTATION else self.around.signed, length)
        raw = buffer[at : begin + length]
        # What the same bytes mean depends on what is around them where they do not state their VR.
        key = raw if self.explicit and raw[4:6] != b"UN" else (vr, raw)
        found = self._memo.get(key)
        if found is None or tag >> 16 == _CTP_GROUP:
            found = self._remember(key, self.read(tag, vr, raw, buffer[begin : begin + length]))
        return found

    def read(self, tag: int, vr: str, raw: bytes, value: bytes) -> Entry:
        """Return an element that is no sequence; `raw` is all of it, in the encoding of the data set."""
        try:
            text, values = fragment(tag, vr, value, self.around.encodings)
            wrong: tuple[str, ...] = ()
        except (ValueError, LookupError):
            text, values, wrong = unknown(value), [], (problem(tag, vr, value),)
        json = f'"{tag:08X}":{text},' if tag & 0xFFFF else ""
        columns = self._of_ctp(tag, values) if tag >> 16 == _CTP_GROUP else columns_of(tag, values)
        place = (vr, len(raw) - len(value), len(value)) if tag in NEEDED else None
        return _new(Entry, (tag, raw, json, columns, wrong, place))

    def _of_ctp(self, tag: int, values: Values) -> tuple[tuple[int, Any], ...]:
        """Return the column of the collection that CTP states: (0013,xx10) of its block."""
        if tag & 0xFF == 0x10 and tag & 0xFF00 and self.around.creators.get(tag & ~0xFF, b"").strip(b" \0") == b"CTP":
            return ((_CTP_COLLECTION, str(values[0]) if values else None),)
        return ()

    def _sequence(self, buffer: bytes, at: int, tag: int, begin: int, length: int) -> Entry:
        if length != UNDEFINED:
            if begin + length > len(buffer):
                raise Odd(f"the sequence at byte {at} has no end")
            raw = buffer[at : begin + length]
            found = self._memo.get(raw) if self.explicit else None
            if found is not None:
                return found
        nested = Nested(buffer, at, self.explicit, self.around, ("", 0))
        if nested.deep or nested.end - begin > LARGE:
            raise Odd(f"the sequence at byte {at} is no small one")
        raw = buffer[at : nested.end]
        columns = ((DOSE_COLUMN, first_dose(raw, 0, self.explicit)),) if tag == DOSE_SEQUENCE else ()
        json = f'"{tag:08X}":{nested.json},'
        size = nested.end - begin - 8 if length == UNDEFINED else length
        entry = Entry(tag, raw, json, columns, tuple(nested.problems), ("SQ", begin - at, size))
        return self._remember(raw, entry) if self.explicit and length != UNDEFINED else entry

    def _remember(self, key: Any, entry: Entry) -> Entry:
        size = len(entry.raw)
        if size <= _LONGEST_REMEMBERED:
            self._remembered += size + 200
            if self._remembered > _MOST_REMEMBERED:
                self._memos.clear()
                self._remembered = 0
                self.use_encodings()
            self._memo[key] = entry
        return entry
