"""The references of a collection as numbers, and which series of the lake have their targets.

A target is a number of 64 bits, and what refers to it one of 32, so that ten million references fit into memory.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import stopping
from nbia_pipeline.headers.graph.numbers import Names, Numbers, filled, numbers_of
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.parquet import Among
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.headers import INSTANCE_REFERENCES
from nbia_pipeline.schema.tables import INSTANCES

_UID, _SOP, _TARGET, _STATED = (
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "ReferencedSOPInstanceUID",
    "StatedSeriesInstanceUID",
)

BEGINNING = 32
"""Characters of a UID that instances of one collection mostly share: of those of TCIA, the root and two numbers."""
MOST_BEGINNINGS = 100_000
PIECE = 1_000_000
"""References whose rows are told apart at a time."""


@dataclass
class References:
    """The references of one collection.

    Attributes:
        series: all series that refer, are stated, or have targets.
        roles: all roles.
        groups: what refers: series, role, and the stated series or -1.
        whole: the groups that name the stated series as a whole.
        group: of each reference to an instance, its place in `groups`.
        target: of each, its place in `targets`.
        targets: the number of each target, in order.
        beginnings: the first characters of the targets; None if there are too many.
    """

    series: Names = field(default_factory=Names)
    roles: Names = field(default_factory=Names)
    groups: list[tuple[int, int, int]] = field(default_factory=list)
    whole: set[int] = field(default_factory=set)
    group: Numbers = field(default_factory=lambda: np.empty(0, np.int32))
    target: Numbers = field(default_factory=lambda: np.empty(0, np.int32))
    targets: Numbers = field(default_factory=lambda: np.empty(0, np.uint64))
    beginnings: Among | None = None

    @property
    def where(self) -> tuple[str, Among] | None:
        """In which row groups of ``instances`` targets can be, for :meth:`Lake.read_pieces`."""
        return (_SOP, self.beginnings) if self.beginnings else None


def read_references(lake: Lake, collection: str, only: Collection[str] | None = None) -> References:
    """Return the references that the headers of a collection's files state.

    Args:
        lake: whose table ``instance_references`` is read.
        collection: which partition.
        only: the series whose references are returned, None for all.

    Raises:
        LakeError: the lake cannot be read.
    """
    found = References()
    known: dict[tuple[int, int, int], int] = {}
    groups, targets = [np.empty(0, np.int32)], [np.empty(0, np.uint64)]
    beginnings: set[str] = set()
    where = None if only is None else (_UID, Among(only))
    for piece in lake.read_pieces(INSTANCE_REFERENCES, collection, [_UID, "Role", _TARGET, _STATED], where=where):
        stopping.expect_running()
        if only is not None:
            piece = piece.filter(among(piece[_UID], only))
        if not piece.num_rows:
            continue
        uids = filled(piece[_TARGET])
        if len(beginnings) < MOST_BEGINNINGS:
            beginnings.update(pc.unique(pc.utf8_slice_codeunits(uids, 0, BEGINNING)).drop_null().to_pylist())
        series, role = found.series.numbers(piece[_UID]), found.roles.numbers(pc.fill_null(piece["Role"], ""))
        group = _places(series, role, found.series.numbers(filled(piece[_STATED])), known)
        target = numbers_of(uids)
        found.whole.update(np.unique(group[target == 0]).tolist())
        groups.append(group[target != 0])
        targets.append(target[target != 0])
    found.groups = list(known)
    found.group = np.concatenate(groups)
    groups.clear()
    found.targets, found.target = _distinct(targets)
    if len(beginnings) < MOST_BEGINNINGS:
        found.beginnings = Among(beginnings, BEGINNING)
    return found


def _places(series: Numbers, role: Numbers, other: Numbers, known: dict[tuple[int, int, int], int]) -> Numbers:
    """Return the place of each triple of numbers among the known ones, to which those that are new are added."""
    roles, others = int(role.max()) + 1, int(other.max()) + 2
    key = (series * roles + role) * others + other + 1
    _, at, places = np.unique(key, return_index=True, return_inverse=True)
    triples = zip(series[at].tolist(), role[at].tolist(), other[at].tolist(), strict=True)
    return np.array([known.setdefault(triple, len(known)) for triple in triples], np.int32)[places]


def _distinct(pieces: list[Numbers]) -> tuple[Numbers, Numbers]:
    """Return the different numbers in order, and the place of each number among them; the pieces are gone then."""
    numbers = np.concatenate(pieces)
    pieces.clear()
    order = np.argsort(numbers)
    numbers = numbers[order]
    new = np.ones(len(numbers), bool)
    new[1:] = numbers[1:] != numbers[:-1]
    numbers = numbers[new]
    places = np.empty(len(order), np.int32)
    places[order] = np.cumsum(new, dtype=np.int32) - 1
    return numbers, places


class Holders:
    """Which series of the lake have the targets of some references.

    Attributes:
        series: of each target, the number of a series that has it; -1 if none was found.
        left: how many targets none was found for.

    Args:
        references: whose targets they are; the series that have them are added to their names.
    """

    def __init__(self, references: References) -> None:
        self._references = references
        self._more: set[tuple[int, int]] = set()
        self.series = np.full(len(references.targets), -1, np.int32)
        self.left = len(references.targets)

    def look(self, lake: Lake, collection: str, where: tuple[str, Among] | None) -> None:
        """Look for the targets in the table ``instances`` of a collection.

        Args:
            lake: the lake.
            collection: which partition.
            where: in which row groups, see :meth:`Lake.read_pieces`.

        Raises:
            LakeError: the lake cannot be read.
        """
        for piece in lake.read_pieces(INSTANCES, collection, [_SOP, _UID], where=where):
            stopping.expect_running()
            numbers = numbers_of(piece[_SOP])
            order = np.argsort(numbers)
            at = np.searchsorted(self._references.targets, numbers[order])
            at[at == len(self._references.targets)] = 0
            hit = self._references.targets[at] == numbers[order]
            if hit.any():
                self._take(at[hit], self._references.series.numbers(piece[_UID].take(pa.array(order[hit]))))

    def _take(self, at: Numbers, series: Numbers) -> None:
        before = self.series[at]
        self.series[at] = np.where(before < 0, series, before)
        self.left -= len(np.unique(at[before < 0]))
        other = self.series[at] != series  # an instance of two series
        self._more.update(zip(at[other].tolist(), series[other].tolist(), strict=True))

    def of(self, target: Numbers, stated: Numbers) -> Numbers:
        """Return the series that has each target: the stated one if that has it, too; -1 for none."""
        found = self.series[target].astype(np.int64)
        if self._more:
            for at in np.flatnonzero((found >= 0) & (stated >= 0) & (found != stated)):
                if (int(target[at]), int(stated[at])) in self._more:
                    found[at] = stated[at]
        return found


@dataclass
class Pair:
    """A series that refers to another, or to nothing that is known, in one role.

    Attributes:
        series: number of the series that refers.
        role: number of the role.
        other: number of the series that has the targets, or is stated to; -1 if none is known.
        targets: how many different instances are named.
        moved: for how many of them another series is stated than the one that has them.
        absent: how many of them no series of the lake has.
    """

    series: int
    role: int
    other: int
    targets: int = 0
    moved: int = 0
    absent: int = 0


def pairs(references: References, holders: Holders) -> list[Pair]:
    """Return which series refer to which, with counts of different instances.

    A target that no series has is counted for the series that is stated to have it: by this reference, or by another
    one to the same instance, as the contours of an RTSTRUCT, or the content of an SR, state none.
    """
    known = {references.groups[at]: place for place, at in enumerate(sorted(references.whole))}
    groups = np.array(references.groups, np.int64).reshape(-1, 3)
    stated_by_any = _stated(references, groups)
    counted = np.empty(len(references.group), np.uint64)
    for first in range(0, len(counted), PIECE):
        stopping.expect_running()
        piece = slice(first, first + PIECE)
        series, role, stated = groups[references.group[piece]].T
        target = references.target[piece]
        holder = holders.of(target, stated)
        other = np.where(stated < 0, stated_by_any[target], stated)
        other = np.where(holder < 0, other, holder)
        case = np.where(holder < 0, _ABSENT, np.where((stated < 0) | (stated == holder), _THERE, _MOVED))
        place = _places(series, role, other, known)
        counted[piece] = place.astype(np.uint64) << np.uint64(34) | target.astype(np.uint64) << np.uint64(2) | case
    return _counted(known, counted)


_THERE, _MOVED, _ABSENT = np.arange(3, dtype=np.uint64)


def _stated(references: References, groups: Numbers) -> Numbers:
    """Return for each target a series that some reference states; the first one."""
    stated = np.full(len(references.targets), -1, np.int32)
    for first in reversed(range(0, len(references.group), PIECE)):
        by = groups[references.group[first : first + PIECE], 2]
        at = np.flatnonzero(by >= 0)[::-1]
        stated[references.target[first : first + PIECE][at]] = by[at]
    return stated


def _counted(known: dict[tuple[int, int, int], int], counted: Numbers) -> list[Pair]:
    """Return the pairs; `counted` has place, target and case of each reference, in this order, in one number."""
    counted.sort()
    counts = np.zeros((3, len(known)), np.int64)
    for first in range(0, len(counted), PIECE):
        piece = counted[first : first + PIECE + 1]  # and the one behind it
        last = np.ones(len(piece), bool)
        last[:-1] = piece[:-1] >> np.uint64(2) != piece[1:] >> np.uint64(2)
        piece = piece[:PIECE][last[:PIECE]]
        place, case = (piece >> np.uint64(34)).astype(np.int64), piece & np.uint64(3)
        counts += [np.bincount(place[case == one], minlength=len(known)) for one in (_THERE, _MOVED, _ABSENT)]
    _, moved, absent = counts.tolist()
    return [Pair(*key, *of) for key, *of in zip(known, counts.sum(axis=0).tolist(), moved, absent, strict=True)]
