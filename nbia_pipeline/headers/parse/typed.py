"""The columns of ``instance_headers`` that are elements: which, and their values."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from nbia_pipeline.headers.parse.elements import ITEM, ITEM_END, Creators, Odd, walk
from nbia_pipeline.headers.parse.json import Values, fragment
from nbia_pipeline.schema.headers import INSTANCE_HEADERS, REALS, TEXTS
from nbia_pipeline.schema.tables import COUNT, DAY, REAL, TEXT

DOSE, DOSE_SEQUENCE = 0x00181074, 0x00540016
_LARGEST = 1 << 63


def _text(values: Values) -> Any:
    return "\\".join(map(str, values)) or None  # of a damaged file, numbers too


def _texts(values: Values) -> Any:
    return [str(v) if v != "" else None for v in values] or None


def _reals(values: Values) -> Any:
    return [float(v) if v != "" else None for v in values] or None


def _real(values: Values) -> Any:
    return float(values[0]) if values and values[0] != "" else None


def _integer(values: Values) -> Any:
    found = _real(values)
    return int(values[0]) if found is not None and abs(found) < _LARGEST else None


def _day(values: Values) -> Any:
    text = str(values[0]).replace(".", "") if values else ""  # with dots in files from before 1993
    if len(text) != 8 or not (text.isascii() and text.isdigit()):
        return None
    try:
        return datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None


_OF_TYPE: dict[pa.DataType, Callable[[Values], Any]] = {
    TEXT: _text,
    TEXTS: _texts,
    COUNT: _integer,
    REAL: _real,
    REALS: _reals,
    DAY: _day,
}

_ELSEWHERE = ("SOPInstanceUID", "SeriesInstanceUID", "Collection")
NAMES = [c.name for c in INSTANCE_HEADERS.columns if c.tag and c.name not in _ELSEWHERE]
"""The columns whose values come from elements, in the order of the table."""
INDEX = {name: n for n, name in enumerate(NAMES)}
"""Where a column is among them."""
DOSE_COLUMN = INDEX["RadionuclideTotalDose"]

_COLUMNS = {c.name: c for c in INSTANCE_HEADERS.columns}
HOT: dict[int, tuple[int, Callable[[Values], Any]]] = {
    int(tag.replace(",", ""), 16): (INDEX[name], _OF_TYPE[_COLUMNS[name].type])
    for name in NAMES
    if "x" not in (tag := str(_COLUMNS[name].tag)) and name != "RadionuclideTotalDose"
}
"""What an element is in the table: the place of its column, and its value there from its values."""


def columns_of(tag: int, values: Values) -> tuple[tuple[int, Any], ...]:
    """Return the place of the column of an element and its value there, if it has one; null for what does not fit."""
    hot = HOT.get(tag)
    if hot is None:
        return ()
    try:
        return ((hot[0], hot[1](values)),)
    except (ValueError, OverflowError):
        return ((hot[0], None),)


def creators_of(creators: Creators) -> list[str] | None:
    """Return the private creators of a data set, each once; None if it has none."""
    texts = (creators[tag].decode("latin1").strip(" \0") for tag in sorted(creators))
    return list(dict.fromkeys(text for text in texts if text)) or None


def first_dose(element: bytes, at: int, explicit: bool) -> float | None:
    """Return RadionuclideTotalDose of the first item of RadiopharmaceuticalInformationSequence.

    Args:
        element: the sequence, from its tag on.
        at: where its tag is.
        explicit: whether elements state their VR.
    """
    depth = 0
    try:
        for tag, vr, begin, length in walk(element, at, len(element), explicit):
            depth += (tag == ITEM) - (tag == ITEM_END)
            if tag == DOSE and depth == 1:
                dose: float | None = _real(fragment(tag, vr, element[begin : begin + length], ())[1])
                return dose
            if tag == ITEM_END and depth == 0:
                break
    except (Odd, ValueError):
        pass
    return None
