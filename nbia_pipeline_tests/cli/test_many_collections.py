"""The main job over several collections: a run over all of them, and what one that fails costs the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from nbia_pipeline.cli.run import run_main_job
from nbia_pipeline.defs.main_job import _less
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import answer
from nbia_pipeline_tests.helpers.pipeline import COLLECTIONS, QIN

pytestmark = pytest.mark.slow

SERIES_OF = dict(zip(COLLECTIONS, (21, 4, 5, 9), strict=True))


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield instance


def complete(lake: Lake) -> dict[str, int]:
    return {c: lake.read_table(IMAGE_SERIES, c)["Status"].to_pylist().count("complete") for c in COLLECTIONS}


def test_a_batch_that_fails_costs_its_collection_and_no_other(
    archive: TestArchive, lake: Lake, instance: dg.DagsterInstance
) -> None:
    settings = Settings(archive=archive.url, lake=lake.uri, images=("*",), annotations=False, headers=())
    with archive.client() as client:
        refused = client.series(QIN)["SeriesInstanceUID"].to_pylist()
    archive.faults.inject("getImageWithMD5Hash", *(replace(answer(401), series=uid) for uid in refused), times=9)
    lines: list[str] = []
    outcome = run_main_job(settings, instance, lines.append, {"batch_series": 25})
    assert complete(lake) == {**SERIES_OF, QIN: 0}
    # A failed batch ends the first run; the others' materializations and checks come with a second.
    images = dg.AssetKey(["nbia", "images"])
    assert instance.get_materialized_partitions(images) == {*COLLECTIONS} - {QIN}
    ranges = [line.split("   ")[1].strip() for line in lines if line.startswith("  images ")]
    head, phantom, _, demo = COLLECTIONS
    assert ranges == [f"{head} to {demo}", f"{head} to {phantom}", demo]
    assert (outcome.fetched["fetched_series"], outcome.fetched["skipped_series"]) == (34, 0)
    (failure,) = outcome.failures
    assert QIN in failure and "401" in failure
    assert any("39 series to fetch" in line for line in lines), "a person sees the plan"


def test_a_bound_is_one_of_all_ranges() -> None:
    fields = {"max_bytes": 10, "max_series": 3, "series": ["1"]}
    assert _less(fields, {"fetched_bytes": 4, "fetched_series": 2}) == {
        "max_bytes": 6,
        "max_series": 1,
        "series": ["1"],
    }
    used_up = {"max_bytes": None, "max_series": 0, "series": ["1"]}
    assert _less(fields, {"fetched_bytes": 10, "fetched_series": 1}) == used_up
    assert _less(fields, {"fetched_series": 3}) == used_up
    assert _less({}, {"fetched_bytes": 10}) == {}
