"""``image_series`` and ``instances`` of a collection, rebuilt where one of them is damaged or missing.

If only the index of the files is lost, the files are read again and compared with the receipts. If the receipts are
lost, with the archive: a series whose files are those that it lists gets a receipt, any other is fetched again. What is
known only from receipts is lost: when the files were fetched, how often that was tried, and what could not be fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import stopping
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.rebuild import rebuild_feed
from nbia_pipeline.lake import Lake, Lock
from nbia_pipeline.lake.damage import damage_of, missing, remove_if_damaged
from nbia_pipeline.lake.layout import collection_path, series_path
from nbia_pipeline.mirror import journal
from nbia_pipeline.mirror.commit import instances_of
from nbia_pipeline.mirror.journal import DAMAGED, revoked_receipts
from nbia_pipeline.mirror.rebuild.files import (
    Differs,
    Folder,
    folders_of,
    proof_of_archive,
    proof_of_figures,
    read_series,
)
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.repair import Proofs
from nbia_pipeline.mirror.series import COLUMNS, WantedSeries, has_files
from nbia_pipeline.mirror.unpack import VerifiedInstance
from nbia_pipeline.mirror.upgrade import upgraded
from nbia_pipeline.schema.digests import series_md5
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.schema.tables import ANNOTATION_FILES, IMAGE_SERIES, INSTANCES, SELECTED_SERIES, SERIES, SERIES_SEEN
from nbia_pipeline.text import first_of, logger

log = logger(__name__)

THREADS = 3
# Rows of `instances` of so many series are in memory at a time.
PIECE_SERIES = 100
# An index of so many files is read as a whole by each run, in about 0.2 s; of a larger one the end, unless there is
# something to commit: a commit reads the rest, too.
READ_WHOLE_ROWS = 500_000

_UID = "SeriesInstanceUID"
LOST_SELECTION = "The run of images that comes next reads the manifest or the cart of the setting select again"
_LOST_ANNOTATIONS = "The annotation files are fetched again; those of withdrawn series stay in the lake without a row"

Row = dict[str, Any]
Judged = tuple[Row, Sequence[VerifiedInstance]]
"""A receipt as a row of its table, and the files that it is about."""


@dataclass
class Rebuilt:
    """What became of the series of a collection whose tables were rebuilt.

    Attributes:
        complete: how many have a receipt that their files agree with.
        files: how many files these have.
        pending: why the others are fetched again, by SeriesInstanceUID.
        left: directories without a receipt: nothing is known of their series.
    """

    complete: int = 0
    files: int = 0
    pending: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.complete:,} series with {self.files:,} files agree"
        if self.pending:
            uid, why = next(iter(self.pending.items()))
            text += f"; {len(self.pending):,} are fetched again, the first: {uid}: {why}"
        return text + (f"; without a receipt: {first_of(self.left)}" if self.left else "")


def rebuild(client: NbiaClient, lake: Lake, collection: str, listed: pa.Table | None = None) -> Rebuilt | None:
    """Rebuild the tables of a collection that are damaged or missing, but for those that the archive lists.

    Args:
        client: the archive; it is asked about digests if the receipts are lost.
        lake: the lake.
        collection: exact spelling.
        listed: rows of a ``series`` table that the lake may not have, such as those of a cart.

    Returns:
        What became of the images; None if their tables are as they were.

    Raises:
        ArchiveUnreachable: there is no connection; nothing was changed.
        LakeError: the lake cannot be read or written, or the ``series`` table is damaged and needed.
    """
    with lake.lock(Lock.CHANGES, collection):
        rebuild_feed(lake, collection)
    with lake.lock(Lock.COLLECTION, collection) as expect_held:
        remove_if_damaged(lake, ANNOTATION_FILES, collection, _LOST_ANNOTATIONS)
        remove_if_damaged(lake, SELECTED_SERIES, collection, LOST_SELECTION)
        receipts_lost = why_receipts_are_lost(lake, collection)
        why = receipts_lost or why_instances_are_lost(lake, collection)
        if not why:
            return None
        log.warning("%s: %s: it is rebuilt from the files in the lake", collection, why)
        work = _ByArchive(client, lake, collection, listed) if receipts_lost else _ByReceipts(lake, collection)
        found = _Rebuild(work)

        def write_receipts() -> None:
            expect_held()
            table = pa.Table.from_pylist(found.receipts, schema=IMAGE_SERIES.schema)
            why_pending = {uid: f"{DAMAGED}: {what}" for uid, what in work.result.pending.items()}
            table = revoked_receipts(pa.concat_tables([work.others(), table]), why_pending)
            lake.write_table(IMAGE_SERIES, table, collection, may_empty=True)

        # The table that was lost comes last: if a crash comes between, it still is, and all is done again.
        pieces = found.pieces() if receipts_lost else found.pieces(at_the_end=write_receipts)
        lake.write_pieces(INSTANCES, pieces, collection, may_empty=True)
        if receipts_lost:
            write_receipts()
    log.warning("%s: the tables of the images were rebuilt: %s", collection, work.result)
    return work.result


def why_receipts_are_lost(lake: Lake, collection: str) -> str | None:
    """Return what is wrong with the receipts of a collection; None if nothing is, or if there are no files either."""
    if damage := damage_of(lake, IMAGE_SERIES, collection):
        return str(damage)
    if lake.has_table(IMAGE_SERIES, collection) or next(folders_of(lake, collection), None) is None:
        return None
    return missing(IMAGE_SERIES, collection, f"there are files in {collection_path(collection)}")


def why_instances_are_lost(lake: Lake, collection: str, *, whole: bool = False) -> str | None:
    """Return what is wrong with the index of the files of a collection, whose receipts can be read; None if nothing is.

    Args:
        lake: the lake.
        collection: which one.
        whole: read all rows, however many there are.
    """
    if lake.has_table(INSTANCES, collection):
        damage = damage_of(lake, INSTANCES, collection, rows=False)
        whole = whole or bool(next(journal.read_slices(lake, collection)))
        if not damage and (whole or lake.count_rows(INSTANCES, collection) <= READ_WHOLE_ROWS):
            damage = damage_of(lake, INSTANCES, collection)
        return str(damage) if damage else None
    receipts = lake.read_table(IMAGE_SERIES, collection, columns=[_UID, "Status", "Bytes"])
    lost = pc.any(has_files(receipts), min_count=0).as_py()
    return missing(INSTANCES, collection, "there are receipts of files") if lost else None


class _Rebuild:
    """Reads series in a few threads, and keeps of each its receipt; its files leave in pieces of the table."""

    def __init__(self, work: _ByArchive | _ByReceipts) -> None:
        self._work = work
        self.receipts: list[Row] = []

    def pieces(self, at_the_end: Callable[[], None] = lambda: None) -> Iterator[pa.Table]:
        """Yield the rows of ``instances``, in the order of the table, and then call `at_the_end`."""
        begun: list[Receipt] = []
        for row, instances in self._results():
            self.receipts.append(row)
            if instances:
                wanted = WantedSeries(**{name: row[name] for name in COLUMNS})
                begun.append(Receipt(wanted, COMPLETE, 0, list(instances)))
            if len(begun) == PIECE_SERIES:
                yield instances_of(begun)
                begun = []
        yield instances_of(begun)
        at_the_end()

    def _results(self) -> Iterator[Judged]:
        with stopping.threads(THREADS, "nbia-rebuild") as pool:
            yield from filter(None, stopping.in_order(pool, self._work.jobs(), 2 * THREADS))


Job = Callable[[], "Judged | None"]
"""Reads a series."""


class _ByReceipts:
    """The receipts are there: the files of a series must have its SeriesMD5."""

    def __init__(self, lake: Lake, collection: str) -> None:
        self.result = Rebuilt()
        self._lake = lake
        self._collection = collection
        self._receipts = upgraded(lake.read_table(IMAGE_SERIES, collection))
        self._listed = set(lake.read_table(SERIES, collection, columns=[_UID])[_UID].to_pylist())
        self._have_files = has_files(self._receipts)

    def others(self) -> pa.Table:
        """Return the receipts of series without files, which stay as they are."""
        return self._receipts.filter(pc.invert(self._have_files))

    def jobs(self) -> Iterator[Job]:
        for row in self._receipts.filter(self._have_files).sort_by(_UID).to_pylist():
            yield partial(self._judge, row)

    def _judge(self, row: Row) -> Judged:
        uid = row[_UID]
        path = series_path(self._collection, row["PatientID"], row["StudyInstanceUID"], uid)
        instances: Sequence[VerifiedInstance] = ()
        try:
            instances = read_series(self._lake, path, uid)
            if series_md5([i.MD5 for i in instances]) != row["SeriesMD5"]:
                raise Differs(f"the {len(instances)} files in {path} are not those of its receipt")
        except Differs as e:
            if uid in self._listed and row["Status"] == COMPLETE:
                self.result.pending[uid] = str(e)
                return row, ()
            # It cannot be fetched again: what is there stays, and verify finds that it is not as it was fetched.
            self.result.left.append(f"{path} ({e})")
            return row, instances
        self.result.complete += 1
        self.result.files += len(instances)
        return row, instances


class _ByArchive:
    """The receipts are lost: the files of a listed series must be those of the archive, of others as last listed."""

    def __init__(self, client: NbiaClient, lake: Lake, collection: str, listed: pa.Table | None) -> None:
        self.result = Rebuilt()
        self._client, self._proofs = client, Proofs(client, strict=True)
        self._lake = lake
        self._listed: set[str] = set()
        self._known: dict[str, WantedSeries] = {}
        self._folders: dict[str, list[Folder]] = {}
        for folder in folders_of(lake, collection):
            self._folders.setdefault(folder.uid, []).append(folder)
        self._add(lake.read_table(SERIES_SEEN, collection, columns=COLUMNS), are_listed=False)
        self._add(lake.read_table(SERIES, collection, columns=COLUMNS))
        if listed is not None:
            self._add(listed)
        if not self._folders.keys() <= self._known.keys():  # the tables that name them may be lost as well
            self._add(client.series(collection))

    def _add(self, rows: pa.Table, *, are_listed: bool = True) -> None:
        found = {row[_UID]: WantedSeries(**row) for row in rows.select(COLUMNS).to_pylist()}
        self._known.update(found)
        self._listed.update(found if are_listed else ())

    def others(self) -> pa.Table:
        """Return no receipts: series without files get theirs from the listing."""
        return IMAGE_SERIES.schema.empty_table()

    def jobs(self) -> Iterator[Job]:
        for uid, found in sorted(self._folders.items()):
            wanted = self._known.get(uid)
            if wanted is None:
                self.result.left += [folder.path for folder in found]
                continue
            # The archive may have revised patient or study, and the series was not fetched again yet.
            chosen = next((f for f in found if f.path == Receipt(wanted, COMPLETE, 0).path), found[0])
            self.result.left += [folder.path for folder in found if folder is not chosen]
            yield partial(self._judge, wanted, chosen)

    def _judge(self, wanted: WantedSeries, folder: Folder) -> Judged | None:
        there = replace(wanted, PatientID=folder.patient, StudyInstanceUID=folder.study)
        try:
            instances = read_series(self._lake, folder.path, folder.uid)
            if folder.uid in self._listed:
                proof = proof_of_archive(self._client, self._proofs, wanted, instances)
            else:
                proof = proof_of_figures(wanted, instances)
        except Differs as e:
            if there != wanted or folder.uid not in self._listed:
                self.result.left.append(f"{folder.path} ({e})")
            if folder.uid not in self._listed:
                return None
            self.result.pending[folder.uid] = str(e)
            return _blank(wanted), ()
        self.result.complete += 1
        self.result.files += len(instances)
        return Receipt(there, COMPLETE, 0, instances, verified_by=proof).row(), instances


def _blank(wanted: WantedSeries) -> Row:
    """Return a receipt without figures; it is revoked before it is written."""
    blank = dict.fromkeys(IMAGE_SERIES.schema.names)
    return {**blank, **asdict(wanted), "Status": COMPLETE, "Attempts": 0, "Healed": 0}
