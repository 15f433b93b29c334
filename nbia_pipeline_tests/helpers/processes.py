"""Commands in processes of their own, what they leave, and an end to waiting."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbia_pipeline.lake import Lake
from nbia_pipeline.schema import TABLES
from nbia_pipeline_tests.helpers.places import Place, files_below, relative

IN_ORDER = "nbia-pipeline: interrupted; finished series are in the lake, and the next run continues from there\n"
"""The last line of a run that was stopped."""


def environment(folder: Path, **variables: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NBIA_") and k != "DAGSTER_HOME"}
    return {
        **inherited,
        "DAGSTER_HOME": str(folder / "home"),
        "NBIA_LAKE": str(folder / "a lake"),
        "NBIA_HEADERS": "",
        **variables,
    }


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread if it takes longer than that."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Place) -> dict[str, object]:
    """Return all of a lake but times and runs: the files byte for byte, the tables row by row."""
    lake = Lake(str(folder / "a lake"))
    root = folder / "a lake"
    found: dict[str, object] = {relative(p, root): p.read_bytes() for p in files_below(root / "images")}
    for table in TABLES.values():
        for collection in lake.collections_of(table) if table.partitioned else [None]:
            rows = lake.read_table(table, collection).to_pylist()
            for row in rows:
                for name in ("FetchedAt", "SeenAt", "ListedAt", "VerifiedAt", "RunID"):
                    row.pop(name, None)
            found[f"{table.name} of {collection}"] = sorted(rows, key=str)
    return found


def leftovers(folder: Place) -> list[str]:
    staging = folder / "a lake" / ".staging"
    known = ("locks", "journal", "earlier", "runs")  # what steps hand over stays for a week
    kept = ("locks", "earlier", "runs")
    return [p.name for p in files_below(staging) if relative(p, staging).split("/")[0] not in kept] + [
        name for name in Lake(str(folder / "a lake")).names_in(".staging") if name not in known
    ]
