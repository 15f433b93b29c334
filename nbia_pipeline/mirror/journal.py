"""The journal: the outcome of a series, written down at once; :mod:`~nbia_pipeline.mirror.commit` has the tables.

The journal is what makes a finished series survive a crash; see :meth:`~nbia_pipeline.lake.store.LocalStore.publish`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nbia_pipeline.lake import Lake, LakeError, Lock
from nbia_pipeline.lake.errors import DamagedFile, content_of
from nbia_pipeline.lake.layout import JOURNAL, encode, is_foreign
from nbia_pipeline.lake.lock import this_process
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.text import logger

# Entries with about this many instances are read at a time: some hundred bytes each, whatever the size of the journal.
SLICE_INSTANCES = 250_000

log = logger(__name__)

FAILED = "failed"
_JSON = ".json"


@dataclass(frozen=True)
class Entry:
    """One entry of the journal.

    Attributes:
        path: its file, relative to the lake.
        receipt: the outcome of the series.
        staged: directory of its files below the staging area, until they are moved into place; None if there is none.
    """

    path: str
    receipt: Receipt
    staged: str | None


def publish_series(lake: Lake, receipt: Receipt, staged: Path) -> None:
    """Move the files of a verified series to where they belong, and record it in the journal.

    Args:
        lake: where to.
        receipt: a complete one.
        staged: local directory that contains only the files; it is moved away.
    """
    wanted = receipt.wanted
    lake.publish(staged, receipt.path, wanted.Collection, wanted.SeriesInstanceUID, partial(_write, lake, receipt))


def record_failure(lake: Lake, receipt: Receipt) -> Receipt:
    """Record in the journal that a series could not be fetched, and return the receipt."""
    with lake.lock(Lock.COLLECTION, receipt.wanted.Collection):
        _write(lake, receipt, staged=None)
    return receipt


def read_slices(lake: Lake, collection: str) -> Iterator[list[Entry]]:
    """Yield the entries of a journal, some at a time; an empty list where there are none."""
    entries: list[Entry] = []
    size = 0
    for entry in _read(lake, _paths_in(lake, _folder(collection))):
        entries.append(entry)
        size += len(entry.receipt.instances)
        if size >= SLICE_INSTANCES:
            yield entries
            entries, size = [], 0
    yield entries


def read_entries(lake: Lake, collection: str, uids: Iterable[str]) -> list[Entry]:
    """Return the entries of some series of a collection."""
    present = set(lake.names_in(_folder(collection)))
    return list(_read(lake, (_path(collection, uid) for uid in uids if _name(uid) in present)))


def finish_move(lake: Lake, entry: Entry) -> None:
    """Move the files of an entry to their place, unless that was done before."""
    if entry.staged is not None:
        lake.publish_staged(entry.staged, entry.receipt.path)


def sweep(lake: Lake) -> int:
    """Remove what dead processes left in the staging area and no journal needs; return how much that was.

    Nothing is removed while any journal has a damaged entry, as that may need it. Whoever commits that journal reports
    the entry; the other collections need not wait for that.
    """
    try:
        keep = staged_by_journal(lake)
    except DamagedFile as e:
        log.warning("leftovers of earlier runs stay: %s", e)
        return 0
    return lake.sweep(keep=keep)


def staged_by_journal(lake: Lake) -> set[str]:
    """Return the names of the staged directories that a journal still needs."""
    if not lake.staged():
        return set()
    paths = (path for folder in _paths_in(lake, JOURNAL) for path in _paths_in(lake, folder))
    return {entry.staged.split("/")[0] for entry in _read(lake, paths) if entry.staged}


# --- a batch that fails


def mark_failed(lake: Lake, collection: str) -> None:
    """Mark that a batch of a collection failed, so that the other batches commit what they fetched.

    A run with a failed batch has no last step, so the last batch to end must commit. The failed batch marks, then
    commits; every other batch writes its entries, then looks for the mark, and commits if there is one. Take the
    moment at which the failed batch reads the journal. What another wrote before, that commit carries over. What it
    wrote after, it wrote after the mark was made: so it finds the mark, and commits itself. Both leave the mark; the
    next plan, or the end of the run, clears it.
    """
    lake.put_bytes(_mark(collection), this_process().encode())


def has_failed(lake: Lake, collection: str) -> bool:
    """Return whether a batch of a collection failed since the mark was cleared; see :func:`mark_failed`."""
    return lake.read_bytes(_mark(collection)) is not None


def clear_mark(lake: Lake, collection: str) -> None:
    """Forget that a batch of a collection failed."""
    lake.remove(_mark(collection))


# --- files


def _folder(collection: str) -> str:
    return f"{JOURNAL}/{encode(collection)}"


def _paths_in(lake: Lake, folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in lake.names_in(folder)]


def _mark(collection: str) -> str:
    return f"{_folder(collection)}/{FAILED}"


def _name(uid: str) -> str:
    """Return the name of an entry: also of a series whose UID can be no name, and which cannot be stored for that."""
    try:
        return f"{encode(uid)}{_JSON}"
    except LakeError:
        return f"~{hashlib.sha256(uid.encode()).hexdigest()}{_JSON}"


def _path(collection: str, uid: str) -> str:
    return f"{_folder(collection)}/{_name(uid)}"


def _read(lake: Lake, paths: Iterable[str]) -> Iterator[Entry]:
    for path in paths:
        is_entry = path.endswith(_JSON) and not is_foreign(path.rsplit("/", 1)[-1])
        content = lake.read_bytes(path) if is_entry else None
        if content is not None:  # a reader without the lock may find that it was committed meanwhile
            with content_of(lake.url(path), "delete it, and the series is fetched again"):
                values = json.loads(content)
                entry = Entry(path, Receipt.from_json(values["receipt"]), _checked(values["staged"]))
            yield entry


def _checked(staged: object) -> str | None:
    """Return the name of a staged directory, which leads nowhere else."""
    if staged is None or (isinstance(staged, str) and not {"", ".", ".."}.intersection(staged.split("/"))):
        return staged
    raise ValueError(f"{staged!r} is not a name in the staging area")


def _write(lake: Lake, receipt: Receipt, staged: str | None) -> str:
    path = _path(receipt.wanted.Collection, receipt.wanted.SeriesInstanceUID)
    lake.put_bytes(path, json.dumps({"receipt": receipt.to_json(), "staged": staged}).encode())
    return path
