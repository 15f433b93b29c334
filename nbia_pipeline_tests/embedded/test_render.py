# ruff: noqa: DTZ001 - the server's times have no zone

from __future__ import annotations

import csv
import io
import json
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline.embedded.api import render
from nbia_pipeline.schema import shapes
from nbia_pipeline.schema.shapes import Form, Key, Shape
from nbia_pipeline_tests.helpers.tiny import tiny_catalog

TWO = Shape("TWO", None, (Key("a", "a"), Key("b b", "b")))
TEXTS = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"])))


def as_json(table: pa.Table, shape: Shape, guide: bool = False) -> bytes:
    return b"".join(render.render_json(table, shape, guide))


def one(value: Any, kind: pa.DataType, form: Form) -> str:
    table = pa.table({"a": pa.array([value], kind)})
    return as_json(table, Shape("ONE", None, (Key("a", "a", form),))).decode()


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20))
def test_json_reads_back(rows: list[tuple[str | None, str | None]]) -> None:
    table = pa.table(
        {"a": pa.array([a for a, _ in rows], pa.string()), "b": pa.array([b for _, b in rows], pa.string())}
    )
    expected = [{k: v for k, v in (("a", a), ("b b", b)) if v is not None} for a, b in rows]
    assert json.loads(as_json(table, TWO)) == expected


@given(st.lists(st.tuples(st.text('ab",\né', min_size=1), TEXTS), min_size=1, max_size=20))
def test_csv_reads_back(rows: list[tuple[str, str | None]]) -> None:
    # Carriage returns are left out: Python's reader takes them for line ends outside of quotes only.
    rows = [(a, None if b is None else b.replace("\r", "")) for a, b in rows]
    table = pa.table({"a": [a for a, _ in rows], "b": pa.array([b for _, b in rows], pa.string())})
    text = b"".join(render.render_csv(table, TWO)).decode()
    read = list(csv.reader(io.StringIO(text, newline="")))
    assert read == [["a", "b b"], *([a, b or ""] for a, b in rows)]


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        (None, "x", '","","x"'),
        (None, None, '","",""'),
        (None, 'a "b", c', '","","a ""b"", c"'),
        ("", "x", '"","x"'),
        ("y", None, '"y",""'),
    ],
)
def test_a_null_in_the_first_column_breaks_the_quoting_of_its_row(
    first: str | None, second: str | None, line: str
) -> None:
    table = pa.table({"a": pa.array(["z", first], pa.string()), "b": pa.array(["z", second], pa.string())})
    text = b"".join(render.render_csv(table, TWO)).decode()
    assert text == f'"a","b b"\n"z","z"\n{line}\n'


def test_every_control_character() -> None:
    text = "".join(map(chr, range(0x20))) + '"\\/\x7f\u2028\U0001f600é'
    rendered = one(text, pa.string(), Form.TEXT)
    assert json.loads(rendered) == [{"a": text}]
    assert rendered == (
        '[{"a":"\\u0000\\u0001\\u0002\\u0003\\u0004\\u0005\\u0006\\u0007\\b\\t\\n\\u000b\\f\\r\\u000e\\u000f'
        "\\u0010\\u0011\\u0012\\u0013\\u0014\\u0015\\u0016\\u0017\\u0018\\u0019\\u001a\\u001b\\u001c\\u001d"
        '\\u001e\\u001f\\"\\\\\\/\x7f\u2028\U0001f600é"}]'
    )


@pytest.mark.parametrize(
    ("value", "kind", "form", "expected"),
    [
        (8, pa.int64(), Form.NUMBER, "8"),
        (59.0, pa.float64(), Form.NUMBER, "59"),
        (1.5, pa.float64(), Form.NUMBER, "1.5"),
        (12, pa.int64(), Form.NUMBER_TEXT, '"12"'),
        (1, pa.int64(), Form.DECIMAL_TEXT, '"1.000000"'),
        (1.25, pa.float64(), Form.DECIMAL_TEXT, '"1.250000"'),
        (True, pa.bool_(), Form.BOOLEAN, "true"),
        (False, pa.bool_(), Form.FLAG_TEXT, '"false"'),
        (date(2014, 11, 6), pa.date32(), Form.DATETIME, '"2014-11-06 00:00:00.0"'),
        (datetime(2011, 11, 8, 8, 8, 1), pa.timestamp("us"), Form.DATETIME, '"2011-11-08 08:08:01.0"'),
        (datetime(2011, 11, 8, 8, 8, 1, 250000), pa.timestamp("us"), Form.DATETIME, '"2011-11-08 08:08:01.25"'),
        (datetime(2011, 11, 8, 8, 8, 1, 10), pa.timestamp("us"), Form.DATETIME, '"2011-11-08 08:08:01.00001"'),
        (datetime(2011, 11, 8, 8, 8, 1), pa.timestamp("us"), Form.ISO_DAY, '"2011-11-08"'),
        (datetime(2011, 11, 8, 8, 8, 1), pa.timestamp("us"), Form.US_DAY, '"11-08-2011"'),
        (datetime(1960, 1, 2, 23, 0), pa.timestamp("us"), Form.US_DAY, '"01-02-1960"'),
        (date(2023, 8, 7), pa.date32(), Form.US_DAY, '"08-07-2023"'),
        (date(2023, 8, 7), pa.date32(), Form.JAVA, '"Mon Aug 07 00:00:00 CDT 2023"'),
        (datetime(2020, 1, 2, 10, 30), pa.timestamp("us"), Form.JAVA, '"Thu Jan 02 10:30:00 CDT 2020"'),
        (1_700_000_000_000, pa.int64(), Form.EPOCH_MS, "1700000000000"),
        (datetime(2023, 11, 14, 22, 13, 20), pa.timestamp("us"), Form.EPOCH_MS, "1700000000000"),
        ("", pa.string(), Form.US_DAY, '""'),
    ],
)
def test_forms(value: Any, kind: pa.DataType, form: Form, expected: str) -> None:
    assert one(value, kind, form) == f'[{{"a":{expected}}}]'


def test_nulls_omit_keys_and_a_row_of_nulls_is_empty() -> None:
    table = pa.table({"a": ["x", None, None], "b": pa.array([None, None, "y"], pa.string())})
    assert as_json(table, TWO) == b'[{"a":"x"},{},{"b b":"y"}]'
    assert as_json(table.slice(1, 1), TWO) == b"[{}]"
    assert as_json(table.select([]).slice(0, 0), TWO) == b"[]"


def test_slices_and_batches_join_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "ROWS_PER_BATCH", 3)
    table = pa.table({"a": [f"v/{n}" for n in range(20)], "b": pa.nulls(20, pa.string())})
    rows = json.loads(as_json(table.slice(2, 11), TWO))
    assert rows == [{"a": f"v/{n}"} for n in range(2, 13)]


def test_single_column_csv_is_unquoted() -> None:
    table = pa.table({"a": ["x, y", None, 'q"']})
    text = b"".join(render.render_csv(table, Shape("ONE", None, (Key("a", "a"),))))
    assert text == b'a\nx, y\n\n\nq"\n'


def test_jackson_shows_nulls_and_keeps_slashes() -> None:
    table = pa.table({"a": ["x/y", None], "b": pa.array([None, 2], pa.int64())})
    shape = Shape("J", None, (Key("a", "a"), Key("b", "b", Form.NUMBER)))
    assert render.render_jackson(table, shape) == b'[{"a":"x/y","b":null},{"a":null,"b":2}]'
    assert render.render_jackson(table.slice(0, 0), shape) == b"[]"


def test_keys_stand_in_the_order_of_the_shape_and_in_the_guides_spelling() -> None:
    table = tiny_catalog().series.slice(0, 1)
    (server,) = json.loads(as_json(table, shapes.SERIES_V2))
    (guide,) = json.loads(as_json(table, shapes.SERIES_V2, guide=True))
    order = [k.name for k in shapes.SERIES_V2.keys]
    assert list(server) == [name for name in order if name in server]
    assert server["StudyDesc"] == guide["StudyDescription"] == "Staging: -1"
    assert "StudyDesc" not in guide
