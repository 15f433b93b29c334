"""The questions of docs/headers.md: every statement runs on a lake of the demo, and returns what the page says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nbia_pipeline.lake import Lake

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
