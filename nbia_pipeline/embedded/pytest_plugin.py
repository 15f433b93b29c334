"""Fixtures for projects that test their own NBIA client; pytest finds them once the package is installed.

Nothing heavy is imported before a fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nbia_pipeline.embedded.control.client import Control

# The demo catalog's account that sees its restricted collection, as nbia_pipeline.embedded.demo.catalog publishes it.
MEMBER = ("demo_member", "demo-member-password")


@dataclass(frozen=True)
class NbiaArchive:
    """A running embedded archive.

    Attributes:
        url: base URL, like ``http://127.0.0.1:40001/nbia-api``.
        control: changes the archive, injects faults, and returns what it was asked.
        member: user name and password of an account that sees the restricted collection of the demo.
    """

    url: str
    control: Control
    member: tuple[str, str] = MEMBER


@pytest.fixture(scope="session")
def nbia_archive_options() -> Mapping[str, str | int | float | bool]:
    """Options of the archive, like ``{"token_lifetime": 60.0}``; a project may override this fixture."""
    return {}


@pytest.fixture(scope="session")
def nbia_archive(nbia_archive_options: Mapping[str, str | int | float | bool]) -> Iterator[NbiaArchive]:
    """The demo archive in its own process, for the entire session."""
    from nbia_pipeline.embedded.control.client import Control
    from nbia_pipeline.embedded.launcher import own_archive

    options = dict(nbia_archive_options)
    # `catalogue` is the name that version 0.1.0 had for it.
    catalog = str(options.pop("catalog", options.pop("catalogue", "demo")))
    with own_archive(catalog, **{"control_port": 0, **options}) as (url, control_url):
        yield NbiaArchive(url, Control(str(control_url)))


@pytest.fixture
def fresh_nbia_archive(nbia_archive: NbiaArchive) -> Iterator[NbiaArchive]:
    """The same archive as it was at its start; the changes of a test are undone."""
    nbia_archive.control.reset()
    yield nbia_archive
    nbia_archive.control.reset()
