"""The limit follows what more requests in flight gain, shown by an archive and a line that are simulated."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nbia_pipeline.archive.rate_limit import LEAST_WHEN_SLOW, Limiter, Slot

STEP = 0.005
SMALL, LARGE = 10_000, 40_000_000


@dataclass
class Request:
    """A request on its way: when its answer begins, and what is left of it."""

    slot: Slot
    begins: float
    left: float
    begun: bool = False


@dataclass
class Line:
    """An archive at the end of a line; clients ask as often as the limiter allows.

    Attributes:
        latency: seconds until an answer begins.
        size: bytes of each answer.
        each: bytes per second of one connection.
        total: bytes per second of all connections together.
        capacity: requests that the archive handles at a time; more share its time.
    """

    latency: float = 0.15
    size: float = SMALL
    each: float = 5e6
    total: float = 1e12
    capacity: float = 1e9
    most: int = 16
    now: float = 0.0
    answers: int = 0
    limits: list[int] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.most, clock=lambda: self.now)

    def run(self, seconds: float) -> list[int]:
        """Let time pass, and return the limits meanwhile."""
        self.limits = []
        for _ in range(round(seconds / STEP)):
            self._step()
        return self.limits

    def _step(self) -> None:
        self.now += STEP
        while self.limiter.in_flight < self.limiter.limit:
            slow = max(1.0, (self.limiter.in_flight + 1) / self.capacity)
            slot = Slot(self.limiter, "getImage", self.limiter._take())
            self.asked.append(Request(slot, self.now + self.latency * slow, self.size))
        arriving = [r for r in self.asked if r.begins <= self.now]
        for request in arriving:
            if not request.begun:
                request.begun = True
                request.slot.answer_begins()
            came = min(self.each, self.total / len(arriving)) * STEP
            request.left -= came
            request.slot.received(round(came))
            if request.left <= 0:
                request.slot.received(0)
                self.limiter.answered()
                self.asked.remove(request)
                self.answers += 1
        self.limits.append(self.limiter.limit)


def test_a_distant_archive_gets_sixteen_within_two_answers() -> None:
    line = Line()
    limits = line.run(5)
    assert limits[0] == 8
    assert limits.index(16) * STEP < 2 * line.latency
    assert set(limits[limits.index(16) :]) == {16}


def test_never_more_than_allowed() -> None:
    assert max(Line(most=11).run(5)) == 11
    assert set(Line(most=5).run(5)) == {5}


def test_large_downloads_get_more_while_the_line_has_room() -> None:
    limits = Line(latency=0.08, size=LARGE, total=200e6).run(30)
    assert limits[-1] == 16 and limits.index(16) * STEP < 3  # long before the first download has ended


def test_where_the_line_is_full_more_are_tried_and_given_up() -> None:
    limits = Line(latency=0.08, size=LARGE, total=40e6).run(60)
    assert max(limits) == 16
    assert limits.count(10) > 0.8 * len(limits)


def test_where_the_archive_has_no_more_capacity_more_are_given_up() -> None:
    limits = Line(latency=0.3, capacity=8).run(60)
    assert max(limits) == 16
    assert limits.count(10) > 0.7 * len(limits)


def test_tries_that_gain_nothing_do_not_add_up() -> None:
    line = Line(latency=0.08, size=LARGE, total=40e6)
    line.run(300)
    limits = line.run(60)
    assert set(limits) <= {10, 16} and limits.count(10) > 0.8 * len(limits)


def test_a_line_that_widens_is_noticed() -> None:
    line = Line(latency=0.08, size=LARGE, total=40e6)
    assert line.run(30)[-1] == 10
    line.total = 200e6
    assert line.run(60)[-1] == 16


@pytest.mark.parametrize("times", [4, 20])
def test_answers_that_begin_much_later_lower_the_limit_until_they_are_as_before(times: int) -> None:
    line = Line()
    assert line.run(3)[-1] == 16
    line.latency *= times
    assert line.run(40)[-1] >= LEAST_WHEN_SLOW and min(line.limits) < 8
    line.latency /= times
    assert line.run(60)[-1] == 16


def test_a_refusal_ends_a_try_and_halves_the_limit() -> None:
    line = Line()
    line.run(0.2)
    assert line.limiter.limit == 16
    line.limiter.refused(line.asked[0].slot.refusals)
    assert line.limiter.limit == 8
    assert max(line.run(1)) == 8
    assert line.run(60)[-1] == 16


def test_large_downloads_regain_what_was_lost_though_answers_are_few() -> None:
    line = Line(latency=0.08, size=10 * LARGE, total=200e6)
    line.run(10)
    line.limiter.refused(line.asked[0].slot.refusals)
    assert line.limiter.limit == 8
    assert line.run(200)[-1] == 16 and line.answers < 100


def test_another_client_of_the_same_maximum_ends_no_try() -> None:
    line = Line()
    line.run(0.2)
    line.limiter.allow(16)
    assert line.limiter.limit == 16


def test_few_requests_change_nothing() -> None:
    """Who asks one question after the other shows nothing of what more at a time would gain."""
    now = 0.0
    limiter = Limiter(clock=lambda: now)
    for number in range(200):
        now = number * 0.15
        with limiter.slot("getSeries") as slot:
            now += 0.1
            slot.answer_begins()
            slot.received(1000)
            slot.received(0)
        limiter.answered()
    assert limiter.limit == 8
