"""The ``nbia-pipeline`` command: which module of :mod:`nbia_pipeline.cli` each subcommand is in.

Only the module of the command that is called is imported, so that ``--help`` does not wait for Dagster.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from nbia_pipeline._version import __version__
from nbia_pipeline.cli.home import EXIT_CODES, WRONG_CALL, to_stderr, usage_text
from nbia_pipeline.cli.signals import STOP, handled
from nbia_pipeline.text import did_you_mean, similar_names
from nbia_pipeline.variables import VARIABLES

# Each module has a click command of the name `command`: how to write one is in nbia_pipeline.cli.options.
COMMANDS = {
    "dev": ("nbia_pipeline.cli.dev", "start the Dagster UI; further options go to `dagster dev`, such as --port 3001"),
    "run": ("nbia_pipeline.cli.run", "materialize tables and images, and show what was done"),
    "plan": ("nbia_pipeline.cli.plan", "show which images a run would fetch, and whether the disk has room for them"),
    "status": ("nbia_pipeline.cli.show.status", "show what is mirrored, what is missing and why, and how fresh it is"),
    "ls": ("nbia_pipeline.cli.show.ls", "list the collections, patients, series and files of the lake"),
    "headers": ("nbia_pipeline.cli.show.headers", "show the values of elements in the headers of a collection"),
    "references": (
        "nbia_pipeline.cli.show.references",
        "show what a series refers to, such as the images of a segmentation, and what refers to it",
    ),
    "get": ("nbia_pipeline.cli.get", "download series into a directory, verified, without a lake"),
    "doctor": ("nbia_pipeline.cli.show.doctor", "check settings, archive, account, lake, disk, clock and versions"),
    "verify": (
        "nbia_pipeline.cli.verify",
        "read the image files in the lake again and compare them with their receipts",
    ),
    "prune": ("nbia_pipeline.cli.prune", "delete the files of series that the archive withdrew, after showing which"),
    "released": (
        "nbia_pipeline.cli.released",
        "show the patients and studies of a collection that were released since a given day",
    ),
    "runs": (
        "nbia_pipeline.cli.runs",
        "delete Dagster's records of old runs, or record runs that a restart ended as failed",
    ),
    "archive": ("nbia_pipeline.cli.archive", "serve the embedded archive by itself"),
}
RENAMED = {"news": "released"}
PROGRAM = "nbia-pipeline"


class _Commands(click.Group):
    """The commands; the module of one is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in RENAMED:
            to_stderr(f"`{name}` is now called `{RENAMED[name]}`")
            args = [RENAMED[name], *args[1:]]
        elif name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            hint = did_you_mean(similar_names(name, COMMANDS), f"the commands are {', '.join(COMMANDS)}")
            ctx.fail(f"there is no command {name!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Variables, of the process or in a file .env in the working directory"):
            formatter.write_dl(
                [(n, f"{text} (default: {default})" if default else text) for n, text, default in VARIABLES]
            )
        with formatter.section("Exit codes of all commands"):
            formatter.write_dl(EXIT_CODES)
        with formatter.section("Shell completion"):
            formatter.write_text(
                'Put eval "$(_NBIA_PIPELINE_COMPLETE=bash_source nbia-pipeline)" into ~/.bashrc; zsh and fish have '
                "zsh_source and fish_source."
            )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(n, help=text) for n, (_, text) in COMMANDS.items() if n.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=_Commands, name=PROGRAM, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def commands() -> None:
    """Mirror a medical-image archive (NBIA) into a data lake.

    The NBIA_* variables name the archive and the lake; without any, everything comes from the embedded archive and goes
    to ./lake.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: see :data:`~nbia_pipeline.cli.home.EXIT_CODES`."""
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
    try:
        return int(commands.main(words, PROGRAM, standalone_mode=False) or 0)
    except click.UsageError as e:
        if words:
            to_stderr(usage_text(e))
        else:
            e.show()  # the help
        return WRONG_CALL
    except click.Abort:
        return STOP.exit_code
