"""The end of a year: everything that the lake holds against what the archive holds."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import duckdb

from nbia_pipeline.text import matching
from nbia_pipeline_tests.simulation.archive import MIRRORED
from nbia_pipeline_tests.simulation.model import COLUMNS, Rows
from nbia_pipeline_tests.simulation.world import FINGERPRINT, ArchiveYear

UID = "SeriesInstanceUID"


def expect_all_told(world: ArchiveYear) -> None:
    """Compare the tables, the files and the feed of changes with the archive and its history.

    Raises:
        AssertionError: they differ.
    """
    truth = world.truth()
    present = sorted({row["Collection"] for row in truth.values()})
    assert sorted(_read(world, "collections", "Collection")) == [(name,) for name in present]
    _expect_series(world, truth, present)
    _expect_patients_and_studies(world, truth, present)
    expect_metadata(world)
    expect_images(world)
    for collection in world.history.feeds:
        world.judge_feed(collection, again=True)
    told = sum(len(found) for feed in world.history.feeds.values() for _, found in feed.notes)
    assert _read(world, "series_changes", "count(*)") == [(told,)]


def _expect_series(world: ArchiveYear, truth: Rows, present: Collection[str]) -> None:
    """One row for each visible series; of a collection that vanished as a whole the last listing stays."""
    must = {(row["Collection"], uid): {c: row[c] for c in COLUMNS} for uid, row in truth.items()}
    for collection, feed in world.history.feeds.items():
        if collection not in present:
            must |= {(collection, uid): feed.series[uid].row for uid in feed.last}
    rows = _read(world, "series", "Collection", UID, *COLUMNS)
    found = {row[:2]: dict(zip(COLUMNS, row[2:], strict=True)) for row in rows}
    assert len(rows) == len(found)
    assert found == must


def _expect_patients_and_studies(world: ArchiveYear, truth: Rows, present: Collection[str]) -> None:
    for table, column in (("patients", "PatientID"), ("studies", "StudyInstanceUID")):
        must = {(row["Collection"], row[column]) for row in truth.values()}
        found = [row for row in _read(world, table, "Collection", column) if row[0] in present]
        assert sorted(found) == sorted(must), table


def expect_metadata(world: ArchiveYear) -> None:
    """One row for each visible series, with what the archive says now."""
    truth = world.truth()
    present = {row["Collection"] for row in truth.values()}
    columns = ("LicenseName", "DateReleased", "ImageCount")
    must = {uid: tuple(row[c] for c in columns) for uid, row in truth.items()}
    rows = [row for row in _read(world, "series_metadata", "Collection", UID, *columns) if row[0] in present]
    assert len(rows) == len(must)
    # The server sends a release as a day here, and no text for an empty one.
    assert {row[1]: _plain(row[2:]) for row in rows} == {uid: _plain(values) for uid, values in must.items()}


def _plain(values: tuple[Any, ...]) -> tuple[Any, ...]:
    license, released, count = values
    return license or None, released and released.date(), count


def expect_images(world: ArchiveYear) -> None:
    """Every listed series is there as it is listed, every withdrawn one as it was; nothing else is."""
    truth = world.truth()
    files: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for uid, *rest in _read(world, "instances", UID, "SOPInstanceUID", "MD5", "Size", "Path"):
        files[uid].append(tuple(rest))
    columns = ("Collection", UID, "Status", "Bytes", *FINGERPRINT)
    receipts = {row[1]: dict(zip(columns, row, strict=True)) for row in _read(world, "image_series", *columns)}
    mirrored = matching(MIRRORED, world.history.feeds)
    gone = {uid for collection in mirrored for uid in world.history.feeds[collection].gone}
    listed = {uid: row for uid, row in truth.items() if row["Collection"] in mirrored}
    assert {uid: r["Status"] for uid, r in receipts.items()} == {
        **dict.fromkeys(gone & set(receipts), "withdrawn"),
        **dict.fromkeys(listed, "complete"),
    }
    for uid, row in listed.items():
        assert {c: receipts[uid][c] for c in FINGERPRINT} == {c: row[c] for c in FINGERPRINT}
        assert {(sop, md5) for sop, md5, *_ in files[uid]} == _stored(world, uid)
    for uid in gone & world.ever_held:
        assert receipts[uid]["Bytes"] is not None, f"the files of {uid}, which is withdrawn, are gone"
    held = {uid for uid, receipt in receipts.items() if receipt["Bytes"] is not None}
    assert held == set(files)
    _expect_files(Path(world.lake.uri), [one for uid in held for one in files[uid]])
    assert {uid: r["Bytes"] for uid, r in receipts.items() if uid in held} == {
        uid: sum(size for _, _, size, _ in files[uid]) for uid in held
    }


def _stored(world: ArchiveYear, uid: str) -> set[tuple[str, str | None]]:
    """Return the instances of a series and their digests, as the archive stores them now."""
    store = world.images()
    return {(i.sop_instance_uid, store.md5(uid, i.sop_instance_uid)) for i in store.instances(uid)}


def _expect_files(lake: Path, files: list[tuple[Any, ...]]) -> None:
    for _, md5, size, path in files:
        content = (lake / path).read_bytes()
        assert (hashlib.md5(content).hexdigest(), len(content)) == (md5, size), path
    on_disk = {str(path.relative_to(lake)) for path in (lake / "images").rglob("*.dcm")}
    assert on_disk == {path for *_, path in files}


def _read(world: ArchiveYear, table: str, *columns: str) -> list[tuple[Any, ...]]:
    """Read columns of a table by DuckDB, which we did not write."""
    chosen = ", ".join(c if "(" in c else f'"{c}"' for c in columns)
    pattern = f"{world.lake.uri}/tables/{table}/**/*.parquet"
    return duckdb.execute(f"SELECT {chosen} FROM read_parquet('{pattern}', hive_partitioning = true)").fetchall()
