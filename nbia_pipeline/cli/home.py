"""The directory of Dagster's records, and what a command prints."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import click

from nbia_pipeline.cli.signals import STOP
from nbia_pipeline.text import TextError, shown

HOME = "dagster_home"
_BEFORE_MONITORING = """\
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    default_limit: 4
"""
# Each run is a process of some 250 MB, on one machine. More runs wait in the queue.
_RUNS = """\
  runs:
    max_concurrent_runs: 4
"""
# The daemon of `dagster dev` acts on it. A run may take days: there is no max_runtime_seconds.
_MONITORING = """\
run_monitoring:
  enabled: true
  start_timeout_seconds: 300
  cancel_timeout_seconds: 300
  free_slots_after_run_end_seconds: 60
"""
DAGSTER_YAML = _BEFORE_MONITORING + _RUNS + _MONITORING
_EARLIER = (_BEFORE_MONITORING, _BEFORE_MONITORING + _MONITORING)

EXIT_CODES = (
    ("0", "all is well"),
    ("1", "something failed, or damage or missing data was found"),
    ("2", "wrong usage: an option, a setting or a name is wrong, and nothing began"),
    ("3", "time ran out before everything was done; nothing failed"),
    ("128+n", "stopped by signal n, such as 130 by Ctrl-C"),
)
WRONG_CALL = 2

LINE_SECONDS = 10.0


class HomeError(TextError):
    """The directory for Dagster's records cannot be made."""


def dagster_home() -> Path:
    """Return DAGSTER_HOME, by default ./dagster_home, made and set if need be.

    Without one Dagster would forget runs, partitions and cursors at every stop. It is made for its owner alone; one
    that others could change gets a warning. A ``dagster.yaml`` that an earlier version wrote is replaced by the present
    one, unless somebody changed it.

    Raises:
        HomeError: it cannot be made.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or HOME).absolute()
    try:
        if home.exists() and not home.is_dir():
            raise HomeError(f"DAGSTER_HOME is {str(home)!r}, which is not a directory")
        if not home.exists():
            home.mkdir(mode=0o700, parents=True)
            (home / "dagster.yaml").write_text(DAGSTER_YAML, encoding="utf-8")
        _warn_of_others(home)
    except OSError as e:
        raise HomeError(f"cannot make {home} for Dagster's records ({e.strerror}): set DAGSTER_HOME") from e
    _bring_up_to_date(home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def _bring_up_to_date(file: Path) -> None:
    """Write the present text over that of an earlier version; say what is missing in one that somebody changed."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return  # there is none, so there are no pools either; or Dagster reports it
    if text in _EARLIER:
        with suppress(OSError):
            new = file.with_name(f"{file.name}.{os.getpid()}")
            new.write_text(DAGSTER_YAML, encoding="utf-8")
            new.replace(file)
            return
    if "run_monitoring" not in text:
        to_stderr(
            f"{file} has no run_monitoring: without it, `nbia-pipeline dev` does not free the slots of a run that was "
            "killed. Add `run_monitoring: {enabled: true, free_slots_after_run_end_seconds: 60}`"
        )


def _warn_of_others(home: Path) -> None:
    """Warn if other users could change the directory: Dagster runs what its files name, and unpickles others."""
    status = home.stat()
    if status.st_uid not in (os.getuid(), 0):
        to_stderr(f"warning: {home} belongs to another user, whose code Dagster would run: set DAGSTER_HOME")
    elif status.st_mode & 0o022:
        to_stderr(f"warning: other users may write to {home}, and Dagster runs what they put there: chmod 700 it")


@dataclass
class Output:
    """What is printed, and where.

    Attributes:
        quiet: True if problems only are printed.
        json: True if stdout is for one JSON document, so that what people read goes to stderr.
        document: the figures of that document.
    """

    quiet: bool = False
    json: bool = False
    document: dict[str, Any] = field(default_factory=dict)

    def begin(self, *, quiet: bool, json: bool) -> None:
        """Begin the output of a command."""
        self.quiet, self.json, self.document = quiet, json, {}

    def end(self) -> None:
        """Print the document, if one is asked for."""
        if self.json:
            self.json, text = False, json.dumps(self.document, indent=2, default=_plain)
            _printed_as_it_is(text, sys.stdout)


OUTPUT = Output()
"""Of this process."""


def _plain(value: Any) -> Any:
    """Return what JSON has no form for: times in ISO 8601, sets and tuples as lists, all else as text."""
    if isinstance(value, datetime) and value.tzinfo is None:
        value = value.replace(tzinfo=timezone.utc)  # the tables state no zone
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def exit_code(run: Callable[[Any], int], options: Any) -> int:
    """Run a command and return its exit code; one of our errors, or of click's, becomes one sentence."""
    from nbia_pipeline.errors import OURS, WRONG_USAGE, error_text  # not before the help of all commands

    STOP.begin()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a name
    try:
        code = run(options)
    except click.UsageError as e:
        code = fail(usage_text(e), WRONG_CALL)
    except (*OURS, HomeError, KeyboardInterrupt) as e:
        sys.stdout.flush()  # so that it appears below what was printed before
        if STOP.signal == signal.SIGPIPE:
            return STOP.exit_code
        if STOP.signal is None and not isinstance(e, KeyboardInterrupt):
            code = fail(error_text(e, options.name_of), WRONG_CALL if isinstance(e, (*WRONG_USAGE, HomeError)) else 1)
        else:
            code = fail(f"interrupted{options.interrupted}", STOP.exit_code)
    OUTPUT.end()
    return code


def usage_text(error: click.UsageError) -> str:
    """Return one sentence about words that a command does not take, and where it is read which it takes."""
    ctx = error.ctx or click.get_current_context(silent=True)
    path = ctx.command_path if ctx else "nbia-pipeline"
    return f"{error.format_message().rstrip('.')} (see `{path} --help`)"


def report(figures: Mapping[str, Any]) -> None:
    """Take the figures of a command for ``--json``; they are printed when it ends.

    Bytes are integers, times are in UTC; keys are in snake_case.
    """
    OUTPUT.document.update(figures)


def fail(sentence: str, code: int = 1) -> int:
    """Print why a command failed, and return its exit code; it is ``error`` in the document of ``--json``."""
    to_stderr(sentence)
    report({"error": shown(sentence)})
    return code


def to_stderr(sentence: str) -> None:
    """Print what is wrong, on one line."""
    _printed(f"nbia-pipeline: {sentence}", sys.stderr)


def say(*lines: str) -> None:
    """Print lines at once, unless the person wants to see problems only.

    Of what the archive or a file is called, nothing acts on the terminal.

    Raises:
        KeyboardInterrupt: nobody reads them any more, as behind ``| head``: the command ends in order.
    """
    if OUTPUT.quiet:
        return
    for line in lines:
        if not _printed(line, sys.stderr if OUTPUT.json else sys.stdout):
            STOP.signal = STOP.signal or signal.SIGPIPE
            raise KeyboardInterrupt


def agreed(question: str) -> bool:
    """Return whether the person types yes; False, and the reason is printed, if there is nobody to ask.

    The command says then what it left undone, and ends with exit code 1.
    """
    if not sys.stdin.isatty():
        fail("nothing was deleted, because there is no terminal to confirm on: add --yes")
        return False
    print(f"{question} Type yes: ", end="", file=sys.stderr if OUTPUT.json else sys.stdout, flush=True)
    if sys.stdin.readline().strip().lower() == "yes":
        return True
    fail("nothing was deleted")
    return False


class Live:
    """One line that is rewritten in place on a terminal, and printed every ten seconds where there is none.

    It is called from a thread of its own. On a terminal the line is gone before any other is printed.
    """

    def __init__(self) -> None:
        self._stream = sys.stderr if OUTPUT.json else sys.stdout
        self._terminal = self._stream.isatty()
        self._due = time.monotonic() + LINE_SECONDS

    def __call__(self, line: str) -> None:
        """Show a line; an empty one removes the last."""
        if self._terminal:
            text = shown(line, max(20, shutil.get_terminal_size().columns) - 1)
            with _PRINTING, suppress(OSError):
                if not line and not _in_place:
                    return
                self._stream.write(f"{_ERASE}{text}")
                self._stream.flush()
                _in_place[:] = [self._stream] if line else []
        elif line and time.monotonic() >= self._due:
            self._due = time.monotonic() + LINE_SECONDS
            if not _printed(f"    {line}", self._stream):
                STOP.hang_up(signal.SIGPIPE, None)


@contextmanager
def live_progress() -> Iterator[None]:
    """Show how far this process is with what it fetches in the block, unless problems only are printed."""
    from nbia_pipeline.mirror.progress import listeners  # not before the help of all commands

    if OUTPUT.quiet:
        yield
        return
    live = Live()
    listeners.append(live)
    try:
        yield
    finally:
        listeners.remove(live)
        live("")


_PRINTING = threading.RLock()
_in_place: list[TextIO] = []
_ERASE = "\r\x1b[K"


def _printed(line: str, stream: TextIO) -> bool:
    """Print a line at once; return False if nobody reads it any more, or what follows."""
    return _printed_as_it_is(shown(line), stream)


def _printed_as_it_is(text: str, stream: TextIO) -> bool:
    try:
        with _PRINTING:
            for other in _in_place:
                other.write(_ERASE)
                other.flush()
            _in_place.clear()
            print(text, file=stream, flush=True)
    except OSError as e:
        if e.errno not in (errno.EPIPE, errno.EIO):  # the second is that of a terminal that is gone
            raise
        with Path(os.devnull).open("w", encoding="utf-8") as nobody:
            os.dup2(nobody.fileno(), stream.fileno())
        return False
    return True
