"""Temporary directories of a lake in an object store: what a killed run leaves there, the next one removes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.lock import HOST, this_process
from nbia_pipeline_tests.helpers.mirror_once import mirror
from nbia_pipeline_tests.helpers.stores import new_address

WORKSPACES = f"nbia-{HOST}.*"
DEAD = f"nbia-{HOST}.999999999-1."


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary directory of this process, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def sweep() -> int:
    return Lake(new_address()).sweep(keep=set())


def test_a_run_removes_what_a_killed_one_left_and_nothing_of_a_live_one(temporary: Path, demo_archive: str) -> None:
    command = [sys.executable, "-m", "nbia_pipeline_tests.helpers.mirror_once", demo_archive, "memory://a-lake"]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(temporary)}, cwd=Path(__file__).parents[2]) as run:
        while run.poll() is None and not any(n.endswith(".dcm") for *_, names in os.walk(temporary) for n in names):
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    assert list(temporary.glob(WORKSPACES)) == list(temporary.glob(f"nbia-{HOST}.{run.pid}-*")) != []
    lake = Lake(f"memory://lake-{uuid.uuid4().hex}")
    with lake.workspace() as alive, NbiaClient(demo_archive) as client:
        mirror(client, lake, ["TCGA-DEMO"])
        assert list(temporary.glob(WORKSPACES)) == [alive]
    assert list(temporary.glob(WORKSPACES)) == []


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file", "of another user"])
def test_what_this_user_did_not_make_is_left_alone(
    temporary: Path, kind: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, victim = temporary / f"{DEAD}x", tmp_path_factory.mktemp("victim")
    (victim / "file").write_text("precious")
    if kind == "a link":
        entry.symlink_to(victim)
    elif kind == "a file":
        entry.write_text("x")
        entry.chmod(0o700)
    else:
        entry.mkdir(0o755 if kind == "open to others" else 0o700)
    if kind == "of another user":
        me = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: me + 1)
    assert sweep() == 0
    assert entry.exists() and (victim / "file").exists()


def test_only_dead_processes_of_this_machine_are_swept(temporary: Path) -> None:
    kept = [f"nbia-{this_process()}.x", "nbia-another.999999999-1.x", "nbia-archive-999999999-x", "nbia-x"]
    for name in (*kept, f"{DEAD}x", f"{DEAD}y"):
        (temporary / name).mkdir(0o700)
    (temporary / f"{DEAD}x" / "half.dcm").write_text("half")
    (temporary / f"{DEAD}y" / "folder").symlink_to(temporary / "nbia-x")
    assert sweep() == 2
    assert sorted(entry.name for entry in temporary.iterdir()) == sorted(kept)


def test_a_temporary_directory_that_cannot_be_listed_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert sweep() == 0
