"""Lakes: mirrored by the engine, and read without it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from nbia_pipeline import clock
from nbia_pipeline.archive import ClientOptions, NbiaClient
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline_tests.helpers import truth
from nbia_pipeline_tests.helpers.processes import environment

OPTIONS = ClientOptions(connect_timeout=5, read_timeout=60, tries=3, backoff=0.01, max_backoff=0.05)

_OF_TIME = ("FetchedAt", "SeenAt", "ListedAt", "VerifiedAt", "MissingSince", "RunID")
_NOT_COMPARED = ("verifications",)  # a sample


def mirror_all(url: str, lake: Path, hours: int, *, fsync: bool = True) -> Iterator[str]:
    """Mirror all collections with the engine, some hours from now, and yield each that ended well."""
    present = clock.utc_now
    clock.utc_now = lambda: present() + timedelta(hours=hours)
    try:
        with NbiaClient(url, options=OPTIONS) as client:
            for collection in client.collection_values():
                result = Mirror(client, Lake(str(lake), fsync=fsync)).run(collection)
                if result.failed or result.left:
                    raise AssertionError(f"{collection}: {result}")
                yield collection
    finally:
        clock.utc_now = present


def run_process(module: Sequence[str], on_line: Callable[[str], None], **variables: str) -> None:
    """Run a module in a process of its own, with a DAGSTER_HOME of its own.

    Args:
        module: its name and arguments.
        on_line: takes what it prints, line by line.
        variables: of its environment.

    Raises:
        AssertionError: it failed, with what it said.
    """
    with tempfile.TemporaryDirectory() as home, Path(home, "stderr").open("w+") as errors:
        words, own = [sys.executable, "-m", *module], environment(Path(home), **variables)
        with subprocess.Popen(words, env=own, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                on_line(line.strip())
        errors.seek(0)
        assert process.returncode == 0, f"it ended with {process.returncode}: {errors.read()[-2000:]}"


@dataclass(frozen=True)
class Held:
    """What a lake holds, read without the engine.

    Attributes:
        contents: files, receipts and instances.
        tables: rows of each file of a table by its path, without times.
        views: content of ``catalog.sql`` without the address of the lake.
        unreadable: files of tables that cannot be read, and the file of their views.
    """

    contents: truth.Contents
    tables: dict[str, list[str]]
    views: dict[str, str]
    unreadable: list[str]


def held(lake: Path) -> Held:
    """Read a lake, file by file; damaged tables are left out."""
    tables: dict[str, list[dict[str, Any]]] = {}
    unreadable = []
    for path in sorted((lake / "tables").rglob("*.parquet")):
        name = path.relative_to(lake / "tables").as_posix()
        try:
            tables[name] = pq.ParquetFile(path).read().to_pylist()
        except (OSError, pa.ArrowException):
            unreadable.append(name)
    if truth.has_damaged_catalog(lake):
        unreadable.append("catalog.sql")
    found = (p for top in ("images", "annotations") for p in (lake / top).rglob("*") if p.is_file())
    files = {p.relative_to(lake).as_posix(): hashlib.md5(p.read_bytes()).hexdigest() for p in found}
    receipts = {r["SeriesInstanceUID"]: r for r in _rows(tables, "image_series")}
    instances = {r["SOPInstanceUID"]: r for r in _rows(tables, "instances")}
    timeless = {
        name: sorted(str(without_times(row)) for row in rows)
        for name, rows in tables.items()
        if name.split("/")[0] not in _NOT_COMPARED
    }
    catalog = lake / "catalog.sql"
    views = {catalog.name: catalog.read_text(errors="replace").replace(str(lake), "")} if catalog.exists() else {}
    return Held(truth.Contents(files, receipts, instances), timeless, views, unreadable)


def _rows(tables: dict[str, list[dict[str, Any]]], table: str) -> list[dict[str, Any]]:
    """Return the rows of a table with the collection, which is in the path."""
    parts = ((name.split("/"), rows) for name, rows in tables.items())
    return [{**row, "Collection": unquote(path[1])[11:]} for path, rows in parts if path[0] == table for row in rows]


def without_times(row: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a row without what differs from run to run."""
    return row and {c: v for c, v in row.items() if c not in _OF_TIME}


def false_receipts(contents: truth.Contents) -> list[str]:
    """Return the series that are complete by their receipt, and whose files are not those of the receipt."""
    digests: dict[str, list[str]] = {uid: [] for uid in contents.receipts}
    for row in contents.instances.values():
        there = contents.files.get(row["Path"]) == row["MD5"]
        digests.setdefault(row["SeriesInstanceUID"], []).append(row["MD5"] if there else "")
    return [
        uid
        for uid, receipt in contents.receipts.items()
        if receipt["Status"] == "complete"
        and hashlib.md5("".join(sorted(digests[uid])).encode()).hexdigest() != receipt["SeriesMD5"]
    ]


def lost_files(now: truth.Contents, promised: truth.Contents, series: set[str]) -> list[str]:
    """Return the files of some series that a lake must have and has not, and `receipt of ...` for receipts."""
    rows = (row for row in promised.instances.values() if row["SeriesInstanceUID"] in series)
    files = [row["Path"] for row in rows if now.files.get(row["Path"]) != row["MD5"]]
    differ = (u for u in sorted(series) if without_times(now.receipts.get(u)) != without_times(promised.receipts[u]))
    return [*files, *(f"receipt of {uid}" for uid in differ)]


def differences(one: Held, other: Held) -> str:
    """Return in which files or tables two lakes differ, nothing if they do not."""
    pairs = ((one.contents.files, other.contents.files), (one.tables, other.tables), (one.views, other.views))
    names = [name for a, b in pairs for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    return f"differs from a lake without a cut: {len(names)} files, {names[0]} ..." if names else ""


def leftovers(lake: Path) -> list[str]:
    """Return what should not be in a lake between two runs."""
    return [path for path in truth.leftovers(lake) if path not in ("annotations", "previews")]
