"""``nbia-pipeline dev``: the Dagster UI."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from nbia_pipeline.cli.home import dagster_home, to_stderr
from nbia_pipeline.cli.options import Options, argument, as_command, settings_of

WORKSPACE = "workspace.yaml"
WORKSPACE_YAML = """\
load_from:
  - python_module:
      module_name: nbia_pipeline.definitions
      location_name: nbia_pipeline
"""


@as_command(context_settings={"ignore_unknown_options": True})
@argument("rest", nargs=-1, type=click.UNPROCESSED, metavar="[OPTION]...", help_="options of `dagster dev`")
def command(options: Options) -> int:
    """Start the Dagster UI, which becomes this process.

    Further options go to `dagster dev`, such as --port 3001 or --host 0.0.0.0. What it prints are its own logs: -q and
    -v show less and more of them, and --json makes each line a JSON document.
    """
    from nbia_pipeline.defs.naming import Naming  # here, so that `--help` does not wait for Dagster
    from nbia_pipeline.defs.slots import release_in_home

    settings_of(options)
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
    logs = ["--verbose"] * bool(options.verbose) + ["--log-format", "json"] * options.as_json
    logs += ["--log-level", "warning"] * options.quiet
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "dev", *where, *logs, *options.rest])  # noqa: S606
