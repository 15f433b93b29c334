"""Answers of real servers, as public repositories hold them, are read value for value.

`data/recorded/` has one file per repository: where it is, when it was recorded, under which license, and in which form.
Each answer is a few rows of what a server sent, with the values that they stand for. Those are written down by hand,
not read by the code under test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nbia_pipeline import archive
from nbia_pipeline.archive import NbiaClient, SeriesSize
from nbia_pipeline.archive.endpoints import Dialect
from nbia_pipeline.mirror.selection import read_manifest
from nbia_pipeline.mirror.zip_stream import stream_entries
from nbia_pipeline_tests.helpers.archives import FAST, serving
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT
from nbia_pipeline_tests.helpers.zips import pack

DATA = Path(__file__).parents[1] / "data" / "recorded"
SOURCES = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(DATA.glob("*.json"))]
ANSWERS = [answer for source in SOURCES for answer in source["answers"]]
TOKEN = {"access_token": "t", "refresh_token": "r", "expires_in": 7200, "refresh_expires_in": 7200}


def answers(*keys: str) -> pytest.MarkDecorator:
    """Run a test with every answer that has all of `keys`."""
    chosen = [a for a in ANSWERS if a.keys() >= set(keys)]
    assert chosen
    return pytest.mark.parametrize("answer", [pytest.param(a, id=a["name"]) for a in chosen])


class RealServer:
    """A server that sends one recorded answer, and knows no other endpoint."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}
        self.app = Starlette(routes=[Route("/{path:path}", self.respond, methods=["GET", "POST"])])

    def respond(self, request: Request) -> Response:
        endpoint = request.url.path.rsplit("/", 1)[-1]
        if endpoint in ("token", "logout"):
            return JSONResponse(TOKEN)
        if endpoint != called(self.answer):
            return Response(NO_SUCH_ENDPOINT, 500, media_type="text/plain")
        return Response(self.answer["body"], self.answer.get("status", 200), media_type="application/json")


def called(answer: dict[str, Any]) -> str:
    """Return the endpoint of an answer."""
    match = re.match(r"(?:v\d/)?(\w+)", answer["call"])
    assert match
    return match[1]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[RealServer, str]]:
    real = RealServer()
    with serving(real.app) as url:
        yield real, url


def asking_for_csv(dialect: Dialect) -> Dialect:
    """Return a dialect that asks for metadata as CSV, as this client does on v2 only."""
    bulk = replace(dialect.endpoint("series_metadata_bulk"), media="csv", constants={})
    return replace(dialect, endpoints={**dialect.endpoints, "series_metadata_bulk": bulk})


def ask(server: tuple[RealServer, str], answer: dict[str, Any]) -> Any:
    """Return what the client makes of an answer."""
    real, url = server
    real.answer = answer
    arguments = dict(answer["arguments"])
    if "since" in arguments:
        arguments["since"] = date.fromisoformat(arguments["since"])
    if answer["method"] == "image":
        arguments["read"] = b"".join
    with NbiaClient(url, api=answer["api"], options=FAST) as client:
        if answer.get("format") == "csv":
            client._dialect = asking_for_csv(client._dialect)
        return getattr(client, answer["method"])(**arguments)


def typed(value: Any, kind: pa.DataType) -> Any:
    """Return a value of a file as the column has it: JSON knows no days and no times."""
    if value is None or not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        return value
    return date.fromisoformat(value) if pa.types.is_date(kind) else datetime.fromisoformat(value)


def assert_rows(table: pa.Table, rows: list[dict[str, Any]]) -> None:
    """Expect exactly these rows; a column that a row does not name is null in it."""
    named = {column for row in rows for column in row}
    assert named - set(table.schema.names) <= {"PixelSpacing", "SliceThickness"}  # until a table wants them
    assert table.to_pylist() == [{f.name: typed(row.get(f.name), f.type) for f in table.schema} for row in rows]


def test_there_are_at_least_28_answers_and_each_says_where_it_is_from() -> None:
    assert len(ANSWERS) >= 28
    assert len({a["name"] for a in ANSWERS}) == len(ANSWERS)
    for source in SOURCES:
        assert all(source[key] for key in ("repository", "path", "commit", "date", "license", "form"))
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 100_000


@answers("method", "rows")
def test_a_recorded_table_is_read_value_for_value(server: tuple[RealServer, str], answer: dict[str, Any]) -> None:
    assert_rows(ask(server, answer), answer["rows"])


@answers("method", "value")
def test_a_recorded_list_or_count_is_read_value_for_value(
    server: tuple[RealServer, str], answer: dict[str, Any]
) -> None:
    result = ask(server, answer)
    if isinstance(result, dict):
        result = [list(pair) for pair in result.items()]
    assert (asdict(result) if isinstance(result, SeriesSize) else result) == answer["value"]


@answers("manifest")
def test_a_recorded_manifest_names_its_series(tmp_path: Path, answer: dict[str, Any]) -> None:
    path = tmp_path / "manifest.tcia"
    path.write_text(answer["manifest"], encoding="utf-8")
    assert read_manifest(path) == answer["value"]


@answers("entries")
def test_the_recorded_names_in_a_zip_are_read_in_order(answer: dict[str, Any]) -> None:
    zipped = pack([(name, name.encode()) for name in answer["entries"]])
    assert [entry.name for entry in stream_entries([zipped])] == answer["entries"]


@answers("error")
def test_a_recorded_failure_has_its_class_and_its_status(
    server: tuple[RealServer, str], answer: dict[str, Any]
) -> None:
    with pytest.raises(getattr(archive, answer["error"])) as caught:
        ask(server, answer)
    assert caught.value.status == answer["status"]
