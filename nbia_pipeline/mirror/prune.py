"""The files of withdrawn series: their receipts say so, and on request images and annotation files are deleted.

A pruned series keeps its receipt, which then states no size; if the archive lists it again, it is fetched. The receipt
is written first, then the files are deleted, annotation files last, then what the tables of headers say of them, then
the rows in ``instances``: whatever a crash leaves is found by these, and the next prune finishes it. At no time does a
receipt state files that are not there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.changes.diff import UID
from nbia_pipeline.changes.present import withdrawn_series
from nbia_pipeline.headers.graph.resolve import affected, write_references
from nbia_pipeline.headers.shards import remove_series
from nbia_pipeline.lake import DamagedFile, Lake, Lock
from nbia_pipeline.mirror.annotations.fetch import remove_annotations
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.series import NO_NEWER
from nbia_pipeline.schema.arrow import among, with_column
from nbia_pipeline.schema.headers import SERIES_REFERENCES
from nbia_pipeline.schema.status import WITHDRAWN
from nbia_pipeline.schema.tables import ANNOTATION_FILES, IMAGE_SERIES, INSTANCES, SERIES_SEEN
from nbia_pipeline.text import logger

log = logger(__name__)


@dataclass(frozen=True)
class Prunable:
    """What the lake still has of the withdrawn series of a collection.

    Attributes:
        collection: its name.
        series: their UIDs.
        files: how many files, images and annotation files.
        bytes: their size.
        since: when the first listing without one of them was asked (UTC).
        until: the same, of the one that was withdrawn last.
    """

    collection: str
    series: frozenset[str]
    files: int
    bytes: int
    since: datetime
    until: datetime


def mark_withdrawn(lake: Lake, collection: str) -> None:
    """Update which receipts are marked as withdrawn; without receipts that can be read nothing is done.

    A run of the images makes these again, and marks them.
    """
    try:
        known, marked = _known_and_marked(lake, collection)
        if known & withdrawn_series(lake, collection) != marked:
            commit(lake, collection, clear_mark=False)
    except DamagedFile as e:
        log.warning("the receipts of %s cannot be marked as withdrawn now: %s", collection, e)


def prunable(lake: Lake, collection: str) -> Prunable | None:
    """Return what :func:`prune` would delete of a collection, None where there is nothing.

    These are the files of series that receipts mark as withdrawn, whose withdrawal is confirmed, and which no listing
    names now.

    Raises:
        LakeError: the lake cannot be read.
    """
    _, marked = _known_and_marked(lake, collection)
    files = lake.read_table(INSTANCES, collection, columns=[UID, "Size"])
    files = files.filter(among(files[UID], marked & withdrawn_series(lake, collection)))
    if not files.num_rows:
        return None
    found = frozenset(pc.unique(files[UID]).to_pylist())
    annotations = lake.read_table(ANNOTATION_FILES, collection, columns=[UID, "Size"])
    annotations = annotations.filter(pc.and_(among(annotations[UID], found), pc.is_valid(annotations["Size"])))
    files = pa.concat_tables([files, annotations])
    seen = lake.read_table(SERIES_SEEN, collection, columns=[UID, "MissingSince"])
    span = pc.min_max(seen.filter(among(seen[UID], found))["MissingSince"]).as_py()
    return Prunable(collection, found, files.num_rows, pc.sum(files["Size"]).as_py(), span["min"], span["max"])


def prune(lake: Lake, what: Prunable) -> Prunable | None:
    """Delete the files of withdrawn series, and return what was deleted; None if nothing was left to delete.

    Args:
        lake: the lake.
        what: what :func:`prunable` returned; a series that returned meanwhile is spared.

    Raises:
        LakeError: the lake cannot be written; call it again to finish.
    """
    with lake.lock(Lock.COLLECTION, what.collection) as expect_held:
        now = prunable(lake, what.collection)
        uids = what.series & now.series if now else frozenset()
        if not now or not uids:
            return None
        _state_no_files(lake, what.collection, uids)
        instances = lake.read_table(INSTANCES, what.collection)
        chosen = among(instances[UID], uids)
        gone = instances.filter(chosen)
        for folder in sorted({path.rsplit("/", 1)[0] for path in gone["Path"].to_pylist()}):
            expect_held()
            lake.remove_folder(folder)
        expect_held()
        annotations = remove_annotations(lake, what.collection, uids)
        expect_held()
        remove_series(lake, what.collection, uids)
        sizes = [*gone["Size"].to_pylist(), *annotations["Size"].drop_null().to_pylist()]
        kept = instances.filter(pc.invert(chosen))
        lake.write_table(INSTANCES, kept, what.collection, may_empty=True)
    _resolve_again(lake, what.collection)
    return Prunable(what.collection, uids, len(sizes), sum(sizes), now.since, now.until)


def _resolve_again(lake: Lake, collection: str) -> None:
    """Make the references of a collection again whose files were deleted, and those of others to it."""
    try:
        for name in (collection, *affected(lake, collection)):
            if lake.has_table(SERIES_REFERENCES, name):
                write_references(lake, name)
    except DamagedFile as e:  # what was deleted is deleted, and the asset makes these tables too
        log.warning("series_references does not show yet what was pruned: %s", e)


def _known_and_marked(lake: Lake, collection: str) -> tuple[set[str], set[str]]:
    """Return the UIDs of the series with a receipt, and of those whose receipt marks them as withdrawn."""
    receipts = lake.read_table(IMAGE_SERIES, collection, columns=[UID, "Status"])
    marked = receipts.filter(pc.equal(receipts["Status"], WITHDRAWN))
    return set(receipts[UID].to_pylist()), set(marked[UID].to_pylist())


def _state_no_files(lake: Lake, collection: str, uids: Iterable[str]) -> None:
    """Make the receipts state that the files are gone, before they are."""
    receipts = lake.read_table(IMAGE_SERIES, collection)
    chosen = among(receipts[UID], uids)
    why = f"pruned on {clock.utc_now():%Y-%m-%d}: the archive withdrew it"
    said = pc.coalesce(pc.binary_join_element_wise(why, receipts["Reason"], ": "), why)
    # A second attempt, after a crash, finds the words of the first.
    first = pc.and_(chosen, pc.is_valid(receipts["Bytes"]))
    receipts = with_column(receipts, "Reason", pc.if_else(first, said, receipts["Reason"]))
    for name in (*NO_NEWER, "Bytes", "Path"):
        none = pa.scalar(None, receipts[name].type)
        receipts = with_column(receipts, name, pc.if_else(chosen, none, receipts[name]))
    lake.write_table(IMAGE_SERIES, receipts, collection)
