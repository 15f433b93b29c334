"""``nbia-pipeline runs``: Dagster's records of old runs, and of runs that a restart ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nbia_pipeline.cli.home import agreed, dagster_home, fail, report, say
from nbia_pipeline.cli.options import Options, as_command, count, one_of, option


@as_command()
@option("--delete-after", type=count, metavar="DAYS", help="delete the runs that are older than DAYS")
@option(
    "--lost",
    nargs=2,
    metavar="ADDRESS FILE",
    help="before a code server starts: note the runs that it launched and that are in progress. ADDRESS is the path of "
    "its socket, or host:port, as in the workspace",
)
@option(
    "--fail",
    nargs=2,
    metavar="ADDRESS FILE",
    help="wait until the code server answers, and record the noted runs as failed",
)
@option("--yes", is_flag=True, help="do not ask")
def command(options: Options) -> int:
    """Delete Dagster's records of old runs, or end those that a restart ended.

    Records are deleted with their events and what their steps printed; the last run of each asset and of each of its
    partitions stays, so that the UI shows what is there. For the services of deploy/: notes which runs a restart of
    their code server has ended, and records them as failed when it answers again, so that the daemon can repeat them.
    """
    one_of({"--delete-after": options.delete_after, "--lost": options.lost, "--fail": options.fail}, needed=True)
    from nbia_pipeline.defs.old_runs import fail_runs, lost_runs, records, wait_for_server

    dagster_home()
    with records() as instance:
        if options.lost:
            address, file = options.lost
            lost = lost_runs(instance, address)
            Path(file).write_text("".join(f"{run_id}\n" for run_id in lost))
            report({"lost": list(lost)})
            return 0
        if options.fail:
            address, file = options.fail
            if not wait_for_server(address):
                return fail(
                    f"the code server {address} does not answer: the runs that were lost still count as started"
                )
            failed = fail_runs(instance, Path(file).read_text().split())
            report({"failed": failed})
            say(f"Recorded as failed: {', '.join(failed)}" if failed else "No run was lost.")
            return 0
        return _delete(options, instance)


def _delete(options: Options, instance: Any) -> int:
    from nbia_pipeline.defs.old_runs import delete_runs, old_runs

    old, kept = old_runs(instance, options.delete_after)
    report({"older": len(old), "kept": kept, "deleted": 0})
    last = f"; {kept:,} more stay, because each is the last run of an asset or a partition" if kept else ""
    say(f"Older than {options.delete_after} days: {len(old):,} runs{last}.")
    if not old:
        return 0
    if not options.yes and not agreed("Delete their records for good?"):
        return 1
    delete_runs(instance, old)
    report({"deleted": len(old)})
    say(f"Deleted {len(old):,} runs.")
    return 0
