"""The contact sheet: which series, which slice, where it lies, and when it is drawn again."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from nbia_pipeline.embedded.catalog.model import VISIBLE, Catalog
from nbia_pipeline.embedded.demo.catalog import demo_plans
from nbia_pipeline.embedded.phantoms.dicom_files import CT_INTERCEPT, image_pixels
from nbia_pipeline.lake import Lake, parquet
from nbia_pipeline.lake.layout import contact_sheet_path, instance_name, series_path
from nbia_pipeline.preview import contact_sheet as drawing
from nbia_pipeline.preview.choose import MOST, Chosen, choose
from nbia_pipeline.preview.contact_sheet import contact_sheet, middle_of
from nbia_pipeline.preview.pixels import phases_of, picture_of
from nbia_pipeline.preview.sheet import (
    EDGE,
    GAP,
    INLINE_CHARACTERS,
    LINE,
    LINES,
    PLATE,
    TITLE,
    Tile,
    as_png,
    digest_in,
    draw_sheet,
    fitted,
    inline_markdown,
    label_of,
    plain,
)
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES

CT_COLLECTION = "TCGA-DEMO"


# --- which slice


@pytest.mark.parametrize(
    ("files", "phases", "middle"), [(1, 1, 0), (2, 1, 1), (5, 1, 2), (28, 1, 14), (28, 2, 21), (30, 3, 15)]
)
def test_the_middle_is_that_of_a_phase(files: int, phases: int, middle: int) -> None:
    assert middle_of([str(n) for n in range(files)], phases) == str(middle)


# --- which series


def tables(rows: list[dict[str, Any]]) -> tuple[pa.Table, pa.Table]:
    """Return receipts and series of rows that name what matters."""

    def table(of: Table, more: dict[str, Any]) -> pa.Table:
        full = [{**dict.fromkeys(of.schema.names), **more, **row} for row in rows]
        return pa.Table.from_pylist([{n: r[n] for n in of.schema.names} for r in full], schema=of.schema)

    return table(IMAGE_SERIES, {"Status": "complete", "Bytes": 10, "ImageCount": 1, "SeriesMD5": "m"}), table(
        SERIES, {}
    )


def listed(number: int, modality: str, patient: str | None = None) -> dict[str, Any]:
    return {
        "SeriesInstanceUID": f"1.{number}",
        "StudyInstanceUID": f"2.{number}",
        "PatientID": patient or f"P{number}",
        "Modality": modality,
    }


def modalities_of(chosen: list[Chosen]) -> dict[str, int]:
    found = [c.Modality or "" for c in chosen]
    return {m: found.count(m) for m in sorted(set(found))}


def test_every_modality_has_its_turn() -> None:
    rows = [listed(n, "CT") for n in range(500)] + [listed(n + 500, "MR") for n in range(3)]
    assert modalities_of(choose(*tables(rows))) == {"CT": 21, "MR": 3}


def test_labels_take_few_places_while_there_are_images() -> None:
    rows = [listed(n, "CT") for n in range(50)] + [listed(n + 50, "SEG") for n in range(50)]
    assert modalities_of(choose(*tables(rows))) == {"CT": 20, "SEG": 4}
    assert modalities_of(choose(*tables(rows[45:]))) == {"CT": 5, "SEG": 19}
    assert modalities_of(choose(*tables(rows[50:]))) == {"SEG": 24}


def test_every_patient_has_a_turn_before_one_has_two() -> None:
    rows = [listed(n, "CT", "many") for n in range(200)] + [listed(n + 200, "CT", f"one{n}") for n in range(20)]
    chosen = choose(*tables(rows))
    assert len({c.PatientID for c in chosen}) == 21
    assert len(chosen) == MOST


def test_the_choice_is_that_of_the_content_not_of_its_order() -> None:
    rows = [listed(n, m) for n, m in enumerate(["CT", "MR", "PT", "SEG"] * 40)]
    assert choose(*tables(rows)) == choose(*tables(rows[::-1]))


def test_only_complete_series_are_chosen() -> None:
    receipts, series = tables([listed(n, "CT") for n in range(4)])
    status = pa.array(["pending", "complete", "quarantined", "withdrawn"])
    receipts = receipts.set_column(receipts.schema.get_field_index("Status"), "Status", status)
    assert [c.SeriesInstanceUID for c in choose(receipts, series)] == ["1.1"]


def test_a_complete_series_that_is_no_longer_listed_is_still_shown() -> None:
    receipts, series = tables([listed(1, "CT")])
    (one,) = choose(receipts, series.slice(0, 0))
    assert (one.SeriesInstanceUID, one.Modality) == ("1.1", None)


# --- the sheet


def chosen_one(**facts: Any) -> Chosen:
    return Chosen(**{**vars(Chosen("1.1", "m", "CT", "P-1", "Thorax", 18, 621_700)), **facts})


def test_the_label_says_what_it_is() -> None:
    assert label_of(chosen_one()) == ("CT  P-1", "Thorax", "18 files, 621.7 kB")
    assert label_of(chosen_one(Modality=None, SeriesDescription=None, ImageCount=1))[:2] == (
        "?  P-1",
        "(no description)",
    )


def test_labels_are_in_letters_that_the_font_has() -> None:
    assert plain("t1 koronar über – Ångström\n日本") == "t1 koronar uber - Angstrom ??"
    assert fitted("x" * 500, 100, 12).endswith("...")


def test_a_sheet_has_a_place_for_every_tile() -> None:
    picture = np.full((10, 10), 255, np.uint8)
    sheet = draw_sheet("A collection", [Tile(chosen_one(), picture)] * 7 + [Tile(chosen_one(Modality="SEG"), note="x")])
    assert sheet.size == (GAP + 6 * (EDGE + GAP), TITLE + 2 * (EDGE + LINES * LINE + 2 * GAP))
    assert sheet.getpixel(centre(5)) == (255, 255, 255)
    assert sheet.getpixel(centre(6)) == (255, 255, 255)
    assert sheet.getpixel(centre(7)) == PLATE


def centre(tile: int) -> tuple[int, int]:
    """Return a point near the middle of a tile, off the text of a label."""
    row, column = divmod(tile, 6)
    return GAP + column * (EDGE + GAP) + EDGE // 2, TITLE + row * (EDGE + LINES * LINE + 2 * GAP) + EDGE // 2 + 20


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (64, 64), (3, 7, 3)])
def test_images_of_any_shape_fit_their_tile(shape: tuple[int, ...]) -> None:
    sheet = draw_sheet("x", [Tile(chosen_one(), np.full(shape, 200, np.uint8))])
    assert sheet.size[0] == 2 * GAP + EDGE


def test_the_inline_picture_stays_small_even_for_noise() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (24, EDGE, EDGE), np.uint8)
    png = as_png(draw_sheet("Lung [1] (2)", [Tile(chosen_one(), tile) for tile in noise]), "d")
    text = inline_markdown(png, "Lung [1] (2)")
    assert text is not None
    assert len(text) <= INLINE_CHARACTERS
    assert text.startswith("![Lung  1   2 ](data:image/jpeg;base64,")
    Image.open(io.BytesIO(base64.b64decode(text.partition("base64,")[2][:-1]))).verify()


def test_a_file_that_is_no_picture_has_no_digest() -> None:
    png = as_png(draw_sheet("x", []), "abc")
    assert digest_in(png) == "abc"
    assert digest_in(png[:20]) is None
    assert digest_in(b"") is None


# --- with the phantoms in a lake


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory, demo: Catalog) -> Iterator[Lake]:
    """A lake with the images of the demo archive, written without fetching them."""
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    for collection in (CT_COLLECTION, "QIN_Breast.v2", "HeadNeckMix"):
        fill(lake, demo, collection)
    yield lake


def fill(lake: Lake, demo: Catalog, collection: str) -> None:
    rows = [r for r in demo.series.to_pylist() if (r["Collection"], r["Visibility"]) == (collection, VISIBLE)]
    instances = []
    store = demo.images
    assert store is not None
    for row in rows:
        row.update(Status="complete", Bytes=row["FileSize"], SeriesMD5="m")
        folder = series_path(collection, row["PatientID"], row["StudyInstanceUID"], row["SeriesInstanceUID"])
        for one in store.instances(row["SeriesInstanceUID"]):
            path = f"{folder}/{instance_name(one.sop_instance_uid)}"
            lake.put_bytes(path, store.read(row["SeriesInstanceUID"], one.sop_instance_uid))
            instances.append(
                {
                    "SOPInstanceUID": one.sop_instance_uid,
                    "SeriesInstanceUID": row["SeriesInstanceUID"],
                    "Collection": collection,
                    "InstanceNumber": one.instance_number,
                    "Path": path,
                }
            )
    for table, held in ((SERIES, rows), (IMAGE_SERIES, rows), (INSTANCES, instances)):
        full = [{name: r.get(name) for name in table.schema.names} for r in held]
        lake.write_table(table, pa.Table.from_pylist(full, schema=table.schema), collection)


def sheet_of(lake: Lake, collection: str, **changes: Any) -> drawing.ContactSheet:
    receipts, series = (lake.read_table(t, collection) for t in (IMAGE_SERIES, SERIES))
    sheet = contact_sheet(lake, collection, changes.get("receipts", receipts), changes.get("series", series))
    assert sheet is not None
    return sheet


def test_the_sheet_of_the_demo_shows_its_series(phantoms: Lake) -> None:
    sheet = sheet_of(phantoms, CT_COLLECTION)
    assert (sheet.series, sheet.undrawn) == (9, {})
    stored = Path(phantoms.uri) / contact_sheet_path(CT_COLLECTION)
    assert stored.read_bytes() == sheet.png
    picture = Image.open(stored)
    chosen = choose(*(phantoms.read_table(t, CT_COLLECTION) for t in (IMAGE_SERIES, SERIES)))
    assert [c.Modality for c in chosen] == ["CT", "SEG", "CT", "PT", "SEG", "CT", "PT", "CT", "MR"]
    for place, one in enumerate(chosen):
        plate = picture.getpixel(centre(place)) == PLATE
        assert plate == (one.Modality == "SEG"), one


@pytest.mark.parametrize(
    ("description", "level", "width"),
    [("Planning CT, mask", 40, 400), ("Thorax nativ 5,0 mm", -600, 1500)],
    ids=["head: soft tissue", "chest: lungs"],
)
def test_the_tile_is_the_middle_slice_in_its_window(
    phantoms: Lake, description: str, level: float, width: float
) -> None:
    plan = next(p for p in demo_plans() if p.row["SeriesDescription"] == description)
    one = chosen_one(SeriesInstanceUID=plan.uid)
    paths = drawing.files_in_order(phantoms, str(plan.row["Collection"]), [one])[plan.uid]
    with phantoms.open(middle_of(paths)) as file:
        shades = picture_of(file, "CT")
    stored = np.frombuffer(image_pixels(plan, 9), "<u2").reshape(128, 128).astype(float)
    expected = np.clip((stored + CT_INTERCEPT - (level - width / 2)) / width, 0, 1) * 255
    assert np.abs(shades - expected).max() <= 1
    assert 0 < shades[64, 64] < 256
    assert len(np.unique(shades)) > 30


def test_only_the_rows_of_the_chosen_series_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 3)
    rows = [
        {"SOPInstanceUID": f"{s}.{i}", "SeriesInstanceUID": f"1.{s}", "InstanceNumber": i, "Path": f"{s}/{i}"}
        for s in range(1, 6)
        for i in (1, 2)
    ]
    full = [{**dict.fromkeys(INSTANCES.schema.names), "Collection": "C", **r} for r in rows]
    lake = Lake(str(tmp_path))
    lake.write_table(INSTANCES, pa.Table.from_pylist(full, schema=INSTANCES.schema), "C")
    found = drawing.files_in_order(lake, "C", [chosen_one(SeriesInstanceUID=uid) for uid in ("1.2", "1.5", "9")])
    assert found == {"1.2": ["2/1", "2/2"], "1.5": ["5/1", "5/2"]}
    assert drawing.files_in_order(lake, "C", [chosen_one(SeriesInstanceUID="0")]) == {}
    assert drawing.files_in_order(lake, "never written", [chosen_one()]) == {}


def test_dynamic_series_are_shown_in_the_middle_of_a_phase(phantoms: Lake) -> None:
    plan = next(p for p in demo_plans() if len(p.contrasts) == 2)
    paths = drawing.files_in_order(phantoms, "QIN_Breast.v2", [chosen_one(SeriesInstanceUID=plan.uid)])[plan.uid]
    with phantoms.open(paths[0]) as file:
        assert phases_of(file) == 2
    assert middle_of(paths, 2).endswith(instance_name(plan.sop_instance(21)))


def test_the_sheet_is_drawn_again_only_if_it_would_change(phantoms: Lake) -> None:
    first = sheet_of(phantoms, CT_COLLECTION)
    again = sheet_of(phantoms, CT_COLLECTION)
    assert not again.drawn
    assert again.png == first.png
    receipts = phantoms.read_table(IMAGE_SERIES, CT_COLLECTION)
    digests = pa.array(["other", *["m"] * (receipts.num_rows - 1)])
    revised = receipts.set_column(receipts.schema.get_field_index("SeriesMD5"), "SeriesMD5", digests)
    assert sheet_of(phantoms, CT_COLLECTION, receipts=revised).drawn


def test_two_drawings_of_the_same_are_the_same_file(phantoms: Lake) -> None:
    first = sheet_of(phantoms, "HeadNeckMix")
    phantoms.remove(first.path)
    second = sheet_of(phantoms, "HeadNeckMix")
    assert second.drawn
    assert second.png == first.png


def test_a_series_that_cannot_be_read_is_a_tile_that_says_so(phantoms: Lake) -> None:
    receipts, series = (phantoms.read_table(t, "QIN_Breast.v2") for t in (IMAGE_SERIES, SERIES))
    images = [c for c in choose(receipts, series) if c.label_only is None]
    paths = drawing.files_in_order(phantoms, "QIN_Breast.v2", images)
    lost, broken = images[0].SeriesInstanceUID, images[3].SeriesInstanceUID
    phantoms.remove(middle_of(paths[lost]))
    phantoms.put_bytes(middle_of(paths[broken]), b"no DICOM file")
    phantoms.remove(contact_sheet_path("QIN_Breast.v2"))
    sheet = sheet_of(phantoms, "QIN_Breast.v2")
    assert set(sheet.undrawn) == {lost, broken}
    assert "cannot read" in sheet.undrawn[lost]
    assert sheet.undrawn[broken] == "not drawn: it is not DICOM"


def test_a_collection_without_images_has_no_sheet(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    empty = [t.schema.empty_table() for t in (IMAGE_SERIES, SERIES)]
    assert contact_sheet(lake, "Empty", empty[0], empty[1]) is None
    assert not (tmp_path / "previews").exists()


def test_a_lake_on_an_object_store_has_one_too(demo: Catalog) -> None:
    lake = Lake("memory://contact-sheet-test/lake")
    fill(lake, demo, "HeadNeckMix")
    sheet = sheet_of(lake, "HeadNeckMix")
    assert (sheet.series, sheet.undrawn) == (21, {})
    assert not sheet_of(lake, "HeadNeckMix").drawn
