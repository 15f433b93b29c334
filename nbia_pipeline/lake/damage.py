"""Tables whose files do not contain what was written to them: found, done without, or replaced by an earlier file."""

from __future__ import annotations

import pyarrow as pa

from nbia_pipeline.lake import parquet
from nbia_pipeline.lake.errors import REBUILD, DamagedFile, content_of_table
from nbia_pipeline.lake.lake import Lake
from nbia_pipeline.lake.layout import earlier_path, table_path
from nbia_pipeline.schema import Table
from nbia_pipeline.text import logger

log = logger(__name__)


def damage_of(lake: Lake, table: Table, collection: str | None = None, *, rows: bool = True) -> DamagedFile | None:
    """Return what is wrong with the content of a table's file, None if nothing is, or if there is no file.

    Args:
        lake: the lake.
        table: which one.
        collection: the partition, None for an unpartitioned table.
        rows: read all rows, and not only the end of the file.

    Of a table in shards, that is the first of its files that is damaged.

    Raises:
        LakeError: the file cannot be read, which says nothing about its content.
    """
    parts = lake.parts_of(table, collection)
    return next(filter(None, (_damage_of(lake, table, collection, part, rows) for part in parts)), None)


def _damage_of(lake: Lake, table: Table, collection: str | None, part: int, rows: bool) -> DamagedFile | None:
    try:
        lake.read_properties(table, collection, part=part)
        for _ in lake.read_pieces(table, collection, part=part) if rows else ():
            pass
    except DamagedFile as e:
        return e
    return None


def missing(table: Table, collection: str, shown_by: str = "other tables show that it was there") -> str:
    """Return that a table should be there and is not, and what to do.

    Args:
        table: which one.
        collection: the partition.
        shown_by: how that is known, in a clause.
    """
    return f"{table_path(table.name, collection)} is missing, and {shown_by}: {REBUILD}"


def read_or_empty(
    lake: Lake, table: Table, collection: str | None = None, columns: list[str] | None = None, *, lost: str
) -> pa.Table:
    """Return a table as :meth:`Lake.read_table` does; without rows if its file is damaged, with a warning.

    Args:
        lake: the lake.
        table: which one.
        collection: the partition, None for an unpartitioned table.
        columns: names of the columns to read, None for all.
        lost: what it means that the rows are gone, in one sentence.
    """
    try:
        return lake.read_table(table, collection, columns)
    except DamagedFile as e:
        log.warning("%s. %s", e, lost)
        return table.schema.empty_table().select(columns or table.schema.names)


def remove_if_damaged(lake: Lake, table: Table, collection: str, lost: str) -> bool:
    """Remove the file of a table if it is damaged, with a warning; return whether it was. Of parts, those that are.

    Args:
        lake: the lake.
        table: which one.
        collection: the partition.
        lost: what it means that the rows are gone, in one sentence.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    found = False
    for part in lake.parts_of(table, collection):
        damage = _damage_of(lake, table, collection, part, rows=True)
        if damage:
            log.warning("%s. %s", damage, lost)
            lake.remove(table_path(table.name, collection, part))
            found = True
    return found


def put_back(lake: Lake, table: Table, collection: str) -> bool:
    """Put the file in place that :meth:`Lake.write_table` replaced last; return False if none with rows can be read.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    path = table_path(table.name, collection)
    content = lake.read_bytes(earlier_path(path))
    if content is None:
        return False
    try:
        with content_of_table(earlier_path(path), lake.uri):
            if not parquet.opened(pa.BufferReader(content)).read(use_threads=False).num_rows:
                return False
    except DamagedFile as e:
        log.warning("%s", e)
        return False
    lake.put_bytes(path, content)
    return True
