"""Who may read what is written: a lake is shared as the umask says, working directories elsewhere with nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbia_pipeline.lake import Lake
from nbia_pipeline_tests.helpers.one_series import OneSeries


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.disk("permissions")
def test_a_lake_follows_the_umask(one: OneSeries, umask: int) -> None:
    assert one.fetch().status == "complete"
    root = Path(one.lake.uri)
    published = [root, *(p for p in root.rglob("*") if ".staging" not in p.parts)]
    assert any(p.suffix == ".dcm" for p in published)
    for path in published:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_working_directories_of_an_object_store_are_their_owners(umask: int) -> None:
    with Lake("memory://permissions").workspace() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
