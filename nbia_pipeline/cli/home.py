"""The directory of Dagster's records, and what a command prints."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from nbia_pipeline.errors import OURS, error_text
from nbia_pipeline.text import TextError, shown

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
STOPPED = 130  # what a shell reports for Ctrl-C


class HomeError(TextError):
    """The directory for Dagster's records cannot be made."""


def dagster_home() -> Path:
    """Return DAGSTER_HOME, by default ./dagster_home, made and set if need be.

    Without one Dagster would forget runs, partitions and cursors at every stop. It is made for its owner alone; one
    that others could change gets a warning.

    Raises:
        HomeError: it cannot be made.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or HOME).absolute()
    try:
        if home.exists() and not home.is_dir():
            raise HomeError(f"DAGSTER_HOME is {str(home)!r}, which is not a directory")
        if not home.exists():
            home.mkdir(mode=0o700, parents=True)
            (home / "dagster.yaml").write_text(DAGSTER_YAML, encoding="utf-8")
        _warn_of_others(home)
    except OSError as e:
        raise HomeError(f"cannot make {home} for Dagster's records ({e.strerror}): set DAGSTER_HOME") from e
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def _warn_of_others(home: Path) -> None:
    """Warn if other users could change the directory: Dagster runs what its files name, and unpickles others."""
    status = home.stat()
    if status.st_uid not in (os.getuid(), 0):
        to_stderr(f"warning: {home} belongs to another user, whose code Dagster would run: set DAGSTER_HOME")
    elif status.st_mode & 0o022:
        to_stderr(f"warning: other users may write to {home}, and Dagster runs what they put there: chmod 700 it")


def exit_code(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command and return its exit code; one of our errors becomes one sentence."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a name
    try:
        return run(options)
    except (*OURS, HomeError) as e:
        sys.stdout.flush()  # so that it appears below what was printed before
        return fail(error_text(e))


def fail(sentence: str, code: int = 1) -> int:
    """Print why a command failed, and return its exit code."""
    to_stderr(sentence)
    return code


def to_stderr(sentence: str) -> None:
    """Print what is wrong, on one line."""
    print(shown(f"nbia-pipeline: {sentence}"), file=sys.stderr)


def say(*lines: str) -> None:
    """Print lines at once: of what the archive or a file is called, nothing acts on the terminal."""
    for line in lines:
        print(shown(line), flush=True)
