"""Nothing new costs nothing: the benchmark of it, made small."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import dagster as dg
import pytest

from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES
from nbia_pipeline_tests.helpers.archives import Serve
from nbia_pipeline_tests.helpers.faults import Faults

pytestmark = pytest.mark.slow

SERIES = 2000


@pytest.fixture(scope="module")
def no_op() -> ModuleType:
    """The benchmark."""
    spec = importlib.util.spec_from_file_location("no_op", Path(__file__).parents[2] / "benchmarks" / "no_op.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["no_op"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_whole_series_cost_no_image_request_and_one_list_for_each_table(
    no_op: ModuleType, serve: Serve, tmp_path: Path
) -> None:
    faults = Faults(create_app(no_op.catalog(SERIES)))
    url = serve(faults)

    def asked() -> list[str]:
        endpoints = [r.endpoint for r in faults.seen]
        faults.reset()
        return endpoints

    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        tables, images = no_op.measure(url, tmp_path / "lake", instance, asked)
    assert tables.requests == {"getPatient": 1, "getPatientStudy": 1, "getSeries": 1}
    assert set(images.requests) <= {"getMD5Hierarchy"}, "only the check that samples the archive's own digests"
    lake = Lake(str(tmp_path / "lake"))
    assert set(lake.read_table(IMAGE_SERIES, "Whole")["Status"].to_pylist()) == {"complete"}
    assert lake.count_rows(INSTANCES, "Whole") == SERIES * no_op.INSTANCES_OF_A_SERIES
