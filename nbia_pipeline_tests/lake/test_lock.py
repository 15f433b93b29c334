"""Locks exclude, wherever the lake is, and the names of processes tell which are dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from nbia_pipeline.lake import Lake, LakeError, Lock
from nbia_pipeline.lake.lock import HOST, is_dead, this_process
from nbia_pipeline_tests.helpers.locks import (
    all_at_once,
)


@pytest.mark.parametrize("place", ["disk", "object store"])
def test_the_locks_of_a_lake_exclude(place: str, tmp_path: Path) -> None:
    uri = str(tmp_path) if place == "disk" else f"memory://locks-{uuid.uuid4().hex}"
    count = {"a": 0}

    def add(number: int) -> None:
        lake = Lake(uri)
        for _ in range(5):
            with lake.lock(Lock.COLLECTION, "a"):
                before = count["a"]
                time.sleep(0.001)
                count["a"] = before + 1

    all_at_once(5, add)
    assert count["a"] == 25


def test_two_locks_do_not_wait_for_each_other(tmp_path: Path) -> None:
    for lake in (Lake(str(tmp_path)), Lake(f"memory://locks-{uuid.uuid4().hex}")):
        with lake.lock(Lock.COLLECTION, "a"), lake.lock(Lock.COLLECTION, "b"), lake.lock(Lock.CHANGES, "a"):
            pass


@pytest.mark.parametrize(
    ("lock", "names", "file"),
    [
        (Lock.COLLECTION, ("A b",), "A%20b.lock"),
        (Lock.SERIES, ("A b", "1.2"), "A%20b.1.2.lock"),
        (Lock.CHANGES, ("A b",), "A%20b~changes.lock"),
        (Lock.VERIFICATIONS, ("A b",), "A%20b~verified.lock"),
    ],
)
def test_the_files_of_locks_have_the_names_that_version_0_1_gave_them(
    lock: Lock, names: tuple[str, ...], file: str, tmp_path: Path
) -> None:
    with Lake(str(tmp_path)).lock(lock, *names):
        assert [p.name for p in (tmp_path / ".staging" / "locks").iterdir()] == [file]


def test_a_lock_of_a_series_needs_the_series(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="empty name"), Lake(str(tmp_path)).lock(Lock.SERIES, "A"):
        pass


# --- names of processes


@pytest.mark.parametrize(
    ("name", "dead"),
    [
        ("{me}", False),
        ("{me}.5f.old", False),
        ("{host}.{pid}", False),  # by a version that knew no start, or on a system without /proc
        ("{host}.{pid}.5f", False),
        ("{host}.999999999-1.5f", True),
        ("{host}.99999999999999999999999999", True),
        ("another.999999999-1.5f", False),
        ("another.999999999.5f", False),
        ("{host}", False),
        ("{host}.journal", False),
        ("", False),
    ],
)
def test_a_process_is_dead_only_if_it_was_on_this_machine(name: str, dead: bool) -> None:
    assert is_dead(name.format(me=this_process(), host=HOST, pid=os.getpid())) == dead


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say when a process started")
def test_a_number_that_was_used_again_is_another_process() -> None:
    assert is_dead(f"{this_process()}1.5f")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say what is a zombie")
def test_a_process_that_was_killed_is_dead_even_if_nobody_asks_how_it_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"{HOST}.{process.pid}"
    assert not is_dead(name)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not is_dead(name) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_dead(name) and process.returncode is None
    process.communicate()
