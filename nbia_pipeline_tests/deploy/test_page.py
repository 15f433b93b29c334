"""docs/scale-out.md shows what is in the files that the tests load."""

from __future__ import annotations

import re

import pytest
import yaml

from nbia_pipeline_tests.helpers.units import DEPLOY, variables
from nbia_pipeline_tests.test_docs import blocks

PAGE = DEPLOY.parent / "docs" / "scale-out.md"


def test_every_configuration_on_the_page_is_in_a_file() -> None:
    files = [
        file.read_text()
        for folder in ("deploy", "examples")
        for file in (DEPLOY.parent / folder).rglob("*.*")
        if file.is_file()
    ]
    shown = [block for language in ("yaml", "ini") for block in blocks(PAGE, language)]
    assert len(shown) >= 2
    assert [block for block in shown if not any(block in text for text in files)] == []


def test_the_index_of_deploy_names_every_folder_and_the_page_links_to_the_index() -> None:
    index = (DEPLOY / "README.md").read_text()
    assert [entry.name for entry in DEPLOY.iterdir() if entry.is_dir() and f"({entry.name})" not in index] == []
    assert "(../deploy)" in PAGE.read_text()


@pytest.mark.parametrize(("limit", "value"), [("pool `nbia_api`", 4), ("`max_concurrent_runs`", 4)])
def test_the_limits_on_the_page_are_those_of_the_instance(limit: str, value: int) -> None:
    concurrency = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())["concurrency"]
    assert f"| {limit}, {value} |" in PAGE.read_text()
    assert value in (concurrency["pools"]["default_limit"], concurrency["runs"]["max_concurrent_runs"])


def test_the_commands_of_the_page_copy_files_that_are_there() -> None:
    named = {word for block in blocks(PAGE, "sh") for word in re.findall(r"deploy/[\w./*-]+", block)}
    assert named
    assert [name for name in named if not list(DEPLOY.parent.glob(name))] == []


def test_both_examples_have_the_same_variables() -> None:
    units = {n for n in variables(DEPLOY / "systemd" / "environment") if n.startswith("NBIA_")}
    assert units == {n for n in variables(DEPLOY / "compose" / "environment.example") if n.startswith("NBIA_")}
