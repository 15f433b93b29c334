"""Tables at real scale: all series of the Imaging Data Commons to Parquet, by us and by tcia_utils.

Both sides do the same work over the same embedded archive (``--catalog idc``): every series of every
collection, from nothing to one Parquet file per collection. Ours goes through Dagster: `collections`, which
registers the partitions, then `series` of all partitions in one run. tcia_utils has an environment of its own
and calls getCollections, then getSeries and ``to_parquet`` for each.

Each side runs in a fresh process, the two in turn. The bar is on the work, from the first list of series to the
last Parquet file, with Dagster's records of every partition; the whole process, with its imports and the making of
the Dagster instance and its partitions, stands beside it. A first round, not counted, fills the archive's cache of
rendered answers: what is measured is the clients, not the server. They work on a disk: a folder in memory is refused.
"""

from __future__ import annotations

import argparse
import fnmatch
import logging
import os
import statistics
import sys
import tempfile
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import IDC, Measured, expect_disk, run_measured, serving, timed

if TYPE_CHECKING:
    import pyarrow as pa
    from results import Results

OURS = "nbia_pipeline"
THEIRS = "tcia_utils"

TIME_BAR = 0.5
MEMORY_BAR_MB = 800
SERIES_IN_ALL = 1_044_191
MIDDLE_ROWS = 10_000


# --- the two sides, each in a process of its own: only what a side needs is imported there


def materialize(url: str, api: str, collections: list[str], folder: Path) -> None:
    """Bring all series to Parquet with nbia_pipeline, through Dagster."""
    import dagster as dg

    from nbia_pipeline.cli.home import dagster_home
    from nbia_pipeline.definitions import build_definitions
    from nbia_pipeline.defs.jobs import RANGE_END, RANGE_START
    from nbia_pipeline.defs.naming import Naming
    from nbia_pipeline.defs.records import kept_open
    from nbia_pipeline.settings import Settings

    os.environ["DAGSTER_HOME"] = str(folder / "dagster_home")
    dagster_home()
    names = Naming()
    # In bulk, as the other client does.
    settings = Settings(
        archive=url, api=api, lake=str(folder / "lake"), collections=tuple(collections), metadata="bulk"
    )
    # The assets alone: their checks are work that tcia_utils does not do.
    jobs = [
        dg.define_asset_job(asset, selection=dg.AssetSelection.assets(names.key(asset)).without_checks())
        for asset in ("collections", "series")
    ]
    definitions = dg.Definitions.merge(build_definitions(settings, names), dg.Definitions(jobs=jobs))
    with kept_open(), dg.DagsterInstance.get() as instance:  # as `nbia-pipeline run` does
        definitions.resolve_job_def("collections").execute_in_process(instance=instance)
        partitions = instance.get_dynamic_partitions(str(names.partitions.name))
        tags = {RANGE_START: partitions[0], RANGE_END: partitions[-1]}
        with timed(folder):
            definitions.resolve_job_def("series").execute_in_process(instance=instance, tags=tags)


def download(url: str, collections: list[str], folder: Path) -> None:
    """Bring all series to Parquet with tcia_utils."""
    from tcia_utils import nbia  # type: ignore[import-not-found,unused-ignore]

    logging.disable(logging.INFO)
    # The one place that names a host; it knows two by name and no others.
    nbia.setApiUrl = lambda endpoint, api_url="": f"{url}/services/v4/"
    listed = [one["Collection"] for one in nbia.getCollections()]
    with timed(folder):
        for name in listed:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in collections):
                frame = nbia.getSeries(collection=name, format="df")
                frame.to_parquet(folder / f"{urllib.parse.quote(name, safe='')}.parquet")


# --- measuring


def run_side(side: str, python: Path, options: argparse.Namespace, url: str, folder: Path) -> Measured:
    """Run one side in a fresh process and measure it.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    folder.mkdir(parents=True)
    words = ["--side", side, "--url", url, "--folder", str(folder), "--api", options.api]
    return run_measured([python, __file__, *words, "--collections", options.collections], folder)


# --- comparing what came out


def check_same(folders: dict[str, Path], api: str, whole: bool) -> int:
    """Make sure that both sides wrote the same series, and return how many.

    Raises:
        SystemExit: they did not.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    ours = ds.dataset(folders[OURS] / "lake" / "tables" / "series", partitioning="hive")
    files = sorted(folders[THEIRS].glob("*.parquet"))
    mine = ours.to_table(columns=["SeriesInstanceUID"])["SeriesInstanceUID"]
    known = [pq.read_table(f, columns=["SeriesInstanceUID"])["SeriesInstanceUID"] for f in files]
    if sorted(mine.to_pylist()) != sorted(uid for part in known for uid in part.to_pylist()):
        raise SystemExit(f"the series differ: {len(mine)} and {sum(map(len, known))} rows")
    if whole and len(mine) != SERIES_IN_ALL:
        raise SystemExit(f"{len(mine)} series, not {SERIES_IN_ALL}")
    middle = min(files, key=lambda f: abs(pq.read_metadata(f).num_rows - MIDDLE_ROWS))
    collection = urllib.parse.unquote(middle.stem)
    rows = ours.to_table(filter=pc.field("Collection") == collection)
    compared = check_columns(rows, pq.read_table(middle), api)
    print(f"same series on both sides; {compared} columns of {collection} ({rows.num_rows} rows) hold the same values")
    return len(mine)


def check_columns(ours: pa.Table, theirs: pa.Table, api: str) -> int:
    """Compare the columns of one collection that both sides have, and return how many those are.

    Raises:
        SystemExit: a value differs.
    """
    from nbia_pipeline.schema.shapes import SERIES_V2, SERIES_V4

    served = {key.column for key in (SERIES_V2 if api == "v2" else SERIES_V4).keys}
    both = [k for k in SERIES_V4.keys if k.column in served and k.column and k.name in theirs.column_names]
    ours, theirs = ours.sort_by("SeriesInstanceUID"), theirs.sort_by("SeriesInstanceUID")
    for key in both:
        if _texts(ours[key.column]) != _texts(theirs[key.name]):
            raise SystemExit(f"the values of {key.column} differ")
    return len(both)


def _texts(values: pa.ChunkedArray) -> list[str | None]:
    """Return values as texts: days as v4 writes them, whole numbers without decimals.

    v4 sends only the day of a time, and pandas makes numbers with gaps floating.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        values = pc.strftime(values, format="%m-%d-%Y")
    elif pa.types.is_floating(values.type):
        values = values.cast(pa.int64())
    return list(values.cast(pa.string()).to_pylist())


# --- the command


def main() -> int:
    options = _options()
    if options.side:
        patterns, folder = options.collections.split(","), options.folder
        if options.side == OURS:
            materialize(options.url, options.api, patterns, folder)
        else:
            download(options.url, patterns, folder)
        return 0
    from peers import newest_tcia_utils

    print(f"file system: {expect_disk(options.folder)}", flush=True)
    pythons = {OURS: Path(sys.executable), THEIRS: newest_tcia_utils()}
    whole = options.collections == "*"
    measured: dict[str, list[Measured]] = {OURS: [], THEIRS: []}
    with serving(*IDC) as url, _temporary(options) as temporary:
        for number in range(options.rounds + 1):
            folders = {side: Path(temporary) / f"{number}-{side}" for side in measured}
            for side in sorted(measured, reverse=bool(number % 2)):
                result = run_side(side, pythons[side], options, url, folders[side])
                label = f"round {number}" if number else "warm-up"
                print(
                    f"{label:<8} {side:<14} work {result.work:5.1f} s, process {result.seconds:5.1f} s, "
                    f"{result.peak_mb:5.0f} MB",
                    flush=True,
                )
                if number:
                    measured[side].append(result)
            if not number:
                rows = check_same(folders, options.api, whole)
    from results import Results

    results = Results(options.json)
    report(measured, rows, options.api, whole, results)
    return results.finish()


def _temporary(options: argparse.Namespace) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="nbia-bench-", dir=options.folder)


def report(measured: dict[str, list[Measured]], rows: int, api: str, whole: bool, results: Results) -> None:
    """Print and keep the medians; the bars are those of all series."""
    rounds = len(measured[OURS])
    print(f"\nmedians of {len(measured[OURS])} rounds, archive warmed before; {os.cpu_count()} processors")
    print(f"{'':<20} {'work s':>8} {'process s':>10} {'CPU s':>8} {'peak MB':>8} {'rows':>10}")
    for side, spoken in ((OURS, api), (THEIRS, "v4")):
        work, seconds, cpu = (_median(measured[side], what) for what in ("work", "seconds", "cpu"))
        peak = max(m.peak_mb for m in measured[side])
        print(f"{side + ', ' + spoken:<20} {work:8.1f} {seconds:10.1f} {cpu:8.1f} {peak:8.0f} {rows:10,}")
        results.add(
            f"{rows:,} series, `{side}`, {spoken}",
            *((work, "s"), (seconds, "s process"), (cpu, "s CPU"), (round(peak), "MB")),
            rounds=rounds,
        )
    work, process = (_median(measured[OURS], w) / _median(measured[THEIRS], w) for w in ("work", "seconds"))
    peak = max(m.peak_mb for m in measured[OURS])
    print(f"{work:.2f} of {THEIRS}' seconds, {process:.2f} of those of the process")
    if whole:
        results.at_most(TIME_BAR, f"{rows:,} series, seconds of {THEIRS}'", work, "of them", rounds)
        results.at_most(MEMORY_BAR_MB, f"{rows:,} series, peak memory of {OURS}", round(peak), "MB", rounds)


def _median(runs: list[Measured], what: str) -> float:
    return statistics.median(getattr(run, what) for run in runs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tables at real scale, against tcia_utils.")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: %(default)s)")
    parser.add_argument("--api", choices=("v2", "v4"), default="v2", help="what we speak; tcia_utils speaks v4")
    parser.add_argument("--collections", default="*", help="comma-separated names or globs, for a quick try")
    parser.add_argument(
        "--folder", type=Path, help="directory to work in, on a disk (default: the system's for temporary files)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="leave the figures and the bars there, as JSON")
    for hidden in ("side", "url"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
