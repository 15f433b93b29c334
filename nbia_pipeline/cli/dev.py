"""``nbia-pipeline dev``: the Dagster UI."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nbia_pipeline.cli.home import HomeError, dagster_home, fail

HELP = "start the Dagster UI; what follows is for `dagster dev`, like --port 3001"
WORKSPACE = "workspace.yaml"
WORKSPACE_YAML = """\
load_from:
  - python_module:
      module_name: nbia_pipeline.definitions
      location_name: nbia_pipeline
"""


def dev(words: list[str]) -> int:
    """Become ``dagster dev``; returns only if it cannot be started.

    Args:
        words: the arguments that are for it.
    """
    from nbia_pipeline.settings import Settings, SettingsError

    try:
        Settings.from_env()
        home = dagster_home()
    except (SettingsError, HomeError) as e:
        return fail(str(e))
    workspace = Path(WORKSPACE)
    if not workspace.is_file():
        # Not `-m`: it names the code location after the module, and sensor state hangs on that name.
        workspace = home / WORKSPACE
        workspace.write_text(WORKSPACE_YAML, encoding="utf-8")
    where = ["-w", str(workspace)]
    # Dagster starts its servers by name: they stand beside this Python, which may not be on the PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "dev", *where, *words])  # noqa: S606
