"""Real browsers over a real `nbia-pipeline dev`: run by `make test-browser`, skipped otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.demo.catalog import demo_catalog
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline_tests.browser.person import HEIGHT, WIDTH, Person
from nbia_pipeline_tests.helpers.archives import serving
from nbia_pipeline_tests.helpers.dev_ui import Page, serving_ui
from nbia_pipeline_tests.helpers.faults import Faults

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
# What keeps Chromium from asking the internet, and lets it run as root and without a graphics card.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
STEP_MS = 60_000
SUMMARY = pytest.StashKey[list[str]]()

Visit = Callable[[Page, Path], Person]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents and config.getoption("--browser") is None:
            item.add_marker(pytest.mark.skip(reason="make test-browser"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for line in config.stash.get(SUMMARY, []):
        terminalreporter.write_line(line)


@pytest.fixture
def tell(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Add a line to the summary of the tests."""
    return pytestconfig.stash.setdefault(SUMMARY, []).append


@pytest.fixture(scope="session")
def chromium(pytestconfig: pytest.Config) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright  # here: an extra of its own has it

    with sync_playwright() as playwright:
        path = pytestconfig.getoption("--browser")
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser, pytestconfig: pytest.Config, tmp_path: Path) -> Iterator[Visit]:
    """Let somebody with a new browser profile visit a UI that was started in a folder.

    What they saw last is in a picture in the test's own folder, for whoever looks into a failure.
    """
    pictures = pytestconfig.getoption("--screenshots")
    with ExitStack() as stack:

        def visit(ui: Page, folder: Path) -> Person:
            context = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT})
            stack.callback(context.close)
            context.set_default_timeout(STEP_MS)
            tab = context.new_page()
            stack.callback(tab.screenshot, path=tmp_path / "seen last.png")
            return Person(tab, ui.url.removesuffix("/graphql"), folder, pictures and Path(pictures))

        yield visit


@dataclass
class Site:
    """A UI over an archive of one's own that is mirrored completely.

    Attributes:
        ui: the interface of its pages.
        folder: where it was started.
        lake: where it mirrors to.
        faults: what goes wrong at the archive, and what it was asked.
        control: changes of the archive.
    """

    ui: Page
    folder: Path
    lake: Lake
    faults: Faults
    control: Operations


@pytest.fixture(scope="session")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    app = create_app(demo_catalog())
    faults = Faults(app)
    settings = {"NBIA_IMAGES": "*", "NBIA_HEADERS": "*", "NBIA_POLL_SECONDS": "60"}
    with serving(faults) as url, serving_ui(folder, NBIA_ARCHIVE=url, **settings) as ui:
        ui.wait_until_loaded()
        assert ui.materialize("nbia_mirror") == "SUCCESS"
        yield Site(ui, folder, Lake(str(folder / "a lake")), faults, app.state.archive.control)


@pytest.fixture
def site(_site: Site) -> Iterator[Site]:
    """A site whose archive answers truly."""
    _site.faults.reset()
    yield _site
    _site.faults.reset()


@pytest.fixture
def person(site: Site, visit: Visit) -> Person:
    """Somebody who visits that site."""
    return visit(site.ui, site.folder)
