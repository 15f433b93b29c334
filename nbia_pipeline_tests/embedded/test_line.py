"""The line that answers share, on a clock of its own."""

from __future__ import annotations

import heapq

import pytest

from nbia_pipeline.embedded.control.line import CATCH_UP_SECONDS, Line, Pace

MB = 1e6
OWN, ALL = 5 * MB, 40 * MB


def sent(begins: list[float], until: float, late: float = 0.0, rate: float | None = OWN) -> list[float]:
    """Return the MB that answers have sent at a time; each begins at its own, and every sleep ends `late`."""
    line = Line(ALL)
    paces = [Pace(rate, line, begin) for begin in begins]
    done = [0.0] * len(begins)
    wakes = [(begin, n) for n, begin in enumerate(begins)]
    heapq.heapify(wakes)
    while wakes[0][0] < until:
        now, n = heapq.heappop(wakes)
        size = paces[n].slice_bytes
        due = paces[n].sent(size, now)
        if due <= until:
            done[n] += size / MB
        assert sum(done) < 2 * ALL * until / MB, "nothing limits the answers"
        heapq.heappush(wakes, (max(now, due) + late, n))
    return done


@pytest.mark.parametrize(
    ("answers", "each"), [(1, 5.0), (4, 5.0), (8, 5.0), (10, 4.0), (16, 2.5), (40, 1.0)], ids=lambda v: f"{v:g}"
)
def test_each_gets_its_own_rate_or_an_equal_share(answers: int, each: float) -> None:
    found = sent([0.0] * answers, until=20.0)
    assert found == pytest.approx([20 * each] * answers, rel=0.01)
    assert sum(found) == pytest.approx(20 * min(40, 5 * answers), rel=0.01)


@pytest.mark.parametrize("answers", [8, 10, 16])
def test_sleeps_that_end_late_cost_nothing(answers: int) -> None:
    assert sum(sent([0.0] * answers, until=20.0, late=0.004)) == pytest.approx(800, rel=0.01)


def test_one_that_begins_later_has_its_share_at_once() -> None:
    *others, late = sent([0.0] * 15 + [10.0], until=20.0)
    assert late == pytest.approx(25, rel=0.01)
    assert others == pytest.approx([10 * 40 / 15 + 25] * 15, rel=0.01)


def test_a_line_alone_limits_a_single_answer() -> None:
    assert sum(sent([0.0], until=20.0, rate=None)) == pytest.approx(800, rel=0.01)
    assert sum(sent([0.0] * 5, until=20.0, rate=None)) == pytest.approx(800, rel=0.01)


def test_what_was_not_used_is_gone() -> None:
    line = Line(ALL)
    pace = Pace(OWN, line, 0.0)
    assert pace.sent(50_000, 0.0) == pytest.approx(0.01)
    assert pace.sent(50_000, 100.0) == pytest.approx(100 - CATCH_UP_SECONDS + 0.01)
    assert line.sent(4_000_000, 200.0) == pytest.approx(200 - CATCH_UP_SECONDS + 0.1)


def test_a_slow_answer_is_sent_in_small_slices() -> None:
    assert Pace(100.0, None, 0.0).slice_bytes == 5
    assert Pace(None, Line(10.0), 0.0).slice_bytes == 1
    assert Pace(1e9, Line(200.0), 0.0).slice_bytes == 10
