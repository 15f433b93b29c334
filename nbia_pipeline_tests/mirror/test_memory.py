"""Memory does not grow with the size of a series: 2 GB in one file, and seven others beside it, over eight streams.

The archive makes the files while it sends them, and the engine runs in a process of its own, so that what pytest
holds does not count. The script compares every file on disk with the digest that the archive lists.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"
BAR_MB = 400


def test_a_series_of_2_gb_is_fetched_in_bounded_memory(tmp_path: Path) -> None:
    sizes = ["--giant-mib", "2048", "--giant-files", "1", "--other-mib", "32", "--other-files", "2"]
    words = [sys.executable, str(SCRIPT), *sizes, "--folder", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    said = done.stdout + done.stderr
    assert "8 series, 15 files, 2,382 MB on disk" in said, said
    assert "every file is there with the digest that the archive lists" in said
    peak = re.search(r"peak memory of the engine: (\d+) MB", said, re.MULTILINE)
    # What Python and its packages hold alone is more than 50 MB: less would mean that nothing was measured.
    assert peak and 50 < int(peak[1]) <= BAR_MB, said
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
