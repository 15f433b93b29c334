"""A translator that renames everything: the whole pipeline still finds its assets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from nbia_pipeline import NbiaTranslator, build_definitions
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.defs.specs.translator import NbiaAssetData
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import Settings, SettingsError

COLLECTION = "TCGA-DEMO"


class Renamed(NbiaTranslator):
    """Another key and group for each asset, and one more of all else."""

    def get_asset_spec(self, data: NbiaAssetData) -> dg.AssetSpec:
        spec = super().get_asset_spec(data)
        automation = dg.AutomationCondition.eager() if data.name == "news" else spec.automation_condition
        return spec.replace_attributes(
            key=["imaging", data.archive, f"dicom_{data.name}"],
            group_name=f"our_{spec.group_name}",
            description=f"Ours. {spec.description}",
            automation_condition=automation,
        ).merge_attributes(
            owners=["team:imaging"], tags={"domain": "radiology"}, kinds={"tcia"}, metadata={"cost_center": 7}
        )


def key(name: str) -> dg.AssetKey:
    return dg.AssetKey(["imaging", "nbia", f"dicom_{name}"])


@pytest.fixture(scope="module")
def definitions(demo_archive: str, tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    lake = str(tmp_path_factory.mktemp("lake"))
    return build_definitions(Settings(archive=demo_archive, lake=lake, images=("TCGA*",)), translator=Renamed())


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


def test_every_attribute_is_the_translators(definitions: dg.Definitions) -> None:
    plain = build_definitions(Settings()).resolve_all_asset_specs()
    specs = {spec.key: spec for spec in definitions.resolve_all_asset_specs()}
    assert set(specs) == {key(spec.key.path[-1]) for spec in plain} and len(specs) == 14
    for spec in plain:
        ours = specs[key(spec.key.path[-1])]
        assert [dep.asset_key for dep in ours.deps] == [key(dep.asset_key.path[-1]) for dep in spec.deps]
        assert ours.group_name == f"our_{spec.group_name}"
        assert ours.description == f"Ours. {spec.description}"
        assert ours.owners == ["team:imaging"] and ours.kinds == {*spec.kinds, "tcia"}
        assert ours.tags == {**spec.tags, "domain": "radiology", "dagster/kind/tcia": ""}
        assert ours.metadata == {**spec.metadata, "cost_center": 7}
        assert (ours.partitions_def, ours.freshness_policy) == (spec.partitions_def, spec.freshness_policy)
    sensor = definitions.get_repository_def().get_sensor_def("nbia_automation")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
    assert str(sensor.asset_selection) == 'key:"imaging/nbia/dicom_news"'


def run(definitions: dg.Definitions, instance: dg.DagsterInstance, job: str, **how: Any) -> dg.ExecuteInProcessResult:
    return definitions.resolve_job_def(f"nbia_{job}").execute_in_process(instance=instance, **how)


def backlog(definitions: dg.Definitions, instance: dg.DagsterInstance) -> Any:
    repository = definitions.get_repository_def()
    with dg.build_sensor_context(
        instance,
        instance_ref=instance.get_ref(),
        repository_def=repository,
        resources=dict(definitions.resources or {}),
    ) as context:
        return repository.get_sensor_def("nbia_image_backlog").evaluate_tick(context)


@pytest.mark.slow
def test_jobs_checks_and_sensors_follow_the_keys(definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
    # The main job: catalog, tables, and a plan of images that fetches none.
    assert run(definitions, instance, "mirror", run_config={"collections": [COLLECTION], "max_series": 0}).success
    (request,) = backlog(definitions, instance).run_requests
    assert (request.job_name, request.partition_key) == ("nbia_images", COLLECTION)
    assert list(request.run_config["ops"]) == ["imaging__nbia__dicom_images"]
    run(definitions, instance, "images", partition_key=COLLECTION, run_config=request.run_config)
    made = {name for name in Naming().specs if instance.get_latest_materialization_event(key(name))}
    assert made == set(Naming().specs) - {"news"}
    checks = definitions.get_repository_def().asset_graph.asset_check_keys
    assert len(checks) == 17 and {check.asset_key for check in checks} <= {key(name) for name in made}
    evaluated = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(checks))
    assert set(evaluated) == set(checks)

    assert backlog(definitions, instance).skip_message.startswith("Nothing to fetch: all ")
    lake = Lake(definitions.resources["nbia_lake"].uri)  # type: ignore[index]
    assert lake.read_table(IMAGE_SERIES, COLLECTION)["Status"].to_pylist() == ["complete"] * 9

    @dg.asset(ins={"series": dg.AssetIn(key("series"))}, partitions_def=Naming().partitions)
    def modalities(series: pd.DataFrame) -> dict[str, int]:
        return dict(series["Modality"].value_counts())

    merged = dg.Definitions.merge(definitions, dg.Definitions([modalities]))
    counted = merged.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, asset_selection=[modalities.key], partition_key=COLLECTION
    )
    assert counted.output_for_node("modalities") == {"CT": 4, "SEG": 2, "PT": 2, "MR": 1}


CATALOG = dg.StaticPartitionsDefinition(["a"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda spec: spec.replace_attributes(partitions_def=CATALOG),
            "the translation of collections changes partitions_def: leave it as it is, because each collection is one",
        ),
        (
            lambda spec: spec.replace_attributes(deps=["raw"]),
            "the translation of collections changes deps: leave it as it is, because the jobs run the assets in this",
        ),
        (lambda spec: spec.replace_attributes(key="x"), "the translation gives collections and modalities the same "),
        (lambda spec: None, "the translation of collections returns no AssetSpec, but NoneType"),
    ],
    ids=["partitions", "deps", "key", "none"],
)
def test_what_a_translator_cannot_change_is_an_error(change: Any, sentence: str) -> None:
    class Wrong(NbiaTranslator):
        def get_asset_spec(self, data: NbiaAssetData) -> dg.AssetSpec:
            found: dg.AssetSpec = change(data.spec)
            return found

    with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}"):
        build_definitions(Settings(), translator=Wrong())


def test_the_translator_of_the_names_is_taken_where_none_is_given() -> None:
    naming = Naming("nlst", Renamed())
    keys = build_definitions(Settings(), naming).resolve_all_asset_keys()
    assert dg.AssetKey(["imaging", "nlst", "dicom_images"]) in keys and naming.key("images") in keys
