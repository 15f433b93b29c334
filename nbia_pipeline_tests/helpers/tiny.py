"""A catalog small enough to know by heart, and a server that runs in a thread."""

# ruff: noqa: DTZ001 - the server's times have no zone

from __future__ import annotations

import contextlib
import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import uvicorn
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID
from starlette.applications import Starlette

from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Account, Catalog, CollectionDescription, StoredInstance
from nbia_pipeline.embedded.server.run import make_server, with_control, with_token

TOKEN = "token-of-the-tests"

BY_3 = "http://creativecommons.org/licenses/by/3.0/"

_DEFAULTS: dict[str, Any] = {
    "ImageCount": 3,
    "FileSize": 3000,
    "TimeStamp": datetime(2011, 11, 8, 8, 8, 1),
    "DateReleased": datetime(2020, 1, 1),
    "LicenseName": "Creative Commons Attribution 3.0 Unported License",
    "LicenseURI": BY_3,
    "CollectionURI": "https://doi.org/10.7937/tiny",
    "Visibility": 1,
}
_SERIES: list[dict[str, Any]] = [
    {
        "SeriesInstanceUID": "1.1",
        "StudyInstanceUID": "1",
        "PatientID": "A-1",
        "PatientName": "A-1",
        "Collection": "Alpha Set",
        "Site": "North",
        "Modality": "CT",
        "BodyPartExamined": "Lung",
        "Manufacturer": "GE MEDICAL, SYSTEMS",
        "ManufacturerModelName": "Scan/1",
        "SeriesDescription": 'Thorax_1.0 "à" (B20f), x/y',
        "StudyDescription": "Staging: -1",
        "StudyDate": date(2001, 5, 9),
        "SeriesDate": date(2001, 5, 9),
        "SeriesNumber": 8,
        "StudyID": "DDSM",
        "PatientAge": "061Y",
        "AnnotationsFlag": False,
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
        "LongitudinalTemporalOffsetFromEvent": 59.0,
    },
    {
        "SeriesInstanceUID": "1.2",
        "StudyInstanceUID": "1",
        "PatientID": "A-1",
        "Collection": "Alpha Set",
        "Modality": "MR",
        "BodyPartExamined": None,
        "Manufacturer": "GE Medical, Systems",
        "DateReleased": datetime(2020, 1, 2, 10, 30),
    },
    {
        "SeriesInstanceUID": "2.1",
        "StudyInstanceUID": "2",
        "PatientID": "a-2",
        "Collection": "Alpha Set",
        "Modality": "CT",
        "BodyPartExamined": "LUNG",
        "DateReleased": None,
        "Manufacturer": None,
    },
    {
        "SeriesInstanceUID": "2.2",
        "StudyInstanceUID": "2",
        "PatientID": "a-2",
        "Collection": "Alpha Set",
        "Modality": "PT",
        "Visibility": 0,
    },
    {
        "SeriesInstanceUID": "3.1",
        "StudyInstanceUID": "3",
        "PatientID": "A-1",
        "Collection": "beta-set",
        "Modality": "CT",
        "BodyPartExamined": "HEAD",
        "LicenseURI": None,
        "DateReleased": datetime(2020, 2, 1),
    },
    {
        "SeriesInstanceUID": "4.1",
        "StudyInstanceUID": "4",
        "PatientID": "S-1",
        "Collection": "Secret",
        "Modality": "US",
        "BodyPartExamined": "LIVER",
    },
    {
        "SeriesInstanceUID": "5.1",
        "StudyInstanceUID": "5",
        "PatientID": "H-1",
        "Collection": "Hidden Set",
        "Modality": "XA",
        "Visibility": 12,
    },
]


class TinyStore:
    """Three images a series in memory; one of series 1.2 has no digest, one of 2.1 cannot be read."""

    def instances(self, series_uid: str) -> Sequence[StoredInstance]:
        if series_uid not in {row["SeriesInstanceUID"] for row in _SERIES}:
            return ()
        return [
            StoredInstance(f"{series_uid}.{n}", "1.2.840.10008.5.1.4.1.1.2", n, 1 if n < 3 else 2, 1000)
            for n in (1, 2, 3)
        ]

    def read(self, series_uid: str, sop_instance_uid: str) -> bytes:
        if not sop_instance_uid.startswith(series_uid + "."):
            raise KeyError(sop_instance_uid)
        if sop_instance_uid == "2.1.2":
            raise FileNotFoundError(sop_instance_uid)
        return dicom(series_uid, sop_instance_uid)

    def md5(self, series_uid: str, sop_instance_uid: str) -> str | None:
        if sop_instance_uid == "1.2.2":
            return None
        return hashlib.md5(dicom(series_uid, sop_instance_uid)).hexdigest()


def dicom(series_uid: str, sop_uid: str) -> bytes:
    """Return a small DICOM file with a sequence and pixel data."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    meta.MediaStorageSOPInstanceUID = UID(sop_uid)
    meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
    item = Dataset()
    item.CodeValue = "T-1"
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPInstanceUID = sop_uid
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.AnatomicRegionSequence = DicomSequence([item])
    dataset.SeriesInstanceUID = series_uid
    dataset.add_new(0x7FE00010, "OW", sop_uid.encode().ljust(600, b"\0"))
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def tiny_catalog() -> Catalog:
    """Return the tiny catalogue."""
    rows = [{**dict.fromkeys(CATALOG_SCHEMA.names), **_DEFAULTS, **row} for row in _SERIES]
    return Catalog(
        series=pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA),
        images=TinyStore(),
        restricted=frozenset({"Secret"}),
        accounts={
            "holder": Account("right", frozenset({"Secret"})),
            "other": Account("right"),
        },
        descriptions={
            "Alpha Set": CollectionDescription(
                "Alpha Set", "<p>One</p>", "https://doi.org/10.7937/tiny", 1_700_000_000_000
            )
        },
        carts={"My Cart": ("4.1", "2.2", "1.2", "nope", "3.1")},
    )


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def running_with_control(app: Starlette) -> Iterator[tuple[str, str]]:
    """Serve `app` from a thread with its control interface; yields both addresses."""
    with socket.socket() as archive, socket.socket() as control:
        for listener in (archive, control):
            listener.bind(("127.0.0.1", 0))
        with _serving(make_server(with_control(app, control, TOKEN)), [archive, control]):
            ports = [listener.getsockname()[1] for listener in (archive, control)]
            yield f"http://127.0.0.1:{ports[0]}/nbia-api", with_token(f"http://127.0.0.1:{ports[1]}", TOKEN)


@contextlib.contextmanager
def running(app: Starlette) -> Iterator[str]:
    """Serve `app` from a thread; yields the base URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        with _serving(make_server(app), [listener]):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/nbia-api"


@contextlib.contextmanager
def _serving(server: uvicorn.Server, sockets: list[socket.socket]) -> Iterator[None]:
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        thread.join()
