"""Damage to the tables of a lake, and what a lake has in them apart from what differs from run to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow.compute as pc

from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.mirror.receipt import MD5, MD5_AND_FIGURES
from nbia_pipeline.schema import TABLES, Table
from nbia_pipeline.schema import tables as t

Change = Callable[[bytes], bytes | None]

ONE_PIECE = 64


def flipped(content: bytes) -> bytes:
    """Return content with other bytes in the middle."""
    middle = len(content) // 2
    piece = bytes(byte ^ 0xFF for byte in content[middle : middle + ONE_PIECE])
    return content[:middle] + piece + content[middle + ONE_PIECE :]


DAMAGES: dict[str, Change] = {
    "0 bytes": lambda content: b"",
    "first half": lambda content: content[: len(content) // 2],
    "NULs": lambda content: bytes(4096),
    "flipped": flipped,
    "missing": lambda content: None,
}

_VOLATILE = {"FetchedAt", "Attempts", "VerifiedAt", "SeenAt", "ListedAt", "RunID", "MissingSince"}


def damage(lake: Lake, table: Table, change: Change, collection: str | None = None) -> None:
    """Change the file of a table, or remove it."""
    path = table_path(table.name, collection)
    content = lake.read_bytes(path)
    assert content, path
    changed = change(content)
    if changed is None:
        lake.remove(path)
    else:
        lake.put_bytes(path, changed)


def tables_of(lake: Lake) -> dict[tuple[str, str | None], Any]:
    """Return the rows of all tables that have any, by table and collection, without what differs from run to run.

    Receipts that are rebuilt have the proof ``md5`` where the download itself proved more.
    """
    found = {}
    for table in TABLES.values():
        for collection in lake.collections_of(table) if table.partitioned else (None,):
            rows = lake.read_table(table, collection)
            kept = [name for name in rows.schema.names if name not in _VOLATILE]
            if "Proof" in kept:
                at = rows.schema.get_field_index("Proof")
                rows = rows.set_column(at, "Proof", pc.replace_substring(rows["Proof"], MD5_AND_FIGURES, MD5))
            if rows.num_rows:
                found[table.name, collection] = sorted(rows.select(kept).to_pylist(), key=str)
    return found


OF_COLLECTION = [table for table in TABLES.values() if table.partitioned]
OF_ARCHIVE = [t.COLLECTIONS, t.MODALITIES, t.BODY_PARTS, t.MANUFACTURERS]
