"""Our tables, written as a peer hands them out: the renames and the forms of dates, spelled out once more.

The keys stand here as the server's source has them, not as our schema has them: a wrong name there must not
be right here.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pydicom

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.embedded.demo.catalog import demo_catalog
from nbia_pipeline.headers.batch import Batch, Known

Row = dict[str, Any]

# Wire names in order; where our column has another name, it stands behind the equals sign.
PATIENT = (
    "PatientId=PatientID PatientName PatientBirthDate PatientSex EthnicGroup Collection Phantom SpeciesCode "
    "SpeciesDescription"
)
PATIENT4 = PATIENT.replace("PatientBirthDate ", "")
STUDY4 = (
    "StudyInstanceUID StudyDate StudyDescription AdmittingDiagnosesDescription StudyID PatientAge PatientID "
    "PatientName PatientSex EthnicGroup Collection SeriesCount LongitudinalTemporalEventType "
    "LongitudinalTemporalOffsetFromEvent"
)
STUDY = STUDY4.replace("PatientSex", "PatientBirthDate PatientSex")
SERIES_SHORT = (
    "SeriesInstanceUID StudyInstanceUID Modality ProtocolName SeriesDate SeriesDescription BodyPartExamined "
    "SeriesNumber AnnotationsFlag Collection PatientID Manufacturer ManufacturerModelName SoftwareVersions "
    "ImageCount DateReleased"
)
SERIES = (
    f"{SERIES_SHORT} TimeStamp LicenseName LicenseURI CollectionURI FileSize StudyDesc=StudyDescription StudyDate "
    "ThirdPartyAnalysis"
)
SERIES4 = (
    "SeriesInstanceUID StudyInstanceUID Modality ProtocolName SeriesDate SeriesDescription BodyPartExamined "
    "SeriesNumber AnnotationsFlag Collection Site PatientID PatientSex PatientAge "
    "AdmittingDiagnosisDescription=AdmittingDiagnosesDescription Manufacturer ManufacturerModelName "
    "SoftwareVersions ImageCount MaxSubmissionTimestamp=TimeStamp LicenseName LicenseURI "
    "DataDescriptionURI=CollectionURI FileSize ReleasedStatus DateReleased StudyDesc=StudyDescription StudyDate "
    "ThirdPartyAnalysis"
)
AUTHORISED = {"Authorized": 1}


def sent_v2(table: pa.Table, keys: str) -> list[Row]:
    """Return rows as v2 sends them: null keys omitted, dates with a time of day."""
    return [_sent(row, keys, _v2) for row in table.to_pylist()]


def sent_v4(table: pa.Table, keys: str) -> list[Row]:
    """Return rows as v4 sends them: US days, flags as text, one more key."""
    return [{**_sent(row, keys, _v4), **AUTHORISED} for row in table.to_pylist()]


def in_order(rows: Iterable[Row] | None, *key: str) -> list[Row]:
    """Return rows sorted by `key`: no answer has an order."""
    return sorted(rows or [], key=lambda row: [row[k] for k in key])


def values(rows: Iterable[Row], key: str) -> list[str | None]:
    """Return one value per row, null where the key is omitted."""
    return [row.get(key) for row in rows]


def us_day(value: date | None) -> str | None:
    """Write a day as v4 does."""
    return None if value is None else f"{value.month:02}-{value.day:02}-{value.year:04}"


def our_files(client: NbiaClient, uid: str) -> dict[str, bytes]:
    """Download a series with our client; return the files by SOPInstanceUID."""
    body = client.image_with_md5(uid, lambda chunks: b"".join(chunks))
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return _by_instance(archive.read(n) for n in archive.namelist() if n.endswith(".dcm"))


def their_files(folder: Path) -> dict[str, bytes]:
    """Return the image files below a folder by SOPInstanceUID."""
    return _by_instance(path.read_bytes() for path in folder.rglob("*.dcm"))


def _by_instance(files: Iterable[bytes]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for data in files:
        uid = str(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).SOPInstanceUID)
        assert uid not in found
        found[uid] = data
    return found


def _sent(row: Row, keys: str, write: Any) -> Row:
    return {name: write(row[column]) for name, column in _names(keys) if row[column] is not None}


def _names(keys: str) -> Iterator[tuple[str, str]]:
    for word in keys.split():
        name, _, column = word.partition("=")
        yield name, column or name


def _v2(value: Any) -> Any:
    if isinstance(value, datetime):
        assert not value.microsecond
    return f"{value:%Y-%m-%d %H:%M:%S}.0" if isinstance(value, date) else value


def _v4(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return us_day(value) if isinstance(value, date) else value


def stated_series(series_uid: str) -> set[str]:
    """Return the series that the file of a series of the demo states, as we read it."""
    images = demo_catalog().images
    assert images is not None
    (file,) = images.instances(series_uid)
    content = images.read(series_uid, file.sop_instance_uid)
    batch = Batch()
    known = Known(file.sop_instance_uid, series_uid, None, None, "", None, None, "", len(content))
    batch.add(known, content, len(content), lambda offset, length: content[offset : offset + length])
    stated = batch.tables()["instance_references"]["StatedSeriesInstanceUID"]
    return set(stated.drop_null().to_pylist())
