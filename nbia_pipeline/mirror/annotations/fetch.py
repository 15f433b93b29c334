"""Fetch the annotation files of series whose images are in the lake: getDCMImage, which sends the images again.

Which series have some, ``AnnotationSize`` of table ``series_metadata`` says: v4 does not serve it. What was fetched is
fetched again if the images, the announced size or the place of the series change, or if a file is not in the lake any
longer. What arrived other than announced is not asked for again until then: each time costs all images of the series.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock, stopping
from nbia_pipeline.archive import ArchiveError, NbiaClient, NotAvailable
from nbia_pipeline.lake import Lake, Lock
from nbia_pipeline.lake.damage import read_or_empty
from nbia_pipeline.lake.layout import ANNOTATIONS as FOLDER
from nbia_pipeline.lake.layout import annotations_path, decode, encode
from nbia_pipeline.lake.lock import soon_if_interrupted
from nbia_pipeline.mirror.annotations.extract import extract
from nbia_pipeline.mirror.series import refresh_failed
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.schema.tables import ANNOTATION_FILES, IMAGE_SERIES, SERIES_METADATA
from nbia_pipeline.text import logger

log = logger(__name__)

STREAMS = 4
# So many series in a row whose requests fail are no accident: the archive is down, or has no such call.
IN_A_ROW = 3
# The table is written this often, and at the end: what a crash loses is fetched again.
WRITE_SECONDS = 10.0

_UID = "SeriesInstanceUID"
_IDENTITY = (_UID, "StudyInstanceUID", "PatientID", "SeriesMD5")
_RECEIPT = [*_IDENTITY, "Status", "Bytes", "RefreshFailedAt"]

Row = dict[str, Any]


@dataclass(frozen=True)
class AnnotatedSeries:
    """A series whose images are in the lake, and which has annotation files at the archive.

    Attributes:
        collection: exact spelling.
        identity: what its rows of ``annotation_files`` share: its UIDs, PatientID, SeriesMD5 of its receipt and
            AnnotationSize, by column.
        image_bytes: size of its images.
        older: its rows in the table.
    """

    collection: str
    identity: Mapping[str, Any]
    image_bytes: int
    older: Sequence[Row]

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return str(self.identity[_UID])

    @property
    def path(self) -> str:
        """Directory of the files, relative to the lake."""
        return annotations_path(
            self.collection, self.identity["PatientID"], self.identity["StudyInstanceUID"], self.uid
        )

    def rows(self, files: Iterable[Row], finding: str | None) -> list[Row]:
        """Return rows of the table: one per file, or one without a file, which states why."""
        shared = {"Collection": self.collection, **self.identity, "Finding": finding}
        now = {"FetchedAt": clock.utc_now()}
        return [{**now, **file, **shared} for file in files] or [{**now, **shared}]


@dataclass
class AnnotationsResult:
    """What :func:`fetch_annotations` did.

    Attributes:
        series: of how many series annotation files were fetched.
        files: how many files.
        bytes: how large these are.
        problems: by SeriesInstanceUID, what could not be fetched, or differs from what the archive announced.
        left: how many series were not asked for, because the requests before them failed.
    """

    series: int = 0
    files: int = 0
    bytes: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    left: int = 0

    def add(self, rows: list[Row]) -> None:
        """Count what was fetched of a series, given its rows."""
        sizes = [row["Size"] for row in rows if row.get("Path")]
        self.series += bool(sizes)
        self.files += len(sizes)
        self.bytes += sum(sizes)
        if rows[0]["Finding"]:
            self.problems[rows[0][_UID]] = rows[0]["Finding"]


def annotated_series(lake: Lake, collection: str) -> list[AnnotatedSeries]:
    """Return the series of a collection that should have annotation files in the lake.

    These are the series with complete images in their listed version for which the archive states an AnnotationSize.
    """
    lost = "Which series have annotation files is not known until then"
    announced = read_or_empty(lake, SERIES_METADATA, collection, [_UID, "AnnotationSize"], lost=lost)
    announced = announced.filter(pc.greater(announced["AnnotationSize"], 0))
    if not announced.num_rows:
        return []
    sizes = dict(zip(*(column.to_pylist() for column in announced.columns), strict=True))
    receipts = lake.read_table(IMAGE_SERIES, collection, columns=_RECEIPT)
    usable = pc.and_(pc.equal(receipts["Status"], COMPLETE), pc.invert(refresh_failed(receipts)))
    receipts = receipts.filter(pc.and_(usable, among(receipts[_UID], sizes)))
    older: dict[str, list[Row]] = {}
    for row in lake.read_table(ANNOTATION_FILES, collection).to_pylist():
        older.setdefault(row[_UID], []).append(row)
    return [
        AnnotatedSeries(
            collection,
            {**{name: row[name] for name in _IDENTITY}, "AnnotationSize": sizes[row[_UID]]},
            row["Bytes"],
            older.get(row[_UID], []),
        )
        for row in receipts.to_pylist()
    ]


def annotations_due(lake: Lake, collection: str, *, retry: bool = False) -> list[AnnotatedSeries]:
    """Return the series of a collection whose annotation files should be fetched.

    Args:
        lake: the lake.
        collection: exact spelling.
        retry: also those of which something other than announced arrived the last time.

    Raises:
        LakeError: the lake cannot be read.
    """
    series = annotated_series(lake, collection)
    stored = lake.sizes(f"{FOLDER}/{encode(collection)}") if series else {}
    return [s for s in series if _is_due(s, stored, retry=retry)]


def fetch_annotations(
    client: NbiaClient, lake: Lake, collection: str, series: Sequence[AnnotatedSeries]
) -> AnnotationsResult:
    """Fetch the annotation files of some series of a collection, and list them in table ``annotation_files``.

    What the archive refuses or cannot send is logged in one warning, and is no error; the next run asks again. What
    arrives other than announced is stored nevertheless, and its rows say so.

    Args:
        client: the archive.
        lake: where to.
        collection: exact spelling.
        series: what :func:`annotations_due` returned.

    Raises:
        LakeError: the lake cannot be written.
    """
    result = AnnotationsResult()
    pending: dict[str, list[Row]] = {}
    written, in_a_row = time.monotonic(), 0
    try:
        with stopping.threads(STREAMS, "nbia-annotations") as pool:
            futures = {pool.submit(_fetch, client, lake, one): one.uid for one in series}
            for future in as_completed(futures):
                if future.cancelled():
                    result.left += 1
                    continue
                uid = futures[future]
                try:
                    pending[uid] = future.result()
                except ArchiveError as e:
                    result.problems[uid] = str(e)
                    in_a_row += not isinstance(e, NotAvailable)  # that is about this series only
                    if in_a_row == IN_A_ROW:
                        for other in futures:
                            other.cancel()
                    continue
                in_a_row = 0
                result.add(pending[uid])
                if time.monotonic() > written + WRITE_SECONDS:
                    _record(lake, collection, pending)
                    pending, written = {}, time.monotonic()
    finally:
        with soon_if_interrupted():
            _record(lake, collection, pending)
    if result.problems:
        uid, why = next(iter(result.problems.items()))
        log.warning(
            "%s: of %d of %d series, annotation files were not fetched as announced, the first: series %s: %s",
            *(collection, len(result.problems) + result.left, len(series), uid, why),
        )
    return result


def remove_annotations(lake: Lake, collection: str, uids: Iterable[str]) -> pa.Table:
    """Remove the annotation files of some series and their rows, and return these; the caller holds the lock.

    Raises:
        LakeError: the lake cannot be written; called again, it finishes.
    """
    table = lake.read_table(ANNOTATION_FILES, collection)
    chosen = among(table[_UID], uids)
    gone = table.filter(chosen)
    if gone.num_rows:
        _remove(lake, collection, _folders(gone.to_pylist()))
        lake.write_table(ANNOTATION_FILES, table.filter(pc.invert(chosen)), collection, may_empty=True)
    return gone


def _is_due(series: AnnotatedSeries, stored: Mapping[str, int], *, retry: bool) -> bool:
    if not series.older or any(series.older[0][name] != value for name, value in series.identity.items()):
        return True
    if retry and series.older[0]["Finding"]:
        return True
    return any(row["Path"] is not None and stored.get(row["Path"]) != row["Size"] for row in series.older)


def _fetch(client: NbiaClient, lake: Lake, series: AnnotatedSeries) -> list[Row]:
    """Fetch the annotation files of one series into their directory, and return their rows of the table."""
    with lake.workspace() as work, lake.storage_errors(f"unpack the annotation files of series {series.uid}"):
        files: Path = work / "files"
        announced = series.identity["AnnotationSize"]
        found = client.dcm_image(series.uid, lambda chunks: extract(chunks, files, series.image_bytes, announced))
        older = [row for row in series.older if row["Path"]]
        if older and not found.files:
            return series.rows(older, f"{found.finding}; the older files stay")
        if found.files:
            with lake.lock(Lock.COLLECTION, series.collection):
                _forget(lake, series.collection, {series.path})
                lake.publish_folder(files, series.path)
    rows = [{"Name": f.name, "Path": f"{series.path}/{f.file}", "Size": f.size, "MD5": f.md5} for f in found.files]
    return series.rows(rows, found.finding)


def _remove(lake: Lake, collection: str, folders: set[str]) -> None:
    _forget(lake, collection, folders)
    for folder in sorted(folders):
        lake.remove_folder(folder)


def _forget(lake: Lake, collection: str, folders: set[str]) -> None:
    """Make no row state files in directories that are about to be replaced or removed.

    A row without a file remembers each directory, so that what a crash leaves is found again.
    """
    table = lake.read_table(ANNOTATION_FILES, collection)
    folder_of = pc.replace_substring_regex(table["Path"], "/[^/]*$", "")
    there = among(folder_of, folders)
    if pc.any(there).as_py():
        names = ("Collection", "PatientID", "StudyInstanceUID", _UID)
        found = sorted(pc.unique(folder_of.filter(there)).to_pylist())
        rows = [dict(zip(names, map(decode, folder.split("/")[1:]), strict=True)) for folder in found]
        _write(lake, collection, table.filter(pc.invert(there)), rows)


def _write(lake: Lake, collection: str, kept: pa.Table, rows: Sequence[Row]) -> None:
    table = pa.concat_tables([kept, pa.Table.from_pylist(rows, schema=ANNOTATION_FILES.schema)])
    lake.write_table(ANNOTATION_FILES, table.sort_by([(_UID, "ascending"), ("Path", "ascending")]), collection)


def _record(lake: Lake, collection: str, fetched: Mapping[str, list[Row]]) -> None:
    """Replace the rows of some series, after the directories that they leave behind are gone."""
    if not fetched:
        return
    rows = [row for of_series in fetched.values() for row in of_series]
    with lake.lock(Lock.COLLECTION, collection) as expect_held:
        table = lake.read_table(ANNOTATION_FILES, collection)
        replaced = among(table[_UID], fetched)
        _remove(lake, collection, _folders(table.filter(replaced).to_pylist()) - _folders(rows))
        expect_held()
        _write(lake, collection, table.filter(pc.invert(replaced)), rows)


def _folders(rows: Iterable[Row]) -> set[str]:
    """Return the directories of the files of some rows; of a row without a file, where its files would be."""
    return {
        row["Path"].rsplit("/", 1)[0]
        if row.get("Path")
        else annotations_path(row["Collection"], row["PatientID"], row["StudyInstanceUID"], row[_UID])
        for row in rows
    }
