"""Which series are wanted, and the files that name them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline.embedded.demo.catalog import CART
from nbia_pipeline.mirror.selection import Selection, SelectionError, read_cart, read_manifest, with_lists
from nbia_pipeline.schema.tables import SERIES
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.manifests import HEAD

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
    table: Any = selection.apply(pa.Table.from_pylist(rows, schema=SERIES.schema))
    taken = table.select(names).to_pylist()
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
        (b"LIDC-IDRI-0001\n1.2.4\n", r"it has no line .*, and 'LIDC-IDRI-0001' is not a SeriesInstanceUID \(line 1\)"),
        (b"Please sign in\n", r"it has no line .*, and 'Please sign in' is not a SeriesInstanceUID \(line 1\)"),
        (HEAD.encode(), "names no series"),
        (HEAD.encode() + b"\n \n", "names no series"),
        (HEAD.encode() + b"1.2.3\n<html>\n", r"is not a \.tcia manifest: '<html>' is not a SeriesInstanceUID"),
        (HEAD.encode() + b"1." * 33 + b"1", "is not a SeriesInstanceUID"),
        (HEAD.encode() + b"Series ID\n", "names no series"),
        (HEAD.encode() + b"not a uid\n", r"'not a uid' is not a SeriesInstanceUID \(line 7\)"),
        (HEAD.encode() + b"1.2.3\nnot a uid\n", r"'not' is not a SeriesInstanceUID \(line 8\)"),
        (HEAD.encode() + b"Series ID\n1.2.x.3\n1.2.4\n", r"'1\.2\.x\.3' is not a SeriesInstanceUID \(line 8\)"),
        (HEAD.encode() + b"1.2.3,7\n", r"'7' is not a SeriesInstanceUID \(line 7\)"),
        (HEAD.encode() + b"1.2.3\n\0\0\0\0", "it is not a text"),
        (b"Series UID,Modality\n1.2.3,CT\n,MR\n", r"',MR' is not a SeriesInstanceUID \(line 3\)"),
        (b"Modality,Series UID\nCT,1.2.3\nMR\n", r"'MR' is not a SeriesInstanceUID \(line 3\)"),
        (b"Series UID,Modality\n1.2.3,CT\n1.3E+22,MR\n", r"'1\.3E\+22' is not a SeriesInstanceUID \(line 3\)"),
        (b'Series UID,Note\n1.2.3,"open\n1.2.4,x\n', r"its table cannot be read \(unexpected end of data\): check its"),
        (b"Series UID,Modality\n", "names no series"),
        (b"\xff\xfe\x00PK", r"is not a \.tcia manifest: it is not a text"),
        (b"PK\3\4\x14\0\6\0\x08\0\0\0!\0 a workbook of Excel", r"is not a \.tcia manifest: it is not a text"),
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


SAMPLE = HEAD + "Series ID\n2.25.1\n2.25.2\n"
TABLE = 'Subject ID,Study UID,"Series UID",Note\n007,1.9,2.25.1,"a, ""b""\nc"\n\n,,,\nP2,1.9,2.25.2,Jörg\n'


@pytest.mark.parametrize(
    "text",
    [
        SAMPLE,
        SAMPLE.replace("Series ID", '"SeriesInstanceUID"'),
        SAMPLE.replace("Series ID", "Series Instance UID,"),
        SAMPLE.replace("Series ID", "# 2 series, 1.5 GB"),
        SAMPLE.replace("Series ID", "Selected by Jörg in 2024: 2 series"),
        SAMPLE.replace("Series ID", "\n // of CT\n"),
        SAMPLE.replace("2.25.1\n2.25.2\n", "2.25.1\n# the second\n\n2.25.2  # chest\nSeries ID\n2.25.1"),
        SAMPLE.replace("2.25.1\n2.25.2\n", "\"2.25.1\",\n'2.25.2';\n"),
        SAMPLE.replace("2.25.1\n2.25.2\n", "2.25.1, 2.25.2"),
        SAMPLE.replace("2.25.1\n2.25.2\n", "[\n“2.25.1”,\n“2.25.2”\n]\n\x1a"),
        "LISTOFSERIESTODOWNLOAD = 2.25.1\n2.25.2\nincludeAnnotation=true\n",
        "manifestVersion=3.0\n2.25.1\nSeriesInstanceUID=2.25.2\n",
        "2.25.1\r2.25.2",
        TABLE,
        "Exported by TCIA\n\n" + TABLE + TABLE,
        "sep=;\n" + TABLE.replace(",", ";"),
        TABLE.replace(",", "\t"),
        HEAD + TABLE,
        TABLE.replace("Series UID", "series_instance_uid"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_the_series_of_a_file_are_read_whatever_stands_around_them(tmp_path: Path, text: str, encoding: str) -> None:
    file = tmp_path / "a.tcia"
    file.write_bytes(text.encode(encoding))
    assert read_manifest(file) == ["2.25.1", "2.25.2"]


UID = st.lists(st.integers(0, 99999).map(str), min_size=1, max_size=7).map(".".join)


def ornamented(uid: str) -> st.SearchStrategy[str]:
    noise = st.sampled_from(["", "\n", " \n", "# 3 of CT\n", "Series ID\n", "key=value\n"])
    around = st.sampled_from([("", ""), (" ", " "), ('"', '"'), ("", ","), ('"', '",'), ("", "  # 1.2.9"), ("\t", ";")])
    return st.tuples(noise, around).map(lambda drawn: f"{drawn[0]}{drawn[1][0]}{uid}{drawn[1][1]}")


HEADERS = st.lists(st.sampled_from(HEAD.splitlines()[:-1]), unique=True).map(
    lambda lines: "".join(f"{x}\n" for x in lines)
)


@given(
    st.lists(UID, min_size=1, max_size=20, unique=True),
    HEADERS,
    st.sampled_from(["", "Series ID\n", '"Series Instance UID"\n', "# none\n\n"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]),
    st.data(),
)
def test_every_series_of_a_manifest_is_read_in_its_order(
    uids: list[str], headers: str, title: str, end: str, encoding: str, data: st.DataObject
) -> None:
    lines = [data.draw(ornamented(uid)) for uid in uids]
    text = f"{headers}ListOfSeriesToDownload=\n{title}" + "\n".join(lines)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.tcia"
        file.write_bytes(text.replace("\n", end).encode(encoding))
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
