"""One of two who commit to a collection at once; a process of its own::

python -m nbia_pipeline_tests.helpers.committer LAKE FIRST
"""

from __future__ import annotations

import sys

from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline_tests.helpers.series import publish, receipt, series_table, wanted

EACH = 25

LISTED = [wanted(n) for n in range(2 * EACH)]


def work(lake: Lake, first: int) -> None:
    """Publish every other series, and settle after each few, as batches of a run in which one failed do."""
    for number in range(first, 2 * EACH, 2):
        publish(lake, receipt(size=number + 1, n=number))
        if number % 3 == 0:
            commit(lake, "A", series_table(LISTED), clear_mark=False)
    commit(lake, "A", series_table(LISTED), clear_mark=False)


if __name__ == "__main__":
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    work(Lake(sys.argv[1]), int(sys.argv[2]))
