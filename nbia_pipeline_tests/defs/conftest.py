"""An archive that releases, hides and fails, and code locations over it whose ticks a test drives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from starlette.applications import Starlette

from nbia_pipeline.archive import ClientOptions
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.archives import serving
from nbia_pipeline_tests.helpers.ticker import KNOWN, MONDAY, PARTITIONS, Make, Ticker

QUICK = ClientOptions(connect_timeout=2, read_timeout=1, tries=2, backoff=0.01, max_backoff=0.05)


@pytest.fixture(scope="package")
def app(demo: Catalog) -> Starlette:
    return create_app(demo)


@pytest.fixture(scope="package")
def url(app: Starlette) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture
def control(app: Starlette) -> Iterator[Operations]:
    operations: Operations = app.state.archive.control
    operations.reset()
    operations.now(MONDAY)
    yield operations
    operations.reset()


@pytest.fixture(scope="package")
def _instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def instance(_instance: dg.DagsterInstance) -> dg.DagsterInstance:
    for key in _instance.get_dynamic_partitions(PARTITIONS):
        _instance.delete_dynamic_partition(PARTITIONS, key)
    return _instance


@pytest.fixture
def make(url: str, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make a code location over the archive, with short time-outs; its collections are registered."""
    monkeypatch.setattr("nbia_pipeline.defs.sensors.TICK_OPTIONS", QUICK)

    def make(**settings: Any) -> Ticker:
        known = {"archive": url, "lake": str(tmp_path / "lake"), "images": ("TCGA-*",), "headers": ()}
        ticker = Ticker(Settings(**{**known, **settings}), instance, monkeypatch)
        ticker.register(*KNOWN)
        return ticker

    return make
