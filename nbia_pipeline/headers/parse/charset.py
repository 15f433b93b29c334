"""Text of DICOM elements by (0008,0005) SpecificCharacterSet, code extensions (ISO 2022) included.

The encodings, their misspellings and where delimiters reset them are pydicom's; unlike there, what cannot be decoded is
an error, not a replacement character.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from pydicom.charset import (
    CODES_TO_ENCODINGS,
    convert_encodings,
    default_encoding,
    handled_encodings,
)
from pydicom.valuerep import TEXT_VR_DELIMS

DEFAULT = (default_encoding,)
"""Encodings of a data set that does not state any: ISO 8859-1, of which ASCII is a part."""

_PARTS = re.compile(b"^[^\x1b]+|\x1b[^\x1b]*")
_FOUR_BYTES = (b"\x1b$(", b"\x1b$)")


@lru_cache(maxsize=256)
def encodings_of(value: bytes) -> tuple[str, ...]:
    """Return Python's names of the encodings that a value of SpecificCharacterSet names; the default for none."""
    names = value.decode("latin1").rstrip(" \0").split("\\")
    try:
        with quiet():
            return tuple(convert_encodings(names if len(names) > 1 else names[0]))
    except (ValueError, LookupError):
        return DEFAULT


@contextmanager
def quiet() -> Iterator[None]:
    """Let pydicom warn nobody: what matters is in Problems."""
    log = logging.getLogger("pydicom")
    disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = disabled


def decoded(value: bytes, encodings: tuple[str, ...]) -> str:
    """Return the text of a value.

    Args:
        value: as in the file.
        encodings: from :func:`encodings_of`.

    Raises:
        ValueError: it is no text in these encodings.
        LookupError: an encoding is none of text.
    """
    if b"\x1b" not in value:
        text = value.decode(encodings[0])
    else:
        text = "".join(_part(part, encodings) for part in _PARTS.findall(value))
    if not isinstance(text, str):
        raise ValueError("not a text")
    text.encode()  # halves of surrogate pairs are none
    return text


def replaced(value: bytes, encodings: tuple[str, ...]) -> str:
    """Return the text of a value, with a replacement character for what cannot be decoded."""
    try:
        return decoded(value, encodings)
    except (ValueError, LookupError):
        return value.decode(errors="replace")


def _part(part: bytes, encodings: tuple[str, ...]) -> str:
    """Decode what begins with an escape sequence, or comes before the first one."""
    if not part.startswith(b"\x1b"):
        return part.decode(encodings[0])
    size = 4 if part.startswith(_FOUR_BYTES) else 3
    encoding = CODES_TO_ENCODINGS.get(part[:size], "")
    if encoding not in encodings and encoding != default_encoding:
        raise ValueError("an escape sequence of another encoding")
    if encoding in handled_encodings:
        return part.decode(encoding)
    part = part[size:]
    reset = next((n for n, byte in enumerate(part) if byte in TEXT_VR_DELIMS), len(part))
    return part[:reset].decode(encoding) + part[reset:].decode(encodings[0])
