"""What is wanted minus what is there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline import clock
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.commit import with_receipts
from nbia_pipeline.mirror.plan import Bounds, Figures, Plan, batches, make_plan, room_for_files
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.selection import Selection
from nbia_pipeline.mirror.series import (
    FINGERPRINT,
    NEWER,
    WantedSeries,
    in_order_of,
    same_content,
    same_contents,
    same_fingerprints,
)
from nbia_pipeline.schema.arrow import with_column
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline_tests.helpers.series import series_table, wanted

Content = tuple[int | None, int | None, datetime | None, datetime | None]


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
    assert make_plan(series_table(rows), nothing, bounds=Bounds(max_series=2)).left == rows[2:]
    assert make_plan(series_table(rows), nothing, bounds=Bounds(max_bytes=250)).todo == rows[:2]
    assert make_plan(series_table(rows), nothing, bounds=Bounds(max_bytes=1)).todo == rows[:1]


def test_what_was_never_tried_comes_before_what_failed() -> None:
    """Else a bounded run would spend itself on the same quarantined series every time."""
    rows = [wanted(n) for n in range(6)]
    receipts = pa.concat_tables(
        [receipts_table(rows[:1], "quarantined"), receipts_table(rows[2:3], "unavailable"), receipts_table(rows[4:5])]
    )
    plan = make_plan(series_table(rows), receipts)
    assert plan.todo == [rows[1], rows[3], rows[5], rows[0], rows[2]]
    assert make_plan(series_table(rows), receipts, bounds=Bounds(max_series=2)).todo == [rows[1], rows[3]]
    without = make_plan(series_table(rows), receipts, bounds=Bounds(retry=False))
    assert (without.todo, without.given_up, without.wanted_figures.series, without.done) == (
        [rows[1], rows[3], rows[5]],
        2,
        6,
        1,
    )


def test_what_was_unavailable_for_a_day_is_tried_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [wanted(0), wanted(1)]
    receipts = pa.concat_tables([receipts_table(rows[:1], "quarantined"), receipts_table(rows[1:], "unavailable")])
    assert make_plan(series_table(rows), receipts, bounds=Bounds(retry=False)).given_up == 2
    tomorrow = clock.utc_now() + timedelta(days=1, minutes=1)
    monkeypatch.setattr(clock, "utc_now", lambda: tomorrow)
    plan = make_plan(series_table(rows), receipts, bounds=Bounds(retry=False))
    assert (plan.todo, plan.given_up) == ([rows[1]], 1)


def test_what_failed_is_new_when_its_content_changed() -> None:
    listed = series_table([replace(wanted(0), FileSize=101), wanted(1)])
    plan = make_plan(listed, receipts_table([wanted(0)], "quarantined"), bounds=Bounds(retry=False))
    assert [w.SeriesInstanceUID for w in plan.todo] == ["1.0000", "1.0001"]


def test_a_refresh_that_failed_counts_for_that_version_only() -> None:
    newer, newest = replace(wanted(0), FileSize=200), replace(wanted(0), FileSize=300)
    receipts = with_receipts(receipts_table([wanted(0)]), [Receipt(newer, "quarantined", 3, reason="short by one")])
    assert make_plan(series_table([newer]), receipts, bounds=Bounds(retry=False)).given_up == 1
    assert make_plan(series_table([newer, wanted(1)]), receipts).todo == [wanted(1), newer]
    assert make_plan(series_table([newest]), receipts, bounds=Bounds(retry=False)).todo == [newest]
    assert make_plan(series_table([wanted(0)]), receipts, bounds=Bounds(retry=False)).done == 1


def test_a_withdrawn_receipt_counts_as_long_as_its_files_are_there() -> None:
    row = {**Receipt(wanted(0), "complete", 1).row(), "Status": "withdrawn"}
    kept, pruned = (pa.Table.from_pylist([{**row, "Bytes": b}], schema=IMAGE_SERIES.schema) for b in (5, None))
    assert make_plan(series_table([wanted(0)]), kept).done == 1
    assert make_plan(series_table([wanted(0)]), pruned).todo == [wanted(0)]


def test_a_plan_says_how_much_there_is_to_do() -> None:
    rows = [wanted(n) for n in range(6)]
    rows[5] = replace(rows[5], FileSize=None)
    listed = series_table(rows)
    selection = Selection(series=tuple(w.SeriesInstanceUID for w in rows[1:]))
    plan = make_plan(listed, receipts_table(rows[:2]), selection=selection, bounds=Bounds(max_series=3))
    assert plan.unselected == 1
    assert plan.wanted_figures == Figures(5, 15, 400, 1)
    assert plan.done_figures == Figures(1, 3, 100)
    assert plan.figures == Figures(3, 9, 300)
    assert Figures.of(plan.left) == Figures(1, 3, 0, 1)


def test_an_empty_lake_and_an_empty_list_make_a_plan() -> None:
    nothing = make_plan(series_table([]), receipts_table([]))
    assert (nothing.todo, nothing.left, nothing.wanted_figures) == ([], [], Figures())
    assert make_plan(series_table([]), receipts_table([wanted(1)])).done == 0


# --- room


def plan_in(free: int | None, *sizes: int | None, **bounds: Any) -> Plan:
    series = series_table([wanted(n, size) for n, size in enumerate(sizes)])
    return make_plan(series, receipts_table([]), bounds=Bounds(**bounds), free=free)


@pytest.mark.parametrize(
    ("sizes", "bounds", "todo", "left", "no_room"),
    [
        ((50_000_000,), {}, [0], [], []),
        ((50_000_001,), {}, [], [], [0]),
        ((40_000_000, 60_000_000, 10_000_000), {}, [0, 2], [], [1]),  # what is smaller still fits
        ((30_000_000, 30_000_000), {}, [0], [], [1]),
        ((10**15, 1, None, 0, -5), {}, [1, 2, 3, 4], [], [0]),  # without a size, or with a wrong one, it is tried
        ((10**15, 1, 2, 3), {"max_series": 2}, [1, 2], [3], [0]),
        ((10**15, 10, 10, 10), {"max_bytes": 15}, [1], [2, 3], [0]),
    ],
)
def test_a_plan_takes_what_fits_on_the_disk(
    sizes: tuple[int | None, ...], bounds: dict[str, Any], todo: list[int], left: list[int], no_room: list[int]
) -> None:
    plan = plan_in(10**8, *sizes, **bounds)  # of these 100 MB, tables and work in progress need 50
    rows = [wanted(n, size) for n, size in enumerate(sizes)]
    assert (plan.todo, plan.left, plan.no_room) == tuple([rows[n] for n in part] for part in (todo, left, no_room))
    assert ("too little room" in plan.text()) == bool(no_room)


@given(st.lists(st.none() | st.integers(-1, 10**9), max_size=30), st.none() | st.integers(0, 10**10))
def test_every_series_is_planned_left_or_without_room(sizes: list[int | None], free: int | None) -> None:
    plan = plan_in(free, *sizes)
    assert sorted(w.SeriesInstanceUID for w in plan.todo + plan.left + plan.no_room) == sorted(
        wanted(n, size).SeriesInstanceUID for n, size in enumerate(sizes)
    )
    assert free is not None or not plan.no_room
    taken = sum(max(w.FileSize or 0, 0) for w in plan.todo)
    assert taken <= room_for_files(free) or not taken
    assert all(max(w.FileSize or 0, 0) > room_for_files(free) - taken for w in plan.no_room)


@pytest.mark.disk("room on a disk")
def test_the_room_is_that_of_the_disk_and_an_object_store_has_no_bound(tmp_path: Path) -> None:
    measured = Lake(str(tmp_path / "not" / "yet")).free_bytes()
    assert measured is not None
    assert abs(measured - shutil.disk_usage(tmp_path).free) < 10**9
    assert Lake("memory://room").free_bytes() is None


# --- the comparison of whole tables is that of single rows

MOMENTS = st.sampled_from(
    [
        None,
        datetime(2024, 1, 1),  # noqa: DTZ001
        datetime(2024, 1, 1, 8, 30),  # noqa: DTZ001
        datetime(2024, 1, 1, 8, 30, 0, 1),  # noqa: DTZ001
        datetime(2024, 1, 2),  # noqa: DTZ001
        datetime(1969, 12, 31, 23, 59),  # noqa: DTZ001
        datetime(1969, 12, 31),  # noqa: DTZ001
    ]
)
NUMBERS = st.one_of(st.none(), st.integers(0, 2))
CONTENT = st.tuples(NUMBERS, NUMBERS, MOMENTS, MOMENTS)
UIDS = st.sampled_from("abcdef")


@given(st.lists(st.tuples(UIDS, CONTENT), max_size=8), st.dictionaries(UIDS, CONTENT))
def test_the_comparison_of_tables_is_that_of_rows(listed: list[tuple[str, Content]], held: dict[str, Content]) -> None:
    series = [WantedSeries(uid, "1", "P", "A", *content) for uid, content in listed]
    receipts = [{"SeriesInstanceUID": uid, **dict(zip(FINGERPRINT, c, strict=True))} for uid, c in held.items()]
    newer = [{"SeriesInstanceUID": uid, **dict(zip(NEWER, c, strict=True))} for uid, c in held.items()]
    table = series_table(series)
    expected = [uid in held and is_same(content, held[uid]) for uid, content in listed]
    for rows, columns in ((receipts, FINGERPRINT), (newer, NEWER)):
        known = pa.Table.from_pylist(rows, schema=IMAGE_SERIES.schema)
        assert same_fingerprints(table, in_order_of(table, known), columns).to_pylist() == expected


def is_same(one: Content, other: Content) -> bool:
    """Compare two fingerprints value by value; a time that is a bare day equals any time of that day."""

    def same_time(a: datetime | None, b: datetime | None) -> bool:
        if a is None or b is None or a == b:
            return a == b
        return a.date() == b.date() and time(0) in (a.time(), b.time())

    return one[:2] == other[:2] and same_time(one[2], other[2]) and same_time(one[3], other[3])


@pytest.mark.parametrize(
    ("revised", "same"),
    [({}, True), ({"PatientID": "p"}, False), ({"StudyInstanceUID": "2"}, False), ({"PatientID": None}, False)],
)
def test_a_receipt_of_another_patient_or_study_is_not_of_the_series(revised: dict[str, str | None], same: bool) -> None:
    one = wanted(1)
    known = receipts_table([one])
    for name, value in revised.items():
        known = with_column(known, name, pa.array([value], pa.string()))
    assert same_contents(series_table([one]), in_order_of(series_table([one]), known)).to_pylist() == [same]
    plan = make_plan(series_table([one]), known)
    assert plan.todo == ([] if same else [one])


@given(CONTENT, CONTENT)
def test_two_listings_of_a_series_are_compared_likewise(one: Content, other: Content) -> None:
    a, b = (WantedSeries("1.1", "1", "P", "A", *content) for content in (one, other))
    assert same_content(a, b) == is_same(one, other)


@pytest.mark.parametrize(
    ("sizes", "lengths"),
    [
        ([40_000] * 300, [300]),
        ([40_000] * 12_500, [6251, 6249]),
        ([None] * 12_500, [6251, 6249]),
        ([500_000_000] * 50, [17, 17, 16]),
        ([30_000_000_000, 40_000, 30_000_000_000], [2, 1]),
    ],
    ids=["small", "many small", "unsized", "large", "giants"],
)
def test_a_batch_is_cut_by_the_time_that_it_is_expected_to_take(sizes: list[int | None], lengths: list[int]) -> None:
    plan = make_plan(series_table([wanted(n, size) for n, size in enumerate(sizes)]), receipts_table([]))
    assert [len(batch) for batch in plan.batches()] == lengths
    assert next(len(batch) for batch in plan.batches(200)) == min(lengths[0], 200)


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 1000)), max_size=40),
    st.integers(1, 2000),
    st.integers(1, 10),
    st.integers(0, 500),
)
def test_batches_hold_every_series_once_in_order_and_keep_their_bounds(
    sizes: list[int | None], max_bytes: int, max_series: int, each: int
) -> None:
    rows = [wanted(n, size) for n, size in enumerate(sizes)]
    cut = list(batches(rows, max_bytes, max_series, each=each))
    assert [w for batch in cut for w in batch] == rows
    for batch in cut:
        assert 1 <= len(batch) <= max_series
        assert len(batch) == 1 or sum((w.FileSize or 0) + each for w in batch) <= max_bytes


@given(st.integers(0, 9999), st.one_of(st.none(), st.integers(0, 10**13)))
def test_a_series_survives_the_way_to_another_process(n: int, size: int | None) -> None:
    assert WantedSeries.from_json(wanted(n, size).to_json()) == wanted(n, size)
