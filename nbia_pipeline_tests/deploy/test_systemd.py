"""The units of deploy/systemd: what they say, and a mirror run by their commands on a real PostgreSQL."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline_tests.helpers.pipeline import QIN
from nbia_pipeline_tests.helpers.postgres import postgres
from nbia_pipeline_tests.helpers.units import machine

SERVICES = ("nbia-code.service", "nbia-daemon.service", "nbia-webserver.service")


@pytest.mark.slow
def test_a_mirror_runs_by_the_commands_of_the_units(demo_archive: str, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--every-moment"):
        pytest.skip("takes half a minute and more: make test-stop")
    given = {
        "NBIA_ARCHIVE": demo_archive,
        "NBIA_API": "v2",
        "NBIA_COLLECTIONS": QIN,
        "NBIA_IMAGES": QIN,
        "NBIA_HEADERS": "",
    }
    with postgres() as server, machine({**given, **server.variables, "NBIA_EXECUTOR": "in_process"}) as here:
        for unit in SERVICES:
            here.start(unit)
        here.wait_for_ui()

        # The code server and its run are killed at once; the daemon repeats the run, because it was lost.
        lost = here.launch("nbia_catalogue")
        here.run_with(runId=lost, status="STARTED")
        here.stop("nbia-code.service", signal.SIGKILL)
        assert here.run_with(runId=lost)["status"] == "STARTED"
        here.start("nbia-code.service")
        assert f"Recorded as failed: {lost}" in here.printed("nbia-code.service")
        assert here.ended(here.run_with(parentRunId=lost)["runId"]) == "SUCCESS"

        assert here.ended(here.launch("nbia_tables", dagster_partition=QIN)) == "SUCCESS"
        assert here.ended(here.launch("nbia_images", dagster_partition=QIN)) == "SUCCESS"
        receipts = Lake(here.variables["NBIA_LAKE"]).read_table(IMAGE_SERIES, QIN)
        assert receipts["Status"].to_pylist() == ["complete"] * 5
        assert len(list(Path(here.variables["NBIA_LAKE"], "images").rglob("*.dcm"))) == 85
        assert server.psql("SELECT status, count(*) FROM runs GROUP BY 1 ORDER BY 1") == "FAILURE|1\nSUCCESS|3"
        assert list(here.home.rglob("*.db")) == []  # all records are in the database
        for unit in SERVICES:
            assert server.password not in here.printed(unit)
        assert [here.stop(unit) for unit in reversed(SERVICES)] == [0, 0, 0]
