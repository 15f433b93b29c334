"""``nbia-pipeline prune``: only what is withdrawn goes, only when told to, and a crash half-way is made good."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from nbia_pipeline import clock
from nbia_pipeline.cli.main import main
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.headers.graph.resolve import resolve_references, write_references
from nbia_pipeline.headers.shards import Shard, plan_headers, write_shard
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.prune import prunable, prune
from nbia_pipeline.schema.headers import SERIES_REFERENCES, SHARDED
from nbia_pipeline.schema.tables import ANNOTATION_FILES, IMAGE_SERIES, INSTANCES
from nbia_pipeline_tests.helpers.pipeline import QIN, LivePipeline
from nbia_pipeline_tests.helpers.places import Place, copied, place_at
from nbia_pipeline_tests.helpers.series import Crash
from nbia_pipeline_tests.helpers.tiny import running

pytestmark = pytest.mark.slow


@dataclass
class Prepared:
    """A lake that holds the files of five series, two of which are withdrawn, and its archive.

    Attributes:
        lake: to be copied.
        url: of the archive.
        control: of the archive.
        gone: the UIDs of the two.
        time: when the last listing was.
    """

    lake: Path
    url: str
    control: Operations
    gone: list[str]
    time: datetime


@pytest.fixture(scope="module")
def prepared(demo: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    folder = tmp_path_factory.mktemp("prepared")
    app = create_app(demo)
    with running(app) as url, dg.DagsterInstance.ephemeral(tempdir=str(folder)) as instance:
        world = LivePipeline(url, app.state.archive.control, folder / "lake", instance, "v2")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(clock, "utc_now", lambda: world.time)
            world.materialize("collections", collection=None)
            gone = sorted(world.uids())[:2]
            world.look()
            world.materialize("images")
            for shard in plan_headers(world.lake, QIN):
                write_shard(world.lake, shard)
            world.control.hide(gone)
            world.look()
            world.look(6)
        yield Prepared(folder / "lake", url, world.control, gone, world.time)


@pytest.fixture
def world(prepared: Prepared, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[LivePipeline]:
    """That lake and that archive for one test."""
    copied(prepared.lake, place / "lake")
    prepared.control.reset()
    prepared.control.hide(prepared.gone)
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        world = LivePipeline(prepared.url, prepared.control, place / "lake", instance, "v2")
        instance.add_dynamic_partitions("nbia_collections", [QIN])
        world.time = prepared.time
        world.later(0)
        monkeypatch.setattr(clock, "utc_now", lambda: world.time)
        monkeypatch.setenv("NBIA_LAKE", world.settings.lake)
        yield world


@pytest.fixture
def withdrawn(prepared: Prepared) -> list[str]:
    """The two series that are withdrawn."""
    return prepared.gone


def files(world: LivePipeline) -> dict[str, int]:
    return {path: size for path, size in world.lake.sizes("images").items() if path.endswith(".dcm")}


def of_series(found: dict[str, int], uids: list[str]) -> dict[str, int]:
    return {path: size for path, size in found.items() if path.split("/")[-2] in uids}


def headers_agree(world: LivePipeline, left: Sequence[Shard] = ()) -> bool:
    """Return whether the tables of headers are of the series whose files are there, and of no others."""
    found = [set(world.lake.read_table(table, QIN)["SeriesInstanceUID"].to_pylist()) for table in SHARDED[:2]]
    there = {path.split("/")[-2] for path in files(world)}
    return found[0] == there and found[1] <= there and plan_headers(world.lake, QIN) == [*left]


def statuses(world: LivePipeline) -> dict[str, int]:
    return dict(world.sql("image_series", "SELECT Status, count(*) FROM t GROUP BY 1"))


@pytest.mark.stores("seaweedfs")
def test_it_deletes_what_is_withdrawn_and_nothing_else(
    world: LivePipeline, withdrawn: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(world)
    gone = of_series(before, withdrawn)
    references = write_references(world.lake, QIN)
    assert main(["prune", "--yes"]) == 0
    said = capsys.readouterr().out
    size = f"{sum(gone.values()) / 1e6:.1f} MB" if sum(gone.values()) >= 1e6 else f"{sum(gone.values()) / 1e3:.1f} kB"
    assert f"  {QIN}: 2 series, {len(gone)} files, {size}, missing since 2026-03-01\n" in said
    assert f"Deleted 2 series, {len(gone)} files, {size}." in said
    after = files(world)
    assert after == {path: size for path, size in before.items() if path not in gone}
    assert dict(world.sql("instances", "SELECT Path, Size FROM t")) == after
    assert headers_agree(world)
    now = world.lake.read_table(SERIES_REFERENCES, QIN)
    assert now == resolve_references(world.lake, QIN) != references
    rows = world.sql(
        "image_series", "SELECT SeriesInstanceUID, Bytes, Reason FROM t WHERE Status = 'withdrawn' ORDER BY 1"
    )
    why = "pruned on 2026-03-01: the archive withdrew it: hidden (Visibility: Not Visible)"
    assert rows == [(uid, None, why) for uid in withdrawn]
    assert statuses(world) == {"complete": 3, "withdrawn": 2}
    images = place_at(world.settings.lake, "images")
    if isinstance(images, Path):  # an object store has no folders
        assert [p for p in images.rglob("*") if p.is_dir() and not any(p.iterdir())] == []
    assert main(["prune", "--yes"]) == 0
    assert "Nothing to delete" in capsys.readouterr().out


def test_a_pruned_series_that_returns_is_fetched_again(world: LivePipeline, withdrawn: list[str]) -> None:
    before = files(world)
    assert main(["prune", QIN, "--yes"]) == 0
    world.control.show(withdrawn[0])
    world.look()
    world.materialize("images")
    assert world.asked()["getImageWithMD5Hash"] == 1
    assert statuses(world) == {"complete": 4, "withdrawn": 1}
    assert of_series(files(world), withdrawn) == of_series(before, withdrawn[:1])
    assert dict(world.sql("instances", "SELECT Path, Size FROM t")) == files(world)


def annotate(world: LivePipeline, uids: list[str]) -> dict[str, int]:
    """Give series in the lake an annotation file each, and return the sizes by path."""
    receipts = world.lake.read_table(IMAGE_SERIES, QIN).to_pylist()
    rows = [
        {
            **{name: r[name] for name in ANNOTATION_FILES.schema.names if name in r},
            "Name": "a.xml",
            "Path": f"annotations/{QIN}/{r['PatientID']}/{r['StudyInstanceUID']}/{r['SeriesInstanceUID']}/a.xml",
            "Size": 1000 + n,
        }
        for n, r in enumerate(receipts)
        if r["SeriesInstanceUID"] in uids
    ]
    for row in rows:
        world.lake.put_bytes(row["Path"], bytes(row["Size"]))
    world.lake.write_table(ANNOTATION_FILES, pa.Table.from_pylist(rows, schema=ANNOTATION_FILES.schema), QIN)
    return {row["Path"]: row["Size"] for row in rows}


@pytest.mark.parametrize("changes", [3, 4, 5, None])
def test_annotation_files_go_with_the_images_also_after_a_crash(
    world: LivePipeline, withdrawn: list[str], changes: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The changes: the receipts, two folders of images, two of annotation files, their table, the index."""
    kept = next(uid for uid in world.uids() if uid not in withdrawn)
    annotated = annotate(world, [*withdrawn, kept])
    gone = of_series(annotated, withdrawn)
    shown = prunable(world.lake, QIN)
    images = of_series(files(world), withdrawn)
    assert shown is not None
    assert (shown.files, shown.bytes) == (len(images) + 2, sum(images.values()) + sum(gone.values()))
    if changes is not None:
        with pytest.raises(Crash):
            prune(CrashingLake(world.settings.lake, changes), shown)
    assert main(["prune", "--yes"]) == 0
    assert "Deleted 2 series" in capsys.readouterr().out
    left = of_series(annotated, [kept])
    assert world.lake.sizes("annotations") == left == dict(world.sql("annotation_files", "SELECT Path, Size FROM t"))
    assert of_series(files(world), withdrawn) == {}
    assert dict(world.sql("instances", "SELECT Path, Size FROM t")) == files(world)


def test_a_series_that_returned_meanwhile_is_spared(world: LivePipeline, withdrawn: list[str]) -> None:
    before = files(world)
    shown = prunable(world.lake, QIN)
    assert shown is not None
    world.control.show(withdrawn[0])
    world.later(1)
    world.materialize("series")  # the feed does not know yet
    deleted = prune(world.lake, shown)
    assert deleted is not None
    assert deleted.series == {withdrawn[1]}
    assert of_series(files(world), withdrawn) == of_series(before, withdrawn[:1])


def test_what_is_missing_but_not_withdrawn_stays(world: LivePipeline, withdrawn: list[str]) -> None:
    missing = next(uid for uid in world.uids() if uid not in withdrawn)
    world.control.hide(missing)
    world.look()
    assert main(["prune", "--yes"]) == 0
    assert of_series(files(world), [missing])


def test_a_whole_collection_can_go(world: LivePipeline, withdrawn: list[str]) -> None:
    world.control.hide(world.uids())
    for hours in (1, 6):
        world.later(hours)
        world.materialize("collections", collection=None)
    assert main(["prune", "--yes"]) == 0
    assert files(world) == {}
    assert world.lake.count_rows(INSTANCES, QIN) == 0
    left = [path.rpartition("/")[2] for path in world.lake.sizes(f"images/{QIN}")]
    assert all(name.startswith("LICENSE~") for name in left), "the texts of licences stay, as their table does"
    assert statuses(world) == {"withdrawn": 5}


def test_without_a_terminal_nothing_goes_unless_told(
    world: LivePipeline, withdrawn: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(world)
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    assert main(["prune"]) == 1
    said = capsys.readouterr()
    assert f"  {QIN}: 2 series" in said.out
    assert said.err == "nbia-pipeline: nothing was deleted, because there is no terminal to confirm on: add --yes\n"
    assert files(world) == before
    assert statuses(world) == {"complete": 3, "withdrawn": 2}


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("y", 1), ("", 1)])
def test_on_a_terminal_it_asks(world: LivePipeline, withdrawn: list[str], answer: str, code: int) -> None:
    before = files(world)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "nbia_pipeline", "prune"]
    with subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        said, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == code, said
    assert "Delete these files for good? Type yes: " in said
    assert (files(world) == before) == (code == 1)


def test_a_collection_without_images_is_named(
    world: LivePipeline, withdrawn: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", "qin_breast.v2", "--yes"]) == 2
    assert f"has no images of 'qin_breast.v2': it has those of {QIN}\n" in capsys.readouterr().err


class CrashingLake(Lake):
    """A lake whose process dies after so many of its changes."""

    def __init__(self, uri: str, changes: int) -> None:
        super().__init__(uri)
        self.left = changes

    def put_bytes(self, path: str, data: object) -> None:
        self._change()
        super().put_bytes(path, data)

    def put_part(self, *words: Any) -> None:
        self._change()
        super().put_part(*words)

    def remove_folder(self, path: str) -> None:
        self._change()
        super().remove_folder(path)

    def _change(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash


@pytest.mark.parametrize("changes", [0, 1, 2, 4, 7])
def test_a_crash_at_any_change_leaves_no_receipt_without_files_and_is_made_good(
    world: LivePipeline, withdrawn: list[str], changes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The changes: the receipts, the folders of two series, four tables of headers, the index of the files."""
    before = files(world)
    shown = prunable(world.lake, QIN)
    assert shown is not None
    with pytest.raises(Crash):
        prune(CrashingLake(world.settings.lake, changes), shown)
    receipts = world.lake.read_table(IMAGE_SERIES, QIN).to_pylist()
    stated = [r["SeriesInstanceUID"] for r in receipts if r["Bytes"] is not None]
    assert stated == [r["SeriesInstanceUID"] for r in receipts if r["Path"] is not None]
    assert of_series(files(world), stated) == of_series(before, stated)
    assert main(["prune", "--yes"]) == 0
    assert "Deleted 2 series" in capsys.readouterr().out
    assert of_series(files(world), withdrawn) == {}
    assert dict(world.sql("instances", "SELECT Path, Size FROM t")) == files(world)
    left = plan_headers(world.lake, QIN)
    assert (changes == 4) == bool(left), "a part whose tables were not all written is read again"
    assert headers_agree(world, left)


def test_a_series_that_returns_after_a_crash_is_fetched_whatever_was_deleted(
    world: LivePipeline, withdrawn: list[str]
) -> None:
    before = files(world)
    shown = prunable(world.lake, QIN)
    assert shown is not None
    with pytest.raises(Crash):
        prune(CrashingLake(world.settings.lake, 2), shown)  # the folder of the first is gone
    world.control.show(withdrawn)
    world.look()
    world.materialize("images")
    assert world.asked()["getImageWithMD5Hash"] == 2
    assert files(world) == before
    assert dict(world.sql("instances", "SELECT Path, Size FROM t")) == before
    assert statuses(world) == {"complete": 5}


def test_the_day_of_pruning_is_that_of_the_clock(world: LivePipeline, withdrawn: list[str]) -> None:
    world.time = datetime(2027, 1, 2)  # noqa: DTZ001 - the tables state no zone
    assert main(["prune", "--yes"]) == 0
    assert {r for (r,) in world.sql("image_series", "SELECT Reason FROM t WHERE Status = 'withdrawn'")} == {
        "pruned on 2027-01-02: the archive withdrew it: hidden (Visibility: Not Visible)"
    }
