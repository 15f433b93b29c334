"""The examples: two archives in one code location, and assets of one's own that take tables and images as inputs."""

from __future__ import annotations

import importlib
import shutil
import sys
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import nbformat
import numpy as np
import pyarrow as pa
import pytest
from nbclient import NotebookClient
from numpy.typing import NDArray
from PIL import Image

from nbia_pipeline.embedded.catalog.model import Account, Catalog
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import COLLECTIONS, IMAGE_SERIES, SERIES
from nbia_pipeline_tests.helpers.archives import Serve
from nbia_pipeline_tests.helpers.small_archive import Series, small_catalog

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
BOTH = "TCGA-DEMO"
"""A collection that both archives have, with other series."""


def other_archive() -> Catalog:
    """Return an archive with one collection that only an account sees."""
    catalog = small_catalog([Series("9.1"), Series("9.2")])
    names = pa.array([BOTH] * 2, catalog.series["Collection"].type)
    at = catalog.series.schema.get_field_index("Collection")
    series = catalog.series.set_column(at, catalog.series.schema.field(at), names)
    accounts = {"private": Account("secret of nlst", frozenset({BOTH}))}
    return replace(catalog, series=series, carts={}, restricted=frozenset({BOTH}), accounts=accounts)


@pytest.fixture
def example(
    demo: Catalog, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, ModuleType]]:
    """The modules of the example, and the variables that its README names."""
    variables = {
        "TCIA_ARCHIVE": serve(create_app(demo)),
        "TCIA_LAKE": str(tmp_path / "tcia"),
        "TCIA_USERNAME": MEMBER,
        "TCIA_PASSWORD": MEMBER_PASSWORD,
        "NLST_ARCHIVE": serve(create_app(other_archive())),
        "NLST_LAKE": str(tmp_path / "nlst"),
        "NLST_USERNAME": "private",
        "NLST_PASSWORD": "secret of nlst",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(EXAMPLES / "two_archives"))
    yield {name: importlib.import_module(f"two_archives.{name}") for name in ("definitions", "from_yaml")}
    for name in [name for name in sys.modules if name.split(".")[0] == "two_archives"]:
        del sys.modules[name]


def names_of(definitions: dg.Definitions) -> dict[str, set[str]]:
    """Return the names of everything in a code location, by kind."""
    repository = definitions.get_repository_def()
    assets = repository.assets_defs_by_key.values()
    pools = {op.pool for asset in assets for op in asset.node_def.iterate_op_defs() if op.pool}
    partitions = {str(asset.partitions_def.name) for asset in assets if asset.partitions_def}  # type: ignore[attr-defined]
    return {
        "assets": {"/".join(key.path) for key in repository.assets_defs_by_key},
        "checks": {key.to_user_string() for key in repository.asset_graph.asset_check_keys},
        "jobs": {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")},
        "sensors": {sensor.name for sensor in repository.sensor_defs},
        "schedules": {schedule.name for schedule in repository.schedule_defs},
        "resources": set(definitions.resources or {}),
        "pools": pools,
        "partitions": partitions,
    }


def run(definitions: dg.Definitions, instance: dg.DagsterInstance, job: str, **tags: str) -> Any:
    return definitions.resolve_job_def(job).execute_in_process(instance=instance, tags=tags, raise_on_error=False)


def mirror(definitions: dg.Definitions, instance: dg.DagsterInstance, prefix: str) -> Lake:
    """Mirror one archive: the catalog, then tables and images of all its collections, each in one run."""
    assert run(definitions, instance, f"{prefix}_catalogue").success
    collections = instance.get_dynamic_partitions(f"{prefix}_collections")
    ends = {
        "dagster/asset_partition_range_start": collections[0],
        "dagster/asset_partition_range_end": collections[-1],
    }
    assert run(definitions, instance, f"{prefix}_update", **ends).success
    archive, lake = (definitions.resources[f"{prefix}_{what}"] for what in ("archive", "lake"))  # type: ignore[index]
    assert archive.password == f"{prefix.upper()}_PASSWORD", "the UI shows the name of the variable"
    return Lake(lake.uri)


def test_both_archives_are_mirrored_by_one_code_location(
    example: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definitions = example["definitions"].defs()
    names = names_of(definitions)
    for kind, found in names.items():
        first, second = ({name for name in found if name.startswith(prefix)} for prefix in ("tcia", "nlst"))
        assert first | second == found and first, kind
        assert {name.removeprefix("tcia") for name in first} == {name.removeprefix("nlst") for name in second}, kind
    assert names_of(example["from_yaml"].defs()) == names

    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        tcia, nlst = (mirror(definitions, instance, prefix) for prefix in ("tcia", "nlst"))
        assert nlst.read_table(IMAGE_SERIES, BOTH)["SeriesInstanceUID"].to_pylist() == ["9.1", "9.2"]
        assert set(nlst.read_table(IMAGE_SERIES, BOTH)["Status"].to_pylist()) == {"complete"}
        assert tcia.read_table(IMAGE_SERIES, BOTH)["Status"].to_pylist() == ["complete"] * 9
        assert tcia.collections_of(IMAGE_SERIES) == [BOTH]

        # One lake for both would let each withdraw the series of the other.
        monkeypatch.setenv("NLST_LAKE", tcia.uri)
        before = tcia.read_file(COLLECTIONS).content
        refused = run(example["definitions"].defs(), instance, "nlst_catalogue")
        (failed,) = [e.step_failure_data.user_failure_data for e in refused.all_events if e.is_step_failure][:1]
        assert str(failed.description).startswith(f"the lake {tcia.uri} belongs to the archive http://127.0.0.1:")
        assert tcia.read_file(COLLECTIONS).content == before


@pytest.fixture
def downstream(
    demo_archive: str, mirrored: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.Definitions]:
    """The code location of the other example, on a lake that is there."""
    shutil.copytree(mirrored.uri, tmp_path / "lake")
    monkeypatch.setenv("NBIA_ARCHIVE", demo_archive)
    monkeypatch.setenv("NBIA_LAKE", str(tmp_path / "lake"))
    monkeypatch.syspath_prepend(str(EXAMPLES / "downstream"))
    yield importlib.import_module("downstream.definitions").defs()
    for name in [name for name in sys.modules if name.split(".")[0] == "downstream"]:
        del sys.modules[name]


def test_assets_of_others_take_tables_and_images_as_inputs(downstream: dg.Definitions, tmp_path: Path) -> None:
    job, lake = downstream.resolve_implicit_global_asset_job_def(), Lake(str(tmp_path / "lake"))
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        instance.add_dynamic_partitions("nbia_collections", lake.collections_of(SERIES))

        def made(*names: str, also: tuple[str, ...] = (), partition: str | None = None) -> list[Any]:
            keys = [*map(dg.AssetKey, names), *(dg.AssetKey(["nbia", name]) for name in also)]
            run = job.execute_in_process(asset_selection=keys, partition_key=partition, instance=instance)
            return [run.asset_value(name) for name in names]

        # `nbia/collections` is written in the same run, by a step that hands nothing to the next one.
        sizes, described = made("bytes_by_modality", "described_collections", also=("collections",))
        studies, folders, means = made("first_studies", "folders", "mean_hounsfield", partition=BOTH)

    rows = [row for c in lake.collections_of(SERIES) for row in lake.read_table(SERIES, c).to_pylist()]
    expected = {m: sum(r["FileSize"] for r in rows if r["Modality"] == m) for m in {r["Modality"] for r in rows}}
    assert dict(zip(sizes.Modality, sizes.FileSize, strict=True)) == expected
    collections = lake.read_table(COLLECTIONS).to_pylist()
    assert described.to_pylist() == [
        {name: row[name] for name in ("Collection", "DescriptionURI")} for row in collections if row["DescriptionURI"]
    ]
    rows = [row for row in rows if row["Collection"] == BOTH]
    days = {p: min(r["StudyDate"] for r in rows if r["PatientID"] == p) for p in {r["PatientID"] for r in rows}}
    assert studies.rows() == sorted(days.items())
    assert len(folders) == 9 and all(list(Path(lake.uri, path).glob("*.dcm")) for path in folders.Path)
    assert means.SeriesInstanceUID.tolist() == sorted(r["SeriesInstanceUID"] for r in rows if r["Modality"] == "CT")
    assert ((means.Mean > -1000) & (means.Mean < 0)).all()  # a body and the air around it


def test_the_notebook_ends_with_a_segmentation_on_its_slice(
    demo_archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBIA_ARCHIVE", demo_archive)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.reads((EXAMPLES / "first_steps.ipynb").read_text(encoding="utf-8"), as_version=4)  # type: ignore[no-untyped-call]
    stored = outline_in(notebook)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert Lake(str(tmp_path / "lake")).read_table(IMAGE_SERIES, BOTH)["Status"].to_pylist() == ["complete"] * 9
    outline = outline_in(notebook)
    assert outline.any() and np.array_equal(outline, stored), "its stored picture is another: run it again"


def outline_in(notebook: nbformat.NotebookNode) -> NDArray[np.bool_]:
    """Return where the picture that the last cell of a notebook shows is red."""
    (output,) = notebook.cells[-1].outputs
    pixels = np.asarray(Image.open(BytesIO(b64decode(output.data["image/png"]))).convert("RGB"))
    return np.asarray((pixels == (255, 40, 40)).all(axis=-1))
