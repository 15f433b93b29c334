"""``nbia-pipeline run``: the main job from start to end, in one process: catalog, tables, images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from nbia_pipeline._version import __version__
from nbia_pipeline.cli.home import dagster_home, fail, say, to_stderr
from nbia_pipeline.cli.options import add_selection, images_fields
from nbia_pipeline.cli.signals import STOP, kept_from_children
from nbia_pipeline.cli.summary import summary
from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs import main_job
from nbia_pipeline.defs.main_job import Outcome
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.defs.records import kept_open
from nbia_pipeline.defs.slots import watched
from nbia_pipeline.mirror.selection import read_manifest
from nbia_pipeline.settings import Settings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_selection(parser)
    parser.add_argument(
        "--allow-lost-columns",
        action="store_true",
        help="take answers in which a column is empty that was full before: the archive no longer sends it",
    )


def run(options: argparse.Namespace) -> int:
    """Run the main job; 0 if all went well, 1 if anything failed."""
    settings = Settings.from_env()
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
    say(*summary(outcome, home).split("\n"))
    for name, found in outcome.warnings.items():
        to_stderr(f"warning: {name}: {found}")
    for problem in outcome.problems:
        to_stderr(problem)
    if outcome.interrupted:
        return fail("interrupted; what was finished is kept, and the next run continues from there", STOP.exit_code)
    return 1 if outcome.problems else 0


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
