"""From a DICOM file to gray values that a person can view."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

MOST_FRAME_BYTES = 128 * 1024 * 1024
MOST_ELEMENT_BYTES = 1024 * 1024
EDGE = 1024
"""A frame with longer edges is reduced to about this many pixels: it becomes a small tile anyway."""

# Windows for CT, level and width in Hounsfield units, as radiologists set them.
SOFT_TISSUE = (40.0, 400.0)
LUNG = (-600.0, 1500.0)
LUNG_TISSUE = (-900.0, -500.0)
LUNG_SHARE = 0.1

PERCENTILES = (1.0, 99.0)
PET_PERCENTILES = (0.0, 99.5)  # few places are bright with uptake, and no uptake is black

Gray = NDArray[np.uint8]
"""Rows and columns of gray values, or rows, columns and three colors; 0 to 255."""


class NotDrawable(Exception):
    """The file cannot be drawn; the text gives the reason, short enough for a tile."""


def picture_of(file: BinaryIO, modality: str | None) -> Gray:
    """Return the image of a file, the middle one if it has many, windowed so that its content can be seen.

    Only this frame is decoded. CT is windowed in Hounsfield units, with a lung window if it shows lungs; all other
    modalities between percentiles of their values, which have no common scale.

    Args:
        file: a DICOM file, open for reading.
        modality: Modality (0008,0060), or None.

    Raises:
        NotDrawable: the file contains no image, or none that can be decoded here.
    """
    try:
        return _picture_of(file, (modality or "").strip().upper())
    except NotDrawable:
        raise
    except Exception as e:  # pydicom and its decoders raise errors of all kinds for broken files
        raise NotDrawable(f"{type(e).__name__}: {e}"[:160]) from e


def phases_of(file: BinaryIO) -> int:
    """Return how many times the series of a file shows each slice: NumberOfTemporalPositions (0020,0105), else 1.

    Raises:
        NotDrawable: it is not a DICOM file.
    """
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["NumberOfTemporalPositions"])
        return max(1, int(header.get("NumberOfTemporalPositions") or 1))
    except Exception as e:
        raise NotDrawable(f"{type(e).__name__}: {e}"[:160]) from e


def _picture_of(file: BinaryIO, modality: str) -> Gray:
    header = _header(file)
    frames = int(header.get("NumberOfFrames") or 1)
    pixels = pixel_array(file, index=frames // 2)
    kind = str(header.get("PhotometricInterpretation", "")).strip()
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)
    step = max(1, -(-max(pixels.shape[:2]) // EDGE))
    pixels = pixels[::step, ::step]
    if pixels.ndim == 3:
        return _colors(pixels, header)
    gray = windowed(pixels, header, modality)
    return np.asarray(255 - gray, np.uint8) if kind == "MONOCHROME1" else gray


def _header(file: BinaryIO) -> Dataset:
    """Read the header, and refuse a file that cannot be decoded here, or not in bounded memory."""
    file.seek(0)
    header = pydicom.dcmread(file, stop_before_pixels=True, defer_size=MOST_ELEMENT_BYTES)
    if "Rows" not in header:
        raise NotDrawable("it contains no image")
    syntax = header.file_meta.TransferSyntaxUID
    if syntax == DeflatedExplicitVRLittleEndian or not _decodable(syntax):
        raise NotDrawable(f"no decoder for {syntax.name}")
    size = header.Rows * header.Columns * header.get("SamplesPerPixel", 1) * header.get("BitsAllocated", 8) // 8
    if size > MOST_FRAME_BYTES:
        raise NotDrawable(f"{header.Columns} by {header.Rows} pixels are too many")
    return header


def _decodable(syntax: UID) -> bool:
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def windowed(pixels: NDArray[Any], header: Dataset, modality: str) -> Gray:
    """Return stored values as gray values, black to white.

    Args:
        pixels: rows and columns of stored values.
        header: with RescaleSlope (0028,1053), RescaleIntercept (0028,1052) and PixelPaddingValue (0028,0120), if
            the file has them.
        modality: Modality (0008,0060) in upper case.
    """
    values = pixels.astype(np.float32)
    known = np.isfinite(values)
    padding = header.get("PixelPaddingValue")
    if isinstance(padding, int):
        known &= pixels != padding
    scaled = header.get("RescaleIntercept") is not None
    if scaled:
        values = values * np.float32(header.get("RescaleSlope", 1)) + np.float32(header.RescaleIntercept)
    if modality == "CT" and scaled:
        level, width = _ct_window(values)
        low, high = level - width / 2, level + width / 2
    elif known.any():
        low, high = np.percentile(values[known], PET_PERCENTILES if modality == "PT" else PERCENTILES)
    else:
        low = high = 0.0
    if high <= low:
        return np.full(values.shape, 127, np.uint8)  # a single value: gray, so that the tile looks like an image
    shades = np.clip((np.where(known, values, low) - low) / (high - low), 0, 1) * 255
    return np.asarray(np.rint(shades), np.uint8)


def _ct_window(hounsfield: NDArray[np.float32]) -> tuple[float, float]:
    low, high = LUNG_TISSUE
    share = np.count_nonzero((hounsfield > low) & (hounsfield < high)) / hounsfield.size
    return LUNG if share > LUNG_SHARE else SOFT_TISSUE


def _colors(pixels: NDArray[Any], header: Dataset) -> Gray:
    if pixels.shape[2] != 3:
        raise NotDrawable(f"{pixels.shape[2]} samples per pixel")
    bits = 8 * pixels.dtype.itemsize if "RedPaletteColorLookupTableData" in header else int(header.BitsStored)
    return np.asarray(pixels >> max(0, bits - 8), np.uint8)
