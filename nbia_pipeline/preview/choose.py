"""Which series represent a collection: the same ones as long as the lake does not change."""

from __future__ import annotations

import hashlib
import json
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice, zip_longest
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.lake.table_file import Rows, rows_where
from nbia_pipeline.schema.arrow import among, first_of_each, places_in, taken
from nbia_pipeline.schema.status import COMPLETE

MOST = 24
MOST_LABELED = 4

# Series without pixels, or whose pixels mean nothing without the images that they belong to: they get a label only.
LABELED = {
    "SEG": "segmentation",
    "RTSTRUCT": "structure set",
    "RTDOSE": "dose",
    "RTPLAN": "treatment plan",
    "RTRECORD": "treatment record",
    "SR": "report",
    "PR": "presentation state",
    "KO": "key objects",
    "REG": "registration",
    "RWV": "real world values",
    "FID": "fiducials",
    "ANN": "annotations",
    "DOC": "document",
    "PLAN": "plan",
    "ECG": "waveform",
    "AU": "audio",
}


MOST_ROWS = 25_000
_OF_QUEUE = ["SeriesInstanceUID", "PatientID", "Modality"]
_OF_RECEIPT = ["SeriesInstanceUID", "PatientID", "SeriesMD5", "ImageCount", "Bytes"]
_OF_SERIES = ["SeriesInstanceUID", "Modality", "SeriesDescription", "StudyDate", "StudyInstanceUID", "SeriesNumber"]

Candidate: TypeAlias = tuple[bytes, str, int]
"""The number of a series, which is the digest of its UID; its PatientID; and its row."""


@dataclass(frozen=True)
class Chosen:
    """A series of the contact sheet, with the values of its label.

    Attributes:
        SeriesInstanceUID: DICOM (0020,000E).
        SeriesMD5: digest of its files.
        Modality: DICOM (0008,0060), or None.
        PatientID: DICOM (0010,0020).
        SeriesDescription: DICOM (0008,103E), or None.
        ImageCount: number of files.
        Bytes: their size.
    """

    SeriesInstanceUID: str
    SeriesMD5: str
    Modality: str | None
    PatientID: str
    SeriesDescription: str | None
    ImageCount: int | None
    Bytes: int

    @property
    def label_only(self) -> str | None:
        """What kind of object it is, if it is not an image; None for an image."""
        return LABELED.get((self.Modality or "").strip().upper())


def choose(receipts: Rows, series: Rows) -> list[Chosen]:
    """Return the series that represent a collection, ordered by patient, study and number.

    The modalities take turns, and within one the patients do. The order within a turn is random, but given by the
    digest of the UID: the choice is the same every time, and a new series seldom changes it. Only a few series with a
    label are chosen as long as there are images.

    Args:
        receipts: rows of ``image_series``; only complete series with files can be shown.
        series: rows of ``series``, which know the modality.
    """
    with_files = pc.and_(pc.equal(receipts["Status"], COMPLETE), pc.greater(receipts["Bytes"], 0))
    uids = receipts["SeriesInstanceUID"].filter(with_files)
    at = places_in(uids, series["SeriesInstanceUID"])
    modalities = taken(series["Modality"], at)
    images: dict[str, _Queue] = defaultdict(_Queue)
    labeled: dict[str, _Queue] = defaultdict(_Queue)
    row = 0
    for piece in pa.table([uids, receipts["PatientID"].filter(with_files), modalities], _OF_QUEUE).to_batches(
        MOST_ROWS
    ):
        for uid, patient, stored in zip(*(column.to_pylist() for column in piece.columns), strict=True):
            modality = (stored or "").strip().upper()
            kind = labeled if modality in LABELED else images
            kind[modality].add((hashlib.md5(uid.encode(), usedforsecurity=False).digest(), patient, row))
            row += 1
    shown = list(islice(_in_turns(images), MOST))
    others = list(islice(_in_turns(labeled), max(MOST_LABELED, MOST - len(shown))))
    chosen = pa.array(shown[: MOST - len(others)] + others, pa.uint64())
    known = rows_where(receipts, among(receipts["SeriesInstanceUID"], uids.take(chosen).to_pylist()), _OF_RECEIPT)
    listed = rows_where(series, among(series["SeriesInstanceUID"], known["SeriesInstanceUID"].to_pylist()), _OF_SERIES)
    rows = known.join(first_of_each(listed, "SeriesInstanceUID"), "SeriesInstanceUID", use_threads=False).to_pylist()
    return [Chosen(**{f.name: row[f.name] for f in fields(Chosen)}) for row in sorted(rows, key=_position)]


def digest_of(chosen: Sequence[Chosen], version: str) -> str:
    """Return a digest that changes with the content of the series, their labels, or the way they are drawn."""
    text = json.dumps([version, *(asdict(c) for c in chosen)])
    return hashlib.sha256(text.encode()).hexdigest()


class _Queue:
    """The first series of a modality, up to as many as a sheet shows; the others are forgotten as they come."""

    def __init__(self) -> None:
        self._by_patient: dict[str, list[Candidate]] = defaultdict(list)
        self._last: bytes | None = None

    def add(self, one: Candidate) -> None:
        """Add a series: its number, PatientID and row."""
        if self._last is not None and one[0] > self._last:
            return
        insort(self._by_patient[one[1]], one)
        if len(self._by_patient) < MOST:
            del self._by_patient[one[1]][MOST:]
            return
        # With so many patients, there is no second turn.
        firsts = sorted(candidates[0] for candidates in self._by_patient.values())[:MOST]
        self._by_patient = defaultdict(list, {first[1]: [first] for first in firsts})
        self._last = firsts[-1][0]

    def rows(self) -> list[int]:
        """Return their rows."""
        return _patients_in_turns(one for candidates in self._by_patient.values() for one in candidates)


def _in_turns(by_modality: dict[str, _Queue]) -> Iterator[int]:
    """Yield rows: the first series of each modality, then the second ones, as long as there are any."""
    queues = [by_modality[modality].rows() for modality in sorted(by_modality)]
    return (row for turn in zip_longest(*queues) for row in turn if row is not None)


def _patients_in_turns(candidates: Iterable[Candidate]) -> list[int]:
    """Return rows in random order, but the second series of a patient after the first of every other."""
    earlier: Counter[str] = Counter()
    turns = []
    for number, patient, row in sorted(candidates):
        turns.append((earlier[patient], number, patient, row))
        earlier[patient] += 1
    return [row for *_, row in sorted(turns)]


def _position(row: dict[str, Any]) -> tuple[str, str, str, int, str]:
    study, number = row["StudyInstanceUID"] or "", row["SeriesNumber"] or 0
    return row["PatientID"], str(row["StudyDate"] or ""), study, number, row["SeriesInstanceUID"]
