"""Which series are regular volumes: rows of ``series_geometry`` from rows of ``instance_headers``.

The flags, their tolerances and which series have a row are those of the National Cancer Institute's Imaging Data
Commons (IDC): ``scripts/sql/volume_geometry_index.sql`` of https://github.com/ImagingDataCommons/idc-index-data, which
the package ``idc-index-data`` 25.0.5 contains. Two things differ. IDC compares the texts of ImageOrientationPatient and
PixelSpacing, and this module their numbers: ``1`` and ``1.0`` are one. IDC states origin, orientation and spacing of
regular volumes only, where they are the same as here, and this module of each series with one orientation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nbia_pipeline.schema.headers import SERIES_GEOMETRY

SPACING_SHARE = 0.01
"""By how much of their mean distance the distance of two slices may differ from it (relativeSliceTolerance)."""
IN_PLANE_MM = 0.1
"""Slices are aligned if they are shifted by less than this against each other (inPlaneTolerance)."""
ORIENTATION = 0.01
"""By how much the length of the normal may differ from 1 (orientationTolerance)."""

NOISE_MM = 0.001
"""Positions that are no farther apart are one position, whatever the distance of the slices is."""
MAJOR_AXIS = 0.8
"""Smallest cosine between the normal and an axis of which the slices are named; PixelMed and GDCM have the same."""

SINGLE_FRAME_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "4", "128"))
"""CT, MR and PET Image Storage."""

COLUMNS = (
    *("SeriesInstanceUID", "SOPInstanceUID", "Collection", "Modality", "SOPClassUID", "NumberOfFrames", "ImageType"),
    *("FrameOfReferenceUID", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"),
    "SliceThickness",
)
"""The columns of ``instance_headers`` that are read."""

_PLANES = ("sagittal", "coronal", "axial")  # their normals are the axes x, y and z of the patient

Reals = NDArray[np.float64]
Flags = NDArray[np.bool_]


def series_geometry(headers: pa.Table) -> pa.Table:
    """Return the rows of ``series_geometry`` of some series, by SeriesInstanceUID.

    Series of other than single-frame CT, MR and PET images have none, nor have those with a localizer or a maximum
    intensity projection (MIP) among their images. A value that is missing, or is no finite number, is null: such an
    image has no position, so that its series is no regular volume. Nothing that an image states raises an error.

    Args:
        headers: rows of ``instance_headers`` in any order, at least its :data:`COLUMNS`: of each series all.
    """
    table = _planes(headers.select(list(COLUMNS)))
    if not table.num_rows:
        return SERIES_GEOMETRY.schema.empty_table()
    with np.errstate(all="ignore"):  # numbers of up to 1e308 are possible; what overflows is no position
        series = _Series(table)
        flags = _flags(series)
        columns = {**_identity(series), **flags, **_values(series, flags)}
    return pa.table([pa.array(columns[f.name], f.type) for f in SERIES_GEOMETRY.schema], SERIES_GEOMETRY.schema)


def _planes(headers: pa.Table) -> pa.Table:
    """Return the rows of single-frame images of CT, MR and PET in series without localizers and MIPs."""
    types = headers["ImageType"].combine_chunks()
    odd = pc.or_kleene(pc.equal(pc.list_flatten(types), "LOCALIZER"), pc.match_substring(pc.list_flatten(types), "MIP"))
    without = pc.unique(headers["SeriesInstanceUID"].take(pc.list_parent_indices(types).filter(odd)))
    kept = pc.and_(
        pc.is_in(headers["SOPClassUID"], value_set=pa.array(SINGLE_FRAME_CLASSES)),
        pc.invert(pc.is_in(headers["SeriesInstanceUID"], value_set=without)),
    )
    return headers.filter(pc.and_(kept, pc.less_equal(pc.fill_null(headers["NumberOfFrames"], 1), 1)))


def _numbers(lists: pa.ChunkedArray, width: int) -> Reals:
    """Return lists of numbers as rows of an array; NaN for what a list lacks, or is not finite."""
    lists = lists.combine_chunks()
    rows = pc.list_parent_indices(lists).to_numpy()
    at = np.arange(len(rows)) - np.searchsorted(rows, rows)
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
    kept = (at < width) & np.isfinite(values)
    numbers = np.full((len(lists), width), np.nan)
    numbers[rows[kept], at[kept]] = values[kept]
    return numbers


def _finite(numbers: Reals) -> Reals:
    return np.where(np.isfinite(numbers), numbers, np.nan)


class _Series:
    """The images by series, and within one along the normal; those without a position come last.

    Attributes:
        table: the rows in this order.
        start: row of the first image of each series.
        count: number of its images.
        of: for each image which series it is of.
    """

    def __init__(self, table: pa.Table) -> None:
        uids = pc.unique(table["SeriesInstanceUID"])
        uids = uids.take(pc.sort_indices(uids))
        of = pc.index_in(table["SeriesInstanceUID"], value_set=uids).to_numpy()
        names = pc.rank(table["SOPInstanceUID"]).to_numpy()
        orientation = _numbers(table["ImageOrientationPatient"], 6)
        position = _numbers(table["ImagePositionPatient"], 3)
        normal = _cross(orientation[:, :3], orientation[:, 3:])
        order = np.lexsort((names, _finite(_dot(position, normal)), of))
        self.table, self.of = table.take(pa.array(order)), of[order]
        self.start = np.flatnonzero(np.diff(self.of, prepend=-1))
        self.count = np.diff(self.start, append=len(order))
        self.orientation, self.position, self.normal = orientation[order], position[order], normal[order]
        self.along = _finite(_dot(self.position, self.normal))
        self.gap = np.diff(self.along, prepend=np.nan)  # to the image before
        self.gap[self.start] = np.nan
        self.spacing = _numbers(self.table["PixelSpacing"], 2)

    def least(self, numbers: Reals) -> Reals:
        """Return the least number of each series; NaN where none has one."""
        return np.fmin.reduceat(numbers, self.start)

    def greatest(self, numbers: Reals) -> Reals:
        return np.fmax.reduceat(numbers, self.start)

    def range(self, numbers: Reals) -> Reals:
        return self.greatest(numbers) - self.least(numbers)

    def sum(self, flags: Flags) -> NDArray[np.int64]:
        return np.add.reduceat(flags.astype(np.int64), self.start)

    def all(self, flags: Flags) -> Flags:
        return np.logical_and.reduceat(flags, self.start)

    def firsts(self, values: Any) -> Any:
        """Return for each image the values of the first image of its series."""
        return values[self.start][self.of]

    def are_one(self, numbers: Reals) -> Flags:
        """Return for each series whether its images have the same numbers, or all none."""
        filled = np.nan_to_num(numbers, nan=np.inf)
        return self.all((filled == self.firsts(filled)).all(axis=1))

    def median(self, numbers: Reals) -> Reals:
        """Return the median of the numbers of each series; NaN where none has one."""
        ascending = numbers[np.lexsort((numbers, self.of))]  # NaN last
        known = self.sum(~np.isnan(numbers))
        middle = (ascending[self.start + (known - 1).clip(0) // 2] + ascending[self.start + known // 2]) / 2
        return np.where(known > 0, middle, np.nan)


def _dot(a: Reals, b: Reals) -> Reals:
    # Term by term, as IDC's statement adds them: whether two positions are equal depends on their last bits.
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def _cross(a: Reals, b: Reals) -> Reals:
    (ax, ay, az), (bx, by, bz) = a.T, b.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)


def _identity(series: _Series) -> dict[str, Any]:
    table = series.table
    firsts = table.select(["SeriesInstanceUID", "Collection", "Modality"]).take(pa.array(series.start))
    return {
        **{name: firsts[name].combine_chunks() for name in firsts.column_names},
        **{name: _common(series, table[name]) for name in ("FrameOfReferenceUID", "Rows", "Columns", "SliceThickness")},
        "Instances": series.count,
    }


def _common(series: _Series, column: pa.ChunkedArray) -> pa.Array:
    """Return for each series the value that its images have, those without one aside; null if they have several."""
    of = pa.array(series.of)
    distinct = pa.table({"of": of, "value": column}).filter(pc.is_valid(column)).group_by(["of", "value"]).aggregate([])
    one = distinct.group_by("of").aggregate([("value", "count"), ("value", "min")])
    one = one.filter(pc.equal(one["value_count"], 1))
    at = pc.index_in(pa.array(np.arange(len(series.start)), of.type), value_set=one["of"])
    return one["value_min"].combine_chunks().take(at)


def _flags(series: _Series) -> dict[str, Any]:
    """Return the flags as IDC has them, null included: of one image no distance is known."""
    length = np.sqrt(_dot(series.normal, series.normal))
    least, greatest = series.least(length), series.greatest(length)
    expected = _mean_distance(series, series.count)
    off = series.greatest(np.abs(series.gap - expected[series.of]))
    different = ~np.isnan(series.along) & (series.gap != 0)
    flags = {
        "SingleOrientation": pa.array(series.are_one(series.orientation)),
        "OrthogonalOrientation": _known((least >= 1 - ORIENTATION) & (greatest <= 1 + ORIENTATION), least),
        "UniqueSlicePositions": pa.array(series.sum(different) == series.count),
        "ConsistentInPlaneRow": _aligned(series, series.orientation[:, :3]),
        "ConsistentInPlaneColumn": _aligned(series, series.orientation[:, 3:]),
        "ConsistentPixelSpacing": pa.array(series.are_one(series.spacing)),
        "ConsistentImageDimensions": pc.and_(
            *(pc.is_valid(_common(series, series.table[name])) for name in ("Rows", "Columns"))
        ),
        "UniformSliceSpacing": _known(off < SPACING_SHARE * np.abs(expected), off),
    }
    regular = pa.array(np.ones(len(series.start), bool))
    for flag in flags.values():
        regular = pc.and_kleene(regular, flag)
    return {**flags, "RegularVolume": regular}


def _mean_distance(series: _Series, positions: NDArray[Any]) -> Reals:
    """Return the distance in mm of so many positions, evenly spread from the first image to the last."""
    return series.range(series.along) / np.where(positions > 1, positions - 1, np.nan)


def _known(flags: Flags, by: Reals) -> pa.Array:
    """Return flags; null where the number that they are of is not known."""
    return pa.array(flags, mask=np.isnan(by))


def _is_true(flags: pa.Array) -> Flags:
    true: Flags = flags.fill_null(False).to_numpy(zero_copy_only=False)
    return true


def _aligned(series: _Series, direction: Reals) -> pa.Array:
    shift = series.range(_finite(_dot(series.position, direction)))
    return _known(shift < IN_PLANE_MM, shift)


def _values(series: _Series, flags: dict[str, Any]) -> dict[str, Any]:
    """Return what describes a series of one orientation; null of all others.

    Directions may differ by ORIENTATION, as those of scanners that compute them anew for each image do.
    """
    apart = np.abs(series.orientation - series.firsts(series.orientation)).max(axis=1)
    one = series.all(apart <= ORIENTATION)
    first = series.start
    normal = series.normal[first] / np.sqrt(_dot(series.normal[first], series.normal[first]))[:, np.newaxis]
    axis = np.nan_to_num(np.abs(normal)).argmax(axis=1)
    cosine = np.take_along_axis(np.abs(normal), axis[:, np.newaxis], axis=1)[:, 0]
    known = one & ~np.isnan(cosine)
    names = np.where(cosine >= MAJOR_AXIS, np.array(_PLANES)[axis], "oblique")
    degrees = np.round(np.degrees(np.arccos(cosine.clip(max=1))), 2)
    return {
        "Plane": pa.array(names, mask=~known),
        "ObliquityDegrees": pa.array(degrees, mask=~known),
        "Origin": _lists(series.position[first], one),
        "ImageOrientationPatient": _lists(series.orientation[first], one),
        "PixelSpacing": _lists(series.spacing[first], series.are_one(series.spacing)),
        **_distances(series, one, flags),
    }


def _lists(numbers: Reals, known: Flags) -> pa.Array:
    """Return rows of numbers as lists; null where they are not known, or lack one."""
    missing = ~known | np.isnan(numbers).any(axis=1)
    ends = pa.array(np.arange(len(numbers) + 1) * numbers.shape[1], pa.int32())
    return pa.ListArray.from_arrays(ends, pa.array(numbers.ravel()), mask=pa.array(missing))


def _distances(series: _Series, one: Flags, flags: dict[str, Any]) -> dict[str, Any]:
    """Return what the positions along the normal say: how many there are, how far apart, how many are missing."""
    usual = series.median(np.where(series.gap > NOISE_MM, series.gap, np.nan))
    # Evenly spread positions are different ones, however near they are.
    same = np.where(_is_true(flags["UniformSliceSpacing"]), 0, np.fmax(NOISE_MM, SPACING_SHARE * usual))
    step = np.where(series.gap > same[series.of], series.gap, np.nan)  # from a position to the next
    begins = ~np.isnan(step)
    begins[series.start] = ~np.isnan(series.along[series.start])
    positions = series.sum(begins)
    usual = series.median(step)

    steps = np.rint(step / usual[series.of])
    missing = np.nan_to_num(np.add.reduceat(np.nan_to_num(steps - 1), series.start))
    distance = _mean_distance(series, positions + missing)
    off = series.greatest(np.abs(step - steps * distance[series.of]) / np.fmax(steps, 1))
    otherwise = [_is_true(flags[name]) for name in _ACROSS]
    gapless = np.logical_and.reduce([one, off < SPACING_SHARE * distance, missing < 2**53, *otherwise])

    distance = np.where(one, np.where(gapless, distance, usual), np.nan)
    return {
        "Positions": pa.array(positions, mask=~one | (positions == 0)),
        "Stacks": _stacks(series, begins, positions, one),
        "MissingSlices": pa.array(missing.astype(np.int64), mask=~gapless),
        "SliceSpacing": pa.array(distance, mask=np.isnan(distance)),
        "Extent": pa.array(series.range(series.along) + distance, mask=np.isnan(distance)),
    }


_ACROSS = (
    *("OrthogonalOrientation", "ConsistentInPlaneRow", "ConsistentInPlaneColumn", "ConsistentPixelSpacing"),
    "ConsistentImageDimensions",
)
"""The flags that say nothing of distances along the normal."""


def _stacks(series: _Series, begins: Flags, positions: NDArray[np.int64], one: Flags) -> pa.Array:
    """Return how many images there are at each position; null where that differs, or some have no position."""
    ends = begins.copy()
    ends[series.start] = True
    begin = np.flatnonzero(ends)
    at = np.full(len(begins), np.nan)
    at[begin] = np.diff(begin, append=len(begins))
    known = one & series.all(~np.isnan(series.along)) & (series.range(at) == 0)
    return pa.array(series.count // positions.clip(1), mask=~known)
