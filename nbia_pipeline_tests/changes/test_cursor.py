"""The cursor of the sensor: small, and never missing a release, whatever the archive releases."""

# ruff: noqa: DTZ001 - the server's times, and ours, have no zone

from __future__ import annotations

from datetime import date, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nbia_pipeline.changes.cursor import (
    CURSOR_BYTES,
    OVERLAP,
    Bucket,
    Cursor,
    CursorError,
    buckets_of,
    changed_collections,
    first_cursor,
    next_cursor,
    read_cursor,
)

NOW = datetime(2026, 3, 9, 8)
TODAY = NOW.date()
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
DAYS = st.dates(date(2026, 2, 20), date(2026, 4, 1))
DIGESTS = st.text("abcdefXYZ019-_", min_size=11, max_size=11)
FOUND = st.dictionaries(st.tuples(NAMES, DAYS), DIGESTS, max_size=40)
CROWDED = st.integers(200, 3000).map(
    lambda n: {(f"collection {i % 300}", TODAY - timedelta(days=i % 6)): f"{i:011d}" for i in range(n)}
)


def rows(*released: tuple[str, str, str]) -> pa.Table:
    """Return rows of a feed: UID, collection, release."""
    return pa.table(
        {
            "SeriesInstanceUID": [r[0] for r in released],
            "Collection": pa.array([r[1] or None for r in released], pa.string()),
            "DateReleased": pa.array([datetime.fromisoformat(r[2]) for r in released], pa.timestamp("us")),
            "ImageCount": pa.array([1] * len(released), pa.int64()),
        }
    )


# --- the cursor as text


@given(DAYS, st.integers(0, 2**40), FOUND, st.booleans())
def test_a_cursor_comes_back_from_its_text(day: date, sequence: int, digests: dict[Bucket, str], shared: bool) -> None:
    cursor = Cursor(day, sequence, digests, shared)
    assert read_cursor(cursor.encode(), NOW) == cursor


@given(st.text())
@example("")
@example("  ")
@example("2026-01-01")
@example('{"v":1}')
@example('{"v":1,"day":"2026-01-01","edition":1,"shared":false,"seen":[]}')
@example("null")
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    try:
        cursor = read_cursor(text, NOW)
    except CursorError as e:
        assert "2026-01-01" in str(e)
    else:
        assert cursor is None or isinstance(cursor, Cursor)


def test_a_plain_day_has_no_digests() -> None:
    cursor = read_cursor(" 2026-01-15 ", NOW)
    assert cursor is not None
    assert (cursor.day, cursor.digests) == (date(2026, 1, 15), {})
    assert cursor.since(TODAY) == date(2026, 1, 8)


@given(DAYS, DAYS)
def test_the_window_begins_a_week_before_the_last_time_and_before_today(day: date, today: date) -> None:
    since = Cursor(day, 0).since(today)
    assert since <= today - OVERLAP
    assert since <= day - OVERLAP
    assert since in (today - OVERLAP, day - OVERLAP)


ODD_CURSORS = [
    "[]",
    "1",
    "true",
    '"2026"',
    "{}",
    '{"v":2}',
    "[" * 100_000,
    '{"v":1,"day":"2026-01-01","edition":1e999,"shared":false,"seen":{}}',
    '{"v":1,"day":"2026-01-01","edition":null,"shared":false,"seen":{}}',
    '{"v":1,"day":"10000-01-01","edition":1,"shared":false,"seen":{}}',
    '{"v":1,"day":20260101,"edition":1,"shared":false,"seen":{}}',
    '{"v":1,"day":"2026-01-01","edition":1,"shared":false,"seen":{"0000-01-01":{"A":"x"}}}',
    '{"v":1,"day":"2026-01-01","edition":1,"shared":false,"seen":{"2026-01-01":["A"]}}',
    "0000-00-00",
    "10000-01-01",
    "2026-02-30",
    "-2026-01-01",
    '{"v":"' + "9" * 1_000_000 + '"}',
    "x" * 1_000_000,
]


@pytest.mark.parametrize("text", ODD_CURSORS, ids=range(len(ODD_CURSORS)))
def test_a_cursor_that_is_none_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(CursorError, match="set it to a day to start from, like 2026-01-01, or empty it") as raised:
        read_cursor(text, NOW)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("day", ["0001-01-01", "0001-01-07", "0001-01-08", "9999-12-31", "9999-12-25", "1500-02-28"])
@pytest.mark.parametrize("saved", [False, True])
def test_any_day_there_is_can_be_started_from(day: str, saved: bool) -> None:
    text = f'{{"v":1,"day":"{day}","edition":1,"shared":true,"seen":{{"{day}":{{"3":"x"}}}}}}' if saved else day
    before = read_cursor(text, NOW)
    assert before is not None and before.day == date.fromisoformat(day)
    since = before.since(TODAY)
    week = min(before.day, TODAY).toordinal() - 7
    assert since == (date.fromordinal(week) if week > 0 else date.min)
    found = {("A", TODAY): "x", ("B", date.min): "y", ("C", date.max): "z"}
    assert set(changed_collections(before, found)) == {"A", "B", "C"}
    assert before.expects_rows(since) == (saved and before.day > since)
    after = next_cursor(before, found, TODAY, changed=True)
    assert read_cursor(after.encode(), NOW) == after
    assert after.day == TODAY and ("A", TODAY) in after.digests


@pytest.mark.parametrize("today", [date.min, date.min + timedelta(days=3), date.max])
def test_a_clock_that_is_far_off_does_no_harm(today: date) -> None:
    assert Cursor(today, 0).since(today) == max(date.min, date.fromordinal(max(1, today.toordinal() - 7)))
    crowd = {(f"{'x' * 90} {n}", date.max): "x" * 11 for n in range(500)}
    assert next_cursor(Cursor(today, 0), crowd, today, changed=True).shared


# --- how large it gets


@given(st.one_of(FOUND, CROWDED))
@settings(max_examples=60, deadline=None)
def test_the_cursor_stays_small(found: dict[Bucket, str]) -> None:
    after = next_cursor(first_cursor(TODAY, NOW), found, TODAY, changed=True)
    assert len(after.encode().encode()) <= CURSOR_BYTES


@pytest.mark.slow
def test_the_cursor_stays_small_with_long_names_and_days_far_ahead() -> None:
    found = {(f"{'Ж' * 900} {i}", TODAY + timedelta(days=i % 400 - 6)): "x" * 11 for i in range(100_000)}
    after = next_cursor(first_cursor(TODAY, NOW), found, TODAY, changed=True)
    assert after.shared
    assert len(after.encode().encode()) <= CURSOR_BYTES


def test_two_hundred_collections_on_a_day_are_kept_one_by_one() -> None:
    found = {(f"A Collection {i:03d}", TODAY): "x" * 11 for i in range(200)}
    assert not next_cursor(first_cursor(TODAY, NOW), found, TODAY, changed=True).shared


# --- what has changed


@given(st.one_of(FOUND, CROWDED), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_what_is_known_has_not_changed_however_the_window_slides(found: dict[Bucket, str], later: int) -> None:
    cursor = next_cursor(first_cursor(TODAY, NOW), found, TODAY, changed=True)
    for n in range(later):
        today = TODAY + timedelta(days=n)
        answer = {bucket: digest for bucket, digest in found.items() if bucket[1] > cursor.since(today)}
        assert changed_collections(cursor, answer) == {}
        cursor = next_cursor(cursor, answer, today, changed=False)


@given(st.one_of(FOUND, CROWDED), NAMES, DAYS, DIGESTS, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_what_is_new_or_different_has_always_changed(
    found: dict[Bucket, str], collection: str, day: date, digest: str, later: int
) -> None:
    today = TODAY + timedelta(days=later)
    cursor = next_cursor(first_cursor(TODAY, NOW), found, TODAY, changed=True)
    if found.get((collection, day)) == digest or day <= cursor.since(today):
        return
    assert collection in changed_collections(cursor, {**found, (collection, day): digest})


@given(FOUND, NAMES, DAYS)
def test_only_collections_that_changed_are_named_while_there_is_room(
    found: dict[Bucket, str], collection: str, day: date
) -> None:
    cursor = Cursor(TODAY, 1, found)
    assert set(changed_collections(cursor, {**found, (collection, day): "something new"})) == {collection}


def test_where_room_is_short_the_others_of_the_slot_are_asked_for_too_and_not_all() -> None:
    found = {(f"collection {i}", TODAY - timedelta(days=i % 6)): "x" * 11 for i in range(3000)}
    cursor = next_cursor(first_cursor(TODAY, NOW), found, TODAY, changed=True)
    assert cursor.shared
    changed = changed_collections(cursor, {**found, ("collection 7", TODAY): "new"})
    assert "collection 7" in changed
    assert len(changed) < 3000 / 32 * 2


def test_the_digest_of_a_change_differs_from_one_sequence_number_to_the_next() -> None:
    found = {("A", TODAY): "x"}
    first = first_cursor(TODAY, NOW)
    assert changed_collections(first, found) == changed_collections(first, found)
    shown = next_cursor(first, found, TODAY, changed=True)
    hidden = next_cursor(shown, {}, TODAY, changed=False)
    assert changed_collections(hidden, found)["A"] != changed_collections(first, found)["A"]


# --- digests of an answer


def test_only_whole_days_after_the_one_asked_for_count() -> None:
    answer = rows(("1", "A", "2026-03-02T15:00"), ("2", "A", "2026-03-03"), ("3", "A", "2026-03-03T23:59:59"))
    assert set(buckets_of(answer, date(2026, 3, 2))) == {("A", date(2026, 3, 3))}


def test_the_order_of_the_rows_does_not_matter_and_everything_else_does() -> None:
    since = date(2026, 3, 1)
    a, b = ("1", "A", "2026-03-03"), ("2", "A", "2026-03-03")
    digest = buckets_of(rows(a, b), since)
    assert buckets_of(rows(b, a), since) == digest
    others = [
        rows(a),
        rows(a, b, b),
        rows(a, ("3", "A", "2026-03-03")),
        rows(a, ("2", "A", "2026-03-03T01:00")),
        rows(a, b).set_column(3, "ImageCount", pa.array([1, 2])),
        rows(a, b).set_column(3, "ImageCount", pa.array([1, None])),
    ]
    found = [str(buckets_of(other, since)) for other in others]
    assert str(digest) not in found
    assert len(set(found)) == len(found)


@given(st.lists(st.tuples(NAMES, st.sampled_from(["A", "B", "Ж"]), st.integers(0, 20)), max_size=30))
def test_every_bucket_has_the_digest_that_it_has_alone(series: list[tuple[str, str, int]]) -> None:
    """The digests of many buckets are cut from one piece of text; each is that of its own rows."""
    released = [(uid, c, (datetime(2026, 3, 1) + timedelta(days=n)).isoformat()) for uid, c, n in series]
    since = date(2026, 3, 5)
    together = buckets_of(rows(*released), since)
    alone = {}
    for collection, day in {(c, date.fromisoformat(d[:10])) for _, c, d in released}:
        of_it = [r for r in released if (r[1], r[2][:10]) == (collection, day.isoformat())]
        alone.update(buckets_of(rows(*of_it), since))
    assert together == alone


def test_many_buckets_of_many_rows() -> None:
    released = [(str(n), f"C{n % 250}", f"2026-03-{n % 12 + 1:02d}") for n in range(50_000)]
    whole = buckets_of(rows(*released), date(2026, 2, 1))
    late = buckets_of(rows(*released), date(2026, 3, 6))
    assert late == {bucket: digest for bucket, digest in whole.items() if bucket[1] > date(2026, 3, 6)}
    assert len(late) == 750


def test_a_row_without_collection_is_left_out() -> None:
    assert buckets_of(rows(("1", "", "2026-03-03")), date(2026, 3, 1)) == {}


@pytest.mark.parametrize("answer", [rows(), rows(("1", "A", "2026-03-01"))])
def test_an_answer_without_new_releases_has_no_buckets(answer: pa.Table) -> None:
    assert buckets_of(answer, date(2026, 3, 1)) == {}


# --- a server that sends no day of release


def undated(*series: tuple[str, str]) -> pa.Table:
    return pa.table(
        {
            "SeriesInstanceUID": [uid for uid, _ in series],
            "Collection": [collection for _, collection in series],
            "DateReleased": pa.nulls(len(series), pa.timestamp("us")),
            "ImageCount": pa.array([1] * len(series), pa.int64()),
        }
    )


def test_series_without_a_day_of_release_are_recognized_by_their_rows() -> None:
    before = Cursor(TODAY, 1)
    found = buckets_of(undated(("1", "A"), ("2", "B")), TODAY - OVERLAP)
    assert sorted(changed_collections(before, found)) == ["A", "B"]
    after = read_cursor(next_cursor(before, found, TODAY, changed=True).encode(), NOW)
    assert after is not None
    assert changed_collections(after, found) == {}
    more = buckets_of(undated(("1", "A"), ("3", "A"), ("2", "B")), TODAY - OVERLAP)
    assert list(changed_collections(after, more)) == ["A"]


@pytest.mark.parametrize("collections", [1, 300])  # the cursor has room for the names of some, not of all
def test_an_empty_answer_is_no_surprise_if_nothing_had_a_day(collections: int) -> None:
    found = buckets_of(undated(*((str(n), f"collection {n:09d}") for n in range(collections))), TODAY - OVERLAP)
    after = next_cursor(Cursor(TODAY, 1), found, TODAY, changed=True)
    assert after.shared == (collections > 1)
    assert changed_collections(after, found) == {}
    assert not after.expects_rows(TODAY - OVERLAP)
