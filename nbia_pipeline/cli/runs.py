"""``nbia-pipeline runs``: Dagster's records of old runs, and of runs that a restart ended."""

from __future__ import annotations

import argparse
import sys

from nbia_pipeline.cli.home import dagster_home, fail, say
from nbia_pipeline.cli.options import count


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Keeps Dagster's records in order. Deletes those of old runs, with their events and what their steps printed; "
        "the last run of each asset and of each of its partitions stays, so that the UI shows what is there. Or "
        "records as failed what a code server had launched that is about to start again."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--delete-after", type=count, metavar="DAYS", help="delete the runs that are older than that")
    what.add_argument(
        "--lost",
        metavar="ADDRESS",
        help="record the runs in progress of this code server as failed: the path of its socket, or host:port. Only "
        "before it starts",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(options: argparse.Namespace) -> int:
    """Do what is asked; 1 if the person declines."""
    from nbia_pipeline.defs.old_runs import (  # here, so that `--help` does not wait for Dagster
        delete_runs,
        fail_lost_runs,
        old_runs,
        records,
    )

    dagster_home()
    with records() as instance:
        if options.lost:
            lost = fail_lost_runs(instance, options.lost)
            say(f"Recorded as failed: {', '.join(lost)}" if lost else "No run was in progress.")
            return 0
        old, kept = old_runs(instance, options.delete_after)
        last = f"; {kept:,} more are the last of a partition, and stay" if kept else ""
        say(f"Older than {options.delete_after} days: {len(old):,} runs{last}.")
        if not old:
            return 0
        if not options.yes and not sys.stdin.isatty():
            return fail("nothing was deleted: there is no terminal to ask on, so add --yes")
        if not options.yes and input("Delete their records for good? Type yes: ").strip().lower() != "yes":
            return fail("nothing was deleted")
        delete_runs(instance, old)
        say(f"Deleted {len(old):,} runs.")
        return 0
