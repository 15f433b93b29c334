"""From DICOM files, made by hand, to grey values; and what is said of those that cannot be drawn."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from pydicom.uid import MPEG2MPML, DeflatedExplicitVRLittleEndian

from nbia_pipeline.preview.pixels import NotDrawable, phases_of, picture_of
from nbia_pipeline_tests.helpers.pictures import dicom, ramp


@pytest.mark.parametrize(
    ("hounsfield", "grey"),
    [(-160, 0), (-1000, 0), (40, 127.5), (140, 191.25), (240, 255), (3000, 255)],
)
def test_ct_has_the_soft_tissue_window_in_hounsfield_units(hounsfield: int, grey: float) -> None:
    stored = np.full((8, 8), 40 + 1000, np.uint16)
    stored[0, 0] = hounsfield + 1000
    file = dicom(stored, RescaleSlope="1", RescaleIntercept="-1000")
    assert picture_of(file, "CT")[0, 0] == pytest.approx(grey, abs=0.5)


def test_the_slope_is_part_of_hounsfield_units() -> None:
    stored = np.full((8, 8), 620, np.uint16)
    assert picture_of(dicom(stored, RescaleSlope="2", RescaleIntercept="-1000"), "CT")[3, 3] == 255


@pytest.mark.parametrize(("hounsfield", "grey"), [(-1350, 0), (-600, 127.5), (150, 255), (-850, 85)])
def test_ct_of_lungs_has_the_lung_window(hounsfield: int, grey: float) -> None:
    stored = np.full((8, 8), 3000 + 40, np.uint16)
    stored[:2] = 3000 - 850
    stored[0, 0] = hounsfield + 3000
    assert picture_of(dicom(stored, RescaleSlope="1", RescaleIntercept="-3000"), "CT")[0, 0] == pytest.approx(
        grey, abs=0.5
    )


def test_ct_without_hounsfield_units_is_windowed_by_its_values() -> None:
    assert picture_of(dicom(ramp()), "CT")[0, [1, 50, 99]].tolist() == [0, 128, 255]


def test_mr_is_windowed_between_its_percentiles() -> None:
    assert picture_of(dicom(ramp()), "MR")[0, [0, 1, 50, 99, 100]].tolist() == [0, 0, 128, 255, 255]


def test_pet_keeps_its_darkest_value_black() -> None:
    assert picture_of(dicom(ramp()), "PT")[0, [0, 1, 100]].tolist() == [0, 3, 255]


def test_signed_values_are_signed() -> None:
    values = (ramp(np.int16) - 50).astype(np.int16)
    assert picture_of(dicom(values), "MR")[0, [1, 50, 99]].tolist() == [0, 128, 255]


def test_padding_is_black_and_does_not_count() -> None:
    values = np.concatenate([ramp(np.int16), np.full((1, 200), -2000, np.int16)], axis=1)
    shades = picture_of(dicom(values, PixelPaddingValue=-2000), "MR")
    assert shades[0, [1, 50, 99, 101, 300]].tolist() == [0, 128, 255, 0, 0]


def test_monochrome1_is_inverted() -> None:
    shades = picture_of(dicom(ramp(), PhotometricInterpretation="MONOCHROME1"), "MG")
    assert shades[0, [1, 50, 99]].tolist() == [255, 127, 0]


def test_colours_stay_colours() -> None:
    colours = np.zeros((2, 3, 3), np.uint8)
    colours[0, 0] = (250, 10, 20)
    file = dicom(colours, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    assert picture_of(file, "US")[0, 0].tolist() == [250, 10, 20]


def test_ybr_becomes_rgb() -> None:
    ybr = np.full((2, 2, 3), (76, 85, 255), np.uint8)  # red, in JPEG's numbers
    file = dicom(ybr, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=0)
    assert picture_of(file, "US")[0, 0].tolist() == pytest.approx([254, 0, 0], abs=2)


def test_a_palette_is_applied() -> None:
    lut: dict[str, Any] = {}
    for name, bright in (("Red", 255), ("Green", 128), ("Blue", 7)):
        lut[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        lut[f"{name}PaletteColorLookupTableData"] = np.array([0, bright * 256], np.uint16).tobytes()
    pixels = np.array([[0, 1], [1, 0]], np.uint8)
    shades = picture_of(dicom(pixels, PhotometricInterpretation="PALETTE COLOR", **lut), "US")
    assert shades[0].tolist() == [[0, 0, 0], [255, 128, 7]]


def test_of_many_frames_the_middle_one_is_drawn() -> None:
    frames = np.zeros((5, 4, 4), np.uint8)
    frames[2] = np.arange(16).reshape(4, 4)
    file = dicom(frames.tobytes(), NumberOfFrames=5, BitsAllocated=8, BitsStored=8, HighBit=7)
    shades = picture_of(file, "XA")
    assert shades.tolist() == picture_of(dicom(frames[2]), "XA").tolist()
    assert shades.max() == 255


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_an_image_of_one_pixel_is_grey(value: int) -> None:
    assert picture_of(dicom(np.array([[value]], np.uint16)), "MR").tolist() == [[127]]


def test_a_large_image_is_thinned_out() -> None:
    large = np.tile(np.arange(3000, dtype=np.uint16), (2000, 1))
    shades = picture_of(dicom(large), "DX")
    assert shades.shape == (667, 1000)
    assert (shades[0, 0], shades[0, -1]) == (0, 255)


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (lambda: dicom(b"\xfe\xff\x00\xe0" + b"\0" * 4, MPEG2MPML), "no decoder for MPEG2"),
        (lambda: dicom(b"\1\2\3\4"), "^its header or its pixel data are damaged$"),
        (lambda: dicom(ramp(), DeflatedExplicitVRLittleEndian), "no decoder for Deflated"),
        (lambda: dicom(ramp(), Rows=None), "it contains no image"),
        (lambda: dicom(ramp(), BitsAllocated=None), "does not say how its pixels are stored"),
        (lambda: dicom(ramp(), Rows=60000, Columns=60000), "60000 by 60000 pixels are too many"),
        (lambda: io.BytesIO(b"<html>" * 100), "^it is not DICOM$"),
        (lambda: io.BytesIO(b""), "^it is not DICOM$"),
        (lambda: io.BytesIO(dicom(ramp()).getvalue()[:-20]), "^its header or its pixel data are damaged$"),
    ],
)
def test_what_cannot_be_drawn_says_why(file: Any, why: str) -> None:
    with pytest.raises(NotDrawable, match=why):
        picture_of(file(), "MR")


def test_phases_are_those_that_the_file_states() -> None:
    assert phases_of(dicom(ramp(), NumberOfTemporalPositions=2)) == 2
    assert phases_of(dicom(ramp())) == 1
