"""PALETTE COLOR: from stored values to colors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

COLORS = ("Red", "Green", "Blue")


class NoPalette(Exception):
    """The file's palette is missing or cannot be read; the text gives the reason."""


def palette_colors(pixels: NDArray[Any], header: Dataset) -> NDArray[np.uint8]:
    """Return the colors of stored values: rows, columns and three colors, 0 to 255.

    pydicom reads the tables as if all of them were little endian, and takes the number of bits from their length.

    Args:
        pixels: rows and columns of stored values.
        header: with the descriptors and tables of the three colors, (0028,1101) to (0028,1203).

    Raises:
        NoPalette: there is none, or it is broken.
    """
    if "RedPaletteColorLookupTableData" not in header:
        return _segmented(pixels, header)
    tables, first = [], 0
    for color in COLORS:
        entries, first, bits = _descriptor(header, color)
        tables.append(_table(header, color, entries, bits))
    if len({table.size for table in tables}) > 1:
        raise NoPalette("the tables of its palette differ in length")
    table = np.stack(tables, axis=-1)
    # Values below the first one that is mapped have the first color, those above the last one the last.
    index = np.clip(pixels.astype(np.int64) - first, 0, len(table) - 1)
    return in_8_bits(table)[index]


def _descriptor(header: Dataset, color: str) -> tuple[int, int, int]:
    """Return the number of entries, the first value that is mapped, and the bits of an entry."""
    try:
        entries, first, bits = (int(n) for n in header[f"{color}PaletteColorLookupTableDescriptor"].value)
    except (KeyError, TypeError, ValueError) as e:
        raise NoPalette("its palette has no descriptor") from e
    if header.get("PixelRepresentation") and first > 32767:  # of signed pixels, read as if it were not signed
        first -= 65536
    return entries or 65536, first, bits


def _table(header: Dataset, color: str, entries: int, bits: int) -> NDArray[np.uint16]:
    value = header.get(f"{color}PaletteColorLookupTableData")
    if not isinstance(value, bytes):  # VR US: read as numbers
        numbers = [value] if isinstance(value, int) else list(value or ())
        table = np.array(numbers, np.int64).astype(np.uint16)
    else:
        big = header.original_encoding[1] is False
        if bits <= 8 and len(value) < 2 * entries:  # two entries in each word, the first one in its lower half
            packed = np.frombuffer(value[: len(value) // 2 * 2], np.uint16)
            swapped = big and header[f"{color}PaletteColorLookupTableData"].VR == "OW"
            table = np.frombuffer((packed.byteswap() if swapped else packed).tobytes(), np.uint8).astype(np.uint16)
        else:
            table = np.frombuffer(value[: len(value) // 2 * 2], ">u2" if big else "<u2").astype(np.uint16)
    if table.size < entries:
        raise NoPalette(f"its palette has {table.size} entries of {entries}")
    return table[:entries]


def in_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return colors of 8 bits, whatever the file says: 8, 10 or 12 bits in words that state 16 would be black."""
    bits = int(values.max()).bit_length()
    return np.asarray(np.clip(values, 0, None) >> (8 if bits > 12 else max(0, bits - 8)), np.uint8)


def _segmented(pixels: NDArray[Any], header: Dataset) -> NDArray[np.uint8]:
    if "SegmentedRedPaletteColorLookupTableData" not in header:
        raise NoPalette("its palette is missing")
    return in_8_bits(apply_color_lut(pixels, header)[..., :3].astype(np.uint16))
