"""Receipts and listings of a collection, as the steps of an images asset need them."""

from __future__ import annotations

import pyarrow as pa

from nbia_pipeline.changes.present import present_series, withdrawn_series
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.schema.tables import SERIES


def listed_series(lake: Lake, collection: str) -> pa.Table:
    """Return the collection's rows of the ``series`` table; none of a collection that was withdrawn as a whole.

    Raises:
        LakeError: it was not materialized yet.
    """
    if not lake.count_rows(SERIES, collection):
        raise LakeError(f"the series table has no rows for {collection!r}: materialize series first")
    return present_series(lake, collection)


def committed(lake: Lake, collection: str, series: pa.Table, clear_mark: bool = True) -> pa.Table:
    """Carry the journal of a collection over into its tables, and return its receipts.

    Args:
        lake: the lake.
        collection: exact spelling.
        series: its listed series.
        clear_mark: False in a batch; see :func:`nbia_pipeline.mirror.commit.mark_failed`.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    return commit(lake, collection, series, withdrawn=withdrawn_series(lake, collection), clear_mark=clear_mark)


def commit_batch(lake: Lake, collection: str) -> None:
    """Carry the journal over at the end of a batch of a run in which one failed.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    committed(lake, collection, listed_series(lake, collection), clear_mark=False)
