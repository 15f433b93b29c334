"""From a DICOM file to gray values that a person can view: drawn right, or not drawn with a reason."""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    HTJ2K,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from nbia_pipeline.preview.palette import NoPalette, in_8_bits, palette_colors
from nbia_pipeline.text import logger

log = logger(__name__)

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
ONE_VALUE = 127
"""Shade of a picture with a single value: gray, so that the tile looks like an image."""

# What needs the extra, by the names that people know.
EXTRA = "nbia-pipeline[jpeg]"
_WITH_EXTRA = {
    JPEGExtended12Bit: "JPEG Extended",
    JPEGLossless: "JPEG Lossless",
    JPEGLosslessSV1: "JPEG Lossless",
    JPEGLSLossless: "JPEG-LS",
    JPEGLSNearLossless: "JPEG-LS",
    HTJ2KLossless: "HTJ2K",
    HTJ2KLosslessRPCL: "HTJ2K",
    HTJ2K: "HTJ2K",
}
_COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_DEFLATED = re.compile(rb"\x02\x00\x10\x00(UI)?.{2,4}1\.2\.840\.10008\.1\.2\.1\.99", re.DOTALL)
_META_BYTES = 4096
_BEGINNINGS = (b"\2\0", b"\0\2", b"\x08\0", b"\0\x08")  # of files without a prefix: groups 0002 and 0008

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
        with _quiet():
            return _picture_of(file, (modality or "").strip().upper())
    except NotDrawable:
        raise
    except Exception as e:  # pydicom and its decoders raise errors of all kinds for broken files
        log.info("an image cannot be drawn: %s: %s", type(e).__name__, e)
        raise NotDrawable("its header or its pixel data are damaged") from e


def phases_of(file: BinaryIO) -> int:
    """Return how many times the series of a file shows each slice: NumberOfTemporalPositions (0020,0105), else 1.

    Raises:
        NotDrawable: it cannot be read.
    """
    _refuse_others(file)
    tags = ["NumberOfTemporalPositions"]
    try:
        with _quiet():
            header = pydicom.dcmread(
                file, stop_before_pixels=True, specific_tags=tags, defer_size=MOST_ELEMENT_BYTES, force=True
            )
            return max(1, int(_number_of(header, "NumberOfTemporalPositions") or 1))
    except Exception as e:
        log.info("a header cannot be read: %s: %s", type(e).__name__, e)
        raise NotDrawable("its header is damaged") from e


@contextmanager
def _quiet() -> Iterator[None]:
    """Let pydicom not warn of what is odd in a file: it is drawn all the same, or labeled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def jpeg_extra() -> bool:
    """Return whether the decoders of the extra ``jpeg`` are installed."""
    return all(importlib.util.find_spec(name) for name in ("pylibjpeg", "libjpeg", "openjpeg"))


def _picture_of(file: BinaryIO, modality: str) -> Gray:
    header = _header(file)
    options = _options(header)
    kind = options["photometric_interpretation"]
    pixels = _frame(file, options)
    if kind == "PALETTE COLOR":
        try:
            pixels = palette_colors(pixels, header)
        except NoPalette as e:
            raise NotDrawable(str(e)) from e
    step = max(1, -(-max(pixels.shape[:2]) // EDGE))
    pixels = pixels[::step, ::step]
    if kind == "PALETTE COLOR":
        return np.asarray(pixels, np.uint8)
    if pixels.ndim == 3:
        if pixels.dtype.kind not in "iu":
            raise NotDrawable("colors that are not whole numbers")
        return in_8_bits(pixels)
    return windowed(pixels, header, modality)


def _header(file: BinaryIO) -> FileDataset:
    """Read the header, and refuse a file that contains no image, or none that can be decoded in bounded memory."""
    _refuse_others(file)
    header = pydicom.dcmread(file, stop_before_pixels=True, defer_size=MOST_ELEMENT_BYTES, force=True)
    if not (header.get("Rows") and header.get("Columns")):
        raise NotDrawable("it contains no image")
    if not header.get("BitsAllocated"):
        raise NotDrawable("it does not say how its pixels are stored (BitsAllocated)")
    size = header.Rows * header.Columns * (header.get("SamplesPerPixel") or 1) * header.BitsAllocated // 8
    if size > MOST_FRAME_BYTES:
        raise NotDrawable(f"{header.Columns} by {header.Rows} pixels are too many")
    return header


def _refuse_others(file: BinaryIO) -> None:
    """Refuse what is not DICOM, with prefix or without, and what pydicom would inflate as a whole, to any size."""
    file.seek(0)
    head = file.read(_META_BYTES)
    file.seek(0)
    if head[128:132] != b"DICM" and head[:2] not in _BEGINNINGS:
        raise NotDrawable("it is not DICOM")
    if _DEFLATED.search(head):
        raise NotDrawable(f"no decoder for {DeflatedExplicitVRLittleEndian.name}")


def _options(header: FileDataset) -> dict[str, Any]:
    """Return how the pixels are stored, with what most files without these elements mean."""
    samples = int(header.get("SamplesPerPixel") or 1)
    if samples not in (1, 3):
        raise NotDrawable(f"{samples} samples per pixel")
    kind = str(header.get("PhotometricInterpretation") or "").strip().upper()
    kind = kind or ("MONOCHROME2" if samples == 1 else "RGB")
    if samples == 3 and kind not in _COLORS:
        raise NotDrawable(f"no decoder for colors as {kind[:30]}")
    frames = _number_of(header, "NumberOfFrames")
    options: dict[str, Any] = {
        "samples_per_pixel": samples,
        "photometric_interpretation": kind,
        "bits_allocated": header.BitsAllocated,
        "bits_stored": header.get("BitsStored") or header.BitsAllocated,
        "pixel_representation": header.get("PixelRepresentation") or 0,
        "number_of_frames": max(1, int(frames or 1)),
        "transfer_syntax_uid": _syntax(header),
    }
    if samples == 3:
        options["planar_configuration"] = header.get("PlanarConfiguration") or 0
    return options


def _syntax(header: FileDataset) -> UID:
    """Return the transfer syntax; of a file that states none, the one that its data set was read with."""
    if syntax := header.file_meta.get("TransferSyntaxUID"):
        return UID(syntax)
    implicit, little = header.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _frame(file: BinaryIO, options: dict[str, Any]) -> NDArray[Any]:
    """Return the middle frame."""
    syntax = options["transfer_syntax_uid"]
    needs_extra = syntax in _WITH_EXTRA and not jpeg_extra()
    hint = f"{_WITH_EXTRA.get(syntax)}: install {EXTRA}"
    if not _decodable(syntax):
        raise NotDrawable(hint if needs_extra else f"no decoder for {syntax.name}")
    try:
        return pixel_array(file, index=options["number_of_frames"] // 2, **options)
    except Exception as e:
        if not needs_extra:
            raise
        log.info("an image cannot be decoded: %s: %s", type(e).__name__, e)
        raise NotDrawable(hint) from e


def _decodable(syntax: UID) -> bool:
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def windowed(pixels: NDArray[Any], header: Dataset, modality: str) -> Gray:
    """Return stored values as gray values, black to white; the other way round if they are MONOCHROME1.

    Args:
        pixels: rows and columns of stored values.
        header: with RescaleSlope (0028,1053), RescaleIntercept (0028,1052), PixelPaddingValue (0028,0120) and
            PixelPaddingRangeLimit (0028,0121), if the file has them.
        modality: Modality (0008,0060) in upper case.
    """
    values = pixels.astype(np.float64)
    known = np.isfinite(values) & ~_padding(pixels, header)
    if not known.any():
        return np.full(values.shape, ONE_VALUE, np.uint8)
    # A slope that is absent or empty is 1; with zero, all values would be one.
    slope, intercept = _number_of(header, "RescaleSlope"), _number_of(header, "RescaleIntercept")
    scaled = intercept is not None and slope != 0
    if scaled:
        values = values * (1 if slope is None else slope) + (intercept or 0)
    low, high = np.percentile(values[known], PET_PERCENTILES if modality == "PT" else PERCENTILES)
    if modality == "CT" and scaled:
        level, width = _ct_window(values[known])
        # Values that are not in Hounsfield units after all, as of a scout, would be all black or all white.
        if high >= level - width / 2 and low <= level + width / 2:
            low, high = level - width / 2, level + width / 2
    if high <= low:
        low, high = values[known].min(), values[known].max()
    if high <= low:
        return np.full(values.shape, ONE_VALUE, np.uint8)
    shades = np.rint(np.clip((np.where(known, values, low) - low) / (high - low), 0, 1) * 255)
    if str(header.get("PhotometricInterpretation") or "").strip().upper() == "MONOCHROME1":
        shades = 255 - shades
    return np.asarray(np.where(known, shades, 0), np.uint8)


def _padding(pixels: NDArray[Any], header: Dataset) -> NDArray[np.bool_]:
    """Return where pixels stand for nothing."""
    value = _number_of(header, "PixelPaddingValue")
    if value is None or pixels.dtype.kind not in "iu":
        return np.zeros(pixels.shape, np.bool_)
    limit = _number_of(header, "PixelPaddingRangeLimit")
    # Some writers give a negative value as if it were not signed.
    ends = np.array([value, value if limit is None else limit]).astype(np.int64).astype(pixels.dtype)
    inside: NDArray[np.bool_] = (pixels >= ends.min()) & (pixels <= ends.max())
    return inside


def _number_of(header: Dataset, keyword: str) -> float | None:
    """Return the first number of an element; None if it is absent, empty or not a number."""
    try:
        value = header.get(keyword)
        if isinstance(value, bytes):  # "US or SS", of which pydicom cannot know
            little = header.original_encoding[1] is not False
            return float(int.from_bytes(value[:2], "little" if little else "big")) if len(value) >= 2 else None
        if value is not None and not isinstance(value, (str, int, float)):
            value = next(iter(value), None)
        number = float(value) if value not in (None, "") else math.nan
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _ct_window(hounsfield: NDArray[np.float64]) -> tuple[float, float]:
    low, high = LUNG_TISSUE
    share = np.count_nonzero((hounsfield > low) & (hounsfield < high)) / hounsfield.size
    return LUNG if share > LUNG_SHARE else SOFT_TISSUE
