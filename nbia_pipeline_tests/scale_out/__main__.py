"""Run the pipeline on several executors, kill workers, and compare the lakes: ``make scale-out``.

Redis, PostgreSQL and SeaweedFS come from packages; webserver, daemon and code server are processes of one host, each
worker of another one (:mod:`~nbia_pipeline_tests.scale_out.hosts`). Each case (:mod:`.rounds`) makes a lake of its own,
with the configuration below ``deploy``, and each must be equal to the one that one process makes on a disk.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from nbia_pipeline_tests.scale_out import report, rounds, services, tasks
from nbia_pipeline_tests.scale_out.hosts import Network, enter, network
from nbia_pipeline_tests.scale_out.rounds import CASES, Case, Found


def main() -> int:
    """Run the cases that the command line names; 0 if all lakes are equal."""
    options = _options()
    if options.render:
        report.write(report.read())
        return 0
    enter()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.environ.update(NO_PROXY="*", no_proxy="*")
    chosen = [case for case in CASES if options.only == case.name] or [c for c in CASES if options.only in c.name]
    kept = {}
    with tempfile.TemporaryDirectory(prefix="scale-out-", dir=options.folder) as folder, network(Path(folder)) as net:
        _say(f"hosts: {net.isolation}")
        if options.only in "Celery":
            _say(f"how often tasks of Celery began: {tasks.outlive(Path(folder), services.redis_server())}")
        shared = services.start(net.host("services"), options.series, options.latency, whole=not options.small)
        services.warm(shared)
        wanted = _reference(options.reference)
        if wanted is None and CASES[0] not in chosen:
            chosen.insert(0, CASES[0])
        for case in chosen:
            try:
                found = _run(case, net, shared, options)
                if case is CASES[0]:
                    wanted = found
                    _keep_reference(options.reference, found)
                rounds.check(case, found, wanted or Found())
            except AssertionError as e:  # the other cases are worth their time all the same
                _say(f"FAILED: {case.name}: {e}")
                continue
            kept[case.name] = report.row(found)
            _say(f"{case.name}: {kept[case.name]}")
        now = report.around(net.isolation, options.series, -(-options.series // options.batch_series))
    print("\n".join(report.lines({**now, "cases": kept})))
    if options.keep:
        report.keep(now, kept)
    return 0 if len(kept) == len(chosen) else 1


def _run(case: Case, net: Network, shared: services.Services, options: argparse.Namespace) -> Found:
    _say(f"{case.name} ...")
    started = time.monotonic()
    found = rounds.run(case, net, shared, options.batch_series, _say)
    _say(f"{case.name}: {time.monotonic() - started:.0f} s with the start of its processes")
    return found


def _reference(file: Path | None) -> Found | None:
    if file is None or not file.exists():
        return None
    return Found(contents=json.loads(file.read_text()))


def _keep_reference(file: Path | None, found: Found) -> None:
    if file is not None:
        file.write_text(json.dumps(found.contents))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Several executors, and kills; the lakes must be equal.")
    parser.add_argument("--only", default="", help="only the case of this name, or those with this in their names")
    parser.add_argument("--series", type=int, default=300, help="series with images (default: %(default)s)")
    parser.add_argument("--batch-series", type=int, default=15, help="series of a batch (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.05, help="of the archive, in seconds (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="leave out the million rows")
    parser.add_argument("--folder", type=Path, help="directory to work in (default: the system's for temporary files)")
    parser.add_argument("--reference", type=Path, help="keep what the first lake is there, or take it from there")
    parser.add_argument("--keep", action="store_true", help="write the figures to docs/scale-out.json and the page")
    parser.add_argument("--render", action="store_true", help="write the page again from docs/scale-out.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
