"""The demo: the questions of docs/headers.md run on a lake of it, and its references are resolved as is known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.headers import SERIES_REFERENCES
from nbia_pipeline_tests.helpers.references_of_demo import REFERENCES, Target, uid

PAGE = (Path(__file__).parents[2] / "docs" / "headers.md").read_text(encoding="utf-8")
QUESTIONS = re.findall(r"^### (.*\?)\n(?s:.*?)^```sql\n(?s:(.*?))^```\n\n?((?:\|.*\n)*)", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def database(read_demo: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    """The views of a lake with the demo."""
    with duckdb.connect() as connection:
        connection.execute((Path(read_demo.uri) / "catalog.sql").read_text(encoding="utf-8"))
        yield connection


def as_table(found: duckdb.DuckDBPyRelation) -> str:
    """Return a result as the page shows it."""
    rows = [found.columns, ["---"] * len(found.columns), *found.fetchall()]
    return "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def test_the_page_has_a_dozen_questions() -> None:
    assert len(QUESTIONS) == PAGE.count("```sql") == 12


@pytest.mark.parametrize(("question", "sql", "result"), QUESTIONS, ids=[q for q, _, _ in QUESTIONS])
def test_a_question_has_the_answer_of_the_page(
    database: duckdb.DuckDBPyConnection, question: str, sql: str, result: str
) -> None:
    assert as_table(database.sql(sql)) == result


def test_every_series_of_the_demo_refers_to_what_is_written_down(read_demo: Lake) -> None:
    """Read from its files, and resolved over all collections: the roles, the counts, and where the targets are."""
    found: dict[str, set[tuple[Any, ...]]] = {}
    columns = ("Role", "ReferencedSeriesInstanceUID", "ReferencedInstances", "OfInstances", "Resolution", "Missing")
    for name in read_demo.collections_of(SERIES_REFERENCES):
        for row in read_demo.read_table(SERIES_REFERENCES, name).to_pylist():
            found.setdefault(row["SeriesInstanceUID"], set()).add(tuple(row[column] for column in columns))
    expected = {uid(key): set(map(_row, targets)) for key, targets in REFERENCES.items()}
    assert found == expected


def _row(target: Target) -> tuple[Any, ...]:
    series = uid(target.series) if isinstance(target.series, tuple) else target.series
    return (target.role, series, target.instances, target.of, target.resolution, target.missing)
