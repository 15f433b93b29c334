"""Memory: one series of 2 GB and seven large ones, eight streams at a time; the engine must not grow with them.

The archive is :mod:`giants`. The engine runs in a process of its own and reports the most memory that it held, from
its start to the end of its work, imports included. All files on disk are compared with what the archive lists.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from image_archive import Facts
from image_sides import Job
from images import check_files
from measuring import Measured, run_measured, serving
from results import Results, add_option

MEMORY_BAR_MB = 400.0
OTHERS = 7


def main() -> int:
    options = _options()
    others = [[options.other_mib // options.other_files] * options.other_files] * OTHERS
    sizes = [[options.giant_mib // options.giant_files] * options.giant_files, *others]
    with (
        serving(str(Path(__file__).with_name("giants.py")), json.dumps(sizes)) as line,
        tempfile.TemporaryDirectory(prefix="nbia-bench-", dir=options.folder) as temporary,
    ):
        told = json.loads(line)
        facts = Facts(**told["facts"])
        measured = fetch(told["url"], facts, Path(temporary))
        check_files("engine", Path(temporary) / "files", facts)
    print(
        f"{len(facts.uids)} series, {len(facts.digests)} files, {facts.bytes / 1e6:,.0f} MB on disk, "
        f"{facts.wire_bytes / 1e6:,.0f} MB on the wire: {measured.work:.1f} s, CPU {measured.work_cpu:.1f} s"
    )
    print(f"every file is there with the digest that the archive lists; the first series has {sum(sizes[0])} MiB")
    results, largest = Results(options.json), f"a series of {sum(sizes[0])} MiB and {OTHERS} of {sum(sizes[1])}"
    results.add(f"{largest}, `engine`", (measured.work, "s"), (measured.work_cpu, "s CPU"))
    results.at_most(MEMORY_BAR_MB, f"{largest}, peak memory of the engine", round(measured.peak_mb), "MB")
    return results.finish()


def fetch(url: str, facts: Facts, folder: Path) -> Measured:
    """Run the engine in a fresh process, and measure it."""
    note = folder / "job.json"
    note.write_text(json.dumps(asdict(Job("engine", url, facts.collection, facts.uids, str(folder)))))
    return run_measured([sys.executable, Path(__file__).with_name("image_sides.py"), note], folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory of the engine while it fetches a giant and seven others.")
    for name, mib, files in (("giant", 2048, 1), ("other", 256, 16)):
        parser.add_argument(f"--{name}-mib", type=int, default=mib, help="MiB of a series (default: %(default)s)")
        parser.add_argument(f"--{name}-files", type=int, default=files, help="files of it (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="directory to work in (default: the system's for temporary files)")
    add_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
