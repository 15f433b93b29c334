"""Processes that meet at a lock of a lake, wherever that is: each gets it in turn, and nobody's death keeps it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nbia_pipeline.lake import Lake, Lock
from nbia_pipeline_tests.helpers.places import Place

pytestmark = [pytest.mark.slow, pytest.mark.stores("seaweedfs", "moto")]

ROOT = Path(__file__).parents[2]
EACH = 8
BEGIN = (
    "import sys, time\nfrom nbia_pipeline.lake import Lake, Lock\nlake = Lake(sys.argv[1])\nprint('ready', flush=True)"
)
COUNT = f"""{BEGIN}
sys.stdin.readline()
for _ in range({EACH}):
    with lake.lock(Lock.COLLECTION, "A"):
        lake.put_bytes("count", b"x" + (lake.read_bytes("count") or b""))
"""
HOLD = f"""{BEGIN}
with lake.lock(Lock.COLLECTION, "A"):
    print("held", flush=True)
    time.sleep(600)
"""


def started(code: str, place: Place) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", code, str(place)]
    run = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stdout.readline() == "ready\n"
    return run


def test_processes_that_meet_at_a_lock_all_get_it_in_turn(place: Place) -> None:
    runs = [started(COUNT, place) for _ in range(2)]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    for run in runs:
        run.communicate(timeout=60)
    assert [run.returncode for run in runs] == [0, 0]
    assert Lake(str(place)).read_bytes("count") == b"x" * 2 * EACH


def test_the_lock_of_a_killed_process_is_had_without_waiting_for_its_lease(place: Place) -> None:
    with started(HOLD, place) as run:
        assert run.stdout is not None and run.stdout.readline() == "held\n"
        run.send_signal(signal.SIGKILL)
    lake = Lake(str(place))
    with lake.lock(Lock.COLLECTION, "A") as expect_held:
        expect_held()
