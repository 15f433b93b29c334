"""Lakes that hold series of small DICOM files, made without an archive."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa

from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import instance_name, series_path
from nbia_pipeline.schema.digests import series_md5
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES
from nbia_pipeline_tests.helpers.dicom import dicom

NAME, CT, STUDY = "Lung, all", "1.2.840.10008.5.1.4.1.1.2", "1.2.826.0.2"
_SERIES, _INSTANCE, _VERSION = "1.2.826.0.1.1000000", "1.2.826.0.1.1000000.1000", "version 00000000"


@cache
def _template() -> bytes:
    return dicom(
        SOPClassUID=CT,
        SOPInstanceUID=_INSTANCE,
        StudyInstanceUID=STUDY,
        SeriesInstanceUID=_SERIES,
        Modality="CT",
        PatientID="P",
        InstanceNumber="1000",
        FrameOfReferenceUID="1.2.826.0.3",
        Rows=4,
        Columns=4,
        PixelSpacing=["0.5", "0.5"],
        ImageOrientationPatient=["1", "0", "0", "0", "1", "0"],
        ImagePositionPatient=["0", "0", "1000.5"],
        SliceThickness="1.25",
        SeriesDescription=_VERSION,
    )


def uid_of(number: int) -> str:
    """Return the UID of a series."""
    return f"1.2.826.0.1.{1_000_000 + number}"


def slice_of(number: int, index: int, version: int = 1) -> bytes:
    """Return an instance of a series of slices; its description states the version."""
    place = str(1000 + index)
    content = _template().replace(_INSTANCE.encode(), f"{uid_of(number)}.{place}".encode())
    content = content.replace(f"{_SERIES}\0".encode(), f"{uid_of(number)}\0".encode())
    content = content.replace(b"1000.5", f"{place}.5".encode()).replace(b"IS\4\0001000", f"IS\4\0{place}".encode())
    return content.replace(_VERSION.encode(), f"version {version:08d}".encode())


@dataclass
class Held:
    """A lake of one collection.

    Attributes:
        lake: the lake.
        versions: of each series, by its number; its description states it.
        counts: how many instances each has.
    """

    lake: Lake
    versions: dict[int, int] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    _rows: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    _receipts: dict[int, dict[str, Any]] = field(default_factory=dict)

    def put(self, numbers: Iterable[int], files: int = 3, version: int = 1) -> None:
        """Give the lake series, or newer versions of them."""
        for number in numbers:
            self.versions[number], self.counts[number] = version, files
            path, rows = series_path(NAME, "P", STUDY, uid_of(number)), []
            for index in range(files):
                content, sop = slice_of(number, index, version), f"{uid_of(number)}.{1000 + index}"
                name = f"{path}/{instance_name(sop)}"
                self.lake.put_bytes(name, content)
                md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
                rows.append(
                    {"SOPInstanceUID": sop, "SeriesInstanceUID": uid_of(number), "Collection": NAME, "SOPClassUID": CT}
                    | {"InstanceNumber": 1000 + index, "Path": name, "Size": len(content), "MD5": md5}
                )
            self._rows[number] = rows
            self.receipt(number, Status=COMPLETE, Bytes=sum(row["Size"] for row in rows), Path=path)
        self.write()

    def receipt(self, number: int, **values: Any) -> None:
        """Change the receipt of a series; :meth:`write` writes it."""
        blank = dict.fromkeys(IMAGE_SERIES.schema.names)
        known = {"SeriesInstanceUID": uid_of(number), "StudyInstanceUID": STUDY, "PatientID": "P", "Collection": NAME}
        md5 = series_md5(row["MD5"] for row in self._rows[number])
        self._receipts[number] = {**blank, **known, "SeriesMD5": md5, **self._receipts.get(number, {}), **values}
        self._receipts[number]["SeriesMD5"] = md5

    def write(self) -> None:
        """Write the tables of the images."""
        rows = [row for number in sorted(self._rows) for row in self._rows[number]]
        receipts = [self._receipts[number] for number in sorted(self._receipts)]
        self.lake.write_table(INSTANCES, pa.Table.from_pylist(rows, INSTANCES.schema), NAME)
        self.lake.write_table(IMAGE_SERIES, pa.Table.from_pylist(receipts, IMAGE_SERIES.schema), NAME)

    def drop(self, *numbers: int) -> None:
        """Forget series and their receipts."""
        for number in numbers:
            for known in (self.versions, self.counts, self._rows, self._receipts):
                known.pop(number)
        self.write()

    def path(self, number: int, index: int = 0) -> str:
        """Return the path of a file."""
        return str(self._rows[number][index]["Path"])

    def at(self, lake: Lake) -> Held:
        """Return the same of a copy of the lake."""
        return Held(lake, dict(self.versions), dict(self.counts), dict(self._rows), dict(self._receipts))

    def expected(self) -> dict[int, Counter[int]]:
        """Return what :func:`states` should be."""
        return {number: Counter({self.versions[number]: count}) for number, count in self.counts.items()}


def states(headers: pa.Table) -> dict[int, Counter[int]]:
    """Return how many rows of each series state which version; 0 for a file that could not be read."""
    found: dict[int, Counter[int]] = {}
    for uid, header in zip(headers["SeriesInstanceUID"].to_pylist(), headers["Header"].to_pylist(), strict=True):
        version = int(header.partition("version ")[2][:8]) if header else 0
        found.setdefault(int(uid[-6:]), Counter())[version] += 1
    return found
