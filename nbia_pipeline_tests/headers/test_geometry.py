"""Which series are regular volumes: the same as IDC's own statement says, and what it does not say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbia_pipeline.headers.geometry import SINGLE_FRAME_CLASSES, series_geometry
from nbia_pipeline.schema.headers import INSTANCE_HEADERS, SERIES_GEOMETRY

Rows = list[dict[str, Any]]
CT, MR, PT = SINGLE_FRAME_CLASSES

AXIAL, SAGITTAL, CORONAL = [1.0, 0, 0, 0, 1, 0], [0.0, 1, 0, 0, 0, -1], [1.0, 0, 0, 0, 0, -1]
TURNED = [0.8, 0.6, 0.0, -0.6, 0.8, 0.0]
"""Axial slices, turned in their plane."""
NODDING = [1.0, 0, 0, 0, 0.96, -0.28]
OBLIQUE = [0.36, 0.48, -0.8, -0.8, 0.6, 0.0]
PLANES = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "turned": TURNED, "oblique": OBLIQUE}

# The columns that both have, by their names here; `Origin`, orientation and spacing are IDC's for regular volumes only.
FLAGS = {
    "SingleOrientation": "single_orientation",
    "OrthogonalOrientation": "orthogonal_orientation",
    "UniqueSlicePositions": "unique_slice_positions",
    "ConsistentInPlaneRow": "consistent_in_plane_row",
    "ConsistentInPlaneColumn": "consistent_in_plane_col",
    "ConsistentPixelSpacing": "consistent_pixel_spacing",
    "ConsistentImageDimensions": "consistent_image_dimensions",
    "UniformSliceSpacing": "uniform_slice_spacing",
    "RegularVolume": "regularly_spaced_3d_volume",
}
VALUES = {
    "Origin": "origin_patient",
    "ImageOrientationPatient": "ImageOrientationPatient",
    "SliceSpacing": "slice_spacing_mm",
    "ObliquityDegrees": "obliquity_degrees",
}


# --- series


def stack(
    orientation: list[float], positions: Iterable[float], shift: tuple[float, float, float] = (0, 0, 0), **values: Any
) -> Rows:
    """Return images at some positions along their normal.

    Args:
        orientation: ImageOrientationPatient of all.
        positions: in mm.
        shift: by which all are moved, per mm of their position: as a tilted gantry does.
        values: of all images.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    common = {
        "Collection": "C",
        "Modality": "CT",
        "SOPClassUID": CT,
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "FrameOfReferenceUID": "1.2",
        "Rows": 512,
        "Columns": 256,
        "PixelSpacing": [0.5, 0.75],
        "ImageOrientationPatient": [float(n) for n in orientation],
        "SliceThickness": 2.0,
        **values,
    }
    start = np.array([-120.5, -80.25, 33.0])
    return [
        {**common, "ImagePositionPatient": [float(n) for n in start + at * (normal + shift)], "InstanceNumber": k}
        for k, at in enumerate(positions)
    ]


def evenly(count: int, step: float = 2.5) -> list[float]:
    return [k * step for k in range(count)]


def changed(rows: Rows, at: int, **values: Any) -> Rows:
    """Return images of which one states other values."""
    return [{**row, **values} if k == at else row for k, row in enumerate(rows)]


def moved(rows: Rows, at: int, *by: float) -> Rows:
    """Return images of which one is shifted by some mm along x, y and z."""
    place = [float(a + b) for a, b in zip(rows[at]["ImagePositionPatient"], by, strict=True)]
    return changed(rows, at, ImagePositionPatient=place)


def numbered(series: dict[str, Rows]) -> Rows:
    """Return the images of some series, by their names, with their UIDs."""
    return [
        {**row, "SeriesInstanceUID": name, "SOPInstanceUID": f"{name}.{k}"}
        for name, rows in series.items()
        for k, row in enumerate(rows)
    ]


def geometry(series: dict[str, Rows]) -> dict[str, dict[str, Any]]:
    """Return the rows of series_geometry by SeriesInstanceUID."""
    table = series_geometry(pa.Table.from_pylist(numbered(series), INSTANCE_HEADERS.schema))
    assert table.schema.equals(SERIES_GEOMETRY.schema, check_metadata=True)
    return {row["SeriesInstanceUID"]: row for row in table.to_pylist()}


# --- IDC's statement


def idc_statement() -> str:
    """Return IDC's own statement, from its package, in DuckDB's dialect; the table is called `instances`."""
    sql = resources.files("idc_index_data").joinpath("volume_geometry_index.sql").read_text(encoding="utf-8")
    sql = re.sub(r"#.*", "", sql)
    for name, value in re.findall(r"DECLARE (\w+) FLOAT64 DEFAULT ([\d.]+);", sql):
        sql = re.sub(rf"DECLARE {name} .*;", "", sql)
        sql = re.sub(rf"\b{name}\b", f"{value}::DOUBLE", sql)
    # Numbers of an array: BigQuery selects them from its elements, DuckDB's lists have functions for it.
    sql = re.sub(
        r"SELECT ARRAY_AGG\(SAFE_CAST\(part AS FLOAT64\) ORDER BY index\)\s+"
        r"FROM UNNEST\((\w+)\) part WITH OFFSET index\s+WHERE index BETWEEN (\d) AND (\d)",
        lambda m: f"list_transform({m[1]}[{int(m[2]) + 1}:{int(m[3]) + 1}], lambda part: TRY_CAST(part AS DOUBLE))",
        sql,
    )
    sql = re.sub(r"UNNEST\((\w+)\) (\w+)", r"UNNEST(\1) AS unnested(\2)", sql)
    sql = re.sub(r"\[(?:SAFE_)?OFFSET\((\d)\)\]", lambda m: f"[{int(m[1]) + 1}]", sql)
    sql = re.sub(r"SAFE_CAST\((.*?) AS FLOAT64\)", r"TRY_CAST(\1 AS DOUBLE)", sql)
    # Structures; what has no name in them has that of its column.
    sql = re.sub(
        r"SELECT AS STRUCT(.*?) AS z\n", lambda m: f"SELECT {structure(m[1] + ' AS z')}\n", sql, flags=re.DOTALL
    )
    sql = re.sub(r"STRUCT\((\s+ippX.*?AS iop5)\s+\)", lambda m: structure(m[1]), sql, flags=re.DOTALL)
    sql = re.sub(r"ARRAY_AGG\((.*?)LIMIT 1\s*\)", r"list(\1)", sql, flags=re.DOTALL)
    sql = re.sub(r"`bigquery-public-data[^`]*`", "instances", sql).replace('"%MIP%"', "'%MIP%'")
    return sql.replace("`Rows`", '"Rows"').replace("`Columns`", '"Columns"')


def structure(fields: str) -> str:
    named = (re.fullmatch(r"(.*?)(?: AS (\w+))?", field.strip(), re.DOTALL) for field in fields.split(","))
    return f"struct_pack({', '.join(f'{m[2] or m[1]} := {m[1]}' for m in named if m)})"


IDC = idc_statement()


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("CREATE MACRO SAFE_DIVIDE(a, b) AS CASE WHEN b = 0 THEN NULL ELSE a / b END")
        yield connection


def idc(database: duckdb.DuckDBPyConnection, series: dict[str, Rows]) -> dict[str, dict[str, Any]]:
    """Return what IDC's statement says, by SeriesInstanceUID. Its table has the texts of numbers, and no null lists."""
    lists = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImageType")
    read = pa.Table.from_pylist(numbered(series), INSTANCE_HEADERS.schema).to_pylist()
    texts = [{**row, **{n: [str(value) for value in row[n] or []] for n in lists}} for row in read]
    names = ("SeriesInstanceUID", "SOPInstanceUID", "Modality", "SOPClassUID", "Rows", "Columns")
    types = [(n, INSTANCE_HEADERS.schema.field(n).type) for n in names] + [(n, pa.list_(pa.string())) for n in lists]
    database.register("instances", pa.Table.from_pylist(texts, pa.schema(types)))
    return {row["SeriesInstanceUID"]: row for row in database.sql(IDC).to_arrow_table().to_pylist()}


def assert_the_same(database: duckdb.DuckDBPyConnection, series: dict[str, Rows]) -> None:
    ours, theirs = geometry(series), idc(database, series)
    assert list(ours) == sorted(theirs)
    for name, row in ours.items():
        assert {n: row[n] for n in FLAGS} == {n: theirs[name][idc_name] for n, idc_name in FLAGS.items()}, name
        if row["RegularVolume"]:
            assert {n: row[n] for n in VALUES} == {n: theirs[name][idc_name] for n, idc_name in VALUES.items()}, name


# --- what IDC says too

BELOW, ABOVE = 0.999, 1.001
N = 9
EVEN = stack(AXIAL, evenly(N))

# By its name: images, whether they are a regular volume, and the flags that are not true.
CASES: dict[str, tuple[Rows, bool | None, set[str]]] = {
    **{name: (stack(plane, evenly(N)), True, set()) for name, plane in PLANES.items()},
    "descending": (stack(AXIAL, evenly(N, -2.5)), True, set()),
    "any order": (EVEN[::2] + EVEN[1::2], True, set()),
    "a tenth of a micrometer": (stack(AXIAL, evenly(N, 0.0001)), True, set()),
    "tenth of a millimeter": (stack(AXIAL, evenly(N, 0.1)), True, set()),
    "magnetic resonance": (stack(NODDING, evenly(N), SOPClassUID=MR, Modality="MR"), True, set()),
    "positrons": (stack(AXIAL, evenly(N), SOPClassUID=PT, Modality="PT"), True, set()),
    "missing slice": (EVEN[:4] + EVEN[5:], False, {"UniformSliceSpacing"}),
    "two phases": (EVEN + EVEN, False, {"UniqueSlicePositions", "UniformSliceSpacing"}),
    "duplicate": ([*EVEN, EVEN[3]], False, {"UniqueSlicePositions", "UniformSliceSpacing"}),
    "all in one place": ([EVEN[0]] * 3, False, {"UniqueSlicePositions", "UniformSliceSpacing"}),
    "one slice": (EVEN[:1], None, {"UniformSliceSpacing"}),
    "two slices": (EVEN[:2], True, set()),
    "gantry tilt": (
        stack(NODDING, evenly(N), shift=(0, -0.28, 0.28**2 / 0.96)),
        False,
        {"ConsistentInPlaneColumn"},
    ),
    "two orientations": (
        changed(EVEN, 4, ImageOrientationPatient=[1.0, 0, 0, 0, 1, 1e-6]),
        False,
        {"SingleOrientation"},
    ),
    "no unit vectors": (stack([1.0, 0, 0, 0, 1.02, 0], evenly(N)), False, {"OrthogonalOrientation"}),
    "almost unit vectors": (stack([1.0, 0, 0, 0, 1 + 0.01 * BELOW, 0], evenly(N)), True, set()),
    "hardly unit vectors": (stack([1.0, 0, 0, 0, 1 + 0.01 * ABOVE, 0], evenly(N)), False, {"OrthogonalOrientation"}),
    "uneven below": (moved(EVEN, 4, 0, 0, 0.025 * BELOW), True, set()),
    "uneven above": (moved(EVEN, 4, 0, 0, 0.025 * ABOVE), False, {"UniformSliceSpacing"}),
    "row below": (moved(EVEN, 4, 0.1 * BELOW, 0, 0), True, set()),
    "row above": (moved(EVEN, 4, 0.1 * ABOVE, 0, 0), False, {"ConsistentInPlaneRow"}),
    "column below": (moved(EVEN, 4, 0, -0.1 * BELOW, 0), True, set()),
    "column above": (moved(EVEN, 4, 0, -0.1 * ABOVE, 0), False, {"ConsistentInPlaneColumn"}),
    "pixel spacing": (changed(EVEN, 4, PixelSpacing=[0.5, 0.7501]), False, {"ConsistentPixelSpacing"}),
    "no pixel spacing in one": (changed(EVEN, 4, PixelSpacing=None), False, {"ConsistentPixelSpacing"}),
    "no pixel spacing": (stack(AXIAL, evenly(N), PixelSpacing=None), True, set()),
    "rows": (changed(EVEN, 4, Rows=256), False, {"ConsistentImageDimensions"}),
    "columns": (changed(EVEN, 4, Columns=512), False, {"ConsistentImageDimensions"}),
    "no rows in one": (changed(EVEN, 4, Rows=None), True, set()),
    "no rows": (stack(AXIAL, evenly(N), Rows=None), False, {"ConsistentImageDimensions"}),
    "no position in one": (
        changed(EVEN, 4, ImagePositionPatient=None),
        False,
        {"UniqueSlicePositions", "UniformSliceSpacing"},
    ),
    "position of two": (
        changed(EVEN, 4, ImagePositionPatient=[1.0, 2.0]),
        False,
        {"UniqueSlicePositions", "UniformSliceSpacing"},
    ),
    "no position": (
        [{**row, "ImagePositionPatient": None} for row in EVEN],
        False,
        {"UniqueSlicePositions", "UniformSliceSpacing", "ConsistentInPlaneRow", "ConsistentInPlaneColumn"},
    ),
    "no orientation": (
        [{**row, "ImageOrientationPatient": []} for row in EVEN],
        False,
        {*FLAGS} - {"SingleOrientation", "ConsistentPixelSpacing", "ConsistentImageDimensions"},
    ),
    "orientation of five": (
        [{**row, "ImageOrientationPatient": [1.0, 0, 0, 0, 1]} for row in EVEN],
        False,
        {*FLAGS} - {"SingleOrientation", "ConsistentInPlaneRow", "ConsistentPixelSpacing", "ConsistentImageDimensions"},
    ),
}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    return geometry({name: images for name, (images, _, _) in CASES.items()})


@pytest.mark.parametrize("name", CASES)
def test_the_flags_of_a_series(rows: dict[str, dict[str, Any]], name: str) -> None:
    _, regular, without = CASES[name]
    assert rows[name]["RegularVolume"] is regular
    assert {flag for flag in FLAGS if rows[name][flag] is not True} - {"RegularVolume"} == without - {"RegularVolume"}


def test_idc_says_the_same(database: duckdb.DuckDBPyConnection) -> None:
    assert_the_same(database, {name: images for name, (images, _, _) in CASES.items()})


@st.composite
def any_series(draw: st.DrawFn) -> Rows:
    """Draw a series that is more or less a stack, with errors of sizes below and above the tolerances."""
    plane = draw(st.sampled_from([*PLANES.values(), NODDING]))
    step = draw(st.sampled_from([0.1, 0.7, 2.5, -3.27]))
    images = stack(plane, evenly(draw(st.integers(1, 7)), step), shift=(0, draw(st.sampled_from([0, 0, 0.02])), 0))
    images *= draw(st.sampled_from([1, 1, 1, 2]))
    for at in sorted(draw(st.sets(st.integers(0, len(images) - 1), max_size=3)), reverse=True):
        size = draw(st.floats(-0.2, 0.2)) * draw(st.sampled_from([0.001, abs(step) / 10, 1]))
        match draw(st.sampled_from(["moved", "moved", "turned", "value", "value", "left out"])):
            case "moved":
                images = moved(images, at, *(size * draw(st.sampled_from([0, 0, 1])) for _ in range(3)))
            case "turned":
                images = changed(images, at, ImageOrientationPatient=[*plane[:5], plane[5] + abs(size)])
            case "value":
                name = draw(st.sampled_from(list(ODD)))
                images = changed(images, at, **{name: draw(st.sampled_from(ODD[name]))})
            case "left out":
                images = images[:at] + images[at + 1 :]
    return images


ODD: dict[str, list[Any]] = {
    "ImagePositionPatient": [None, [], [1.0], [1.0, 2.0, 3.0, 4.0]],
    "ImageOrientationPatient": [None, [], AXIAL[:5], [0.0] * 6],
    "PixelSpacing": [None, [0.5], [0.5, 0.5]],
    "Rows": [None, 511],
    "ImageType": [None, ["ORIGINAL", "PRIMARY", "LOCALIZER"], ["DERIVED", "X MIP Y"], ["mip"]],
    "SOPClassUID": [MR, "1.2.840.10008.5.1.4.1.1.7", None],
}


@pytest.mark.parametrize("examples", [20, 300])
def test_idc_says_the_same_of_any_series(
    database: duckdb.DuckDBPyConnection, examples: int, request: pytest.FixtureRequest
) -> None:
    if examples > 20 and not request.config.getoption("--every-moment"):
        pytest.skip("make test-headers draws so many")

    @settings(max_examples=examples)
    @given(st.lists(any_series(), min_size=1, max_size=8))
    def check(drawn: list[Rows]) -> None:
        assert_the_same(database, {f"{k}": images for k, images in enumerate(drawn)})

    check()


# --- what it does not say


def test_what_places_a_volume(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["oblique"]
    known = {name: value for name, value in row.items() if name not in FLAGS and name not in VALUES}
    assert known == {
        "SeriesInstanceUID": "oblique",
        "Collection": "C",
        "Modality": "CT",
        "FrameOfReferenceUID": "1.2",
        "Plane": "oblique",
        "Instances": 9,
        "Positions": 9,
        "Stacks": 1,
        "MissingSlices": 0,
        "Rows": 512,
        "Columns": 256,
        "PixelSpacing": [0.5, 0.75],
        "SliceThickness": 2.0,
        "Extent": pytest.approx(9 * 2.5),
    }
    assert row["Origin"] == [-120.5, -80.25, 33.0]
    assert (row["ImageOrientationPatient"], row["SliceSpacing"]) == (OBLIQUE, pytest.approx(2.5))
    assert row["ObliquityDegrees"] == 50.21  # the arc cosine of 0.64
    assert rows["descending"]["Origin"] == pytest.approx([-120.5, -80.25, 33.0 - 8 * 2.5])


def test_planes_are_named_by_their_normal(rows: dict[str, dict[str, Any]]) -> None:
    names = ("axial", "turned", "sagittal", "coronal", "gantry tilt", "no orientation", "two orientations")
    found = {name: (rows[name]["Plane"], rows[name]["ObliquityDegrees"]) for name in names}
    assert found == {
        "axial": ("axial", 0),
        "turned": ("axial", 0),
        "sagittal": ("sagittal", 0),
        "coronal": ("coronal", 0),
        "gantry tilt": ("axial", 16.26),
        "no orientation": (None, None),
        "two orientations": ("axial", 0),
    }


STACKS: dict[str, tuple[Rows, tuple[int | None, int | None, int | None, float | None]]] = {
    "one": (EVEN, (9, 1, 0, 2.5)),
    "two phases": (EVEN + EVEN, (9, 2, 0, 2.5)),
    "two phases, each rounded": (EVEN + stack(AXIAL, [at + 0.0009 for at in evenly(N)]), (9, 2, 0, 2.5)),
    "duplicate, rounded": (EVEN + stack(AXIAL, [10.02]), (9, None, 0, 2.5)),
    "three without a slice": ((EVEN[:4] + EVEN[5:]) * 3, (8, 3, 1, 2.5)),
    "without two and three": (stack(OBLIQUE, np.delete(evenly(20), [4, 5, 11, 12, 13])), (15, 1, 5, 2.5)),
    "duplicate": ([*EVEN, EVEN[3]], (9, None, 0, 2.5)),
    "one position": ([EVEN[0]] * 3, (1, 3, None, None)),
    "uneven": (stack(AXIAL, [0, 2, 4, 7, 9]), (5, 1, None, 2)),
    "half a slice": (stack(AXIAL, [0, 2, 4, 5, 7]), (5, 1, None, 2)),
    "shifted, without a slice": (moved(EVEN[:4] + EVEN[5:], 2, 1, 0, 0), (8, 1, None, 2.5)),
    "tilted gantry": (CASES["gantry tilt"][0], (9, 1, None, 2.5)),
    "directions computed anew": (CASES["two orientations"][0], (9, 1, 0, 2.5)),
    "two planes": (EVEN + stack(CORONAL, evenly(N)), (None, None, None, None)),
    "one without a position": (changed(EVEN, 8, ImagePositionPatient=None), (8, None, 0, 2.5)),
    "far apart": (moved(EVEN, 8, 0, 0, 1e300), (9, 1, None, 2.5)),
    "no position": (CASES["no position"][0], (None, None, None, None)),
}


def test_positions_stacks_and_missing_slices() -> None:
    rows = geometry({name: images for name, (images, _) in STACKS.items()})
    names = ("Positions", "Stacks", "MissingSlices", "SliceSpacing")
    found = {name: tuple(rows[name][column] for column in names) for name in STACKS}
    expected = {
        name: (*counts, None if spacing is None else pytest.approx(spacing, rel=1e-3))
        for name, (_, (*counts, spacing)) in STACKS.items()
    }
    assert found == expected


def test_a_value_that_images_do_not_share_is_null() -> None:
    other = {"FrameOfReferenceUID": "1.3", "Rows": 3, "Columns": 4, "PixelSpacing": [1.0, 2.0], "SliceThickness": 1.0}
    (row,) = geometry({"a": changed(EVEN, 5, **other)}).values()
    assert {name: row[name] for name in other} == dict.fromkeys(other)
    (row,) = geometry({"a": changed(EVEN, 5, **dict.fromkeys(other))}).values()
    assert {name: row[name] for name in other} == {**{n: EVEN[0][n] for n in other}, "PixelSpacing": None}


def test_only_series_of_single_frame_ct_mr_and_pet_images_have_a_row() -> None:
    series = {
        "ct": EVEN,
        "one frame": stack(AXIAL, evenly(3), NumberOfFrames=1),
        "many frames": stack(AXIAL, evenly(3), NumberOfFrames=2),
        "radiograph": stack(AXIAL, evenly(3), Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.1"),
        "localizer": changed(EVEN, 3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        "projection": changed(EVEN, 3, ImageType=["DERIVED", "SECONDARY", "MIP_COR"]),
    }
    assert list(geometry(series)) == ["ct", "one frame"]
    assert geometry({}) == {}
    assert geometry({"many frames": series["many frames"]}) == {}


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), None, 1e308])
@pytest.mark.parametrize("name", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_numbers_that_are_none_make_no_volume_and_no_error(name: str, odd: float | None) -> None:
    (row,) = geometry({"a": changed(EVEN, 3, **{name: [odd, *EVEN[3][name][1:]]})}).values()
    assert row["RegularVolume"] is False
    assert row["Instances"] == 9


@given(st.permutations(range(N)))
@settings(max_examples=5)
def test_the_order_of_the_rows_does_not_matter(order: list[int]) -> None:
    images = numbered({"a": EVEN, "b": STACKS["without two and three"][0]})
    shuffled = [images[at] for at in order] + images[N:][::-1]
    tables = (pa.Table.from_pylist(rows, INSTANCE_HEADERS.schema) for rows in (images, shuffled))
    assert series_geometry(next(tables)).equals(series_geometry(next(tables)))
