"""What is wanted minus what is there."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES
from nbia_pipeline.transfer.plan import WantedSeries, batches, make_plan
from nbia_pipeline.transfer.receipts import Receipt

DAY = datetime(2024, 1, 2)  # noqa: DTZ001 - the server states no zone


def wanted(n: int, size: int | None = 100) -> WantedSeries:
    return WantedSeries(f"1.{n:04d}", "1", "P", "A", 3, size, datetime(2024, 1, 1, 8, 30), DAY)  # noqa: DTZ001


def series_table(rows: list[WantedSeries]) -> pa.Table:
    return pa.Table.from_pylist([w.__dict__ for w in rows], schema=SERIES.schema)


def receipts_table(rows: list[WantedSeries], status: str = "complete") -> pa.Table:
    return pa.Table.from_pylist([Receipt(w, status, 1).row() for w in rows], schema=IMAGE_SERIES.schema)


def test_what_is_there_is_not_fetched_again() -> None:
    rows = [wanted(n) for n in range(5)]
    plan = make_plan(series_table(rows), receipts_table(rows[:3]))
    assert plan.todo == rows[3:]
    assert plan.done == 3


@pytest.mark.parametrize(
    "change",
    [
        {"ImageCount": 4},
        {"FileSize": 101},
        {"TimeStamp": datetime(2024, 1, 1, 8, 31)},  # noqa: DTZ001
        {"TimeStamp": None},
        {"DateReleased": datetime(2024, 1, 3)},  # noqa: DTZ001
    ],
)
def test_a_changed_fingerprint_is_fetched_again(change: dict[str, object]) -> None:
    plan = make_plan(series_table([replace(wanted(1), **change)]), receipts_table([wanted(1)]))  # type: ignore[arg-type]
    assert len(plan.todo) == 1


def test_a_bare_day_is_the_same_as_a_time_of_that_day() -> None:
    as_v4 = replace(wanted(1), TimeStamp=datetime(2024, 1, 1))  # noqa: DTZ001
    assert make_plan(series_table([as_v4]), receipts_table([wanted(1)])).done == 1


@pytest.mark.parametrize("status", ["pending", "unavailable", "quarantined"])
def test_what_is_not_complete_is_tried_again(status: str) -> None:
    assert make_plan(series_table([wanted(1)]), receipts_table([wanted(1)], status)).todo == [wanted(1)]


def test_a_bounded_run_leaves_the_rest() -> None:
    rows = [wanted(n) for n in range(5)]
    nothing = IMAGE_SERIES.schema.empty_table()
    assert make_plan(series_table(rows), nothing, max_series=2).left == rows[2:]
    assert make_plan(series_table(rows), nothing, max_bytes=250).todo == rows[:2]
    assert make_plan(series_table(rows), nothing, max_bytes=1).todo == rows[:1]


@given(st.lists(st.one_of(st.none(), st.integers(0, 1000)), max_size=40), st.integers(1, 2000), st.integers(1, 10))
def test_batches_hold_every_series_once_in_order_and_keep_their_bounds(
    sizes: list[int | None], max_bytes: int, max_series: int
) -> None:
    rows = [wanted(n, size) for n, size in enumerate(sizes)]
    cut = list(batches(rows, max_bytes, max_series))
    assert [w for batch in cut for w in batch] == rows
    for batch in cut:
        assert 1 <= len(batch) <= max_series
        assert len(batch) == 1 or sum(w.FileSize or 0 for w in batch) <= max_bytes


@given(st.integers(0, 9999), st.one_of(st.none(), st.integers(0, 10**13)))
def test_a_series_survives_the_way_to_another_process(n: int, size: int | None) -> None:
    assert WantedSeries.from_json(wanted(n, size).to_json()) == wanted(n, size)
