"""Each peer is run once, in its own environment, against a demo archive of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline_tests.helpers.archives import FAST, serving
from nbia_pipeline_tests.helpers.faults import Faults
from nbia_pipeline_tests.helpers.peers import Ask, Asked

HERE = Path(__file__).parent


"""Takes the name of a script and the days to ask for, in the peer's own spelling."""


@pytest.fixture(scope="session")
def ask(demo: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Run a script of this directory."""
    python = peers.tested()

    def run(script: str, days: list[str]) -> Asked:
        questions, folder = _questions(demo, days), tmp_path_factory.mktemp(Path(script).stem)
        watched = Faults(create_app(demo))
        with serving(watched) as url:
            said = _run([str(python), str(HERE / script), url, str(folder), json.dumps(questions)])
        return Asked(json.loads(said), folder, watched.seen, questions)

    return run


@pytest.fixture(scope="session")
def ours_v2(demo_archive: str) -> Iterator[NbiaClient]:
    """Our client, speaking v2."""
    with NbiaClient(demo_archive, options=FAST) as client:
        yield client


@pytest.fixture(scope="session")
def ours_v4(demo_archive: str) -> Iterator[NbiaClient]:
    """Our client, speaking v4."""
    with NbiaClient(demo_archive, api="v4", options=FAST) as client:
        yield client


def _run(words: list[str]) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NBIA_", "PYTHON"))}
    environment["NO_PROXY"] = environment["no_proxy"] = "127.0.0.1"
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _questions(demo: Catalog, days: list[str]) -> dict[str, Any]:
    assert demo.images is not None
    rows = [r for r in demo.series.to_pylist() if r["Visibility"] == 1 and r["Collection"] not in demo.restricted]
    of_modality = {r["Modality"]: r["SeriesInstanceUID"] for r in reversed(rows)}
    # One of each kind, and one whose files have no InstanceNumber that could name them.
    unnumbered = next(r["SeriesInstanceUID"] for r in rows if r["SeriesDescription"] == "t2_flair_sag")
    ct = of_modality["CT"]
    return {
        "collections": sorted({r["Collection"] for r in rows}),
        "since": days,
        "metadata": [r["SeriesInstanceUID"] for r in rows],
        "downloads": [*of_modality.values(), unnumbered],
        "instance": [ct, demo.images.instances(ct)[0].sop_instance_uid],
        "drawn": [r["SeriesInstanceUID"] for r in rows if r["Modality"] in ("SEG", "RTSTRUCT")],
    }
