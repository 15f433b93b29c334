"""Whether the tables of a lake and its files agree, read by pyarrow and hashlib, without the engine."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow.parquet as pq

from nbia_pipeline_tests.helpers import truth

Row = dict[str, Any]

# What differs from run to run: moments, and what was read again when.
_HISTORY = "verifications"
_MOMENTS = {"FetchedAt", "VerifiedAt", "SeenAt", "ListedAt", "MissingSince", "RefreshFailedAt"}


def read(lake: Path, table: str) -> list[Row]:
    """Return the rows of a table of a lake, with their collection; every file of it can be read."""
    rows = []
    for path in sorted((lake / "tables" / table).rglob("*.parquet")):
        collection = {"Collection": unquote(path.parent.name.partition("=")[2])}
        # As bytes: pyarrow would look for partitions in the path.
        rows += [{**collection, **row} for row in pq.ParquetFile(path).read().to_pylist()]
    return rows


def disagreements(lake: Path) -> set[str]:
    """Return what is wrong with a lake at this moment, whatever is happening to it.

    A series that has files by its receipt has exactly the rows of ``instances`` that the receipt says, and exactly
    these files. Each file that ``annotation_files`` lists is there. ``catalog.sql`` is whole, or not there.
    """
    found = set()
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in read(lake, "instances"):
        rows[row["SeriesInstanceUID"]].append(row)
    for receipt in read(lake, "image_series"):
        if receipt["Bytes"] is not None:
            uid = receipt["SeriesInstanceUID"]
            found |= {f"{receipt['Status']} series {uid}: {text}" for text in _wrong_with(lake, receipt, rows[uid])}
        elif receipt["Status"] == "complete":
            found.add(f"complete series {receipt['SeriesInstanceUID']} without a size")
    listed = [row for row in read(lake, "annotation_files") if row["Path"]]
    found |= {
        f"annotations: {row['Path']} is {problem}" for row in listed if (problem := _problem(lake / row["Path"], row))
    }
    for table in (lake / "tables").glob("*"):
        read(lake, table.name)
    return found | ({"catalog.sql is not whole"} if truth.has_damaged_catalog(lake) else set())


def _problem(path: Path, row: Row) -> str | None:
    """Return what is wrong with a file, by its row of ``instances`` or ``annotation_files``."""
    if not path.is_file():
        return "missing"
    content = path.read_bytes()
    same = (len(content), hashlib.md5(content).hexdigest()) == (row["Size"], row["MD5"])
    return None if same else "another one"


def _wrong_with(lake: Path, receipt: Row, rows: list[Row]) -> Iterator[str]:
    names = ("Collection", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
    folder = "/".join(["images", *(quote(receipt[name], safe="") for name in names)])
    digest = hashlib.md5("".join(sorted(row["MD5"] for row in rows)).encode()).hexdigest()
    if digest != receipt["SeriesMD5"]:
        yield "its rows of instances are not those of the receipt"
    if sum(row["Size"] for row in rows) != receipt["Bytes"]:
        yield "the sizes of its rows of instances are not those of the receipt"
    for row in rows:
        if problem := _problem(lake / row["Path"], row):
            yield f"{row['Path']} is {problem}"
    for path in (lake / folder).glob("*"):
        if path.relative_to(lake).as_posix() not in {row["Path"] for row in rows}:
            yield f"{path} is in no row of instances"


def everything(lake: Path) -> dict[str, object]:
    """Return all that a lake has, by table and by path, without what differs from run to run."""
    found: dict[str, object] = {}
    for table in sorted({path.name for path in (lake / "tables").glob("*")} - {_HISTORY}):
        rows = [
            # What is fetched again by a repair or by a run of images has one or the other proof by digests.
            {name: truth.PROOFS.get(value, value) if name == "Proof" else value for name, value in row.items()}
            for row in read(lake, table)
        ]
        rows = [{name: value for name, value in row.items() if name not in _MOMENTS} for row in rows]
        found[table] = sorted(rows, key=lambda row: json.dumps(row, default=str))
    for top in ("images", "annotations"):
        for path in sorted((lake / top).rglob("*")):
            if path.is_file():
                found[path.relative_to(lake).as_posix()] = hashlib.md5(path.read_bytes()).hexdigest()
    found["lake.json"] = (lake / "lake.json").read_bytes() if (lake / "lake.json").exists() else None
    return found


def unexpected(lake: Path, *, between_runs: bool) -> list[str]:
    """Return what should not be in a lake.

    Args:
        lake: the lake.
        between_runs: whether the last run could remove what it left; else its staging area is not looked at.
    """
    strange = truth.leftovers(lake)
    needed = [f".staging/{entry['staged']}" for entry in _journal(lake) if entry["staged"]]
    if not between_runs:
        # Directories without a file, too: they are made before what goes into them.
        return [path for path in strange if not path.startswith(".staging/") and not (lake / path).is_dir()]
    return [p for p in strange if not p.startswith(".staging/journal/") and not _is_part_of(p, needed, lake)]


def _is_part_of(path: str, needed: list[str], lake: Path) -> bool:
    if path.startswith(".staging/"):
        return any(f"{path}/".startswith(f"{n}/") or n.startswith(f"{path}/") for n in needed)
    return (lake / path).is_dir()


def _journal(lake: Path) -> list[Row]:
    return [json.loads(path.read_bytes()) for path in (lake / ".staging" / "journal").glob("*/*.json")]
