"""Which parts of the tables of headers are stale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nbia_pipeline.headers.shards.state import (
    COUNTS,
    Stated,
    counts_of,
    digest_of,
    held_in,
    receipts_of,
    shard_of,
    source_of,
    stated_by_part,
)
from nbia_pipeline.lake import DamagedFile, Lake

MOST_INSTANCES = 100_000
"""Of a part, if there can be more parts."""


@dataclass(frozen=True)
class Shard:
    """A part to be made again.

    Attributes:
        collection: of which.
        part: its number.
        shards: how many parts the collection has.
        series: how many of its series are to be read.
        instances: how many files these have.
        full: read the files of all of its series.
        most: after how many files no other series is begun; None for all of them.
    """

    collection: str
    part: int
    shards: int
    series: int
    instances: int
    full: bool = False
    most: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Shard:
        """Return what :meth:`to_json` was made of."""
        return cls(**values)


def plan_headers(lake: Lake, collection: str, *, full: bool = False) -> list[Shard]:
    """Return the parts that lack a series, hold one that has no files, or an older version of one; or all of them.

    Args:
        lake: the lake.
        collection: which one.
        full: read all files again, and make more parts if there are too many instances for those that there are.

    Raises:
        LakeError: the lake cannot be read.
    """
    versions = {uid: receipt.version for uid, receipt in receipts_of(lake, collection).items()}
    stated = stated_by_part(lake, collection)
    counts: Counter[str] = Counter()
    shards = max((known.shards for known in stated.values() if known), default=0)
    # Whatever the files of damaged parts stated, no part must be left out.
    shards = max(shards, next((count for count in COUNTS if count > max(stated, default=-1)), COUNTS[-1]))
    if full or not any(stated.values()):
        counts = counts_of(lake, collection)
        shards = max(shards, _fitting(counts))
    wanted: list[dict[str, str]] = [{} for _ in range(shards)]
    for uid, version in versions.items():
        wanted[shard_of(uid, shards)][uid] = version
    found = []
    for part, expected in enumerate(wanted):
        if not expected and part not in stated:
            continue
        if full or stated.get(part) != Stated(shards, digest_of(expected)):
            source = None if full else source_of(stated, part, shards)
            held = _held(lake, collection, source, part, shards)
            new = [uid for uid, version in expected.items() if held.get(uid) != (version, True)]
            counts = counts or counts_of(lake, collection)
            found.append(Shard(collection, part, shards, len(new), sum(counts[uid] for uid in new), full))
    return found


def _held(lake: Lake, collection: str, source: int | None, part: int, shards: int) -> dict[str, tuple[str, bool]]:
    try:
        return held_in(lake, collection, source, part, shards)
    except DamagedFile:  # whoever writes the part says so
        return {}


def bounded(shards: Iterable[Shard], most: int | None) -> Iterator[Shard]:
    """Yield shards until as many files are read as may be: of the last one only some series, at least one."""
    for shard in shards:
        if most is None or shard.instances <= most:
            yield shard
        elif most > 0:
            yield replace(shard, most=most)
        most = None if most is None else max(0, most - shard.instances)


def _fitting(counts: Mapping[str, int]) -> int:
    for shards in COUNTS:
        sums: Counter[int] = Counter()
        for uid, count in counts.items():
            sums[shard_of(uid, shards)] += count
        if max(sums.values(), default=0) <= MOST_INSTANCES:
            return shards
    return COUNTS[-1]
