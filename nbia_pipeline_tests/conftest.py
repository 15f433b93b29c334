"""Fixtures for all tests: the demo archive, archives that misbehave, servers of one's own."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, settings

from nbia_pipeline.archive import NbiaClient, rate_limit
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.demo.catalog import demo_catalog
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline_tests.helpers.archives import Serve, TestArchive, serving
from nbia_pipeline_tests.helpers.faults import Faults
from nbia_pipeline_tests.helpers.one_series import OneSeries, one_series
from nbia_pipeline_tests.helpers.tiny import Clock

# Tests that run behind a shell's `&` would have processes that ignore Ctrl-C.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something about the machine only.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--years", type=int, default=1, help="simulated years to test, 10 at the most")
    parser.addoption("--every-moment", action="store_true", help="stop runs at every moment that has a name")


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
    """A demo archive without history: nothing planned, nothing seen, nobody logged in, never too busy."""
    rate_limit._limiters.pop(urlsplit(_shared_archive.url).netloc, None)
    _shared_archive.tokens.expire_all()
    _shared_archive.faults.reset()
    yield _shared_archive
    _shared_archive.tokens.lifetime = _shared_archive.tokens.refresh_lifetime = 7200.0
    _shared_archive.faults.reset()


@pytest.fixture
def client(archive: TestArchive) -> Iterator[NbiaClient]:
    """A client of that archive, which speaks v2."""
    with archive.client() as client:
        yield client


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake on the disk."""
    return Lake(str(tmp_path / "lake"))


@pytest.fixture(scope="session")
def _shared_series() -> Iterator[OneSeries]:
    with one_series() as one:
        yield one


@pytest.fixture
def one(_shared_series: OneSeries, tmp_path: Path) -> OneSeries:
    """An archive with one series, as it was first, and an empty lake for it."""
    return _shared_series.fresh(tmp_path)
