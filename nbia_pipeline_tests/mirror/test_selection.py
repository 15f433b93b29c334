"""Which series are wanted, and the files that name them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline.embedded.demo.catalog import CART
from nbia_pipeline.mirror.selection import Selection, SelectionError, read_cart, read_manifest, with_lists
from nbia_pipeline.schema.tables import SERIES
from nbia_pipeline_tests.conftest import TestArchive

HEAD = """downloadServerUrl=https://public.example.org/nbia-download/servlet/DownloadServlet
includeAnnotation=true
noOfrRetry=4
databasketId=manifest-1700000000000.tcia
manifestVersion=3.0
ListOfSeriesToDownload=
"""

TEXTS = st.sampled_from(["CT", "ct ", "MR", "mr", "ABDOMEN", "Abdomen", "", " ", None])
IDS = st.sampled_from(["P1", "p1", "P2", None])
ROW = st.fixed_dictionaries(
    {"Modality": TEXTS, "BodyPartExamined": TEXTS, "PatientID": IDS, "SeriesInstanceUID": st.sampled_from("abcd")}
)
CHOICE = st.lists(st.sampled_from(["CT", " ct", "MR", "abdomen", ""]), max_size=2).map(tuple)


def folded(text: str | None) -> str | None:
    return None if text is None else text.strip().upper()


def wanted(row: dict[str, str | None], selection: Selection) -> bool:
    """Say in plain words what a selection means."""
    texts = [(row["Modality"], selection.modalities), (row["BodyPartExamined"], selection.body_parts)]
    names = [(row["PatientID"], selection.patients), (row["SeriesInstanceUID"], selection.series)]
    return all(not values or folded(one) in {folded(v) for v in values} for one, values in texts) and all(
        not values or one in values for one, values in names
    )


@given(
    st.lists(ROW, max_size=12),
    CHOICE,
    CHOICE,
    st.lists(st.sampled_from(["P1", "P3"]), max_size=2).map(tuple),
    st.lists(st.sampled_from("abz"), max_size=2).map(tuple),
)
def test_a_selection_takes_what_holds_in_every_field(
    rows: list[dict[str, str | None]],
    modalities: tuple[str, ...],
    body_parts: tuple[str, ...],
    patients: tuple[str, ...],
    series: tuple[str, ...],
) -> None:
    selection = Selection(modalities, body_parts, patients, series)
    names = ["Modality", "BodyPartExamined", "PatientID", "SeriesInstanceUID"]
    taken = selection.apply(pa.Table.from_pylist(rows, schema=SERIES.schema)).select(names).to_pylist()
    assert taken == [row for row in rows if wanted(row, selection)]


def test_case_and_blanks_count_where_they_mean_something() -> None:
    rows = [
        {"Modality": "CT", "BodyPartExamined": "chest ", "PatientID": p, "SeriesInstanceUID": p} for p in ("a", "A")
    ]
    table = pa.Table.from_pylist(rows, schema=SERIES.schema)
    assert Selection(modalities=("ct",), body_parts=(" CHEST",)).apply(table).num_rows == 2
    assert Selection(patients=("a",)).apply(table)["SeriesInstanceUID"].to_pylist() == ["a"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_manifest_is_read_whatever_wrote_it(tmp_path: Path, end: str, mark: str) -> None:
    file = tmp_path / "a.tcia"
    text = mark + HEAD + "1.2.3\n\n 1.2.4 \n1.2.3\n\n"
    file.write_bytes(text.replace("\n", end).encode())
    assert read_manifest(file) == ["1.2.3", "1.2.4"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"is not a \.tcia manifest: it has no line 'ListOfSeriesToDownload='"),
        (b"<!DOCTYPE html><html>Sign in</html>", r"is not a \.tcia manifest: it has no line"),
        (b"1.2.3\n1.2.4\n", r"is not a \.tcia manifest: it has no line"),
        (HEAD.encode(), "names no series"),
        (HEAD.encode() + b"\n \n", "names no series"),
        (HEAD.encode() + b"1.2.3\n<html>\n", r"is not a \.tcia manifest: '<html>' is not a SeriesInstanceUID"),
        (HEAD.encode() + b"1." * 33 + b"1", "is not a SeriesInstanceUID"),
        (b"\xff\xfe\x00PK", r"is not a \.tcia manifest: it is not a text"),
    ],
)
def test_what_is_no_manifest_is_an_error_that_names_the_file(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "wrong.tcia"
    file.write_bytes(content)
    with pytest.raises(SelectionError, match=rf"wrong\.tcia.* ?{problem}"):
        read_manifest(file)


def test_a_manifest_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"cannot read the manifest .*none\.tcia \(No such file"):
        read_manifest(tmp_path / "none.tcia")


UID = st.lists(st.integers(0, 99999).map(str), min_size=1, max_size=7).map(".".join)


@given(st.lists(UID, min_size=1, max_size=20, unique=True))
def test_every_series_of_a_manifest_is_read_in_its_order(uids: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.tcia"
        file.write_text(HEAD + "\n".join(uids))
        assert read_manifest(file) == uids


def test_a_cart_and_a_manifest_add_to_the_series_that_are_named(archive: TestArchive, tmp_path: Path) -> None:
    file = tmp_path / "a.tcia"
    file.write_text(HEAD + "1.2.3\n7.7\n")
    with archive.client() as client:
        uids = read_cart(client, CART.lower())
        assert len(uids) == 4, "the first series of every collection that the guest sees"
        both = with_lists(Selection(series=("7.7",)), manifest=file, cart=CART, client=client)
    assert both.series == ("7.7", "1.2.3", *uids)


def test_a_cart_without_series_is_an_error_not_everything(archive: TestArchive) -> None:
    with archive.client() as client, pytest.raises(SelectionError, match="no series in a shared cart 'nobodys'"):
        with_lists(Selection(), cart="nobodys", client=client)
