"""References to other instances and series: edges, from every item with a ReferencedSOPInstanceUID (0008,1155)."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

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
from nbia_pipeline.headers.parse.layouts import Alike


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
"""How the SOP classes begin whose instances are no files: patients, visits, studies, procedure steps (PS3.6, A)."""

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


# An edge while it is made: a list of its columns. Purpose is bytes still.
_Found = list[Any]
_AT_INSTANCE, _AT_CLASS, _AT_SERIES, _AT_STUDY, _AT_PURPOSE, _AT_TIMES, _AT_FRAMES, _AT_SEGMENTS = range(2, 10)
_STATED = (_AT_CLASS, _AT_SERIES, _AT_STUDY, _AT_PURPOSE)


class _Place:
    """A place of references: the sequences around them, and the role that follows from these."""

    def __init__(self, path: tuple[int, ...], presents: bool) -> None:
        self.tag, self._path, self._presents = path[-1], path, presents
        self.role, self.where = _role(path, presents)
        self.within: dict[int, _Place] = {}

    def inner(self, tag: int) -> _Place:
        """Return the place within a sequence of this place's items."""
        found = self.within.get(tag)
        if found is None:
            found = self.within[tag] = _Place((*self._path, tag), self._presents)
        return found

    def found(self, instance: str | None, kind: str | None = None, series: str | None = None) -> _Found:
        """Return an edge of this place."""
        return [self.role, self.where, instance, kind, series, None, None, 1, [], []]


@lru_cache(maxsize=8192)
def _role(path: tuple[int, ...], presents: bool) -> tuple[str, str]:
    where = ".".join(f"{tag:08X}" for tag in path)
    if presents and _presented(where):
        return "presented", where
    return next((role for fits, role in _ROLES if fits(where)), OTHER), where


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
            found += [[OTHER, "", name, *[None] * 4, 1, [], []] for name in uids(buffer[at : at + length])]
    return _merged(found, text) if found else []


def _in_sequence(
    presents: bool, top: Top, index: int, buffer: bytes, explicit: bool, problems: list[str]
) -> list[_Found]:
    """Return what a top-level sequence refers to; small ones are remembered, since slices of a series repeat them."""
    opened = top_sequence(top, index, buffer, explicit)
    if opened is None:
        return []
    (sequence, limit), tag = opened, top[index][0]
    at, end, with_vr, _ = sequence
    if tag not in _OF_SERIES and not referring(buffer, at, limit):
        return []
    key = (presents, tag, with_vr, end is None, buffer[at:limit]) if limit - at <= _MEMO_BYTES else None
    if key and (known := _memo.get(key)) is not None:
        return _copied(known)
    tree = tree_of(buffer, problems)
    tree.place = f"{tag:08X}"
    before, found = len(problems), list[_Found]()
    _read(tree, sequence, _Place((tag,), presents), found)
    if key and len(problems) == before:
        if len(_memo) >= _MEMO_ENTRIES:
            _memo.clear()
        _memo[key] = _copied(found)
    return found


def _copied(found: list[_Found]) -> list[_Found]:
    return [[*one[:_AT_FRAMES], list(one[_AT_FRAMES]), list(one[_AT_SEGMENTS])] for one in found]


_memo: dict[tuple[object, ...], list[_Found]] = {}


def _read(tree: Tree, sequence: object, place: _Place, found: list[_Found]) -> None:
    """Append what the items of a sequence refer to."""
    for item in tree.items(sequence):
        if not isinstance(item, Alike):
            _item(tree, item, place, found)
        elif not _as_before(item, found):
            start = len(found)
            _item(tree, item, place, found)
            _remember(item, found[start:])


def _item(tree: Tree, item: Item, place: _Place, found: list[_Found]) -> None:
    """Append what an item refers to, what is within it first."""
    start, in_study, in_content = len(found), place.tag == _RT_STUDY, place.tag == _CONTENT
    for tag, value in item.items():
        if value.__class__ is not bytes and _may_refer(tree, tag, value):
            _read(tree, value, place.inner(tag), found)
    if _INSTANCE in item and not in_study:
        _instance(tree, item, place, found)
    elif in_content and _UID_VALUE in item and _is_source_series(tree, item):
        found.append(place.found(None, None, uid(item[_UID_VALUE])))
    if _SERIES in item:
        if len(found) == start and place.tag in _OF_SERIES and uid(item[_SERIES]):
            found.append(place.found(None))
        _inherit(found, start, _AT_SERIES, uid(item[_SERIES]))
    if _STUDY in item or in_study:
        _inherit(found, start, _AT_STUDY, uid(item.get(_STUDY)) or uid(item.get(_INSTANCE)))
    if in_content and len(found) > start:
        _inherit(found, start, _AT_PURPOSE, _meaning(tree, item, _CONCEPT))


def _as_before(item: Alike, found: list[_Found]) -> bool:
    """Append what an item refers to if that follows from another one of its layout; return whether it does."""
    before = item.layout.references
    if not before:
        return before is not None
    names = [uids(value) for value in item.instances()]
    if any(len(name) != 1 for name in names):
        return False
    for one, (name,) in zip(before, names, strict=True):
        found.append([*one[:_AT_INSTANCE], name, *one[_AT_CLASS:_AT_FRAMES], [*one[_AT_FRAMES]], [*one[_AT_SEGMENTS]]])
    return True


def _remember(item: Alike, found: list[_Found]) -> None:
    """Keep what an item refers to for those of its layout, if each instance in it is one reference."""
    names = [uids(value) for value in item.instances()]
    if names == [(one[_AT_INSTANCE],) for one in found] and len(set(names)) == len(names):
        item.layout.references = _copied(found)


def _may_refer(tree: Tree, tag: int, value: object) -> bool:
    return tag not in NO_FILES and (tag in _OF_SERIES or tree.refers(value))


def _inherit(found: list[_Found], start: int, column: int, value: object) -> None:
    """Let the references within an item have what it states; tags ascend, so that it may come after them."""
    for one in found[start:]:
        one[column] = one[column] or value


def _instance(tree: Tree, item: Item, place: _Place, found: list[_Found]) -> None:
    """Append the reference of an item with a ReferencedSOPInstanceUID, if it may name a file."""
    kind = uid(item.get(_CLASS))
    if kind and kind.startswith(MANAGEMENT):
        return
    names = uids(item[_INSTANCE])
    if not names:
        tree.problem("a ReferencedSOPInstanceUID is empty")
    for name in names:
        one = place.found(name, kind)
        if _PURPOSE in item:
            one[_AT_PURPOSE] = _meaning(tree, item, _PURPOSE)
        if _FRAMES in item:
            one[_AT_FRAMES] = whole_numbers(item[_FRAMES])
        if _SEGMENTS in item:
            one[_AT_SEGMENTS] = shorts(item[_SEGMENTS])
        found.append(one)


def _meaning(tree: Tree, item: Item, tag: int) -> bytes | None:
    value = tree.first(item, tag).get(_CODE_MEANING)
    return value if isinstance(value, bytes) else None


def _is_source_series(tree: Tree, item: Item) -> bool:
    code = tree.first(item, _CONCEPT)
    return (uid(code.get(_CODE_VALUE)), uid(code.get(_CODE_SCHEME))) == _SOURCE_SERIES


def _merged(found: list[_Found], text: Callable[[bytes], str]) -> list[Edge]:
    """Return one edge for each role and target: counted, with what the first ones state, and all frames."""
    groups: dict[tuple[object, ...], _Found] = {}
    for one in found:
        key = one[0], one[_AT_INSTANCE], None if one[_AT_INSTANCE] else one[_AT_SERIES]
        first = groups.setdefault(key, one)
        if first is not one:
            first[_AT_TIMES] += 1
            for column in _STATED:
                first[column] = first[column] or one[column]
            first[_AT_FRAMES] += one[_AT_FRAMES]
            first[_AT_SEGMENTS] += one[_AT_SEGMENTS]
    meanings: dict[bytes | None, str | None] = {None: None}
    for one in groups.values():
        if (raw := one[_AT_PURPOSE]) not in meanings:
            meanings[raw] = text(raw).strip(" \0") or None
        one[_AT_PURPOSE] = meanings[raw]
        one[_AT_FRAMES] = sorted(set(one[_AT_FRAMES])) or None
        one[_AT_SEGMENTS] = sorted(set(one[_AT_SEGMENTS])) or None
    return [Edge._make(one) for one in groups.values()]
