"""Series of images whose files are in the lake: their paths, their headers, their volumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pydicom

from nbia_pipeline.lake import Lake
from nbia_pipeline.reading.frames import Names, NotInLake, collections_in, names
from nbia_pipeline.reading.volume import Volume, volume_of
from nbia_pipeline.schema.status import COMPLETE, WITHDRAWN
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES, SERIES_SEEN

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

_UID = "SeriesInstanceUID"
_RECEIPT = [_UID, "StudyInstanceUID", "PatientID", "Status"]


@dataclass(frozen=True)
class SeriesImages:
    """A series whose image files are in the lake.

    Attributes:
        SeriesInstanceUID: DICOM (0020,000E).
        StudyInstanceUID: DICOM (0020,000D).
        PatientID: DICOM (0010,0020).
        Collection: exact spelling.
        Modality: DICOM (0008,0060), None if the archive states none.
        files: the files in the order of InstanceNumber, relative to the lake.
    """

    SeriesInstanceUID: str
    StudyInstanceUID: str
    PatientID: str
    Collection: str
    Modality: str | None
    files: tuple[str, ...]
    _lake: Lake = field(repr=False, compare=False)

    @property
    def paths(self) -> list[str]:
        """The addresses of the files: paths of a lake on a disk, else URIs."""
        return [self._lake.url(file) for file in self.files]

    def datasets(self, **options: Any) -> Iterator[FileDataset]:
        """Yield the files as pydicom reads them.

        Args:
            options: arguments of :func:`pydicom.dcmread`, such as ``stop_before_pixels=True``.

        Raises:
            LakeError: a file cannot be read.
        """
        for file in self.files:
            with self._lake.open(file) as opened:
                yield pydicom.dcmread(opened, **options)

    def volume(self) -> Volume:
        """Return the images as one array; see :meth:`~nbia_pipeline.reading.lake.Lake.volume`."""
        return volume_of(self.datasets(), f"series {self.SeriesInstanceUID}")


@dataclass(frozen=True)
class Images:
    """The series of some collections whose files are in the lake, in the order of collections and UIDs.

    Attributes:
        lake: the lake.
        collections: exact spellings.
        modalities: only these; None for all.
    """

    lake: Lake
    collections: tuple[str, ...]
    modalities: frozenset[str] | None = None

    def __iter__(self) -> Iterator[SeriesImages]:
        for collection in self.collections:
            yield from self._of(collection)

    def _of(self, collection: str) -> Iterator[SeriesImages]:
        modality: dict[str, str | None] = {}
        for table in (SERIES_SEEN, SERIES):  # the first has the withdrawn ones, too; the second may be newer
            rows = self.lake.read_table(table, collection, columns=[_UID, "Modality"])
            modality.update(zip(rows[_UID].to_pylist(), rows["Modality"].to_pylist(), strict=True))
        receipts = self.lake.read_table(IMAGE_SERIES, collection, columns=_RECEIPT)
        known = {row[_UID]: row for row in receipts.to_pylist() if row["Status"] in (COMPLETE, WITHDRAWN)}
        for uid, files in _files(self.lake, collection):
            if uid in known and (self.modalities is None or modality.get(uid) in self.modalities):
                study, patient = known[uid]["StudyInstanceUID"], known[uid]["PatientID"]
                yield SeriesImages(uid, study, patient, collection, modality.get(uid), files, self.lake)


def _files(lake: Lake, collection: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the files of each series; the table is in this order, and may have millions of rows."""
    pieces = (p.select([_UID, "Path"]) for p in lake.read_pieces(INSTANCES, collection))
    rows = (row for p in pieces for row in zip(p[_UID].to_pylist(), p["Path"].to_pylist(), strict=True))
    for uid, of_series in groupby(rows, lambda row: row[0]):
        yield uid, tuple(path for _, path in of_series)


def images_of(lake: Lake, collection: Names = None, modality: Names = None) -> Images:
    """Return the series whose files are in the lake; see :meth:`~nbia_pipeline.reading.lake.Lake.images`."""
    wanted = names(modality)
    chosen = collections_in(lake, IMAGE_SERIES, names(collection))
    return Images(lake, tuple(chosen), None if wanted is None else frozenset(wanted))


def series_of(lake: Lake, series_uid: str) -> SeriesImages:
    """Return a series by its UID.

    Raises:
        NotInLake: its files are not in the lake; the text says what is known of it.
        LakeError: the lake cannot be read.
    """
    for collection in lake.collections_of(IMAGE_SERIES):
        columns = [*_RECEIPT, "Reason"]
        for row in lake.read_rows(IMAGE_SERIES, collection, _UID, [series_uid], columns).to_pylist():
            files = _rows_of(lake, collection, series_uid)
            if row["Status"] not in (COMPLETE, WITHDRAWN) or not files:
                raise NotInLake(
                    f"the files of series {series_uid} of {collection} are not in the lake: its status is "
                    f"{row['Status']} ({row['Reason']})"
                )
            modality = lake.read_rows(SERIES, collection, _UID, [series_uid], ["Modality"])["Modality"].to_pylist()
            who = (row["StudyInstanceUID"], row["PatientID"], collection)
            return SeriesImages(series_uid, *who, next(iter(modality), None), files, lake)
    raise NotInLake(
        f"no table image_series of the lake {lake.uri} has a series {series_uid!r}: its collection is not mirrored, or "
        "the UID is wrong"
    )


def _rows_of(lake: Lake, collection: str, series_uid: str) -> tuple[str, ...]:
    rows = lake.read_rows(INSTANCES, collection, _UID, [series_uid], ["InstanceNumber", "SOPInstanceUID", "Path"])
    in_order = sorted(rows.to_pylist(), key=lambda row: (row["InstanceNumber"] or 0, row["SOPInstanceUID"]))
    return tuple(row["Path"] for row in in_order)
