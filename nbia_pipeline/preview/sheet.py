"""The contact sheet: tiles with labels, as one picture."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from nbia_pipeline.preview.choose import Chosen
from nbia_pipeline.text import size_text

COLUMNS = 6
EDGE = 168
GAP = 10
LINE = 15
LINES = 3
TITLE = 34
BACKGROUND = (24, 26, 30)
PLATE = (44, 48, 55)
BRIGHT = (235, 238, 242)
PALE = (160, 168, 178)

_DASHES = str.maketrans("–—‐‑−“”‘’", "-----\"\"''")

DIGEST = "nbia-digest"
"""Text chunk of the PNG with the digest of its content."""

INLINE_CHARACTERS = 30_000
# Scales and qualities to try until the base64 text of the picture is short enough for an event of Dagster.
_INLINE_STEPS = ((1.0, 60), (1.0, 40), (0.8, 40), (0.8, 25), (0.6, 30), (0.6, 15), (0.4, 20), (0.25, 15))


@dataclass(frozen=True)
class Tile:
    """One tile of the sheet.

    Attributes:
        chosen: the series.
        picture: gray values or colors, or None if the tile has a label instead.
        note: why there is no picture.
    """

    chosen: Chosen
    picture: NDArray[np.uint8] | None = None
    note: str | None = None


def draw_sheet(title: str, tiles: Sequence[Tile]) -> Image.Image:
    """Return the picture: the title, and the tiles in rows of six."""
    columns = max(1, min(COLUMNS, len(tiles)))
    rows = -(-len(tiles) // columns)
    height = EDGE + LINES * LINE + GAP
    sheet = Image.new("RGB", (GAP + columns * (EDGE + GAP), TITLE + rows * (height + GAP)), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 8), fitted(title, sheet.width - 2 * GAP, 16), BRIGHT, _font(16))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        _draw_tile(sheet, tile, GAP + column * (EDGE + GAP), TITLE + row * (height + GAP))
    return sheet


def _draw_tile(sheet: Image.Image, tile: Tile, left: int, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    if tile.picture is None:
        pen.rectangle((left, top, left + EDGE - 1, top + EDGE - 1), PLATE)
        pen.text((left + 10, top + 12), fitted(tile.chosen.Modality or "?", EDGE - 20, 24), BRIGHT, _font(24))
        for number, line in enumerate(_wrapped(tile.note or "", EDGE - 20, 12, lines=7)):
            pen.text((left + 10, top + 50 + number * LINE), line, PALE, _font(12))
    else:
        pen.rectangle((left, top, left + EDGE - 1, top + EDGE - 1), (0, 0, 0))
        picture = _scaled(tile.picture)
        sheet.paste(picture, (left + (EDGE - picture.width) // 2, top + (EDGE - picture.height) // 2))
    for number, (line, color) in enumerate(zip(label_of(tile.chosen), (BRIGHT, PALE, PALE), strict=True)):
        pen.text((left, top + EDGE + 4 + number * LINE), fitted(line, EDGE, 12), color, _font(12))


def label_of(chosen: Chosen) -> tuple[str, str, str]:
    """Return the lines below a tile: modality and patient, description, number and size of the files."""
    files = "1 file" if chosen.ImageCount == 1 else f"{chosen.ImageCount} files"
    return (
        f"{chosen.Modality or '?'}  {chosen.PatientID}",
        chosen.SeriesDescription or "(no description)",
        f"{files}, {size_text(chosen.Bytes)}",
    )


def _scaled(picture: NDArray[np.uint8]) -> Image.Image:
    height, width = picture.shape[:2]
    factor = EDGE / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)


def fitted(text: str, width: float, points: int) -> str:
    """Return `text` on one line, shortened with dots to `width` pixels if it is wider."""
    text = plain(text[:200])
    if _font(points).getlength(text) <= width:
        return text
    while text and _font(points).getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def plain(text: str) -> str:
    """Return `text` in ASCII, all that Pillow's own font has: without accents, and with ``?`` for other characters."""
    text = text.translate(_DASHES)
    parts = unicodedata.normalize("NFKD", text)
    kept = "".join(c for c in parts if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" else " " if c.isspace() else "?" for c in kept)


def _wrapped(text: str, width: int, points: int, lines: int) -> list[str]:
    found: list[str] = []
    for word in text.split():
        longer = f"{found[-1]} {word}" if found else word
        if found and _font(points).getlength(longer) <= width:
            found[-1] = longer
        else:
            found.append(word)
    return [fitted(line, width, points) for line in found[:lines]]


@lru_cache
def _font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(points)


def as_png(sheet: Image.Image, digest: str) -> bytes:
    """Return the picture as a PNG file that carries the digest of what it shows."""
    properties = PngImagePlugin.PngInfo()
    properties.add_text(DIGEST, digest)
    buffer = io.BytesIO()
    # Level 9, which `optimize` means, takes twenty times as long, and saves a tenth.
    sheet.save(buffer, "PNG", compress_level=3, pnginfo=properties)
    return buffer.getvalue()


def digest_in(png: bytes) -> str | None:
    """Return the digest in a PNG file, or None if it has none or is not a picture."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            return str(picture.info[DIGEST]) if DIGEST in picture.info else None
    except (OSError, SyntaxError):  # what Pillow raises for broken files
        return None


def inline_markdown(png: bytes, title: str) -> str | None:
    """Return a small version as an inline image in Markdown, of at most 30,000 characters.

    Dagster stores it with the event and shows it on the asset's page. None if it cannot be that small.
    """
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        sheet = picture.convert("RGB")
    words = "".join(c if c.isalnum() or c in " ._-" else " " for c in title)
    smaller = sheet
    for scale, quality in _INLINE_STEPS:
        size = max(1, round(sheet.width * scale)), max(1, round(sheet.height * scale))
        if smaller.size != size:
            smaller = sheet.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        smaller.save(buffer, "JPEG", quality=quality, optimize=True)
        text = f"![{words}](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})"
        if len(text) <= INLINE_CHARACTERS:
            return text
    return None
