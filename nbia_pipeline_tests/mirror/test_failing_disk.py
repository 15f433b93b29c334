"""A disk that is full or broken, and a process that is killed, at any operation: tables and files always agree.

Here a sample of the operations fails; ``make test-disk`` lets each of them fail.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from nbia_pipeline_tests.helpers import failing_disk
from nbia_pipeline_tests.helpers.failing_disk import KINDS
from nbia_pipeline_tests.helpers.scenarios import SCENARIOS
from nbia_pipeline_tests.helpers.sweep import Sweep, sweeping

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(failing_disk.missing() is not None, reason=f"{failing_disk.missing()}"),
]

SAMPLE = 3  # of each scenario
REVISED = "series revised, moved, withdrawn, new"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    with sweeping(tmp_path_factory.mktemp("failing-disk")) as sweep:
        yield sweep


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_operation_that_fails_costs_nothing(sweep: Sweep, name: str) -> None:
    every = [(kind, number) for kind in KINDS for number in range(1, len(sweep.operations(name, kind)) + 1)]
    assert _wrong(sweep, name, random.Random(name).sample(every, SAMPLE)) == []


def test_files_of_a_series_move_only_while_no_receipt_states_them(sweep: Sweep) -> None:
    """At every rename of its files or its tables, the disk fails in one way or another."""
    moves = {kind: _moves(sweep.operations(REVISED, kind)) for kind in ("killed", "EIO once", "full from there on")}
    chosen = [(kind, moves[kind][n]) for n, kind in zip(range(len(moves["killed"])), itertools.cycle(moves))]
    assert len(chosen) >= 10
    assert _wrong(sweep, REVISED, chosen) == []


def _moves(operations: list[str]) -> list[int]:
    """Return the numbers of the renames of images and of the tables about them."""
    parts = ("images", "image_series", "instances")
    renames = [(number, text) for number, text in enumerate(operations, 1) if text.startswith("rename ")]
    return [number for number, text in renames if any(f"/{part}/" in text for part in parts)]


def _wrong(sweep: Sweep, name: str, chosen: list[tuple[str, int]]) -> list[str]:
    return [f"{kind} at {number}: {text}" for kind, number in chosen for text in sweep.attempt(name, kind, number)]
