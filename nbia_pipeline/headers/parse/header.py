"""What the header of a file says, before it is a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nbia_pipeline.headers.parse.charset import DEFAULT
from nbia_pipeline.headers.parse.typed import NAMES

More = Callable[[int, int], bytes]
"""Returns bytes of a file, from an offset on, as many as asked for or to the end of the file."""
Place = tuple[int, str, int, int]
"""Tag, VR, position of the value and its length."""


@dataclass
class Header:
    """What the header of a file says.

    Attributes:
        values: of the columns of :data:`~nbia_pipeline.headers.parse.typed.NAMES`, in their order.
        json: elements as DICOM JSON; None if the file cannot be read.
        meta: those of group 0002.
        elements: number of elements of the data set.
        size: bytes before the pixel data.
        pixels: position of the value of the pixel data, and its length; both None without one.
        omitted: the elements whose values are in the file only.
        problems: sentences.
        top: sequences of the data set, and a few other elements, by their places in `buffer`.
        buffer: has these.
        explicit: whether elements in it state their VR.
        encodings: of text in it.
    """

    values: list[Any] = field(default_factory=lambda: [None] * len(NAMES))
    json: str | None = None
    meta: str | None = None
    elements: int = 0
    size: int | None = None
    pixels: tuple[int | None, int | None] = (None, None)
    omitted: list[Place] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    top: list[Place] = field(default_factory=list)
    buffer: bytes = b""
    explicit: bool = True
    encodings: tuple[str, ...] = DEFAULT
