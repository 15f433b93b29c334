"""DAGSTER_HOME: made for its owner alone, and not trusted to be so where it was there; and what is printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from nbia_pipeline.cli import home
from nbia_pipeline.cli.home import HomeError, dagster_home
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import COLLECTIONS
from nbia_pipeline_tests.helpers.processes import environment


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "above" / "home"))
    return tmp_path / "above" / "home"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_it_is_made_for_its_owner_alone(place: Path, umask: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(umask)
    try:
        assert dagster_home() == place
    finally:
        os.umask(before)
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / "dagster.yaml").is_file()
    dagster_home()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("mode", "warned"), [(0o700, False), (0o755, False), (0o775, True), (0o757, True)])
def test_one_that_others_may_write_to_gets_a_warning(
    place: Path, mode: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    place.mkdir(parents=True)
    place.chmod(mode)
    dagster_home()
    assert place.stat().st_mode & 0o777 == mode
    expected = f"nbia-pipeline: warning: other users may write to {place}, and Dagster runs what they put there: "
    assert capsys.readouterr().err == (f"{expected}chmod 700 it\n" if warned else "")


def test_one_of_another_user_gets_a_warning(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place.mkdir(parents=True, mode=0o700)
    if os.getuid() == 0:
        os.chown(place, 12345, -1)
    else:
        monkeypatch.setattr(home.os, "getuid", lambda: 12345)  # type: ignore[attr-defined]
    dagster_home()
    assert "belongs to another user, whose code Dagster would run: set DAGSTER_HOME" in capsys.readouterr().err


def test_a_name_with_controls_does_not_act_on_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a\x1b[2J"
    odd.write_text("no directory")
    monkeypatch.setenv("DAGSTER_HOME", str(odd))
    with pytest.raises(HomeError, match=r"a\\x1b\[2J"):
        dagster_home()


def test_a_terminal_without_the_letters_of_a_name_gets_escapes(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "Lunge à 中"))
    lake.write_table(COLLECTIONS, pa.Table.from_pylist([{"Collection": "A"}], schema=COLLECTIONS.schema))
    variables = {"PYTHONIOENCODING": "ascii", "NBIA_LAKE": lake.uri}
    done = subprocess.run(
        [sys.executable, "-m", "nbia_pipeline", "prune"],
        env={**environment(tmp_path), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"Lunge \xe0 \u4e2d has no files of withdrawn series" in done.stdout
