"""A lake on a disk whose power fails, for some seconds; ``make test-power-cut`` does so for longer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nbia_pipeline_tests.helpers.processes import environment
from nbia_pipeline_tests.power_cut.__main__ import CANNOT

pytestmark = pytest.mark.slow

CUT = [sys.executable, "-m", "nbia_pipeline_tests.power_cut", "--json", "--disks", "1", "--runs", "2"]


def cut_power(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = environment(folder, TMPDIR=str(folder))
    return subprocess.run([*CUT, *words], env=variables, capture_output=True, text=True, timeout=240)


def test_what_a_run_called_finished_is_there_after_a_power_cut_and_the_next_run_ends_well(tmp_path: Path) -> None:
    done = cut_power(tmp_path, "--cuts", "2", "--seconds", "1.5", "--file-systems", "ext4")
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip())
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["findings"] == []
    assert found["total"] == {"cuts": 8, "recovered": 8}
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
