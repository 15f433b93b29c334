"""One odd row costs itself: it is left out, or its odd value is, and what was left out is reported."""

# ruff: noqa: DTZ001 - the server's times have no zone

from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pytest

from nbia_pipeline.archive import BadAnswer
from nbia_pipeline.archive.answers import read_csv, read_json
from nbia_pipeline.archive.conformance import Nonconformity, collect
from nbia_pipeline.archive.expect import expect_released_after, named, rows_of_collection
from nbia_pipeline.schema import shapes
from nbia_pipeline.schema.tables import SERIES, STUDIES
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import changed

Found = list[Nonconformity]


def read(body: str) -> tuple[list[dict[str, Any]], Found]:
    """Return the rows of an answer of getSeries without their nulls, and what is reported."""
    with collect() as found:
        rows = read_json([body.encode()], shapes.SERIES_V2).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows], found


@pytest.mark.parametrize("odd", ["null", '"a text"', "7", "[]", "[[{}]]", "true", "NaN"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_element_that_is_not_an_object_is_left_out(odd: str, place: int) -> None:
    elements = ['{"SeriesInstanceUID":"1"}', '{"SeriesInstanceUID":"2"}']
    elements.insert(place, odd)
    rows, found = read(f"[{','.join(elements)}]")
    assert rows == [{"SeriesInstanceUID": "1"}, {"SeriesInstanceUID": "2"}]
    assert [(one.table, one.key, one.column) for one in found] == [("series", None, "SeriesInstanceUID")]
    assert found[0].why == "an element of the array that is not an object was left out"


@pytest.mark.parametrize("odd", ["null", "7", '"a text"'])
def test_an_array_without_any_object_is_refused(odd: str) -> None:
    with pytest.raises(BadAnswer, match="the elements of the array are not objects"):
        read(f"[{odd},{odd}]")


def test_an_empty_text_is_no_key() -> None:
    rows, found = read('[{"SeriesInstanceUID":"","Modality":"CT"},{"SeriesInstanceUID":"2"}]')
    assert rows == [{"SeriesInstanceUID": "2"}]
    assert found[0].why == "a row without its SeriesInstanceUID was left out"
    with pytest.raises(BadAnswer, match=r"none of the 1 rows of series has its SeriesInstanceUID"):
        read('[{"SeriesInstanceUID":""}]')


def test_a_renamed_key_of_the_rows_is_named_in_the_error_and_reported() -> None:
    with collect() as found, pytest.raises(BadAnswer, match="has its SeriesInstanceUID, they have SeriesUID instead"):
        read_json([b'[{"SeriesUID":"1","Modality":"CT"}]'], shapes.SERIES_V2)
    assert [one.column for one in found] == ["SeriesUID", "SeriesInstanceUID"]


@pytest.mark.parametrize(
    "number", ["1e99999999999999999999", "-1E+99999999999999999999", "9" * 50, "1e400", "Infinity"]
)
def test_a_number_of_any_size_costs_its_cell(number: str) -> None:
    rows, found = read(f'[{{"SeriesInstanceUID":"1","SeriesNumber":{number}}},{{"SeriesInstanceUID":"2"}}]')
    assert rows == [{"SeriesInstanceUID": "1"}, {"SeriesInstanceUID": "2"}]
    assert [(one.key, one.column) for one in found] == [("1", "SeriesNumber")]


@pytest.mark.parametrize("value", ["0000-00-00 00:00:00.0", "soon", ["2001"], 1e300, True])
def test_what_is_odd_in_every_row_is_reported_for_every_row(value: Any) -> None:
    sent = [{"SeriesInstanceUID": str(n), "SeriesDate": value, "SeriesNumber": n} for n in range(100)]
    rows, found = read(json.dumps(sent))
    assert rows == [{"SeriesInstanceUID": str(n), "SeriesNumber": n} for n in range(100)]
    assert [one.key for one in found] == [str(n) for n in range(100)]


def test_values_of_several_types_are_read_each_by_its_own() -> None:
    values = [1, "1", 1.0, True, "x", None, "", 2]
    sent = [{"SeriesInstanceUID": str(n), "SeriesNumber": v, "Modality": v} for n, v in enumerate(values)]
    rows, found = read(json.dumps(sent))
    assert [row.get("SeriesNumber") for row in rows] == [1, 1, 1, None, None, None, None, 2]
    assert [row.get("Modality") for row in rows] == ["1", "1", "1.0", None, "x", None, "", "2"]
    assert [(one.key, one.column) for one in found] == [("3", "Modality"), ("3", "SeriesNumber"), ("4", "SeriesNumber")]


def test_two_spellings_of_a_key_that_differ_are_reported() -> None:
    rows, found = read(
        '[{"SeriesInstanceUID":"1","PatientID":"a","patientid":"b"},{"SeriesInstanceUID":"2","patientid":"c"},'
        '{"SeriesInstanceUID":"3","PatientID":"d","Patient ID":"d"}]'
    )
    assert [row["PatientID"] for row in rows] == ["a", "c", "d"]
    assert [(one.key, one.column, one.value) for one in found] == [("1", "PatientID", "b")]


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("[0.5,1]", '["0.5", 1]'),
        ('{"a":null}', '{"a": null}'),
        ("true", "true"),
        ("NaN", "NaN"),
        ('"\\ud800"', "\\ud800"),
        ("[" * 600 + "]" * 600, "[" * 500),
    ],
)
def test_a_value_is_shown_as_it_was_sent(sent: str, shown: str) -> None:
    _, found = read(f'[{{"SeriesInstanceUID":"1","Modality":{sent}}}]')
    assert [(one.column, one.value) for one in found] == [("Modality", shown)]


@pytest.mark.parametrize("depth", range(850, 1000, 10))
def test_a_value_of_any_depth_costs_its_cell_or_is_no_json(depth: int) -> None:
    try:
        rows, found = read(f'[{{"SeriesInstanceUID":"1","Modality":{"[" * depth + "]" * depth}}}]')
    except BadAnswer as e:
        assert "not JSON" in str(e)
    else:
        assert (rows, len(found)) == ([{"SeriesInstanceUID": "1"}], 1)


# --- CSV


def csv(text: str) -> tuple[list[tuple[Any, ...]], Found]:
    with collect() as found:
        table = read_csv(text.encode(), shapes.METADATA2)
    return list(zip(table["SeriesInstanceUID"].to_pylist(), table["Modality"].to_pylist(), strict=True)), found


BOTH = [("1", "CT"), ("2", "MR")]


@pytest.mark.parametrize(
    "text",
    [
        '"Series ID","Modality"\n"1","CT"\n"2","MR"\n\n\n',
        '"Series ID","Modality"\n\n"1","CT"\n   \n"2","MR"\n',
        '\n"Series ID","Modality"\n"1","CT"\n"2","MR"',
        '"Series ID","Modality"\r\n"1","CT"\r\n"2","MR"\r\n \r\n',
        '"MODALITY","series id"\n"CT","1"\n"MR","2"\n',
        '"Modality","Series ID","Modality"\n"CT","1","CT"\n"MR","2",""\n',
    ],
)
def test_blank_lines_and_the_order_of_columns_change_nothing(text: str) -> None:
    assert csv(text) == (BOTH, [])


@pytest.mark.parametrize("odd", ['"3"', '"3","CT","x"', '"a note"', "3,CT,,,", '"","",""'])
@pytest.mark.parametrize("at_the_end", [True, False])
def test_a_row_of_another_number_of_cells_is_left_out(odd: str, at_the_end: bool) -> None:
    lines = ['"Series ID","Modality"', '"1","CT"', '"2","MR"']
    lines.insert(3 if at_the_end else 2, odd)
    rows, found = csv("\n".join(lines) + "\n")
    assert rows == BOTH
    reported = [(one.key, one.column, one.why) for one in found]
    why = "a row was left out that does not have 2 cells, as the header has"
    assert reported == ([] if odd == '"","",""' else [(None, "SeriesInstanceUID", why)])


def test_a_last_row_that_does_not_end_is_a_truncated_answer() -> None:
    with pytest.raises(BadAnswer, match="truncated"):
        csv('"Series ID","Modality"\n"1","CT"\n"2"')


def test_a_column_that_is_there_twice_with_two_values_is_reported() -> None:
    rows, found = csv('"Series ID","Modality","Modality"\n"1","CT","PT"\n"2","MR","MR"\n')
    assert rows == BOTH
    assert [(one.key, one.column, one.value) for one in found] == [("1", "Modality", "PT")]


def test_metadata_of_a_series_that_was_not_asked_for_are_left_out(archive: TestArchive) -> None:
    more = changed(lambda body: body + b"\n".join(body.splitlines()[1:2]).replace(b'"1.', b'"9.', 2) + b"\n")
    with archive.client() as client:
        uids = client.series("QIN_Breast.v2")["SeriesInstanceUID"].to_pylist()
        archive.faults.inject("getSeriesMetadata2", more)
        with collect() as found:
            rows = client.series_metadata(uids)
    assert sorted(rows["SeriesInstanceUID"].to_pylist()) == sorted(uids)
    assert [(one.table, one.column, one.why) for one in found] == [
        ("series_metadata", "SeriesInstanceUID", "a row of a series that was not asked for was left out")
    ]


# --- rows of a collection


def of_collections(*names: str | None, schema: pa.Schema = SERIES.schema) -> pa.Table:
    rows = [{schema.names[0]: str(n), "Collection": name} for n, name in enumerate(names)]
    return pa.Table.from_pylist(rows, schema=schema)


@pytest.mark.parametrize("other", ["Other", "A ", "a", "a ", "", None, "B"])
def test_a_few_rows_of_other_collections_are_left_out_and_reported(other: str | None) -> None:
    with collect() as found:
        rows = rows_of_collection(of_collections("A", "A", other), "A", lambda: ["A", "B"])
    assert rows["Collection"].to_pylist() == ["A", "A"]
    assert [(one.key, one.column, one.value) for one in found] == [("2", "Collection", other)]


@pytest.mark.parametrize("other", ["a", "A ", "a  "])
def test_rows_of_a_listed_collection_of_similar_spelling_are_not_reported(other: str) -> None:
    for schema in (SERIES.schema, STUDIES.schema):
        with collect() as found:
            table = of_collections("A", other, other, schema=schema)
            rows = rows_of_collection(table, "A", lambda: ["A", other], may_span=schema == STUDIES.schema)
        assert (rows["Collection"].to_pylist(), found) == (["A"], [])


@pytest.mark.parametrize("names", [("A", "B", "C"), ("B",), ("a", "a"), (None,), ("A ",)])
def test_an_answer_about_something_else_is_refused(names: tuple[str | None, ...]) -> None:
    with pytest.raises(BadAnswer, match="asked for collection 'A', the archive sent rows of"):
        rows_of_collection(of_collections(*names), "A", lambda: ["A"])


def test_rows_without_a_collection_do_not_count_as_another_one() -> None:
    assert rows_of_collection(of_collections("A", None, None, None), "A", lambda: ["A"]).num_rows == 1


def test_an_empty_name_is_no_name() -> None:
    table = read_json([b'[{"Collection":""},{"Collection":"A"},{}]'], shapes.COLLECTION_VALUE)
    with collect() as found:
        assert named(table, "Collection", shapes.COLLECTION_VALUE) == ["A"]
    assert found[0].why == "2 of 3 rows have none, and were left out"


# --- releases


@pytest.mark.parametrize(("early", "refused"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_few_releases_of_earlier_days_are_left_out_and_reported(early: int, refused: bool) -> None:
    day = date(2026, 3, 2)
    days = [datetime(2001, 1, 1) if n < early else datetime(2026, 3, 3) for n in range(4)]
    rows = [{"SeriesInstanceUID": str(n), "Collection": "A", "DateReleased": d} for n, d in enumerate(days)]
    table = pa.Table.from_pylist(rows, schema=SERIES.schema)
    if refused:
        with pytest.raises(BadAnswer, match="asked for releases after 2026-03-02, the archive sent series 0"):
            expect_released_after(table, day, shapes.SERIES_SHORT)
        return
    with collect() as found:
        assert expect_released_after(table, day, shapes.SERIES_SHORT).num_rows == 4 - early
    assert [one.key for one in found] == [str(n) for n in range(early)]


def test_releases_of_no_collection_at_all_are_an_error() -> None:
    table = of_collections(None, None)
    with pytest.raises(BadAnswer, match="none of the 2 rows of releases that the archive sent has its Collection"):
        expect_released_after(table, date(2026, 3, 2), shapes.SERIES_SHORT)
    assert expect_released_after(of_collections("A", None), date(2026, 3, 2), shapes.SERIES_SHORT).num_rows == 2
