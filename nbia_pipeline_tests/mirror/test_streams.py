"""The number of downloads at a time follows what the processors do."""

from __future__ import annotations

import threading

import pytest

from nbia_pipeline.mirror.download import Streams


class Machine:
    """Two processors whose time passes by hand."""

    def __init__(self) -> None:
        self.now = self.used = 0.0

    def pass_second(self, busy: float) -> None:
        self.now += 1
        self.used += 2 * busy


@pytest.fixture
def machine() -> Machine:
    return Machine()


def streams(machine: Machine, most: int = 8) -> Streams:
    return Streams(most, cores=2, clock=lambda: machine.now, cpu=lambda: machine.used)


def after(places: Streams, machine: Machine, *busy: float) -> list[int]:
    found = [places.allowed]
    for part in busy:
        machine.pass_second(part)
        with places._freed:
            places.adjust()
        found.append(places.allowed)
    return found


def test_idle_processors_get_more_and_busy_ones_fewer(machine: Machine) -> None:
    assert after(streams(machine), machine, 0.1, 0.1, 0.1, 0.7, 0.95, 0.95) == [3, 6, 8, 8, 8, 7, 6]
    assert after(streams(machine), machine, 0.95, 0.95) == [3, 3, 3]
    assert after(streams(machine, most=1), machine, 0.1, 0.95) == [1, 1, 1]


def test_a_look_too_soon_after_the_last_says_nothing(machine: Machine) -> None:
    places = streams(machine)
    machine.now += 0.01
    with places._freed:
        places.adjust()
    assert places.allowed == 3


def test_no_more_hold_a_place_than_are_allowed(machine: Machine) -> None:
    places = streams(machine)
    held = threading.Semaphore(0)
    go_on = threading.Event()

    def work() -> None:
        with places.slot():
            held.release()
            go_on.wait(30)

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        assert held.acquire(timeout=30)
    assert not held.acquire(timeout=0.3)
    machine.pass_second(0.1)
    assert held.acquire(timeout=30) and held.acquire(timeout=30)
    go_on.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
