# ruff: noqa: DTZ001 - the server's times have no zone
from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbia_pipeline.archive import BadAnswer, answers, bounds
from nbia_pipeline.archive.answers import read_csv, read_json
from nbia_pipeline.archive.conformance import as_sent, collect
from nbia_pipeline.embedded.api import render
from nbia_pipeline.schema import Shape, shapes
from nbia_pipeline.schema.tables import SERIES, SERIES_METADATA, STUDIES

BETWEEN = '},{"'
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.lists(st.sampled_from([BETWEEN, "},{", '"', "\\", "}", "]", "}]", "\n", "\r", "/", "é", "\U0001f600"]))
    .map("".join)
    .map(lambda text: text[:12]),
)
DAYS = st.dates(date(1000, 1, 1))
TIMES = st.datetimes(datetime(1000, 1, 1))
COUNTS = st.integers(-(2**63), 2**63 - 1)
V2_COLUMNS = [k.column for k in shapes.SERIES_V2.keys if k.column]
V4_COLUMNS = [k.column for k in shapes.SERIES_V4.keys if k.column]

FULL = [
    {
        field.name: {pa.string(): "x", pa.int64(): 3, pa.bool_(): True, pa.date32(): date(2001, 1, 1)}.get(
            field.type, datetime(2001, 1, 1)
        )
        for field in SERIES.schema
        if field.name in V2_COLUMNS
    }
]


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    by_type = {pa.string(): TEXTS, pa.date32(): DAYS, pa.timestamp("us"): TIMES, pa.int64(): COUNTS}
    return st.none() | by_type.get(kind, st.booleans())


def rows_of(columns: list[str]) -> st.SearchStrategy[pa.Table]:
    row = {c: values_of(SERIES.schema.field(c).type) for c in columns} | {"SeriesInstanceUID": TEXTS.filter(bool)}
    return st.lists(st.fixed_dictionaries(row), min_size=1, max_size=4).map(
        lambda rows: pa.Table.from_pylist(rows, schema=SERIES.schema)
    )


def as_server(table: pa.Table, shape: Shape, guide: bool = False) -> bytes:
    return b"".join(render.render_json(table, shape, guide))


def in_chunks(body: bytes, size: int) -> Iterator[bytes]:
    return (body[i : i + size] for i in range(0, len(body), size))


def series(*rows: dict[str, Any]) -> pa.Table:
    """Read series rows as JSON says them; a UID is added where there is none."""
    full = [{"SeriesInstanceUID": str(n), **row} for n, row in enumerate(rows)]
    return read_json([json.dumps(full).encode()], shapes.SERIES_V2)


def read(column: str, value: Any, shape: Shape = shapes.SERIES_V2, key: str | None = None) -> Any:
    identity = next(k.name for k in shape.keys if k.column == shape.table.key[0]) if shape.table else ""
    row = {identity: "1", key or column: value}
    return read_json([json.dumps([row]).encode()], shape)[column][0].as_py()


def read_and_collect(column: str, value: Any, shape: Shape = shapes.SERIES_V2, key: str | None = None) -> Any:
    """Return what is read, and the one report about it: of which column, what was sent, and why it does not fit."""
    with collect() as found:
        value = read(column, value, shape, key)
    assert [(one.key, one.column) for one in found] == [("1", column)]
    return value, found[0].value, found[0].why


def both_readers(body: bytes, shape: Shape) -> tuple[pa.Table, pa.Table]:
    piece = body[1:-1]
    return answers._read_fast(piece, shape), answers._read_tolerantly(piece, shape).rows


# --- any table comes back unchanged


@settings(max_examples=60, deadline=None)
@given(rows_of(V2_COLUMNS), st.integers(1, 400))
def test_any_series_come_back_unchanged_in_chunks_of_any_size(table: pa.Table, size: int) -> None:
    read_back = read_json(in_chunks(as_server(table, shapes.SERIES_V2), size), shapes.SERIES_V2)
    assert read_back.equals(table)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=rows_of(V2_COLUMNS), piece=st.integers(1, 300), size=st.integers(1, 300))
def test_any_series_come_back_unchanged_in_pieces_of_any_size(
    monkeypatch: pytest.MonkeyPatch, table: pa.Table, piece: int, size: int
) -> None:
    monkeypatch.setattr(bounds, "PIECE_BYTES", piece)
    read_back = read_json(in_chunks(as_server(table, shapes.SERIES_V2), size), shapes.SERIES_V2)
    assert read_back.equals(table)


@settings(max_examples=60, deadline=None)
@given(rows_of(V2_COLUMNS))
def test_the_fast_and_the_tolerant_reader_agree(table: pa.Table) -> None:
    fast, tolerant = both_readers(as_server(table, shapes.SERIES_V2), shapes.SERIES_V2)
    assert fast.equals(tolerant)
    assert fast.equals(table)


@settings(max_examples=40, deadline=None)
@given(rows_of(V2_COLUMNS))
def test_numbers_as_text_change_nothing(table: pa.Table) -> None:
    rows = json.loads(as_server(table, shapes.SERIES_V2))
    for row in rows:
        row.update({k: str(row[k]) for k in ("ImageCount", "FileSize", "SeriesNumber") if k in row})
    assert read_json([json.dumps(rows, ensure_ascii=False).encode()], shapes.SERIES_V2).equals(table)


@settings(max_examples=40, deadline=None)
@given(rows_of(V4_COLUMNS))
def test_any_series_of_v4_come_back_but_for_their_times_of_day(table: pa.Table) -> None:
    fast, tolerant = both_readers(as_server(table, shapes.SERIES_V4), shapes.SERIES_V4)
    assert fast.equals(tolerant)
    midnight = [
        {
            n: v.replace(hour=0, minute=0, second=0, microsecond=0) if isinstance(v, datetime) else v
            for n, v in r.items()
        }
        for r in table.to_pylist()
    ]
    assert fast.to_pylist() == midnight


@settings(max_examples=40, deadline=None)
@given(rows_of(V2_COLUMNS))
def test_the_spellings_of_the_guide_change_nothing(table: pa.Table) -> None:
    assert read_json([as_server(table, shapes.SERIES_V2, guide=True)], shapes.SERIES_V2).equals(table)


@settings(max_examples=40, deadline=None)
@given(rows_of(V2_COLUMNS), st.sampled_from([None, 1, "\t"]))
def test_white_space_between_tokens_changes_nothing(table: pa.Table, indent: Any) -> None:
    rows = json.loads(as_server(table, shapes.SERIES_V2))
    assert read_json([b" \n" + json.dumps(rows, indent=indent).encode() + b"\n "], shapes.SERIES_V2).equals(table)


def test_pieces_are_cut_between_objects_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "PIECE_BYTES", 1)
    rows = [{"SOPInstanceUID": "1"}, {"SOPInstanceUID": BETWEEN + 'a"'}, {"SOPInstanceUID": "},{"}]
    body = json.dumps(rows, separators=(",", ":")).encode()
    assert list(bounds.pieces_of_array([body[:60], body[60:]])) == [
        b'{"SOPInstanceUID":"1"},{"SOPInstanceUID":"},{\\"a\\""}',
        b'{"SOPInstanceUID":"},{"}',
    ]


def test_a_long_answer_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "PIECE_BYTES", 1000)
    rows = [{"SOPInstanceUID": f"1.2.{n}"} for n in range(2000)]
    body = json.dumps(rows, separators=(",", ":")).encode()
    pieces = list(bounds.pieces_of_array(in_chunks(body, 100)))
    assert len(pieces) > 10
    assert max(map(len, pieces)) < 1200
    read_back = read_json(in_chunks(body, 100), shapes.SOP_INSTANCE_UIDS)
    assert read_back["SOPInstanceUID"].to_pylist() == [r["SOPInstanceUID"] for r in rows]


@pytest.mark.parametrize("body", [b"", b" \n", b"[]", b" [ ] \n"])
def test_an_empty_answer_has_no_rows_and_all_columns(body: bytes) -> None:
    assert read_json([body], shapes.SERIES_V2).equals(SERIES.schema.empty_table())


# --- dates


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2011-11-08 08:08:01.0", datetime(2011, 11, 8, 8, 8, 1)),
        ("2011-11-08 08:08:01.123456", datetime(2011, 11, 8, 8, 8, 1, 123456)),
        ("2011-11-08 08:08:01.5", datetime(2011, 11, 8, 8, 8, 1, 500000)),
        ("2011-11-08 08:08:01", datetime(2011, 11, 8, 8, 8, 1)),
        ("2011-11-08T08:08:01", datetime(2011, 11, 8, 8, 8, 1)),
        ("2011-11-08 08:08", datetime(2011, 11, 8, 8, 8)),
        ("2011-11-08", datetime(2011, 11, 8)),
        ("11-08-2011", datetime(2011, 11, 8)),
        ("Tue Nov 08 08:08:01 CST 2011", datetime(2011, 11, 8, 8, 8, 1)),
        ("Mon Aug 07 00:00:00 GMT+01:00 2023", datetime(2023, 8, 7)),
        ("Mon Aug 07 00:00:00 2023", datetime(2023, 8, 7)),
        (1_320_739_681_250, datetime(2011, 11, 8, 8, 8, 1, 250000)),
        (-1000, datetime(1969, 12, 31, 23, 59, 59)),
        (" 2011-11-08 ", datetime(2011, 11, 8)),
        ("", None),
        (None, None),
    ],
)
def test_a_time_is_read_in_every_form_that_the_archive_writes(text: str | int | None, moment: datetime | None) -> None:
    assert read("TimeStamp", text) == moment


@pytest.mark.parametrize(
    "text", ["2014-11-06 00:00:00.0", "2014-11-06", "11-06-2014", "Thu Nov 06 00:00:00 CST 2014", 1_415_232_000_000]
)
def test_a_day_is_read_in_every_form_that_the_archive_writes(text: str | int) -> None:
    assert read("SeriesDate", text) == date(2014, 11, 6)


@pytest.mark.parametrize(
    "text",
    [
        *("2011-02-30 00:00:00.0", "13-01-2011", "02-30-2011", "0000-00-00 00:00:00.0", "2011-11-08 24:00:00.0"),
        *("2011-11-08 08:08:01Z", "08/11/2011", "yesterday", "Tue Xyz 08 08:08:01 CST 2011", "1-2-2011"),
        *(True, 10**30, {"a": 1}, [1]),
    ],
)
def test_what_is_not_a_date_is_null_and_reported(text: Any) -> None:
    value, sent, why = read_and_collect("TimeStamp", text)
    assert value is None
    assert sent == as_sent(text)
    assert why.endswith("; the cell is null")


@pytest.mark.parametrize("text", ["02-30-2011", "2-3-2011", "02-03-11", " 02- 3-2011", "13-01-2011"])
def test_the_fast_reader_takes_no_day_of_v4_that_the_tolerant_one_refuses(text: str) -> None:
    assert read_and_collect("TimeStamp", text, shapes.SERIES_V4, "MaxSubmissionTimestamp")[:2] == (None, text)


@pytest.mark.parametrize("text", ["2014-11-06 00:00:00.1", "2014-11-06 12:00:00.0", "Thu Nov 06 00:00:01 CST 2014"])
def test_a_day_with_a_time_of_day_is_null_and_not_shortened(text: str) -> None:
    assert read_and_collect("SeriesDate", text) == (None, text, "a day with a time of day; the cell is null")


# --- numbers and flags


@pytest.mark.parametrize(
    ("value", "number"),
    [(12, 12), ("12", 12), ("1.000000", 1), (8.0, 8), ("", None), (None, None), (0, 0), ("-3", -3), (2**63 - 1,) * 2],
)
def test_a_count_is_read_as_number_or_text(value: Any, number: int | None) -> None:
    assert read("ImageCount", value) == number


@pytest.mark.parametrize("value", ["1.5", 1.5, "a", "1_000", "١", "NaN", "0x1", True, 2**63, "9" * 400, [1], {}])
def test_what_is_not_a_whole_number_is_null_and_reported(value: Any) -> None:
    assert read_and_collect("ImageCount", value)[:2] == (None, as_sent(value))


@pytest.mark.parametrize(("value", "number"), [(59, 59.0), (59.5, 59.5), ("59.500000", 59.5), ("", None), (-2, -2.0)])
def test_an_offset_may_be_fractional(value: Any, number: float | None) -> None:
    assert read("LongitudinalTemporalOffsetFromEvent", value, shapes.STUDY) == number


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 5000])
@pytest.mark.parametrize("column", ["LongitudinalTemporalOffsetFromEvent", "SeriesCount"])
def test_a_number_that_json_does_not_have_costs_its_cell_only(value: str, column: str) -> None:
    body = '[{"StudyInstanceUID":"1","StudyID":"a","' + column + '":' + value + "}]"
    with collect() as found:
        row = read_json([body.encode()], shapes.STUDY).to_pylist()[0]
    assert (row["StudyID"], row[column]) == ("a", None)
    assert [(one.column, (one.value or "")[:3]) for one in found] == [(column, str(Decimal(value))[:3])]


@pytest.mark.parametrize(
    ("value", "flag"),
    [
        *((True, True), (False, False), ("true", True), ("false", False), ("TRUE", True), ("Yes", True), ("NO", False)),
        *(("1", True), ("0", False), (1, True), ("", None), (None, None)),
    ],
)
@pytest.mark.parametrize("shape", [shapes.SERIES_V2, shapes.SERIES_V4], ids=lambda s: s.name)
def test_a_flag_is_read_as_boolean_or_text(shape: Shape, value: Any, flag: bool | None) -> None:
    assert read("AnnotationsFlag", value, shape) is flag


@pytest.mark.parametrize("value", ["maybe", "Y", 2, 1.0, []])
def test_what_is_not_a_flag_is_null_and_reported(value: Any) -> None:
    assert read_and_collect("AnnotationsFlag", value) == (None, str(value), "not a flag; the cell is null")


def test_a_number_in_the_place_of_a_text_is_taken_by_its_digits() -> None:
    assert read("PatientID", 1234567890123456789012) == "1234567890123456789012"
    assert read("PatientID", 1) == "1"


def test_texts_keep_their_blanks_and_the_empty_text_stays_empty() -> None:
    assert read("BodyPartExamined", "CHEST ") == "CHEST "
    assert read("BodyPartExamined", "") == ""


# --- keys


@pytest.mark.parametrize("key", ["PatientId", "PatientID", "patientid", "Patient ID"])
def test_a_patient_is_found_under_every_spelling(key: str) -> None:
    body = json.dumps([{key: "P-1", "Collection": "C"}]).encode()
    assert read_json([body], shapes.PATIENT)["PatientID"].to_pylist() == ["P-1"]


def test_the_spaced_keys_of_the_metadata_are_read() -> None:
    row = {
        "Series UID": "1.2",
        "3rd Party Analysis": "YES",
        "Subject ID": "P-1",
        "Study Date": "08-29-2017",
        "Number of Images": "1",
        "File Size": "27844690",
        "File Location": "DDSM",
        "Series Number": "1.000000",
        "Annotation Size": "0",
        "Date Released": "Mon Aug 07 00:00:00 CDT 2023",
        "SeriesDate": "Tue Aug 29 00:00:00 CDT 2017",
        "Annotations Flag": "true",
        "TimeStamp": "Tue Nov 08 08:08:01 CST 2011",
    }
    table = read_json([json.dumps([row]).encode()], shapes.META27)
    assert {n: v for n, v in table.to_pylist()[0].items() if v is not None} == {
        "SeriesInstanceUID": "1.2",
        "ThirdPartyAnalysis": "YES",
        "PatientID": "P-1",
        "StudyDate": date(2017, 8, 29),
        "ImageCount": 1,
        "FileSize": 27844690,
        "StudyID": "DDSM",
        "SeriesNumber": 1,
        "AnnotationSize": 0,
        "DateReleased": datetime(2023, 8, 7),
        "SeriesDate": date(2017, 8, 29),
        "AnnotationsFlag": True,
        "TimeStamp": datetime(2011, 11, 8, 8, 8, 1),
    }


def test_an_omitted_key_is_null_wherever_it_is_omitted() -> None:
    table = series({}, {"Modality": "CT"}, {"ImageCount": 3})
    assert table["Modality"].to_pylist() == [None, "CT", None]
    assert table["ImageCount"].to_pylist() == [None, None, 3]
    assert table.schema == SERIES.schema


def test_a_key_that_no_column_takes_is_left_out_and_reported() -> None:
    with collect() as found:
        table = series({"Modality": "CT", "Colour": "blue", "Nested": {"a": [1]}}, {"Modality": "MR", "Colour": "red"})
    assert table["Modality"].to_pylist() == ["CT", "MR"]
    assert table.schema == SERIES.schema
    assert {(one.column, one.value, one.why.split(";")[0]) for one in found} == {
        ("Colour", "blue", "no column takes this key of 2 of 2 rows"),
        ("Nested", '{"a": [1]}', "no column takes this key of 1 of 2 rows"),
    }


@pytest.mark.parametrize("known", ["FileSize", "ImageCount", "PatientID", "StudyInstanceUID", "DateReleased"])
def test_a_key_under_another_name_is_reported_with_the_one_that_no_row_has(known: str) -> None:
    row = json.loads(as_server(pa.Table.from_pylist(FULL, schema=SERIES.schema), shapes.SERIES_V2))[0]
    row["Renamed"] = row.pop(known)
    with collect() as found:
        read_json([json.dumps([row]).encode()], shapes.SERIES_V2)
    (one,) = found
    assert (one.table, one.key, one.column, one.value) == ("series", None, "Renamed", str(row["Renamed"]))
    assert one.why == f"no column takes this key of 1 of 1 rows; no row has {known}"


def test_a_null_that_is_written_out_is_null() -> None:
    assert series({"Modality": None, "ImageCount": None}).select(["Modality", "ImageCount"]).to_pylist() == [
        {"Modality": None, "ImageCount": None}
    ]


def test_an_empty_object_in_a_list_of_values_is_a_null() -> None:
    body = b'[{},{"BodyPartExamined":"CHEST"},{"BodyPartExamined":"HEAD"}]'
    assert read_json([body], shapes.BODY_PART_VALUE)["BodyPartExamined"].to_pylist() == [None, "CHEST", "HEAD"]


@pytest.mark.parametrize("odd", [{}, {"Modality": "CT"}, {"SeriesInstanceUID": None, "ImageCount": 3}, {"error": "x"}])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_without_its_key_is_left_out_and_reported(odd: dict[str, Any], place: int) -> None:
    rows: list[dict[str, Any]] = [{"SeriesInstanceUID": "1"}, {"SeriesInstanceUID": "2"}]
    rows.insert(place, odd)
    with collect() as found:
        table = read_json([json.dumps(rows).encode()], shapes.SERIES_V2)
    assert table["SeriesInstanceUID"].to_pylist() == ["1", "2"]
    left_out = [one for one in found if one.column == "SeriesInstanceUID"]
    assert [(one.key, one.why) for one in left_out] == [
        (None, "a row without its SeriesInstanceUID was left out"),
    ]
    rest = {name: value for name, value in odd.items() if value is not None and name != "error"}
    assert [json.loads(str(one.value)) for one in left_out] == [rest]


@pytest.mark.parametrize("body", [b"[{}]", b'[{"Modality":"CT"}]', b'[{"Modality":"CT"},{"Modality":"MR"}]'])
def test_an_answer_without_a_single_key_is_refused(body: bytes) -> None:
    with pytest.raises(BadAnswer, match=r"none of the \d rows of series has its SeriesInstanceUID"):
        read_json([body], shapes.SERIES_V2)


def test_one_odd_value_of_many_costs_its_cell_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "PIECE_BYTES", 1000)
    rows = [{"SeriesInstanceUID": str(n), "SeriesDate": "2001-01-01 00:00:00.0", "ImageCount": n} for n in range(400)]
    rows[7]["SeriesDate"], rows[11]["ImageCount"], rows[390]["ImageCount"] = "0000-00-00 00:00:00.0", 2**70, 12.5
    with collect() as found:
        table = read_json([json.dumps(rows, separators=(",", ":")).encode()], shapes.SERIES_V2)
    assert table["SeriesDate"].null_count == 1
    assert [n for n, count in enumerate(table["ImageCount"].to_pylist()) if count != n] == [11, 390]
    assert [(one.key, one.column, one.value) for one in found] == [
        *(
            ("7", "SeriesDate", "0000-00-00 00:00:00.0"),
            ("11", "ImageCount", str(2**70)),
            ("390", "ImageCount", "12.5"),
        ),
    ]


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"a\xffb", "a\\udcffb"),
        (b"\xed\xa0\x80", "\\udced\\udca0\\udc80"),
        (b"\\ud800", "\\ud800"),
        (b"\xc3", "\\udcc3"),
    ],
)
def test_a_text_that_is_not_utf8_costs_its_cell_only(sent: bytes, shown: str) -> None:
    body = b'[{"SeriesInstanceUID":"1","Modality":"CT","SeriesDescription":"' + sent + b'"}]'
    with collect() as found:
        row = read_json([body], shapes.SERIES_V2).to_pylist()[0]
    assert (row["Modality"], row["SeriesDescription"]) == ("CT", None)
    assert [(one.key, one.value, one.why) for one in found] == [("1", shown, "not UTF-8; the cell is null")]


@pytest.mark.parametrize("key", [b"Colou\xd0r", b"\xff", b"\\udcff"])
def test_a_key_that_is_not_utf8_is_reported_as_text(key: bytes) -> None:
    body = b'[{"SeriesInstanceUID":"1","' + key + b'":"blue"}]'
    with collect() as found:
        assert read_json([body], shapes.SERIES_V2)["SeriesInstanceUID"].to_pylist() == ["1"]
    (one,) = found
    assert one.value == "blue"
    assert "\\udc" in one.column.encode().decode()  # it can be written anywhere
    with pytest.raises(BadAnswer) as caught:
        read_json([b'[{"' + key + b'":"blue"}]'], shapes.SERIES_V2)
    assert str(caught.value).encode()


@pytest.mark.parametrize("sent", ["a\nb", "a\tb", "\x01", "a\r\nb"])
def test_a_text_with_control_characters_is_kept(sent: str) -> None:
    body = '[{"SeriesInstanceUID":"1","SeriesDescription":"' + sent + '"}]'
    assert read_json([body.encode()], shapes.SERIES_V2)["SeriesDescription"].to_pylist() == [sent]


def test_what_does_not_fit_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    series({"ImageCount": "a"}, {"ImageCount": "b"}, {"SeriesDate": "c"})
    assert [r.getMessage() for r in caplog.records] == [
        "the archive sent what does not fit: series: ImageCount of 0 (sent: 'a'): not a number; the cell is null "
        "(and 2 more)"
    ]


# --- what is not an answer

VALID = as_server(
    pa.Table.from_pylist(
        [
            {"SeriesInstanceUID": "1", "SeriesDescription": 'a}]"},{"b', "ImageCount": 12},
            {"SeriesInstanceUID": "2", "SeriesDescription": "ü]", "AnnotationsFlag": True},
        ],
        schema=SERIES.schema,
    ),
    shapes.SERIES_V2,
)


@pytest.mark.parametrize("piece_bytes", [1, 20, 1 << 20])
def test_every_cut_of_an_answer_is_refused(monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(bounds, "PIECE_BYTES", piece_bytes)
    assert read_json([VALID], shapes.SERIES_V2).num_rows == 2
    for end in range(1, len(VALID)):
        with pytest.raises(BadAnswer) as caught:
            read_json(in_chunks(VALID[:end], 7), shapes.SERIES_V2)
        assert caught.value.retryable, VALID[:end]


@pytest.mark.parametrize(
    "body",
    [
        *(b"[null]", b"[1]", b'["a"]', b"[true]", b"[[]]", b"[[{}]]", b"null", b'{"SOPInstanceUID":"1"}', b"ok"),
        *(b'[{"SOPInstanceUID":"1"}null]', b'[{"SOPInstanceUID":"1"} {}]'),
        *(b'[{"SOPInstanceUID":"1"}{"SOPInstanceUID":"2"}]', b'[{"SOPInstanceUID":"1"}\n{"SOPInstanceUID":"2"}]'),
        *(b'[{"SOPInstanceUID":"1"},]', b'[,{"SOPInstanceUID":"1"}]', b'[{"SOPInstanceUID":"1"}}]', b"]", b"[]]"),
        *(b'[{"SOPInstanceUID":"1"}][{"SOPInstanceUID":"2"}]', b'[{"SOPInstanceUID":"1"}] and more', b"[{]", b"[\x00]"),
        b"[{'a':1}]",
        b"[" * 100_000 + b"]" * 100_000,
        b'[{"SOPInstanceUID":' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
    ],
    ids=lambda b: repr(b[:48]),
)
def test_garbage_is_refused(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        read_json([body], shapes.SOP_INSTANCE_UIDS)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | st.text(st.sampled_from('[]{},:"null1 \\'), max_size=30).map(str.encode))
def test_no_bytes_do_anything_but_give_rows_or_a_bad_answer(body: bytes) -> None:
    try:
        table = read_json([b"[" + body + b"]"], shapes.SERIES_V2)
    except BadAnswer:
        return
    rows = json.loads((b"[" + body + b"]").decode("utf-8", "surrogateescape"), strict=False)
    assert table.num_rows <= len(rows)


def test_an_error_in_the_place_of_rows_is_refused() -> None:
    for shape in (shapes.SERIES_V2, shapes.SOP_INSTANCE_UIDS, shapes.MODALITY_VALUE, shapes.COUNTS):
        with pytest.raises(BadAnswer, match=rf"the rows have none of the keys of {shape.name}: \['error'\]"):
            read_json([b'[{"error":"x"}]'], shape)


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><html>", b"\n  <html><body>Sign in</body></html>", b"<Results/>"])
def test_html_is_called_html(body: bytes) -> None:
    with pytest.raises(BadAnswer, match="is HTML or XML instead of a JSON array: a proxy or a login page"):
        read_json([body], shapes.SERIES_V2)
    with pytest.raises(BadAnswer, match="is HTML or XML instead of a CSV table"):
        read_csv(body, shapes.METADATA2)


# --- CSV

# Without NUL, which the csv module of Python 3.10 refuses.
CSV_TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], min_codepoint=1), min_size=1, max_size=8
) | st.sampled_from(['"', '","', "\n", "\r\n", '"\n"', "a,b"])


def as_csv(rows: list[dict[str, str]], header: list[str]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CSV_TEXTS.filter(bool), CSV_TEXTS, st.none() | COUNTS), min_size=1, max_size=4))
def test_csv_comes_back_unchanged(rows: list[tuple[str, str, int | None]]) -> None:
    table = pa.Table.from_pylist(
        # A null in the first column breaks the quoting of its row, as on the server.
        [{"PatientID": "P", "SeriesInstanceUID": u, "SeriesDescription": text, "ImageCount": n} for u, text, n in rows],
        schema=SERIES_METADATA.schema,
    )
    assert read_csv(b"".join(render.render_csv(table, shapes.METADATA2)), shapes.METADATA2).equals(table)


def test_csv_with_quotes_commas_and_line_breaks_is_read() -> None:
    text = as_csv([{"Series ID": "1", "Series Description": 'a "b", c\nd\r\ne'}], ["Series ID", "Series Description"])
    assert read_csv(text, shapes.METADATA2)["SeriesDescription"].to_pylist() == ['a "b", c\nd\r\ne']


def test_csv_without_any_text_has_no_rows() -> None:
    assert read_csv(b" \n", shapes.METADATA2).equals(SERIES_METADATA.schema.empty_table())


def test_the_time_stamp_of_the_bulk_metadata_is_not_taken_for_one() -> None:
    text = as_csv(
        [{"Series ID": "1", "TimeStamp": "2020-01-01 00:00:00.0", "Date Released": "2020-01-01"}],
        ["Series ID", "Date Released", "TimeStamp"],
    )
    table = read_csv(text, shapes.METADATA2)
    assert table["TimeStamp"].to_pylist() == [None]
    assert table["DateReleased"].to_pylist() == [datetime(2020, 1, 1)]


def test_every_cut_of_a_csv_row_is_refused_unless_the_row_is_whole() -> None:
    header = ["Series ID", "Series Description", "Software Versions"]
    rows = [{"Series ID": str(n), "Series Description": 'a"b', "Software Versions": "1.0"} for n in (1, 2)]
    text = as_csv(rows, header)
    whole = [read_csv(as_csv(rows[:n], header), shapes.METADATA2) for n in (0, 1, 2)]
    for end in range(1, len(text)):
        try:
            table = read_csv(text[:end], shapes.METADATA2)
        except BadAnswer:
            continue
        assert any(table.equals(w) for w in whole), text[:end]


@pytest.mark.parametrize(
    "text",
    [
        *(b'"Series ID"\n"1', b'"Series ID","Modality"\n"1"\n', b'"Series ID"\n"1","2"\n', b'"Series ID"\n"a"b"\n'),
        *(b'"a","b"\n"1","2"\n', b"ok", b'"Series ID"\na\rb\n', b'"Modality"\n"CT"\n', b'"Series ID"\n""\n'),
    ],
    ids=lambda t: repr(t[:30]),
)
def test_garbage_in_csv_is_refused(text: bytes) -> None:
    with pytest.raises(BadAnswer):
        read_csv(text, shapes.METADATA2)


@pytest.mark.parametrize(
    "written",
    [
        *("\ufeff{}", "{}", "\ufeff{}\n"),  # a byte-order mark, and without
    ],
    ids=repr,
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_other_ends_of_lines_change_nothing(written: str, end: str) -> None:
    text = end.join(['"Subject ID","Series ID","Collection Name"', '"P1","1.2.5","C1"', '"P2","1.2.6","C1"', ""])
    table = read_csv(written.format(text).rstrip("\n").encode() + b"\n", shapes.METADATA2)
    assert table.select(["PatientID", "SeriesInstanceUID", "Collection"]).to_pylist() == [
        {"PatientID": "P1", "SeriesInstanceUID": "1.2.5", "Collection": "C1"},
        {"PatientID": "P2", "SeriesInstanceUID": "1.2.6", "Collection": "C1"},
    ]


def test_a_byte_order_mark_before_json_changes_nothing() -> None:
    body = '\ufeff[{"SeriesInstanceUID":"1"}]'.encode()
    for size in (1, 2, 3, 100):
        assert read_json(in_chunks(body, size), shapes.SERIES_V2)["SeriesInstanceUID"].to_pylist() == ["1"]


@pytest.mark.parametrize(
    "row",
    [
        b'","","1.2.5","C1"',  # server: a null in the first column, whose quotes it forgets
        b',"1.2.5","C1"',
        b'"","1.2.5","C1"',
    ],
)
def test_a_null_in_the_first_cell_of_a_csv_row_costs_nothing_else(row: bytes) -> None:
    body = b'"Subject ID","Series ID","Collection Name"\n"P1","1.2.4","C1"\n' + row + b'\n"P3","1.2.6","C1"\n'
    table = read_csv(body, shapes.METADATA2)
    assert table["PatientID"].to_pylist() == ["P1", None, "P3"]
    assert table["SeriesInstanceUID"].to_pylist() == ["1.2.4", "1.2.5", "1.2.6"]
    assert table["Collection"].to_pylist() == ["C1", "C1", "C1"]


@pytest.mark.parametrize("length", [131_072, 131_073, 2_000_000])
def test_a_cell_of_any_length_is_read(length: int) -> None:
    body = as_csv([{"Series ID": "1", "Series Description": "x" * length}], ["Series ID", "Series Description"])
    assert read_csv(body, shapes.METADATA2)["SeriesDescription"].to_pylist() == ["x" * length]


def test_studies_keep_a_fractional_offset_on_the_fast_way() -> None:
    table = pa.Table.from_pylist(
        [{"StudyInstanceUID": "1", "LongitudinalTemporalOffsetFromEvent": 193.5, "SeriesCount": 3}],
        schema=STUDIES.schema,
    )
    fast, tolerant = both_readers(as_server(table, shapes.STUDY), shapes.STUDY)
    assert fast.equals(table)
    assert tolerant.equals(table)
