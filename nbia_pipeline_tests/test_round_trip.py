"""What the archive holds arrives in the lake unchanged, and a damaged answer never becomes a wrong table.

Any rows that the schema allows go catalogue, server, HTTP, client, Parquet, DuckDB, in both dialects.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send

from nbia_pipeline.archive import NbiaClient, answers, bounds
from nbia_pipeline.archive.conformance import Nonconformity, collect
from nbia_pipeline.archive.errors import ArchiveError
from nbia_pipeline.embedded.api import render
from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Catalog
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.embedded.server.archive import Archive
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema import Shape, Table, shapes, tables
from nbia_pipeline.schema.tables import COUNT, DAY, FLAG, REAL, TEXT, TIME
from nbia_pipeline_tests.helpers import expected
from nbia_pipeline_tests.helpers.archives import FAST, serving

pytestmark = pytest.mark.slow

Row = dict[str, Any]

# What an answer does not carry, written down apart from the shapes that server and client share.
ABSENT = {
    ("patients", "v2"): "",
    ("patients", "v4"): "PatientBirthDate",
    ("studies", "v2"): "",
    ("studies", "v4"): "PatientBirthDate",
    ("series", "v2"): "Site PatientSex PatientAge AdmittingDiagnosesDescription ReleasedStatus",
    ("series", "v4"): "",
    ("series_metadata", "v4"): "SOPClassUID AnnotationSize",
    # The TimeStamp of the bulk call is the release date again: no column takes it.
    ("series_metadata", "v2 bulk"): "SOPClassUID AnnotationSize StudyID TimeStamp PixelSpacing SliceThickness",
    ("series_metadata", "v2"): "PixelSpacing SliceThickness",
}
# What the catalog calls otherwise than the lake.
NAMED = {"PixelSpacing": "PixelSpacing(mm)-Row", "SliceThickness": "SliceThickness(mm)"}

# What goes wrong first where somebody quotes, escapes, splits or trims.
_AWKWARD = ["", '"', '""', "'", "\\", '\\"', "\n", "\r\n", "\r", "\t", ",", '","', "},{", '},{"a":', "]", "null", "\0"]
_AWKWARD += [" x ", "/", "\\u0041", "\u2028", "\ufeff", "\x7f", "\x85", "é", "e\u0301", "😀", "%2F", "+", "NaN", "0123"]
# Any Unicode. Lone surrogates are no characters: UTF-8 cannot hold them.
_CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXTS = st.sampled_from(_AWKWARD) | st.text(_CHARACTERS, max_size=12)
SOME_TEXTS = TEXTS.filter(bool)
# A name is a directory of the lake, percent-encoded, and those have 255 bytes.
NAMES = st.text(_CHARACTERS, min_size=1, max_size=15)
UIDS = st.text("0123456789.", min_size=1, max_size=12)
DAYS = st.dates(date(1, 1, 1), date(9999, 12, 31))
TIMES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999))  # noqa: DTZ001
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    TEXT: TEXTS,
    COUNT: st.integers(-(2**63), 2**63 - 1),
    REAL: st.floats(allow_nan=False, allow_infinity=False),  # JSON has neither
    FLAG: st.booleans(),
    DAY: DAYS,
    TIME: TIMES,
}
KEYS = ("SeriesInstanceUID", "StudyInstanceUID", "PatientID")


def facts(**columns: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Row]]:
    """Return rows of one collection: any value in any column but the keys, which are never null."""
    free = {f.name: st.none() | VALUES[f.type] for f in CATALOG_SCHEMA}
    # Few values, so that studies and patients have several series.
    keys = {"PatientID": st.sampled_from(["1", "2.5"]) | TEXTS}
    keys |= {"StudyInstanceUID": st.sampled_from(["1", "2.5"]) | SOME_TEXTS, "SeriesInstanceUID": SOME_TEXTS}
    row = st.fixed_dictionaries({**free, **keys, "Visibility": st.just(1), **columns})
    rows = st.lists(row, min_size=1, max_size=5, unique_by=lambda r: str(r["SeriesInstanceUID"]))
    return st.builds(lambda name, found: [{**r, "Collection": name} for r in found], NAMES, rows)


@dataclass
class RoundTrip:
    """An archive whose catalogue is swapped, a client for each dialect, and room for lakes."""

    archive: Archive
    clients: dict[str, NbiaClient]
    one_by_one: NbiaClient
    folder: Path
    number: Iterator[int]

    def hold(self, rows: list[Row]) -> str:
        """Let the archive hold `rows` and nothing else; return their collection."""
        table = pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA)
        self.archive.holdings.catalog.series = table
        self.archive.holdings.refresh()
        self.archive.forget()
        return str(rows[0]["Collection"])

    def through_the_lake(self, table: Table, rows: pa.Table, collection: str) -> list[Row]:
        """Write rows to a lake of their own and read them with DuckDB, as any user would."""
        root = self.folder / str(next(self.number))
        Lake(str(root)).write_table(table, rows, collection)
        relation = duckdb.sql(
            f"SELECT * FROM read_parquet('{root}/tables/{table.name}/*/*.parquet', "
            "hive_partitioning = true, hive_types_autocast = false)"
        )
        assert relation is not None
        found = relation.to_arrow_table().select(table.schema.names)
        assert found.schema.equals(table.schema, check_metadata=False)
        return list(found.to_pylist())


class WithoutBulk:
    """An archive without getSeriesMetadata2, so that the client asks for one series after the other."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if str(scope.get("path", "")).endswith("/getSeriesMetadata2"):
            scope = {**scope, "path": "/nbia-api/services/none", "raw_path": b"/nbia-api/services/none"}
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def world() -> Iterator[RoundTrip]:
    app = create_app(Catalog(CATALOG_SCHEMA.empty_table()))
    with (
        serving(app) as url,
        serving(WithoutBulk(app)) as other,
        tempfile.TemporaryDirectory(prefix="round-trip-") as folder,
        NbiaClient(url, api="v2", options=FAST) as v2,
        NbiaClient(url, api="v4", options=FAST) as v4,
        NbiaClient(other, api="v2", options=FAST) as one_by_one,
    ):
        yield RoundTrip(app.state.archive, {"v2": v2, "v4": v4}, one_by_one, Path(folder), itertools.count())


def arrives(rows: list[Row], table: Table, answer: str) -> list[Row]:
    """Return what the lake shall hold of the facts, of an answer named in ABSENT.

    What is not carried is null, and what the server fills in is filled. v4 and the bulk call lose the time of
    day, Java's dates what is below a second.
    """
    defaults = {"Phantom": "NO", "SpeciesCode": "337915000", "SpeciesDescription": "Homo sapiens"}
    absent = ABSENT[table.name, answer].split()
    found = []
    for facts_of_row in rows:
        row = {**facts_of_row, **{k: v for k, v in defaults.items() if facts_of_row[k] is None}}
        found.append(
            {n: None if n in absent else _carried(row[NAMED.get(n, n)], table, answer) for n in table.schema.names}
        )
    return found


def _carried(value: Any, table: Table, answer: str) -> Any:
    if not isinstance(value, datetime):
        return value
    if answer != "v2":
        return datetime.combine(value.date(), time())
    return value.replace(microsecond=0) if table.name == "series_metadata" else value


def same(found: list[Row], wanted: list[Row]) -> None:
    """Compare rows value by value, in any order; types are compared with the schema."""

    def sort(rows: list[Row]) -> list[Row]:
        return sorted(rows, key=lambda r: [(v is not None, str(v)) for v in r.values()])

    assert sort(found) == sort([{n: w[n] for n in found[0]} for w in wanted])


ONE_SERVER = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))


@ONE_SERVER
@given(rows=facts())
@pytest.mark.parametrize("api", ["v2", "v4"])
def test_patients_arrive_unchanged(world: RoundTrip, api: str, rows: list[Row]) -> None:
    name = world.hold(rows)
    answer = world.clients[api].patients(name)
    wanted = arrives(expected.first_of_each(rows, "PatientID"), tables.PATIENTS, api)
    same(world.through_the_lake(tables.PATIENTS, answer, name), wanted)


@ONE_SERVER
@given(rows=facts())
@pytest.mark.parametrize("api", ["v2", "v4"])
def test_studies_arrive_unchanged(world: RoundTrip, api: str, rows: list[Row]) -> None:
    name = world.hold(rows)
    answer = world.clients[api].studies(name)
    wanted = arrives(expected.studies(rows), tables.STUDIES, api)
    same(world.through_the_lake(tables.STUDIES, answer, name), wanted)


@ONE_SERVER
@given(rows=facts())
@pytest.mark.parametrize("api", ["v2", "v4"])
def test_series_arrive_unchanged(world: RoundTrip, api: str, rows: list[Row]) -> None:
    name = world.hold(rows)
    answer = world.clients[api].series(name)
    same(world.through_the_lake(tables.SERIES, answer, name), arrives(rows, tables.SERIES, api))


# UIDs go to the server as a list parted by commas, so these are UIDs.
_ASKED = {"SeriesInstanceUID": UIDS}


@ONE_SERVER
@given(rows=facts(**_ASKED))
def test_metadata_of_v4_arrive_unchanged(world: RoundTrip, rows: list[Row]) -> None:
    name = world.hold(rows)
    answer = world.clients["v4"].series_metadata([r["SeriesInstanceUID"] for r in rows])
    wanted = arrives(rows, tables.SERIES_METADATA, "v4")
    same(world.through_the_lake(tables.SERIES_METADATA, answer, name), wanted)


# Python's own CSV reader refuses NUL before 3.11: an error, not a wrong table, but no row either.
_CSV_TEXTS = TEXTS if sys.version_info >= (3, 11) else TEXTS.filter(lambda t: "\0" not in t)
_CSV = {f.name: st.none() | _CSV_TEXTS for f in CATALOG_SCHEMA if f.type == TEXT and f.name not in KEYS}


@ONE_SERVER
@given(rows=facts(**{**_CSV, **dict.fromkeys(KEYS, UIDS)}))
def test_metadata_of_v2_in_bulk_arrive_with_its_quirks(world: RoundTrip, rows: list[Row]) -> None:
    name = world.hold(rows)
    answer = world.clients["v2"].series_metadata([r["SeriesInstanceUID"] for r in rows])
    # In CSV the empty text is a null.
    wanted = [
        {k: None if v == "" else v for k, v in r.items()} for r in arrives(rows, tables.SERIES_METADATA, "v2 bulk")
    ]
    same(world.through_the_lake(tables.SERIES_METADATA, answer, name), wanted)


# Without images or an address of the licence the server ends in a 500.
_COMPLETE = {"LicenseURI": TEXTS, "ImageCount": st.integers(1, 2**63 - 1), "SeriesInstanceUID": UIDS}


@settings(ONE_SERVER, max_examples=25)
@given(rows=facts(**_COMPLETE))
def test_metadata_of_v2_one_by_one_arrive_with_its_quirks(world: RoundTrip, rows: list[Row]) -> None:
    name = world.hold(rows)
    answer = world.one_by_one.series_metadata([r["SeriesInstanceUID"] for r in rows])
    # Sanitised descriptions, no commas in the manufacturer, a flag that says whether it is set.
    wanted = arrives([expected.sanitised(r) for r in rows], tables.SERIES_METADATA, "v2")
    same(world.through_the_lake(tables.SERIES_METADATA, answer, name), wanted)


# --- damaged answers

_SHAPES = [
    shapes.PATIENT,
    shapes.STUDY,
    shapes.SERIES_V2,
    shapes.SERIES_SHORT,
    shapes.META27,
    shapes.PATIENT_V4,
    shapes.STUDY_V4,
    shapes.SERIES_V4,
    shapes.METADATA_V4,
]
# A row with little and one with everything: enough for boundaries, short enough for damage to hit something.
_HELD: list[Row] = [
    {f.name: None for f in CATALOG_SCHEMA},
    {
        f.name: {
            TEXT: 'A "b", c\\d\né',
            COUNT: 12,
            REAL: 59.5,
            FLAG: True,
            DAY: date(2014, 11, 6),
            TIME: datetime(2011, 11, 8, 8, 8, 1),  # noqa: DTZ001
        }[f.type]
        for f in CATALOG_SCHEMA
    },
]
_HELD[0] |= {name: f"1.{name}" for name in (*KEYS, "Collection", "Modality")} | {"SeriesNumber": 7, "ImageCount": 0}


def _body(rows: list[Row], shape: Shape) -> bytes:
    return b"".join(render.render_json(pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA), shape))


# Long ones for accidents inside of values, short ones for those between objects.
BODIES = {s.name: (_body(_HELD, s), _body(_HELD[:1] * 3, s), _body(_HELD[:1] * 2, s)) for s in _SHAPES}

# What breaks JSON, and what is JSON but not what it was.
_TOKENS = [*'[]{},:"\\-01.eE/ \n\0é', "null", "true", "NaN", "9" * 20, "},{", "}{", '""', "[]", "{}", '\\"', "\\u0041"]
_INSERTED = st.sampled_from(_TOKENS).map(str.encode) | st.binary(min_size=1, max_size=2)
_JOINTS = re.compile(rb'(?<=[\[{,])(?=["{])|(?=,"|\})|(?<=\})')


@st.composite
def damaged(draw: st.DrawFn, body: bytes) -> bytes:
    """Return `body` after one or two accidents: bytes lost, added, changed or sent twice.

    Half of them fall between members or objects, where what is left may still be JSON.
    """
    for _ in range(draw(st.integers(1, 2))):
        joints = [m.start() for m in _JOINTS.finditer(body)]
        anywhere = st.integers(0, len(body))
        place = anywhere | st.sampled_from(joints) if joints else anywhere
        start = draw(place)
        start, stop = sorted([start, draw(place | st.integers(start, start + 2))])
        accident = draw(st.sampled_from(["cut", "lose", "add", "change", "change", "repeat", "repeat"]))
        if accident == "cut":
            body = body[:stop]
        elif accident == "lose":
            body = body[:start] + body[stop:]
        elif accident == "add":
            body = body[:start] + draw(_INSERTED) + body[start:]
        elif accident == "change":
            body = body[:start] + draw(_INSERTED) + body[start + 1 :]
        else:
            body = body[:stop] + body[start:]
    return body


@settings(max_examples=1000, deadline=None)
@given(st.data(), st.sampled_from(_SHAPES), st.sampled_from([40, 4 << 20]))
def test_a_damaged_answer_is_an_error_or_what_it_says(data: st.DataObject, shape: Shape, piece: int) -> None:
    body = data.draw(damaged(data.draw(st.sampled_from(BODIES[shape.name]))))
    _is_an_error_or_what_it_says(body, shape, piece)


_FORMS = ["2014-11-06", "2014-11-06 00:00:00.0", "02-30-2014", "11-06-2014", "1.0", "1e3", "012", "YES", "true", "٣"]
_SCALARS = st.sampled_from(_FORMS) | st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
_ANYTHING = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=4
)


@settings(max_examples=500, deadline=None)
@given(st.data(), st.sampled_from(_SHAPES), st.sampled_from([40, 4 << 20]))
def test_an_answer_of_another_type_is_an_error_or_what_it_says(data: st.DataObject, shape: Shape, piece: int) -> None:
    assert shape.table is not None
    names = st.sampled_from([k.name for k in shape.keys] + [k.guide for k in shape.keys if k.guide])
    identity = {k.name: st.just("1") for k in shape.keys if k.column in shape.table.key}
    strange = st.dictionaries(names, _SCALARS | _ANYTHING, max_size=2)
    row = st.builds(lambda known, odd: {**known, **odd}, st.fixed_dictionaries(identity), strange)
    rows = st.lists(row, min_size=1, max_size=3)
    answer = data.draw(st.one_of(rows, rows, rows, st.lists(row | _ANYTHING, max_size=2), _ANYTHING))
    spaced = data.draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    _is_an_error_or_what_it_says(json.dumps(answer, separators=spaced).encode(), shape, piece)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("key", ["PatientName", "FileSize"])
def test_what_python_alone_takes_for_json_is_null(constant: str, key: str) -> None:
    body = f'[{{"SeriesInstanceUID":"1","Modality":"CT","{key}":{constant}}}]'.encode()
    with collect() as found:
        row = answers.read_json([body], shapes.METADATA_V4).to_pylist()[0]
    assert {name: value for name, value in row.items() if value is not None} == {
        "SeriesInstanceUID": "1",
        "Modality": "CT",
    }
    # No column wants the value of PatientName.
    assert [(one.column, one.value) for one in found] == ([("FileSize", constant)] if key == "FileSize" else [])


def _is_an_error_or_what_it_says(body: bytes, shape: Shape, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "PIECE_BYTES", piece)
        try:
            with collect() as found:
                table = answers.read_json([body[i : i + 64] for i in range(0, len(body), 64)], shape)
        except ArchiveError:
            return
    assert table.schema.equals(shape.schema)
    if not body.strip(b" \t\r\n"):
        assert table.num_rows == 0  # server: that is how it says "none"
        return
    text = body.decode("utf-8", "surrogateescape")
    rows = json.loads(text, parse_float=Decimal, parse_constant=lambda name: [name], strict=False)
    assert isinstance(rows, list)
    _say(rows, table, shape, found)


def _say(rows: list[Any], table: pa.Table, shape: Shape, found: list[Nonconformity]) -> None:
    """Compare the elements of the body with the rows that were made of them, and with what was reported of them."""
    assert shape.table is not None
    meant = [_meant(said, shape, table.schema) for said in rows if isinstance(said, dict)]
    if len(shape.keys) > 1:
        keys = [[row[name] for name in shape.table.key] for row, _ in meant]
        if any(len(values) > 1 for key in keys for values in key):
            return  # two values for a key: which one counts is not said
        has_key = [
            all(
                values[0] is not None and (values[0] != "" or name == "PatientID")
                for name, values in zip(shape.table.key, key, strict=True)
            )
            for key in keys
        ]
        meant = [row for row, kept in zip(meant, has_key, strict=True) if kept]
        assert sum("left out" in one.why for one in found) == len(rows) - len(meant)
    read = table.to_pylist()
    assert len(read) == len(meant)
    for row, (values, _) in zip(read, meant, strict=True):
        assert all(row[name] in values[name] for name in row)
    assert sum("the cell is null" in one.why for one in found) >= sum(odd for _, odd in meant)


def _meant(said: Row, shape: Shape, schema: pa.Schema) -> tuple[dict[str, list[Any]], int]:
    """Return what one object may mean, and how many of its columns have a value that does not fit, and no other.

    A column has several meanings where its key stands there in several spellings; any of them may be kept.
    """
    columns = shape.columns_by_wire_name
    row: dict[str, list[Any]] = {name: [] for name in schema.names}
    odd: Counter[str] = Counter()
    for key, value in said.items():
        column = columns.get(key.replace(" ", "").casefold())
        if column is not None and value is not None:
            try:
                row[column].append(_value(value, schema.field(column).type))
            except (ValueError, TypeError, AssertionError, ArithmeticError, KeyError):
                row[column].append(None)
                odd[column] += 1
    return {name: values or [None] for name, values in row.items()}, sum(len(row[name]) == 1 for name in odd)


def _value(raw: Any, kind: pa.DataType) -> Any:
    """Return what a value of the body means in a column, worked out apart from the client."""
    if raw is None:
        return None
    if kind == TEXT:
        assert isinstance(raw, (str, int, Decimal)) and not isinstance(raw, bool)
        str(raw).encode()  # no surrogates
        return str(raw)
    if isinstance(raw, str) and not raw.strip():
        assert not raw or kind not in (COUNT, REAL)
        return None
    if kind == FLAG:
        assert isinstance(raw, (str, int))
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(raw).strip().lower()]
    if kind in (COUNT, REAL):
        assert isinstance(raw, (str, int, Decimal)) and not isinstance(raw, bool)
        assert not isinstance(raw, str) or (raw.isascii() and "_" not in raw)
        number = Decimal(raw)
        assert number.is_finite() and abs(number.adjusted()) <= 300
        if kind == REAL:
            return float(number)
        assert number == int(number) and -(2**63) <= number < 2**63
        return int(number)
    moment = _moment(raw)
    if kind == DAY and moment is not None:
        assert (moment.hour, moment.minute, moment.second, moment.microsecond) == (0, 0, 0, 0)
        return moment.date()
    return moment


def _moment(raw: Any) -> datetime | None:
    if not isinstance(raw, str):
        return datetime(1970, 1, 1) + _milliseconds(raw)  # noqa: DTZ001
    words = raw.split()
    if not words:
        return None
    # strptime takes a single digit, too.
    assert all(len(digits) > 1 for digits in re.findall(r"\d+", raw.partition(".")[0])), raw
    if len(words) >= 5:  # Java's: weekday month day time zone year
        words = words[:4] + words[-1:]
        return datetime.strptime(" ".join(words[1:]), "%b %d %H:%M:%S %Y")  # noqa: DTZ007
    text = raw.strip().replace("T", " ")
    for form in ("%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d %H", "%Y-%m-%d", "%m-%d-%Y"):
        try:
            return datetime.strptime(text, form)  # noqa: DTZ007
        except ValueError:
            continue
    raise AssertionError(f"the client took {raw!r} for a date")


def _milliseconds(raw: Any) -> timedelta:
    assert isinstance(raw, (int, Decimal)) and not isinstance(raw, bool)
    return timedelta(milliseconds=float(raw))


CSV_ROWS = [{**r, "SeriesInstanceUID": str(n)} for n in (1, 2) for r in _HELD[1:]]
CSV_BODY = b"".join(render.render_csv(pa.Table.from_pylist(CSV_ROWS, schema=CATALOG_SCHEMA), shapes.METADATA2))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_metadata_in_csv_are_an_error_or_what_they_say(data: st.DataObject) -> None:
    body = data.draw(damaged(CSV_BODY))
    try:
        with collect() as found:
            table = answers.read_csv(body, shapes.METADATA2)
    except ArchiveError:
        return
    if not body.strip():
        assert table.num_rows == 0
        return
    header, *rows = filter(None, csv.reader(io.StringIO(body.decode("utf-8", "surrogateescape"))))
    rows = [row for row in rows if len(row) == len(header) or any(map(str.strip, row))]
    cells = [
        {h: c or None for h, c in zip(header, row, strict=True)} if len(row) == len(header) else row for row in rows
    ]
    _say(cells, table, shapes.METADATA2, found)
