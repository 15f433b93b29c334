"""The ``nbia-pipeline`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nbia_pipeline._version import __version__
from nbia_pipeline.embedded.options import add_archive_options

HOME = "dagster_home"
STOPPED = 130  # what a shell reports for Ctrl-C
WORKSPACE = "workspace.yaml"
WORKSPACE_YAML = """\
load_from:
  - python_module:
      module_name: nbia_pipeline.definitions
      location_name: nbia_pipeline
"""
DAGSTER_YAML = """\
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    default_limit: 4
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 1 where something failed, or 2 for a wrong call."""
    parser = argparse.ArgumentParser(
        prog="nbia-pipeline",
        description="Mirror a medical-image archive (NBIA) into a data lake. The NBIA_* variables say from where and "
        "to where; without any, everything comes from the embedded archive and goes to ./lake.",
    )
    parser.add_argument("--version", action="version", version=f"nbia-pipeline {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="materialise tables and images, and show what was done")
    commands.add_parser("dev", help="start the Dagster UI; what follows is for `dagster dev`, like --port 3001")
    archive = commands.add_parser("archive", help="serve the embedded archive by itself")
    archive.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    archive.add_argument("--port", type=int, default=8042, help="port to listen on, 0 for any (default: %(default)s)")
    archive.add_argument("--catalog", choices=["demo", "idc"], default="demo", help="what to serve")
    archive.add_argument("--scale", type=int, default=1, help="size of the demo images: 1 is small, 100 is gigabytes")
    add_archive_options(archive)
    options, rest = parser.parse_known_args(arguments)
    if options.command == "dev":
        return _dev(rest)
    if rest:
        parser.error(f"unknown words: {' '.join(rest)}")
    return _run() if options.command == "run" else _archive(options)


def _run() -> int:
    # Imported here: `--help` and `archive` need no Dagster.
    import dagster as dg

    from nbia_pipeline.lake import LakeError
    from nbia_pipeline.mirror import run_main_job
    from nbia_pipeline.report import summary
    from nbia_pipeline.settings import Settings, SettingsError

    try:
        settings = Settings.from_env()
        home = dagster_home()
    except (SettingsError, HomeError) as e:
        return _fail(str(e))
    print(f"nbia-pipeline {__version__}: from {settings.archive} ({settings.api}) to {settings.lake}\n", flush=True)
    try:
        with dg.DagsterInstance.get() as instance:
            outcome = run_main_job(settings, instance, tell=lambda line: print(line, flush=True))
    except LakeError as e:
        return _fail(str(e))
    except KeyboardInterrupt:
        _fail("stopped; what was finished stays, and the next run goes on from there")
        return STOPPED
    print(summary(outcome, home))
    for problem in outcome.problems:
        print(f"nbia-pipeline: {problem}", file=sys.stderr)
    return 1 if outcome.problems else 0


def _dev(words: list[str]) -> int:
    from nbia_pipeline.settings import Settings, SettingsError

    try:
        Settings.from_env()
        home = dagster_home()
    except (SettingsError, HomeError) as e:
        return _fail(str(e))
    workspace = Path(WORKSPACE)
    if not workspace.is_file():
        # Not `-m`: it names the code location after the module, and sensor state hangs on that name.
        workspace = home / WORKSPACE
        workspace.write_text(WORKSPACE_YAML, encoding="utf-8")
    where = ["-w", str(workspace)]
    # Dagster starts its servers by name: they stand beside this Python, which may not be on the PATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "dev", *where, *words])  # noqa: S606


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


def _archive(options: argparse.Namespace) -> int:
    from nbia_pipeline.embedded.__main__ import main as serve

    try:
        serve(_words(options))
    except OSError as e:
        other = "--port" if options.control_port is None else "--port or --control-port"
        return _fail(f"cannot listen on {options.host}:{options.port} ({e.strerror}): take another {other}")
    except ImportError as e:
        return _fail(str(e))
    return 0


def _words(options: argparse.Namespace) -> list[str]:
    """Return the options of `archive` as the words of a command line."""
    words: list[str] = []
    for name, value in vars(options).items():
        switch = "--" + name.replace("_", "-")
        if name == "command" or value is None or value is False:
            continue
        words += [switch] if value is True else [switch, str(value)]
    return words


def _fail(sentence: str) -> int:
    print(f"nbia-pipeline: {sentence}", file=sys.stderr)
    return 1
