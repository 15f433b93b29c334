"""How a command is written, and the options that commands share.

A command is a module with a click command of the name ``command``, which ``COMMANDS`` in
:mod:`nbia_pipeline.cli.main` names. Its function takes the values of its options by their names, says what it found
with :func:`~nbia_pipeline.cli.home.say`, hands the same figures to :func:`~nbia_pipeline.cli.home.report` for
``--json``, and returns the exit code, one of :data:`EXIT_CODES`::

    @as_command()
    @collections_argument("names or globs (default: all)")
    @option("--days", type=count, metavar="N", default=30, show_default=True, help="of the last N days")
    def command(options: Options) -> int:
        \"\"\"Show what is in the lake.\"\"\"
        settings = settings_of(options)  # the variables, and --archive and --lake
        say(f"{settings.lake}: 3 series")
        report({"lake": settings.lake, "series": 3})
        return 0

:func:`as_command` adds the options that every command has and the exit codes to its help, and turns an error of ours
that the function raises into one sentence: of wrong usage (SettingsError, SelectionError) with exit code 2, of any
other with 1. A name that is not there is ``return fail(sentence, WRONG_CALL)``, and options that contradict each other
are ``raise click.UsageError(sentence)``. Imports that take long, above all that of Dagster, belong into the function.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nbia_pipeline.cli.home import OUTPUT, exit_code

if TYPE_CHECKING:
    from nbia_pipeline.mirror.selection import Selection
    from nbia_pipeline.settings import Settings

EXIT_CODES = (
    ("0", "all is well"),
    ("1", "something failed, or damage or missing data was found"),
    ("2", "wrong usage: an option, a setting or a name is wrong, and nothing began"),
    ("3", "ended in order before everything was done, because time ran out"),
    ("128+n", "stopped by signal n, such as 130 by Ctrl-C"),
)

COMMON = "Common options"
"""The heading of those that every command has."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?B?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_LISTS = ("modalities", "body_parts", "patients", "series")
_LOG = "%(asctime)s %(levelname)s %(name)s: %(message)s"

F = TypeVar("F", bound=Callable[..., Any])


# --- how a command is declared


class Options(SimpleNamespace):
    """The values of a command's options and arguments, by their names.

    ``name_of`` maps a setting to what the person calls it: its option if that was given, else its variable.
    """


class Option(click.Option):
    """An option with the heading under which the help lists it; `setting` if its name is that of a setting."""

    def __init__(self, *declared: Any, group: str = "Options", setting: bool = False, **how: Any) -> None:
        super().__init__(*declared, **how)
        self.group, self.setting = group, setting


class Argument(click.Argument):
    """An argument with a help text."""

    group = "Arguments"

    def __init__(self, *declared: Any, help_: str, **how: Any) -> None:
        super().__init__(*declared, **how)
        self.help = help_

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return the name and the meaning."""
        return self.make_metavar(ctx), str(self.help)


option = functools.partial(click.option, cls=Option)
argument = functools.partial(click.argument, cls=Argument)


class Command(click.Command):
    """A command whose help lists arguments and options under their headings, and the exit codes."""

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write none: they are under a heading of their own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each heading with its options."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes."""
        with formatter.section("Exit codes"):
            formatter.write_dl(EXIT_CODES)


def as_command(interrupted: str = "", **how: Any) -> Callable[[Callable[[Options], int]], Command]:
    """Make a command of a function of its options, which returns the exit code.

    Args:
        interrupted: what follows "interrupted" if a signal stops it.
        how: further arguments of click.Command.
    """

    def decorate(function: Callable[[Options], int]) -> Command:
        @functools.wraps(function)
        def call(**given: Any) -> int:
            return _call(function, interrupted, given)

        name = function.__module__.rpartition(".")[2]
        made: Command = click.command(name, cls=Command, **how)(_common(call))
        made.context_settings.setdefault("help_option_names", ["-h", "--help"])
        return made

    return decorate


def _common(function: F) -> F:
    """Add the options that every command has."""
    common = functools.partial(option, group=COMMON)
    declared = (
        common(
            "--archive",
            metavar="URL|NAME",
            setting=True,
            help="the archive: a base URL, or embedded, tcia, nlst (default: NBIA_ARCHIVE, or embedded)",
        ),
        common(
            "--lake",
            metavar="PATH|URI",
            setting=True,
            help="the lake: a directory or a URI (default: NBIA_LAKE, or ./lake)",
        ),
        common("-q", "--quiet", is_flag=True, help="print problems only"),
        common("-v", "--verbose", count=True, help="also log what is done; twice: every request"),
        common("--json", "as_json", is_flag=True, help="print one JSON document at the end, and messages to stderr"),
    )
    before = getattr(function, "__click_params__", [])
    function.__dict__["__click_params__"] = []
    for add in reversed(declared):
        add(function)
    function.__dict__["__click_params__"] += before  # click turns them round
    return function


def _call(function: Callable[[Options], int], interrupted: str, given: dict[str, Any]) -> int:
    from nbia_pipeline.settings import field_of, variable_of  # not before the help of all commands

    params = click.get_current_context().command.params
    written = {
        p.name: p.opts[0] for p in params if isinstance(p, Option) and p.setting and given[str(p.name)] is not None
    }
    options = Options(
        **given,
        interrupted=interrupted,
        name_of=lambda argument: written.get(field_of(argument), variable_of(argument)),
    )
    OUTPUT.begin(quiet=options.quiet, json=options.as_json)
    with _logging(options.verbose), _environment({variable_of(str(name)): str(given[str(name)]) for name in written}):
        return exit_code(function, options)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the process, so that its children have them too."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _logging(verbose: int) -> Iterator[None]:
    """Print what our modules log to stderr, if it is asked for."""
    ours = logging.getLogger("nbia_pipeline")
    if not verbose:
        yield
        return
    before, handler = ours.level, logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_LOG))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO if verbose == 1 else logging.DEBUG)
    try:
        yield
    finally:
        ours.setLevel(before)
        ours.removeHandler(handler)


def settings_of(options: Options) -> Settings:
    """Return the settings: the variables, and in their place the options that are settings.

    Raises:
        SettingsError: a value is wrong; it is named as the person wrote it.
    """
    from nbia_pipeline.settings import Settings

    return Settings.from_env(name_of=options.name_of)


# --- options of several commands


def collections_argument(help_: str) -> Callable[[F], F]:
    """Add the names or globs of collections, as ``collections``."""
    return argument("collections", nargs=-1, metavar="[COLLECTION]...", help_=help_)


def with_selection(function: F) -> F:
    """Add the options that select series, and those that bound a run."""
    which = functools.partial(option, group="Which images (repeat an option for any of several; all must match)")
    much = functools.partial(option, group="How much (of all collections together; the rest is left for a later run)")
    declared = (
        which("--modality", "modalities", metavar="M", multiple=True, help="of this modality, such as CT"),
        which(
            "--body-part",
            "body_parts",
            metavar="B",
            multiple=True,
            help="of this body part, such as CHEST",
        ),
        which("--patient", "patients", metavar="P", multiple=True, help="of this PatientID"),
        which("--series", "series", metavar="UID", multiple=True, help="of this SeriesInstanceUID"),
        which(
            "--manifest",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="in a manifest (.tcia), table or list",
        ),
        which("--cart", metavar="NAME", help="in a shared cart (v2 of the API)"),
        much("--max-bytes", type=size, metavar="SIZE", help="fetch at most this much, such as 10GB"),
        much("--max-series", type=count, metavar="N", help="fetch at most this many series"),
    )
    for add in reversed(declared):
        function = add(function)
    return function


def one_of(given: Mapping[str, Any], *, needed: bool = False) -> None:
    """Refuse several of some options that exclude each other, by their names; none of them too, if one is needed.

    Raises:
        click.UsageError: too many or too few were given.
    """
    named = [name for name, value in given.items() if value]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} exclude each other")
    if needed and not named:
        raise click.UsageError(f"give one of {', '.join(given)}")


def images_fields(options: Options) -> dict[str, Any]:
    """Return the options that were given, as fields of ``ImagesConfig``."""
    asked: dict[str, Any] = {name: list(getattr(options, name)) for name in _LISTS}
    asked |= {name: getattr(options, name) for name in ("cart", "max_bytes", "max_series")}
    # Dagster's step may have another working directory.
    asked["manifest"] = None if options.manifest is None else str(options.manifest.absolute())
    return {name: value for name, value in asked.items() if value not in (None, [])}


def selection_of(options: Options, settings: Settings) -> Selection:
    """Return which series are asked for; a cart is looked up in the archive.

    Raises:
        SelectionError: the manifest or the cart names no series.
        ArchiveError: the archive cannot be asked for the cart.
    """
    from nbia_pipeline.connect import connect
    from nbia_pipeline.mirror.selection import Selection, with_lists

    selection = Selection(*(tuple(getattr(options, name)) for name in _LISTS))
    if options.cart is None:
        return with_lists(selection, manifest=options.manifest)
    with connect(settings) as client:
        return with_lists(selection, manifest=options.manifest, cart=options.cart, client=client)


def size(text: str) -> int:
    """Read a size such as ``10GB``, ``1.5 TB`` or ``500000``, in powers of ten.

    Raises:
        click.BadParameter: it is not valid, or less than a byte.
    """
    found = _SIZE.fullmatch(text.strip())
    value = int(float(found[1]) * _UNITS[found[2].lower().removesuffix("b")]) if found else 0
    if value < 1:
        raise click.BadParameter(f"{text!r} is not a size: use a value such as 10GB, 500MB or 1.5TB")
    return value


def count(text: str) -> int:
    """Read a number of one or more.

    Raises:
        click.BadParameter: it is not valid.
    """
    if not str(text).isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is not a number above 0")
    return int(text)
