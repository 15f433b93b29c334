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
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.selection import Selection
from nbia_pipeline.reading import lake as reading
from nbia_pipeline_tests.helpers.archives import FAST, Serve, TestArchive, serving
from nbia_pipeline_tests.helpers.faults import Faults
from nbia_pipeline_tests.helpers.one_series import OneSeries, one_series
from nbia_pipeline_tests.helpers.places import DISK, STORES, Place, Stores
from nbia_pipeline_tests.helpers.tiny import Clock

# Tests that run behind a shell's `&` would have processes that ignore Ctrl-C.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something about the machine only; what examples share is a place, not a lake.
settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--years", type=int, default=1, help="simulated years to test, 10 at the most")
    parser.addoption("--store", choices=[DISK, *STORES], default=DISK, help="where tests have their lakes")
    parser.addoption("--browser", help="the Chromium to run the tests of browser/ with: make test-browser")
    parser.addoption("--screenshots", help="the folder to write the pictures of the documentation to: make screenshots")
    parser.addoption("--every-moment", action="store_true", help="stop runs at every moment that has a name")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked for it on object stores too."""
    marker = metafunc.definition.get_closest_marker
    can = "store" in metafunc.fixturenames and not marker("disk") and metafunc.config.getoption("--store") == DISK
    if can and (stores := marker("stores")):
        kinds = [*([] if marker("not_on_disk") else [DISK]), *stores.args]
        # One after the other in a module: another store is another connection.
        metafunc.parametrize("store", kinds, indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has no lake in the object store, and skip what is about disks."""
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        callspec = getattr(item, "callspec", None)
        params = callspec.params if callspec else {}
        memory = any(isinstance(value, str) and value == "memory" for value in params.values())
        kind = params.get("store", config.getoption("--store"))
        marked = item.get_closest_marker("disk")
        if kind == DISK and item.get_closest_marker("not_on_disk"):
            left.append(item)
            continue
        elsewhere = memory or not (marked or "store" in getattr(item, "fixturenames", ()))
        (left if kind != DISK and elsewhere else kept).append(item)
        if kind != DISK and marked:
            item.add_marker(pytest.mark.skip(reason=f"about disks: {marked.args[0]}"))
    items[:] = kept
    config.hook.pytest_deselected(items=left)


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


@pytest.fixture(scope="session")
def _stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with contextlib.ExitStack() as stack:
        yield Stores(stack, tmp_path_factory.mktemp)


@pytest.fixture
def store(request: pytest.FixtureRequest) -> str:
    """Where the test has its lakes: on the disk, or in which object store."""
    kind: str = getattr(request, "param", request.config.getoption("--store"))
    return kind


@pytest.fixture
def place(store: str, tmp_path: Path, _stores: Stores) -> Iterator[Place]:
    """An empty place for lakes; on a disk it is `tmp_path`."""
    if store == DISK:
        yield tmp_path
        return
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo what it patches
        yield _stores.new_place(store, patch)


@pytest.fixture
def lake(place: Place) -> Lake:
    """An empty lake."""
    return Lake(str(place / "lake"))


@pytest.fixture(scope="session")
def _shared_series() -> Iterator[OneSeries]:
    with one_series() as one:
        yield one


@pytest.fixture
def one(_shared_series: OneSeries, place: Place) -> OneSeries:
    """An archive with one series, as it was first, and an empty lake for it."""
    return _shared_series.fresh(place)


@pytest.fixture(scope="session")
def mirrored(demo_archive: str, tmp_path_factory: pytest.TempPathFactory) -> reading.Lake:
    """A lake, only to be read, of two collections, and of the structure sets of a third."""
    lake = reading.Lake(str(tmp_path_factory.mktemp("mirrored") / "lake"))
    with NbiaClient(demo_archive, options=FAST) as client:
        for collection in ("TCGA-DEMO", "QIN_Breast.v2"):
            Mirror(client, lake).run(collection)
        Mirror(client, lake).run("HeadNeckMix", Selection(modalities=("RTSTRUCT",)))
    return lake
