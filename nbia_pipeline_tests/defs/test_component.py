"""The component gives the same code location as the environment does."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster.components.testing.utils import component_defs, create_defs_folder_sandbox

from nbia_pipeline.component import NbiaComponent
from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.resources import NbiaResource
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
    assert {name: fields[name] for name in fields if name not in ("password_env", "prefix")} == shared
    connection = set(Connection.model_fields) | {"password", "tries"}
    assert set(NbiaResource.model_fields) == connection
