"""The client by itself: many small calls against nbiatoolkit, and one very long list.

Small calls: getSeriesMetaData of 3,000 series, one call each, over an embedded archive that takes 50 ms more
for every answer, as one across an ocean does, and that has no bulk call. Ours asks in parallel, as many at a
time as its limit allows (8); nbiatoolkit asks one after the other, as its getSeriesMetadata does with a list.
It gets a part of the calls only, and the output says so. Each side is a fresh process; time and CPU are those of
the calls, without imports.

Long list: getSeries of the largest collection of the index of the Imaging Data Commons, from the first byte to
the Arrow table. A first round, not counted, fills the archive's cache of rendered answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import IDC, peak_bytes, serving, side_environment
from results import Results, add_option

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from nbia_pipeline.embedded.catalog.model import Catalog

OURS = "nbia_pipeline"
THEIRS = "nbiatoolkit"
COLLECTION = "TCGA-DEMO"
BAR = 5.0


# --- the archive of the small calls, in a process of its own


class FarAway:
    """An archive that answers late, and has no bulk call."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 - ASGI
        if scope["type"] == "http":
            await asyncio.sleep(self.seconds)
            path = scope["path"].replace("getSeriesMetadata2", "noSuchCall")
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self.app(scope, receive, send)


def serve(calls: int, latency: float) -> None:
    """Serve `calls` series until this process is stopped; prints the base URL."""
    import socket
    from typing import cast

    from starlette.applications import Starlette

    from nbia_pipeline.embedded.server.app import API, create_app
    from nbia_pipeline.embedded.server.run import make_server

    app = FarAway(create_app(many_series(calls)), latency)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}{API}", flush=True)
        make_server(cast(Starlette, app)).run(sockets=[listener])


def many_series(count: int) -> Catalog:
    """Return a catalogue of one collection with `count` series, without images."""
    import pyarrow as pa

    from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Catalog
    from nbia_pipeline.embedded.demo.catalog import demo_catalog

    demo = [r for r in demo_catalog().series.to_pylist() if r["Collection"] == COLLECTION]
    rows = [{**demo[n % len(demo)], "SeriesInstanceUID": f"1.2.826.{n}"} for n in range(count)]
    return Catalog(pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA))


# --- the sides, each in a process of its own: only what a side needs is imported there


def ask_ours(url: str, uids: list[str]) -> tuple[float, float, dict[str, int]]:
    """Return seconds, CPU seconds, and the number of images by series."""
    from nbia_pipeline.archive import NbiaClient

    with NbiaClient(url) as client:
        client.collection_values()  # the login, which is not what is measured
        started, cpu = time.perf_counter(), time.process_time()
        table = client.series_metadata(uids)
        seconds, spent = time.perf_counter() - started, time.process_time() - cpu
    found = dict(zip(table["SeriesInstanceUID"].to_pylist(), table["ImageCount"].to_pylist(), strict=True))
    return seconds, spent, found


def ask_theirs(url: str, uids: list[str]) -> tuple[float, float, dict[str, int]]:
    """Return seconds, CPU seconds, and the number of images by series."""
    from enum import Enum

    from nbiatoolkit import NBIAClient, OAuth2  # type: ignore[import-not-found,unused-ignore]

    class Here(Enum):
        """Where the archive is: the client reads the value of a member of its own enumeration."""

        ARCHIVE = f"{url}/services/"

    client = NBIAClient(log_level="CRITICAL", return_type="list")
    client.base_url = Here.ARCHIVE
    client._oauth2_client = OAuth2(base_url=Here.ARCHIVE.value)
    client.getCollections()
    started, cpu = time.perf_counter(), time.process_time()
    rows = client.getSeriesMetadata(uids)
    seconds, spent = time.perf_counter() - started, time.process_time() - cpu
    return seconds, spent, {r["Series UID"]: int(r["Number of Images"]) for r in rows}


def read_longest(url: str, rounds: int) -> dict[str, Any]:
    """Return what reading the largest collection takes, as medians over `rounds`."""
    from nbia_pipeline.archive import NbiaClient

    with NbiaClient(url) as client:
        counts = client.collection_counts()
        name = max(counts, key=lambda c: counts[c])
        rows = client.series(name).num_rows
        measured = []
        for _ in range(rounds):
            started, cpu = time.perf_counter(), time.process_time()
            client.series(name)
            measured.append((time.perf_counter() - started, time.process_time() - cpu))
    seconds, spent = (statistics.median(m[at] for m in measured) for at in (0, 1))
    return {"name": name, "rows": rows, "seconds": seconds, "cpu": spent, "peak_mb": peak_bytes() / 1e6}


def run_side(python: Path, side: str, url: str, calls: int, rounds: int = 0) -> dict[str, Any]:
    """Run one side in a fresh process and return what it prints.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    words = [str(python), __file__, "--side", side, "--url", url, "--calls", str(calls), "--rounds", str(rounds)]
    done = subprocess.run(words, env=side_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


# --- the command


def main() -> int:
    options = _options()
    if options.serve:
        serve(options.calls, options.latency)
        return 0
    if options.side:
        print(json.dumps(answer_side(options)))
        return 0
    print(f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}")
    results = Results(options.json)
    compare_small_calls(options, results)
    if not options.small_only:
        report_longest(options.rounds, results)
    return results.finish()


def answer_side(options: argparse.Namespace) -> dict[str, Any]:
    if options.side == "longest":
        return read_longest(options.url, options.rounds)
    uids = [f"1.2.826.{n}" for n in range(options.calls)]
    ask = ask_ours if options.side == OURS else ask_theirs
    seconds, cpu, found = ask(options.url, uids)
    return {"seconds": seconds, "cpu": cpu, "found": found}


def compare_small_calls(options: argparse.Namespace, results: Results) -> None:
    """Measure both sides, and print and compare them."""
    from peers import tested

    sides = ((OURS, Path(sys.executable), options.calls), (THEIRS, tested(), min(options.peer_calls, options.calls)))
    rates: dict[str, list[float]] = {OURS: [], THEIRS: []}
    cpus: dict[str, list[float]] = {OURS: [], THEIRS: []}
    words = [__file__, "--serve", "--calls", str(options.calls), "--latency", str(options.latency)]
    with serving(*words) as url:
        for number in range(options.rounds):
            found = []
            for side, python, calls in sides if number % 2 else reversed(sides):
                result = run_side(python, side, url, calls)
                found.append(result["found"])
                rates[side].append(calls / result["seconds"])
                cpus[side].append(result["cpu"] / calls * 1000)
                print(f"round {number + 1}  {side:<14} {calls:5d} calls  {result['seconds']:6.1f} s", flush=True)
            check_same(*found)
    print(f"\ngetSeriesMetaData, {options.latency * 1000:.0f} ms latency; medians of {options.rounds} rounds")
    print(f"{'':<14} {'calls':>6} {'requests/s':>11} {'CPU ms/request':>15} {'s for ' + str(options.calls):>12}")
    for side, _, calls in sides:
        rate, cpu = statistics.median(rates[side]), statistics.median(cpus[side])
        print(f"{side:<14} {calls:6d} {rate:11.1f} {cpu:15.2f} {options.calls / rate:12.1f}")
        what = f"getSeriesMetaData one by one, {options.latency * 1000:.0f} ms latency, `{side}`"
        results.add(what, (rate, "requests/s"), (cpu, "ms CPU per request"), rounds=options.rounds)
    if sides[1][2] < options.calls:
        print(f"{THEIRS} made {sides[1][2]} of the {options.calls} calls: its time for all of them is scaled")
    ratio = statistics.median(rates[OURS]) / statistics.median(rates[THEIRS])
    results.at_least(BAR, f"getSeriesMetaData, requests per second of {THEIRS}", ratio, "times", options.rounds)


def check_same(one: dict[str, int], other: dict[str, int]) -> None:
    """Make sure that both sides got the same of the series that both asked for.

    Raises:
        SystemExit: they did not.
    """
    both = one.keys() & other.keys()
    if len(both) != min(len(one), len(other)) or any(one[uid] != other[uid] for uid in both):
        raise SystemExit(f"the metadata differ: {len(one)} and {len(other)} rows, {len(both)} in common")


def report_longest(rounds: int, results: Results) -> None:
    """Measure the longest list, and print and keep it."""
    with serving(*IDC) as url:
        found = run_side(Path(sys.executable), "longest", url, 0, rounds)
    print(f"\ngetSeries of {found['name']}, the largest collection; medians of {rounds} rounds, archive warmed before")
    print(
        f"{found['rows']:,} rows in {found['seconds']:.2f} s: {found['rows'] / found['seconds']:,.0f} rows/s, "
        f"{found['cpu'] / found['rows'] * 1e6:.1f} µs CPU per row, peak {found['peak_mb']:.0f} MB"
    )
    results.add(
        f"getSeries of {found['name']}, from the first byte to the Arrow table",
        *((found["rows"], "rows"), (found["seconds"], "s"), (found["cpu"], "s CPU"), (round(found["peak_mb"]), "MB")),
        rounds=rounds,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The client by itself, against nbiatoolkit.")
    parser.add_argument("--calls", type=int, default=3000, help="small calls of ours (default: %(default)s)")
    parser.add_argument("--peer-calls", type=int, default=300, help="small calls of nbiatoolkit (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds added to an answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default: %(default)s)")
    parser.add_argument("--small-only", action="store_true", help="leave the long list out")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    for hidden in ("side", "url"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    add_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
