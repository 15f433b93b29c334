"""The first run: ``nbia-pipeline run`` on an empty lake, as ``make demo`` calls it, with everything that it starts.

What counts is the process from its start to its end: its imports, the embedded archive that it starts and that renders
the demo's images for the first time, catalog, tables, images, and all of Dagster's records. The command itself says how
long its jobs took, and that is given beside it. Every round has a lake, a Dagster home and an archive of its own; a
second run in the same folder finds nothing new.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import expect_disk, side_environment
from results import Results, add_option

TIME_BAR_SECONDS = 5.0
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description="The first run on the demo's archive, and a second one.")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="directory to work in (default: the system's for temporary files)")
    add_option(parser)
    options = parser.parse_args()
    expect_disk(options.folder)
    first, second = [], []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="nbia-bench-", dir=options.folder) as folder:
            for found, expected in ((first, "new"), (second, "nothing")):
                found.append(run(Path(folder), expected))
            until_gone(archives(Path(folder)))
        print(f"round {number + 1}  first run {first[-1][0]:5.2f} s, second {second[-1][0]:5.2f} s", flush=True)
    results = Results(options.json)
    units = ("s process", "s CPU", "s in its jobs")
    figures = [
        [(statistics.median(run[at] for run in runs), unit) for at, unit in enumerate(units)]
        for runs in (first, second)
    ]
    results.add("`nbia-pipeline run`, the demo again, nothing new", *figures[1], rounds=options.rounds)
    results.add("`nbia-pipeline run`, the demo on an empty lake", *figures[0], rounds=options.rounds)
    what = "`nbia-pipeline run`, the demo on an empty lake, whole process"
    results.at_most(TIME_BAR_SECONDS, what, figures[0][0][0], "s", options.rounds)
    return results.finish()


def run(folder: Path, expected: str) -> tuple[float, float, float]:
    """Run the command in a folder; return its seconds, its processor time, and the seconds that it says.

    Args:
        folder: where the lake, Dagster's home and the archive's address are.
        expected: ``new`` if images must come, ``nothing`` if none may.

    Raises:
        SystemExit: it failed, or other images came.
    """
    places = {"NBIA_LAKE": "lake", "DAGSTER_HOME": "dagster_home", "TMPDIR": "tmp"}
    (folder / "tmp").mkdir(exist_ok=True)  # the others are made by the command, as on anybody's first run
    variables = {name: str(folder / place) for name, place in places.items()}
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "nbia_pipeline", "run"],
        env={**side_environment(), **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - started, os.times()
    fetched = "no image" not in done.stdout
    took = re.search(r"^Took +([\d.]+) s", done.stdout, re.MULTILINE)
    if done.returncode or fetched != (expected == "new") or took is None:
        raise SystemExit(f"nbia-pipeline run (expected: {expected}):\n{(done.stdout + done.stderr)[-4000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu, float(took[1])


def archives(folder: Path) -> list[int]:
    """Return the processes of the archives that were started in a folder."""
    return [json.loads(record.read_text())["pid"] for record in (folder / "tmp").rglob("*.json")]


def until_gone(pids: list[int]) -> None:
    """Wait until archives have stopped: they do so by themselves some seconds after their last client."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline and any(map(_lives, pids)):
        time.sleep(_POLL_SECONDS)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
