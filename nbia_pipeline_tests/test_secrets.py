"""The password and the tokens are in no event, log, file, run config or page."""

from __future__ import annotations

import logging
from pathlib import Path

import dagster as dg
import pytest

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import answer, echo_headers

pytestmark = pytest.mark.slow

PASSWORD = "demo-member-password"


@pytest.mark.parametrize("troubled", [False, True], ids=["smooth", "troubled"])
def test_a_run_leaves_no_secret_behind(
    archive: TestArchive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    troubled: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("NBIA_PASSWORD", PASSWORD)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    settings = Settings(
        archive=archive.url, lake=str(tmp_path / "lake"), username="demo_member", password=PASSWORD, images=("*",)
    )
    definitions = build_definitions(settings)
    if troubled:
        # A proxy that shows what it was sent, and a server that refuses.
        archive.faults.inject("getCollectionValuesAndCounts", echo_headers())
        archive.faults.inject("getModalityValues", echo_headers(status=500), times=3)
        archive.faults.inject("getBodyPartValues", answer(401), times=2)
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("nbia_collections", ["TCGA-DEMO"])
        for job, partition in (("catalogue", None), ("tables", "TCGA-DEMO")):
            result = definitions.resolve_job_def(f"nbia_{job}").execute_in_process(
                instance=instance, raise_on_error=False, partition_key=partition
            )
            assert result.success == (not troubled or job == "tables")
    secrets = {PASSWORD, *tokens_of(archive)}
    assert len(secrets) > 1
    out, err = capfd.readouterr()
    written = {"log": caplog.text, "stdout": out, "stderr": err}
    for path in tmp_path.rglob("*"):
        if path.is_file():
            written[str(path)] = path.read_bytes().decode("latin-1")
    assert [place for place, text in written.items() for secret in secrets if secret in text] == []


def tokens_of(archive: TestArchive) -> set[str]:
    sent = (r.headers.get("authorization", "") for r in archive.faults.seen)
    return {header.removeprefix("Bearer ") for header in sent if header}


def test_the_password_is_a_variables_name_in_the_definitions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NBIA_PASSWORD", PASSWORD)
    settings = Settings(username="demo_member", password=PASSWORD, lake=str(tmp_path))
    resources = build_definitions(settings).resources or {}
    assert PASSWORD not in repr(resources["nbia_archive"])
    assert PASSWORD not in repr(settings)
    assert resources["nbia_archive"].password == "NBIA_PASSWORD"
