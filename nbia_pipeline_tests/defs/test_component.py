"""The component gives the same code location as the environment does."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from dagster.components.testing.utils import component_defs, create_defs_folder_sandbox

from nbia_pipeline.component import NbiaComponent
from nbia_pipeline.settings import SettingsError


def test_yaml_becomes_the_assets_of_an_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
            defs_yaml_contents={"type": "nbia_pipeline.component.NbiaComponent", "attributes": attributes},
        )
        with sandbox.load_component_and_build_defs(defs_path=folder) as (_, definitions):
            assert dg.AssetKey(["nlst", "series"]) in definitions.resolve_all_asset_keys()
            archive = (definitions.resources or {})["nlst_archive"]
            assert (archive.archive, archive.username, archive.images) == ("nlst", "me", ["NLST"])
            assert archive.password == "MY_SECRET"
            assert "not to be shown" not in repr(archive)
            repository = definitions.get_repository_def()
            assert repository.get_sensor_def("nlst_updated_series").minimum_interval_seconds == 600
            assert repository.get_schedule_def("nlst_reconcile").cron_schedule == "@weekly"


def test_a_wrong_field_is_refused_by_name() -> None:
    component = NbiaComponent(api="v3")
    with pytest.raises(SettingsError, match="NBIA_API is 'v3'"):
        component_defs(component=component)
