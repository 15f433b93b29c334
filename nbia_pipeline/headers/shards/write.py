"""Parts of the tables of headers made again, and series removed from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby

import pyarrow.compute as pc

from nbia_pipeline.headers.shards.plan import Shard
from nbia_pipeline.headers.shards.state import (
    UID,
    Stated,
    counts_of,
    digest_of,
    held_in,
    receipts_of,
    shard_of,
    source_of,
    stated_by_part,
    stated_of,
)
from nbia_pipeline.headers.shards.tables import Fresh, Rows, ShardReport, Writers, kept_rows
from nbia_pipeline.lake import DamagedFile, Lake, Lock
from nbia_pipeline.lake.damage import remove_if_damaged
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.lake.lock import ExpectHeld
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.headers import INSTANCE_HEADERS, SERIES_REFERENCES, SHARDED
from nbia_pipeline.schema.status import HOLDS, SHARDS
from nbia_pipeline.text import logger

log = logger(__name__)


_IN_ORDER = (*(table for table in SHARDED if table is not INSTANCE_HEADERS), INSTANCE_HEADERS)
"""The last one tells a plan that the part is there."""


def write_shard(lake: Lake, shard: Shard) -> ShardReport:
    """Make a part again: read the files of the series that are new in it, and carry the others over.

    Args:
        lake: the lake.
        shard: what :func:`plan_headers` returned; what became of it since then is taken into account.

    Raises:
        LakeError: the lake cannot be read or written; the older part stays.
    """
    with lake.lock(Lock.HEADERS, shard.collection, str(shard.part)) as expect_held:
        try:
            return _write_shard(lake, shard, expect_held)
        except DamagedFile as e:
            log.warning("%s. All files of part %s of %s are read again", e, shard.part, shard.collection)
            return _write_shard(lake, replace(shard, full=True, most=None), expect_held)


def _write_shard(lake: Lake, shard: Shard, expect_held: ExpectHeld) -> ShardReport:
    collection, part = shard.collection, shard.part
    stated = stated_by_part(lake, collection, part)
    own = stated.get(part)
    # Another run may have made more of them since.
    shards = max(shard.shards, *(known.shards for known in stated.values() if known), 1)
    receipts = {uid: r for uid, r in receipts_of(lake, collection).items() if shard_of(uid, shards) == part}
    wanted = {uid: receipt.version for uid, receipt in receipts.items()}
    if own == Stated(shards, digest_of(wanted)) and not shard.full:  # by an earlier attempt at this step
        rows = lake.read_table(INSTANCE_HEADERS, collection, [UID], part=part).num_rows
        return ShardReport(collection, part, len(wanted), rows)
    if own and own.shards < shards:
        _divide(lake, collection, part, own.shards, shards)
    source = source_of(stated, part, shards)
    held = {} if shard.full and shard.most is None else held_in(lake, collection, source, part, shards)
    new = [uid for uid, version in wanted.items() if shard.full or held.get(uid) != (version, True)]
    if shard.most is not None:
        # At last those that could not be read: else a bound would never leave anything for the others.
        new.sort(key=lambda uid: (uid in held and held[uid] == (wanted[uid], False), uid))
        new = _first(new, counts_of(lake, collection), shard.most)
    kept = {uid: held[uid][0] for uid in held.keys() & (wanted.keys() - set(new))}
    fresh = Fresh(lake, collection, {uid: receipts[uid] for uid in new})
    return _write(lake, (collection, part, shards, source), kept, fresh, expect_held)


def _first(uids: Iterable[str], counts: Mapping[str, int], most: int) -> list[str]:
    """Return the first series, until they have so many files."""
    found = []
    for uid in uids:
        if most <= 0:
            break
        found.append(uid)
        most -= counts[uid]
    return found


def _divide(lake: Lake, collection: str, part: int, before: int, shards: int) -> None:
    """Write the parts whose rows are in a part of fewer; that keeps them until it is written itself."""
    for new in range(part + before, shards, before):
        with lake.lock(Lock.HEADERS, collection, str(new)) as expect_held:
            known = stated_of(lake, collection, new)
            if known is None or known.shards != shards:
                held = {uid: version for uid, (version, _) in held_in(lake, collection, part, new, shards).items()}
                _write(lake, (collection, new, shards, part), held, Fresh(lake, collection, {}), expect_held)


def _write(
    lake: Lake,
    place: tuple[str, int, int, int | None],
    kept: Mapping[str, str],
    fresh: Fresh,
    expect_held: ExpectHeld,
    *,
    agree: bool = True,
) -> ShardReport:
    """Write the four tables of a part, with rows of another part and of files.

    Args:
        lake: the lake.
        place: collection, part, number of parts, and the part whose rows are kept.
        kept: the series whose rows are kept, with their versions.
        fresh: the series that are read.
        expect_held: of the lock of the part.
        agree: whether the rows that are kept are of the same series and versions in all tables; else the next run is
            to read them again.
    """
    collection, part, shards, source = place
    holds = {**kept, **fresh.versions}
    facts = {SHARDS: str(shards), HOLDS: digest_of(holds) if agree else ""}
    earlier = {table: Rows(lake.read_pieces(table, collection, part=source)) for table in SHARDED if kept}
    with lake.workspace() as work:
        with Writers(lake, work, facts) as writers:
            for is_new, uids in groupby(sorted(holds), key=fresh.versions.__contains__):
                for table, rows in fresh.tables(list(uids)) if is_new else kept_rows(earlier, list(uids)):
                    writers.add(table, rows)
        for table in _IN_ORDER:
            expect_held()
            lake.put_part(work / table.name, table, collection, part)
    return replace(fresh.report, part=part, series=len(holds), instances=writers.instances, bytes=writers.bytes)


# --- prune


def remove_series(lake: Lake, collection: str, uids: Iterable[str]) -> None:
    """Remove the rows of some series from all tables of headers.

    A file that is damaged is removed: the next run makes it again.

    Raises:
        LakeError: the lake cannot be read or written; called again, it finishes.
    """
    gone = frozenset(uids)
    for part, stated in stated_by_part(lake, collection).items():
        if stated is None or any(shard_of(uid, stated.shards) == part for uid in gone):
            with lake.lock(Lock.HEADERS, collection, str(part)) as expect_held:
                _remove_from(lake, collection, part, gone, expect_held)
    with lake.lock(Lock.REFERENCES, collection):
        remove_if_damaged(lake, SERIES_REFERENCES, collection, "The next run makes it again")
        rows = lake.read_table(SERIES_REFERENCES, collection)
        kept = rows.filter(pc.invert(among(rows[UID], gone)))
        if kept.num_rows < rows.num_rows:
            lake.write_table(SERIES_REFERENCES, kept, collection, may_empty=True)


def _remove_from(lake: Lake, collection: str, part: int, gone: frozenset[str], expect_held: ExpectHeld) -> None:
    try:
        agree = stated_of(lake, collection, part) is not None
        shards = int(lake.read_properties(INSTANCE_HEADERS, collection, part=part).get(SHARDS, 0))
        held = held_in(lake, collection, part, part, shards) if shards else {}
        kept = {uid: version for uid, (version, _) in held.items() if uid not in gone}
        if shards and (len(kept) < len(held) or not agree):
            fresh = Fresh(lake, collection, {})
            _write(lake, (collection, part, shards, part), kept, fresh, expect_held, agree=agree)
    except DamagedFile as e:
        log.warning("%s", e)
        shards = 0
    if not shards:
        lake.remove_all(table_path(table.name, collection, part) for table in SHARDED)
