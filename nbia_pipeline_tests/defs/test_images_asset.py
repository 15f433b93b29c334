"""The images asset: what it fetches, what it tells meanwhile and in the end, and what a failed batch costs."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import pyarrow as pa
import pytest

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.assets import fetch_op
from nbia_pipeline.defs.assets.fetch_op import batch_report, failed_rows, failed_table
from nbia_pipeline.defs.assets.images import ImagesConfig, expect_all, run_metadata
from nbia_pipeline.defs.jobs import images_config
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.embedded.control.client import Fault
from nbia_pipeline.embedded.pytest_plugin import NbiaArchive
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import contact_sheet_path
from nbia_pipeline.mirror import engine
from nbia_pipeline.mirror.download import fetch_batch
from nbia_pipeline.mirror.receipt import Receipt, problem_rows
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.preview.sheet import INLINE_CHARACTERS
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES
from nbia_pipeline.settings import Settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]  # so that other processes find this module
BREAST = "QIN_Breast.v2"
IMAGES = dg.AssetKey(["nbia", "images"])
IN_PROCESS: dict[str, Any] = {"in_process": {}}
MULTIPROCESS: dict[str, Any] = {
    "multiprocess": {
        "max_concurrent": 2,
        "start_method": {"forkserver": {"preload_modules": ["nbia_pipeline.definitions"]}},
    }
}


def images_job(archive: str, lake: str) -> dg.JobDefinition:
    """Return the job, as every process of a run builds it for itself."""
    settings = Settings(archive=archive, lake=lake, images=("*",), annotations=False, headers=())
    return build_definitions(settings, executor=dg.multi_or_in_process_executor).resolve_job_def("nbia_images")


class Mirror(NamedTuple):
    """An archive, and a lake that has its tables, but no image yet."""

    archive: NbiaArchive
    lake: Lake
    instance: dg.DagsterInstance

    @property
    def job(self) -> Any:
        return dg.build_reconstructable_job(
            __name__,
            "images_job",
            reconstructable_kwargs={"archive": self.archive.url, "lake": self.lake.uri},
            reconstructor_working_directory=str(ROOT),
        )

    def run(self, executor: dict[str, Any] | None = None, **config: Any) -> dg.ExecuteJobResult:
        """Run the images job for the breast collection; `config` is for its plan step."""
        self.instance.add_dynamic_partitions("nbia_collections", [BREAST])
        return dg.execute_job(
            self.job,
            instance=self.instance,
            tags={"dagster/partition": BREAST},
            run_config={
                "execution": {"config": executor or IN_PROCESS},
                **images_config(Naming(), **config),
            },
        )

    def again(self, failed: dg.ExecuteJobResult, executor: dict[str, Any] | None = None) -> dg.ExecuteJobResult:
        """Re-execute a run from its failure."""
        return dg.execute_job(
            self.job,
            instance=self.instance,
            tags={"dagster/partition": BREAST},
            run_config={"execution": {"config": executor or IN_PROCESS}},
            reexecution_options=dg.ReexecutionOptions.from_failure(failed.run_id, self.instance),
        )

    def statuses(self) -> dict[str, int]:
        return dict(Counter(self.lake.read_table(IMAGE_SERIES, BREAST)["Status"].to_pylist()))

    def complete(self) -> set[str]:
        rows = self.lake.read_table(IMAGE_SERIES, BREAST).to_pylist()
        return {r["SeriesInstanceUID"] for r in rows if r["Status"] == "complete"}

    def asked(self) -> Counter[str]:
        """Return how often each series was asked for since the last time, with or without success."""
        records = self.archive.control.requests(clear=True)
        return Counter(r["query"]["SeriesInstanceUID"] for r in records if r["endpoint"] == "getImageWithMD5Hash")

    def uids(self, modality: str | None = None) -> list[str]:
        """Return the series of the collection in the order of their UIDs, which is that of the batches."""
        rows = self.lake.read_table(SERIES, BREAST).to_pylist()
        return sorted(r["SeriesInstanceUID"] for r in rows if modality in (None, r["Modality"]))

    def files(self) -> dict[str, int]:
        """Return the image files of the lake with their sizes."""
        root = Path(self.lake.uri)
        return {p.relative_to(root).as_posix(): p.stat().st_size for p in (root / "images").rglob("*.dcm")}

    def expect_whole(self) -> None:
        """Make sure that the tables list every file, and every series."""
        instances = self.lake.read_table(INSTANCES, BREAST)
        assert dict(zip(instances["Path"].to_pylist(), instances["Size"].to_pylist(), strict=True)) == self.files()
        assert self.statuses() == {"complete": 5}
        assert sum(self.files().values()) == sum(self.lake.read_table(SERIES, BREAST)["FileSize"].to_pylist())


@pytest.fixture(scope="module")
def tables(nbia_archive: NbiaArchive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with the tables of the breast collection."""
    nbia_archive.control.reset()
    lake = tmp_path_factory.mktemp("tables") / "lake"
    with dg.DagsterInstance.ephemeral(tempdir=str(lake.parent)) as instance:
        instance.add_dynamic_partitions("nbia_collections", [BREAST])
        job = build_definitions(Settings(archive=nbia_archive.url, lake=str(lake))).resolve_job_def("nbia_tables")
        assert job.execute_in_process(instance=instance, partition_key=BREAST).success
    return lake


@pytest.fixture
def mirror(fresh_nbia_archive: NbiaArchive, tables: Path, tmp_path: Path) -> Iterator[Mirror]:
    """A mirror of one's own."""
    lake = tmp_path / "a lake"
    shutil.copytree(tables, lake)
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield Mirror(fresh_nbia_archive, Lake(str(lake)), instance)


@pytest.fixture
def kept(mirror: Mirror, tmp_path: Path) -> Iterator[Mirror]:
    """The same, with an instance on disk, which other processes can use."""
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield mirror._replace(instance=instance)


def metadata(result: dg.ExecuteJobResult) -> dict[str, Any]:
    """Return the metadata of the materialization."""
    (event,) = [e for e in result.all_events if e.is_step_materialization]
    assert event.asset_key == IMAGES
    assert event.partition == BREAST
    return {k: v.value for k, v in event.step_materialization_data.materialization.metadata.items()}


def table_rows(value: Any) -> list[dict[str, Any]]:
    return [dict(record.data) for record in value.records]


def steps(result: dg.ExecuteJobResult) -> set[str]:
    """Return the keys of the steps that were started."""
    return {str(e.step_key) for e in result.all_events if e.event_type_value == "STEP_START"}


def lines(instance: dg.DagsterInstance, result: dg.ExecuteJobResult) -> list[str]:
    """Return what the steps told a person; Dagster itself tells that the step of references is skipped."""
    logged = instance.all_logs(result.run_id)
    told = [e.user_message for e in logged if e.dagster_event is None and int(e.level) >= logging.INFO]
    return [line for line in told if not line.startswith("Skipping step ")]


# --- a batch that fails


@pytest.mark.parametrize("executor", [IN_PROCESS, MULTIPROCESS], ids=["in-process", "multiprocess"])
def test_a_batch_that_fails_costs_only_itself(request: pytest.FixtureRequest, executor: dict[str, Any]) -> None:
    kept: Mirror = request.getfixturevalue("kept" if executor is MULTIPROCESS else "mirror")
    refused, sibling = kept.uids()[2:4]  # the second of three batches
    others = set(kept.uids()) - {refused, sibling}
    kept.archive.control.faults(Fault("status", status=401, endpoint="getImageWithMD5Hash", series=refused))
    first = kept.run(executor, batch_series=2)
    assert not first.success
    assert not [e for e in first.all_events if e.is_step_materialization]
    assert others <= kept.complete()
    assert refused not in kept.complete()
    asked = kept.asked()

    (failed,) = [e.step_failure_data for e in first.all_events if e.is_step_failure]
    assert failed.user_failure_data is not None
    assert " of the 2 series of batch b00001 were not fetched: " in str(failed.user_failure_data.description)
    rows = table_rows(failed.user_failure_data.metadata["failed"])
    # The other series of the batch was under way, or did not begin.
    assert {r["series"] for r in rows} == set(kept.uids()) - kept.complete()
    assert all(r["what"].startswith("not fetched: ") and "401" in r["what"] for r in rows)
    (seen,) = kept.instance.fetch_observations(IMAGES, limit=5).records
    assert seen.asset_observation is not None
    assert seen.asset_observation.partition == BREAST
    assert table_rows(seen.asset_observation.metadata["failed"]) == rows

    kept.archive.control.faults()
    second = kept.again(first, executor)
    assert second.success
    fetches = {s for s in steps(second) if "fetch" in s}
    assert fetches == {"nbia__images.nbia_fetch_images[b00001]"}
    asked += kept.asked()
    assert asked.pop(refused) > 1
    assert asked == dict.fromkeys([*others, sibling], 1)
    kept.expect_whole()
    assert metadata(second)["complete"] == 5

    third = kept.run()
    assert third.success
    assert not {s for s in steps(third) if "fetch" in s}
    assert kept.asked() == {}


def test_a_retry_of_a_batch_fetches_nothing_twice(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_op, "RETRY", dg.RetryPolicy(max_retries=1, delay=0))
    busy = mirror.uids()[0]
    # The client itself tries three times.
    fault = Fault("status", status=500, endpoint="getImageWithMD5Hash", series=busy, times=3)
    mirror.archive.control.faults(fault)
    result = mirror.run()
    assert result.success
    assert [str(e.step_key) for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]
    asked = mirror.asked()
    assert asked.pop(busy) == 4
    assert set(asked.values()) == {1}
    mirror.expect_whole()
    assert metadata(result)["fetched_series"] + metadata(result)["skipped_series"] == 5
    assert not mirror.instance.fetch_observations(IMAGES, limit=5).records


def test_a_fault_of_ours_is_told_and_costs_the_others_nothing(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = mirror.uids()[4]
    real = fetch_batch

    def fetch(client: Any, lake: Lake, wanted: list[WantedSeries], **more: Any) -> list[Receipt]:
        if broken in [w.SeriesInstanceUID for w in wanted]:
            raise KeyError("a mistake in the program")
        return real(client, lake, wanted, **more)

    monkeypatch.setattr(engine, "fetch_batch", fetch)
    result = mirror.run(batch_series=1)
    assert not result.success
    assert mirror.statuses() == {"complete": 4, "pending": 1}
    (failed,) = [e.step_failure_data for e in result.all_events if e.is_step_failure]
    assert failed.user_failure_data is not None
    assert "KeyError: 'a mistake in the program'" in str(failed.user_failure_data.description)


def test_the_table_of_failures_tells_refused_from_stopped_and_is_short() -> None:
    wanted = [WantedSeries(f"1.{n}", "2", "P", "C", 1, 10, None, None) for n in range(150)]
    receipts = [Receipt(wanted[0], "unavailable", 1, reason="hidden"), Receipt(wanted[1], "complete", 1)]
    rows = failed_rows(wanted, receipts, "no connection")
    assert len(rows) == 149
    assert rows[0] == {"series": "1.0", "what": "unavailable: hidden"}
    assert rows[1] == {"series": "1.2", "what": "not fetched: no connection"}
    assert len(failed_table(rows).records) == 100


def test_an_executor_that_drops_batches_is_found_out() -> None:
    first, second = {"batch": "b0", "digest": "x"}, {"batch": "b1", "digest": "y"}
    expect_all({"batches": {"b0": "x"}}, [first])
    with pytest.raises(dg.Failure, match="did not run 1 of 2 batches"):
        expect_all({"batches": {"b0": "x", "b1": "y"}}, [second])
    with pytest.raises(dg.Failure, match="did not run 1 of 2 batches"):  # of an earlier plan
        expect_all({"batches": {"b0": "x", "b1": "z"}}, [first, second])


def test_the_figures_of_a_run_are_those_of_its_batches() -> None:
    counts = {"fetched": 2, "files": 30, "bytes": 1000, "healed": 3, "already_there": 1}
    report = batch_report([], 0, 1.0)
    found = run_metadata(0.0, [report], [{**report, **counts}], done=4, left=0)
    assert (found["fetched_series"], found["healed_instances"], found["skipped_series"]) == (2, 3, 5)


# --- what a run tells


def test_the_plan_is_told_before_a_byte_moves_and_the_figures_at_the_end(mirror: Mirror) -> None:
    result = mirror.run()
    told = lines(mirror.instance, result)
    assert told[0].startswith(f"{BREAST}: 5 series to fetch (85 files, 2.9 MB), 0 of 5 in the lake (0 B), ")
    assert told[0].endswith(" free on the disk")
    assert told[-1].startswith(f"b00000, {BREAST}: 5 of 5 series, 2.9 MB, ")
    assert told[-1].endswith("; no problems")
    assert all("of 5 series, " in line for line in told[1:])  # more of them on a slow machine
    found = metadata(result)
    sizes = mirror.lake.read_table(SERIES, BREAST)["FileSize"].to_pylist()
    assert {k: found[k] for k in ("complete", "pending", "unavailable", "quarantined", "withdrawn")} == {
        "complete": 5,
        "pending": 0,
        "unavailable": 0,
        "quarantined": 0,
        "withdrawn": 0,
    }
    assert (found["fetched_series"], found["fetched_files"], found["fetched_bytes"]) == (5, 85, sum(sizes))
    assert (found["bytes"], found["healed_instances"], found["skipped_series"], found["left_series"]) == (
        sum(sizes),
        0,
        0,
        0,
    )
    assert found["bytes_per_second"] == pytest.approx(sum(sizes) / found["seconds"], rel=0.01)
    assert 50_000_000 < found["peak_memory_bytes"] < 4_000_000_000
    assert "| below 1 MB | 5 | 5 | " in found["series_sizes"]
    assert "problems" not in found


def test_the_contact_sheet_is_in_the_page_and_in_the_lake(mirror: Mirror) -> None:
    found = metadata(mirror.run())
    assert found["contact_sheet"].startswith(f"![{BREAST}](data:image/jpeg;base64,")
    assert len(found["contact_sheet"]) <= INLINE_CHARACTERS
    stored = Path(found["contact_sheet_path"])
    assert stored == Path(mirror.lake.uri) / contact_sheet_path(BREAST)
    drawn = stored.stat()
    again = metadata(mirror.run())
    assert again["contact_sheet"] == found["contact_sheet"]
    assert stored.stat().st_mtime_ns == drawn.st_mtime_ns
    assert stored.stat().st_ino == drawn.st_ino


def test_a_picture_that_cannot_be_drawn_costs_no_run_and_is_told(mirror: Mirror) -> None:
    (Path(mirror.lake.uri) / "previews").write_bytes(b"in the way")
    result = mirror.run()
    assert result.success
    assert metadata(result)["contact_sheet"].startswith("could not be drawn: LakeError: cannot ")
    assert "the contact sheet of QIN_Breast.v2 could not be drawn" in lines(mirror.instance, result)[-1]


def test_what_is_repaired_and_what_cannot_be_fetched_is_reported(mirror: Mirror) -> None:
    damaged, hidden, broken = mirror.uids()[:3]
    mirror.archive.control.faults(
        Fault("lost_file", endpoint="getImageWithMD5Hash", series=damaged, fraction=0.0),
        Fault("status", status=400, endpoint="getImageWithMD5Hash", series=hidden),
        Fault("cut_file", endpoint="getImageWithMD5Hash", series=broken),
        Fault("status", status=500, endpoint="getSingleImage", series=broken),
    )
    result = mirror.run()
    found = metadata(result)
    assert (found["complete"], found["unavailable"], found["healed_instances"]) == (3, 1, 1), found
    assert found["quarantined"] == 1
    rows = table_rows(found["problems"])
    assert {r["series"]: r["what"].partition(":")[0] for r in rows} == {hidden: "unavailable", broken: "quarantined"}
    told = lines(mirror.instance, result)
    assert told[-1].endswith("; 1 instances repaired, 1 series quarantined, 1 series unavailable")


def test_the_table_of_problems_names_what_could_not_be_refreshed_too() -> None:
    failed = {"RefreshFailedAt": datetime(2026, 1, 1)}  # noqa: DTZ001 - the tables state no zone
    rows: list[dict[str, Any]] = [
        {
            "SeriesInstanceUID": "1.1",
            "Status": "complete",
            "Bytes": 1,
            "Reason": "the newer version is broken",
            **failed,
        },
        {"SeriesInstanceUID": "1.2", "Status": "complete", "Bytes": 1},
        {"SeriesInstanceUID": "1.3", "Status": "pending", "Reason": "not fetched yet"},
        {"SeriesInstanceUID": "1.4", "Status": "quarantined", "Reason": "a file is missing"},
    ]
    full = [{**dict.fromkeys(IMAGE_SERIES.schema.names), **r} for r in rows]
    assert problem_rows(pa.Table.from_pylist(full, schema=IMAGE_SERIES.schema)) == [
        {"series": "1.1", "what": "complete: the newer version is broken"},
        {"series": "1.4", "what": "quarantined: a file is missing"},
    ]


# --- what a run fetches


def test_a_run_fetches_what_is_selected_and_the_next_one_the_rest(mirror: Mirror) -> None:
    found = metadata(mirror.run(modalities=["seg"]))
    assert (found["fetched_series"], found["pending"]) == (1, 4)
    assert set(mirror.asked()) == set(mirror.uids("SEG"))
    assert metadata(mirror.run(patients=["QIN-BR-02"], body_parts=["breast"]))["fetched_series"] == 1
    uid = (
        mirror.lake.read_table(IMAGE_SERIES, BREAST)
        .filter(pa.compute.field("Status") == "pending")
        .to_pylist()[0]["SeriesInstanceUID"]
    )
    mirror.asked()
    assert metadata(mirror.run(series=[uid]))["fetched_series"] == 1
    assert mirror.asked() == {uid: 1}
    assert metadata(mirror.run())["fetched_series"] == 2
    mirror.expect_whole()


def test_a_manifest_and_a_cart_select_series(mirror: Mirror, tmp_path: Path) -> None:
    first, second, third = mirror.uids()[:3]
    manifest = tmp_path / "list.tcia"
    manifest.write_text(f"downloadServerUrl=https://example.org\nListOfSeriesToDownload=\n{first}\n")
    mirror.archive.control.cart("breasts", [second, third])
    assert metadata(mirror.run(manifest=str(manifest)))["fetched_series"] == 1
    assert mirror.asked() == {first: 1}
    assert metadata(mirror.run(cart="breasts"))["fetched_series"] == 2
    assert mirror.asked() == {second: 1, third: 1}


def test_a_cart_that_nobody_knows_is_an_error_and_not_everything(mirror: Mirror) -> None:
    result = mirror.run(cart="no such cart")
    assert not result.success
    (failed,) = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
    assert failed is not None
    assert "'no such cart'" in str(failed.description)
    assert mirror.asked() == {}


def test_what_failed_before_can_be_left_out(mirror: Mirror) -> None:
    hidden = mirror.uids()[0]
    mirror.archive.control.faults(
        Fault("status", status=400, endpoint="getImageWithMD5Hash", series=hidden),
    )
    assert metadata(mirror.run())["unavailable"] == 1
    mirror.asked()
    assert metadata(mirror.run(retry=False))["unavailable"] == 1
    assert mirror.asked() == {}
    mirror.archive.control.faults()
    assert metadata(mirror.run())["complete"] == 5
    assert mirror.asked() == {hidden: 1}


def test_what_the_disk_has_no_room_for_is_left_with_its_reason(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    figures = metadata(mirror.run())
    assert (figures["pending"], figures["left_series"]) == (5, 5)
    assert mirror.asked() == {}


def test_every_field_of_the_configuration_is_explained_in_the_ui() -> None:
    (field,) = [
        node.config_schema.as_field()
        for node in [images_graph_op("nbia_plan_images")]
        if node.config_schema is not None
    ]
    described = {name: f.description for name, f in field.config_type.fields.items()}  # type: ignore[attr-defined]
    assert set(described) == set(ImagesConfig.model_fields)
    assert all(described.values()), described


def images_graph_op(name: str) -> dg.OpDefinition:
    definitions = build_definitions(Settings())
    node = definitions.resolve_assets_def(IMAGES).node_def
    assert isinstance(node, dg.GraphDefinition)
    found = node.node_named(name).definition
    assert isinstance(found, dg.OpDefinition)
    return found
