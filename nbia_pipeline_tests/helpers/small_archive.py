"""An archive of a few series of a few kilobytes, before and after everything happened to it that can happen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Catalog, StoredInstance
from nbia_pipeline_tests.helpers.dicom import dicom
from nbia_pipeline_tests.helpers.tiny import tiny_catalog

# No reader can take it for a number only thanks to a file that the lake adds to each table.
COLLECTION = "4D-Small"
OTHER = "Other"
CART = "mixed"
STAYS, REVISED, MOVED, WITHDRAWN, NEW, ELSEWHERE = "1.1", "1.2", "1.3", "1.4", "1.5", "2.1"
CLASS = "1.2.840.10008.5.1.4.1.1.2"


@dataclass(frozen=True)
class Series:
    """A series of the archive: its images are made from its UID, their number and `version`.

    Attributes:
        uid: SeriesInstanceUID.
        images: how many.
        version: changes their content and the TimeStamp of the series.
        patient: PatientID.
        annotation: text of its annotation file; none if empty.
    """

    uid: str
    images: int = 2
    version: int = 1
    patient: str = "P-1"
    annotation: str = ""

    def files(self) -> dict[str, bytes]:
        """Return the images by SOPInstanceUID."""
        return {
            f"{self.uid}.{n}": dicom(
                SOPInstanceUID=f"{self.uid}.{n}", SeriesInstanceUID=self.uid, InstanceNumber=n, AccessionNumber=f"{v}"
            )
            for n in range(1, self.images + 1)
            for v in (self.version,)
        }

    def row(self, like: Mapping[str, Any]) -> dict[str, Any]:
        """Return its row of the catalog; `like` has the columns that do not matter."""
        sizes = map(len, self.files().values())
        return {
            **like,
            "SeriesInstanceUID": self.uid,
            "StudyInstanceUID": self.uid.partition(".")[0],
            "PatientID": self.patient,
            "PatientName": self.patient,
            "Collection": OTHER if self.uid == ELSEWHERE else COLLECTION,
            "ImageCount": self.images,
            "FileSize": sum(sizes),
            "TimeStamp": datetime(2020, 1, self.version),  # noqa: DTZ001 - the server states no zone
            "AnnotationSize": len(self.annotation),
        }


BEFORE = (
    Series(STAYS),
    Series(REVISED, images=3, annotation="first"),
    Series(MOVED, annotation="of a series that moves"),
    Series(WITHDRAWN, annotation="of a withdrawn series"),
    Series(ELSEWHERE),
)
AFTER = (
    Series(STAYS),
    Series(REVISED, images=2, version=2, annotation="second, and longer"),
    Series(MOVED, patient="P-2", annotation="of a series that moves"),
    Series(NEW, annotation="new"),
    Series(ELSEWHERE),
)


class Images:
    """The files of some series."""

    def __init__(self, series: Sequence[Series]) -> None:
        self.files = {one.uid: one.files() for one in series}

    def instances(self, series_uid: str) -> Sequence[StoredInstance]:
        files = self.files.get(series_uid, {})
        return [StoredInstance(sop, CLASS, n, 1, len(data)) for n, (sop, data) in enumerate(files.items(), 1)]

    def read(self, series_uid: str, sop_instance_uid: str) -> bytes:
        return self.files[series_uid][sop_instance_uid]

    def md5(self, series_uid: str, sop_instance_uid: str) -> str | None:
        return hashlib.md5(self.read(series_uid, sop_instance_uid)).hexdigest()


def small_catalog(series: Sequence[Series]) -> Catalog:
    """Return an archive that has these series and nothing else."""
    tiny = tiny_catalog()
    like = tiny.series.to_pylist()[0]
    return replace(
        tiny,
        series=pa.Table.from_pylist([one.row(like) for one in series], schema=CATALOG_SCHEMA),
        images=Images(series),
        carts={CART: (STAYS, REVISED, ELSEWHERE)},
        annotations={one.uid: {f"{one.uid}.xml": one.annotation.encode()} for one in series if one.annotation},
    )
