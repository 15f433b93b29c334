"""References to other instances and series: edges, from every item with a ReferencedSOPInstanceUID (0008,1155)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from nbia_pipeline.headers.graph.tree import (
    Item,
    Top,
    Tree,
    referring,
    shorts,
    top_sequence,
    tree_of,
    uid,
    uids,
    whole_numbers,
)


class Edge(NamedTuple):
    """One reference of an instance: columns Role to Segments of ``instance_references``."""

    Role: str
    TagPath: str
    ReferencedSOPInstanceUID: str | None
    ReferencedSOPClassUID: str | None
    StatedSeriesInstanceUID: str | None
    StatedStudyInstanceUID: str | None
    Purpose: str | None
    Times: int
    Frames: list[int] | None
    Segments: list[int] | None


PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.11."
"""How the SOP classes of presentation states begin (PS3.6, A)."""

MANAGEMENT = (
    "1.2.840.10008.3.1.2.",
    "1.2.840.10008.5.1.4.32.",
    "1.2.840.10008.5.1.4.34.4.",
    "1.2.840.10008.5.1.4.34.6.",
)
"""How the SOP classes begin whose instances are no files: patients, visits, studies, results, procedure steps (PS3.6, A)."""

NO_FILES = frozenset((0x00081110, 0x00081111, 0x00081120))
"""ReferencedStudySequence, ReferencedPerformedProcedureStepSequence, ReferencedPatientSequence: they name no files."""

# The first that fits a TagPath counts.
_ROLES = tuple(
    (re.compile(pattern).search, role)
    for pattern, role in (
        (r"^0040A3[78]5\.", "evidence"),
        (r"^0040A730", "content"),
        (r"^0040A360\.", "predecessor"),
        (r"^0040A525\.", "identical"),
        (r"^5200(9229|9230)\.00089124\.00082112$", "frame_source"),
        (r"^30060039\.30060040\.30060016$", "contour"),
        (r"^30060010\.30060012\.30060014(\.30060016)?$", "described"),
        (r"^00700001\.", "annotated"),
        (r"^00700402\.", "blended"),
        (r"^(00700308|00640002)\.", "registered"),
        (r"^00409094\.", "mapped"),
        (r"^0070031C\.", "fiducial"),
        (r"(^|\.)00081115(\.[^.]+)?$", "described"),
        (r"300C0060$", "structure_set"),
        (r"300C0002$", "plan"),
        (r"300C0080$", "dose"),
        (r"30080030$", "record"),
        (r"(00082112|00420013)$", "source"),
        (r"00081140$", "related"),
    )
)
_presented = re.compile(r"^(00081115|0070005A|00283110)(\.00081140)?$").search
OTHER = "other"
"""Role of a reference whose place has no role; TagPath says where it is."""

_INSTANCE, _CLASS, _FRAMES, _SEGMENTS = 0x00081155, 0x00081150, 0x00081160, 0x0062000B
_SERIES, _STUDY, _PURPOSE = 0x0020000E, 0x0020000D, 0x0040A170
_CONTENT, _CONCEPT, _UID_VALUE = 0x0040A730, 0x0040A043, 0x0040A124
_RT_STUDY = 0x30060012
_CODE_VALUE, _CODE_SCHEME, _CODE_MEANING = 0x00080100, 0x00080102, 0x00080104
_SOURCE_SERIES = ("121232", "DCM")
_OF_SERIES = (0x00081115, 0x30060014)
_SEQUENCES = ("SQ", "UN")
_MEMO_BYTES, _MEMO_ENTRIES = 2048, 4096


@dataclass(slots=True)
class _Found:
    """An item that refers to something, with what its place says of it."""

    role: str
    path: str
    instance: str | None
    kind: str | None = None
    series: str | None = None
    study: str | None = None
    purpose: bytes | None = None
    frames: Sequence[int] = ()
    segments: Sequence[int] = ()


def edges(
    sop_class: str,
    top: Top,
    buffer: bytes,
    explicit: bool,
    text: Callable[[bytes], str],
    problems: list[str] | None = None,
) -> list[Edge]:
    """Return the references of an instance: one edge for each role and target, in the order of the file.

    Every item with a ReferencedSOPInstanceUID is in an edge, unless it is in one of :data:`NO_FILES`, is of a class of
    :data:`MANAGEMENT`, or is the item of RTReferencedStudySequence (3006,0012), where it names a study. Items that
    name a series without instances are edges to the series: of (0008,1115), of (3006,0014), and of SR content whose
    concept is (121232, DCM, "Source series for segmentation").

    Args:
        sop_class: SOPClassUID of the instance.
        top: its top-level elements.
        buffer: bytes, in little endian.
        explicit: whether they have VRs.
        text: decodes text by the character set of the data set.
        problems: gets a sentence for what cannot be read.
    """
    presents = sop_class.startswith(PRESENTATION_STATE)
    found: list[_Found] = []
    complaints = [] if problems is None else problems
    for index, (tag, vr, at, length) in enumerate(top):
        if vr in _SEQUENCES and tag not in NO_FILES:
            found += _in_sequence(presents, top, index, buffer, explicit, complaints)
        elif tag == _INSTANCE:
            found += [_Found(OTHER, "", name) for name in uids(buffer[at : at + length])]
    return _merged(found, text) if found else []


def _in_sequence(
    presents: bool, top: Top, index: int, buffer: bytes, explicit: bool, problems: list[str]
) -> list[_Found]:
    """Return what a top-level sequence refers to; small ones are remembered, since the slices of a series repeat them."""
    opened = top_sequence(top, index, buffer, explicit)
    if opened is None:
        return []
    (sequence, limit), tag = opened, top[index][0]
    at, end, with_vr, _ = sequence
    if not referring(buffer, at, limit):
        return []
    key = (presents, tag, with_vr, end is None, buffer[at:limit]) if limit - at <= _MEMO_BYTES else None
    if key and (known := _memo.get(key)) is not None:
        return known
    tree = tree_of(buffer, problems)
    tree.place = f"{tag:08X}"
    before, found = len(problems), list[_Found]()
    _read(tree, sequence, (tag,), presents, found)
    if key and len(problems) == before:
        if len(_memo) >= _MEMO_ENTRIES:
            _memo.clear()
        _memo[key] = found
    return found


_memo: dict[tuple[object, ...], list[_Found]] = {}


def _read(tree: Tree, sequence: object, path: tuple[int, ...], presents: bool, found: list[_Found]) -> None:
    """Append what the items of a sequence refer to, those within them first."""
    for item in tree.items(sequence):
        start = len(found)
        for tag, value in item.items():
            if value.__class__ is not bytes and tag not in NO_FILES and tree.refers(value):
                _read(tree, value, (*path, tag), presents, found)
        if _INSTANCE in item:
            _instance(tree, item, path, presents, found)
        elif _UID_VALUE in item and path[-1] == _CONTENT and _concept(tree, item) == _SOURCE_SERIES:
            found.append(_Found(*_role(path, presents), None, series=uid(item[_UID_VALUE])))
        series, study = uid(item.get(_SERIES)), uid(item.get(_STUDY))
        if path[-1] == _RT_STUDY:
            study = study or uid(item.get(_INSTANCE))
        if series and len(found) == start and path[-1] in _OF_SERIES:
            found.append(_Found(*_role(path, presents), None))
        purpose = _meaning(tree, item, _CONCEPT) if path[-1] == _CONTENT and len(found) > start else None
        if series or study or purpose:
            # Tags ascend: what the item states may come after the sequences that it holds for.
            for one in found[start:]:
                one.series, one.study = one.series or series, one.study or study
                one.purpose = one.purpose or purpose


def _instance(tree: Tree, item: Item, path: tuple[int, ...], presents: bool, found: list[_Found]) -> None:
    """Append the reference of an item with a ReferencedSOPInstanceUID, if that names a file."""
    kind = uid(item.get(_CLASS))
    if path[-1] == _RT_STUDY or (kind or "").startswith(MANAGEMENT):
        return
    names = uids(item[_INSTANCE])
    if not names:
        tree.problem("a ReferencedSOPInstanceUID is empty")
    role, where = _role(path, presents)
    purpose = _meaning(tree, item, _PURPOSE) if _PURPOSE in item else None
    frames = whole_numbers(item[_FRAMES]) if _FRAMES in item else ()
    segments = shorts(item[_SEGMENTS]) if _SEGMENTS in item else ()
    found += [_Found(role, where, name, kind, None, None, purpose, frames, segments) for name in names]


def _meaning(tree: Tree, item: Item, tag: int) -> bytes | None:
    value = tree.first(item, tag).get(_CODE_MEANING)
    return value if isinstance(value, bytes) else None


def _concept(tree: Tree, item: Item) -> tuple[str | None, str | None]:
    code = tree.first(item, _CONCEPT)
    return uid(code.get(_CODE_VALUE)), uid(code.get(_CODE_SCHEME))


@lru_cache(maxsize=4096)
def _role(path: tuple[int, ...], presents: bool) -> tuple[str, str]:
    """Return the role of a reference by the tags of the sequences around it, and these tags as text."""
    where = ".".join(f"{tag:08X}" for tag in path)
    if presents and _presented(where):
        return "presented", where
    return next((role for fits, role in _ROLES if fits(where)), OTHER), where


def _merged(found: list[_Found], text: Callable[[bytes], str]) -> list[Edge]:
    """Return one edge for each role and target: counted, with what the first one states, and all frames and segments."""
    groups: dict[tuple[str, str | None, str | None], list[_Found]] = {}
    for one in found:
        key = (one.role, one.instance, None if one.instance else one.series)
        groups.setdefault(key, []).append(one)
    return [_edge(group, text) for group in groups.values()]


def _edge(group: list[_Found], text: Callable[[bytes], str]) -> Edge:
    first = group[0]
    purpose = next((one.purpose for one in group if one.purpose), None)
    return Edge(
        first.role,
        first.path,
        first.instance,
        next((one.kind for one in group if one.kind), None),
        next((one.series for one in group if one.series), None),
        next((one.study for one in group if one.study), None),
        text(purpose).strip(" \0") or None if purpose else None,
        len(group),
        sorted({n for one in group for n in one.frames}) or None,
        sorted({n for one in group for n in one.segments}) or None,
    )
