"""Which series are wanted: by modality, body part and patient, or named one by one; those of a shared cart."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.present import present_series
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.series import in_order_of
from nbia_pipeline.schema.arrow import among, same_values
from nbia_pipeline.schema.tables import SERIES

log = logging.getLogger(__name__)

LIST_OF_SERIES = "ListOfSeriesToDownload="

# Up to this many series of a collection are asked for one by one; for more, the collection is listed in full.
ONE_BY_ONE = 30

_UID = "SeriesInstanceUID"
# What a cart states about its series, which a row of the lake must agree with.
_OF_A_CART = ("Collection", "ImageCount", "DateReleased")


class SelectionError(Exception):
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

    def apply(self, series: pa.Table) -> pa.Table:
        """Return the rows of a ``series`` table that are wanted, in their order."""
        for column, values in (("Modality", self.modalities), ("BodyPartExamined", self.body_parts)):
            if values:
                wanted = _folded(pa.array(values, pa.string()))
                series = series.filter(pc.is_in(_folded(series[column]), value_set=wanted))
        for column, values in (("PatientID", self.patients), ("SeriesInstanceUID", self.series)):
            if values:
                series = series.filter(among(series[column], values))
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


def read_manifest(path: str | Path) -> list[str]:
    """Return the SeriesInstanceUIDs of a ``.tcia`` manifest, as the archive's web pages give it.

    Six lines ``key=value``, the last of them ``ListOfSeriesToDownload=``, then one UID a line (server). Blank
    lines, other ends of lines and a byte-order mark do not matter.

    Args:
        path: of the file.

    Raises:
        SelectionError: the file cannot be read, is not a manifest, or names no series.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as e:
        raise SelectionError(f"cannot read the manifest {path} ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise SelectionError(f"{path} is not a .tcia manifest: it is not a text file") from e
    lines = [line.strip() for line in text.splitlines()]
    if LIST_OF_SERIES not in lines:
        raise SelectionError(f"{path} is not a .tcia manifest: it has no line {LIST_OF_SERIES!r}")
    uids = [line for line in lines[lines.index(LIST_OF_SERIES) + 1 :] if line]
    wrong = next((uid for uid in uids if not _is_uid(uid)), None)
    if wrong is not None:
        raise SelectionError(f"{path} is not a .tcia manifest: {wrong[:80]!r} is not a SeriesInstanceUID")
    if not uids:
        raise SelectionError(f"the manifest {path} names no series")
    return list(dict.fromkeys(uids))


def _is_uid(text: str) -> bool:
    """Return whether `text` can be a UID: digits and dots, at most 64 (DICOM PS3.5, 9.1)."""
    return len(text) <= 64 and text.isascii() and text.replace(".", "").isdigit()


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
    rows = rows.filter(pc.is_in(rows[_UID], value_set=in_cart[_UID].combine_chunks()))
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
