"""Images of many collections in one run: one plan, shared bounds, and a collection that fails costs only itself."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from nbia_pipeline.defs.assets.partitioned import FAILED_COLLECTIONS
from nbia_pipeline.defs.checks.images import ASKED_PER_COLLECTION
from nbia_pipeline.defs.jobs import images_config
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES, SERIES_METADATA
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import answer
from nbia_pipeline_tests.helpers.pipeline import COLLECTIONS, Pipeline

pytestmark = pytest.mark.slow

HEAD, PHANTOM, BREAST, DEMO = COLLECTIONS
SERIES_OF = {HEAD: 21, PHANTOM: 4, BREAST: 5, DEMO: 9}
IMAGES = dg.AssetKey(["nbia", "images"])
RANGE = {"dagster/asset_partition_range_start": HEAD, "dagster/asset_partition_range_end": DEMO}
ROOT = Path(__file__).parents[2]
OF_THE_RUN = {"seconds", "bytes_per_second", "peak_memory_bytes", "rate", "peak_memory"}


@pytest.fixture(scope="module")
def tables(demo_archive: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with the tables of all collections."""
    folder = tmp_path_factory.mktemp("tables")
    with dg.DagsterInstance.ephemeral(tempdir=str(folder)) as instance:
        instance.add_dynamic_partitions("nbia_collections", COLLECTIONS)
        pipeline = Pipeline(Settings(archive=demo_archive, lake=str(folder / "lake")), instance)
        assert pipeline.run_tables().success
    return folder / "lake"


@pytest.fixture
def pipeline(archive: TestArchive, tables: Path, tmp_path: Path) -> Iterator[Pipeline]:
    """A code location without annotations over a copy of that lake."""
    shutil.copytree(tables, tmp_path / "lake")
    settings = Settings(archive=archive.url, lake=str(tmp_path / "lake"), images=("*",), annotations=False, headers=())
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        instance.add_dynamic_partitions("nbia_collections", COLLECTIONS)
        yield Pipeline(settings, instance)


def changed(pipeline: Pipeline, **settings: Any) -> Pipeline:
    """Return another code location over the same lake."""
    return Pipeline(pipeline.settings.model_copy(update=settings), pipeline.instance)


def run(pipeline: Pipeline, first: str = HEAD, last: str = DEMO, **config: Any) -> dg.ExecuteInProcessResult:
    """Run the job of images over a range."""
    return pipeline.run(
        "images",
        tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
        run_config=images_config(Naming(), **config),
    )


def made(pipeline: Pipeline, result: Any, asset: str = "images") -> dict[str, dict[str, Any]]:
    """Return the metadata of an asset's materializations by partition; each is materialized once."""
    # From the instance: the stream of a step that fails lacks what it had recorded.
    logs = pipeline.instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    events = [e.asset_materialization for e in logs if e.asset_materialization is not None]
    events = [e for e in events if e.asset_key.path[-1] == asset]
    found = {str(e.partition): {n: v.value for n, v in e.metadata.items()} for e in events}
    assert len(found) == len(events)
    return found


def failed(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Return the metadata of the one step that failed, and its text."""
    (failure,) = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
    assert failure is not None
    return {**{n: v.value for n, v in failure.metadata.items()}, "text": str(failure.description)}


def complete(pipeline: Pipeline) -> dict[str, int]:
    statuses = {c: pipeline.lake.read_table(IMAGE_SERIES, c)["Status"].to_pylist() for c in COLLECTIONS}
    return {c: Counter(s)["complete"] for c, s in statuses.items()}


def checks(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str | None], dg.AssetCheckEvaluation]:
    return {(e.check_name, e.partition): e for e in result.get_asset_check_evaluations() if e.asset_key == IMAGES}


def test_one_run_mirrors_all_and_shows_the_figures_of_each(
    archive: TestArchive, pipeline: Pipeline, tables: Path, tmp_path: Path
) -> None:
    result = run(pipeline)
    assert result.success
    assert complete(pipeline) == SERIES_OF
    fetches = [e for e in result.all_events if e.event_type_value == "STEP_START" and "fetch" in str(e.step_key)]
    assert len(fetches) == 1, "small collections share a batch"
    assert len(checks(result)) == 4 * len(COLLECTIONS)
    assert {c.passed for c in checks(result).values()} == {True}
    assert len(archive.faults.calls("getMD5Hierarchy")) == 30
    asked = {c: checks(result)["agrees_with_archive", c].metadata["asked"].value for c in COLLECTIONS}
    assert asked == {**SERIES_OF, HEAD: ASKED_PER_COLLECTION}

    # Each partition shows what it would show after a run of its own.
    alone = changed(pipeline, lake=str(tmp_path / "other"))
    shutil.copytree(tables, tmp_path / "other")
    own = made(pipeline, alone.run("images", partition_key=DEMO))[DEMO]
    shared = made(pipeline, result)[DEMO]
    assert set(own) == set(shared)
    same = set(own) - OF_THE_RUN - {"path", "contact_sheet_path"}
    assert {n: own[n] for n in same} == {n: shared[n] for n in same}
    assert {c: f["fetched_series"] for c, f in made(pipeline, result).items()} == SERIES_OF
    figures = made(pipeline, result).values()
    whole = sum(f["bytes"] for f in figures)
    assert all(f["bytes_per_second"] * f["seconds"] == pytest.approx(whole, rel=0.01) for f in figures)

    archive.faults.reset()
    again = run(pipeline)
    assert {f["fetched_series"] for f in made(pipeline, again).values()} == {0}
    assert {c: f["skipped_series"] for c, f in made(pipeline, again).items()} == SERIES_OF
    assert archive.faults.calls("getImageWithMD5Hash") == []


def test_bounds_and_batches_are_those_of_the_run(archive: TestArchive, pipeline: Pipeline) -> None:
    result = run(pipeline, max_series=23, batch_series=8)
    assert complete(pipeline) == {HEAD: 21, PHANTOM: 2, BREAST: 0, DEMO: 0}
    assert {c: f["left_series"] for c, f in made(pipeline, result).items()} == {HEAD: 0, PHANTOM: 2, BREAST: 5, DEMO: 9}
    started = [str(e.step_key) for e in result.all_events if e.event_type_value == "STEP_START"]
    assert len([key for key in started if "fetch" in key]) == 3
    found = {c: checks(result)["complete", c] for c in COLLECTIONS}
    assert {c: e.metadata["pending_series"].value for c, e in found.items()} == {
        HEAD: 0,
        PHANTOM: 2,
        BREAST: 5,
        DEMO: 9,
    }
    assert {e.passed: e.severity for c, e in found.items() if c != HEAD} == {False: dg.AssetCheckSeverity.WARN}
    assert found[HEAD].passed
    assert "5 pending: the bounds of the last run left 5." in str(found[BREAST].description)


def test_a_selection_applies_to_all_collections(archive: TestArchive, pipeline: Pipeline, tmp_path: Path) -> None:
    one = pipeline.lake.read_table(SERIES, PHANTOM)["SeriesInstanceUID"][0].as_py()
    two = pipeline.lake.read_table(SERIES, DEMO)["SeriesInstanceUID"][0].as_py()
    manifest = tmp_path / "list.tcia"
    manifest.write_text(f"ListOfSeriesToDownload=\n{two}\n")
    assert run(pipeline, series=[one, "1.2.3"], manifest=str(manifest)).success
    asked = Counter(str(r.query["SeriesInstanceUID"]) for r in archive.faults.calls("getImageWithMD5Hash"))
    assert asked == {one: 1, two: 1}


# --- a collection that fails


def test_a_collection_that_cannot_be_planned_is_named_and_the_others_are_mirrored(
    archive: TestArchive, pipeline: Pipeline
) -> None:
    pipeline.lake.put_bytes(table_path(SERIES.name, PHANTOM), b"")
    pipeline.lake.remove(table_path(SERIES.name, HEAD))
    result = run(changed(pipeline, images=("[!T]*",)))
    assert not result.success
    assert set(made(pipeline, result)) == {BREAST}
    assert made(pipeline, result)[BREAST]["fetched_series"] == 5
    found = failed(result)
    assert set(found[FAILED_COLLECTIONS]) == {HEAD, PHANTOM, DEMO}
    reasons = {str(r.data["collection"]): str(r.data["reason"]) for r in found["failed"].records}
    assert f"the series table has no rows for {HEAD!r}" in reasons[HEAD]
    assert "the file is damaged" in reasons[PHANTOM]
    assert "are not mirrored: add the collection to images" in reasons[DEMO]
    assert found["text"].startswith("3 of 4 collections failed, the first: ")
    assert pipeline.instance.get_materialized_partitions(IMAGES) == {BREAST}


def test_where_none_can_be_planned_nothing_is_fetched(archive: TestArchive, pipeline: Pipeline) -> None:
    none = changed(pipeline, images=())
    result = run(none)
    assert not made(pipeline, result)
    assert failed(result)["text"].startswith("4 of 4 collections failed, the first: HeadNeckMix: the images of")
    only = run(none, BREAST, BREAST)
    assert failed(only)["text"].startswith("the images of 'QIN_Breast.v2' are not mirrored")
    assert archive.faults.calls("getImageWithMD5Hash") == []


def test_a_failed_batch_costs_no_series_of_the_others(archive: TestArchive, pipeline: Pipeline) -> None:
    refused = pipeline.lake.read_table(SERIES, BREAST)["SeriesInstanceUID"].to_pylist()
    archive.faults.inject("getImageWithMD5Hash", *(replace(answer(401), series=uid) for uid in refused), times=9)
    first = run(pipeline, batch_series=25)  # one of the first two, one of the last two
    assert made(pipeline, first) == {}
    assert complete(pipeline) == {**SERIES_OF, BREAST: 0}
    found = failed(first)
    assert found[FAILED_COLLECTIONS] == [BREAST]
    seen = pipeline.instance.fetch_observations(IMAGES, limit=9).records
    assert [record.partition_key for record in seen] == [BREAST]
    assert {str(row.data["series"]) for row in found["failed"].records} == set(refused)

    archive.faults.reset()
    again = dg.execute_job(
        dg.build_reconstructable_job(
            "nbia_pipeline_tests.defs.test_images_asset",
            "images_job",
            reconstructable_kwargs={"archive": archive.url, "lake": pipeline.lake.uri},
            reconstructor_working_directory=str(ROOT),
        ),
        instance=pipeline.instance,
        reexecution_options=dg.ReexecutionOptions.from_failure(first.run_id, pipeline.instance),
        tags=RANGE,
        run_config={"execution": {"config": {"in_process": {}}}},
    )
    assert again.success
    assert {c: f["complete"] for c, f in made(pipeline, again).items()} == SERIES_OF
    asked = {str(r.query["SeriesInstanceUID"]) for r in archive.faults.calls("getImageWithMD5Hash")}
    assert asked == set(refused)


def test_annotations_of_a_collection_that_fail_are_named(archive: TestArchive, pipeline: Pipeline) -> None:
    with_files = [
        c for c in COLLECTIONS if any(pipeline.lake.read_table(SERIES_METADATA, c)["AnnotationSize"].to_pylist())
    ]
    pipeline.lake.put_bytes(table_path(IMAGE_SERIES.name, with_files[0]), b"")
    job = changed(pipeline, annotations=True).definitions.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=pipeline.instance,
        asset_selection=[dg.AssetKey(["nbia", "annotation_files"])],
        tags=RANGE,
        raise_on_error=False,
    )
    assert set(made(pipeline, result, "annotation_files")) == {*COLLECTIONS} - {with_files[0]}
    assert failed(result)[FAILED_COLLECTIONS] == with_files[:1]
