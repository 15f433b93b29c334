"""What is told of a batch while it runs, and of the sizes of series."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from nbia_pipeline.defs.metadata import BOUNDS, LABELS, histogram, size_classes
from nbia_pipeline.mirror.progress import Progress, listeners
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.mirror.unpack import VerifiedInstance
from nbia_pipeline.text import duration_text


class Watch:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def wanted_series(n: int, size: int | None = 1_000_000) -> WantedSeries:
    return WantedSeries(f"1.{n}", "2", "P", "C", 1, size, None, None)


def done(wanted: WantedSeries) -> Receipt:
    return Receipt(wanted, "complete", 1, [VerifiedInstance("1", None, 1, 1_000_000, "0")])


def progress_lines(todo: list[WantedSeries], every: float) -> list[str]:
    """Return what is told of series that take `every` seconds each, with the time of each line."""
    watch = Watch()
    told: list[str] = []
    progress = Progress("C", todo, lambda line: told.append(f"{watch.now - 100:.0f} s: {line}"), watch)
    for one in todo:
        watch.now += every
        progress.add(done(one))
        progress.tick()
    return told


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """Return what a listener hears."""
    lines: list[str] = []
    listeners.append(lines.append)
    yield lines
    listeners.remove(lines.append)


def test_progress_is_told_at_once_and_then_ever_less_often() -> None:
    told = progress_lines([wanted_series(n) for n in range(100)], every=1)
    assert [line.partition(":")[0] for line in told] == ["1 s", "10 s", "40 s", "70 s", "100 s"]
    assert told[0] == "1 s: C: 1 of 100 series, 1.0 MB of 100.0 MB, 1.0 MB/s, 1.0 s, 1 min 39 s left"
    assert told[1] == "10 s: C: 10 of 100 series, 10.0 MB of 100.0 MB, 1.0 MB/s, 10 s, 1 min 30 s left"
    assert told[-1] == "100 s: C: 100 of 100 series, 100.0 MB, 1.0 MB/s, 1 min 40 s"


def test_a_quick_batch_is_told_only_at_its_end() -> None:
    assert progress_lines([wanted_series(n) for n in range(9)], every=0.1) == []


def test_ticks_that_came_late_are_not_made_up_for() -> None:
    told = progress_lines([wanted_series(n) for n in range(4)], every=25)
    assert [line.partition(":")[0] for line in told] == ["25 s", "50 s", "75 s", "100 s"]


def test_what_is_in_flight_counts_until_its_series_is_done_or_begins_again() -> None:
    watch = Watch()
    one, other = wanted_series(1, 8_000_000), wanted_series(2, 2_000_000)
    progress = Progress("C", [one, other], print, watch)
    watch.now += 1
    assert progress.line() == "C: 0 of 2 series, 0 B of 10.0 MB, 0 B/s, 1.0 s"
    progress.arrived(one, 1_000_000)
    progress.arrived(one, 3_000_000)
    progress.arrived(other, 2_000_000)
    assert progress.line() == "C: 0 of 2 series, 5.0 MB of 10.0 MB, 5.0 MB/s, 1.0 s, 1.0 s left"
    progress.arrived(one, 0)
    assert progress.line() == "C: 0 of 2 series, 2.0 MB of 10.0 MB, 2.0 MB/s, 1.0 s, 4.0 s left"
    progress.add(replace(done(other), instances=[VerifiedInstance("1", None, 1, 2_000_000, "0")]))
    assert progress.line() == "C: 1 of 2 series, 2.0 MB of 10.0 MB, 2.0 MB/s, 1.0 s, 4.0 s left"


def test_a_series_that_takes_long_is_not_silent(heard: list[str]) -> None:
    watch, told, heard_enough = Watch(), list[str](), threading.Event()
    progress = Progress("C", [wanted_series(1, 8_000_000)], told.append, watch)
    listeners.append(lambda line: heard_enough.set())
    watch.now += 2
    with progress.told():
        progress.arrived(wanted_series(1), 4_000_000)
        assert heard_enough.wait(60)
    listeners.pop()
    line = "C: 0 of 1 series, 4.0 MB of 8.0 MB, 2.0 MB/s, 2.0 s, 2.0 s left"
    assert told == [line]
    assert heard == [line] * (len(heard) - 1) + [""]


def test_a_listener_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    heard_enough = threading.Event()

    def fail(line: str) -> None:
        heard_enough.set()
        raise OSError("the terminal is gone")

    listeners.append(fail)
    with Progress("C", [wanted_series(1)], print).told():
        assert heard_enough.wait(60)
    listeners.remove(fail)
    assert "progress is no longer shown: the terminal is gone" in caplog.text


def test_the_time_left_goes_by_bytes_where_they_are_known() -> None:
    large_first = [wanted_series(0, 9_000_000), wanted_series(1, 1_000_000)]
    assert progress_lines(large_first, every=90)[0].endswith("1 min 30 s, 10 s left")
    unsized = [wanted_series(n, None) for n in range(3)]
    assert progress_lines(unsized, every=30)[0].endswith("30 s, 1 min 0 s left")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.6, "1 min 0 s"), (3599.9, "1 h 0 min"), (90000, "1 d 1 h")],
)
def test_durations_are_told_in_two_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_histogram_counts_every_size_once() -> None:
    assert len(LABELS) == len(BOUNDS) + 1
    assert size_classes([0, 999_999, 1_000_000, 2_999_999, 3_000_000_000, 10**13]) == [2, 2, 0, 0, 0, 0, 0, 0, 2]


def test_the_histogram_shows_the_classes_that_occur() -> None:
    held, fetched = size_classes([1_000_000] * 60 + [20_000_000]), size_classes([20_000_000])
    assert histogram(held, fetched).splitlines()[2:] == [
        f"| 1 to 3 MB | 60 | 0 | {'█' * 30} |",
        "| 3 to 10 MB | 0 | 0 |  |",
        "| 10 to 30 MB | 1 | 1 | █ |",
    ]
    assert len(histogram([0] * 9, [0] * 9).splitlines()) == 2


def test_the_histogram_is_short_enough_for_the_ui_to_show_it_at_once() -> None:
    assert len(histogram([1_000_000] * 9, [1_000_000] * 9)) < 1000  # longer Markdown is behind a link
