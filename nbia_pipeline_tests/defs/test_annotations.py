"""The asset of annotation files: in the jobs of images, optional, and off by a setting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.jobs import images_config
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.schema.tables import SERIES_METADATA
from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline_tests.helpers.pipeline import LivePipeline

COLLECTION = "TCGA-DEMO"
KEY = dg.AssetKey(["nbia", "annotation_files"])


@pytest.fixture
def world(url: str, control: Operations, tmp_path: Path) -> Iterator[LivePipeline]:
    """An archive and a lake that lists a collection, with the metadata of its series as v2 serves it."""
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        world = LivePipeline(url, control, tmp_path / "lake", instance, "v2")
        instance.add_dynamic_partitions("nbia_collections", [COLLECTION])
        world.materialize("series", collection=COLLECTION)
        rows = [{k: r[k] for k in ("SeriesInstanceUID", "AnnotationSize")} for r in control.series(COLLECTION)]
        world.lake.write_table(SERIES_METADATA, pa.Table.from_pylist(rows, SERIES_METADATA.schema), COLLECTION)
        yield world


def annotated(control: Operations) -> tuple[str, int]:
    """Return the one series of the demo's collection that has annotation files, and their size."""
    rows = control.series(COLLECTION)
    ((uid, size),) = ((r["SeriesInstanceUID"], r["AnnotationSize"]) for r in rows if r["AnnotationSize"])
    return uid, size


def run_images(world: LivePipeline, uid: str) -> tuple[dict[str, Any], dg.AssetCheckEvaluation]:
    """Run the job of images for one series; return the figures of the annotation files, and their check."""
    config = images_config(Naming(), series=[uid])
    result = world.run("images", partition_key=COLLECTION, run_config=config)
    assert result.success, world.sentence(result)
    (event,) = result.asset_materializations_for_node("nbia__annotation_files")
    (check,) = (c for c in result.get_asset_check_evaluations() if c.asset_key == KEY)
    return {name: value.value for name, value in event.metadata.items()}, check


def test_the_job_of_images_brings_the_annotation_files_of_what_it_fetched(
    world: LivePipeline, control: Operations
) -> None:
    uid, size = annotated(control)
    figures, check = run_images(world, uid)
    assert {k: figures[k] for k in ("dagster/partition_row_count", "fetched_series", "fetched_files")} == {
        **{"dagster/partition_row_count": 2, "fetched_series": 1, "fetched_files": 2}
    }
    assert (figures["annotation_bytes"], figures["fetched_bytes"], figures["left_series"]) == (size, size, 0)
    assert check.passed
    found = world.sql("annotation_files", f"SELECT Name, Path FROM t WHERE SeriesInstanceUID = '{uid}' ORDER BY 1")
    assert [name for name, _ in found] == ["reading-1.xml", "reading-2.xml"]
    texts = [Path(world.settings.lake, path).read_text() for _, path in found]
    assert [f'reader="{n}"' in text for n, text in enumerate(texts, 1)] == [True, True]
    control.requests(clear=True)
    figures, check = run_images(world, uid)
    assert (figures["fetched_series"], figures["dagster/partition_row_count"], check.passed) == (0, 2, True)
    assert "getDCMImage" not in world.asked()


def test_an_archive_without_the_call_costs_a_warning_and_no_run(world: LivePipeline, control: Operations) -> None:
    uid, _ = annotated(control)
    control.faults(Fault("answer", endpoint="getDCMImage", status=404, body=b"", times=9))
    figures, check = run_images(world, uid)
    assert figures["fetched_series"] == 0
    assert "status 404" in str(figures["problems"].records[0].data["what"])
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert f"annotation files of series {uid} are missing: not fetched yet" in str(check.description)
    assert world.sql("image_series", f"SELECT Status FROM t WHERE SeriesInstanceUID = '{uid}'") == [("complete",)]
    control.faults()
    assert run_images(world, uid)[0]["fetched_files"] == 2


@pytest.mark.parametrize("wanted", [True, False])
def test_they_are_off_by_a_setting(tmp_path: Path, wanted: bool) -> None:
    definitions = build_definitions(Settings(lake=str(tmp_path), annotations=wanted))
    assert (KEY in definitions.resolve_all_asset_keys()) is wanted
    for job in ("nbia_images", "nbia_update"):
        assert (KEY in definitions.resolve_job_def(job).asset_layer.executable_asset_keys) is wanted
    assert KEY not in definitions.resolve_job_def("nbia_tables").asset_layer.executable_asset_keys


@pytest.mark.parametrize("text", ["true", "false", "0", "off", ""])
def test_the_variable_is_read(text: str) -> None:
    wanted = text in ("true", "")
    assert Settings.from_env({"NBIA_ANNOTATIONS": text}).annotations is wanted


def test_a_value_that_is_neither_is_named() -> None:
    with pytest.raises(SettingsError, match="NBIA_ANNOTATIONS is 'perhaps': set it to true or false"):
        Settings.from_env({"NBIA_ANNOTATIONS": "perhaps"})
