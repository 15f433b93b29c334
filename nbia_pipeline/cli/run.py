"""``nbia-pipeline run``: the main job, once, in this terminal."""

from __future__ import annotations

import argparse
import sys

from nbia_pipeline._version import __version__
from nbia_pipeline.cli.home import HomeError, dagster_home, fail
from nbia_pipeline.cli.options import add_selection, images_config

HELP = "materialize tables and images, and show what was done"
STOPPED = 130  # what a shell reports for Ctrl-C


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_selection(parser)


def run(options: argparse.Namespace) -> int:
    """Run the main job; 0 if all went well, 1 if anything failed."""
    # Imported here: `--help` and `archive` need no Dagster.
    import dagster as dg

    from nbia_pipeline.cli.main_job import run_main_job
    from nbia_pipeline.cli.report import summary
    from nbia_pipeline.lake import LakeError
    from nbia_pipeline.mirror.selection import SelectionError, read_manifest
    from nbia_pipeline.settings import Settings, SettingsError

    try:
        settings = Settings.from_env()
        if options.manifest is not None:
            read_manifest(options.manifest)  # a wrong file is told before anything begins
        home = dagster_home()
    except (SettingsError, SelectionError, HomeError) as e:
        return fail(str(e))
    print(f"nbia-pipeline {__version__}: from {settings.archive} ({settings.api}) to {settings.lake}\n", flush=True)
    try:
        with dg.DagsterInstance.get() as instance:
            outcome = run_main_job(
                settings, instance, tell=lambda line: print(line, flush=True), images=images_config(options)
            )
    except (LakeError, SettingsError) as e:
        return fail(str(e))
    except KeyboardInterrupt:
        fail("stopped; what was finished stays, and the next run goes on from there")
        return STOPPED
    print(summary(outcome, home))
    for name, found in outcome.warnings.items():
        print(f"nbia-pipeline: warning: {name}: {found}", file=sys.stderr)
    for problem in outcome.problems:
        print(f"nbia-pipeline: {problem}", file=sys.stderr)
    return 1 if outcome.problems else 0
