"""Which series represent a collection: the same ones as long as the lake does not change."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.schema.arrow import first_of_each
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


def choose(receipts: pa.Table, series: pa.Table) -> list[Chosen]:
    """Return the series that represent a collection, ordered by patient, study and number.

    The modalities take turns, and within one the patients do. The order within a turn is random, but given by the
    digest of the UID: the choice is the same every time, and a new series seldom changes it. Only a few series with a
    label are chosen as long as there are images.

    Args:
        receipts: rows of ``image_series``; only complete series with files can be shown.
        series: rows of ``series``, which know the modality.
    """
    with_files = pc.and_(pc.equal(receipts["Status"], COMPLETE), pc.greater(receipts["Bytes"], 0))
    complete = receipts.filter(with_files).select(
        ["SeriesInstanceUID", "PatientID", "SeriesMD5", "ImageCount", "Bytes"]
    )
    listed = first_of_each(series, "SeriesInstanceUID").select(
        ["SeriesInstanceUID", "Modality", "SeriesDescription", "StudyDate", "StudyInstanceUID", "SeriesNumber"]
    )
    known = complete.join(listed, "SeriesInstanceUID", use_threads=False)
    images: dict[str, list[tuple[bytes, str, int]]] = defaultdict(list)
    labeled: dict[str, list[tuple[bytes, str, int]]] = defaultdict(list)
    columns = (known[name].to_pylist() for name in ("SeriesInstanceUID", "PatientID", "Modality"))
    for row, (uid, patient, stored) in enumerate(zip(*columns, strict=True)):
        modality = (stored or "").strip().upper()
        kind = labeled if modality in LABELED else images
        kind[modality].append((hashlib.md5(uid.encode(), usedforsecurity=False).digest(), patient, row))
    shown = list(islice(_in_turns(images), MOST))
    others = list(islice(_in_turns(labeled), max(MOST_LABELED, MOST - len(shown))))
    rows = known.take(pa.array(shown[: MOST - len(others)] + others, pa.int64())).to_pylist()
    return [Chosen(**{f.name: row[f.name] for f in fields(Chosen)}) for row in sorted(rows, key=_position)]


def digest_of(chosen: Sequence[Chosen], version: str) -> str:
    """Return a digest that changes with the content of the series, their labels, or the way they are drawn."""
    text = json.dumps([version, *(asdict(c) for c in chosen)])
    return hashlib.sha256(text.encode()).hexdigest()


def _in_turns(by_modality: dict[str, list[tuple[bytes, str, int]]]) -> Iterator[int]:
    """Yield rows: the first series of each modality, then the second ones, as long as there are any."""
    queues = [_patients_in_turns(by_modality[modality]) for modality in sorted(by_modality)]
    return (row for turn in zip_longest(*queues) for row in turn if row is not None)


def _patients_in_turns(candidates: Iterable[tuple[bytes, str, int]]) -> list[int]:
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
