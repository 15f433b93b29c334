"""Which of a collection's series are wanted: by modality, body part and patient, or named one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.archive import NbiaClient

LIST_OF_SERIES = "ListOfSeriesToDownload="


class SelectionError(Exception):
    """A selection cannot be read or names nothing; the text says which, and what to do."""


@dataclass(frozen=True)
class Selection:
    """Which series are wanted; a field without values leaves none out, and all fields hold at once.

    Attributes:
        modalities: any of these, in any case.
        body_parts: any of these, in any case; blanks around a value do not count, for the archive has some.
        patients: any of these PatientIDs, exactly.
        series: any of these SeriesInstanceUIDs.
    """

    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    patients: tuple[str, ...] = ()
    series: tuple[str, ...] = ()

    def apply(self, series: pa.Table) -> pa.Table:
        """Return the rows of a ``series`` table that are wanted, in their order."""
        for column, values in (("Modality", self.modalities), ("BodyPartExamined", self.body_parts)):
            if values:
                series = series.filter(_among(_folded(series[column]), _folded(pa.array(values, pa.string()))))
        for column, values in (("PatientID", self.patients), ("SeriesInstanceUID", self.series)):
            if values:
                series = series.filter(_among(series[column], pa.array(values, pa.string())))
        return series


def _folded(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.utf8_upper(pc.utf8_trim_whitespace(values))


def _among(values: pa.ChunkedArray, wanted: pa.Array) -> pa.ChunkedArray:
    return pc.is_in(values, value_set=wanted)


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
        SelectionError: the manifest is none, or the cart has no series.
        ArchiveError: the archive cannot be asked for the cart.
        ValueError: there is a cart, and no client.
    """
    named = list(selection.series)
    if manifest is not None:
        named += read_manifest(manifest)
    if cart is not None:
        if client is None:
            raise ValueError("a cart is read from the archive: give a client")
        named += read_cart(client, cart)
    return replace(selection, series=_once(named))


def read_cart(client: NbiaClient, name: str) -> list[str]:
    """Return the SeriesInstanceUIDs of a shared cart.

    Raises:
        SelectionError: it has none that this account may see, which is also how the archive answers a wrong name.
        ArchiveError: the archive cannot be asked; v4 has no carts.
    """
    return list(_once(rows_of_cart(client, name)["SeriesInstanceUID"].to_pylist()))


def rows_of_cart(client: NbiaClient, name: str) -> pa.Table:
    """Return the series of a shared cart: table ``series``, with what the archive tells of them there.

    Raises:
        SelectionError: it has none that this account may see, which is also how the archive answers a wrong name.
        ArchiveError: the archive cannot be asked; v4 has no carts.
    """
    rows = client.contents_by_name(name)
    rows = rows.filter(pc.is_valid(rows["SeriesInstanceUID"]))
    if not rows.num_rows:
        raise SelectionError(
            f"the archive knows no series in a shared cart {name!r}: check its name, and that this account may see it"
        )
    return rows


def read_manifest(path: str | Path) -> list[str]:
    """Return the SeriesInstanceUIDs of a ``.tcia`` manifest, as the archive's web pages give it.

    Six lines ``key=value``, the last of them ``ListOfSeriesToDownload=``, then one UID a line (server). Blank
    lines, other ends of lines and a byte-order mark do not matter.

    Args:
        path: of the file.

    Raises:
        SelectionError: the file cannot be read, is no manifest, or names no series.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as e:
        raise SelectionError(f"cannot read the manifest {path} ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise SelectionError(f"{path} is no .tcia manifest: it is not a text") from e
    lines = [line.strip() for line in text.splitlines()]
    if LIST_OF_SERIES not in lines:
        raise SelectionError(f"{path} is no .tcia manifest: it has no line {LIST_OF_SERIES!r}")
    uids = [line for line in lines[lines.index(LIST_OF_SERIES) + 1 :] if line]
    wrong = next((uid for uid in uids if not _is_uid(uid)), None)
    if wrong is not None:
        raise SelectionError(f"{path} is no .tcia manifest: {wrong[:80]!r} is no SeriesInstanceUID")
    if not uids:
        raise SelectionError(f"the manifest {path} names no series")
    return list(_once(uids))


def _is_uid(text: str) -> bool:
    """Tell whether `text` can be a UID: digits and dots, 64 at most (DICOM PS3.5, 9.1)."""
    return len(text) <= 64 and text.isascii() and text.replace(".", "").isdigit()


def _once(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
