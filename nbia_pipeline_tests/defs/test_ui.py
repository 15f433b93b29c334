"""What a person does in the Dagster UI, through the same interface that its pages use."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pytest

from nbia_pipeline.defs.jobs import collections_of
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.dev_ui import PATIENCE_SECONDS, Page, serving_ui, wait_until
from nbia_pipeline_tests.helpers.faults import Fault, pass_on
from nbia_pipeline_tests.helpers.processes import IN_ORDER, environment
from nbia_pipeline_tests.helpers.ticker import KNOWN

pytestmark = pytest.mark.slow

STOPPED_SECONDS = 30
QIN = "QIN_Breast.v2"


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Page]:
    with serving_ui(tmp_path) as page:
        yield page


def test_a_person_can_materialise_everything_from_the_ui(dev: Page, tmp_path: Path) -> None:
    assert [e["name"] for e in dev.wait_until_loaded()] == ["nbia_pipeline"]
    assert dev.materialize("nbia_mirror") == "SUCCESS"
    lake = Lake(str(tmp_path / "a lake"))
    statuses = {c: lake.read_table(IMAGE_SERIES, c)["Status"].to_pylist() for c in KNOWN}
    assert statuses == {c: ["complete"] * n for c, n in zip(KNOWN, (21, 4, 5, 9), strict=True)}

    records = list((tmp_path / "tmp").glob("nbia-pipeline-*/*.json"))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while records and time.monotonic() < deadline:
        time.sleep(0.5)
        records = [r for r in records if r.exists()]
    assert records == [], "the embedded archive outlived the steps that needed it"


def processes_of(instance: dg.DagsterInstance, run: str) -> set[int]:
    """Return the processes that a run named in its events."""
    data = [
        e.dagster_event.engine_event_data
        for e in instance.all_logs(run)
        if e.is_dagster_event and e.dagster_event and e.dagster_event.is_engine_event
    ]
    return {int(str(d.metadata["pid"].value)) for d in data if "pid" in d.metadata}


def expect_ended(instance: dg.DagsterInstance, run: str, processes: set[int]) -> None:
    """Expect that a run left no process, slot, or step that seems to go on, and was not retried."""
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))
    assert instance.event_log_storage.get_concurrency_info("nbia_api").active_slot_count == 0
    kinds = [e.dagster_event_type for e in instance.all_logs(run) if e.is_dagster_event]
    assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in kinds
    steps = instance.get_run_step_stats(run)
    assert [s.step_key for s in steps if s.end_time is None] == []


def test_a_backfill_of_scattered_partitions_is_a_run_for_each_stretch(
    dev: Page, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--every-moment"):
        pytest.skip("takes a minute: make test-stop")
    dev.wait_until_loaded()
    assert dev.materialize("nbia_catalogue") == "SUCCESS"
    ends = {"dagster__asset_partition_range_start": KNOWN[0], "dagster__asset_partition_range_end": KNOWN[-1]}
    assert dev.materialize("nbia_tables", **ends) == "SUCCESS"

    # All partitions but one: Dagster makes a run for each stretch, within half a minute.
    backfill = dev.backfill("nbia/images", [c for c in KNOWN if c != QIN])
    lake = Lake(str(tmp_path / "a lake"))
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        of_backfill = dg.RunsFilter(tags={"dagster/backfill": backfill})
        wait_until(lambda: len(instance.get_runs(of_backfill)) == 2)
        runs = {run.run_id: collections_of(run.tags, KNOWN) for run in instance.get_runs(of_backfill)}
        assert sorted(runs.values()) == [KNOWN[:2], KNOWN[3:]]
        assert [dev.end_of(run) for run in runs] == ["SUCCESS", "SUCCESS"]
        assert instance.get_materialized_partitions(dg.AssetKey(["nbia", "images"])) == {*KNOWN} - {QIN}
    statuses = {c: lake.read_table(IMAGE_SERIES, c)["Status"].to_pylist() for c in KNOWN}
    assert statuses == {c: ["complete"] * n for c, n in zip(KNOWN, (21, 4, 0, 9), strict=True)}


def test_terminate_in_the_ui(archive: TestArchive, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A run that the UI launched, and one of ``nbia-pipeline run``, which no code server knows."""
    if not request.config.getoption("--every-moment"):
        pytest.skip("takes minutes: make test-stop")
    variables = {"NBIA_ARCHIVE": archive.url, "NBIA_COLLECTIONS": QIN, "NBIA_IMAGES": "*"}
    journal = tmp_path / "a lake" / ".staging" / "journal" / QIN

    def finished() -> int:
        return len(list(journal.glob("*.json")))

    def complete() -> int:
        statuses: list[str] = Lake(str(tmp_path / "a lake")).read_table(IMAGE_SERIES, QIN)["Status"].to_pylist()
        return statuses.count("complete")

    def half_a_zip_after(answers: int) -> None:
        archive.faults.reset()
        archive.faults.inject("getImageWithMD5Hash", *[pass_on()] * answers)
        archive.faults.inject("getImageWithMD5Hash", Fault("stall", fraction=0.5), times=20)

    with ExitStack() as stack:
        page = stack.enter_context(serving_ui(tmp_path, **variables))
        page.wait_until_loaded()
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(tmp_path / "home")))
        assert page.materialize("nbia_catalogue") == "SUCCESS"
        assert page.materialize("nbia_tables", dagster__partition=QIN) == "SUCCESS"

        half_a_zip_after(2)
        run = page.launch("nbia_images", dagster__partition=QIN)
        wait_until(lambda: finished() == 2)
        processes = processes_of(instance, run)
        began = time.monotonic()
        assert page.terminate(run) == "TerminateRunSuccess"
        assert page.end_of(run) == "CANCELED"
        assert time.monotonic() - began < STOPPED_SECONDS
        expect_ended(instance, run, processes)
        assert complete() == 2

        half_a_zip_after(1)
        with subprocess.Popen(
            [sys.executable, "-m", "nbia_pipeline", "run"],
            cwd=tmp_path,
            env=environment(tmp_path, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            wait_until(lambda: finished() == 1)
            run = instance.get_runs(limit=1)[0].run_id
            page.terminate(run)  # it answers that it cannot, but records the request
            try:
                _, err = process.communicate(timeout=STOPPED_SECONDS)
            finally:
                process.kill()
        assert process.returncode == 128 + signal.SIGTERM
        assert err == f"nbia-pipeline: run {run} was terminated in the UI\n{IN_ORDER}"
        assert page.end_of(run) == "CANCELED"
        expect_ended(instance, run, set())
        assert complete() == 3

        archive.faults.reset()
        assert page.materialize("nbia_images", dagster__partition=QIN) == "SUCCESS"
        assert complete() == 5
        assert archive.faults.count("getImageWithMD5Hash") == 2
