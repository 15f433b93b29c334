"""Cut the power of disks that lakes are on: what a run had called finished must be there, and the next run ends well.

A lake is mirrored in several runs onto a disk that logs its writes (:mod:`~nbia_pipeline_tests.power_cut.logged_disk`);
between them the archive adds, revises, moves and hides series. From the log, the disk is made again as it was at
moments during a run and after its end. Each of these is mounted, which lets the file system recover, and read without
the engine. Then a run on it must make it the lake that nothing happened to. ``make test-power-cut`` does so for a
while, and prints a table; ``test_power_cut.py`` does so for some seconds.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

from nbia_pipeline.embedded.demo.catalog import demo_catalog
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import flush
from nbia_pipeline_tests.helpers.archives import serving
from nbia_pipeline_tests.power_cut.disks import Missing, available, enter, new_folder
from nbia_pipeline_tests.power_cut.lakes import mirror_all
from nbia_pipeline_tests.power_cut.logged_disk import MODELS, die_with_parent
from nbia_pipeline_tests.power_cut.rounds import COMMAND, ENGINE, FILES, Cuts, Report

CANNOT = 77
"""Exit code where the system lacks what this needs; the reason is in stderr."""


def main() -> int:
    """Cut the power again and again; return 0 if nothing was lost and all recovered."""
    die_with_parent()
    if sys.argv[1:2] in ([ENGINE], [FILES]):
        if sys.argv[1] == FILES:
            flush._FLUSHED_AS_A_WHOLE = set()
        fsync = os.environ["NBIA_FSYNC"] != "off"
        for collection in mirror_all(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), fsync=fsync):
            print(collection, flush=True)
        return 0
    options = _options()
    try:
        enter()
    except Missing as e:
        print(e, file=sys.stderr)
        return CANNOT
    report = Report()
    app = create_app(demo_catalog())
    with serving(app) as url:
        cuts = Cuts(url, app.state.archive, options, random.Random(options.seed), report)
        for number in range(options.disks):
            run = options.run[number % len(options.run)]
            for kind in options.file_systems or available():
                with new_folder() as folder:
                    cuts.disk(number, kind, run, folder)
                print(f"disk {number + 1}, {kind}, {run}: {dict(report.total())}", file=sys.stderr, flush=True)
    print(report.as_json() if options.json else report.table(findings=not options.quiet))
    # What is not flushed must be lost at times: else nothing could be.
    return int(report.is_clean() != (options.fsync == "on"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Mirror onto disks whose power fails.")
    split = "comma-separated (default: %(default)s)"
    parser.add_argument("--disks", type=int, default=4, help="disks of each file system (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs on each disk (default: %(default)s)")
    parser.add_argument("--cuts", type=int, default=6, help="cuts during each run, and after (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="how long after a run to cut (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--file-systems", type=_split, help="comma-separated (default: those that this machine has)")
    parser.add_argument("--models", type=_split, default=list(MODELS), help=split)
    parser.add_argument("--run", type=_split, default=[ENGINE, FILES, ENGINE, COMMAND], help=split)
    parser.add_argument("--fsync", choices=("on", "off"), default="on", help="NBIA_FSYNC (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="print the table without what was found in each cut")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args()


def _split(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
