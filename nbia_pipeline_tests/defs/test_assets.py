"""The assets through a real Dagster instance: what they write is what the archive holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nbia_pipeline.changes.catalog import kept_collections
from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.jobs import images_config
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.embedded.catalog.model import VISIBLE, Catalog
from nbia_pipeline.schema import TABLES
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES
from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline_tests.helpers import zips
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import NO_SUCH_ENDPOINT, Fault, answer, html
from nbia_pipeline_tests.helpers.pipeline import COLLECTIONS, Pipeline

pytestmark = pytest.mark.slow

IMAGE_CHECKS = ["complete", "intact", "agrees_with_archive", "licensed"]


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path_factory.mktemp("dagster"))) as instance:
        yield instance


@pytest.fixture(scope="module")
def full(demo_archive: str, tmp_path_factory: pytest.TempPathFactory, instance: dg.DagsterInstance) -> Pipeline:
    """Everything materialized once, with the images of two collections."""
    lake = str(tmp_path_factory.mktemp("a lake"))
    pipeline = Pipeline(Settings(archive=demo_archive, lake=lake, images=("TCGA*", "Lung Phantom CT")), instance)
    assert pipeline.run("catalogue").success
    assert pipeline.run_tables().success
    for collection in ("TCGA-DEMO", "Lung Phantom CT"):
        assert pipeline.run("images", partition_key=collection).success
    return pipeline


@pytest.fixture
def pipeline(archive: TestArchive, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline of one's own on an archive that can misbehave."""
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield Pipeline(Settings(archive=archive.url, lake=str(tmp_path / "lake"), images=("*",), headers=()), instance)


def served(demo: Catalog) -> list[dict[str, Any]]:
    """Return the facts of the series that the guest may see."""
    public = pc.invert(pc.is_in(demo.series["Collection"], pc.cast(list(demo.restricted), "string")))
    visible = pc.equal(demo.series["Visibility"], VISIBLE)
    return list(demo.series.filter(pc.and_(public, visible)).to_pylist())


def test_the_collections_become_partitions_in_their_exact_spelling(full: Pipeline) -> None:
    assert full.instance.get_dynamic_partitions("nbia_collections") == COLLECTIONS
    assert [c for (c,) in full.sql("collections", "SELECT Collection FROM t ORDER BY 1")] == COLLECTIONS


def test_the_row_counts_are_those_that_the_archive_serves(full: Pipeline, demo: Catalog) -> None:
    rows = served(demo)
    expected = {
        "series": len(rows),
        "series_metadata": len(rows),
        "studies": len({r["StudyInstanceUID"] for r in rows}),
        "patients": len({(r["Collection"], r["PatientID"]) for r in rows}),
    }
    assert {t: full.sql(t, "SELECT count(*) FROM t")[0][0] for t in expected} == expected


def test_every_value_of_the_series_table_is_the_archives(full: Pipeline, demo: Catalog) -> None:
    not_in_v2 = {"Site", "PatientSex", "PatientAge", "AdmittingDiagnosesDescription", "ReleasedStatus"}
    for row in served(demo):
        names = ", ".join(c.name for c in SERIES.columns)
        (found,) = full.sql("series", f"SELECT {names} FROM t WHERE SeriesInstanceUID = '{row['SeriesInstanceUID']}'")
        expected = tuple(None if c.name in not_in_v2 else row[c.name] for c in SERIES.columns)
        assert found == expected


@pytest.mark.parametrize("table", sorted(set(TABLES) - {"conformance", "selected_series"}))  # all fits and is wanted
def test_the_files_have_exactly_the_columns_of_the_schema(full: Pipeline, table: str) -> None:
    described = full.sql(table, "SELECT column_name, replace(column_type, '\"', '') FROM (DESCRIBE t)")
    assert dict(described) == {c.name: sql_type(c.type) for c in TABLES[table].columns}


def sql_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"{sql_type(kind.value_type)}[]"
    if pa.types.is_struct(kind):
        return f"STRUCT({', '.join(f'{field.name} {sql_type(field.type)}' for field in kind)})"
    types = {"string": "VARCHAR", "int64": "BIGINT", "double": "DOUBLE", "bool": "BOOLEAN", "date32[day]": "DATE"}
    return types.get(str(kind), "TIMESTAMP")


def test_every_image_of_the_mirrored_collections_is_there_and_no_other(full: Pipeline, demo: Catalog) -> None:
    wanted = [r for r in served(demo) if r["Collection"] in ("TCGA-DEMO", "Lung Phantom CT")]
    files = {
        p.relative_to(full.settings.lake).as_posix(): p.stat().st_size
        for p in Path(full.settings.lake).glob("images/**/*.dcm")
    }
    assert sum(files.values()) == sum(r["FileSize"] for r in wanted)
    assert dict(full.sql("instances", "SELECT Path, Size FROM t")) == files
    assert full.sql("image_series", "SELECT Status, count(*) FROM t GROUP BY 1") == [("complete", len(wanted))]


def test_a_second_run_asks_for_no_image(full: Pipeline, instance: dg.DagsterInstance) -> None:
    result = full.run("images", partition_key="TCGA-DEMO")
    assert result.success
    assert not [e for e in result.all_events if e.is_step_success and "fetch_images" in str(e.step_key)]
    metadata = images_metadata(result)
    assert (metadata["fetched_series"], metadata["skipped_series"]) == (0, 9)


def images_metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node("nbia__images.nbia_finish_images") or [None]  # type: ignore[list-item]
    assert event is not None
    return {k: v.value for k, v in event.metadata.items()}


@pytest.mark.parametrize(
    ("asset", "collection", "rows"),
    [
        ("series", "Lung Phantom CT", 4),
        ("series", "TCGA-DEMO", 9),
        ("series_changes", "TCGA-DEMO", 9),
        ("annotation_files", "TCGA-DEMO", 2),
    ],
)
def test_every_partition_has_its_own_figures(full: Pipeline, asset: str, collection: str, rows: int) -> None:
    found = full.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=dg.AssetKey(["nbia", asset]), asset_partitions=[collection]), limit=1
    )
    event = found.records[0].asset_materialization
    assert event is not None
    assert event.metadata["dagster/partition_row_count"].value == rows
    assert event.metadata["bytes"].value == Path(str(event.metadata["path"].value)).stat().st_size


def test_one_partition_can_be_materialised_alone(pipeline: Pipeline) -> None:
    assert pipeline.run("catalogue").success
    assert pipeline.run("tables", partition_key="QIN_Breast.v2").success
    assert pipeline.lake.collections_of(SERIES) == ["QIN_Breast.v2"]


@pytest.mark.slow
def test_the_checks_pass_and_one_fails_when_a_series_is_quarantined(archive: TestArchive, pipeline: Pipeline) -> None:
    assert pipeline.run("catalogue").success
    assert pipeline.run_tables().success
    archive.faults.inject("getImageWithMD5Hash", zips.altered(zips.climbing_name), times=3)
    config = images_config(Naming(), max_series=1)
    result = pipeline.run("images", partition_key="QIN_Breast.v2", run_config=config)
    (check,) = [c for c in result.get_asset_check_evaluations() if not c.passed]
    assert check.check_name == "complete"
    assert check.metadata["findings"].value == 5
    status = pipeline.sql("image_series", "SELECT Status, count(*) FROM t GROUP BY 1 ORDER BY 1")
    assert status == [("pending", 4), ("quarantined", 1)]
    checks = pipeline.run("images", partition_key="QIN_Breast.v2").get_asset_check_evaluations()
    assert {c.check_name: c.passed for c in checks} == dict.fromkeys(IMAGE_CHECKS, True)
    assert pipeline.sql("image_series", "SELECT DISTINCT Status FROM t") == [("complete",)]


def test_a_bounded_run_leaves_the_rest_pending_and_the_next_one_goes_on(pipeline: Pipeline) -> None:
    assert pipeline.run("catalogue").success
    assert pipeline.run_tables().success
    config = images_config(Naming(), max_series=2)
    assert pipeline.run("images", partition_key="QIN_Breast.v2", run_config=config).success
    statuses = pipeline.lake.read_table(IMAGE_SERIES, "QIN_Breast.v2")["Status"].to_pylist()
    assert sorted(statuses) == ["complete"] * 2 + ["pending"] * 3
    metadata = images_metadata(pipeline.run("images", partition_key="QIN_Breast.v2"))
    assert (metadata["fetched_series"], metadata["skipped_series"], metadata["left_series"]) == (3, 2, 0)


def test_metadata_comes_one_by_one_where_the_archive_has_no_bulk_call(archive: TestArchive, pipeline: Pipeline) -> None:
    assert pipeline.run("catalogue").success
    archive.faults.inject("getSeriesMetadata2", answer(500, NO_SUCH_ENDPOINT))
    assert pipeline.run("tables", partition_key="TCGA-DEMO").success
    assert archive.faults.count("getSeriesMetaData") == 9
    assert pipeline.sql("series_metadata", "SELECT count(*), count(SOPClassUID) FROM t") == [(9, 9)]


def test_a_token_that_dies_under_calls_in_flight_loses_nothing(archive: TestArchive, pipeline: Pipeline) -> None:
    for endpoint in ("getPatient", "getSeries", "getImageWithMD5Hash"):
        archive.faults.inject(endpoint, Fault("expire_tokens"))
    assert pipeline.run("catalogue").success
    assert pipeline.run_tables().success
    assert pipeline.run("images", partition_key="QIN_Breast.v2").success
    assert pipeline.sql("series", "SELECT count(*) FROM t") == [(39,)]
    assert pipeline.sql("image_series", "SELECT Status, count(*) FROM t GROUP BY 1") == [("complete", 5)]


def test_a_table_with_rows_survives_an_archive_that_sends_none(archive: TestArchive, pipeline: Pipeline) -> None:
    assert pipeline.run("catalogue").success
    assert pipeline.run("tables", partition_key="TCGA-DEMO").success
    before = pipeline.lake.read_table(SERIES, "TCGA-DEMO")
    archive.faults.inject("getSeries", answer(200, b""), times=20)
    result = pipeline.run("tables", partition_key="TCGA-DEMO")
    assert not result.success
    assert "'TCGA-DEMO', but sends nothing of it" in pipeline.sentence(result)
    assert pipeline.lake.read_table(SERIES, "TCGA-DEMO").equals(before)


def test_a_collection_that_fails_costs_only_itself(archive: TestArchive, pipeline: Pipeline) -> None:
    assert pipeline.run("catalogue").success
    archive.faults.inject("getPatient", html(), times=1)
    result = pipeline.run_tables()
    assert not result.success
    assert "1 of 4 collections failed, the first: " in pipeline.sentence(result)
    assert "HTML" in pipeline.sentence(result)
    assert pipeline.sql("patients", "SELECT count(DISTINCT Collection) FROM t") == [(3,)]
    key = dg.AssetKey(["nbia", "patients"])
    assert len(pipeline.instance.get_materialized_partitions(key)) == 3


def test_images_of_a_collection_that_is_not_mirrored_are_refused(full: Pipeline, archive: TestArchive) -> None:
    result = full.run("images", partition_key="HeadNeckMix")
    assert not result.success
    assert "the images of 'HeadNeckMix' are not mirrored: add the collection to images to mirror them" in full.sentence(
        result
    )
    assert archive.faults.count("getImageWithMD5Hash") == 0


def test_images_before_the_series_table_say_what_to_do_first(pipeline: Pipeline) -> None:
    assert pipeline.run("catalogue").success
    assert "materialize series first" in pipeline.sentence(pipeline.run("images", partition_key="TCGA-DEMO"))


def test_an_account_sees_the_restricted_collection(archive: TestArchive, tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        settings = Settings(
            archive=archive.url, lake=str(tmp_path / "lake"), username="demo_member", password="demo-member-password"
        )
        assert Pipeline(settings, instance).run("catalogue").success
        assert "Thorax-Trial (limited)" in instance.get_dynamic_partitions("nbia_collections")


def test_v4_fills_the_same_tables(archive: TestArchive, tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        v4 = Pipeline(Settings(archive=archive.url, api="v4", lake=str(tmp_path / "lake")), instance)
        assert v4.run("catalogue").success
        assert v4.run_tables().success
        assert v4.sql("series", "SELECT count(*), count(Site) FROM t") == [(39, 39)]


def test_the_definitions_load_and_carry_what_the_ui_shows(full: Pipeline) -> None:
    dg.Definitions.validate_loadable(full.definitions)
    for name in ("collections", "patients", "studies", "series", "series_metadata", "images"):
        spec = full.definitions.resolve_assets_def(Naming().key(name)).specs_by_key[Naming().key(name)]
        assert spec.description
        assert spec.group_name in ("catalog", "tables", "images")
        assert spec.kinds
        columns = {c.name: c for c in spec.metadata["dagster/column_schema"].columns}
        assert "Collection" in columns
        if "SeriesInstanceUID" in columns:
            assert "(0020,000E)" in (columns["SeriesInstanceUID"].description or "")


def test_two_archives_live_in_one_code_location(tmp_path: Path) -> None:
    settings = Settings(lake=str(tmp_path))
    both = dg.Definitions.merge(build_definitions(settings), build_definitions(settings, Naming("nlst")))
    dg.Definitions.validate_loadable(both)
    assert dg.AssetKey(["nlst", "series"]) in both.resolve_all_asset_keys()


def test_a_name_that_the_archive_listed_once_is_no_misspelling() -> None:
    settings = Settings(collections=("A", "B"), images=("B",))
    assert kept_collections(settings, ["A"], known=["B"]) == ["A"]
    with pytest.raises(SettingsError, match="collections has 'B', which matches no collection"):
        kept_collections(settings, ["A"])
    misspelled = Settings(select={"A-*": {"modalities": ["CT"]}})
    with pytest.raises(SettingsError, match=r"select has 'A-\*', which matches no collection"):
        kept_collections(misspelled, ["A"])
