"""Sampling of the bodies of :mod:`nbia_pipeline.embedded.phantoms.anatomy`: images, masks and outlines."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nbia_pipeline.embedded.phantoms.anatomy import (
    CONTRASTS,
    PLANES,
    Body,
    Contrast,
    Ellipsoid,
    Geometry,
    Image,
    Vector,
    circle,
)

# Sum of four random bytes: mean, and the standard deviation sqrt(4 * (256**2 - 1) / 12).
_NOISE_MEAN = 510
_NOISE_DEVIATION = 147.8


@lru_cache(maxsize=64)
def _coordinates(geometry: Geometry, direction: tuple[int, int]) -> NDArray[np.float32]:
    """Return the patient coordinates in mm of the rows, or of the columns, along their own axis."""
    steps = np.arange(geometry.matrix, dtype=np.float64) + 0.5
    return (direction[1] * (steps * geometry.spacing - geometry.field_of_view / 2)).astype(np.float32)


def _squares(shape: Ellipsoid, geometry: Geometry, direction: tuple[int, int]) -> tuple[slice, NDArray[np.float32]]:
    """Return where a shape lies along an axis, and there its squared distances from its center; 1 is the surface."""
    axis = direction[0]
    relative = (_coordinates(geometry, direction) - np.float32(shape.center[axis])) / np.float32(shape.radii[axis])
    squares: NDArray[np.float32] = relative * relative
    within = np.flatnonzero(squares < 1)
    where = slice(int(within[0]), int(within[-1]) + 1) if len(within) else slice(0)
    return where, squares[where]


@lru_cache(maxsize=1024)
def _footprint(shape: Ellipsoid, geometry: Geometry) -> tuple[tuple[slice, slice], Image, Image]:
    """Return the box that a shape has in all slices of a stack, and its squared distances along rows and columns."""
    plane = PLANES[geometry.plane]
    (rows, down), (columns, across) = (_squares(shape, geometry, way) for way in (plane.rows, plane.columns))
    return (rows, columns), down[:, None], across[None]


def _section(
    shape: Ellipsoid, geometry: Geometry, index: int
) -> tuple[tuple[slice, slice], NDArray[np.float32]] | None:
    """Return the box of pixels that a shape touches and, in it, its quadratic form (1 on the surface).

    Only the box is computed: most tissues are small, and a slice is rendered in a fraction of the time.
    """
    depth = shape.half_width(PLANES[geometry.plane].slices[0], geometry.location(index))
    if depth == 0:
        return None
    box, down, across = _footprint(shape, geometry)
    if not down.size or not across.size:
        return None
    return box, down + (across + np.float32(1 - depth * depth))


def _noise(shape: tuple[int, int], seed: int) -> Image:
    """Return noise of standard deviation 1 that is identical on every machine and numpy version.

    The raw stream of a bit generator is guaranteed by numpy; the distributions of a Generator are not.
    """
    count = shape[0] * shape[1]
    raw = np.random.PCG64(seed).random_raw((count + 1) // 2).astype("<u8")
    parts = raw.view(np.uint8).reshape(-1, 4)
    total = parts[:, 0].astype(np.int16)
    for column in (1, 2, 3):
        total += parts[:, column]
    centered = total[:count].reshape(shape) - np.int16(_NOISE_MEAN)
    noise: Image = centered.astype(np.float32) * np.float32(1 / _NOISE_DEVIATION)
    return noise


def _shade(image: Image, geometry: Geometry, contrast: Contrast) -> None:
    edge, plane = np.float32(2 / geometry.field_of_view), PLANES[geometry.plane]
    down, across = _coordinates(geometry, plane.rows) * edge, _coordinates(geometry, plane.columns) * edge
    image *= 1 - np.float32(contrast.shading) * (down * down)[:, None]
    image *= 1 - np.float32(contrast.shading) * (across * across)[None, :]


def render(subject: Body, geometry: Geometry, index: int, contrast: str, seed: int) -> Image:
    """Return one slice of a body.

    Args:
        subject: who is scanned.
        geometry: the stack of planes.
        index: which of its slices, from 0.
        contrast: key of :data:`~nbia_pipeline.embedded.phantoms.anatomy.CONTRASTS`.
        seed: of the noise.

    Returns:
        Values in the unit of the contrast (CT: Hounsfield units; PET: standardized uptake value).

    Raises:
        KeyError: there is no such contrast.
    """
    look = CONTRASTS[contrast]
    image = np.full((geometry.matrix, geometry.matrix), look.values["air"], dtype=np.float32)
    for shape in (*subject.shapes, subject.lesion):
        section = _section(shape, geometry, index)
        if section is None:
            continue
        box, form = section
        weight = np.minimum(np.maximum((1 - form) * np.float32(shape.sharpness / look.blur), 0), 1)
        image[box] += weight * (np.float32(look.values[shape.tissue]) - image[box])
    if look.shading:
        _shade(image, geometry, look)
    image += _noise((geometry.matrix, geometry.matrix), seed) * np.float32(look.noise)
    return image


def peak(subject: Body, geometry: Geometry, index: int, contrast: str) -> float:
    """Return a bound of the values of a slice that is known without rendering it; arguments as of :func:`render`."""
    look = CONTRASTS[contrast]
    axis, location = PLANES[geometry.plane].slices[0], geometry.location(index)
    met = [s for s in (*subject.shapes, subject.lesion) if s.half_width(axis, location)]
    return max((look.values[s.tissue] for s in met), default=0.0) + 4 * look.noise


def lesion_slices(subject: Body, geometry: Geometry) -> list[int]:
    """Return the slices (from 0) whose section of the lesion is wide enough to hold a pixel center."""
    plane, lesion = PLANES[geometry.plane], subject.lesion
    narrowest = min(lesion.radii[plane.rows[0]], lesion.radii[plane.columns[0]])
    widths = [lesion.half_width(plane.slices[0], geometry.location(i)) for i in range(geometry.slices)]
    return [i for i, width in enumerate(widths) if narrowest * width >= geometry.spacing]


def lesion_mask(subject: Body, geometry: Geometry, index: int) -> NDArray[np.bool_]:
    """Return which pixels of slice `index` (from 0) have their center within the lesion."""
    mask = np.zeros((geometry.matrix, geometry.matrix), dtype=np.bool_)
    section = _section(subject.lesion, geometry, index)
    if section is not None:
        box, form = section
        mask[box] = form < 1
    return mask


def outline(shape: Ellipsoid, geometry: Geometry, index: int) -> list[Vector]:
    """Return the section of a shape with slice `index` (from 0) of an axial stack as a polygon.

    Returns:
        Points x, y, z in mm in order, for ContourData (3006,0050); none where the section is narrower
        than two pixels.

    Raises:
        ValueError: the stack is not axial.
    """
    if geometry.plane != "axial":
        raise ValueError(f"outlines are made on axial slices, not on {geometry.plane} ones")
    z = geometry.location(index)
    width = shape.half_width(2, z)
    if width * min(shape.radii[0], shape.radii[1]) < geometry.spacing:
        return []
    (cx, cy, _), (rx, ry, _) = shape.center, shape.radii
    return [(cx + width * rx * c, cy + width * ry * s, z) for c, s in circle(6)]
