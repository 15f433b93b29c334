"""The journal: the outcome of a series, written down at once; :mod:`~nbia_pipeline.mirror.commit` has the tables.

The journal is what makes a finished series survive a crash; see :mod:`nbia_pipeline.lake.local_store`, `publish`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.lake import Lake, LakeError, Lock
from nbia_pipeline.lake.errors import DamagedFile, content_of
from nbia_pipeline.lake.layout import JOURNAL, STAGING, encode, instance_name, is_foreign
from nbia_pipeline.lake.lock import this_process
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import NO_NEWER
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.status import COMPLETE, PENDING
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.text import logger

# Entries with about this many instances are read at a time: some hundred bytes each, whatever the size of the journal.
SLICE_INSTANCES = 250_000

log = logger(__name__)

FAILED = "failed"
BEING_REPLACED = "its files are being replaced by a newer version"
DAMAGED = "its files in the lake were damaged"
_JSON = ".json"
_REVOKING = threading.Lock()


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
    """Record the files of a verified series in the journal, and move them to where they belong if none are there.

    Files that are there already are replaced by the commit, which revokes their receipt first: at no moment a receipt
    is ``complete`` whose files are others. On an object store, which has no moves, both happens here.

    Args:
        lake: where to.
        receipt: a complete one.
        staged: local directory that contains only the files; it is moved away.
    """
    wanted = receipt.wanted
    digests = {instance_name(i.SOPInstanceUID): i.MD5 for i in receipt.instances}
    lake.publish(
        *(staged, receipt.path, wanted.Collection, wanted.SeriesInstanceUID),
        partial(_replace, lake, receipt),
        partial(revoke, lake, wanted.Collection, {wanted.SeriesInstanceUID: BEING_REPLACED}),
        digests,
    )


def revoke(lake: Lake, collection: str, reasons: Mapping[str, str]) -> None:
    """Turn complete receipts to ``pending``, as their files are damaged or about to be replaced.

    Args:
        lake: the lake.
        collection: which partition.
        reasons: why, by SeriesInstanceUID; receipts that are not complete stay as they are.
    """
    with lake.lock(Lock.COLLECTION, collection):
        _revoke(lake, collection, reasons)


def _revoke(lake: Lake, collection: str, reasons: Mapping[str, str]) -> None:
    receipts = lake.read_table(IMAGE_SERIES, collection)
    revoked = revoked_receipts(receipts, reasons)
    if not revoked.equals(receipts):
        lake.write_table(IMAGE_SERIES, revoked, collection)


def revoked_receipts(receipts: pa.Table, reasons: Mapping[str, str]) -> pa.Table:
    """Return ``image_series`` as :func:`revoke` writes it."""
    chosen = pc.and_(among(receipts["SeriesInstanceUID"], reasons), pc.equal(receipts["Status"], COMPLETE))
    nothing = {**dict.fromkeys(("Bytes", "SeriesMD5", "Proof", "Path")), **NO_NEWER}
    rows = [{**row, **nothing, "Status": PENDING} for row in receipts.filter(chosen).to_pylist()]
    for row in rows:
        row["Reason"] = reasons[row["SeriesInstanceUID"]]
    revoked = pa.Table.from_pylist(rows, schema=IMAGE_SERIES.schema)
    return pa.concat_tables([receipts.filter(pc.invert(chosen)), revoked]).sort_by("SeriesInstanceUID")


def record_failure(lake: Lake, receipt: Receipt) -> Receipt:
    """Record in the journal that a series could not be fetched, and return the receipt."""
    with lake.lock(Lock.COLLECTION, receipt.wanted.Collection):
        _write(lake, receipt, staged=None)
    return receipt


def read_slices(lake: Lake, collection: str, *, remove_damaged: bool = False) -> Iterator[list[Entry]]:
    """Yield the entries of a journal, some at a time; an empty list where there are none.

    An entry that cannot be read, such as a loss of power leaves, is left out: its series is fetched again.

    Args:
        lake: the lake.
        collection: whose journal.
        remove_damaged: remove such entries; the caller holds the lock.
    """
    entries: list[Entry] = []
    size = 0
    for entry in _read(lake, _paths_in(lake, _folder(collection)), remove_damaged=remove_damaged):
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


def has_entries(lake: Lake, collection: str) -> bool:
    """Return whether a collection has outcomes that its tables do not have yet."""
    return any(name.endswith(_JSON) for name in lake.names_in(_folder(collection)))


def finish_move(lake: Lake, entry: Entry) -> bool:
    """Move the files of an entry to their place, unless that was done before; False if they are nowhere."""
    if entry.staged is None or lake.publish_staged(entry.staged, entry.receipt.path):
        return True
    return _in_place(lake, entry)


def is_kept(lake: Lake, entry: Entry) -> bool:
    """Return whether the files of an entry are in their place, or are staged to be moved there."""
    return entry.staged is None or lake.exists(f"{STAGING}/{entry.staged}") or _in_place(lake, entry)


def _in_place(lake: Lake, entry: Entry) -> bool:
    receipt = entry.receipt
    wanted = {f"{receipt.path}/{instance_name(i.SOPInstanceUID)}": i for i in receipt.instances}
    if lake.sizes(receipt.path) != {path: i.Size for path, i in wanted.items()}:
        return False
    # Older files, for which these were to wait outside of any workspace, may have the same names and sizes.
    waited = "/" not in (entry.staged or "")
    return not waited or all(lake.md5(path) == i.MD5 for path, i in wanted.items())


def sweep(lake: Lake) -> int:
    """Remove what dead processes left in the staging area and no journal needs; return how much that was."""
    return lake.sweep(keep=staged_by_journal(lake))


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


def _read(lake: Lake, paths: Iterable[str], *, remove_damaged: bool = False) -> Iterator[Entry]:
    entries = (path for path in paths if path.endswith(_JSON) and not is_foreign(path.rsplit("/", 1)[-1]))
    for path, content in lake.read_all(entries):
        if content is None:  # a reader without the lock may find that it was committed meanwhile
            continue
        try:
            with content_of(lake.url(path), "its series is fetched again"):
                values = json.loads(content)
                entry = Entry(path, Receipt.from_json(values["receipt"]), _checked(values["staged"]))
        except DamagedFile as e:
            if remove_damaged:
                log.warning("%s", e)
                lake.remove(path)
        else:
            yield entry


def _checked(staged: object) -> str | None:
    """Return the name of a staged directory, which leads nowhere else."""
    if staged is None or (isinstance(staged, str) and not {"", ".", ".."}.intersection(staged.split("/"))):
        return staged
    raise ValueError(f"{staged!r} is not a name in the staging area")


def _replace(lake: Lake, receipt: Receipt, staged: str | None) -> str:
    """Write an entry; the files of an older one of the series, which was not committed, are not needed any more."""
    collection, uid = receipt.wanted.Collection, receipt.wanted.SeriesInstanceUID
    # By its path: to list the journal once for each series would take the square of the time.
    path = _path(collection, uid)
    if lake.note_new(path, _content(receipt, staged)):
        return path
    older = list(_read(lake, [path]))
    _write(lake, receipt, staged)
    for entry in older:
        if entry.staged and lake.exists(f"{STAGING}/{entry.staged}"):
            lake.remove_folder(f"{STAGING}/{entry.staged}")
        elif entry.receipt.status == COMPLETE and entry.receipt.path != receipt.path:
            # Of another patient or study. A commit that a crash cut short may have written this receipt.
            with _REVOKING:  # entries are written side by side
                _revoke(lake, collection, {uid: BEING_REPLACED})
            lake.remove_folder(entry.receipt.path)
    return path


def _write(lake: Lake, receipt: Receipt, staged: str | None) -> str:
    path = _path(receipt.wanted.Collection, receipt.wanted.SeriesInstanceUID)
    lake.note_bytes(path, _content(receipt, staged))
    return path


def _content(receipt: Receipt, staged: str | None) -> bytes:
    """Return an entry. It is not flushed by itself: whoever relies on the journal flushes it first."""
    return json.dumps({"receipt": receipt.to_json(), "staged": staged}).encode()
