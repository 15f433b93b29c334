"""The licenses of a collection: their texts next to its images and in table ``licences``.

Data without its terms is useless to those who use it. The text is the entry ``LICENSE`` that getImage
sends before the first image (server), so that a few kilobytes of the smallest series are enough.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import stopping
from nbia_pipeline.archive import BadAnswer, NbiaClient, NotAvailable
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.damage import read_or_empty
from nbia_pipeline.lake.layout import license_path
from nbia_pipeline.lake.table_file import Rows, pieces_of
from nbia_pipeline.mirror.unpack import LICENSE
from nbia_pipeline.mirror.zip_stream import InvalidZip, stream_entries
from nbia_pipeline.schema.arrow import first_of_each
from nbia_pipeline.schema.tables import LICENSES
from nbia_pipeline.text import logger

log = logger(__name__)

MOST_BYTES = 1 << 20
# A series can be hidden since it was listed; others have the same text.
SERIES_ASKED = 3
_NAMED = ["LicenseName", "LicenseURI"]
# Most collections have one or two licenses; an archive that serves no text is asked that often at once.
ASKED_AT_A_TIME = 4

LOST = "The texts are asked for again; licenses that no series names any longer are gone from the table"
_EMPTY = "its LICENSE is empty"


@dataclass(frozen=True, order=True)
class License:
    """A license as series name it; empty where they name none, which sorts where None would not."""

    name: str
    uri: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.name, f"<{self.uri}>" if self.uri else "") if part) or "no license"


def keep_licenses(client: NbiaClient, lake: Lake, collection: str, series: Rows) -> pa.Table:
    """Make sure that the text of every license of a collection is in the lake, and return its table of licenses.

    A text that is there is not asked for again. One that the archive does not serve is null in the table and logged
    as a warning, and the next run asks again. A license that no series names any longer stays.

    Args:
        client: the archive; it is asked only for missing texts.
        lake: where to.
        collection: which partition.
        series: the rows of its ``series`` table.

    Raises:
        ArchiveError: the archive issues no token: it refuses the account, or cannot be reached.
        LakeError: the lake cannot be written.
    """
    before = read_or_empty(lake, LICENSES, collection, lost=LOST)
    rows = {_license_of(row): {**row, "SeriesCount": 0} for row in before.to_pylist()}
    by_license = _series_by_license(series)
    for license, (count, listed) in by_license.items():
        named = {name: listed[0][name] for name in _NAMED}
        new = {"Collection": collection, **named, "LicenseText": None, "Path": None}
        row = rows.setdefault(license, new)
        row["SeriesCount"] = count
    missing = [license for license in by_license if rows[license]["LicenseText"] is None]
    with stopping.threads(ASKED_AT_A_TIME, "nbia-licenses") as pool:
        texts = pool.map(lambda license: _ask(client, collection, license, by_license[license][1]), missing)
        for license, text in zip(missing, texts, strict=True):
            rows[license]["LicenseText"] = text
    _write_files(lake, collection, rows)
    table = pa.Table.from_pylist([rows[license] for license in sorted(rows)], schema=LICENSES.schema)
    if not table.equals(before):
        lake.write_table(LICENSES, table, collection)
    return table


def read_license(chunks: Iterator[bytes]) -> str | None:
    """Return the text of the license that begins a zip of getImage; nothing after it is read.

    It is None where the text is empty or missing: the server has none to give.

    Raises:
        BadAnswer: this is not a zip, or the license is longer than any real one.
    """
    try:
        first = next(stream_entries(chunks), None)
        if first is None or first.name != LICENSE:
            return None
        text = bytearray()
        for piece in first:
            text += piece
            if len(text) > MOST_BYTES:
                raise BadAnswer(f"the LICENSE is longer than {MOST_BYTES:,} bytes")
    except InvalidZip as e:
        raise BadAnswer(f"the LICENSE cannot be read: {e}") from e
    return _decoded(bytes(text)).strip() or None


def _series_by_license(series: Rows) -> dict[License, tuple[int, list[dict[str, Any]]]]:
    """Return by license how many series have it, and the rows of some to ask for: the smallest with images first."""
    counts: Counter[License] = Counter()
    some = []
    for piece in pieces_of(series, [*_NAMED, "SeriesInstanceUID", "FileSize", "ImageCount"]):
        for row in piece.group_by(_NAMED, use_threads=False).aggregate([([], "count_all")]).to_pylist():
            counts[_license_of(row)] += row["count_all"]
        some.append(_smallest_of_each(piece))
    found: dict[License, tuple[int, list[dict[str, Any]]]] = {}
    for row in _smallest_of_each(pa.concat_tables(some)).to_pylist() if some else ():
        license = _license_of(row)
        found.setdefault(license, (counts[license], []))[1].append(row)
    return found


def _smallest_of_each(series: pa.Table) -> pa.Table:
    """Return as many series of each license as are asked for."""
    without_images = pc.fill_null(pc.equal(series["ImageCount"], 0), False)
    order = [(name, "ascending") for name in ("__empty", "FileSize", "SeriesInstanceUID")]
    left = series.append_column("__empty", without_images).sort_by(order).drop_columns(["__empty"])
    left = left.append_column("__row", pa.array(range(left.num_rows), pa.int64()))
    found = []
    for _ in range(SERIES_ASKED):
        found.append(first_of_each(left, *_NAMED))
        left = left.filter(pc.invert(pc.is_in(left["__row"], value_set=found[-1]["__row"])))
    return pa.concat_tables(found).sort_by("__row").drop_columns(["__row"])


def _license_of(row: dict[str, Any]) -> License:
    return License(row["LicenseName"] or "", row["LicenseURI"] or "")


def _ask(client: NbiaClient, collection: str, license: License, listed: list[dict[str, Any]]) -> str | None:
    """Ask for the text of a license; a warning in the log states what the archive answers instead."""
    why, level = "it does not answer", logging.INFO  # the client's warning states why
    for row in listed[:SERIES_ASKED]:
        found = client.optional("image", partial(_text, client, row["SeriesInstanceUID"]), "the texts of licenses")
        if found is None:
            continue
        text, why = found
        if text is not None:
            return text
        level = logging.WARNING
        if why == _EMPTY:
            break  # server: no text is configured, for any series
    log.log(level, "%s: the archive serves no text for %s (%s); the next run asks again", collection, license, why)
    return None


def _text(client: NbiaClient, series_uid: str) -> tuple[str | None, str]:
    """Return the text that comes with a series; where there is none, why."""
    try:
        text = client.image(series_uid, read_license)
    except NotAvailable as e:
        return None, str(e)
    return text, _EMPTY if text is None else ""


def _write_files(lake: Lake, collection: str, rows: dict[License, dict[str, Any]]) -> None:
    """Write each text to the path in its row; a file that was removed is written again."""
    taken = {row["Path"] for row in rows.values() if row["Path"]}
    for license in sorted(rows):
        row = rows[license]
        if row["LicenseText"] is None:
            continue
        if row["Path"] is None:
            row["Path"] = _free_path(collection, license, taken)
            taken.add(row["Path"])
        text = row["LicenseText"].encode()
        if lake.read_bytes(row["Path"]) != text:
            lake.put_bytes(row["Path"], text)


def _free_path(collection: str, license: License, taken: set[str]) -> str:
    """Return the path of a license; where two share a name, their addresses distinguish them."""
    path = license_path(collection, license.name)
    digest = hashlib.md5(f"{license.name}\n{license.uri}".encode(), usedforsecurity=False).hexdigest()
    return path if path not in taken else license_path(collection, license.name, digest[:8])


def _decoded(text: bytes) -> str:
    """Return the text; a Java server writes it in its machine's encoding."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("cp1252", "replace")
