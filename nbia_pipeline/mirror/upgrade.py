"""Lakes of version 0.1.0: what their receipts state only in a sentence, and newer ones in columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nbia_pipeline import clock
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.mirror.series import NEWER, has_files
from nbia_pipeline.schema.tables import IMAGE_SERIES

# How 0.1.0 began the Reason of a complete series whose newer version could not be fetched.
_SENTENCE = r"the newer version \((.*?) images, (.*?) bytes, submitted (.*?), released (.*?)\) could not be fetched: "
_KINDS: tuple[Callable[[str], int | datetime], ...] = (int, int, datetime.fromisoformat, datetime.fromisoformat)


def lacks_columns(lake: Lake, collection: str) -> bool:
    """Return whether the file of the receipts is of 0.1.0; readers of many partitions need the same columns in each."""
    with lake.open(table_path(IMAGE_SERIES.name, collection)) as file:
        return NEWER[0] not in pq.read_schema(file).names


def upgraded(receipts: pa.Table) -> pa.Table:
    """Return rows of ``image_series`` with what 0.1.0 put into ``Reason`` in the columns of today as well.

    When the newer version could not be fetched is no longer known: the time of the upgrade is used instead.
    """
    old = pc.and_(
        pc.is_null(receipts["RefreshFailedAt"]), pc.match_substring_regex(receipts["Reason"], f"^{_SENTENCE}")
    )
    old = pc.and_(has_files(receipts), pc.fill_null(old, False))
    if not pc.any(old).as_py():
        return receipts
    rows = receipts.filter(old).to_pylist()
    for row in rows:
        found = re.match(_SENTENCE, row["Reason"])
        assert found is not None  # noqa: S101 - the filter looks for the same
        values = [None if text == "None" else kind(text) for kind, text in zip(_KINDS, found.groups(), strict=True)]
        row.update({"RefreshFailedAt": clock.utc_now(), **dict(zip(NEWER, values, strict=True))})
    carried = pa.Table.from_pylist(rows, schema=IMAGE_SERIES.schema)
    return pa.concat_tables([receipts.filter(pc.invert(old)), carried]).sort_by("SeriesInstanceUID")
