"""The ``nbia-pipeline`` command: its words, and which module of :mod:`nbia_pipeline.cli` takes them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Protocol

from nbia_pipeline._version import __version__
from nbia_pipeline.cli import archive, dev, plan, prune, released, run, verify


class Command(Protocol):
    """What a module of a command holds."""

    HELP: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the command."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it, and return the exit code."""
        ...


COMMANDS: dict[str, Command] = {
    "run": run,
    "plan": plan,
    "verify": verify,
    "prune": prune,
    "news": released,
    "archive": archive,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 1 where something failed, or 2 for a wrong call."""
    parser = argparse.ArgumentParser(
        prog="nbia-pipeline",
        description="Mirror a medical-image archive (NBIA) into a data lake. The NBIA_* variables say from where and "
        "to where; without any, everything comes from the embedded archive and goes to ./lake.",
    )
    parser.add_argument("--version", action="version", version=f"nbia-pipeline {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("dev", help=dev.HELP)
    for name, command in COMMANDS.items():
        command.add_options(commands.add_parser(name, help=command.HELP))
    options, rest = parser.parse_known_args(arguments)
    if options.command == "dev":
        return dev.dev(rest)
    if rest:
        parser.error(f"unknown words: {' '.join(rest)}")
    return COMMANDS[options.command].run(options)
