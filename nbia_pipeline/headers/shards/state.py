"""What the parts of the tables of headers state, and what the receipts say that they should hold."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import pyarrow.compute as pc

from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.schema.headers import INSTANCE_HEADERS, SHARDED
from nbia_pipeline.schema.status import HOLDS, SHARDS, with_files
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES

COUNTS = (1, 4, 16, 64, 256)
"""How many parts a collection can have; each is a multiple of those before it."""

UID = "SeriesInstanceUID"
VERSION = "SeriesMD5"
READ = "HeaderBytes"
"""The column that is null in the row of a file that could not be read."""


class Stated(NamedTuple):
    """What the files of a part state: how many parts there are, and which series it holds."""

    shards: int
    holds: str


class Receipt(NamedTuple):
    """What a receipt says of a series: study, patient and SeriesMD5."""

    study: str
    patient: str
    version: str


def shard_of(series_uid: str, shards: int) -> int:
    """Return the number of the part of a series: the MD5 of its UID, as a number, modulo the number of parts."""
    # That is at most 256, and divides it.
    return hashlib.md5(series_uid.encode(), usedforsecurity=False).digest()[-1] % shards


def digest_of(versions: Mapping[str, str]) -> str:
    """Return the property ``holds`` of a part with these series, given as SeriesMD5 by SeriesInstanceUID."""
    lines = "\n".join(sorted(f"{uid}:{version}" for uid, version in versions.items()))
    return hashlib.md5(lines.encode(), usedforsecurity=False).hexdigest()


def receipts_of(lake: Lake, collection: str) -> dict[str, Receipt]:
    """Return what the receipts say of each series whose files are in the lake."""
    columns = [UID, "StudyInstanceUID", "PatientID", VERSION]
    rows = lake.read_table(IMAGE_SERIES, collection, columns=[*columns, "Status", "Bytes"])
    rows = rows.filter(with_files(rows["Status"], rows["Bytes"]))
    values = (rows[name].to_pylist() for name in columns)
    return {uid: Receipt(study, patient, md5 or "") for uid, study, patient, md5 in zip(*values, strict=True)}


def counts_of(lake: Lake, collection: str) -> Counter[str]:
    """Return how many files each series has in ``instances``."""
    counts: Counter[str] = Counter()
    for piece in lake.read_pieces(INSTANCES, collection, [UID]):
        for row in pc.value_counts(piece[UID]).to_pylist():
            counts[row["values"]] += row["counts"]
    return counts


def stated_by_part(lake: Lake, collection: str, part: int | None = None) -> dict[int, Stated | None]:
    """Return what the parts state that any of the tables has; None where files are missing, damaged, or disagree.

    Args:
        lake: the lake.
        collection: which one.
        part: only this one and those that may have its rows.
    """
    wanted = range(COUNTS[-1]) if part is None else {part % count for count in COUNTS} | {part}
    parts = sorted({n for table in SHARDED for n in lake.parts_of(table, collection)}.intersection(wanted))
    stated = lake.side_by_side(partial(stated_of, lake, collection, part) for part in parts)
    return dict(zip(parts, stated, strict=True))


def stated_of(lake: Lake, collection: str, part: int) -> Stated | None:
    """Return what the files of a part state, None if not all of its tables state the same."""
    try:
        found = [lake.read_properties(table, collection, part=part) for table in SHARDED]
    except DamagedFile:
        return None
    agree = all(one == found[0] and one.get(HOLDS) and SHARDS in one for one in found)
    return Stated(int(found[0][SHARDS]), found[0][HOLDS]) if agree else None


def source_of(stated: Mapping[int, Stated | None], part: int, shards: int) -> int | None:
    """Return the part that has the rows of the series of a part; None if they must be read."""
    if part in stated:
        return part if stated[part] else None
    for before in reversed(COUNTS):
        known = stated.get(part % before) if before < shards else None
        if known and known.shards == before:
            return part % before
    return None


def held_in(lake: Lake, collection: str, source: int | None, part: int, shards: int) -> dict[str, tuple[str, bool]]:
    """Return the version of each series of a part that another holds, and whether all of its files could be read."""
    found: dict[str, tuple[str, bool]] = {}
    if source is not None:
        rows = lake.read_table(INSTANCE_HEADERS, collection, [UID, VERSION, READ], part=source)
        rows = rows.group_by([UID, VERSION]).aggregate([(READ, "count"), ([], "count_all")])
        for uid, version, read, all_ in zip(*(rows[n].to_pylist() for n in rows.column_names), strict=True):
            if shard_of(uid, shards) == part:
                found[uid] = (version, read == all_)
    return found
