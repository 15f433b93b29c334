"""Make the tables of headers of a collection once, as a process of its own, for tests that kill it::

    python -m nbia_pipeline_tests.helpers.headers_once LAKE COLLECTION MOST FULL [DIE_AT]

A part has MOST instances, if there can be more parts; FULL is 1 if all files are read again. Just before the DIE_AT-th
change of the disk it kills itself; with DIE_AT of 0 it prints how much memory it took, in MiB, on Linux.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from nbia_pipeline.headers.shards import plan, plan_headers, write_shard
from nbia_pipeline.lake import Lake
from nbia_pipeline_tests.helpers.mirror_once import watch_changes


def main(address: str, collection: str, most: str, full: str, die_at: str = "0") -> None:
    """Make the tables."""
    changes = 0

    def at(event: str, paths: str) -> None:
        nonlocal changes
        changes += 1
        if changes == int(die_at):
            os.kill(os.getpid(), signal.SIGKILL)

    plan.MOST_INSTANCES = int(most)
    watch_changes(at)
    lake = Lake(address)
    for shard in plan_headers(lake, collection, full=full == "1"):
        write_shard(lake, shard)
    # Not by getrusage, whose peak begins as that of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    sys.stdout.write(str(int(status["VmHWM"].split()[0]) >> 10))


if __name__ == "__main__":
    main(*sys.argv[1:])
