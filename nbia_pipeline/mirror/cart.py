"""The series of a shared cart, as whole rows of the series table: what is needed to fetch and to prove them.

A cart tells of its series neither size nor time of submission. The lake has them where the collection is kept and
did not change since; of the others the archive is asked.
"""

from __future__ import annotations

import logging

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.present import present_series
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.selection import rows_of_cart
from nbia_pipeline.mirror.series import in_order_of
from nbia_pipeline.schema.tables import SERIES

log = logging.getLogger(__name__)

# So many series of a collection are asked for one by one; of more, the collection is listed whole.
ONE_BY_ONE = 30

_UID = "SeriesInstanceUID"
_TOLD = ("Collection", "ImageCount", "DateReleased")
"""What a cart tells and a row of the lake must agree with."""


def cart_series(client: NbiaClient, lake: Lake, name: str) -> pa.Table:
    """Return the series of a shared cart: table ``series``, by collection and UID.

    A series that the archive does not list any more is left out, and told in the log.

    Args:
        client: the archive.
        lake: the lake.
        name: of the cart, in any case.

    Raises:
        SelectionError: the cart has no series that this account may see.
        ArchiveError: the archive cannot be asked; v4 has no carts.
        LakeError: the lake cannot be read.
    """
    told = rows_of_cart(client, name)
    found = [SERIES.schema.empty_table()]
    for collection in sorted(set(told["Collection"].to_pylist()) - {None}):
        of_it = told.filter(pc.equal(told["Collection"], collection))
        known = _known(lake, collection, of_it)
        uids = sorted(set(of_it[_UID].to_pylist()) - set(known[_UID].to_pylist()))
        found += [known, _asked(client, collection, uids)]
    rows = pa.concat_tables([t.cast(SERIES.schema) for t in found])
    lost = sorted(set(told[_UID].to_pylist()) - set(rows[_UID].to_pylist()))
    if lost:
        log.warning("%s series of the cart %r are not listed any more: %s", len(lost), name, ", ".join(lost[:10]))
    return rows.sort_by([("Collection", "ascending"), (_UID, "ascending")])


def whole_listing(lake: Lake, collection: str, rows: pa.Table) -> pa.Table:
    """Return what the lake knows to be listed of a collection; where it keeps no list, the given rows of it."""
    if lake.count_rows(SERIES, collection):
        return present_series(lake, collection)
    return rows.filter(pc.equal(rows["Collection"], collection))


def _known(lake: Lake, collection: str, told: pa.Table) -> pa.Table:
    """Return the rows of the lake that agree with what the cart tells now."""
    rows = present_series(lake, collection)
    rows = rows.filter(pc.is_in(rows[_UID], value_set=told[_UID].combine_chunks()))
    now = in_order_of(rows, told)
    agree = pc.is_valid(now[_UID])
    for column in _TOLD:
        same = pc.fill_null(
            pc.equal(rows[column], now[column]), pc.and_(pc.is_null(rows[column]), pc.is_null(now[column]))
        )
        agree = pc.and_(agree, same)
    return rows.filter(agree)


def _asked(client: NbiaClient, collection: str, uids: list[str]) -> pa.Table:
    if len(uids) > ONE_BY_ONE:
        listed = client.series(collection)
        return listed.filter(pc.is_in(listed[_UID], value_set=pa.array(uids, pa.string())))
    return pa.concat_tables([SERIES.schema.empty_table(), *(client.series(series_uid=uid) for uid in uids)])
