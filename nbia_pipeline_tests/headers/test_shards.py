"""The tables of headers in parts: what is read again, what a kill leaves, and how a part becomes several."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from s3fs import S3FileSystem

from nbia_pipeline.headers.shards import (
    Shard,
    ShardReport,
    bounded,
    plan,
    plan_headers,
    remove_series,
    shard_of,
    write_shard,
)
from nbia_pipeline.headers.shards.files import HEAD_BYTES
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.lake.object_store import ObjectStore
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.headers import INSTANCE_HEADERS, SERIES_GEOMETRY, SHARDED
from nbia_pipeline.schema.status import COMPLETE, WITHDRAWN
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES
from nbia_pipeline_tests.helpers.dicom import dicom
from nbia_pipeline_tests.helpers.held import CT, NAME, Held, states, uid_of
from nbia_pipeline_tests.helpers.series import Crash

SERIES, FILES = 16, 3
MOST = 2 * SERIES * FILES // 4
"""Instances of a part: four parts."""
ROOT = Path(__file__).parents[2]
MOST_MEMORY = 300
"""MiB, of a process without Dagster, which takes some 100."""

_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event == "open" and str(arguments[0]).endswith(".dcm"):
        _opened.append(str(arguments[0]))


sys.addaudithook(_hook)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The image files that this process opens from now on."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Held:
    """A lake whose tables of headers are there, in four parts."""
    held = Held(Lake(str(tmp_path_factory.mktemp("first") / "lake")))
    held.put(range(SERIES), FILES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MOST_INSTANCES", MOST)
        make(held)
    return held


def copy_of(held: Held, folder: Path) -> Held:
    shutil.copytree(held.lake.uri, folder)
    return held.at(Lake(str(folder)))


@pytest.fixture
def held(first: Held, tmp_path: Path) -> Held:
    """A copy of it."""
    return copy_of(first, tmp_path / "lake")


def make(held: Held, *, full: bool = False, max_instances: int | None = None) -> list[ShardReport]:
    """Do what a run of the asset does."""
    found = bounded(plan_headers(held.lake, NAME, full=full), max_instances)
    return [write_shard(held.lake, Shard.from_json(shard.to_json())) for shard in found]


def expect_whole(held: Held) -> None:
    """Each series is in each table once, in the version of its receipt, and in its part; nothing is left to do."""
    assert plan_headers(held.lake, NAME) == []
    assert states(held.lake.read_table(INSTANCE_HEADERS, NAME)) == held.expected()
    assert held.lake.count_rows(INSTANCE_HEADERS, NAME) == sum(held.counts.values())
    geometry = held.lake.read_table(SERIES_GEOMETRY, NAME).to_pylist()
    assert {row["SeriesInstanceUID"]: row["Instances"] for row in geometry} == {
        uid_of(number): count for number, count in held.counts.items()
    }
    assert len(geometry) == len(held.counts)
    for part in held.lake.parts_of(INSTANCE_HEADERS, NAME):
        rows = held.lake.read_table(INSTANCE_HEADERS, NAME, ["SeriesInstanceUID", "InstanceNumber"], part=part)
        order = [tuple(row.values()) for row in rows.to_pylist()]
        assert order == sorted(order)
        assert {shard_of(uid, 4) for uid, _ in order} <= {part}


def files_of(held: Held) -> dict[str, int]:
    """Return the files of the tables of headers, each with its inode: a new one is another."""
    folders = [Path(held.lake.uri, "tables", table.name) for table in SHARDED]
    return {f"{p.parts[-3]}/{p.name}": p.stat().st_ino for folder in folders for p in folder.rglob("part-*.parquet")}


def test_only_the_files_of_a_revised_series_are_read_and_one_part_is_written(held: Held, opened: list[str]) -> None:
    before = files_of(held)
    assert make(held) == [] and opened == []
    held.put([7], FILES + 1, version=2)
    opened.clear()
    (report,) = make(held)
    part = shard_of(uid_of(7), 4)
    assert sorted(opened) == [held.lake.url(held.path(7, index)) for index in range(FILES + 1)]
    assert (report.part, report.series_read, report.instances_read) == (part, 1, FILES + 1)
    changed = {name for name, inode in files_of(held).items() if before[name] != inode}
    assert changed == {f"{table.name}/part-{part}.parquet" for table in SHARDED}
    assert states(held.lake.read_table(INSTANCE_HEADERS, NAME))[7] == Counter({2: FILES + 1})
    expect_whole(held)


def test_series_come_and_go(held: Held, opened: list[str]) -> None:
    held.put([100, 101], 2)
    held.drop(3)
    held.receipt(4, Status=WITHDRAWN, Bytes=None)  # pruned
    held.receipt(5, Status=WITHDRAWN)  # still there
    held.write()
    opened.clear()
    make(held)
    assert len(opened) == 4
    held.versions.pop(4), held.counts.pop(4)
    expect_whole(held)


def test_a_file_that_cannot_be_read_is_a_row_with_a_problem(held: Held, opened: list[str]) -> None:
    held.put([0, 1], version=2)
    Path(held.lake.url(held.path(0, 1))).unlink()
    Path(held.lake.url(held.path(1, 0))).write_bytes(b"no DICOM")
    reports = make(held)
    assert sum(r.unreadable for r in reports) == sum(r.problems for r in reports) == 2
    found = states(held.lake.read_table(INSTANCE_HEADERS, NAME))
    assert found[0] == found[1] == Counter({2: FILES - 1, 0: 1})
    assert plan_headers(held.lake, NAME) == []
    # When its part is written the next time, such a series is read again.
    held.put([0], version=2)
    held.put([next(n for n in range(200, 300) if shard_of(uid_of(n), 4) == shard_of(uid_of(0), 4))])
    make(held)
    assert states(held.lake.read_table(INSTANCE_HEADERS, NAME))[0] == Counter({2: FILES})


def test_a_lake_that_is_gone_is_an_error(held: Held) -> None:
    held.put([0], version=2)
    found = plan_headers(held.lake, NAME)
    Path(held.lake.url("images")).rename(held.lake.url("elsewhere"))
    with pytest.raises(LakeError, match="cannot read image files in the lake"):
        write_shard(held.lake, found[0])
    assert states(held.lake.read_table(INSTANCE_HEADERS, NAME))[0] == Counter({1: FILES})


def test_a_run_that_is_bounded_is_continued_by_the_next(held: Held) -> None:
    revised = [number for number in held.counts if shard_of(uid_of(number), 4) < 2]
    held.put(revised, version=2)
    read = []
    for _ in revised:
        reports = make(held, max_instances=2 * FILES + 1)  # a series is read as a whole
        read.append(sum(report.series_read for report in reports))
        found = states(held.lake.read_table(INSTANCE_HEADERS, NAME))
        assert len(found) == SERIES and all(len(versions) == 1 for versions in found.values())
        if not reports:
            break
    assert sum(read) == len(revised) > 3 and read[0] == 3
    expect_whole(held)


@pytest.fixture(scope="module")
def one_part(tmp_path_factory: pytest.TempPathFactory) -> Held:
    """A lake whose tables of headers have one part."""
    held = Held(Lake(str(tmp_path_factory.mktemp("one") / "lake")))
    held.put(range(8), FILES)
    make(held)
    return held


def test_full_reads_all_and_makes_more_parts(
    one_part: Held, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = copy_of(one_part, tmp_path / "lake")
    monkeypatch.setattr(plan, "MOST_INSTANCES", 4 * FILES)
    assert plan_headers(held.lake, NAME) == [], "there are never more parts by themselves"
    found = plan_headers(held.lake, NAME, full=True)
    assert {shard.shards for shard in found} == {4} and sum(shard.instances for shard in found) == 8 * FILES
    opened.clear()
    # In whatever order: the first one of a part of before makes all of those that it becomes.
    for number, shard in enumerate(random.Random(1).sample(found, len(found))):
        write_shard(held.lake, shard)
        rows = states(held.lake.read_table(INSTANCE_HEADERS, NAME))
        assert rows.keys() == held.counts.keys(), number
    assert len(opened) == 8 * FILES
    expect_whole(held)


def test_a_part_that_is_damaged_or_lacks_a_table_is_read_again(held: Held, opened: list[str]) -> None:
    tables = {part: SHARDED[part] for part in range(3)}
    for part, table in tables.items():
        path = Path(held.lake.url(table_path(table.name, NAME, part)))
        path.write_bytes(path.read_bytes()[: -part * 1000]) if part else path.unlink()
    reports = make(held)
    assert [report.part for report in reports] == [0, 1, 2]
    assert len(opened) == sum(report.instances for report in reports)
    expect_whole(held)


def test_damage_inside_a_part_is_noticed_while_its_rows_are_carried_over(held: Held) -> None:
    part = shard_of(uid_of(7), 4)
    path = Path(held.lake.url(table_path(INSTANCE_HEADERS.name, NAME, part)))
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(40)
    path.write_bytes(content)
    held.put([7], version=2)
    (report,) = make(held)
    assert report.series_read == report.series
    expect_whole(held)


def test_the_rows_of_series_that_are_pruned_go_at_once(held: Held, opened: list[str]) -> None:
    gone = (2, 9)
    Path(held.lake.url(table_path(INSTANCE_HEADERS.name, NAME, 3))).write_bytes(b"")
    remove_series(held.lake, NAME, map(uid_of, gone))
    held.drop(*gone)
    assert opened == []
    found = states(held.lake.read_table(INSTANCE_HEADERS, NAME))
    assert not found.keys() & {*gone}
    assert {shard_of(uid_of(number), 4) for number in found} == {0, 1, 2}, "what was damaged is made again"
    assert [shard.part for shard in plan_headers(held.lake, NAME)] == [3]
    make(held)
    expect_whole(held)
    remove_series(held.lake, NAME, [uid_of(number) for number in held.counts])
    assert held.lake.count_rows(INSTANCE_HEADERS, NAME) == held.lake.count_rows(SERIES_GEOMETRY, NAME) == 0


@pytest.mark.stores("moto")
@pytest.mark.not_on_disk
def test_of_a_lake_in_an_object_store_the_first_bytes_of_each_file_are_read(
    lake: Lake, first: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(lake)
    held.put(range(4), FILES)
    held.put([4], 1)
    lake.put_bytes(held.path(2, 1), b"")
    lake.remove(held.path(3, 1))
    asked: list[tuple[str, ...]] = []
    call = S3FileSystem._call_s3

    async def watched(self: Any, method: str, *words: Any, **arguments: Any) -> Any:
        asked.append((str(arguments.get("Key")).partition("/images/")[2], method, str(arguments.get("Range"))))
        return await call(self, method, *words, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(S3FileSystem, "_call_s3", watched)
        (report,) = make(held)
    assert (report.instances, report.instances_read, report.unreadable) == (13, 13, 2)
    paths = [held.path(number, index) for number in range(4) for index in range(FILES)] + [held.path(4)]
    wanted = [(path.removeprefix("images/"), "get_object", f"bytes=0-{HEAD_BYTES - 1}") for path in paths]
    assert sorted(one for one in asked if one[0].endswith(".dcm")) == sorted(wanted)
    assert states(lake.read_table(INSTANCE_HEADERS, NAME)) == {
        **{number: Counter({1: FILES}) for number in range(2)},
        **{number: Counter({1: FILES - 1, 0: 1}) for number in (2, 3)},
        4: Counter({1: 1}),
    }
    assert make(held) == []
    monkeypatch.setattr(ObjectStore, "read_range", raising(ConnectionError("no route")))
    held.put([0], version=2)
    with pytest.raises(LakeError, match="no route"):
        make(held)


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


# --- kills

KILLS, ALWAYS = 50, 3


def once(lake: Lake, most: int, full: bool, die_at: int) -> str | None:
    """Make the tables in a process; return what it said, None if it was killed."""
    words = [lake.uri, NAME, str(most), str(int(full)), str(die_at)]
    command = [sys.executable, "-m", "nbia_pipeline_tests.helpers.headers_once", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.stdout if done.returncode == 0 else None


def test_a_kill_loses_no_series_and_leaves_none_half(held: Held, request: pytest.FixtureRequest) -> None:
    kills = KILLS if request.config.getoption("--every-moment") else ALWAYS
    chance = random.Random(15)
    version = 1
    for _ in range(kills):
        if not plan_headers(held.lake, NAME):
            version += 1
            held.put(range(0, SERIES, 2), version=version)
        died = once(held.lake, MOST, False, chance.randint(1, 40)) is None
        found = states(held.lake.read_table(INSTANCE_HEADERS, NAME))
        assert found.keys() == held.counts.keys()
        for number, versions in found.items():
            known = {1} if number % 2 else {version - 1, version}
            assert set(versions) <= known and list(versions.values()) == [FILES], (number, versions, died)
    make(held)
    expect_whole(held)


def test_a_crash_while_parts_are_divided_loses_no_series(
    one_part: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(plan, "MOST_INSTANCES", 4 * FILES)
    moves = range(1, (4 + 3) * 4) if request.config.getoption("--every-moment") else (2, 17)
    put = Lake.put_part
    for last in moves:
        held = copy_of(one_part, tmp_path / f"{last}")
        calls = iter(range(last))

        def put_part(*words: Any, calls: Iterator[int] = calls) -> None:
            if next(calls, None) is None:
                raise Crash
            put(*words)

        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(Lake, "put_part", put_part)
            make(held, full=True)
        found = states(held.lake.read_table(INSTANCE_HEADERS, NAME))
        assert found.keys() == held.counts.keys(), last
        assert all(set(versions) == {1} for versions in found.values())
        make(held)
        expect_whole(held)


def test_the_memory_for_a_part_does_not_grow_with_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--every-moment"):
        pytest.skip("takes a quarter of a minute: make test-headers")
    lake = Lake(str(tmp_path / "lake"))
    lake.put_bytes("images/one.dcm", dicom(SOPClassUID=CT, Modality="CT", ImageComments="6 kB of text " * 460))
    uids = [uid_of(number) for number in range(500)]
    receipts: dict[str, list[Any]] = {
        "SeriesInstanceUID": uids,
        "Status": [COMPLETE] * 500,
        "SeriesMD5": ["0"] * 500,
        "Bytes": [1] * 500,
    }
    lake.write_table(IMAGE_SERIES, table_of(IMAGE_SERIES, receipts), NAME)
    each = [uid for uid in uids for _ in range(200)]
    files = {"SeriesInstanceUID": each, "SOPInstanceUID": [f"{uid}.{n}" for n, uid in enumerate(each)]}
    files["Path"] = ["images/one.dcm"] * len(each)
    lake.write_table(INSTANCES, table_of(INSTANCES, files), NAME)
    peak = once(lake, 100_000, False, 0)
    assert peak is not None and int(peak) < MOST_MEMORY
    assert lake.count_rows(INSTANCE_HEADERS, NAME) == 100_000
    receipts["SeriesMD5"][7] = "1"
    lake.write_table(IMAGE_SERIES, table_of(IMAGE_SERIES, receipts), NAME)
    peak = once(lake, 100_000, False, 0)
    assert peak is not None and int(peak) < MOST_MEMORY
    assert len(set(lake.read_table(INSTANCE_HEADERS, NAME, ["SeriesMD5"])["SeriesMD5"].to_pylist())) == 2


def table_of(table: Table, columns: dict[str, list[Any]]) -> pa.Table:
    count = len(columns["SeriesInstanceUID"])
    columns = {"Collection": [NAME] * count, **columns}
    return pa.table([pa.array(columns.get(f.name, [None] * count), f.type) for f in table.schema], schema=table.schema)
