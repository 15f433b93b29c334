# ruff: noqa: DTZ001 - the server's times have no zone

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline.embedded.api.dates import day_first, month_first, year_first


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("2020/01/01", datetime(6, 7, 13)),
        ("01/31/2020", datetime(2022, 7, 1)),
        ("3/7/2024", datetime(2024, 7, 3)),
        ("31/12/24", datetime(24, 12, 31)),
        ("01/01/1900", datetime(1900, 1, 1)),
        ("29/02/2023", datetime(2023, 3, 1)),
        ("0/1/2020", datetime(2019, 12, 31)),
        ("01/00/2020", datetime(2019, 12, 1)),
        (" 01/ 02/2020 rest", datetime(2020, 2, 1)),
        ("2020-01-01", None),
        ("01-31-2020", None),
        ("01 /02/2020", None),
        ("", None),
    ],
)
def test_day_first(text: str, meaning: datetime | None) -> None:
    assert day_first(text) == meaning


@pytest.mark.parametrize(
    ("text", "year", "exact"),
    [
        ("2010/08/16", 2010, datetime(2010, 8, 16)),
        ("16/08/2010", 22, None),
        ("08/16/2010", 14, None),
        ("2010/13/01", 2011, datetime(2011, 1, 1)),
    ],
)
def test_year_first(text: str, year: int, exact: datetime | None) -> None:
    meaning = year_first(text)
    assert meaning is not None
    assert meaning.year == year
    assert exact in (None, meaning)


def test_year_first_unparsable() -> None:
    assert year_first("2010-08-16") is None


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("08-16-2010", datetime(2010, 8, 16)),
        ("8-6-2010", datetime(2010, 8, 6)),
        ("16-08-2010", None),
        ("02-30-2020", None),
        ("08/16/2010", None),
        ("2010-08-16", None),
        ("08-16-10", None),
        ("", None),
    ],
)
def test_month_first(text: str, meaning: datetime | None) -> None:
    assert month_first(text) == meaning


@given(st.integers(-(10**9) + 1, 10**9 - 1), st.integers(-9999, 9999), st.integers(-9999, 99999))
def test_any_numbers_have_a_meaning(day: int, month: int, year: int) -> None:
    assert day_first(f"{day}/{month}/{year}") == year_first(f"{year}/{month}/{day}") is not None
