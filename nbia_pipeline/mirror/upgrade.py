"""Lakes of earlier versions: what their receipts do not state in columns, as newer ones do."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import series_path
from nbia_pipeline.lake.table_file import TableFile
from nbia_pipeline.mirror.series import NEWER, has_files
from nbia_pipeline.schema.arrow import with_column
from nbia_pipeline.schema.tables import IMAGE_SERIES

# How 0.1.0 began the Reason of a complete series whose newer version could not be fetched.
_SENTENCE = r"the newer version \((.*?) images, (.*?) bytes, submitted (.*?), released (.*?)\) could not be fetched: "
_KINDS: tuple[Callable[[str], int | datetime], ...] = (int, int, datetime.fromisoformat, datetime.fromisoformat)


def lacks_paths(lake: Lake, collection: str, receipts: TableFile) -> bool:
    """Return whether the file of the receipts lacks the column Path, which came last, or values of it.

    Readers of many partitions need the same columns in each.
    """
    stated = lake.count_values(IMAGE_SERIES, collection).get("Path", -1)
    return stated < (pc.sum(has_files(receipts)).as_py() or 0)


def with_paths(receipts: pa.Table) -> pa.Table:
    """Return rows of ``image_series`` with the folders of their files, also where an earlier version wrote them."""
    lacking = pc.and_(has_files(receipts), pc.is_null(receipts["Path"]))
    if not pc.any(lacking).as_py():
        return receipts
    names = receipts.select(["Collection", "PatientID", "StudyInstanceUID", "SeriesInstanceUID"]).to_pylist()
    paths = [
        series_path(*row.values()) if lacks else None for row, lacks in zip(names, lacking.to_pylist(), strict=True)
    ]
    return with_column(receipts, "Path", pc.coalesce(receipts["Path"], pa.array(paths, pa.string())))


def upgraded(receipts: pa.Table) -> pa.Table:
    """Return rows of ``image_series`` with their paths, and what 0.1.0 put into ``Reason`` in today's columns as well.

    When the newer version could not be fetched is no longer known: the time of the upgrade is used instead.
    """
    receipts = with_paths(receipts)
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
