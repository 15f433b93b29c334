"""A lake in an object store: requests for each series, memory, and the time beside ``s5cmd cp``.

SeaweedFS runs on this machine, and its bucket for each side is a new one. Four sets:

* ``one`` and ``twenty``: series of one file and of twenty files, whose requests are counted by what they are for;
* ``large``: 30 series of 60 slices of 512 x 512, by three sides in turn: ``lake``, the engine into a lake in the store;
  ``download``, the engine into a lake on the disk, without flushes; ``s5cmd``, which copies the files of the latter
  to the same store and verifies nothing;
* ``giant``: a series of one file of 2 GiB, and two of 16 files of 15 MiB, which are not sent in parts, for the memory.

Afterwards each file in the store is compared with what the archive lists.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from image_archive import LARGE, Facts, server_words, warmed
from image_sides import Job
from measuring import Measured, expect_disk, run_measured, serving
from peers import s5cmd
from results import Results, add_option
from store_requests import REQUESTS

sys.path.append(str(Path(__file__).resolve().parents[1]))
from nbia_pipeline_tests.helpers.object_stores import make_bucket, seaweedfs

SIDES = ("lake", "download", "s5cmd")
SETS = ("one", "twenty", "large", "giant")
FILES = {"one": 1, "twenty": 20}
# Half of what it took, 26, when each file was uploaded by itself.
MOST_BESIDES_FILES = 13
LEAST_OF_S5CMD = 0.8
MEMORY_BAR_MB = 400
GIANT_MIB = 2048
BELOW_PARTS_MIB = 15
UPLOADS = 16
OTHERS = 2

Store = dict[str, str]
"""The variables that tell where it is."""


class Bench:
    """The store, the archive and where to work.

    Args:
        store: variables of the store.
        url: of the archive.
        facts: what the archive lists.
        folder: empty directory to work in.
    """

    def __init__(self, store: Store, url: str, facts: Facts, folder: Path) -> None:
        self.store, self.url, self.facts, self.folder = store, url, facts, folder
        folder.mkdir(parents=True, exist_ok=True)

    def lake(self) -> tuple[Measured, Counter[str]]:
        """Mirror into a new bucket, compare what is there, and return what it took and the requests."""
        with self._bucket() as bucket:
            place = self._new("lake")
            job = {"url": self.url, "collection": self.facts.collection, "lake": f"{bucket}/lake", "folder": str(place)}
            (place / "job.json").write_text(json.dumps(job))
            words = [sys.executable, Path(__file__).with_name("store_requests.py"), place / "job.json"]
            measured = run_measured(words, place, variables={**self.store, "TMPDIR": str(place)})
            self._check(f"{bucket}/lake/images")
            return measured, Counter(json.loads((place / REQUESTS).read_text()))

    def download(self) -> tuple[float, Path]:
        """Mirror to the disk, and return how long it took and the folder of the images."""
        place = self._new("download")
        job = Job("engine-unflushed", self.url, self.facts.collection, self.facts.uids, str(place))
        (place / "job.json").write_text(json.dumps(asdict(job)))
        words = [sys.executable, Path(__file__).with_name("image_sides.py"), place / "job.json"]
        return run_measured(words, place, variables={"TMPDIR": str(place)}).work, job.files / "images"

    def s5cmd(self, files: Path) -> float:
        """Copy files to a new bucket, and return how long it took."""
        with self._bucket() as bucket:
            words = [s5cmd(), "cp", f"{files}/", f"{bucket}/images/"]
            variables = {**os.environ, **self.store, "S3_ENDPOINT_URL": self.store["AWS_ENDPOINT_URL_S3"]}
            started = time.perf_counter()
            done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
            took = time.perf_counter() - started
            if done.returncode:
                raise SystemExit(f"s5cmd failed:\n{done.stderr[-2000:]}")
            return took

    @contextlib.contextmanager
    def _bucket(self) -> Iterator[str]:
        """Make a bucket, and empty the disk of what is in it afterwards."""
        name = f"b{time.monotonic_ns()}"
        yield make_bucket(self.store, name)
        fs = self._fs()
        fs.rm(name, recursive=True)
        os.sync()  # or the next side would pay for writing this one's files

    def _check(self, images: str) -> None:
        """Make sure that the files of the collection are in the store, byte for byte."""
        fs, digests, size = self._fs(), [], 0
        for path, about in fs.find(images, detail=True).items():
            if path.endswith(".dcm"):
                digest = hashlib.md5(usedforsecurity=False)
                with fs.open(path, "rb", block_size=8 << 20) as file:
                    while piece := file.read(4 << 20):
                        digest.update(piece)
                digests.append(digest.hexdigest())
                size += about["size"]
        if (sorted(digests), size) != (self.facts.digests, self.facts.bytes):
            raise SystemExit(f"the store has {len(digests)} files of {size} bytes; they are not those of the archive")

    def _fs(self) -> object:
        import s3fs

        os.environ.update(self.store)
        return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

    def _new(self, name: str) -> Path:
        place = self.folder / f"{name}-{time.monotonic_ns()}"
        place.mkdir()
        return place


def count(bench: Bench, files: int, results: Results) -> None:
    """Count the requests of series of so many files."""
    _, requests = bench.lake()
    series = len(bench.facts.uids)
    print(f"\n{series} series of {files} files, requests for each series:")
    for purpose, number in requests.most_common():
        print(f"  {number / series:6.2f}  {purpose}")
    of_files = requests["PUT file"] / series
    total = requests.total() / series
    what = f"requests for a series of {files} file{'s' * (files > 1)}"
    results.add(what, (round(total, 1), "requests"))
    results.at_most(MOST_BESIDES_FILES, f"{what}, besides the files", round(total - of_files, 1), "requests")


def race(bench: Bench, rounds: int, results: Results) -> None:
    """Compare the time into the store with that of the download and that of ``s5cmd cp``."""
    took: dict[str, list[float]] = {side: [] for side in SIDES}
    peaks = []
    for number in range(rounds):
        measured, _ = bench.lake()
        seconds, files = bench.download()
        copied = bench.s5cmd(files)
        shutil.rmtree(files.parents[1])
        for side, value in zip(SIDES, (measured.work, seconds, copied), strict=True):
            took[side].append(value)
        peaks.append(measured.peak_mb)
        said = ", ".join(f"{side} {values[-1]:.2f} s" for side, values in took.items())
        print(f"round {number + 1}: {said}; lake {measured.work_cpu:.1f} s CPU, {measured.peak_mb:.0f} MB", flush=True)
    median = {side: statistics.median(values) for side, values in took.items()}
    for side, seconds in median.items():
        results.add(f"large set, `{side}`", (seconds, "s"), (bench.facts.bytes / 1e6 / seconds, "MB/s"), rounds=rounds)
    results.add("large set, `lake`, peak memory", (round(max(peaks)), "MB"), rounds=rounds)
    of_both = (median["s5cmd"] + median["download"]) / median["lake"]
    results.at_least(LEAST_OF_S5CMD, "large set, `s5cmd` and `download` over `lake`", of_both, "times", rounds)


def memory(bench: Bench, results: Results) -> None:
    """Measure the memory while a giant is uploaded beside others."""
    measured, requests = bench.lake()
    giant = bench.facts.bytes // (1 << 20) - OTHERS * UPLOADS * BELOW_PARTS_MIB
    print(f"\n{measured.work:.1f} s; {dict(requests.most_common())}")
    what = f"a file of {giant} MiB and {OTHERS} series of {UPLOADS} files of {BELOW_PARTS_MIB} MiB"
    results.at_most(MEMORY_BAR_MB, f"{what}, peak memory", round(measured.peak_mb), "MB")


# --- the command


def main() -> int:
    options = _options()
    results = Results(options.json)
    expect_disk(options.folder)
    with tempfile.TemporaryDirectory(prefix="nbia-bench-", dir=options.folder) as temporary:
        where = Path(temporary)
        (where / "store").mkdir()
        with seaweedfs(where / "store") as store:
            for name in options.sets:
                _run(name, options, store, where / name, results)
    return results.finish()


def _run(name: str, options: argparse.Namespace, store: Store, folder: Path, results: Results) -> None:
    if name == "giant":
        sizes = [[options.giant_mib], *[[BELOW_PARTS_MIB] * UPLOADS] * OTHERS]
        with serving(str(Path(__file__).with_name("giants.py")), json.dumps(sizes)) as line:
            told = json.loads(line)
            memory(Bench(store, told["url"], Facts(**told["facts"]), folder), results)
        return
    slices = FILES.get(name, options.slices)
    series = options.series if name in FILES else options.large_series
    with serving(*server_words(series, slices, 0, 0)) as line:
        url = json.loads(line)["url"]
        bench = Bench(store, url, warmed(url, LARGE), folder)
        if name in FILES:
            count(bench, slices, results)
        else:
            race(bench, options.rounds, results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A lake in an object store, beside s5cmd.")
    parser.add_argument("--sets", type=_sets, default=list(SETS), help=f"comma-separated, of {', '.join(SETS)}")
    parser.add_argument("--rounds", type=int, default=3, help="of the large set (default: %(default)s)")
    parser.add_argument("--series", type=int, default=24, help="series that are counted (default: %(default)s)")
    parser.add_argument("--large-series", type=int, default=30, help="series of the large set (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=60, help="slices of each large series (default: %(default)s)")
    parser.add_argument("--giant-mib", type=int, default=GIANT_MIB, help="MiB of the giant (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="directory to work in (default: the system's for temporary files)")
    add_option(parser)
    return parser.parse_args()


def _sets(text: str) -> Sequence[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := set(names) - set(SETS):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(SETS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
