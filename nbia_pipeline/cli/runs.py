"""``nbia-pipeline runs``: Dagster's records of old runs, and of runs that a restart ended."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nbia_pipeline.cli.home import dagster_home, fail, say
from nbia_pipeline.cli.options import count


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Keeps Dagster's records in order. Deletes those of old runs, with their events and what their steps printed; "
        "the last run of each asset and of each of its partitions stays, so that the UI shows what is there. For the "
        "services of deploy/: notes which runs a restart of their code server has ended, and records them as failed "
        "when it answers again, so that the daemon can repeat them."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--delete-after", type=count, metavar="DAYS", help="delete the runs that are older than that")
    what.add_argument(
        "--lost",
        nargs=2,
        metavar=("ADDRESS", "FILE"),
        help="before a code server starts: note the runs that it launched and that are in progress. ADDRESS is the "
        "path of its socket, or host:port, as in the workspace",
    )
    what.add_argument(
        "--fail",
        nargs=2,
        metavar=("ADDRESS", "FILE"),
        help="wait until the code server answers, and record the runs of the note as failed",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(options: argparse.Namespace) -> int:
    """Do what is asked; 1 if the person declines."""
    from nbia_pipeline.defs.old_runs import fail_runs, lost_runs, records, wait_for_server  # not before `--help`

    dagster_home()
    with records() as instance:
        if options.lost:
            address, file = options.lost
            Path(file).write_text("".join(f"{run_id}\n" for run_id in lost_runs(instance, address)))
            return 0
        if options.fail:
            address, file = options.fail
            if not wait_for_server(address):
                return fail(
                    f"the code server {address} does not answer: the runs that were lost still count as started"
                )
            failed = fail_runs(instance, Path(file).read_text().split())
            say(f"Recorded as failed: {', '.join(failed)}" if failed else "No run was lost.")
            return 0
        return _delete(options, instance)


def _delete(options: argparse.Namespace, instance: Any) -> int:
    from nbia_pipeline.defs.old_runs import delete_runs, old_runs

    old, kept = old_runs(instance, options.delete_after)
    last = f"; {kept:,} more are the last of an asset or a partition, and stay" if kept else ""
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
