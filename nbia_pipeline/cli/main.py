"""The ``nbia-pipeline`` command: which module of :mod:`nbia_pipeline.cli` each subcommand is in.

Only the module of the command that is called is imported, so that ``--help`` does not wait for Dagster.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from typing import Any

from nbia_pipeline._version import __version__
from nbia_pipeline.cli.signals import STOP, handled

# Each module has `add_options(parser)` and `run(options)`, which returns the exit code. One of our errors that `run`
# raises is printed as one sentence.
COMMANDS = {
    "dev": ("nbia_pipeline.cli.dev", "start the Dagster UI; further options go to `dagster dev`, such as --port 3001"),
    "run": ("nbia_pipeline.cli.run", "materialize tables and images, and show what was done"),
    "plan": ("nbia_pipeline.cli.plan", "show which images a run would fetch, and whether the disk has room for them"),
    "verify": (
        "nbia_pipeline.cli.verify",
        "read the image files in the lake again and compare them with their receipts",
    ),
    "prune": ("nbia_pipeline.cli.prune", "delete the files of series that the archive withdrew, after showing which"),
    "released": (
        "nbia_pipeline.cli.released",
        "show the patients and studies of a collection that were released since a given day",
    ),
    "runs": ("nbia_pipeline.cli.runs", "delete Dagster's records of old runs, or end those that a restart ended"),
    "archive": ("nbia_pipeline.cli.archive", "serve the embedded archive by itself"),
}
RENAMED = {"news": "released"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    It is 0, 1 if something failed, 2 for wrong usage, or 128 and the number of the signal that stopped it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    serves = words[:1] == ["archive"]  # its server has handlers of its own
    with nullcontext() if serves else handled(process_ends=arguments is None):
        code = _main(words)
    if arguments is None and STOP.signal is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a thread that cannot be woken, as in a look-up of a name, must not delay the end
    return code


def _main(words: list[str]) -> int:
    name = words[0] if words else ""
    if name in RENAMED:
        print(f"nbia-pipeline: `{name}` is now called `{RENAMED[name]}`", file=sys.stderr)
        name = words[0] = RENAMED[name]
    parser = argparse.ArgumentParser(
        prog="nbia-pipeline",
        description="Mirror a medical-image archive (NBIA) into a data lake. The NBIA_* variables name the archive and "
        "the lake; without any, everything comes from the embedded archive and goes to ./lake.",
    )
    parser.add_argument("--version", action="version", version=f"nbia-pipeline {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {each: commands.add_parser(each, help=text) for each, (_, text) in COMMANDS.items()}
    if name not in COMMANDS:
        parser.parse_args(words)  # prints the help, the version or what is wrong, and exits
    if name == "run" and not {"-h", "--help"}.intersection(words):
        _start_embedded()
        _do_without_pandas()
    command = import_module(COMMANDS[name][0])
    command.add_options(parsers[name])
    options, rest = parser.parse_known_args(words)
    options.rest = rest
    if rest and name != "dev":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return int(import_module("nbia_pipeline.cli.home").exit_code(command.run, options))


def _start_embedded() -> None:
    """Begin to start the embedded archive if the command needs it: it takes a second, as the import of Dagster does.

    A run asks for all images soon, so that the archive may make them while the tables are fetched.
    """
    if os.environ.get("NBIA_ARCHIVE", "") not in ("", "embedded"):
        return

    def start() -> None:
        launcher = import_module("nbia_pipeline.embedded.launcher")
        with suppress(launcher.EmbeddedArchiveError, OSError):  # the first step that needs it meets this too
            launcher.ensure_running(render_ahead=True)

    threading.Thread(target=start, name="nbia-embedded", daemon=True).start()


class _Hidden:
    """Finds no pandas."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _do_without_pandas() -> None:
    """Let pyarrow find no pandas: it imports it with its first array, for a third of a second, and nothing uses it."""
    finders: list[Any] = sys.meta_path
    finders.insert(0, _Hidden)
    try:
        import_module("pyarrow").array([0])  # looks for it once, and remembers what it found
    finally:
        finders.remove(_Hidden)
