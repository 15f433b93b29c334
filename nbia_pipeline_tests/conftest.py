"""Fixtures for all tests: the demo archive, archives that misbehave, servers of one's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp

from nbia_pipeline.archive import ClientOptions, NbiaClient
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.demo.catalog import demo_catalog
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.embedded.server.tokens import TokenStore
from nbia_pipeline_tests.helpers.faults import Faults
from nbia_pipeline_tests.helpers.tiny import Clock, running

FAST = ClientOptions(connect_timeout=2, read_timeout=5, tries=3, backoff=0.01, max_backoff=0.05)

Serve = Callable[[ASGIApp], str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--years", type=int, default=1, help="simulated years to test, 10 at the most")


@dataclass
class TestArchive:
    """The demo archive behind a middleware that injects faults.

    Attributes:
        url: base URL.
        faults: what goes wrong, and what was asked.
        tokens: who is logged in at the server.
        clock: the server's clock, for the life of tokens.
    """

    __test__ = False  # not a class of tests

    url: str
    faults: Faults
    tokens: TokenStore
    clock: Clock

    def client(self, **options: Any) -> NbiaClient:
        """Return a client; the caller closes it, or lets the token be forgotten."""
        return NbiaClient(self.url, **{"options": FAST, **options})


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serve any ASGI application from a thread; yields the base URL."""
    with running(cast(Starlette, app)) as url:
        yield url


@pytest.fixture(scope="session")
def demo() -> Catalog:
    """What the demo archive holds."""
    return demo_catalog()


@pytest.fixture(scope="session")
def demo_archive(demo: Catalog) -> Iterator[str]:
    """Base URL of a demo archive that all tests share."""
    with serving(create_app(demo)) as url:
        yield url


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve any ASGI application until the end of the test; returns its base URL."""
    with contextlib.ExitStack() as stack:
        yield lambda app: stack.enter_context(serving(app))


@pytest.fixture(scope="session")
def _shared_archive(demo: Catalog) -> Iterator[TestArchive]:
    clock = Clock()
    app = create_app(demo, clock=clock)
    faults = Faults(app)
    with serving(faults) as url:
        yield TestArchive(url, faults, app.state.archive.tokens, clock)


@pytest.fixture
def archive(_shared_archive: TestArchive) -> Iterator[TestArchive]:
    """A demo archive without history: nothing planned, nothing seen, nobody logged in."""
    _shared_archive.tokens.expire_all()
    _shared_archive.faults.reset()
    yield _shared_archive
    _shared_archive.tokens.lifetime = _shared_archive.tokens.refresh_lifetime = 7200.0
    _shared_archive.faults.reset()
