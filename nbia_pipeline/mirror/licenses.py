"""The licences of a collection: their texts beside its images and in table ``licences``.

Data without their terms are useless to the people who use them. The text is the entry ``LICENSE`` that getImage
sends before the first image (server), so that a few kilobytes of the smallest series are enough.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nbia_pipeline.archive import BadAnswer, LoginRefused, NbiaClient, NotAvailable, ServerError
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import license_path
from nbia_pipeline.mirror.zip_stream import InvalidZip, stream_entries
from nbia_pipeline.schema.tables import LICENSES

log = logging.getLogger(__name__)

LICENSE = "LICENSE"
MOST_BYTES = 1 << 20
# A series can be hidden since it was listed; others tell the same.
SERIES_ASKED = 3

_FACTS = ["SeriesInstanceUID", "FileSize", "ImageCount"]


@dataclass(frozen=True, order=True)
class License:
    """A licence as series name it; empty where they name none, which sorts where None would not."""

    name: str
    uri: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.name, f"<{self.uri}>" if self.uri else "") if part) or "no licence"


def keep_licenses(client: NbiaClient, lake: Lake, collection: str, series: pa.Table) -> pa.Table:
    """Make sure that the text of every licence of a collection is in the lake, and return its table of licences.

    A text that is there is not asked for again. One that the archive does not serve is null in the table, is told
    in the log, and is asked for again by the next run. A licence that no series names any more stays.

    Args:
        client: the archive; without a missing text it is not asked anything.
        lake: where to.
        collection: which partition.
        series: the rows of its ``series`` table.

    Raises:
        ArchiveError: the archive cannot be reached or refuses the account.
        LakeError: the lake cannot be written.
    """
    before = lake.read_table(LICENSES, collection)
    rows = {_licence_of(row): {**row, "SeriesCount": 0} for row in before.to_pylist()}
    for license, listed in _series_by_licence(series).items():
        row = rows.setdefault(license, _row(collection, listed[0]))
        row["SeriesCount"] = len(listed)
        if row["LicenseText"] is None:
            row["LicenseText"] = _ask(client, collection, license, listed)
    _write_files(lake, collection, rows)
    table = pa.Table.from_pylist([rows[license] for license in sorted(rows)], schema=LICENSES.schema)
    if not table.equals(before):
        lake.write_table(LICENSES, table, collection)
    return table


def read_license(chunks: Iterator[bytes]) -> str | None:
    """Return the text of the licence that begins a zip of getImage; nothing after it is read.

    Args:
        chunks: the bytes of the zip.

    Returns:
        The text, None where it is empty or missing: the server has none to give.

    Raises:
        BadAnswer: this is no zip, or the licence is longer than any.
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
        raise BadAnswer(f"no LICENSE can be read: {e}") from e
    return _decoded(bytes(text)).strip() or None


def _series_by_licence(series: pa.Table) -> dict[License, list[dict[str, Any]]]:
    """Return the rows of the series by licence, the smallest with images first."""
    found: dict[License, list[dict[str, Any]]] = {}
    for row in series.select([*_FACTS, "LicenseName", "LicenseURI"]).to_pylist():
        found.setdefault(_licence_of(row), []).append(row)
    for rows in found.values():
        rows.sort(key=_size)
    return found


def _size(row: dict[str, Any]) -> tuple[bool, bool, int, str]:
    return row["ImageCount"] == 0, row["FileSize"] is None, row["FileSize"] or 0, row["SeriesInstanceUID"]


def _licence_of(row: dict[str, Any]) -> License:
    return License(row["LicenseName"] or "", row["LicenseURI"] or "")


def _row(collection: str, named: dict[str, Any]) -> dict[str, Any]:
    known = {name: named[name] for name in ("LicenseName", "LicenseURI")}
    return {"Collection": collection, **known, "LicenseText": None, "Path": None}


def _ask(client: NbiaClient, collection: str, license: License, listed: list[dict[str, Any]]) -> str | None:
    """Ask for the text of a licence; what the archive answers instead is told in the log."""
    why = ""
    for row in listed[:SERIES_ASKED]:
        try:
            text = client.image(row["SeriesInstanceUID"], read_license)
        except (NotAvailable, BadAnswer, ServerError) as e:
            why = str(e)
            continue
        except LoginRefused as e:
            if e.status != 500:  # server: how v4 may fail at a series when the guest asks
                raise
            why = str(e)
            continue
        if text is not None:
            return text
        why = "its LICENSE is empty"
        break  # server: no text is configured, for any series
    log.warning("%s: the archive serves no text of %s (%s); the next run asks again", collection, license, why)
    return None


def _write_files(lake: Lake, collection: str, rows: dict[License, dict[str, Any]]) -> None:
    """Put each text where its row says; a file that was removed is written again."""
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
    """Return the path of a licence; where two share a name, their addresses tell them apart."""
    path = license_path(collection, license.name)
    if path not in taken:
        return path
    digest = hashlib.md5(f"{license.name}\n{license.uri}".encode(), usedforsecurity=False).hexdigest()
    return license_path(collection, license.name, digest[:8])


def _decoded(text: bytes) -> str:
    """Return the text; a server of Java writes it in the encoding of its machine."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("cp1252", "replace")
