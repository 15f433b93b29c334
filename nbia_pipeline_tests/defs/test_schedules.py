"""The schedules by real ticks: what they ask for, and what they refuse."""

# ruff: noqa: DTZ001 - the server's times, and ours, have no zone

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import COLLECTIONS
from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline_tests.helpers.ticker import Ticker

NIGHT = datetime(2026, 3, 9, 3, 0)


@pytest.fixture
def ticker(instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ticker:
    settings = Settings(archive="tcia", lake=str(tmp_path / "lake"), collections=("A*", "B", "C"))
    return Ticker(settings, instance, monkeypatch)


def list_collections(ticker: Ticker, *names: str) -> None:
    rows = [{"Collection": n} for n in names]
    Lake(ticker.settings.lake).write_table(COLLECTIONS, pa.Table.from_pylist(rows, schema=COLLECTIONS.schema))


def ranges(tick: Any) -> list[tuple[str, str]]:
    tags = [r.tags for r in tick.run_requests]
    first, last = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
    return [(t[first], t[last]) for t in tags if first in t]


def test_all_collections_are_listed_in_one_run_where_they_stand_together(ticker: Ticker) -> None:
    ticker.register("A1", "A2", "B", "C")
    list_collections(ticker, "A1", "A2", "B", "C")
    tick = ticker.scheduled("nbia_reconcile", NIGHT)
    assert ranges(tick) == [("A1", "C")]
    (request,) = tick.run_requests
    assert request.job_name == "nbia_tables"
    assert request.tags["nbia/archive"] == "nbia"


def test_stretches_follow_the_order_of_registration_and_leave_out_what_is_not_kept(ticker: Ticker) -> None:
    ticker.register("B", "Z not kept", "A2", "C", "A1")
    list_collections(ticker, "A1", "A2", "B", "C")
    tick = ticker.scheduled("nbia_reconcile", NIGHT)
    assert ranges(tick) == [("B", "B"), ("A2", "A1")]
    assert len({r.run_key for r in tick.run_requests}) == 2


def test_many_collections_are_listed_in_several_runs(ticker: Ticker) -> None:
    names = [f"A{n:03d}" for n in range(60)]
    ticker.register(*names)
    list_collections(ticker, *names)
    tick = ticker.scheduled("nbia_reconcile", NIGHT)
    assert ranges(tick) == [("A000", "A024"), ("A025", "A049"), ("A050", "A059")]


def test_a_collection_that_is_listed_no_more_is_not_asked_for(ticker: Ticker) -> None:
    ticker.register("A1", "B", "C", "Z not kept")
    list_collections(ticker, "A1", "C")
    tick = ticker.scheduled("nbia_reconcile", NIGHT)
    assert ranges(tick) == [("A1", "A1"), ("C", "C")]
    assert len(tick.run_requests) == 2


def test_without_a_table_of_collections_it_says_what_to_do(ticker: Ticker) -> None:
    ticker.register("A1")
    tick = ticker.scheduled("nbia_reconcile", NIGHT)
    assert tick.run_requests == []
    assert tick.skip_message == "The table of collections is empty: materialize collections first"


def test_a_lake_that_cannot_be_read_is_a_sentence(ticker: Ticker) -> None:
    path = Path(ticker.settings.lake) / "tables/collections/part-0.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no table")
    assert (
        "Nothing was requested: cannot read tables/collections"
        in ticker.scheduled("nbia_reconcile", NIGHT).skip_message
    )


def test_the_catalogue_is_listed_by_its_job(ticker: Ticker) -> None:
    tick = ticker.scheduled("nbia_catalogue", NIGHT)
    (request,) = tick.run_requests
    assert request.partition_key is None
    assert request.tags["nbia/archive"] == "nbia"


# --- how they are set up


def repository(**settings: Any) -> dg.RepositoryDefinition:
    return build_definitions(Settings(**settings)).get_repository_def()


def test_everything_is_off_until_a_person_turns_it_on(tmp_path: Path) -> None:
    found = repository(lake=str(tmp_path))
    assert {s.name: s.default_status for s in found.sensor_defs} == {
        "nbia_updated_series": dg.DefaultSensorStatus.STOPPED,
        "nbia_image_backlog": dg.DefaultSensorStatus.STOPPED,
    }
    assert {s.name: s.default_status for s in found.schedule_defs} == {
        "nbia_catalogue": dg.DefaultScheduleStatus.STOPPED,
        "nbia_reconcile": dg.DefaultScheduleStatus.STOPPED,
    }


def test_their_times_come_from_the_settings(tmp_path: Path) -> None:
    found = repository(lake=str(tmp_path))
    assert {s.name: s.cron_schedule for s in found.schedule_defs} == {
        "nbia_catalogue": "0 2 * * *",
        "nbia_reconcile": "0 3 * * *",
    }
    assert {s.execution_timezone for s in found.schedule_defs} == {"UTC"}
    assert {s.minimum_interval_seconds for s in found.sensor_defs} == {3600}
    other = repository(lake=str(tmp_path), poll_seconds=60, catalogue_cron="@daily", reconcile_cron="30 4 * * SUN")
    assert {s.cron_schedule for s in other.schedule_defs} == {"@daily", "30 4 * * SUN"}
    assert {s.minimum_interval_seconds for s in other.sensor_defs} == {60}


@pytest.mark.parametrize("cron", ["61 * * * *", "daily", "0 3 * *", "0 3 31 2 *"])
@pytest.mark.parametrize(
    ("field", "variable"), [("catalogue_cron", "NBIA_CATALOGUE_CRON"), ("reconcile_cron", "NBIA_RECONCILE_CRON")]
)
def test_a_cron_expression_that_is_none_is_refused_by_name(
    field: str, variable: str, cron: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"lake": str(tmp_path), field: cron}
    sentence = f"is '{cron.replace('*', '.')}': set it to a cron expression"
    with pytest.raises(SettingsError, match=f"^{field} {sentence}"):
        build_definitions(Settings(**settings))
    with pytest.raises(SettingsError, match=f"^{variable} {sentence}"):
        build_definitions(Settings.from_env({"NBIA_LAKE": str(tmp_path), variable: cron}))


def test_the_ui_shows_which_tables_are_stale(tmp_path: Path) -> None:
    graph = repository(lake=str(tmp_path)).asset_graph
    policies = {k.path[-1]: graph.get(k).freshness_policy for k in graph.materializable_asset_keys}
    windows = {name: str(p) for name, p in policies.items() if p is not None}
    assert set(windows) >= {
        "collections",
        "modalities",
        "patients",
        "studies",
        "series",
        "series_changes",
        "series_metadata",
    }
    assert "images" not in windows
    assert all("fail_window=SerializableTimeDelta(days=3" in w and "days=2" in w for w in windows.values())


def test_the_jobs_hold_what_they_are_called_after(tmp_path: Path) -> None:
    definitions = build_definitions(Settings(lake=str(tmp_path)))

    def assets(job: str) -> set[str]:
        return {k.path[-1] for k in definitions.resolve_job_def(job).asset_layer.selected_asset_keys}

    assert assets("nbia_update") == assets("nbia_tables") | {"images", "annotation_files", "headers", "references"}
    assert assets("nbia_tables") == {"patients", "studies", "series", "series_changes", "series_metadata"}
    steps = set(definitions.resolve_job_def("nbia_update").graph.node_dict)
    assert steps >= {"nbia__series_uids_unique", "nbia_check_images"}, "the checks run too"


def test_the_definitions_load_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    dg.Definitions.validate_loadable(build_definitions(Settings(lake=str(tmp_path))))
    assert [str(w.message) for w in recwarn if "nbia" in str(w.message)] == []
