"""Memory and time are bounded, whatever is sent: each kind of hostile answer ends as an error, or as one of a series.

``NBIA_TEST_HOSTILE_BYTES`` is how many bytes an answer may have, decoded (``make test-hostile``: 3 GB).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nbia_pipeline_tests.helpers.hostile import MOST_SECONDS, serving_hostile
from nbia_pipeline_tests.helpers.hostile_kinds import kinds

pytestmark = pytest.mark.slow

SIZE = int(os.environ.get("NBIA_TEST_HOSTILE_BYTES", 450_000_000))
MOST_MB = 400


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each kind is met by a process of its own, which is forked")
def test_whatever_is_sent_memory_and_time_are_bounded(tmp_path: Path) -> None:
    known = kinds()
    names = sorted(known)
    with serving_hostile(SIZE) as url:
        words = [sys.executable, "-m", "nbia_pipeline_tests.helpers.hostile", url, str(tmp_path), *names]
        done = subprocess.run(words, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line["kind"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(found) == names
    assert [line for line in found.values() if line["mb"] > MOST_MB or line["seconds"] > MOST_SECONDS] == []
    assert [line for line in found.values() if not re.search(known[line["kind"]].says, line["text"])] == []
    assert min(line["mb"] for line in found.values()) > 30  # else nothing was measured
