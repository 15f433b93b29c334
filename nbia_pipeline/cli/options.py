"""How a command is written, and the options that commands share.

A command is a module with a click command of the name ``command``, which ``COMMANDS`` in
:mod:`nbia_pipeline.cli.main` names. Its function takes the values of its options by their names, says what it found
with :func:`~nbia_pipeline.cli.home.say`, hands the same figures to :func:`~nbia_pipeline.cli.home.report` for
``--json``, and returns the exit code, one of :data:`~nbia_pipeline.cli.home.EXIT_CODES`::

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
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nbia_pipeline.cli.home import EXIT_CODES, OUTPUT, exit_code, to_stderr
from nbia_pipeline.text import bytes_of, did_you_mean, first_of, similar_names

if TYPE_CHECKING:
    from nbia_pipeline.lake import Lake
    from nbia_pipeline.mirror.selection import Selection
    from nbia_pipeline.settings import Settings

ENV_FILE = ".env"
COMMON = "Common options"
"""The heading of those that every command has."""

_SELECTED = {
    "modalities": ("Modality", "modality", 20),
    "body_parts": ("BodyPartExamined", "body part", 20),
    "patients": ("PatientID", "PatientID", 5),
    "series": ("SeriesInstanceUID", "SeriesInstanceUID", 2),
}
_LOG = "%(asctime)s %(levelname)s %(name)s: %(message)s"

F = TypeVar("F", bound=Callable[..., Any])


# --- how a command is declared


class Options(SimpleNamespace):
    """The values of a command's options and arguments, by their names.

    ``name_of`` maps a setting to what the person calls it: its option if that was given, else its variable.
    """


class _Warnings(logging.Handler):
    """Prints what our modules warn of, as the command prints."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        to_stderr(f"{record.levelname.lower()}: {record.getMessage()}")


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
        common("-v", "--verbose", is_flag=True, help="log what is done, and each request to the archive, to stderr"),
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
    settings = [p for p in params if isinstance(p, Option) and p.setting and given[str(p.name)] is not None]
    written = {p.name: p.opts[0] for p in settings}
    options = Options(
        **given,
        interrupted=interrupted,
        name_of=lambda argument: written.get(field_of(argument), variable_of(argument)),
    )

    def run(options: Options) -> int:
        with _environment({**_of_file(), **{variable_of(name): str(given[name]) for name in map(str, written)}}):
            return function(options)

    OUTPUT.begin(quiet=options.quiet, json=options.as_json)
    with _logging(verbose=options.verbose):
        return exit_code(run, options)


def _of_file() -> dict[str, str]:
    """Return the variables of the file ``.env`` in the working directory that the process does not have.

    Raises:
        click.UsageError: it cannot be read; the text names the line and shows none of it, since it may be a password.
    """
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    file = Path(ENV_FILE).absolute()
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise click.UsageError(f"cannot read {file} ({why})") from None
    for binding in parse_stream(io.StringIO(text)):
        if binding.error or (binding.key is not None and binding.value is None):
            written = binding.original.string
            line = binding.original.line + written[: len(written) - len(written.lstrip())].count("\n")
            raise click.UsageError(f"line {line} of {file} is not NAME=value: correct it, or put # before it")
    values = dotenv_values(stream=io.StringIO(text))
    return {name: value for name, value in values.items() if value is not None and name not in os.environ}


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
def _logging(*, verbose: bool) -> Iterator[None]:
    """Print what our modules log to stderr, each request to the archive included, if it is asked for."""
    ours = logging.getLogger("nbia_pipeline")
    before, handler = ours.level, logging.StreamHandler(sys.stderr) if verbose else _Warnings(logging.WARNING)
    handler.setFormatter(logging.Formatter(_LOG))
    ours.addHandler(handler)
    if verbose:
        ours.setLevel(logging.DEBUG)
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


def existing_lake(options: Options, settings: Settings) -> Lake:
    """Return the lake of the settings.

    Raises:
        SettingsError: there is none; a command that only reads would take it for one in which all is well.
    """
    from nbia_pipeline.lake import Lake
    from nbia_pipeline.lake.layout import IMAGES, TABLES
    from nbia_pipeline.settings import SettingsError

    lake = Lake(settings.lake, fsync=settings.fsync)
    if not any(lake.names_in(folder) for folder in (TABLES, IMAGES)):
        raise SettingsError(
            f"there is no lake in {lake.uri} ({options.name_of('lake')}): check the address, or create it with "
            f"`nbia-pipeline run`"
        )
    return lake


# --- options of several commands


def collections_argument(help_: str) -> Callable[[F], F]:
    """Add the names or globs of collections, as ``collections``."""
    return argument(
        "collections", nargs=-1, metavar="[COLLECTION]...", help_=help_, shell_complete=_names_of_collections
    )


def _names_of_collections(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the collections of the lake that begin so, for the completion of words; none if it cannot be read."""
    from nbia_pipeline.lake import Lake, LakeError
    from nbia_pipeline.schema.tables import SERIES

    lake = ctx.params.get("lake") or {**os.environ, **_of_file()}.get("NBIA_LAKE") or "./lake"
    with suppress(LakeError, click.UsageError):
        return [name for name in Lake(lake).collections_of(SERIES) if name.startswith(incomplete)]
    return []


def with_selection(function: F) -> F:
    """Add the options that select series, and those that bound a run."""
    which = functools.partial(
        option, group="Which images (repeat an option to allow several values; different options must all match)"
    )
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


def with_rate(function: F) -> F:
    """Add the options that limit what is asked of the archive at a time."""
    much = functools.partial(option, setting=True)
    rate = much("--bwlimit", metavar="RATE", help="most bytes per second from the archive, such as 50MB (NBIA_BWLIMIT)")
    requests = much(
        "--max-in-flight", type=count, metavar="N", help="most requests to the archive at a time (NBIA_MAX_IN_FLIGHT)"
    )
    return rate(requests(function))


def one_of(given: Mapping[str, Any], *, needed: bool = False) -> None:
    """Refuse several of some options that cannot be combined, by their names; none of them too, if one is needed.

    Raises:
        click.UsageError: too many or too few were given.
    """
    named = [name for name, value in given.items() if value]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} cannot be combined")
    if needed and not named:
        raise click.UsageError(f"give one of {', '.join(given)}")


def images_fields(options: Options) -> dict[str, Any]:
    """Return the options that were given, as fields of ``ImagesConfig``."""
    asked: dict[str, Any] = {name: list(getattr(options, name)) for name in _SELECTED}
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

    selection = Selection(*(tuple(getattr(options, name)) for name in _SELECTED))
    if options.cart is None:
        return with_lists(selection, manifest=options.manifest)
    with connect(settings) as client:
        return with_lists(selection, manifest=options.manifest, cart=options.cart, client=client)


def expect_found(options: Options, selection: Selection, lake: Lake, collections: Sequence[str]) -> None:
    """Make sure that what is asked for is there, by the tables of the lake.

    Args:
        options: of :func:`with_selection`.
        selection: what :func:`selection_of` makes of them.
        lake: the lake, which has the series of the collections.
        collections: those whose series may be selected.

    Raises:
        SelectionError: no series has one of the values, is in the list, or matches all options together.
    """
    import pyarrow as pa

    from nbia_pipeline.mirror.selection import Selection, SelectionError
    from nbia_pipeline.schema.tables import SERIES

    if selection == Selection():
        return
    if not collections:
        raise SelectionError("the images of no collection are mirrored, so none can be selected: name collections")
    columns = [column for column, *_ in _SELECTED.values()]
    series = pa.concat_tables([lake.read_table(SERIES, collection, columns=columns) for collection in collections])
    where = first_of(collections, shown=3)
    for name, (column, what, shown) in _SELECTED.items():
        values = sorted({value.strip() for value in series[column].to_pylist() if value})
        for value in getattr(options, name):
            if not Selection(**{name: (value,)}).apply(series).num_rows:
                hint = did_you_mean(similar_names(value, values), f"there are {first_of(values, shown)}")
                raise SelectionError(f"no series of {where} has the {what} {value!r}: {hint}")
    if not selection.apply(series).num_rows:
        raise SelectionError(
            f"no series of {where} matches the selection: the options contradict each other, or the list names other "
            f"series"
        )


def size(text: str) -> int:
    """Read a size such as ``10GB``, ``1.5 TB`` or ``500000``, in powers of ten.

    Raises:
        click.BadParameter: it is not valid, or less than a byte.
    """
    try:
        return bytes_of(text)
    except ValueError as e:
        raise click.BadParameter(str(e)) from None


def count(text: str) -> int:
    """Read a number of one or more.

    Raises:
        click.BadParameter: it is not valid.
    """
    if not str(text).isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is not a number above 0")
    return int(text)
