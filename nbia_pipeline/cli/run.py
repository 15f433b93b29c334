"""``nbia-pipeline run``: the main job from start to end, in one process: catalog, tables, images."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nbia_pipeline._version import __version__
from nbia_pipeline.cli.home import dagster_home, fail, report, say, to_stderr
from nbia_pipeline.cli.options import Options, as_command, images_fields, option, settings_of, with_selection
from nbia_pipeline.cli.signals import STOP, kept_from_children

if TYPE_CHECKING:
    import dagster as dg

    from nbia_pipeline.defs.main_job import Outcome
    from nbia_pipeline.settings import Settings


@as_command()
@with_selection
@option(
    "--allow-lost-columns",
    is_flag=True,
    help="take answers in which a column is empty that was full before: the archive no longer sends it",
)
def command(options: Options) -> int:
    """Materialize tables and images, and show what was done.

    A collection that fails does not stop the others. What is in the lake already is not fetched again, so that a run
    which was stopped continues with the next one.
    """
    _start_embedded()
    _do_without_pandas()
    import dagster as dg

    from nbia_pipeline.cli.summary import summary
    from nbia_pipeline.defs.naming import Naming
    from nbia_pipeline.defs.records import kept_open
    from nbia_pipeline.defs.slots import watched
    from nbia_pipeline.mirror.selection import read_manifest

    settings = settings_of(options)
    if options.manifest is not None:
        read_manifest(options.manifest)  # a wrong file is reported before anything begins
    home = dagster_home()
    say(f"nbia-pipeline {__version__}: from {settings.archive} ({settings.api}) to {settings.lake}", "")
    with (
        kept_from_children(),
        kept_open(),
        dg.DagsterInstance.get() as instance,
        watched(instance, Naming().pool, to_stderr, _terminated),
    ):
        outcome = run_main_job(
            settings,
            instance,
            say,
            images=images_fields(options),
            allow_lost_columns=options.allow_lost_columns,
        )
    report(_figures(settings, outcome))
    say(*summary(outcome, home).split("\n"))
    for name, found in outcome.warnings.items():
        to_stderr(f"warning: {name}: {found}")
    for problem in outcome.problems:
        to_stderr(problem)
    if outcome.interrupted:
        return fail("interrupted; what was finished is kept, and the next run continues from there", STOP.exit_code)
    return 1 if outcome.problems else 0


def _figures(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    return {
        "archive": settings.archive,
        "lake": settings.lake,
        "collections": outcome.collections,
        "fetched": outcome.fetched,
        "checks": outcome.checks,
        "warnings": outcome.warnings,
        "problems": outcome.problems,
        "seconds": outcome.seconds,
        "interrupted": outcome.interrupted,
    }


def _terminated(run_id: str) -> None:
    """Stop, because somebody canceled a run of this process."""
    if STOP.signal is None:
        to_stderr(f"run {run_id} was terminated in the UI")
        STOP.request()


def run_main_job(
    settings: Settings,
    instance: dg.DagsterInstance,
    on_progress: Callable[[str], None] = lambda line: None,
    images: Mapping[str, Any] | None = None,
    *,
    allow_lost_columns: bool = False,
) -> Outcome:
    """Run the main job of the settings in this process; see :func:`nbia_pipeline.defs.main_job.run_main_job`."""
    from nbia_pipeline.definitions import build_definitions
    from nbia_pipeline.defs import main_job
    from nbia_pipeline.defs.naming import Naming

    naming = Naming()
    return main_job.run_main_job(
        settings,
        naming,
        build_definitions(settings, naming).resolve_job_def,
        instance,
        on_progress,
        images,
        allow_lost_columns=allow_lost_columns,
        stop=STOP,
    )


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
