"""What is told of a batch while it runs, and of the sizes of series."""

from __future__ import annotations

import pytest

from nbia_pipeline.defs.metadata import BOUNDS, LABELS, histogram, size_classes
from nbia_pipeline.mirror.progress import Progress
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
    progress = Progress(todo, lambda line: told.append(f"{watch.now - 100:.0f} s: {line}"), watch)
    for one in todo:
        watch.now += every
        progress.add(done(one))
    return told


def test_progress_is_told_after_ten_seconds_and_then_twice_a_minute() -> None:
    told = progress_lines([wanted_series(n) for n in range(100)], every=1)
    assert [line.partition(":")[0] for line in told] == ["10 s", "40 s", "70 s", "100 s"]
    assert told[0] == "10 s: 10 of 100 series, 10.0 MB, 1.0 MB/s, 10 s, 1 min 30 s left"
    assert told[-1] == "100 s: 100 of 100 series, 100.0 MB, 1.0 MB/s, 1 min 40 s"


def test_a_quick_batch_is_told_only_at_its_end() -> None:
    assert progress_lines([wanted_series(n) for n in range(90)], every=0.1) == []


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
