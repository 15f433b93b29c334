"""The assets headers and references over a lake of the demo: what a run reads, shows, checks and leaves alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nbia_pipeline.cli.main import main
from nbia_pipeline.defs.assets.headers import STEP_INSTANCES, files_to_read, in_steps
from nbia_pipeline.defs.checks.check import Finding, Subject
from nbia_pipeline.defs.checks.headers import agree, complete
from nbia_pipeline.defs.jobs import IMAGES_JOB, UPDATE_JOB
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.headers.shards import Shard, ShardReport, bounded, write_shard
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.reading import lake as reading
from nbia_pipeline.schema.headers import INSTANCE_HEADERS, SERIES_REFERENCES, SHARDED
from nbia_pipeline.schema.tables import INSTANCES
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.pipeline import COLLECTIONS, QIN, Pipeline

pytestmark = pytest.mark.slow

HEAD, OFF, DEMO = "HeadNeckMix", "Lung Phantom CT", "TCGA-DEMO"
READ = [HEAD, QIN, DEMO]


class Headers(Pipeline):
    """A code location over a copy of a lake, whose archive is never called."""

    def __init__(self, lake: Path, instance: dg.DagsterInstance, **settings: Any) -> None:
        known = {"archive": "http://127.0.0.1:9/nbia-api", "images": ("*",), "headers": tuple(READ)}
        super().__init__(Settings(**{**known, **settings}, lake=str(lake)), instance)

    def read(self, *assets: str, over: Sequence[str] = COLLECTIONS, **config: Any) -> dg.ExecuteInProcessResult:
        """Materialize assets, by default headers, over a range of collections."""
        ends = {"dagster/asset_partition_range_start": over[0], "dagster/asset_partition_range_end": over[-1]}
        return self.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(["nbia", asset]) for asset in assets or ("headers",)],
            tags=ends,
            run_config={"ops": {"nbia__headers": {"config": config}}} if config else None,
            raise_on_error=False,
        )

    def files(self) -> dict[str, int]:
        """Return when each file of the tables of headers was written, in nanoseconds."""
        folders = [Path(self.lake.uri, "tables", table.name) for table in (*SHARDED, SERIES_REFERENCES)]
        return {str(p): p.stat().st_mtime_ns for folder in folders for p in folder.rglob("part-*.parquet")}

    def complete(self, collection: str = QIN) -> list[Finding]:
        """Return what the check headers_complete finds."""
        return list(complete(Subject(self.lake, self.settings, collection)).findings)


def made(result: dg.ExecuteInProcessResult, asset: str = "headers") -> dict[str, dict[str, Any]]:
    """Return the metadata of the materializations of an asset by partition."""
    events = [e.step_materialization_data.materialization for e in result.all_events if e.is_step_materialization]
    return {
        str(m.partition): {n: v.value for n, v in m.metadata.items()} for m in events if m.asset_key.path[-1] == asset
    }


def steps(result: dg.ExecuteInProcessResult) -> list[str]:
    return [str(e.step_key) for e in result.all_events if e.is_step_success and "read_headers" in str(e.step_key)]


def checked(result: dg.ExecuteInProcessResult, name: str) -> dict[str, dg.AssetCheckEvaluation]:
    return {str(e.partition): e for e in result.get_asset_check_evaluations() if e.check_name == name}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path_factory.mktemp("dagster"))) as instance:
        instance.add_dynamic_partitions("nbia_collections", COLLECTIONS)
        yield instance


@pytest.fixture(scope="module")
def first(
    mirrored: reading.Lake, instance: dg.DagsterInstance, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Headers, dg.ExecuteInProcessResult]:
    """A lake whose headers were read by one run over all collections, and this run."""
    lake = tmp_path_factory.mktemp("read") / "lake"
    shutil.copytree(mirrored.uri, lake)
    pipeline = Headers(lake, instance)
    return pipeline, pipeline.read("headers", "references")


@pytest.fixture
def pipeline(first: tuple[Headers, Any], instance: dg.DagsterInstance, tmp_path: Path) -> Headers:
    """A copy of that lake."""
    shutil.copytree(first[0].lake.uri, tmp_path / "lake")
    return Headers(tmp_path / "lake", instance)


def uids(pipeline: Pipeline, table: Any, collection: str) -> list[str]:
    return sorted(pipeline.lake.read_table(table, collection)["SOPInstanceUID"].to_pylist())


# --- a run


def test_a_run_over_several_collections_reads_every_file_in_one_step(
    first: tuple[Headers, dg.ExecuteInProcessResult],
) -> None:
    pipeline, result = first
    assert result.success and len(steps(result)) == 1
    shown = made(result)
    assert set(shown) == set(COLLECTIONS)
    for collection in READ:
        files = uids(pipeline, INSTANCES, collection)
        assert uids(pipeline, INSTANCE_HEADERS, collection) == files
        figures = ("dagster/partition_row_count", "read_files", "left_files", "files_with_problems")
        assert [shown[collection][name] for name in figures] == [len(files), len(files), 0, 0]
        assert shown[collection]["path"].endswith(f"/tables/instance_headers/Collection={collection}")
    assert shown[DEMO]["geometry"] == "7 of 7 series of planes are regular volumes"
    assert shown[QIN]["regular_volumes"] == 2
    assert {name: len(checked(result, name)) for name in ("headers_complete", "headers_agree")} == {
        "headers_complete": 4,
        "headers_agree": 4,
    }
    assert all(e.passed for name in ("headers_complete", "headers_agree") for e in checked(result, name).values())


def test_a_collection_that_the_setting_leaves_out_is_materialized_as_off(
    first: tuple[Headers, dg.ExecuteInProcessResult],
) -> None:
    pipeline, result = first
    for asset, table in (("headers", INSTANCE_HEADERS), ("references", SERIES_REFERENCES)):
        assert made(result, asset)[OFF] == {"skipped": "off: headers leaves the collection out"}
        assert not pipeline.lake.has_table(table, OFF)
    assert "The headers of the collection are not read" in str(checked(result, "headers_complete")[OFF].description)


def test_the_references_of_annotations_whose_images_are_not_there_are_shown(
    first: tuple[Headers, dg.ExecuteInProcessResult],
) -> None:
    """Of HeadNeckMix the lake has the structure sets only, and the tables list the others."""
    pipeline, result = first
    shown = made(result, "references")
    rows = pipeline.lake.read_table(SERIES_REFERENCES, HEAD)
    assert shown[HEAD]["dagster/partition_row_count"] == rows.num_rows > 0
    assert sum(shown[HEAD].get(name, 0) for name in ("held", "listed", "moved", "unknown")) == rows.num_rows
    assert shown[HEAD]["listed"] > 0
    assert (shown[DEMO]["held"], shown[DEMO]["orphans"]) == (4, 0)
    assert checked(result, "references_resolve")[DEMO].passed


def test_the_next_run_reads_and_writes_nothing(pipeline: Headers) -> None:
    before = pipeline.files()
    result = pipeline.read("headers", "references")
    assert result.success and steps(result) == [] and pipeline.files() == before
    assert [figures.get("read_files") for figures in made(result).values()].count(0) == len(READ)


# --- what is damaged, missing or left


def test_a_damaged_file_is_a_row_with_a_problem_and_fails_nothing(pipeline: Headers) -> None:
    path = pipeline.lake.read_table(INSTANCES, QIN)["Path"][0].as_py()
    Path(pipeline.lake.uri, path).write_bytes(b"no DICOM at all")
    result = pipeline.read(over=[QIN], full=True)
    assert result.success and len(steps(result)) == 1
    shown = made(result)[QIN]
    assert (shown["read_files"], shown["files_with_problems"]) == (85, 1)
    (row,) = shown["problems"].records
    assert row.data["file"] == path and row.data["problem"]
    rows = pipeline.lake.read_table(INSTANCE_HEADERS, QIN)
    (found,) = rows.filter(pc.equal(rows["Path"], path)).to_pylist()
    assert found["Header"] is None and found["SOPInstanceUID"] == Path(path).stem
    assert checked(result, "headers_complete")[QIN].passed


def rewritten(pipeline: Headers, rows: pa.Table, collection: str = QIN) -> None:
    """Write the table of a collection as it is not, with the properties that say what it holds."""
    properties = pipeline.lake.read_properties(INSTANCE_HEADERS, collection)
    pipeline.lake.write_table(INSTANCE_HEADERS, rows, collection, properties=properties)


def test_a_row_that_is_missing_or_too_many_fails_the_check(pipeline: Headers) -> None:
    rows = pipeline.lake.read_table(INSTANCE_HEADERS, QIN)
    series = rows["SeriesInstanceUID"][0].as_py()
    assert pipeline.complete() == []
    rewritten(pipeline, rows.slice(1))
    assert pipeline.complete() == [Finding(f"1 files of series {series} have no row", series)]
    rewritten(pipeline, pa.concat_tables([rows, rows.slice(0, 1)]))
    assert pipeline.complete() == [Finding("1 rows are of files that have one already")]
    other = pipeline.lake.read_table(INSTANCE_HEADERS, DEMO).slice(0, 1)
    rewritten(pipeline, pa.concat_tables([rows, other]))
    uid = other["SeriesInstanceUID"][0].as_py()
    assert pipeline.complete() == [Finding(f"1 rows of series {uid} are of no file in the lake", uid)]


def test_files_that_state_another_patient_or_collection_are_named(pipeline: Headers) -> None:
    rows = pipeline.lake.read_table(INSTANCE_HEADERS, QIN)
    first = rows.slice(0, 1).to_pylist()[0]
    changed = {**first, "PatientID": "another", "CTPCollection": "QIN Breast"}
    rewritten(pipeline, pa.concat_tables([pa.Table.from_pylist([changed], rows.schema), rows.slice(1)]))
    found = [f.what for f in agree(Subject(pipeline.lake, pipeline.settings, QIN)).findings]
    uid = first["SeriesInstanceUID"]
    assert found == [
        f"1 files of series {uid} state PatientID 'another', and the archive lists {first['PatientID']!r}",
        f"1 files of series {uid} state CTPCollection 'QIN Breast', and the archive lists '{QIN}'",
    ]


def test_a_bounded_run_leaves_the_rest_and_the_next_one_reads_it(
    mirrored: reading.Lake, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    shutil.copytree(mirrored.uri, tmp_path / "lake")
    pipeline = Headers(tmp_path / "lake", instance)
    result = pipeline.read(max_instances=50)
    shown = made(result)
    files = {c: len(uids(pipeline, INSTANCES, c)) for c in READ}
    rows = {c: pipeline.lake.count_rows(INSTANCE_HEADERS, c) for c in READ}
    assert result.success and rows[HEAD] == files[HEAD] and 0 < rows[QIN] < files[QIN] and rows[DEMO] == 0
    assert [shown[c]["left_files"] for c in READ] == [0, files[QIN] - rows[QIN], files[DEMO]]
    check = checked(result, "headers_complete")
    assert check[HEAD].passed and not check[DEMO].passed
    assert check[DEMO].severity == dg.AssetCheckSeverity.WARN, "the next run reads them"
    assert "leave max_instances out" in pipeline.sentence(pipeline.read(full=True, max_instances=1))
    assert pipeline.read().success
    assert {c: pipeline.lake.count_rows(INSTANCE_HEADERS, c) for c in READ} == files


def test_a_collection_that_is_left_out_is_not_read(pipeline: Headers, instance: dg.DagsterInstance) -> None:
    before = pipeline.files()
    result = Headers(Path(pipeline.lake.uri), instance, headers=(DEMO,)).read(over=[QIN], full=True)
    assert result.success and steps(result) == [] and pipeline.files() == before
    assert list(made(result)[QIN]) == ["skipped"]


def test_a_part_that_cannot_be_written_fails_its_collection_and_not_the_others(
    pipeline: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(lake: Lake, shard: Shard) -> ShardReport:
        if shard.collection == QIN:
            raise LakeError("the disk is full")
        return write_shard(lake, shard)

    monkeypatch.setattr("nbia_pipeline.defs.assets.headers.write_shard", fails)
    before = pipeline.files()
    result = pipeline.read(full=True)
    (failure,) = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
    assert failure is not None and failure.metadata["failed_collections"].value == [QIN]
    assert "the disk is full" in str(failure.description)
    written = {path for path, when in pipeline.files().items() if when != before[path]}
    assert {c for c in READ if any(f"Collection={c}/" in path for path in written)} == {HEAD, DEMO}


def test_a_table_that_cannot_be_read_fails_its_collection_by_name(pipeline: Headers) -> None:
    at = Path(pipeline.lake.uri, table_path("instance_headers", QIN))
    at.unlink()
    (at / "in the way").mkdir(parents=True)
    result = pipeline.read(full=True)
    (failure,) = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
    assert failure is not None and failure.metadata["failed_collections"].value == [QIN]
    assert "part-0.parquet" in str(failure.description)


# --- steps, jobs, settings


def shards(*counts: int) -> list[Shard]:
    return [Shard("A", part, 64, 1, count) for part, count in enumerate(counts)]


def test_a_step_has_some_fifty_thousand_files() -> None:
    planned = shards(30_000, 19_999, 1, 100_000, 5)
    assert [[s.part for s in step] for step in in_steps(planned)] == [[0, 1, 2], [3], [4]]
    assert list(in_steps([])) == [] and STEP_INSTANCES == 50_000


@pytest.mark.parametrize(
    ("most", "read"), [(None, [30, 40, 5]), (30, [30]), (31, [30, 1]), (74, [30, 40, 4]), (1, [1])]
)
def test_a_bound_cuts_the_last_part_of_a_run(most: int | None, read: list[int]) -> None:
    assert [files_to_read(shard) for shard in bounded(shards(30, 40, 5), most)] == read


def test_the_jobs_have_headers_unless_they_are_off(tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        for headers, there in ((None, True), (("A*",), True), ((), False)):
            pipeline = Headers(tmp_path, instance, headers=headers)
            for job in (IMAGES_JOB, UPDATE_JOB):
                ops = {op.name for op in pipeline.definitions.resolve_job_def(f"nbia_{job}").graph.nodes}
                assert ({"nbia__headers", "nbia__references", "nbia_check_headers"} <= ops) is there
            keys = {key.path[-1] for key in pipeline.definitions.resolve_all_asset_keys()}
            assert ({"headers", "references"} <= keys) is there


def test_other_assets_take_headers_and_references_as_inputs(first: tuple[Headers, Any]) -> None:
    pipeline, _ = first

    @dg.asset(
        ins={"rows": dg.AssetIn(["nbia", "headers"]), "references": dg.AssetIn(["nbia", "references"])},
        partitions_def=Naming().partitions,
    )
    def modalities(rows: pd.DataFrame, references: pa.Table) -> tuple[dict[str, int], int]:
        return dict(rows["Modality"].value_counts()), references.num_rows

    merged = dg.Definitions.merge(pipeline.definitions, dg.Definitions([modalities]))
    result = merged.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=pipeline.instance, asset_selection=[modalities.key], partition_key=DEMO
    )
    assert result.output_for_node("modalities") == ({"CT": 72, "PT": 36, "MR": 14, "SEG": 2}, 4)


# --- nbia-pipeline headers


@pytest.fixture
def call(first: tuple[Headers, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("NBIA_LAKE", first[0].lake.uri)

    def call(*words: str, code: int = 0) -> tuple[str, str]:
        assert main(["headers", *words]) == code
        told = capsys.readouterr()
        return told.out, told.err

    return call


def test_the_command_counts_values_of_columns_and_of_any_element(call: Any) -> None:
    out, _ = call(DEMO, "--tag", "Modality", "--tag", "00100010")
    assert out.splitlines() == [
        "Modality  files  series",
        "-----------------------",
        "CT           72       4",
        "PT           36       2",
        "MR           14       1",
        "SEG           2       2",
        "",
        "PatientName   files  series",
        "---------------------------",
        "TCGA-DM-A001     56       5",
        "TCGA-DM-A002     36       2",
        "Müller^Jörg      32       2",
        "",
    ]
    told = json.loads(
        call(DEMO, "--json", "--tag", "(0013,1010)", "--tag", "TransferSyntaxUID", "--tag", "PixelSpacing")[0]
    )
    assert (told["collection"], told["files"]) == (DEMO, 124)
    private, syntax, spacing = told["tags"]
    assert private == {
        "tag": "0013,1010",
        "column": None,
        "values": [{"value": DEMO, "files": 124, "series": 9}],
    }
    assert (
        sum(value["files"] for value in syntax["values"]) == sum(value["files"] for value in spacing["values"]) == 124
    )
    assert spacing["column"] == "PixelSpacing" and "\\" in spacing["values"][0]["value"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((DEMO, "--tag", "ConvolutionKernl"), "no keyword and no tag of DICOM: did you mean ConvolutionKernel or "),
        ((DEMO, "--tag", "7FE0,0010"), "is not in the tables of headers: they leave out pixel data and group lengths"),
        (("TCGA-DEM", "--tag", "KVP"), "no headers of a collection 'TCGA-DEM': did you mean TCGA-DEMO?"),
        ((DEMO,), "Missing option '--tag'"),
    ],
)
def test_a_wrong_name_is_an_error_with_a_hint(call: Any, words: tuple[str, ...], sentence: str) -> None:
    assert sentence in call(*words, code=2)[1]
