"""Fixtures: a server over the tiny catalog and ways to call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline_tests.helpers.archive_client import ArchiveClient
from nbia_pipeline_tests.helpers.tiny import Clock, running, tiny_catalog


@pytest.fixture(scope="session")
def site() -> Iterator[ArchiveClient]:
    clock = Clock()
    app = create_app(tiny_catalog(), clock=clock)
    with running(app) as url:
        yield ArchiveClient(url, app, clock)


@pytest.fixture
def make_site() -> Iterator[Callable[..., ArchiveClient]]:
    """Start a server of one's own, with options."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def make(catalog: Any = None, **options: Any) -> ArchiveClient:
            clock = Clock()
            app = create_app(catalog or tiny_catalog(), clock=clock, **options)
            return ArchiveClient(stack.enter_context(running(app)), app, clock)

        yield make
