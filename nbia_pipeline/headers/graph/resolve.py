"""Table ``series_references``: which series refer to which, and where the lake or the archive has these.

Joins of tables of the lake only: no file is read, and nothing is asked. Targets are looked up in all collections, as
those of an analysis result are in others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.headers.graph.frames import NO_IMAGES, same_frame
from nbia_pipeline.headers.graph.known import KnownSeries, known_series, series_of
from nbia_pipeline.headers.graph.targets import Holders, Pair, References, pairs, read_references
from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.lake.lock import Lock
from nbia_pipeline.lake.parquet import Among
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.headers import SERIES_REFERENCES
from nbia_pipeline.schema.tables import INSTANCES

HELD, LISTED, MOVED, UNKNOWN = "held", "listed", "moved", "unknown"
"""Values of Resolution. The other one, ``elsewhere``, takes a table ``idc_series``, which no version writes yet."""

FRAME_OF_REFERENCE = "frame_of_reference"
"""The Role of what no file states."""

_UID, _TARGET = "SeriesInstanceUID", "ReferencedSeriesInstanceUID"


def resolve_references(lake: Lake, collection: str) -> pa.Table:
    """Return the rows of ``series_references`` of a collection, by the tables of all collections as they are now.

    Args:
        lake: with ``instance_references`` and ``instance_headers`` of the collection, and ``instances``,
            ``image_series`` and ``series`` of all.
        collection: whose series refer.

    Raises:
        LakeError: the lake cannot be read.
    """
    references = read_references(lake, collection)
    names, roles = references.series, references.roles
    known = known_series(lake, names.texts, collection)
    asked = len(names)
    found = pairs(references, _holders(lake, collection, references, known))
    referring = {names.texts[pair.series] for pair in found}
    for uid, other in same_frame(lake, collection, referring):
        found.append(Pair(names.number(uid), roles.number(FRAME_OF_REFERENCE), names.number(other)))
    known |= known_series(lake, names.texts[asked:], collection)
    rows = [_row(collection, pair, references, known) for pair in found]
    order = [(name, "ascending") for name in SERIES_REFERENCES.key]
    return pa.Table.from_pylist(rows, SERIES_REFERENCES.schema).sort_by(order)


def _holders(lake: Lake, collection: str, references: References, known: Mapping[str, KnownSeries]) -> Holders:
    """Look for the targets in the series that are stated first, and for what is left in all others."""
    holders = Holders(references)
    if not holders.left:
        return holders
    stated: dict[str, set[str]] = {}
    for uid in {references.series.texts[other] for _, _, other in references.groups if other >= 0}:
        if uid in known and known[uid].held:
            stated.setdefault(known[uid].collection, set()).add(uid)
    for name, uids in sorted(stated.items()):
        holders.look(lake, name, (_UID, Among(uids)))
    for name in sorted(lake.collections_of(INSTANCES), key=lambda name: (name != collection, name)):
        if holders.left:
            holders.look(lake, name, references.where)
    return holders


def _row(collection: str, pair: Pair, references: References, known: Mapping[str, KnownSeries]) -> dict[str, Any]:
    uid, role = references.series.texts[pair.series], references.roles.texts[pair.role]
    target = references.series.texts[pair.other] if pair.other >= 0 else None
    one, other = known.get(uid), known.get(target or "")
    count = other.instances if other else None
    return {
        _UID: uid,
        "Collection": collection,
        "Modality": one.modality if one else None,
        "Role": role,
        _TARGET: target,
        "ReferencedCollection": other.collection if other else None,
        "ReferencedModality": other.modality if other else None,
        "Resolution": _resolution(pair, other),
        "ReferencedInstances": pair.targets,
        "OfInstances": count,
        "Missing": pair.absent,
        "Coverage": pair.targets / count if pair.targets and count else None,
        "SameStudy": one and other and _same(one.study, other.study),
        "SamePatient": one and other and _same(one.patient, other.patient),
        "Stated": role != FRAME_OF_REFERENCE,
    }


def _same(a: str | None, b: str | None) -> bool | None:
    return None if a is None or b is None else a == b


def _resolution(pair: Pair, other: KnownSeries | None) -> str:
    if pair.moved:
        return MOVED
    if pair.targets > pair.absent:
        return HELD
    if other and not (other.held and pair.absent):
        return HELD if other.held else LISTED
    return UNKNOWN


def write_references(lake: Lake, collection: str) -> pa.Table:
    """Write ``series_references`` of a collection, if it has changed, and return it.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    with lake.lock(Lock.REFERENCES, collection) as expect_held:
        table = resolve_references(lake, collection)
        if not _is_stored(lake, collection, table):
            expect_held()
            lake.write_table(SERIES_REFERENCES, table, collection, may_empty=True)
    return table


def _is_stored(lake: Lake, collection: str, table: pa.Table) -> bool:
    try:
        stored = lake.read_table(SERIES_REFERENCES, collection)
    except DamagedFile:
        return False
    return lake.has_table(SERIES_REFERENCES, collection) and bool(stored.equals(table))


# --- when images of another collection arrive, or go


def affected(lake: Lake, collection: str) -> list[str]:
    """Return the other collections whose ``series_references`` may have changed by what a collection has now.

    Few tables are read: those of references, of the series of this collection, and its ``instances`` if another one
    refers to instances that were nowhere. That a series which was named wrongly (``moved``) has been fetched, or that
    the one of which some instances were missing was revised in place, is seen when its own collection is resolved.

    Args:
        lake: the lake.
        collection: whose images were fetched, or pruned.

    Raises:
        LakeError: the lake cannot be read.
    """
    others = [name for name in lake.collections_of(SERIES_REFERENCES) if name != collection]
    return [name for name in others if _may_differ(lake, name, collection)]


def _may_differ(lake: Lake, referring: str, collection: str) -> bool:
    columns = [_UID, "Role", _TARGET, "ReferencedCollection", "Resolution", "OfInstances"]
    rows = lake.read_table(SERIES_REFERENCES, referring, columns)
    unknown = pc.equal(rows["Resolution"], UNKNOWN)
    about = rows.filter(pc.or_(unknown, pc.fill_null(pc.equal(rows["ReferencedCollection"], collection), False)))
    known = series_of(lake, collection, set(about[_TARGET].drop_null().to_pylist()))
    return any(_differs(row, collection, known.get(row[_TARGET])) for row in about.to_pylist()) or _appeared(
        lake, referring, rows.filter(unknown), collection
    )


def _differs(row: Mapping[str, Any], collection: str, now: KnownSeries | None) -> bool:
    if row["ReferencedCollection"] != collection:
        return now is not None and row["ReferencedCollection"] is None
    if now is None or now.instances != row["OfInstances"]:
        return True
    return row["Resolution"] in (HELD, LISTED) and now.held != (row["Resolution"] == HELD)


def _appeared(lake: Lake, referring: str, unknown: pa.Table, collection: str) -> bool:
    """Return whether a collection has instances that were nowhere when they were looked for."""
    if not unknown.num_rows:
        return False
    references = read_references(lake, referring, set(unknown[_UID].to_pylist()))
    series, roles = references.series.texts, references.roles.texts
    rows = {tuple(row.values()) for row in unknown.select([_UID, "Role", _TARGET]).to_pylist()}
    named = {row[:2] for row in rows}
    groups = [
        (series[uid], roles[role], series[other]) in rows if other >= 0 else (series[uid], roles[role]) in named
        for uid, role, other in references.groups
    ]
    chosen = np.array(groups, bool)[references.group]
    targets = references.targets[np.unique(references.target[chosen])]
    holders = Holders(replace(references, targets=targets))
    if holders.left:
        holders.look(lake, collection, references.where)
    return holders.left < len(targets)


# --- what is wrong


def orphans(references: pa.Table) -> pa.Table:
    """Return the rows of ``series_references`` of annotations whose targets are not where they are stated to be.

    They are unknown, or moved, or some of them are in no series of the lake though their series is in it.
    """
    annotations = pc.or_kleene(among(references["Modality"], NO_IMAGES), pc.is_null(references["Modality"]))
    wrong = among(references["Resolution"], [UNKNOWN, MOVED])
    short = pc.and_(pc.equal(references["Resolution"], HELD), pc.greater(references["Missing"], 0))
    return references.filter(pc.and_(annotations, pc.or_(wrong, short)))


def problems(lake: Lake, collection: str) -> Iterator[tuple[str, str]]:
    """Yield the series of the orphans of a collection, each with a sentence; for check ``references_resolve``.

    Raises:
        LakeError: the lake cannot be read.
    """
    for row in orphans(lake.read_table(SERIES_REFERENCES, collection)).to_pylist():
        yield row[_UID], _sentence(row)


def _sentence(row: Mapping[str, Any]) -> str:
    one = f"{row['Modality'] or 'series'} {row[_UID]} ({row['Role']})"
    count, other = (
        row["ReferencedInstances"],
        f"series {row[_TARGET]}" if row[_TARGET] else "a series that it does not name",
    )
    if row["Resolution"] == MOVED:
        return f"{one} states another series for some of the {count:,} instances that are in {other}"
    if row["Resolution"] == HELD:
        return f"{one}: of {count:,} instances of {other}, {row['Missing']:,} are in no series of the lake"
    if row["ReferencedCollection"]:
        return f"{one}: none of {count:,} instances of {other}, which is in the lake, is in any series of it"
    what = f"{count:,} instances of {other}" if count else other
    return f"{one} refers to {what}, which neither the lake nor the archive has"
