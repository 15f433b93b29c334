"""Segments of segmentations and regions of interest (ROI) of structure sets, one by one, with what belongs to each."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from nbia_pipeline.headers.graph.edges import Edge, edges
from nbia_pipeline.headers.graph.tree import (
    Item,
    Top,
    Tree,
    forget,
    shorts,
    top_sequence,
    tree_of,
    uid,
    uids,
    value_of,
    whole_numbers,
)
from nbia_pipeline.headers.parse.layouts import INSTANCE, POSITION, Alike

Code = dict[str, "str | None"]
Text = Callable[[bytes], str]


class Region(NamedTuple):
    """One segment or ROI: columns Kind to AnatomicRegion of ``annotations``."""

    Kind: str
    Number: int | None
    Label: str | None
    Description: str | None
    AlgorithmType: str | None
    AlgorithmName: str | None
    InterpretedType: str | None
    TrackingUID: str | None
    ReferencedSeriesInstanceUID: str | None
    Frames: int | None
    Contours: int | None
    Slices: int | None
    Category: Code | None
    Type: Code | None
    AnatomicRegion: Code | None


_SEGMENTS, _FRAMES, _SHARED = 0x00620002, 0x52009230, 0x52009229
_ROIS, _CONTOURS, _OBSERVATIONS = 0x30060020, 0x30060039, 0x30060080
_CATEGORY, _TYPE, _ROI_TYPE, _ANATOMY = 0x00620003, 0x0062000F, 0x30060086, 0x00082218
_FRAME_NUMBERS = 0x00081160
_DRAWN_ON = ("frame_source", "contour", "described")


def regions(
    sop_class: str,
    top: Top,
    buffer: bytes,
    explicit: bool,
    text: Text,
    problems: list[str] | None = None,
    references: list[Edge] | None = None,
) -> list[Region]:
    """Return the segments of SegmentSequence (0062,0002), or the ROIs of StructureSetROISequence (3006,0020).

    Args:
        sop_class: SOPClassUID of the instance.
        top: its top-level elements.
        buffer: bytes, in little endian.
        explicit: whether they have VRs.
        text: decodes text by the character set of the data set.
        problems: gets a sentence for what cannot be read.
        references: what :func:`nbia_pipeline.headers.graph.edges.edges` returned for the instance, if it is known.
    """
    places = {tag: index for index, (tag, _, _, _) in enumerate(top) if tag in _OPENED}
    if _SEGMENTS not in places and _ROIS not in places:
        return []
    complaints = [] if problems is None else problems
    if references is None:
        references = edges(sop_class, top, buffer, explicit, text, complaints)
    file = _File(top, buffer, explicit, text, complaints, places, references)
    found = [*(_segments(file) if _SEGMENTS in places else ()), *(_rois(file) if _ROIS in places else ())]
    forget()
    return found


_OPENED = frozenset((_SEGMENTS, _FRAMES, _SHARED, _ROIS, _CONTOURS, _OBSERVATIONS))


_Image = tuple[bytes | None, bytes | None]
"""Values of (0008,1155) and (0008,1160)."""

_Frame = tuple[list[int], object, tuple[_Image, ...]]
"""Segments, position, and source images of a frame."""


class _File:
    """What is asked of an instance more than once."""

    def __init__(
        self,
        top: Top,
        buffer: bytes,
        explicit: bool,
        text: Text,
        problems: list[str],
        places: dict[int, int],
        references: list[Edge],
    ) -> None:
        self.top, self.buffer, self.explicit, self.places, self.text = top, buffer, explicit, places, text
        self.tree = tree_of(buffer, problems)
        stated = [e for e in references if e.Role in _DRAWN_ON and e.StatedSeriesInstanceUID]
        self.series = {e.ReferencedSOPInstanceUID: e.StatedSeriesInstanceUID for e in stated}
        self.all_series = {e.StatedSeriesInstanceUID for e in stated}

    def items(self, tag: int) -> list[Item]:
        """Return the items of a top-level sequence."""
        index = self.places.get(tag)
        opened = top_sequence(self.top, index, self.buffer, self.explicit) if index is not None else None
        self.tree.place = f"{tag:08X}"
        return self.tree.items(opened[0]) if opened else []

    def word(self, item: Item, *tags: int) -> str | None:
        """Return the text of the first of some elements that has one."""
        for tag in tags:
            value = item.get(tag)
            if isinstance(value, bytes) and (word := self.text(value).strip(" \0")):
                return word
        return None

    def code(self, item: Item, *tags: int) -> Code | None:
        """Return the first code of the first of some code sequences that has one (PS3.3, 8)."""
        code = self.tree.first(item, *tags)
        if not code:
            return None
        value = self.word(code, 0x00080100, 0x00080119, 0x00080120)
        return {"Value": value, "Scheme": self.word(code, 0x00080102), "Meaning": self.word(code, 0x00080104)}

    def series_of(self, drawn: _Drawn) -> str | None:
        """Return the series of some images, or that of all references where they have none; None if it is not one."""
        names = (name for value in drawn.instances for name in uids(value))
        found = {self.series[name] for name in names if name in self.series} or self.all_series
        return next(iter(found)) if len(found) == 1 else None


class _Drawn:
    """What a segment or ROI is drawn on: frames or contours, with their places and values of (0008,1155)."""

    def __init__(self) -> None:
        self.count, self.places, self.instances = 0, set[object](), set[bytes | None]()

    def add(self, position: object, images: tuple[_Image, ...]) -> None:
        """Add a frame or a contour."""
        self.count += 1
        if position is not None or images:
            self.places.add((position, images))
        for name, _ in images:
            self.instances.add(name)

    @property
    def slices(self) -> int | None:
        """Number of different places; None where what is drawn does not say where it is."""
        return len(self.places) if self.places or not self.count else None


def _segments(file: _File) -> Iterator[Region]:
    drawn = defaultdict[int, _Drawn](_Drawn)
    for segments, position, images in _frames(file):
        for segment in segments:
            drawn[segment].add(position, images)
    # The frames of a label map have no segment, since each pixel has one.
    counted = bool(drawn)
    for item in file.items(_SEGMENTS):
        number = next(iter(shorts(item.get(0x00620004))), None)
        on = _Drawn() if number is None else drawn[number]
        yield Region(
            "segment",
            number,
            file.word(item, 0x00620005),
            file.word(item, 0x00620006),
            file.word(item, 0x00620008),
            file.word(item, 0x00620009),
            None,
            uid(item.get(0x00620021)),
            file.series_of(on),
            on.count if counted else None,
            None,
            on.slices if counted else None,
            file.code(item, _CATEGORY),
            file.code(item, _TYPE),
            file.code(item, _ANATOMY),
        )


def _frames(file: _File) -> Iterator[_Frame]:
    shared = next(iter(file.items(_SHARED)), {})
    for item in file.items(_FRAMES):
        if not isinstance(item, Alike):
            yield _frame(file.tree, item, shared)
        elif item.layout.frame is None:
            frame = _frame(file.tree, item, shared)
            names = item.instances()
            if [name for name, _ in frame[2]] == names and frame[1] == item.position():
                item.layout.frame = frame
            yield frame
        else:
            segments, _, images = item.layout.frame
            numbers = (numbers for _, numbers in images)
            yield segments, item.position(), tuple(zip(item.instances(), numbers, strict=True))


def _frame(tree: Tree, frame: Item, shared: Item) -> _Frame:
    segment = tree.first(frame, 0x0062000A) or tree.first(shared, 0x0062000A)
    derivations = tree.items(frame.get(0x00089124))
    sources = [source for derivation in derivations for source in tree.items(derivation.get(0x00082112))]
    position = value_of(tree.first(frame, 0x00209113), POSITION) or tree.raw(frame.get(0x0048021A)) or None
    return shorts(segment.get(0x0062000B)), position, _images(sources)


def _images(items: list[Item]) -> tuple[_Image, ...]:
    return tuple((value_of(item, INSTANCE), value_of(item, _FRAME_NUMBERS)) for item in items)


def _rois(file: _File) -> Iterator[Region]:
    drawn = defaultdict[int | None, _Drawn](_Drawn)
    for item in file.items(_CONTOURS):
        on = drawn[_number(item, 0x30060084)]
        for contour in file.tree.items(item.get(0x30060040)):
            images = _images(file.tree.items(contour.get(0x30060016)))
            on.add(None if images else _height(contour), images)
    observed = defaultdict[int | None, list[Item]](list)
    for item in file.items(_OBSERVATIONS):
        observed[_number(item, 0x30060084)].append(item)
    for item in file.items(_ROIS):
        number = _number(item, 0x30060022)
        on = _Drawn() if number is None else drawn[number]
        said = (
            {}
            if number is None
            else {tag: value for other in reversed(observed[number]) for tag, value in other.items() if value}
        )
        yield Region(
            "roi",
            number,
            file.word(item, 0x30060026),
            file.word(item, 0x30060028),
            file.word(item, 0x30060036),
            None,
            file.word(said, 0x300600A4),
            uid(item.get(0x00620021)) or uid(said.get(0x00620021)),
            file.series_of(on),
            None,
            on.count,
            on.slices,
            file.code(said, _CATEGORY) or file.code(item, _CATEGORY),
            file.code(said, _TYPE, _ROI_TYPE) or file.code(item, _TYPE),
            file.code(said, _ANATOMY) or file.code(item, _ANATOMY),
        )


def _number(item: Item, tag: int) -> int | None:
    return next(iter(whole_numbers(item.get(tag))), None)


def _height(contour: Item) -> float | None:
    """Return z of a contour in an axial plane, whose first and last point have the same; else None."""
    value = contour.get(0x30060050)
    if not isinstance(value, bytes):
        return None
    first, last = value.split(b"\\", 3)[2:3], value.rsplit(b"\\", 1)[-1:]
    with contextlib.suppress(ValueError):
        z = {float(word.strip(b" \0")) for word in (*first, *last)}
        return z.pop() if len(z) == 1 and first else None
    return None
