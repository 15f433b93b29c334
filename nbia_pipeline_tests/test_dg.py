"""The commands of `dg`, in a project that `create-dagster` makes. Each starts processes of its own: `make test-dg`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import nbia_pipeline

pytestmark = pytest.mark.skipif(not os.environ.get("NBIA_TEST_DG"), reason="starts many processes: make test-dg")

TYPE = "nbia_pipeline.NbiaComponent"
ROOT = Path(nbia_pipeline.__file__).parents[1]
Dg = Callable[..., str]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as a user has it, with the component scaffolded."""
    folder = tmp_path_factory.mktemp("projects")
    make = "from create_dagster.cli import main; main()"
    subprocess.run(
        [sys.executable, "-c", make, "project", "imaging", "--no-uv-sync"], cwd=folder, check=True, capture_output=True
    )
    return folder / "imaging"


@pytest.fixture(scope="module")
def dg(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Dg:
    """Run a command of dg in the project, with this interpreter; returns what it prints."""
    home = tmp_path_factory.mktemp("home")
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    paths = os.pathsep.join([str(ROOT), str(project / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "DAGSTER_HOME": str(home), "COLUMNS": "200", "NO_COLOR": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"

    def dg(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from dagster_dg_cli.cli.entrypoint import main; main()", *words],
            cwd=project,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        text = done.stdout + done.stderr
        assert done.returncode == code, text
        return text

    dg("scaffold", "defs", TYPE, "tcia", "--archive", "tcia")
    return dg


def defs_yaml(project: Path) -> Path:
    return project / "src" / "imaging" / "defs" / "tcia" / "defs.yaml"


def test_the_scaffolded_yaml_has_what_was_given_and_explains_the_rest(dg: Dg, project: Path) -> None:
    text = defs_yaml(project).read_text()
    assert yaml.safe_load(text) == {"type": TYPE, "attributes": {"archive": "tcia", "lake": "./lake"}}
    assert "\n  # Account at the archive.\n  # username: nbia_guest\n" in text


def test_the_component_is_listed_once_with_its_summary(dg: Dg) -> None:
    found = json.loads(dg("list", "components", "--json"))["items"]
    ours = [one for one in found if one["key"].startswith("nbia_pipeline.")]
    assert [one["key"] for one in ours] == [TYPE]
    assert ours[0]["summary"] == "Mirrors an NBIA archive (The Cancer Imaging Archive) into a data lake."


def test_the_component_is_described(dg: Dg) -> None:
    schema = json.loads(dg("utils", "inspect-component", TYPE, "--defs-yaml-json-schema"))
    fields = schema["properties"]["attributes"]["properties"]
    assert fields["username"] == {
        "default": "nbia_guest",
        "description": "Account at the archive.",
        "title": "Username",
        "type": "string",
    }
    assert {"archive", "lake", "select", "translation", "prefix"} <= set(fields)


def test_everything_is_checked_and_listed(dg: Dg) -> None:
    assert "All component YAML validated successfully." in dg("check", "yaml")
    assert "All definitions loaded successfully." in dg("check", "defs", "--use-active-venv")
    found = json.loads(dg("list", "defs", "--json"))
    assets = {one["asset_key"]: one for one in found["assets"]}
    assert len(assets) == 14 and assets["nbia/images"]["dependency_keys"] == ["nbia/series"]
    assert {one["name"] for one in found["jobs"]} >= {"nbia_catalogue", "nbia_tables", "nbia_images", "nbia_update"}
    assert all(one["description"] for one in found["assets"] + found["jobs"] + found["asset_checks"])


@pytest.mark.parametrize(
    ("line", "command", "sentence"),
    [
        (
            "  lkae: ./lake",
            ["check", "yaml"],
            r"defs.yaml:8 - .* attributes.lkae Additional properties are not allowed",
        ),
        ("  poll_seconds: 5", ["check", "defs", "--use-active-venv"], "poll_seconds is 5: set it to 60 or more"),
        (
            "  translation: {partitions_def: {type: daily, start_date: '2026-01-01'}}",
            ["check", "defs", "--use-active-venv"],
            "the translation of collections changes partitions_def: leave it",
        ),
    ],
    ids=["field", "value", "partitions"],
)
def test_a_wrong_line_is_named(dg: Dg, project: Path, line: str, command: list[str], sentence: str) -> None:
    file = defs_yaml(project)
    before = file.read_text()
    file.write_text(before.replace("  archive: tcia\n", f"  archive: tcia\n{line}\n"))
    try:
        assert re.search(sentence, dg(*command, code=1)), sentence
    finally:
        file.write_text(before)
