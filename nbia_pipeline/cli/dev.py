"""``nbia-pipeline dev``: the Dagster UI."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nbia_pipeline.cli.home import dagster_home, to_stderr
from nbia_pipeline.settings import Settings

WORKSPACE = "workspace.yaml"
WORKSPACE_YAML = """\
load_from:
  - python_module:
      module_name: nbia_pipeline.definitions
      location_name: nbia_pipeline
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add no options: all of them are those of ``dagster dev``."""


def run(options: argparse.Namespace) -> int:
    """Become ``dagster dev``; returns only if it cannot be started."""
    from nbia_pipeline.defs.naming import Naming  # here, so that `--help` does not wait for Dagster
    from nbia_pipeline.defs.slots import release_in_home

    Settings.from_env()
    home = dagster_home()
    release_in_home(Naming().pool, to_stderr)
    workspace = Path(WORKSPACE)
    if not workspace.is_file():
        # Not `-m`: it names the code location after the module, and sensor state is kept by that name.
        workspace = home / WORKSPACE
        workspace.write_text(WORKSPACE_YAML, encoding="utf-8")
    where = ["-w", str(workspace)]
    # Dagster starts its servers by name: they are next to this Python, which may not be on the PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "dev", *where, *options.rest])  # noqa: S606
