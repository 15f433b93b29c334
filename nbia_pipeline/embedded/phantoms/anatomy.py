"""Anatomy of the phantoms: bodies made of ellipsoids, sampled on the planes of a scanner.

A body is a list of ellipsoids in patient coordinates (millimeters; DICOM part 3, C.7.6.2.1.1: x grows to
the patient's left, y to the back, z to the head), painted one over the other. What a tissue looks like
is a table per contrast, so that the CT, the PET and the MR of a study show the same patient.

Only arithmetic that IEEE 754 rounds alike everywhere (sums, products, comparisons) makes the pixels: sines
and exponentials differ in the last bit between processors, and the files must be identical on all.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Vector = tuple[float, float, float]

CYLINDER = 1.0e6
"""Radius along z, in mm, of what runs through all slices."""


@dataclass(frozen=True)
class Ellipsoid:
    """A piece of tissue.

    Attributes:
        tissue: key of the tables of :class:`Contrast`.
        center: x, y, z in mm.
        radii: half axes along x, y, z in mm.
        sharpness: how steeply the tissue sets in at its surface; the width of the edge is about
            radius / (2 * sharpness).
    """

    tissue: str
    center: Vector
    radii: Vector
    sharpness: float = 8.0

    def half_width(self, axis: int, offset: float) -> float:
        """Return the scale (0 to 1) of the section at `offset` mm along `axis`; 0 outside of the ellipsoid."""
        relative = (offset - self.center[axis]) / self.radii[axis]
        return math.sqrt(max(0.0, 1.0 - relative * relative))


@dataclass(frozen=True)
class Contrast:
    """What the tissues look like in one kind of image.

    Attributes:
        values: value by tissue (CT: Hounsfield units; PET: standardized uptake value; MR: arbitrary).
        noise: standard deviation of the noise in the same unit.
        blur: factor that flattens the edges; PET resolves worse than CT.
        shading: loss of signal towards the rim of the field of view, as a fraction (MR coils).
    """

    values: Mapping[str, float]
    noise: float
    blur: float = 1.0
    shading: float = 0.0


@dataclass(frozen=True)
class Plane:
    """Orientation of a stack: (axis, sign) of where columns, rows and slices run to."""

    columns: tuple[int, int]
    rows: tuple[int, int]
    slices: tuple[int, int]


PLANES = {
    "axial": Plane((0, 1), (1, 1), (2, 1)),
    "coronal": Plane((0, 1), (2, -1), (1, 1)),
    "sagittal": Plane((1, 1), (2, -1), (0, -1)),
}


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of a stack lie.

    Attributes:
        matrix: rows and columns of an image.
        slices: number of planes.
        field_of_view: edge of an image in mm.
        extent: length of the stack in mm.
        plane: key of :data:`PLANES`.
    """

    matrix: int
    slices: int
    field_of_view: float
    extent: float
    plane: str = "axial"

    @property
    def spacing(self) -> float:
        """Distance of pixel centers in mm, for PixelSpacing (0028,0030)."""
        return self.field_of_view / self.matrix

    @property
    def thickness(self) -> float:
        """Distance of slice centers in mm, for SliceThickness (0018,0050)."""
        return self.extent / self.slices

    @property
    def orientation(self) -> tuple[float, ...]:
        """Direction cosines of rows and columns, for ImageOrientationPatient (0020,0037)."""
        plane = PLANES[self.plane]
        return tuple(float(sign * (axis == a)) for axis, sign in (plane.columns, plane.rows) for a in (0, 1, 2))

    def location(self, index: int) -> float:
        """Return the coordinate of slice `index` (from 0) along the normal in mm."""
        return PLANES[self.plane].slices[1] * ((index + 0.5) * self.thickness - self.extent / 2)

    def position(self, index: int) -> Vector:
        """Return the center of the first pixel of slice `index`, for ImagePositionPatient (0020,0032)."""
        plane = PLANES[self.plane]
        first = self.spacing / 2 - self.field_of_view / 2
        point = {axis: sign * first for axis, sign in (plane.columns, plane.rows)}
        point[plane.slices[0]] = self.location(index)
        return point[0], point[1], point[2]


def circle(quarter: int) -> list[tuple[float, float]]:
    """Return ``4 * quarter`` points of the unit circle in order, made without sines (see the module)."""
    steps = [k / quarter for k in range(quarter)]
    arc = [((1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)) for t in steps]
    turned: list[tuple[float, float]] = []
    for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        turned += [(c * x - s * y, s * x + c * y) for x, y in arc]
    return turned


def _both(tissue: str, center: Vector, radii: Vector, sharpness: float) -> Iterator[Ellipsoid]:
    """Yield a tissue of the right side and its mirror image on the left."""
    x, y, z = center
    for side in (-1, 1):
        yield Ellipsoid(tissue, (side * x, y, z), radii, sharpness)


_LUNG_R = Ellipsoid("lung", (-76, -4, 20), (64, 86, 116), 15)
_LUNG_L = Ellipsoid("lung", (76, -4, 20), (62, 86, 116), 15)
_HEART = Ellipsoid("heart", (26, -28, -12), (56, 50, 58), 10)
_TORSO = (
    Ellipsoid("couch", (0, 148, 0), (160, 16, CYLINDER), 20),
    Ellipsoid("foam", (0, 148, 0), (154, 12, CYLINDER), 20),
    Ellipsoid("fat", (0, 0, 0), (175, 121, 900), 30),
    Ellipsoid("muscle", (0, 0, 0), (161, 108, 900), 20),
    # Ribs: pieces of bone along the chest wall that drop towards the front, level by level.
    *(
        Ellipsoid("bone", (150 * x, 96 * y, 27 * level + 18 * y), (12, 6, 8), 3)
        for level in range(-3, 6)
        for x, y in circle(6)
    ),
    _LUNG_R,
    _LUNG_L,
    # Branches of the lung vessels, thinner with the distance from the hilum.
    *(
        Ellipsoid("blood", (side * 72 + 24 * x, 42 * y, 15), (5.5 - 0.25 * k, 5.5 - 0.25 * k, 70 - 3 * k), 3)
        for side in (-1, 1)
        for k, (x, y) in enumerate(circle(3))
    ),
    Ellipsoid("muscle", (0, 10, 0), (27, 96, CYLINDER), 6),
    _HEART,
    Ellipsoid("blood", (-10, -18, 55), (16, 16, 50), 10),
    Ellipsoid("air", (0, 12, 85), (9, 9, 60), 6),
    Ellipsoid("liver", (-66, -6, -95), (86, 86, 70), 12),
    Ellipsoid("spleen", (108, 34, -100), (34, 44, 46), 10),
    Ellipsoid("muscle", (62, -34, -105), (46, 42, 48), 10),
    Ellipsoid("air", (62, -54, -100), (24, 13, 28), 6),
    *_both("kidney", (62, 62, -122), (27, 23, 46), 10),
    Ellipsoid("blood", (24, 48, 0), (12, 12, CYLINDER), 10),
    Ellipsoid("bone", (0, 74, 0), (22, 19, CYLINDER), 10),
    Ellipsoid("marrow", (0, 74, 0), (19, 16, CYLINDER), 10),
    Ellipsoid("bone", (0, 99, 0), (17, 13, CYLINDER), 6),
    Ellipsoid("csf", (0, 98, 0), (9, 8, CYLINDER), 6),
    Ellipsoid("bone", (0, -98, 40), (18, 6, 90), 4),
)


_BRAIN = Ellipsoid("grey", (0, 0, -6), (63, 83, 92), 20)
_EYE_R = Ellipsoid("csf", (-31, -82, -55), (12, 12, 12), 10)
_HEAD = (
    Ellipsoid("fat", (0, 0, -12), (77, 97, 110), 25),
    Ellipsoid("bone", (0, 0, -8), (72, 92, 103), 25),
    Ellipsoid("csf", (0, 0, -6), (66, 86, 95), 25),
    _BRAIN,
    # Clefts of the cortex.
    *(Ellipsoid("csf", (57 * x, 77 * y, -6), (1.5 + 6 * x * x, 1.5 + 6 * y * y, 44), 2) for x, y in circle(7)),
    *_both("white", (29, 0, 2), (26, 68, 66), 6),
    Ellipsoid("csf", (0, 0, 40), (2, 80, 55), 3),
    Ellipsoid("white", (0, -2, 18), (16, 42, 7), 4),
    *_both("csf", (11, -16, 8), (6, 26, 15), 5),
    *_both("csf", (21, 26, 2), (6, 19, 14), 5),
    *_both("grey", (14, 4, -6), (10, 15, 12), 6),
    Ellipsoid("white", (0, 22, -58), (13, 13, 44), 8),
    Ellipsoid("csf", (0, 54, -52), (50, 31, 27), 10),
    Ellipsoid("grey", (0, 54, -52), (47, 28, 24), 8),
    *_both("fat", (31, -78, -55), (17, 22, 17), 10),
    _EYE_R,
    Ellipsoid("csf", (31, -82, -55), (12, 12, 12), 10),
    Ellipsoid("air", (0, -74, -62), (12, 20, 24), 6),
)

_BREAST = (
    *_both("fat", (80, 6, 0), (64, 102, 76), 30),
    *_both("gland", (80, -18, 0), (40, 58, 50), 3),
    Ellipsoid("fat", (-72, -2, 12), (16, 22, 20), 3),
    Ellipsoid("fat", (90, -10, -8), (18, 20, 22), 3),
    Ellipsoid("fat", (0, 108, 0), (166, 80, CYLINDER), 30),
    Ellipsoid("muscle", (0, 112, 0), (156, 72, CYLINDER), 25),
    *_both("lung", (72, 118, 0), (58, 54, CYLINDER), 12),
    Ellipsoid("heart", (26, 92, -20), (50, 36, 60), 10),
    Ellipsoid("blood", (22, 140, 0), (12, 12, CYLINDER), 8),
    Ellipsoid("bone", (0, 46, 0), (18, 6, CYLINDER), 4),
    Ellipsoid("marrow", (0, 156, 0), (20, 17, CYLINDER), 10),
)

_INSERTS = ("air", "fat", "water", "acrylic", "bone", "lung", "liver", "teflon")
_CYLINDER = (
    Ellipsoid("acrylic", (0, 0, 0), (100, 100, CYLINDER), 60),
    Ellipsoid("water", (0, 0, 0), (93, 93, CYLINDER), 60),
    *(
        Ellipsoid(name, (62 * x, 62 * y, 0), (11, 11, CYLINDER), 12)
        for name, (x, y) in zip(_INSERTS, circle(2), strict=True)
    ),
)


@dataclass(frozen=True)
class Body:
    """The body of a patient (or a test object) and how it is usually scanned.

    Attributes:
        shapes: the tissues in the order of painting.
        lesion: the finding, painted last.
        field_of_view: edge of an image in mm.
        extent: length of a stack in mm.
        structures: what a planner outlines, by the name of the region of interest.
    """

    shapes: tuple[Ellipsoid, ...]
    lesion: Ellipsoid
    field_of_view: float
    extent: float
    structures: Mapping[str, Ellipsoid] = field(default_factory=dict)


ANATOMIES = {
    "torso": Body(
        _TORSO,
        Ellipsoid("lesion", (-84, -16, 34), (19, 17, 38), 4),
        400,
        200,
        {"Lung_R": _LUNG_R, "Lung_L": _LUNG_L, "Heart": _HEART},
    ),
    "head": Body(
        _HEAD, Ellipsoid("lesion", (27, -28, 22), (15, 18, 24), 4), 256, 150, {"Brain": _BRAIN, "Eye_R": _EYE_R}
    ),
    "breast": Body(_BREAST, Ellipsoid("lesion", (-84, -28, 8), (15, 14, 22), 4), 360, 130),
    "cylinder": Body(_CYLINDER, Ellipsoid("lesion", (0, 0, 0), (22, 22, 50), 10), 250, 120),
}
"""The average patient by kind of anatomy."""

_HOUNSFIELD = {
    "air": -1000, "lung": -835, "fat": -95, "muscle": 52, "blood": 46, "heart": 44, "liver": 62,
    "spleen": 54, "kidney": 34, "bone": 620, "marrow": 190, "couch": -180, "foam": -900, "lesion": 36,
    "grey": 39, "white": 28, "csf": 7, "gland": 40, "acrylic": 120, "water": 0, "teflon": 990,
}  # fmt: skip
_UPTAKE = {
    "air": 0, "lung": 0.45, "fat": 0.3, "muscle": 0.7, "blood": 1.6, "heart": 3.4, "liver": 2.3,
    "spleen": 1.9, "kidney": 5.2, "bone": 0.9, "marrow": 1.3, "couch": 0, "foam": 0, "lesion": 9.5,
    "grey": 7.5, "white": 3.2, "csf": 0.8, "gland": 0.9, "acrylic": 0, "water": 1, "teflon": 0,
}  # fmt: skip
_T1 = {
    "air": 12, "lung": 45, "fat": 900, "muscle": 330, "blood": 130, "heart": 300, "liver": 460,
    "spleen": 330, "kidney": 350, "bone": 60, "marrow": 560, "couch": 0, "foam": 0, "lesion": 290,
    "grey": 430, "white": 600, "csf": 130, "gland": 420, "acrylic": 10, "water": 120, "teflon": 5,
}  # fmt: skip
_T2 = {**_T1, "fat": 620, "muscle": 180, "lesion": 860, "grey": 560, "white": 380, "csf": 1050, "gland": 520}
_BEFORE = {**_T1, "fat": 110, "gland": 260, "lesion": 240, "marrow": 120}
_AFTER = {**_BEFORE, "blood": 820, "heart": 760, "gland": 360, "lesion": 930}

CONTRASTS = {
    "ct": Contrast(_HOUNSFIELD, noise=14),
    "ct-contrast": Contrast({**_HOUNSFIELD, "blood": 230, "heart": 190, "kidney": 170, "lesion": 75}, noise=11),
    "pet": Contrast(_UPTAKE, noise=0.07, blur=5),
    "t1": Contrast(_T1, noise=16, shading=0.2),
    "t2": Contrast(_T2, noise=18, shading=0.2),
    "flair": Contrast({**_T2, "csf": 90}, noise=18, shading=0.2),
    "dce-before": Contrast(_BEFORE, noise=12, shading=0.15),
    "dce-after": Contrast(_AFTER, noise=12, shading=0.15),
}
"""How tissues look: rounded textbook values, for looks and not for measurements."""


@lru_cache(maxsize=64)
def body(anatomy: str, patient: str, growth: float = 1.0) -> Body:
    """Return the body of a patient, from whose name stature and place of the lesion follow; it grows for follow-ups.

    Raises:
        KeyError: there is no such anatomy.
    """
    kind = ANATOMIES[anatomy]
    digest = hashlib.sha256(patient.encode()).digest()
    # A test object has the size that it has.
    stature = 1.0 if anatomy == "cylinder" else 0.94 + digest[0] / 255 * 0.1

    def fit(shape: Ellipsoid, factor: float = 1.0) -> Ellipsoid:
        (x, y, z), (a, b, c) = shape.center, (radius * stature * factor for radius in shape.radii)
        return replace(shape, center=(x * stature, y * stature, z * stature), radii=(a, b, c))

    lesion = fit(kind.lesion, growth)
    if anatomy != "cylinder":
        x, y, z = (v + (digest[i] % 11 - 5) for i, v in enumerate(lesion.center, 1))
        lesion = replace(lesion, center=(x, y, z))
    shapes, structures = map(fit, kind.shapes), {name: fit(shape) for name, shape in kind.structures.items()}
    return replace(kind, shapes=tuple(shapes), lesion=lesion, structures=structures)
