"""Odd files are drawn right or not drawn with a reason: none becomes black by mistake."""

from __future__ import annotations

import io
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from nbia_pipeline.preview import contact_sheet, pixels
from nbia_pipeline.preview.pixels import NotDrawable, jpeg_extra, phases_of, picture_of
from nbia_pipeline_tests.helpers.dicom_bytes import DEFLATED, PREAMBLE, data_set, deflated, element, meta
from nbia_pipeline_tests.helpers.pictures import dicom, ramp

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
HOUNSFIELD = np.array([[0, 864, 1064, 1264, 4000]], np.uint16)  # -1024, -160, 40, 240, 2976


def emptied(file: io.BytesIO, keyword: str, value: str = "") -> io.BytesIO:
    """Return the file with an element that has another text, as no library writes it."""
    whole = pydicom.dcmread(file)
    whole[keyword]._value = value
    target = io.BytesIO()
    whole.save_as(target)
    target.seek(0)
    return target


# --- scale and window


@pytest.mark.parametrize("slope", ["", None, "1", "abc", "1\\1", "NaN"])
def test_a_ct_without_a_slope_has_the_slope_one(slope: str | None) -> None:
    file = dicom(HOUNSFIELD, RescaleSlope=None if slope is None else "1", RescaleIntercept="-1024")
    if slope is not None:
        file = emptied(file, "RescaleSlope", slope)
    assert picture_of(file, "CT").tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize(
    ("slope", "intercept"), [("0", "-1024"), ("0", "0"), ("1", ""), ("1", "abc"), ("", ""), (None, None)]
)
def test_a_ct_without_a_scale_is_drawn_by_its_values(slope: str | None, intercept: str | None) -> None:
    given: dict[str, Any] = {"RescaleSlope": slope and "1", "RescaleIntercept": intercept and "1"}
    file = dicom(ramp(), **given)
    for keyword, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        if value is not None and given[keyword]:
            file = emptied(file, keyword, value)
    assert picture_of(file, "CT")[0, [1, 50, 99]].tolist() == [0, 128, 255]


@pytest.mark.parametrize("intercept", ["-9000", "5000", "-400"])
def test_a_ct_outside_the_window_is_neither_black_nor_white(intercept: str) -> None:
    """A scout, or values that are not in Hounsfield units."""
    file = dicom(ramp(), RescaleSlope="1", RescaleIntercept=intercept)
    assert picture_of(file, "CT")[0, [1, 50, 99]].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "window", [{}, {"WindowWidth": "", "WindowCenter": ""}, {"WindowWidth": ["1", "400"], "WindowCenter": ["0", "40"]}]
)
def test_the_window_of_the_file_does_not_matter(window: dict[str, Any]) -> None:
    assert picture_of(dicom(ramp(), **window), "MR")[0, [1, 50, 99]].tolist() == [0, 128, 255]


def test_a_few_bright_pixels_are_seen() -> None:
    values = np.zeros((100, 100), np.uint16)
    values[50, 50] = 1000  # less than a percent
    shades = picture_of(dicom(values), "MR")
    assert (shades[0, 0], shades[50, 50]) == (0, 255)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("values", [np.zeros((4, 4), np.uint16), np.full((4, 4), -3, np.int16)])
def test_a_single_value_is_gray(values: NDArray[Any], photometric: str) -> None:
    assert set(picture_of(dicom(values, PhotometricInterpretation=photometric), "MG").flat) == {127}


# --- padding


PADDED = np.concatenate([ramp(np.int16), np.full((1, 300), -2000, np.int16)], axis=1)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_in_both_kinds_of_monochrome(photometric: str) -> None:
    shades = picture_of(dicom(PADDED, PhotometricInterpretation=photometric, PixelPaddingValue=-2000), "MG")
    assert shades[0, [1, 99, 200]].tolist() == [*([255, 0] if photometric == "MONOCHROME1" else [0, 255]), 0]


def test_a_range_of_padding_does_not_count() -> None:
    values = PADDED.copy()
    values[0, 200:] = -1990
    shades = picture_of(dicom(values, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990), "MR")
    assert shades[0, [1, 50, 99, 150, 300]].tolist() == [0, 128, 255, 0, 0]


def test_padding_in_a_file_without_vrs_is_found() -> None:
    shades = picture_of(dicom(PADDED, ImplicitVRLittleEndian, PixelPaddingValue=-2000), "MR")
    assert shades[0, [1, 50, 99, 200]].tolist() == [0, 128, 255, 0]


def test_padding_that_covers_everything_is_gray() -> None:
    assert set(picture_of(dicom(np.zeros((4, 4), np.uint16), PixelPaddingValue=0), "MR").flat) == {127}


# --- how pixels are stored


@pytest.mark.parametrize("lacking", ["BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation"])
def test_a_file_that_does_not_say_how_its_pixels_are_stored_is_drawn(lacking: str) -> None:
    without: dict[str, Any] = {lacking: None}
    file = dicom(ramp(), **without)
    assert picture_of(file, "MR")[0, [1, 50, 99]].tolist() == [0, 128, 255]


def test_big_endian_pixels_are_drawn() -> None:
    file = dicom(ramp().astype(">u2"), ExplicitVRBigEndian)
    assert picture_of(file, "MR")[0, [1, 50, 99]].tolist() == [0, 128, 255]


@pytest.mark.parametrize("number", ["", "0", None])
def test_a_file_that_does_not_say_how_many_frames_it_has_has_one(number: str | None) -> None:
    file = dicom(ramp(), NumberOfFrames=None if number is None else "1")
    if number is not None:
        file = emptied(file, "NumberOfFrames", number)
    assert picture_of(file, "MR")[0, [1, 50, 99]].tolist() == [0, 128, 255]


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)])
def test_pixels_with_fractions_are_drawn(keyword: str, dtype: Any) -> None:
    values = (ramp(np.float64) / 1000).astype(dtype)
    values[0, 0] = np.nan
    whole = pydicom.dcmread(dicom(np.zeros((1, 101), np.uint16), BitsAllocated=8 * values.itemsize, BitsStored=None))
    del whole.PixelData
    setattr(whole, keyword, values.tobytes())
    target = io.BytesIO()
    whole.save_as(target)
    assert picture_of(target, "MR")[0, [0, 50, 100]].tolist() == [0, 126, 255]


COLORS = np.array([[[250, 10, 20], [1, 2, 3]], [[4, 5, 6], [7, 8, 9]]], np.uint8)


@pytest.mark.parametrize("planar", [0, 1, None])
def test_colors_are_drawn_pixel_by_pixel_and_plane_by_plane(planar: int | None) -> None:
    stored = COLORS.transpose(2, 0, 1) if planar == 1 else COLORS
    facts: dict[str, Any] = {"Rows": 2, "Columns": 2, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    file = dicom(stored.tobytes(), **facts, PlanarConfiguration=planar, BitsAllocated=8, BitsStored=8, HighBit=7)
    assert picture_of(file, "US").tolist() == COLORS.tolist()


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_colors_of_fewer_bits_than_stated_are_not_black(bits: int) -> None:
    stored = COLORS.astype(np.uint16) << (bits - 8)
    file = dicom(stored, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    assert picture_of(file, "US").tolist() == COLORS.tolist()


# --- palettes


TABLES = {"Red": [0, 255], "Green": [0, 128], "Blue": [0, 7]}


def palette(syntax: Any, dtype: str, bits: int, factor: int = 1, first: int = 0) -> io.BytesIO:
    """Return a file of two colors; entries of its palette are stored as `dtype`."""
    lut: dict[str, Any] = {}
    for name, table in TABLES.items():
        lut[f"{name}PaletteColorLookupTableDescriptor"] = [2, first, bits]
        lut[f"{name}PaletteColorLookupTableData"] = (np.array(table) * factor + factor // 15).astype(dtype).tobytes()
    stored = np.array([[first, first + 1]]).astype("i2" if first < 0 else "u2")
    stored = stored.astype(stored.dtype.newbyteorder(">")) if syntax == ExplicitVRBigEndian else stored
    return dicom(stored, syntax, PhotometricInterpretation="PALETTE COLOR", PixelRepresentation=int(first < 0), **lut)


@pytest.mark.parametrize(
    "file",
    [
        palette(pydicom.uid.ExplicitVRLittleEndian, "<u2", 16, 256),
        palette(ImplicitVRLittleEndian, "<u2", 16, 256),
        palette(ExplicitVRBigEndian, ">u2", 16, 256),
        palette(pydicom.uid.ExplicitVRLittleEndian, "<u2", 8),
        palette(ExplicitVRBigEndian, ">u2", 8),
        palette(pydicom.uid.ExplicitVRLittleEndian, "<u2", 16),
        palette(ExplicitVRBigEndian, ">u2", 16),
        palette(pydicom.uid.ExplicitVRLittleEndian, "<u2", 12, 16),
        palette(pydicom.uid.ExplicitVRLittleEndian, "<u2", 16, 4),
        palette(pydicom.uid.ExplicitVRLittleEndian, "u1", 8),
        palette(pydicom.uid.ExplicitVRLittleEndian, "<u2", 16, 256, first=-5),
        palette(ImplicitVRLittleEndian, "<u2", 16, 256, first=-5),
        palette(pydicom.uid.ExplicitVRLittleEndian, "<u2", 16, 256, first=40000),
    ],
    ids=[
        "16 bits", "16 bits, implicit", "16 bits, big endian", "8 bits in words", "8 bits in words, big endian",
        "8 bits that say 16", "8 bits that say 16, big endian", "12 bits", "10 bits that say 16", "8 bits in bytes",
        "from -5", "from -5, implicit", "from 40000",
    ],
)  # fmt: skip
def test_a_palette_gives_its_colors(file: io.BytesIO) -> None:
    assert picture_of(file, "US").tolist() == [[[0, 0, 0], [255, 128, 7]]]


def test_8_bits_in_bytes_of_big_endian_words_are_swapped() -> None:
    file = palette(ExplicitVRBigEndian, "u1", 8)
    whole = pydicom.dcmread(file)
    for name, (dark, bright) in TABLES.items():
        whole[f"{name}PaletteColorLookupTableData"].value = bytes([bright, dark])
        assert whole[f"{name}PaletteColorLookupTableData"].VR == "OW"
    target = io.BytesIO()
    whole.save_as(target)
    assert picture_of(target, "US").tolist() == [[[0, 0, 0], [255, 128, 7]]]


def test_a_palette_of_signed_pixels_may_state_its_first_value_unsigned() -> None:
    whole = pydicom.dcmread(palette(pydicom.uid.ExplicitVRLittleEndian, "<u2", 16, 256, first=-5))
    for name in TABLES:
        tag = whole.data_element(f"{name}PaletteColorLookupTableDescriptor")
        assert tag is not None
        tag.VR, tag.value = "US", [2, 65531, 16]
    target = io.BytesIO()
    whole.save_as(target)
    assert picture_of(target, "US").tolist() == [[[0, 0, 0], [255, 128, 7]]]


@pytest.mark.parametrize(
    ("lut", "why"),
    [
        ({}, "its palette is missing"),
        ({"RedPaletteColorLookupTableData": b"\0\1"}, "its palette has no descriptor"),
        (
            {
                "RedPaletteColorLookupTableDescriptor": [4, 0, 16],
                "RedPaletteColorLookupTableData": b"\0\1",
            },
            "its palette has 1 entries of 4",
        ),
    ],
)
def test_a_broken_palette_is_a_label(lut: dict[str, Any], why: str) -> None:
    with pytest.raises(NotDrawable, match=f"^{why}$"):
        picture_of(dicom(np.zeros((2, 2), np.uint8), PhotometricInterpretation="PALETTE COLOR", **lut), "US")


def test_real_palettes_are_drawn() -> None:
    with (BUNDLED / "examples_palette.dcm").open("rb") as file:
        whole = pydicom.dcmread(file)
        expected = apply_color_lut(whole.pixel_array, whole)
        shades = picture_of(file, "US")
    assert shades.tolist() == (expected >> 8).tolist()


# --- files


@pytest.mark.parametrize("name", ["ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm"])
def test_files_without_a_prefix_are_drawn_or_say_why(name: str) -> None:
    with (BUNDLED / name).open("rb") as file:
        try:
            assert picture_of(file, "OT").max() > 0
        except NotDrawable as e:
            assert str(e) == "it contains no image"


def test_an_image_without_a_prefix_is_drawn() -> None:
    whole = dicom(ramp()).getvalue()
    at = whole.index(b"\x08\0\x16\0")
    assert picture_of(io.BytesIO(whole[at:]), "MR")[0, [1, 50, 99]].tolist() == [0, 128, 255]


def test_no_real_file_becomes_black_or_raises_anything_else() -> None:
    drawn = 0
    for path in sorted(BUNDLED.glob("*.dcm")):
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                phases_of(file)
                shades = picture_of(file, "MR")
            except NotDrawable as e:
                assert len(str(e)) <= 80 and "Error" not in str(e)
                continue
        drawn += 1
        assert shades.max() > 0, path.name
    assert drawn >= 45


def test_a_deflated_file_is_not_inflated_to_find_its_phases() -> None:
    large = b"\x09\0\x01\x10OB\0\0" + (32 << 20).to_bytes(4, "little")
    file = io.BytesIO(PREAMBLE + meta(DEFLATED) + deflated(data_set()[:60] + large + bytes(32 << 20)))
    tracemalloc.start()
    try:
        for draw in (phases_of, lambda f: picture_of(f, "CT")):
            with pytest.raises(NotDrawable, match=r"^no decoder for Deflated Explicit VR Little Endian$"):
                draw(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_phases_that_are_no_number_are_one() -> None:
    number = element(0x00200105, "IS", "abc")
    assert phases_of(io.BytesIO(PREAMBLE + meta() + data_set(after=number))) == 1


# --- decoders of the extra


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        (JPEGLosslessSV1, "JPEG Lossless"),
        (JPEGLSLossless, "JPEG-LS"),
        (JPEGLSNearLossless, "JPEG-LS"),
        (JPEGExtended12Bit, "JPEG Extended"),
    ],
)
def test_without_the_extra_the_label_names_it(syntax: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "jpeg_extra", lambda: False)
    monkeypatch.setattr(pixels, "_decodable", lambda uid: uid == JPEGExtended12Bit)  # by Pillow, if it has 8 bits
    file = dicom(b"\xfe\xff\x00\xe0" + b"\0" * 4, syntax)
    with pytest.raises(NotDrawable, match=rf"^{name}: install nbia-pipeline\[jpeg\]$"):
        picture_of(file, "MR")


@pytest.mark.skipif(not jpeg_extra(), reason="the extra jpeg is not installed")
@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),  # JPEG Lossless
    ],
)
def test_with_the_extra_a_lossless_picture_is_the_same(name: str, same_as: str) -> None:
    with (BUNDLED / name).open("rb") as one, (BUNDLED / same_as).open("rb") as other:
        assert np.array_equal(picture_of(one, "MR"), picture_of(other, "MR"))


@pytest.mark.skipif(not jpeg_extra(), reason="the extra jpeg is not installed")
@pytest.mark.parametrize(
    "name", ["JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "JPGExtended.dcm", "SC_rgb_jls_lossy_line.dcm"]
)
def test_with_the_extra_a_lossy_picture_is_drawn(name: str) -> None:
    with (BUNDLED / name).open("rb") as file:
        shades = picture_of(file, "MR")
    assert shades.min() < 50 and shades.max() > 200


def test_the_sheet_is_drawn_again_when_the_extra_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for there in (False, True):
        monkeypatch.setattr(contact_sheet, "jpeg_extra", lambda there=there: there)
        digests.add(contact_sheet._digest([]))
    assert len(digests) == 2
