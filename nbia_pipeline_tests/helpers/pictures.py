"""DICOM images made by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian


def dicom(pixels: NDArray[Any] | bytes, syntax: UID = ExplicitVRLittleEndian, **elements: Any) -> io.BytesIO:
    """Return a DICOM file of some pixels; `elements` replace what follows from them."""
    array = pixels if isinstance(pixels, np.ndarray) else np.zeros((4, 4), np.uint16)
    bits = 8 * array.dtype.itemsize
    values: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
        "SOPInstanceUID": "1.2.3",
        "Rows": array.shape[0],
        "Columns": array.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(array.dtype.kind == "i"),
        **elements,
    }
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(values["SOPClassUID"])
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(values["SOPInstanceUID"])
    dataset.file_meta.TransferSyntaxUID = syntax
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = pixels if isinstance(pixels, bytes) else array.tobytes()
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    if syntax.is_encapsulated:
        dataset["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return file


def ramp(dtype: Any = np.uint16) -> NDArray[Any]:
    """Return 101 values, 0 to 100, so that percentiles are values."""
    return np.arange(101, dtype=dtype).reshape(1, 101)
