"""``nbia-pipeline dev``: the Dagster UI."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import click

from nbia_pipeline.cli.home import dagster_home, fail, to_stderr
from nbia_pipeline.cli.options import Options, argument, as_command, option, settings_of

PORT_HELP = "port of the UI (default: 3000, or another if it is taken)"
WORKSPACE = "workspace.yaml"
WORKSPACE_YAML = """\
load_from:
  - python_module:
      module_name: nbia_pipeline.definitions
      location_name: nbia_pipeline
"""


@as_command(context_settings={"ignore_unknown_options": True})
@option("-p", "--port", type=click.IntRange(1, 65535), metavar="PORT", help=PORT_HELP)
@option("--host", metavar="HOST", help="address of the UI (default: 127.0.0.1)")
@argument("rest", nargs=-1, type=click.UNPROCESSED, metavar="[OPTION]...", help_="further options of `dagster dev`")
def command(options: Options) -> int:
    """Start the Dagster UI, which becomes this process.

    What it prints are its own logs: -q and -v show less and more of them, and --json makes each line a JSON document.
    """
    from nbia_pipeline.defs.naming import Naming  # here, so that `--help` does not wait for Dagster
    from nbia_pipeline.defs.slots import release_in_home

    settings_of(options)
    if options.port is not None and (why := _cannot_listen(options.host or "127.0.0.1", options.port)):
        return fail(f"cannot listen on port {options.port} ({why}): use another --port")
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
    words = ["--verbose"] * options.verbose + ["--log-format", "json"] * options.as_json
    words += ["--log-level", "warning"] * options.quiet
    for name in ("port", "host"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name}", str(value)]
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "dev", *where, *words, *options.rest])  # noqa: S606


def _cannot_listen(host: str, port: int) -> str | None:
    """Return why a port is not available, in the words of the system; Dagster would print a traceback."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as e:
        return os.strerror(e.errno) if e.errno else str(e)
    return None
