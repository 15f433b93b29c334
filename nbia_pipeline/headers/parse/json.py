"""Elements as DICOM JSON (PS3.18, Annex F): the value of an element, from its bytes, as the text of a JSON object.

It is what pydicom's ``to_json_dict`` returns, but for these rules: a number stands as one only where its text is
canonical, so that no text is lost; an empty value of several is null; what is no number in JSON is a text; what is no
value of its VR stands as its bytes, with VR UN.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from json.encoder import encode_basestring as quoted
from struct import Struct, calcsize, unpack

from nbia_pipeline.headers.parse.charset import DEFAULT, decoded, encodings_of
from nbia_pipeline.headers.parse.elements import ITEM, ITEM_END, SEQUENCE_END, UNDEFINED, Creators, Odd, walk

Value = str | int | float
Values = list[Value]

SPECIFIC_CHARACTER_SET, PIXEL_REPRESENTATION = 0x00080005, 0x00280103
DEEPEST = 64
"""So many sequences inside each other stand in Header; what is deeper is in the file only."""

NOT_FINITE = {float("inf"): '"Infinity"', float("-inf"): '"-Infinity"'}
_NUMBERS = {
    "FD": "d",
    "FL": "f",
    "SL": "i",
    "SS": "h",
    "SV": "q",
    "UL": "I",
    "US": "H",
    "UV": "Q",
}
BINARY = frozenset("OB OD OF OL OV OW UN".split())
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_LONGEST_NUMBER = 64
_LONGEST_REMEMBERED = 128
_DELIMITER_BYTES = 8
_LARGEST_EXACT = 1 << 53
_LUT_DESCRIPTORS = frozenset((0x00281101, 0x00281102, 0x00281103, 0x00283002))
_GROUPS_OF_NAMES = ("Alphabetic", "Ideographic", "Phonetic")


def fragment(tag: int, vr: str, value: bytes, encodings: tuple[str, ...]) -> tuple[str, Values]:
    """Return an element that is no sequence as JSON, and its values, for columns.

    Args:
        tag: of the element.
        vr: one that is not ambiguous.
        value: its bytes, little endian.
        encodings: of text, from :func:`~nbia_pipeline.headers.parse.charset.encodings_of`.

    Returns:
        A JSON object, and the values of a text as texts, of a number as numbers; those of bytes are left out.

    Raises:
        ValueError: it is no value of this VR; see :func:`unknown`.
        LookupError: its encoding is none.
    """
    if vr in BINARY:
        return (f'{{"vr":"{vr}","InlineBinary":"{base64(value)}"}}' if value else f'{{"vr":"{vr}"}}'), []
    convert = _CONVERT.get(vr)
    if convert is None:
        raise ValueError(f"VR {vr} is not known")
    if not value:
        return f'{{"vr":"{vr}"}}', []
    texts, values = convert(value, encodings)
    if tag in _LUT_DESCRIPTORS and len(values) > 1 and isinstance(values[0], int) and values[0] < 0:
        values[0] += 1 << 16  # the number of entries, which is unsigned whatever the VR: PS3.3, C.11.1.1.1
        texts[0] = str(values[0])
    if len(texts) == 1:
        return f'{{"vr":"{vr}","Value":[{texts[0]}]}}', values
    return (f'{{"vr":"{vr}","Value":[{",".join(texts)}]}}' if texts else f'{{"vr":"{vr}"}}'), values


def unknown(value: bytes) -> str:
    """Return the JSON of what is no value of its VR: its bytes."""
    return f'{{"vr":"UN","InlineBinary":"{base64(value)}"}}' if value else '{"vr":"UN"}'


def problem(tag: int, vr: str, value: bytes) -> str:
    """Return the sentence about a value that is none of its VR, like ``00180050: DS '2,5'``."""
    text = value[:64].decode("latin1")
    return f"{tag:08X}: {vr} {text.rstrip()!r}" + ("..." if len(value) > 64 else "")


def bulk(vr: str, path: str, offset: int, length: int) -> str:
    """Return the JSON of an element whose value is in the file only."""
    uri = quoted(f"{path}{'&' if '?' in path else '?'}offset={offset}&length={length}")
    return f'{{"vr":"{vr}","BulkDataURI":{uri}}}'


def base64(value: bytes) -> str:
    """Return bytes in base64."""
    return b2a_base64(value, newline=False).decode("ascii")


def settled(vr: str, signed: bool | None, length: int) -> str:
    """Return the VR for one that pydicom calls ambiguous, of a file that states no VRs: PS3.5, annex A.1.

    Args:
        vr: of pydicom's dictionary.
        signed: whether PixelRepresentation (0028,0103) is 1; None if it may follow.
        length: of the value in bytes.

    Raises:
        Odd: it depends on what follows.
    """
    if " or " not in vr:
        return vr
    if vr == "US or SS":
        if signed is None:
            raise Odd("a VR depends on an element that follows")
        return "SS" if signed else "US"
    return "US" if vr == "US or OW" and length == 2 else "OW"  # a LUT of one entry


# --- sequences


@dataclass
class Around:
    """What a data set states that the meaning of its later elements depends on.

    Attributes:
        encodings: of text.
        signed: whether PixelRepresentation is 1; None if it may follow.
        creators: see :func:`~nbia_pipeline.headers.parse.elements.element`.
    """

    encodings: tuple[str, ...] = DEFAULT
    signed: bool | None = None
    creators: Creators = field(default_factory=dict)

    def note(self, tag: int, value: bytes) -> None:
        """Take note of an element."""
        if tag == SPECIFIC_CHARACTER_SET:
            self.encodings = encodings_of(value)
        elif tag == PIXEL_REPRESENTATION:
            self.signed = value[:1] == b"\1"
        elif tag > PIXEL_REPRESENTATION and self.signed is None:
            self.signed = False


class Nested:
    """A sequence as JSON, with what is wrong in it.

    Attributes:
        json: the object.
        end: position after the sequence.
        problems: sentences about values, with the tags of the sequences around them.
        deep: tag, VR, position and length of the sequences that are deeper than :data:`DEEPEST`.
    """

    def __init__(
        self,
        buffer: bytes,
        at: int,
        explicit: bool,
        around: Around,
        place: tuple[str, int],
    ) -> None:
        """Read a sequence.

        Args:
            buffer: has the sequence as a whole.
            at: where its tag is.
            explicit: whether elements state their VR.
            around: what the data set around it states.
            place: path of the file, and position of the buffer in it.

        Raises:
            Odd: its bytes do not go on as they should, or a tag is repeated or out of order.
        """
        self._buffer, self._place = buffer, place
        self._trail: list[int] = []
        self._items = [(around.encodings, around.signed, -1)]
        self._pieces: list[list[str]] = [[]]
        self.problems: list[str] = []
        self.deep: list[tuple[int, str, int, int]] = []
        self.end = at
        events = walk(buffer, at, len(buffer), explicit, dict(around.creators))
        tag, vr, begin, stated = next(events)
        self._take(tag, vr, begin, stated)
        while self._trail:
            tag, vr, begin, length = next(events)
            self._take(tag, vr, begin, length)
            if vr == "SQ" and len(self._trail) > DEEPEST:
                self._pass_over(events, tag, begin, length)
        self.end = begin + _DELIMITER_BYTES * (stated == UNDEFINED)
        self.json = self._pieces[0][0].partition(":")[2]

    def _take(self, tag: int, vr: str, at: int, length: int) -> None:
        if tag == ITEM:
            encodings, signed, _ = self._items[-1]
            self._items.append((encodings, signed, -1))
            self._pieces.append([])
        elif tag == ITEM_END:
            self._items.pop()
            inside = self._pieces.pop()
            self._pieces[-1].append(f"{{{','.join(inside)}}}")
        elif tag == SEQUENCE_END:
            inside = self._pieces.pop()
            self._pieces[-1].append(f'"{self._trail.pop():08X}":{{"vr":"SQ","Value":[{",".join(inside)}]}}')
        else:
            self._element(tag, vr, at, length)

    def _element(self, tag: int, vr: str, at: int, length: int) -> None:
        encodings, signed, last = self._items[-1]
        if tag <= last:
            raise Odd(f"the element at byte {at} is out of order")
        if vr == "SQ":
            self._items[-1] = encodings, signed, tag
            self._trail.append(tag)
            self._pieces.append([])
            return
        value = self._buffer[at : at + length]
        if tag == SPECIFIC_CHARACTER_SET:
            encodings = encodings_of(value)
        elif tag == PIXEL_REPRESENTATION:
            signed = value[:1] == b"\1"
        vr = settled(vr, None if tag < PIXEL_REPRESENTATION else signed, length)
        self._items[-1] = encodings, signed, tag
        if tag & 0xFFFF:
            text, wrong = _remembered(tag if tag in _LUT_DESCRIPTORS else 0, vr, value, encodings)
            self._pieces[-1].append(f'"{tag:08X}":{text}')
            if wrong:
                self.problems.append(".".join(f"{t:08X}" for t in self._trail) + "." + problem(tag, vr, value))

    def _pass_over(self, events: Iterator[tuple[int, str, int, int]], tag: int, begin: int, stated: int) -> None:
        """Leave a sequence in the file that is too deep."""
        depth = 1
        while depth:
            event, vr, at, _ = next(events)
            depth += (vr == "SQ") - (event == SEQUENCE_END)
        length = at - begin + _DELIMITER_BYTES * (stated == UNDEFINED)
        self._trail.pop()
        self._pieces.pop()
        path, offset = self._place
        self.deep.append((tag, "SQ", offset + begin, length))
        self.problems.append(f"{tag:08X}: more than {DEEPEST} sequences are inside each other")
        self._pieces[-1].append(f'"{tag:08X}":{bulk("SQ", path, offset + begin, length)}')


def _remembered(tag: int, vr: str, value: bytes, encodings: tuple[str, ...]) -> tuple[str, bool]:
    """Return the JSON of an element, and whether it is no value of its VR."""
    if len(value) > _LONGEST_REMEMBERED:
        return _fragment_or_bytes(tag, vr, value, encodings)
    return _remember(tag, vr, value, encodings)


def _fragment_or_bytes(tag: int, vr: str, value: bytes, encodings: tuple[str, ...]) -> tuple[str, bool]:
    try:
        return fragment(tag, vr, value, encodings)[0], False
    except (ValueError, LookupError):
        return unknown(value), True


_remember = lru_cache(maxsize=1 << 15)(_fragment_or_bytes)

# --- one function for the VRs of a kind: the texts of their values in JSON, and the values

_Converted = tuple[list[str], Values]


def _texts(values: list[str]) -> _Converted:
    if len(values) == 1:
        return ([quoted(values[0])], [values[0]]) if values[0] else ([], [])
    return [quoted(v) if v else "null" for v in values], [*values]


def _string(value: bytes, encodings: tuple[str, ...]) -> _Converted:
    text = value.decode("latin1").rstrip(" \0")
    return ([quoted(text)], [text]) if text and "\\" not in text else _texts(text.split("\\"))


def _title(value: bytes, encodings: tuple[str, ...]) -> _Converted:
    return _texts([v.strip() for v in value.decode("latin1").split("\\")])


def _address(value: bytes, encodings: tuple[str, ...]) -> _Converted:
    return _texts([value.decode("latin1").rstrip()])


def _text(value: bytes, encodings: tuple[str, ...]) -> _Converted:
    return _texts([v.rstrip("\0 ") for v in decoded(value, encodings).split("\\")])


def _long_text(value: bytes, encodings: tuple[str, ...]) -> _Converted:
    return _texts([decoded(value, encodings).rstrip("\0 ")])


def _names(value: bytes, encodings: tuple[str, ...]) -> _Converted:
    names = decoded(value.rstrip(b"\0 "), encodings).split("\\")
    return ([_name(n) for n in names], [*names]) if names != [""] else ([], [])


def _name(name: str) -> str:
    if not name:
        return "null"
    parts = zip(_GROUPS_OF_NAMES, name.rstrip("=").split("="), strict=False)
    return "{" + ",".join(f'"{kind}":{quoted(part)}' for kind, part in parts) + "}"


def _tags(value: bytes, encodings: tuple[str, ...]) -> _Converted:
    if len(value) % 4:
        raise ValueError("no tags")
    words = unpack(f"<{len(value) // 2}H", value)
    tags = [f"{group:04X}{number:04X}" for group, number in zip(words[::2], words[1::2], strict=True)]
    return [f'"{tag}"' for tag in tags], [*tags]


def _integers(value: bytes, encodings: tuple[str, ...]) -> _Converted:
    return _numbers(value, _integer)


def _decimals(value: bytes, encodings: tuple[str, ...]) -> _Converted:
    return _numbers(value, _decimal)


def _numbers(value: bytes, one: Callable[[str], tuple[str, Value]]) -> _Converted:
    """Return numbers that are texts; one that is not canonical keeps its text, for spaces around it mean nothing."""
    if b"\\" not in value:
        single = value.decode("latin1").strip(" \0")
        if not single:
            return [], []
        text, number = one(single)
        return [text], [number]
    texts = [v.strip(" \0") for v in value.decode("latin1").split("\\")]
    found = [one(v) if v else ("null", "") for v in texts]
    return [text for text, _ in found], [number for _, number in found]


@lru_cache(maxsize=1 << 16)
def _decimal(text: str) -> tuple[str, float]:
    if len(text) > _LONGEST_NUMBER or not _DECIMAL.fullmatch(text):
        raise ValueError("no decimal number")
    number = float(text)
    whole = abs(number) <= _LARGEST_EXACT and number.is_integer() and str(int(number)) == text
    canonical = whole or repr(number) == text
    return (text if canonical else f'"{text}"'), number


@lru_cache(maxsize=1 << 16)
def _integer(text: str) -> tuple[str, int]:
    if len(text) > _LONGEST_NUMBER or not _INTEGER.fullmatch(text):
        raise ValueError("no integer")
    number = int(text)
    return (text if str(number) == text else f'"{text}"'), number


def _packed(kind: str) -> Callable[[bytes, tuple[str, ...]], _Converted]:
    size, single = calcsize(f"<{kind}"), Struct(f"<{kind}").unpack

    def integers(value: bytes, encodings: tuple[str, ...]) -> _Converted:
        if len(value) == size:
            (number,) = single(value)
            return [str(number)], [number]
        if len(value) % size:
            raise ValueError(f"no numbers of {size} bytes")
        numbers = unpack(f"<{len(value) // size}{kind}", value)
        return [*map(str, numbers)], [*numbers]

    def reals(value: bytes, encodings: tuple[str, ...]) -> _Converted:
        if len(value) % size:
            raise ValueError(f"no numbers of {size} bytes")
        numbers = unpack(f"<{len(value) // size}{kind}", value)
        return [_real(number) for number in numbers], [*numbers]

    return reals if kind in "df" else integers


def _real(number: float) -> str:
    return NOT_FINITE.get(number, repr(number)) if number == number else '"NaN"'


_CONVERT: dict[str, Callable[[bytes, tuple[str, ...]], _Converted]] = {
    **dict.fromkeys("AS CS DA DT TM UI".split(), _string),
    **dict.fromkeys("LO SH UC".split(), _text),
    **dict.fromkeys("LT ST UT".split(), _long_text),
    "AE": _title,
    "AT": _tags,
    "DS": _decimals,
    "IS": _integers,
    "PN": _names,
    "UR": _address,
    **{vr: _packed(kind) for vr, kind in _NUMBERS.items()},
}
