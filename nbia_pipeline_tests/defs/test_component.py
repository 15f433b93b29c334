"""The component gives the same code location as the environment does."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster.components.component_scaffolding import scaffold_object
from dagster.components.core.component_tree import ComponentTreeException
from dagster.components.core.package_entry import discover_package_objects
from dagster.components.testing.utils import component_defs, create_defs_folder_sandbox

from nbia_pipeline.component import EXAMPLES, NbiaComponent
from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.resources import NbiaResource
from nbia_pipeline.defs.specs.translator import NbiaAssetData
from nbia_pipeline.settings import Connection, Settings, SettingsError


@pytest.mark.parametrize("name", ["NbiaComponent", "component.NbiaComponent", "component.NbiaArchiveComponent"])
def test_yaml_becomes_the_assets_of_an_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("MY_SECRET", "not to be shown")
    attributes = {
        "archive": "nlst",
        "prefix": "nlst",
        "username": "me",
        "password_env": "MY_SECRET",
        "lake": str(tmp_path),
        "images": ["NLST"],
        "poll_seconds": 600,
        "reconcile_cron": "@weekly",
    }
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            component_cls=NbiaComponent,
            defs_yaml_contents={"type": f"nbia_pipeline.{name}", "attributes": attributes},
        )
        with sandbox.load_component_and_build_defs(defs_path=folder) as (_, definitions):
            assert dg.AssetKey(["nlst", "series"]) in definitions.resolve_all_asset_keys()
            archive = (definitions.resources or {})["nlst_archive"]
            assert (archive.archive, archive.username) == ("nlst", "me")
            assert archive.password == "MY_SECRET"
            assert "not to be shown" not in repr(archive)
            repository = definitions.get_repository_def()
            assert repository.get_sensor_def("nlst_updated_series").minimum_interval_seconds == 600
            assert repository.get_schedule_def("nlst_reconcile").cron_schedule == "@weekly"


TRANSLATION = {
    "key": "imaging/{{ archive }}_{{ asset }}",
    "group_name": "{{ 'pixels' if asset == 'images' else spec.group_name }}",
    "owners": ["team:imaging"],
    "tags": {"domain": "radiology"},
    "automation_condition": "{{ dg.AutomationCondition.eager() if asset == 'series' else none }}",
}


@contextmanager
def from_yaml(component: type[NbiaComponent] = NbiaComponent, **attributes: Any) -> Iterator[dg.Definitions]:
    """Load the definitions of a component in a project of its own."""
    with create_defs_folder_sandbox() as sandbox:
        name = f"{component.__module__}.{component.__name__}"
        contents = {"type": name, "attributes": attributes}
        folder = sandbox.scaffold_component(component_cls=component, defs_yaml_contents=contents)
        with sandbox.load_component_and_build_defs(defs_path=folder) as (_, definitions):
            yield definitions


def test_yaml_changes_keys_groups_owners_tags_and_conditions(tmp_path: Path) -> None:
    with from_yaml(lake=str(tmp_path), translation=TRANSLATION) as definitions:
        specs = {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}
        images, series = specs["imaging/nbia_images"], specs["imaging/nbia_series"]
        assert [dep.asset_key for dep in images.deps] == [series.key]
        assert (images.group_name, series.group_name) == ("pixels", "tables")
        assert images.owners == series.owners == ["team:imaging"]
        assert series.tags == {"domain": "radiology", "dagster/kind/parquet": ""}
        assert "dagster/column_schema" in series.metadata
        assert series.automation_condition == dg.AutomationCondition.eager() and images.automation_condition is None
        checks = definitions.get_repository_def().asset_graph.asset_check_keys
        assert {key.asset_key.path[0] for key in checks} == {"imaging"}


@pytest.mark.parametrize(
    ("translation", "sentence"),
    [
        ({"partitions_def": {"type": "static", "partition_keys": ["a"]}}, "collections changes partitions_def: leave"),
        ({"key": "one"}, "the translation gives collections and modalities the same key, one: make them differ"),
    ],
    ids=["partitions", "key"],
)
def test_yaml_cannot_change_partitions_or_merge_assets(translation: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ComponentTreeException) as found, from_yaml(translation=translation):
        pass
    assert isinstance(found.value.__cause__, SettingsError) and sentence in str(found.value.__cause__)


class Tagged(NbiaComponent):
    """A component with a translator of its own, on top of its YAML."""

    def get_asset_spec(self, data: NbiaAssetData) -> dg.AssetSpec:
        return super().get_asset_spec(data).merge_attributes(tags={"of": data.archive})


def test_a_subclass_changes_the_assets_in_python() -> None:
    with from_yaml(Tagged, translation={"owners": ["team:imaging"]}) as definitions:
        for spec in definitions.resolve_all_asset_specs():
            assert spec.owners == ["team:imaging"] and spec.tags["of"] == "nbia"


def scaffold(folder: Path, **params: str) -> str:
    """Scaffold a component as `dg scaffold defs` does; returns the YAML."""
    name = "nbia_pipeline.NbiaComponent"
    scaffold_object(folder, name, json.dumps(params), "yaml", folder.parent)
    return (folder / "defs.yaml").read_text()


def test_scaffolded_yaml_explains_every_field(tmp_path: Path) -> None:
    text = scaffold(tmp_path / "tcia", archive="tcia", lake="s3://bucket/a lake")
    assert yaml.safe_load(text) == {
        "type": "nbia_pipeline.NbiaComponent",
        "attributes": {"archive": "tcia", "lake": "s3://bucket/a lake"},
    }
    for name, field in NbiaComponent.model_fields.items():
        # Each explanation is above its field.
        explanation = " ".join(line.strip("# ") for line in text.split(f"{name}:")[0].split("\n\n")[-1].splitlines())
        assert field.description is not None and explanation.strip().endswith(field.description), name
    assert max(map(len, text.splitlines())) <= 120


def test_every_field_of_scaffolded_yaml_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBIA_PASSWORD", "secret")
    text = scaffold(tmp_path / "tcia")
    used = re.sub(r"^  # (?=\w+:|  )", "  ", text, flags=re.MULTILINE)
    found = yaml.safe_load(used)["attributes"]
    assert list(found) == list(NbiaComponent.model_fields)
    defaults = json.loads(json.dumps({name: field.default for name, field in NbiaComponent.model_fields.items()}))
    assert found == {**defaults, **EXAMPLES}
    assert not [name for name, value in found.items() if not value and value is not False], "an example is missing"
    ours = {**found, "lake": str(tmp_path / "lake"), "ca_bundle": None, "username": "me"}
    with from_yaml(**ours) as definitions:
        assert {tuple(spec.owners) for spec in definitions.resolve_all_asset_specs()} == {("team:imaging",)}
        assert getattr(definitions.executor, "name", None) == "multiprocess"


def test_the_schema_of_the_yaml_has_the_descriptions() -> None:
    fields = (NbiaComponent.get_model_cls() or NbiaComponent).model_json_schema()["properties"]
    assert {name: field["description"] for name, field in fields.items()} == {
        name: field.description for name, field in NbiaComponent.model_fields.items()
    }


def test_dg_finds_the_component_by_its_short_name() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    (module,) = re.findall(r'registry_modules"\]\nnbia_pipeline = "(.*)"', project)
    keys = {key.to_typename() for key in discover_package_objects([module])}
    assert keys == {"nbia_pipeline.NbiaComponent"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"api": "v3"}, "api is 'v3': set it to v2 or v4"),
        ({"lake": " "}, "lake is empty"),
        ({"username": "me"}, "username is 'me', but password_env is empty"),
        ({"images": ["A"], "collections": ["B"]}, "images names 'A', but collections (B) leaves it out"),
        ({"reconcile_cron": "daily"}, "reconcile_cron is 'daily': set it to a cron expression"),
        *(({"prefix": name}, f"prefix is {name!r}: set it to letters") for name in ("", "a b", "a/b", "ä", "a\n")),
        ({"password_env": "NOT_THERE"}, "password_env names NOT_THERE, which is not set"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}"):
        component_defs(component=NbiaComponent(**fields))


@pytest.mark.parametrize(
    ("executor", "name"),
    [
        (None, None),
        ("in_process", "in_process"),
        ("multiprocess", "multiprocess"),
        ({"multiprocess": {"max_concurrent": 3}}, "multiprocess"),
        ("celery", "celery"),
        ({"celery": {"broker": {"env": "BROKER"}, "backend": {"env": "BROKER"}}}, "celery"),
        ({"k8s": {"job_namespace": "imaging", "max_concurrent": 8}}, "k8s"),
        ("dagster:in_process_executor", "in_process"),
    ],
)
def test_an_executor_is_one_line_of_yaml(executor: Any, name: str | None) -> None:
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(
            component_cls=NbiaComponent,
            defs_yaml_contents={"type": "nbia_pipeline.NbiaComponent", "attributes": {"executor": executor}},
        )
        with sandbox.load_component_and_build_defs(defs_path=folder) as (_, definitions):
            assert name == getattr(definitions.executor, "name", None)
            repository = definitions.get_repository_def()
            images = repository.get_job("nbia_images").executor_def.name
            assert images == (name or "in_process")
            assert repository.get_job("nbia_tables").executor_def.name == "in_process"


def test_an_executor_is_one_variable_and_one_argument() -> None:
    settings = Settings.from_env({"NBIA_EXECUTOR": '{"multiprocess": {"max_concurrent": 3}}'})
    assert settings.executor == {"multiprocess": {"max_concurrent": 3}}
    images = build_definitions(settings).resolve_job_def("nbia_images")
    assert dg.validate_run_config(images, {})["execution"]["multiprocess"]["max_concurrent"] == 3
    given = build_definitions(settings, executor=dg.in_process_executor)
    assert given.executor is dg.in_process_executor


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("celry", "NBIA_EXECUTOR is 'celry': set it to in_process, multiprocess, celery, ray, k8s, or to an executor"),
        (
            "dagster:no_such",
            "NBIA_EXECUTOR is 'dagster:no_such', and dagster has no executor 'no_such': check its name",
        ),
        ("dagster:job", "NBIA_EXECUTOR is 'dagster:job', and dagster has no executor 'job': check its name"),
        ("nobody.has:this", "NBIA_EXECUTOR is 'nobody.has:this', and nobody.has cannot be imported (No module named"),
        ("{", "NBIA_EXECUTOR is not JSON ("),
        ('{"a": {}, "b": {}}', "NBIA_EXECUTOR is not one executor with its configuration: write it as {"),
        ('{"celery": 3}', "NBIA_EXECUTOR is not one executor with its configuration"),
        ("{}", ""),
        (
            '{"multiprocess": {"most": 3}}',
            'the configuration in NBIA_EXECUTOR is not one of multiprocess: Received unexpected config entry "most"',
        ),
    ],
)
def test_a_wrong_executor_is_refused_by_name(text: str, sentence: str) -> None:
    if not sentence:
        assert build_definitions(Settings.from_env({"NBIA_EXECUTOR": text})).executor is None
        return
    with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}"):
        build_definitions(Settings.from_env({"NBIA_EXECUTOR": text}))


def test_an_executor_whose_package_is_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dagster_celery", None)
    sentence = "executor is 'celery', and dagster_celery cannot be imported (import of dagster_celery halted; None in "
    with pytest.raises(SettingsError, match=re.escape(sentence)) as found:
        build_definitions(Settings(executor="celery"))
    assert str(found.value).endswith("pip install 'nbia-pipeline[celery]'")


def test_the_fields_are_those_of_the_settings_but_for_the_password() -> None:
    shared = {name: (f.default, f.description) for name, f in Settings.model_fields.items() if name != "password"}
    fields = {name: (f.default, f.description) for name, f in NbiaComponent.model_fields.items()}
    assert {name: fields[name] for name in fields if name not in ("password_env", "prefix", "translation")} == shared
    connection = set(Connection.model_fields) | {"password", "tries"}
    assert set(NbiaResource.model_fields) == connection
