"""``nbia-pipeline run`` after, and while, another one with the same DAGSTER_HOME is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import dagster as dg
import pytest
from starlette.types import Receive, Scope, Send

from nbia_pipeline.cli import run as run_command
from nbia_pipeline.cli.home import DAGSTER_YAML
from nbia_pipeline.cli.main import main
from nbia_pipeline.defs import slots
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake.lock import HOST
from nbia_pipeline_tests.helpers.archives import Serve
from nbia_pipeline_tests.helpers.places import Place, files_below
from nbia_pipeline_tests.helpers.processes import at_most, environment
from nbia_pipeline_tests.helpers.tiny import tiny_catalog

pytestmark = pytest.mark.slow

SECONDS = 120


class SlowListing:
    """An archive of two collections that answers getSeries when `opened` is set."""

    def __init__(self) -> None:
        self.app = create_app(tiny_catalog())
        self.asked, self.opened = threading.Event(), threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/getSeries"):
            self.asked.set()
            while not self.opened.is_set():
                await asyncio.sleep(0.02)
        await self.app(scope, receive, send)


def test_a_run_waits_for_a_live_one_says_so_and_goes_on_when_that_is_killed(
    serve: Serve, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = SlowListing()
    variables = {"NBIA_ARCHIVE": serve(archive), "NBIA_COLLECTIONS": "beta-set", "NBIA_IMAGES": "beta-set"}
    variables["NBIA_LAKE"] = str(place / "a lake")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text(DAGSTER_YAML.replace("default_limit: 4", "default_limit: 1"))
    said: list[str] = []
    for name, value in environment(tmp_path, **variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slots, "POLL_SECONDS", 0.2)
    with subprocess.Popen(
        [sys.executable, "-m", "nbia_pipeline", "run"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as first:

        def report(sentence: str) -> None:
            said.append(sentence)
            if sentence.startswith("waiting"):
                assert first.poll() is None
                os.killpg(first.pid, signal.SIGKILL)
                first.wait()
                archive.opened.set()

        monkeypatch.setattr(run_command, "to_stderr", report)
        try:
            assert archive.asked.wait(SECONDS)
            with at_most(SECONDS):
                code = main(["run"])
        finally:
            if first.poll() is None:
                os.killpg(first.pid, signal.SIGKILL)
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        runs = list(reversed(instance.get_runs()))
        of_first = [run for run in runs if f".{first.pid}-" in run.tags[slots.OWNER_TAG]]
        killed = of_first[-1]
        info = instance.event_log_storage.get_concurrency_info("nbia_api")
    assert code == 0
    assert [sentence.split(",")[0] for sentence in said] == [
        "waiting for one of the 1 slots of the pool nbia_api",
        "earlier runs that were killed are recorded as failed now",
    ]
    assert f"{killed.run_id[:8]} (nbia_tables, {HOST}.{first.pid}-" in said[0] and killed.run_id[:8] in said[1]
    assert [run.status.value for run in runs if run not in of_first] == ["SUCCESS"] * 4
    assert killed.status.value == "FAILURE"
    assert (info.claimed_slots, info.pending_steps) == ([], [])
    assert len([p for p in files_below(place / "a lake" / "images") if p.suffix == ".dcm"]) == 3
