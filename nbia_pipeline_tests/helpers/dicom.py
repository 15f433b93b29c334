"""DICOM files in every encoding."""

from __future__ import annotations

import io

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian


def dicom(syntax: str = ExplicitVRLittleEndian, **values: object) -> bytes:
    data = Dataset()
    for name, value in values.items():
        setattr(data, name, value)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("1.2.3")
    target = io.BytesIO()
    pydicom.dcmwrite(
        target, pydicom.FileDataset("", data, file_meta=meta, preamble=bytes(128)), enforce_file_format=True
    )
    return target.getvalue()
