"""``nbia-pipeline headers``: the values of elements in the headers of a collection, and how many files have each."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nbia_pipeline import stopping
from nbia_pipeline.cli.home import WRONG_CALL, fail, report, say
from nbia_pipeline.cli.options import Options, argument, as_command, count, existing_lake, option, settings_of
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.headers import INSTANCE_HEADERS
from nbia_pipeline.settings import SettingsError
from nbia_pipeline.text import did_you_mean, first_of, similar_names, table_text

SHOWN = 20
_UID, _HEADER, _META = "SeriesInstanceUID", "Header", "FileMeta"
# Not elements of the files, or not as a value that can be counted.
_NO_VALUES = (_HEADER, _META, "Omitted", "Problems", "Collection", "Path", "SeriesMD5")
_TYPED = {c.name: c for c in INSTANCE_HEADERS.columns if c.name not in _NO_VALUES}
_BY_TAG = {c.tag: c.name for c in _TYPED.values() if c.tag}


@dataclass(frozen=True)
class Element:
    """An element that is asked for.

    Attributes:
        name: what the person calls it.
        column: that has its values.
        key: of the element in the JSON of this column; "" where the column is the element's own.
    """

    name: str
    column: str
    key: str = ""

    def values(self, cells: Sequence[Any]) -> Iterator[str | None]:
        """Yield the value of each file as text, several of them with backslashes; None where there is no element."""
        for cell in cells:
            if not self.key:
                yield None if cell is None else _joined(cell if isinstance(cell, list) else [cell])
            elif cell is None or self.key not in cell:  # most files lack a rare one: not every text is parsed
                yield None
            else:
                found = json.loads(cell).get(self.key)
                yield None if found is None else _text(found)


@as_command()
@argument("collection", metavar="COLLECTION", help_="its name")
@option(
    "--tag",
    "tags",
    metavar="TAG",
    multiple=True,
    required=True,
    help="an element: its keyword, such as ConvolutionKernel, or its tag, such as 0018,9345; private ones too (repeat "
    "the option for several)",
)
@option(
    "--most", type=count, metavar="N", default=SHOWN, show_default=True, help="show at most this many values of each"
)
def command(options: Options) -> int:
    """Show the values of elements in the headers of a collection, and how many files and series have each.

    They are read from the table instance_headers, so that the headers of all files count that a run has read. Several
    values of one element are separated by backslashes.
    """
    elements = [element_of(tag) for tag in options.tags]
    lake = existing_lake(options, settings_of(options))
    stored = lake.collections_of(INSTANCE_HEADERS)
    if options.collection not in stored:
        there = f"there are those of {first_of(stored)}" if stored else "there are none: `nbia-pipeline run` reads them"
        hint = did_you_mean(similar_names(options.collection, stored), there)
        return fail(f"the lake has no headers of a collection {options.collection!r}: {hint}", WRONG_CALL)
    files, series = _counts(lake, options.collection, elements)
    report({"collection": options.collection, "files": files[0].total() if files else 0})
    report({"tags": [_figures(*found) for found in zip(elements, files, series, strict=True)]})
    for found in zip(elements, files, series, strict=True):
        say(*_table(*found, options.most).split("\n"), "")
    return 0


def element_of(text: str) -> Element:
    """Return the element that a keyword, a tag or the name of a column means.

    Raises:
        SettingsError: there is none of this name, or headers do not have it.
    """
    from pydicom.datadict import keyword_dict, keyword_for_tag

    written = re.sub(r"[(),\s]", "", text)
    if re.fullmatch("[0-9A-Fa-f]{8}", written):
        tag = int(written, 16)
    elif text in _TYPED:
        return Element(text, text)
    elif text in keyword_dict:
        tag = keyword_dict[text]
    else:
        hint = did_you_mean(similar_names(text, [*_TYPED, *keyword_dict]), "use one such as 0018,9345 or KVP")
        raise SettingsError(f"{text!r} is no keyword and no tag of DICOM: {hint}")
    group, number = divmod(tag, 1 << 16)
    if group == 0x7FE0 or not number:
        raise SettingsError(f"{text!r} is not in the tables of headers: they leave out pixel data and group lengths")
    written = f"{group:04X},{number:04X}"
    name, column = keyword_for_tag(tag) or written, _BY_TAG.get(written)
    return Element(name, column) if column else Element(name, _META if group == 2 else _HEADER, f"{tag:08X}")


def _counts(
    lake: Lake, collection: str, elements: Sequence[Element]
) -> tuple[list[Counter[str | None]], list[Counter[str | None]]]:
    """Return by value how many files and how many series have it, for each element."""
    files: list[Counter[str | None]] = [Counter() for _ in elements]
    series: list[set[tuple[str | None, str]]] = [set() for _ in elements]
    columns = [*dict.fromkeys((_UID, *(element.column for element in elements)))]
    for piece in lake.read_pieces(INSTANCE_HEADERS, collection, columns):
        stopping.expect_running()
        uids = piece[_UID].to_pylist()
        for element, counted, seen in zip(elements, files, series, strict=True):
            values = list(element.values(piece[element.column].to_pylist()))
            counted.update(values)
            seen.update(zip(values, uids, strict=True))
    return files, [Counter(value for value, _ in seen) for seen in series]


def _joined(values: Sequence[Any]) -> str:
    return "\\".join(_plain(value) for value in values)


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _text(element: dict[str, Any]) -> str:
    """Return the value of an element of DICOM JSON as text."""
    if "BulkDataURI" in element:
        return f"({element['vr']} in the file: {element['BulkDataURI'].rpartition('=')[2]} bytes)"
    if "InlineBinary" in element:
        return f"({element['vr']}, base64) {element['InlineBinary']}"
    values = element.get("Value", [])
    if element["vr"] == "SQ":
        return f"({len(values)} items)"
    if element["vr"] == "PN":
        values = [
            v and "=".join(v.get(part, "") for part in ("Alphabetic", "Ideographic", "Phonetic")).rstrip("=")
            for v in values
        ]
    return _joined(values)


def _ranked(files: Counter[str | None]) -> list[tuple[str | None, int]]:
    return sorted(files.items(), key=lambda one: (-one[1], one[0] is None, one[0] or ""))


def _figures(element: Element, files: Counter[str | None], series: Counter[str | None]) -> dict[str, Any]:
    values = [{"value": value, "files": number, "series": series[value]} for value, number in _ranked(files)]
    return {"tag": element.name, "column": None if element.key else element.column, "values": values}


def _table(element: Element, files: Counter[str | None], series: Counter[str | None], most: int) -> str:
    """Return the most frequent values as text."""
    rows = [
        ["-" if value is None else value or '""', f"{number:,}", f"{series[value]:,}"]
        for value, number in _ranked(files)
    ]
    text = table_text([[element.name, "files", "series"], *rows[:most]], total=False)
    return text if len(rows) <= most else f"{text}\nand {len(rows) - most:,} more values: --most or --json shows them"
