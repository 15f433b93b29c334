"""The directory of Dagster's records, and how a command says that it failed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HOME = "dagster_home"
DAGSTER_YAML = """\
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    default_limit: 4
"""


class HomeError(Exception):
    """The directory for Dagster's records cannot be made."""


def dagster_home() -> Path:
    """Return DAGSTER_HOME, by default ./dagster_home, made and set if need be.

    Without one Dagster would forget runs, partitions and cursors at every stop.

    Raises:
        HomeError: it cannot be made.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or HOME).absolute()
    try:
        if home.exists() and not home.is_dir():
            raise HomeError(f"DAGSTER_HOME is {str(home)!r}, which is not a directory")
        if not home.exists():
            home.mkdir(parents=True)
            (home / "dagster.yaml").write_text(DAGSTER_YAML, encoding="utf-8")
    except OSError as e:
        raise HomeError(f"cannot make {home} for Dagster's records ({e.strerror}): set DAGSTER_HOME") from e
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def fail(sentence: str) -> int:
    """Print why a command failed, and return its exit code."""
    print(f"nbia-pipeline: {sentence}", file=sys.stderr)
    return 1
