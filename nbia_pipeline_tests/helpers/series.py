"""Series, receipts and their files, made by hand."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.local_store import LocalStore
from nbia_pipeline.mirror.journal import publish_series
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.mirror.unpack import VerifiedInstance
from nbia_pipeline.schema.tables import SERIES

DAY = datetime(2024, 1, 2)  # noqa: DTZ001 - the server states no zone


def wanted(n: int, size: int | None = 100) -> WantedSeries:
    return WantedSeries(f"1.{n:04d}", "1", "P", "A", 3, size, datetime(2024, 1, 1, 8, 30), DAY)  # noqa: DTZ001


def series_table(rows: list[WantedSeries]) -> pa.Table:
    return pa.Table.from_pylist([w.__dict__ for w in rows], schema=SERIES.schema)


class Crash(BaseException):
    """The machine stops here: no handler of errors sees it."""


def receipt(size: int = 5, n: int = 1) -> Receipt:
    digest = hashlib.md5(b"x" * size, usedforsecurity=False).hexdigest()
    return Receipt(wanted(n), "complete", 1, [VerifiedInstance(f"9.{n}", "1.2.840", 1, size, digest)])


def publish(lake: Lake, one: Receipt) -> None:
    with lake.workspace() as work:
        stage(work, one)
        publish_series(lake, one, work / "files")


def stage(work: Path, one: Receipt) -> None:
    (work / "files").mkdir()
    for i in one.instances:
        (work / "files" / f"{i.SOPInstanceUID}.dcm").write_bytes(b"x" * i.Size)


def crash_before_the_move(lake: Lake, one: Receipt) -> None:
    """Leave what a process leaves that dies between the entry of the journal and the move."""

    def crash(self: LocalStore, staged: Path, path: str) -> None:
        raise Crash

    work = Path(lake.uri, ".staging", "host.1.abc")
    work.mkdir(parents=True)
    stage(work, one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "_move_folder", crash)
        with pytest.raises(Crash):
            publish_series(lake, one, work / "files")


def files_of(lake: Lake, path: str) -> dict[str, bytes]:
    return {p.rsplit("/", 1)[-1]: content for p, content in read_files(lake, path).items()}


def read_files(lake: Lake, folder: str) -> dict[str, bytes]:
    """Return the contents of the files in a folder of the lake, by path; none where there is no folder."""
    contents = {path: lake.read_bytes(path) for path in (f"{folder}/{n}" for n in lake.names_in(folder))}
    return {path: content for path, content in contents.items() if content is not None}


def expected_files(demo: Catalog, uid: str) -> dict[str, bytes]:
    store = demo.images
    assert store is not None
    instances = store.instances(uid)
    return {f"{i.sop_instance_uid}.dcm": store.read(uid, i.sop_instance_uid) for i in instances}


def held(lake: Lake) -> dict[str, int]:
    """Return the sizes of the files in the folder of :func:`receipt`, by path."""
    return {path: len(content) for path, content in read_files(lake, receipt().path).items()}
