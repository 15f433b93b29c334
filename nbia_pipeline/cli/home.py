"""The directory of Dagster's records, and how a command fails."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from nbia_pipeline.cli.signals import STOP
from nbia_pipeline.errors import OURS, error_text

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

WRONG_CALL = 2


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


def exit_code(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command and return its exit code; one of our errors becomes one sentence."""
    STOP.begin()
    try:
        return run(options)
    except (*OURS, HomeError, KeyboardInterrupt) as e:
        sys.stdout.flush()  # so that it appears below what was printed before
        if STOP.signal is None and not isinstance(e, KeyboardInterrupt):
            return fail(error_text(e))
        return fail(f"interrupted{getattr(options, 'interrupted', '')}", STOP.exit_code)


def fail(sentence: str, code: int = 1) -> int:
    """Print why a command failed, and return its exit code."""
    to_stderr(sentence)
    return code


def to_stderr(sentence: str) -> None:
    """Print what is wrong."""
    print(f"nbia-pipeline: {sentence}", file=sys.stderr)
