"""What is new in a collection: the command and the asset, against what the archive holds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nbia_pipeline.cli.main import main
from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.assets.released import SHOWN
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.settings import Settings

COLLECTION = "TCGA-DEMO"
KEY = dg.AssetKey(["nbia", "news"])
NOW = datetime(2026, 3, 9, 8)  # noqa: DTZ001 - our times have no zone


@pytest.fixture
def control(control: Operations) -> Operations:
    control.add_series(COLLECTION, patient="NEW-1", study="1.2.3", released=date(2026, 3, 1), StudyDescription="First")
    control.add_series(COLLECTION, patient="NEW-2", study="1.2.4", released=date(2026, 2, 12))
    control.add_series(COLLECTION, patient="NEW-2", study="1.2.4", released=date(2026, 2, 12))
    return control


@pytest.fixture
def ask(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBIA_ARCHIVE", url)
    monkeypatch.setattr("nbia_pipeline.clock.utc_now", lambda: NOW)


# --- the command


@pytest.mark.usefixtures("ask", "control")
@pytest.mark.parametrize("api", ["v2", "v4"])
@pytest.mark.parametrize(
    ("since", "found", "patients"),
    [
        ("2026-03-01", "1 patient, 1 study", ["NEW-1"]),
        ("2026-02-12", "2 patients, 2 studies", ["NEW-1", "NEW-2"]),
        ("2026-03-02", "0 patients, 0 studies", []),
        (None, "2 patients, 2 studies", ["NEW-1", "NEW-2"]),  # thirty days
    ],
)
def test_the_command_shows_what_was_released_since(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    api: str,
    since: str | None,
    found: str,
    patients: list[str],
) -> None:
    monkeypatch.setenv("NBIA_API", api)
    assert main(["released", COLLECTION, *(["--since", since] if since else [])]) == 0
    out = capsys.readouterr().out
    assert f"New in {COLLECTION} since {since or '2026-02-07'}: {found}" in out
    tables = [line.split()[0] for line in out.splitlines() if line.startswith("NEW-")]
    assert tables == patients * 2, "once as patients, once by their studies"


@pytest.mark.usefixtures("ask", "control")
def test_a_study_is_shown_with_the_number_of_its_new_series(capsys: pytest.CaptureFixture[str]) -> None:
    main(["released", COLLECTION, "--since", "2026-02-01"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "1.2.4" in line]
    assert [line.split()[-2:] for line in lines] == [["2", "1.2.4"]]


@pytest.mark.usefixtures("ask", "control")
def test_the_old_name_of_the_command_works_and_names_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["news", COLLECTION]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"New in {COLLECTION} since ")
    assert err == "nbia-pipeline: `news` is now called `released`\n"


@pytest.mark.usefixtures("ask", "control")
@pytest.mark.parametrize(
    ("name", "hint"),
    [("tcga-demo", "did you mean TCGA-DEMO?"), ("QIN_Brest.v2", "QIN_Breast.v2"), ("Zzz", "it lists")],
)
def test_an_unknown_collection_comes_with_what_looks_like_it(
    capsys: pytest.CaptureFixture[str], name: str, hint: str
) -> None:
    assert main(["released", name]) == 2
    error = capsys.readouterr().err
    assert f"the archive lists no collection '{name}' for this account: " in error
    assert hint in error


@pytest.mark.usefixtures("ask")
@pytest.mark.parametrize("day", ["01/02/2024", "2024-13-01", "yesterday", ""])
def test_a_bad_day_is_refused_before_anything_is_asked(
    capsys: pytest.CaptureFixture[str], control: Operations, day: str
) -> None:
    assert main(["released", COLLECTION, "--since", day]) == 2
    assert f"{day!r} is not a day: use a value such as 2024-01-01" in capsys.readouterr().err
    assert control.requests() == []


@pytest.mark.usefixtures("ask")
def test_an_archive_that_fails_is_a_sentence(capsys: pytest.CaptureFixture[str], control: Operations) -> None:
    control.faults(Fault("html", endpoint="NewPatientsInCollection"))
    assert main(["released", COLLECTION]) == 1
    assert "HTML" in capsys.readouterr().err


# --- the asset


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        instance.add_dynamic_partitions("nbia_collections", [COLLECTION])
        yield instance


def report(url: str, tmp_path: Path, instance: dg.DagsterInstance, since: str | None = None) -> Any:
    definitions = build_definitions(Settings(archive=url, lake=str(tmp_path / "lake")))
    config = {"ops": {"nbia__news": {"config": {"since": since}}}} if since else None
    return (
        definitions.resolve_implicit_global_asset_job_def()
        .get_subset(asset_selection={KEY})
        .execute_in_process(instance=instance, partition_key=COLLECTION, run_config=config, raise_on_error=False)
    )


def figures(result: Any) -> dict[str, Any]:
    assert result.success
    (event,) = result.asset_materializations_for_node("nbia__news")
    return {name: value.value for name, value in event.metadata.items()}


@pytest.mark.usefixtures("ask", "control")
def test_the_report_shows_patients_and_studies(url: str, tmp_path: Path, instance: dg.DagsterInstance) -> None:
    found = figures(report(url, tmp_path, instance, "2026-02-12"))
    assert (found["since"], found["patients"], found["studies"]) == ("2026-02-12", 2, 2)
    metadata = report(url, tmp_path, instance, "2026-03-01").asset_materializations_for_node("nbia__news")[0].metadata
    (patient,) = metadata["first_patients"].records
    (study,) = metadata["first_studies"].records
    assert patient.data["PatientID"] == "NEW-1"
    assert (study.data["StudyDescription"], study.data["SeriesCount"]) == ("First", "1")


@pytest.mark.usefixtures("ask")
def test_the_report_looks_back_thirty_days_and_then_to_the_last_one(
    url: str, tmp_path: Path, instance: dg.DagsterInstance, control: Operations
) -> None:
    assert figures(report(url, tmp_path, instance))["since"] == "2026-02-07"
    # Dagster's own clock, which no test can set, says when that was.
    last = instance.fetch_materializations(KEY, limit=1).records[0].timestamp
    again = figures(report(url, tmp_path, instance))
    assert again["since"] == datetime.fromtimestamp(last, timezone.utc).date().isoformat()
    assert again["since"] > "2026-02-07"


@pytest.mark.usefixtures("ask")
def test_a_long_report_is_cut_and_its_figures_are_not(
    url: str, tmp_path: Path, instance: dg.DagsterInstance, control: Operations
) -> None:
    for n in range(SHOWN + 3):
        control.add_series(COLLECTION, patient=f"MANY-{n:03d}", released=date(2026, 3, 2))
    result = report(url, tmp_path, instance, "2026-03-02")
    assert figures(result)["patients"] == SHOWN + 3
    metadata = result.asset_materializations_for_node("nbia__news")[0].metadata
    assert len(metadata["first_patients"].records) == SHOWN


@pytest.mark.usefixtures("ask", "control")
def test_a_bad_day_in_the_config_is_a_sentence(url: str, tmp_path: Path, instance: dg.DagsterInstance) -> None:
    result = report(url, tmp_path, instance, "01/02/2024")
    (event,) = [e for e in result.all_events if e.is_step_failure]
    assert (
        event.step_failure_data.user_failure_data.description == "since is '01/02/2024': use a day such as 2024-01-01"
    )


def test_the_report_is_in_no_job() -> None:
    definitions = build_definitions(Settings())
    for job in ("nbia_catalogue", "nbia_tables", "nbia_images", "nbia_update"):
        assert KEY not in definitions.resolve_job_def(job).asset_layer.selected_asset_keys
