"""From the slices of a series to one array with its place in space."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset

from nbia_pipeline.lake import LakeError
from nbia_pipeline.reading.frames import optional

SPACING_SHARE = 0.01
"""By how much of their distance slices may be off their even places."""
IN_PLANE_MM = 0.1
"""By how much a slice may be shifted against the first, across their normal."""
ORIENTATION = 0.01
"""By how much a direction cosine may differ from that of the first slice."""

Reals = NDArray[np.float64]


class NotAVolume(LakeError):
    """The images are not evenly spaced, parallel slices of one size, or cannot be decoded; the text says why."""


@dataclass(frozen=True, eq=False)
class Volume:
    """The images of a series as one array, in the conventions of SimpleITK: positions are in mm, in DICOM's LPS.

    Attributes:
        array: values by slice, row and column; float32 in Hounsfield or other real units where the images state a
            RescaleSlope (0028,1053), else the stored values. Slices ascend along their normal.
        spacing: mm between columns, rows and slices; of a single slice SpacingBetweenSlices or SliceThickness, else 1.
        origin: center of the first voxel.
        direction: its columns are the unit vectors along which columns, rows and slices ascend.
        files: for each slice the SOPInstanceUID of its file.
    """

    array: NDArray[Any]
    spacing: tuple[float, float, float]
    origin: Reals
    direction: Reals
    files: tuple[str, ...]

    def index_of(self, position: ArrayLike) -> Reals:
        """Return the slice, row and column, with fractions, of a position in mm."""
        along: Reals = (np.asarray(position, float) - self.origin) @ self.direction / self.spacing
        return along[::-1]

    def position_of(self, index: ArrayLike) -> Reals:
        """Return the position in mm of a slice, row and column."""
        steps = np.asarray(index, float)[::-1] * self.spacing
        position: Reals = self.origin + self.direction @ steps
        return position

    def to_itk(self) -> Any:
        """Return the volume as an image of SimpleITK.

        Raises:
            MissingExtra: SimpleITK is not installed.
        """
        itk = optional("SimpleITK", "itk")
        image = itk.GetImageFromArray(self.array)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin.tolist())
        image.SetDirection(self.direction.ravel().tolist())
        return image


class _Slice(NamedTuple):
    pixels: NDArray[Any]
    rescale: tuple[float, float] | None
    position: Reals
    orientation: Reals
    spacing: Reals
    thickness: float
    file: str


def volume_of(datasets: Iterable[Dataset], what: str) -> Volume:
    """Return the volume of some files, of one image or of many each.

    Args:
        datasets: the files, with their pixels.
        what: the images, for the text of an error.

    Raises:
        NotAVolume: they are none.
    """
    try:
        slices = [one for dataset in datasets for one in _slices(dataset)]
        return _stacked(slices)
    except NotAVolume as e:
        raise NotAVolume(f"{what} is not a volume: {e}") from None


def _slices(dataset: Dataset) -> Iterator[_Slice]:
    if "Rows" not in dataset:
        raise NotAVolume(f"its files have no images (Modality is {dataset.get('Modality')})")
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise NotAVolume("its images are in color")
    frames = _pixels(dataset)
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or _planes_of_dose(dataset) or [None] * len(frames)
    for pixels, group in zip(frames, groups, strict=False):
        yield _slice(pixels, [part for part in (group, shared, dataset) if part is not None], dataset)


def _planes_of_dose(dataset: Dataset) -> list[Dataset]:
    """Return what the planes of an RT dose have each for itself (DICOM part 3, C.8.8.3.2); none of other files."""
    offsets, scaling = dataset.get("GridFrameOffsetVector"), dataset.get("DoseGridScaling")
    if not offsets or scaling is None:
        return []
    first = _numbers([dataset], "", "ImagePositionPatient", 3)
    orientation = _numbers([dataset], "", "ImageOrientationPatient", 6)
    planes = []
    for offset in offsets:
        # Relative to the first plane, or, where the first is not 0, coordinates of axial planes.
        position = first + np.cross(orientation[:3], orientation[3:]) * float(offset - offsets[0])
        plane = Dataset()
        plane.ImagePositionPatient = [f"{v:.10g}" for v in position]
        plane.RescaleSlope = scaling
        planes.append(plane)
    return planes


def _slice(pixels: NDArray[Any], parts: list[Dataset], dataset: Dataset) -> _Slice:
    """Return an image; `parts` are its functional groups, those of all images of the file, and the file's data set."""
    position = _numbers(parts, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _numbers(parts, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    spacing = _numbers(parts, "PixelMeasuresSequence", "PixelSpacing", 2)
    steps = (_value(parts, "PixelMeasuresSequence", n) for n in ("SpacingBetweenSlices", "SliceThickness"))
    slope, intercept = (
        _value(parts, "PixelValueTransformationSequence", f"Rescale{n}") for n in ("Slope", "Intercept")
    )
    rescale = None if slope is None else (float(slope), float(intercept or 0))
    thickness = next((abs(float(step)) for step in steps if step), 1.0)
    return _Slice(pixels, rescale, position, orientation, spacing, thickness, str(dataset.SOPInstanceUID))


def _pixels(dataset: Dataset) -> NDArray[Any]:
    try:
        pixels: NDArray[Any] = dataset.pixel_array
    except Exception as e:  # pydicom and its decoders raise errors of all kinds
        raise NotAVolume(
            f"the pixels of {dataset.get('SOPInstanceUID')} cannot be decoded ({e}); pip install 'nbia-pipeline[jpeg]' "
            "installs more decoders"
        ) from e
    return pixels if pixels.ndim == 3 else pixels[np.newaxis]


def _first(dataset: Dataset, sequence: str) -> Dataset | None:
    items = dataset.get(sequence)
    return items[0] if items else None


def _value(parts: Iterable[Dataset], sequence: str, keyword: str) -> Any:
    for part in parts:
        for place in (_first(part, sequence), part):
            value = None if place is None else place.get(keyword)
            if value is not None and value != "":
                return value
    return None


def _numbers(parts: Iterable[Dataset], sequence: str, keyword: str, count: int) -> Reals:
    value = _value(parts, sequence, keyword)
    try:
        numbers = np.array([float(number) for number in value], float)
    except (TypeError, ValueError):
        numbers = np.array([])
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise NotAVolume(f"its images do not state {keyword}, as those of radiographs and of ultrasound do not")
    return numbers


def _stacked(slices: list[_Slice]) -> Volume:
    if not slices:
        raise NotAVolume("it has no images")
    first = slices[0]
    across, down = first.orientation[:3], first.orientation[3:]
    normal = np.cross(across, down)
    _expect_alike(slices)
    slices = sorted(slices, key=lambda one: float(one.position @ normal))
    step = _even_step(slices, normal)
    array = np.empty((len(slices), *first.pixels.shape), np.float32 if first.rescale else first.pixels.dtype)
    for place, one in zip(array, slices, strict=True):
        slope, intercept = one.rescale or (1.0, 0.0)
        place[...] = one.pixels * slope + intercept if one.rescale else one.pixels
    rows, columns = first.spacing
    direction = np.stack([across, down, normal], axis=1)
    files = tuple(one.file for one in slices)
    return Volume(array, (float(columns), float(rows), step), slices[0].position, direction, files)


def _expect_alike(slices: list[_Slice]) -> None:
    first = slices[0]
    for one in slices[1:]:
        if one.pixels.shape != first.pixels.shape or not np.allclose(one.spacing, first.spacing, SPACING_SHARE):
            raise NotAVolume("its images differ in Rows, Columns or PixelSpacing")
        if np.abs(one.orientation - first.orientation).max() > ORIENTATION:
            raise NotAVolume("its images differ in ImageOrientationPatient: slices of several stacks, or a localizer")
        if (one.rescale is None) != (first.rescale is None):
            raise NotAVolume("some of its images state a RescaleSlope, and others do not")


def _even_step(slices: list[_Slice], normal: Reals) -> float:
    """Return the distance of the slices in mm, which are in their order."""
    if len(slices) == 1:
        return slices[0].thickness
    offsets = np.array([one.position - slices[0].position for one in slices])
    along = offsets @ normal
    steps = np.diff(along)
    step = float(np.median(steps))
    if steps.min() <= max(SPACING_SHARE * step, 1e-6):
        places = 1 + int((steps > max(SPACING_SHARE * step, 1e-6)).sum())
        raise NotAVolume(f"its {len(slices)} images have {places} positions: phases, echoes, segments or repetitions")
    if np.abs(offsets - np.outer(along, normal)).max() > IN_PLANE_MM:
        raise NotAVolume("its slices are shifted against each other, as those of a tilted gantry are")
    if np.abs(steps - step).max() > SPACING_SHARE * step:
        raise NotAVolume(
            f"its slices are not evenly spaced: {steps.min():.3f} to {steps.max():.3f} mm; some may be missing"
        )
    return float(np.mean(steps))
