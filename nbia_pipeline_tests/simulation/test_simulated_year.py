"""A year of an archive that lies by omission, and a pipeline that keeps up with it.

An embedded archive releases, dates back, revises, replaces, hides, deletes and fails for 365 simulated days, by a
script that follows from a seed. Between its events the real sensors and schedules are evaluated, and what they request
is run, over real HTTP and into a real lake. After every run the feed of changes must be what an independent model says
(:mod:`nbia_pipeline_tests.simulation.model`), and at the end everything must be what the archive holds.

Of the runs a sample is executed as the job itself on a Dagster instance, with its checks; the others by the functions
that the assets call (:mod:`nbia_pipeline_tests.simulation.plain`). One seed is tested, ``--years 10`` takes ten.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nbia_pipeline_tests.simulation.ending import expect_all_told
from nbia_pipeline_tests.simulation.mutations import MUTATIONS, Mutation
from nbia_pipeline_tests.simulation.script import RECONCILE, Step, ending, random_year, text_of
from nbia_pipeline_tests.simulation.world import ArchiveYear, a_world

pytestmark = pytest.mark.slow

SEEDS = (10, *range(1, 10))
"""The first one has a quiet year, which costs half of a busy one."""

REAL_EVERY = {SEEDS[0]: 8}
"""Of the runs of the first seed each eighth is a real one; of the others each thirtieth."""

MakeWorld = Callable[..., ArchiveYear]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """Make worlds, each with a clock of its own."""
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    with ExitStack() as stack:

        def make(**how: Any) -> ArchiveYear:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            folder = tmp_path / "world"
            folder.mkdir()
            return stack.enter_context(a_world(folder, patch, **how))

        yield make
    logging.getLogger("dagster").setLevel(logging.NOTSET)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", SEEDS[: metafunc.config.getoption("--years")])


def test_a_year_is_told_as_it_was(seed: int, make_world: MakeWorld) -> None:
    world = make_world(real_every=REAL_EVERY.get(seed, 30), zone=(-5, 0, 9)[seed % 3])
    script = random_year(seed)
    end = ending(script[-1].at)
    try:
        world.play(script)
        for step in end:
            # The tables of patients and studies are written by real runs only.
            world.really = step == last_listing(end) or None
            world.play([step])
        expect_all_told(world)
    except AssertionError as e:
        raise AssertionError(f"{e}\n\nThe year of seed {seed}:\n{text_of([*script, *end])}") from e


def last_listing(steps: list[Step]) -> Step:
    return [step for step in steps if step.do == RECONCILE][-1]


def test_the_same_seed_gives_the_same_year() -> None:
    assert random_year(7) == random_year(7) != random_year(8)
    assert (random_year(7)[-1].at - random_year(7)[0].at).days >= 350


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
@pytest.mark.parametrize("mutated", [False, True], ids=["as it is", "mutated"])
def test_the_year_notices_every_mutation(
    mutation: Mutation, mutated: bool, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    mutation.given(monkeypatch)
    if mutated:
        mutation.mutate(monkeypatch)
        with pytest.raises(AssertionError):
            play(world, mutation)
    else:
        play(world, mutation)


def play(world: ArchiveYear, mutation: Mutation) -> None:
    world.play(mutation.story)
    for expect in mutation.ends:
        expect(world)
