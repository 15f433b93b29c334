"""What a lake must hold, by the archive's own facts; and what it does hold, read as any user would.

Nothing of the engine is used here: files are hashed again, tables are read by DuckDB, paths are spelled anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb

from nbia_pipeline.embedded.server.archive import Archive
from nbia_pipeline.schema import TABLES
from nbia_pipeline_tests.helpers.places import Place, files_below, read_stores, relative

Rows = dict[str, dict[str, Any]]

_RECEIPT = (
    "SeriesInstanceUID StudyInstanceUID PatientID Collection Status ImageCount Bytes SeriesMD5 TimeStamp FileSize "
    "DateReleased Proof Reason"
).split()
_INSTANCE = "SOPInstanceUID SeriesInstanceUID Collection SOPClassUID InstanceNumber Path Size MD5".split()
_FINGERPRINT = ("ImageCount", "FileSize", "TimeStamp", "DateReleased")
_VISIBLE = 1
PROOFS = {"md5+count+size": "md5"}
"""Of the proofs by digests, the one that stands for both."""
_FILES = ("lake.json", "catalog.sql")
_FOLDERS = ("images", "annotations", "tables", ".staging")


@dataclass(frozen=True)
class Contents:
    """What a lake holds, or must hold.

    Attributes:
        files: MD5 of every image file by its path.
        receipts: rows of ``image_series`` by SeriesInstanceUID, without what differs from run to run.
        instances: rows of ``instances`` by SOPInstanceUID.
    """

    files: dict[str, str]
    receipts: Rows
    instances: Rows

    def without(self, *series: str) -> Contents:
        """Return the same without some series."""
        receipts = {uid: row for uid, row in self.receipts.items() if uid not in series}
        instances = {uid: row for uid, row in self.instances.items() if row["SeriesInstanceUID"] not in series}
        paths = {row["Path"] for row in instances.values()}
        return Contents({path: md5 for path, md5 in self.files.items() if path in paths}, receipts, instances)


@functools.lru_cache(maxsize=256)
def _digests(store: Any, stamp: str, uid: str) -> dict[str, str]:
    return {
        i.sop_instance_uid: hashlib.md5(store.read(uid, i.sop_instance_uid)).hexdigest() for i in store.instances(uid)
    }


def facts_of(archive: Archive, collections: Iterable[str]) -> Rows:
    """Return the facts of the visible series of some collections, by SeriesInstanceUID."""
    rows = [row for name in collections for row in archive.holdings.rows_of(name).to_pylist()]
    return {row["SeriesInstanceUID"]: row for row in rows if row["Visibility"] == _VISIBLE}


def truth(archive: Archive, collections: Iterable[str], proofs: dict[str, str] | None = None) -> Contents:
    """Return what the lake must hold of some collections.

    Args:
        archive: the embedded archive.
        collections: their names.
        proofs: ``Proof`` of the series that are not proven by digests; ``md5`` stands for both proofs that are.
    """
    store: Any = archive.holdings.catalog.images
    files: dict[str, str] = {}
    receipts: Rows = {}
    instances: Rows = {}
    for uid, facts in facts_of(archive, collections).items():
        digests = _digests(store, archive.holdings.content_stamp(uid), uid)
        names = (facts["Collection"], facts["PatientID"], facts["StudyInstanceUID"], uid)
        folder = "/".join(["images", *(quote(name, safe="") for name in names)])
        for i in store.instances(uid):
            path = f"{folder}/{i.sop_instance_uid}.dcm"
            digest = files[path] = digests[i.sop_instance_uid]
            known = (i.sop_instance_uid, uid, facts["Collection"], i.sop_class_uid, i.instance_number, path, i.size)
            instances[i.sop_instance_uid] = dict(zip(_INSTANCE, (*known, digest), strict=True))
        told = {
            "Status": "complete",
            "Bytes": sum(i.size for i in store.instances(uid)),
            "SeriesMD5": hashlib.md5("".join(sorted(digests.values())).encode()).hexdigest(),
            "Proof": (proofs or {}).get(uid, "md5"),
            "Reason": None,
        }
        receipts[uid] = {name: told.get(name, facts.get(name)) for name in _RECEIPT}
    return Contents(files, receipts, instances)


def contents(lake: Place) -> Contents:
    """Return what a lake holds."""
    files = {relative(path, lake): hashlib.md5(path.read_bytes()).hexdigest() for path in files_below(lake / "images")}
    return Contents(files, _receipts(lake), {row["SOPInstanceUID"]: row for row in _rows(lake, "instances", _INSTANCE)})


@functools.cache
def _duckdb() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def _reader(lake: Place) -> duckdb.DuckDBPyConnection:
    reader = _duckdb()
    if not isinstance(lake, Path):
        read_stores(reader)
    return reader.cursor()


def _rows(lake: Place, table: str, columns: list[str]) -> list[dict[str, Any]]:
    if not (lake / "tables" / table).is_dir():
        return []
    found = _reader(lake).sql(
        f"SELECT {', '.join(columns)} FROM read_parquet('{lake}/tables/{table}/*/*.parquet', "
        "hive_partitioning = true, hive_types_autocast = false)"
    )
    rows: list[dict[str, Any]] = found.to_arrow_table().to_pylist()
    key = columns[0]
    assert len({row[key] for row in rows}) == len(rows), f"{table} has a row twice"
    return rows


def column(lake: Place, name: str) -> dict[str, Any]:
    """Return a column of ``image_series`` by SeriesInstanceUID."""
    return {row["SeriesInstanceUID"]: row[name] for row in _rows(lake, "image_series", ["SeriesInstanceUID", name])}


def leftovers(lake: Place) -> list[str]:
    """Return everything in a lake that should not be there between two runs."""
    strange = [p.name for p in lake.glob("*") if p.name not in (*_FOLDERS, *_FILES)]
    staging = lake / ".staging"
    for path in staging.rglob("*") if staging.is_dir() else ():
        top, *rest = relative(path, staging).split("/")
        if top in ("locks", "earlier") or (top == "journal" and path.is_dir() and len(rest) < 2):
            continue
        strange.append(relative(path, lake))
    # A directory without files would be a series that is half there, or was.
    for path in (lake / "images").rglob("*") if isinstance(lake, Path) else ():
        if path.is_dir() and not any(path.iterdir()):
            strange.append(relative(path, lake))
    parts = {f"part-{part}.parquet" for part in range(256)}
    known = {name: parts if table.sharded else {"part-0.parquet"} for name, table in TABLES.items()}
    found = ((p, relative(p, lake / "tables").split("/")[0]) for p in files_below(lake / "tables"))
    tables = (p for p, table in found if p.name not in known.get(table, ()))
    return [*strange, *(relative(p, lake) for p in tables)]


def has_damaged_catalog(lake: Path) -> bool:
    """Return whether ``catalog.sql`` is there and is not whole, with a view of each table."""
    path = lake / "catalog.sql"
    if not path.exists():
        return False
    text = path.read_bytes().decode(errors="replace")
    views = re.findall(r'^CREATE OR REPLACE VIEW "(\w+)" AS\n[^;\0]*;$', text, re.MULTILINE)
    return views != list(TABLES) or not text.endswith(";\n")


def receipted(lake: Place) -> Rows:
    """Return the receipts of the series that are complete by the tables, or by the journal, which is newer."""
    done = {uid: row for uid, row in _receipts(lake).items() if row["Status"] == "complete"}
    for entry in (lake / ".staging" / "journal").glob("*/*.json"):
        receipt = json.loads(entry.read_bytes())["receipt"]
        uid = receipt["wanted"]["SeriesInstanceUID"]
        done.pop(uid, None)
        if receipt["status"] == "complete":
            done[uid] = receipt["wanted"]
    return done


def finished(lake: Place, archive: Archive, collections: Iterable[str]) -> set[str]:
    """Return the series that are complete with what the archive lists now."""
    listed = facts_of(archive, collections)
    return {uid for uid, receipt in receipted(lake).items() if uid in listed and _same(listed[uid], receipt)}


def _receipts(lake: Place) -> Rows:
    rows = _rows(lake, "image_series", _RECEIPT)
    # Which of the two proofs by digests it is depends on what went wrong on the way.
    return {r["SeriesInstanceUID"]: {**r, "Proof": PROOFS.get(r["Proof"], r["Proof"])} for r in rows}


def _same(facts: dict[str, Any], receipt: dict[str, Any]) -> bool:
    pairs = ((facts[name], receipt[name]) for name in _FINGERPRINT)
    return all(str(a).replace("T", " ") == str(b).replace("T", " ") for a, b in pairs)


def expect_whole_or_absent(lake: Place, expected: Contents) -> None:
    """Make sure that what lies in a lake is right, series by series, though some may be missing.

    This must hold at any moment, and of a lake that a run left in the middle. No files lie there without a receipt,
    unless they were uploaded to an object store, where they are first.
    """
    files = contents(lake).files
    assert files.items() <= expected.files.items()
    known = receipted(lake).keys()
    with_receipt = {path: digest for path, digest in files.items() if path.split("/")[-2] in known}
    if isinstance(lake, Path):
        assert with_receipt == files
    files = with_receipt
    for folder in {path.rpartition("/")[0] for path in files}:
        assert {p for p in files if p.startswith(f"{folder}/")} == {
            p for p in expected.files if p.startswith(f"{folder}/")
        }, f"{folder} is not whole"
