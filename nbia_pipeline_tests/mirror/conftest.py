"""Fixtures of the fault tests: an archive in which things go wrong, and a lake that must come out right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline_tests.helpers.mirrored_archive import MirroredArchive, mirrored_archive
from nbia_pipeline_tests.helpers.places import Place


@pytest.fixture(scope="session")
def _demo_site(demo: Catalog) -> Iterator[MirroredArchive]:
    with mirrored_archive(demo, Path("nowhere")) as site:
        yield site


@pytest.fixture
def site(_demo_site: MirroredArchive, place: Place) -> Iterator[MirroredArchive]:
    """The demo archive without history, and an empty lake for one collection of it."""
    _demo_site.control.reset()
    _demo_site.around.reset()
    yield replace(_demo_site, folder=place / "lake")
    _demo_site.control.reset()
    _demo_site.around.reset()
