"""The main job as a job of the UI, and the run config that docs/dagster.md shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.mirror_job import PARENT_TAG
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers import zips
from nbia_pipeline_tests.helpers.archives import TestArchive

PAGE = Path(__file__).parents[2] / "docs/dagster.md"
DEMO, PHANTOM = "TCGA-DEMO", "Lung Phantom CT"


def examples() -> dict[str, Any]:
    """Return the run configs of the page by the job that they are for."""
    found = re.findall(r"```yaml\n# (\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {job: yaml.safe_load(text) for job, text in found}


@pytest.fixture
def mirror(archive: TestArchive, tmp_path: Path) -> Iterator[Any]:
    settings = Settings(archive=archive.url, lake=str(tmp_path / "lake"), images=("*",), headers=())
    job = build_definitions(settings).resolve_job_def("nbia_mirror")
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:

        def run(**config: Any) -> tuple[Any, dg.DagsterInstance]:
            return job.execute_in_process(instance=instance, run_config=config, raise_on_error=False), instance

        yield run


def test_the_examples_of_the_page_are_valid() -> None:
    definitions = build_definitions(Settings())
    assert set(examples()) == {"nbia_mirror", "nbia_cart", "nbia_images", "nbia_update"}
    for job, config in examples().items():
        assert dg.validate_run_config(definitions.resolve_job_def(job), config)


def test_one_job_mirrors_what_its_config_asks_for(mirror: Any, tmp_path: Path) -> None:
    result, instance = mirror(**examples()["nbia_mirror"])
    assert result.success
    lake = Lake(str(tmp_path / "lake"))
    assert lake.collections_of(IMAGE_SERIES) == [PHANTOM, DEMO]
    statuses = {c: Counter(lake.read_table(IMAGE_SERIES, c)["Status"].to_pylist()) for c in (PHANTOM, DEMO)}
    (output,) = [e.step_output_data.metadata for e in result.all_events if e.is_successful_output]
    assert next(iter(output)) == "contact_sheet", "the first row, which the page of the run shows without a click"
    assert "data:image/" in output["contact_sheet"].value
    rows = {r.data["collection"]: r.data for r in output["in_the_lake"].records}
    assert {c: rows[c]["images"] for c in (PHANTOM, DEMO)} == {
        c: f"{n['complete']} of {n.total()}" for c, n in statuses.items()
    }
    assert all(n["complete"] for n in statuses.values()), "there are CT series in both"
    complete = sum(n["complete"] for n in statuses.values())
    assert output["fetched"].value.startswith(f"{complete} series, ")
    parts = instance.get_runs(dg.RunsFilter(tags={PARENT_TAG: result.run_id}))
    assert Counter(r.job_name for r in parts) == {"nbia_catalogue": 2, "nbia_tables": 2, "nbia_images": 2}
    links = {m.run_id for m in output.values() if isinstance(m, dg.DagsterRunMetadataValue)}
    assert links == {r.run_id for r in parts}


def test_a_series_that_cannot_be_verified_fails_the_job(mirror: Any, archive: TestArchive) -> None:
    archive.faults.inject("getImageWithMD5Hash", zips.altered(zips.climbing_name), times=3)
    result, _ = mirror(collections=[PHANTOM], max_series=1)
    assert not result.success
    (failure,) = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
    assert failure.description.startswith(f"images complete {PHANTOM}: ")
    (problem,) = failure.metadata["problems"].records
    assert problem.data["problem"] == failure.description
    rows = {r.data["collection"]: r.data["images"] for r in failure.metadata["in_the_lake"].records}
    assert rows[PHANTOM] == "0 of 4"


def test_a_collection_that_is_not_mirrored_is_named(mirror: Any) -> None:
    result, _ = mirror(collections=["TCGA-DEM"])
    (failure,) = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
    assert failure.description == "no collection that is mirrored is 'TCGA-DEM': did you mean TCGA-DEMO?"
