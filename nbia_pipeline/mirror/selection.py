"""Which series are wanted: by modality, body part and patient, or named one by one; those of a shared cart.

A run has a selection of its own, :class:`Selection`; that of the configuration stays, :class:`Selections`. A series is
fetched if both want it.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.present import moment, present_series
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.table_file import Rows, rows_where
from nbia_pipeline.mirror.series import in_order_of
from nbia_pipeline.schema.arrow import among, same_values
from nbia_pipeline.schema.status import LISTED_AT, PENDING, SELECTION
from nbia_pipeline.schema.tables import IMAGE_SERIES, SELECTED_SERIES, SERIES
from nbia_pipeline.text import TextError, logger, matching

log = logger(__name__)

LIST_OF_SERIES = "ListOfSeriesToDownload="

# Up to this many series of a collection are asked for one by one; for more, the collection is listed in full.
ONE_BY_ONE = 30

# A manifest or a cart of the configuration is read again this often, if nothing else makes a run of images.
LIST_STAYS = timedelta(days=1)

_UID = "SeriesInstanceUID"
# What a cart states about its series, which a row of the lake must agree with.
_OF_A_CART = ("Collection", "ImageCount", "DateReleased")


class SelectionError(TextError):
    """A selection cannot be read or names nothing; the text states which, and what to do."""


@dataclass(frozen=True)
class Selection:
    """Which series are wanted: those that match every field; a field without values matches all.

    Attributes:
        modalities: any of these, in any case.
        body_parts: any of these, in any case; blanks around a value are ignored, because the archive has some.
        patients: any of these PatientIDs, exactly.
        series: any of these SeriesInstanceUIDs.
    """

    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    series: tuple[str, ...] = ()

    def apply(self, series: Rows) -> Rows:
        """Return the rows of a ``series`` table that are wanted, in their order; if all are, as they came."""
        for column, values in (("Modality", self.modalities), ("BodyPartExamined", self.body_parts)):
            if values:
                wanted = _folded(pa.array(values, pa.string()))
                series = rows_where(series, pc.is_in(_folded(series[column]), value_set=wanted))
        for column, values in (("PatientID", self.patients), ("SeriesInstanceUID", self.series)):
            if values:
                series = rows_where(series, among(series[column], values))
        return series


def _folded(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.utf8_upper(pc.utf8_trim_whitespace(values))


def with_lists(
    selection: Selection,
    *,
    manifest: str | Path | None = None,
    cart: str | None = None,
    client: NbiaClient | None = None,
) -> Selection:
    """Add the series of a manifest and of a shared cart to those that a selection names.

    Args:
        selection: what else is wanted.
        manifest: path of a ``.tcia`` file.
        cart: name of a shared cart.
        client: the archive; needed for a cart.

    Raises:
        SelectionError: the file is not a manifest, or the cart has no series.
        ArchiveError: the archive cannot be asked for the cart.
        ValueError: a cart is named without a client.
    """
    named = list(selection.series)
    if manifest is not None:
        named += read_manifest(manifest)
    if cart is not None:
        if client is None:
            raise ValueError("a cart is read from the archive: pass a client")
        named += read_cart(client, cart)
    return replace(selection, series=tuple(dict.fromkeys(named)))


# --- the selections of the configuration


class NotRead(SelectionError):
    """No run of images has read the manifest or the cart of a collection yet."""


@dataclass(frozen=True)
class Selections:
    """The selections of the configuration: of each collection, which of its series are wanted.

    A manifest and a cart are read when a run of images is planned. The lake remembers which series of the collection
    they named, in table ``selected_series``, for all that judge without the archive, and while a cart cannot be asked.

    Attributes:
        entries: fields of a :class:`Selection`, ``manifest`` and ``cart`` by names or globs of collections, as in the
            setting ``select``. The first that matches a collection applies; without one, all its series are wanted.
    """

    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def entry(self, collection: str) -> Mapping[str, Any]:
        """Return what is selected of a collection; nothing: all of it."""
        return next((entry for pattern, entry in self.entries.items() if matching([pattern], [collection])), {})

    def wanted(self, lake: Lake, collection: str, series: Rows) -> Rows:
        """Return those of the rows of a ``series`` table that are wanted; of a list, as it was last read.

        A series whose files were in the lake and must be fetched again is wanted whatever is selected.

        Args:
            lake: the lake.
            collection: exact spelling.
            series: its rows.

        Raises:
            NotRead: the list of series was not read yet.
            LakeError: the lake cannot be read.
        """
        entry = self.entry(collection)
        if not entry:
            return series
        selected = _selection_of(entry).apply(series)
        if _has_list(entry):
            selected = rows_where(selected, among(selected[_UID], self._remembered(lake, collection, entry)))
        receipts = lake.read_table(IMAGE_SERIES, collection, columns=[_UID, "Status", "FetchedAt"])
        again = receipts.filter(pc.and_(pc.equal(receipts["Status"], PENDING), pc.is_valid(receipts["FetchedAt"])))
        uids = pa.concat_arrays([*selected[_UID].chunks, *again[_UID].chunks, pa.array([], pa.string())])
        return rows_where(series, pc.is_in(series[_UID], value_set=uids))

    def read(self, client: NbiaClient, lake: Lake, collection: str, series: Rows, lists: dict[str, Selection]) -> None:
        """Read the manifest and the cart of a collection, and remember which of its series they name.

        Args:
            client: the archive.
            lake: the lake.
            collection: exact spelling.
            series: its rows of the ``series`` table.
            lists: what was read for other collections of the same plan, to which this is added.

        Raises:
            SelectionError: the manifest cannot be read, or the cart has no series; what is remembered stays.
            ArchiveError: the archive cannot be asked for the cart; the same.
            LakeError: the lake cannot be written.
        """
        entry = self.entry(collection)
        if not _has_list(entry):
            return
        key = _as_json(entry)
        if key not in lists:
            named = Selection(series=tuple(entry.get("series", ())))
            lists[key] = with_lists(named, manifest=entry.get("manifest"), cart=entry.get("cart"), client=client)
        uids = lists[key].apply(series)[_UID]
        rows = pa.table({_UID: uids, "Collection": pa.repeat(collection, len(uids))}, schema=SELECTED_SERIES.schema)
        properties = {SELECTION: key, LISTED_AT: clock.utc_now().isoformat()}
        lake.write_table(SELECTED_SERIES, rows, collection, properties=properties, may_empty=True)

    def is_outdated(self, lake: Lake, collection: str) -> bool:
        """Return whether a manifest or a cart was not read for a day, or never."""
        entry = self.entry(collection)
        if not _has_list(entry):
            return False
        properties = lake.read_properties(SELECTED_SERIES, collection)
        read_at = moment(properties.get(LISTED_AT))
        return properties.get(SELECTION) != _as_json(entry) or clock.utc_now() - read_at > LIST_STAYS

    def _remembered(self, lake: Lake, collection: str, entry: Mapping[str, Any]) -> list[str]:
        if lake.read_properties(SELECTED_SERIES, collection).get(SELECTION) != _as_json(entry):
            lists = " and ".join(f"the {name} {entry[name]!r}" for name in ("manifest", "cart") if name in entry)
            raise NotRead(f"{lists}, which selects the series of {collection!r}, was not read yet: materialize images")
        uids: list[str] = lake.read_table(SELECTED_SERIES, collection, columns=[_UID])[_UID].to_pylist()
        return uids


ALL_WANTED = Selections()


def _has_list(entry: Mapping[str, Any]) -> bool:
    return "manifest" in entry or "cart" in entry


def _selection_of(entry: Mapping[str, Any]) -> Selection:
    """Return what an entry selects without its lists, to which series that are named one by one are added."""
    fields = ("modalities", "body_parts", "patients", *(() if _has_list(entry) else ("series",)))
    return Selection(**{name: tuple(entry.get(name, ())) for name in fields})


def _as_json(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True)


# --- manifests


def read_manifest(path: str | Path) -> list[str]:
    """Return the SeriesInstanceUIDs that a file names, in its order, each once.

    The archive's web pages give a ``.tcia`` manifest: six lines ``key=value``, the last of them
    ``ListOfSeriesToDownload=``, then one UID a line (server); the server's own sample has a title line between the two.
    A spreadsheet that the archive or its clients export is read by its column of series UIDs, whatever separates the
    cells, and so is a plain list of UIDs. Blank lines, comments after ``#``, quotes, commas, byte-order marks, the
    encoding and the ends of lines do not matter.

    Args:
        path: of the file.

    Raises:
        SelectionError: the file cannot be read, is not a manifest, has something else where a UID is due, or names no
            series.
    """
    try:
        lines = _LINE_END.split(_decoded(Path(path).read_bytes()))
    except OSError as e:
        raise SelectionError(f"cannot read the manifest {path} ({e.strerror})") from e
    except ValueError as e:
        raise SelectionError(f"{path} is not a .tcia manifest: it is not a text file") from e
    start = next((n for n, line in enumerate(lines) if _KEY_OF_LIST.match(line)), None)
    not_one = f"{path} is not a .tcia manifest:"
    if start is None:
        not_one += f" it has no line {LIST_OF_SERIES!r}, and"
    else:
        lines = [*[""] * start, _KEY_OF_LIST.sub("", lines[start]), *lines[start + 1 :]]
    uids: list[str] = []
    try:
        for number, found in _where_uids_are_due(lines):
            wrong = next((text for text in found if not _is_uid(text, alone=len(found) == 1)), None)
            if wrong is not None:
                raise SelectionError(f"{not_one} {wrong[:80]!r} is not a SeriesInstanceUID (line {number})")
            uids += found
    except csv.Error as e:
        raise SelectionError(f"{not_one} its table cannot be read ({e}): check its quotes") from e
    if not uids:
        empty = f"the manifest {path}" if start is not None else not_one
        raise SelectionError(f"{empty} names no series")
    return list(dict.fromkeys(uids))


_LINE_END = re.compile(r"\r\n|\r|\n")
_KEY_OF_LIST = re.compile(rf"[\s\"']*{LIST_OF_SERIES[:-1]}\s*=", re.IGNORECASE)
_KEY_AND_VALUE = re.compile(r"([A-Za-z]\w*)\s*=(.*)")
_COMMENT = re.compile(r"(^|\s)(#|//).*")
_AROUND_UIDS = " \t\"'`\u201c\u201d\u2018\u2019()[]{},;|\ufeff\u200b\xa0\x1a"
_BETWEEN_UIDS = re.compile(r"[\s,;|]+")
_SEPARATORS = "\t,;|"
# Titles of the column in the archive's and its clients' exports, without blanks, underscores and case.
_TITLES = frozenset(("seriesinstanceuid", "seriesinstanceuids", "seriesuid", "seriesuids", "seriesid", "seriesids"))


def _decoded(content: bytes) -> str:
    """Return the text of a file, as Windows, Excel or anyone else wrote it.

    Raises:
        ValueError: it is not text.
    """
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return content.decode("utf-32")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    start = content[:200]
    for encoding, zeros in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
        if start and 2 * zeros.count(0) > len(zeros):  # Latin letters and digits, in two bytes each
            return content.decode(encoding)
    if b"\0" in content:
        raise ValueError("it has NUL characters")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")  # what is not ASCII is in a note or in another column


def _where_uids_are_due(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the words of each line where UIDs are due; of a table, the one cell for them.

    Blank lines, comments, titles of the column and ``key=value`` are left out, and so are notes before the first UID,
    unless there is no UID at all.
    """
    begun, note = False, None
    for number, line in enumerate(lines, 1):
        for separator in _SEPARATORS:
            column = _column_of_uids(line, separator)
            if column is not None:
                yield from _column(lines[number:], column, separator, number)
                return
        text = _COMMENT.sub("", line).strip(_AROUND_UIDS)
        if (pair := _KEY_AND_VALUE.fullmatch(text)) is not None:
            text = pair[2].strip(_AROUND_UIDS) if _is_title(pair[1]) else ""
        if not text or _is_title(text):
            continue
        if not begun and _is_note(text):
            note = note or (number, [text])
            continue
        begun = True
        yield number, [uid for word in _BETWEEN_UIDS.split(text) if (uid := word.strip(_AROUND_UIDS))]
    if not begun and note is not None:
        yield note


def _column_of_uids(line: str, separator: str) -> int | None:
    """Return which column of a table has the UIDs, if `line` is its titles."""
    if separator not in line.strip(_AROUND_UIDS):
        return None
    titles = next(csv.reader([line], delimiter=separator))
    return next((n for n, title in enumerate(titles) if _is_title(title)), None)


def _column(lines: Sequence[str], column: int, separator: str, before: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the UID of each row of a table; `before` lines are before its first row.

    Raises:
        csv.Error: a quote is not closed, which would hide the rows behind it.
    """
    rows = csv.reader((f"{line}\n" for line in lines), delimiter=separator, strict=True)
    for row in rows:
        cells = [cell.strip(_AROUND_UIDS) for cell in row]
        if any(cells) and not cells[0].startswith("#"):
            cell = cells[column] if column < len(cells) else ""
            if not _is_title(cell):  # as where one table was appended to another
                yield before + rows.line_num, [cell or separator.join(row)]


def _is_title(text: str) -> bool:
    return re.sub(r"[\W_]", "", text).lower() in _TITLES


def _is_note(text: str) -> bool:
    """Return whether a line that is not a UID is a note: words, not a broken UID, an identifier, or a page's tag."""
    return text[0].isalpha() and "<" not in text and (" " in text or not any(c.isdigit() for c in text))


def _is_uid(text: str, *, alone: bool = True) -> bool:
    """Return whether `text` can be a UID: digits and dots, at most 64 (DICOM PS3.5, 9.1)."""
    plain = len(text) <= 64 and text.isascii() and text.replace(".", "").isdigit()
    return plain and (alone or "." in text)  # among others, a number without dots is something else


# --- shared carts


def read_cart(client: NbiaClient, name: str) -> list[str]:
    """Return the SeriesInstanceUIDs of a shared cart.

    Raises:
        SelectionError: it has none that this account may see, which is also how the archive answers a wrong name.
        ArchiveError: the archive cannot be asked; v4 has no carts.
    """
    return list(dict.fromkeys(_rows_of_cart(client, name)[_UID].to_pylist()))


def cart_series(client: NbiaClient, lake: Lake, name: str) -> pa.Table:
    """Return the series of a shared cart: table ``series``, by collection and UID.

    A cart states neither size nor time of submission of its series. The lake has them where the collection is kept
    and did not change since; the archive is asked for the others. A series that the archive no longer lists is left
    out, with a warning in the log.

    Args:
        client: the archive.
        lake: the lake.
        name: of the cart, in any case.

    Raises:
        SelectionError: the cart has no series that this account may see.
        ArchiveError: the archive cannot be asked; v4 has no carts.
        LakeError: the lake cannot be read.
    """
    cart = _rows_of_cart(client, name)
    found = [SERIES.schema.empty_table()]
    for collection in sorted(set(cart["Collection"].to_pylist()) - {None}):
        in_cart = cart.filter(pc.equal(cart["Collection"], collection))
        known = _known(lake, collection, in_cart)
        uids = sorted(set(in_cart[_UID].to_pylist()) - set(known[_UID].to_pylist()))
        found += [known, _listed(client, collection, uids)]
    rows = pa.concat_tables([t.cast(SERIES.schema) for t in found])
    lost = sorted(set(cart[_UID].to_pylist()) - set(rows[_UID].to_pylist()))
    if lost:
        log.warning("%s series of the cart %r are no longer listed: %s", len(lost), name, ", ".join(lost[:10]))
    return rows.sort_by([("Collection", "ascending"), (_UID, "ascending")])


def _rows_of_cart(client: NbiaClient, name: str) -> pa.Table:
    rows = client.contents_by_name(name)
    rows = rows.filter(pc.is_valid(rows[_UID]))
    if not rows.num_rows:
        raise SelectionError(
            f"the archive lists no series in a shared cart {name!r}: check its name, and that this account may see it"
        )
    return rows


def _known(lake: Lake, collection: str, in_cart: pa.Table) -> pa.Table:
    """Return the rows of the lake that agree with what the cart states now."""
    rows = present_series(lake, collection)
    rows = rows_where(rows, pc.is_in(rows[_UID], value_set=in_cart[_UID].combine_chunks()))
    now = in_order_of(rows, in_cart)
    agree = pc.is_valid(now[_UID])
    for column in _OF_A_CART:
        agree = pc.and_(agree, same_values(rows[column], now[column]))
    return rows.filter(agree)


def _listed(client: NbiaClient, collection: str, uids: list[str]) -> pa.Table:
    if len(uids) > ONE_BY_ONE:
        listed = client.series(collection)
        return listed.filter(among(listed[_UID], uids))
    return pa.concat_tables([SERIES.schema.empty_table(), *(client.series(series_uid=uid) for uid in uids)])
