"""What is flushed to the disk, and in which order, by the system calls that a real process makes."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbia_pipeline.lake import Lake, LakeError, flush
from nbia_pipeline.lake.flush import Flush
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.schema.tables import STUDIES
from nbia_pipeline_tests.helpers.series import publish, receipt, series_table, wanted

Calls = list[str]

pytestmark = pytest.mark.disk("what is flushed")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Each flush and each rename of this process, with the path that it is about."""
    made: Calls = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def flushed(descriptor: int) -> None:
        made.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink()}")
        fsync(descriptor)

    def renamed(call: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any, **more: Any) -> None:
            made.append(f"rename {target}")
            call(source, target, **more)

        return rename

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed(rename))
    monkeypatch.setattr(os, "replace", renamed(replace))
    sync = Flush._sync

    def synced(self: Flush) -> None:
        made.append("syncfs")
        sync(self)

    monkeypatch.setattr(Flush, "_sync", synced)
    return made


@pytest.fixture(params=[True, False], ids=["file system", "each file"])
def as_a_whole(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system can be flushed as a whole."""
    if not request.param:
        monkeypatch.setattr(flush, "_FLUSHED_AS_A_WHOLE", set())
    return bool(request.param)


def index(calls: Calls, start: str, end: str) -> int:
    return next(n for n, call in enumerate(calls) if call.startswith(start) and call.endswith(end))


def test_a_table_is_flushed_before_it_gets_its_name_and_the_folder_after_it(tmp_path: Path, calls: Calls) -> None:
    lake = Lake(str(tmp_path / "lake"))
    lake.write_table(STUDIES, STUDIES.schema.empty_table(), "A")
    at = index(calls, "rename", "Collection=A/part-0.parquet")
    assert calls[at - 1].startswith(f"fsync {tmp_path}/lake/.staging/")
    folders = {call.removeprefix(f"fsync {tmp_path}/") for call in calls[at + 1 :]}
    assert folders >= {"lake/tables/studies/Collection=A", "lake/tables/studies", "lake/tables", "lake"}
    calls.clear()
    lake.write_table(STUDIES, STUDIES.schema.empty_table(), "A")
    assert [call.split()[0] for call in calls] == ["fsync", "rename", "fsync"], "no folder is new"


def test_a_series_is_flushed_before_it_is_recorded_and_the_journal_before_the_tables(
    tmp_path: Path, calls: Calls, as_a_whole: bool
) -> None:
    lake = Lake(str(tmp_path / "lake"))
    publish(lake, receipt())
    recorded = index(calls, "rename", "/journal/A/1.0001.json")
    moved = index(calls, "rename", "/images/A/P/1/1.0001")
    if as_a_whole:
        assert calls[0] == "syncfs" and calls.count("syncfs") == 1
    else:
        assert 0 <= index(calls, "fsync", "/files/9.1.dcm") < recorded
        assert index(calls, "fsync", "/journal/A") > recorded
        assert any(call.endswith("/images/A/P/1") for call in calls[moved:])
    assert recorded < moved
    calls.clear()
    commit(lake, "A", series_table([wanted(1)]))
    tables = index(calls, "rename", "tables/instances/Collection=A/part-0.parquet")
    assert tables < index(calls, "rename", "tables/image_series/Collection=A/part-0.parquet")
    assert ("syncfs" in calls[:tables]) is as_a_whole


def test_nothing_is_flushed_if_that_is_switched_off(tmp_path: Path, calls: Calls, as_a_whole: bool) -> None:
    lake = Lake(str(tmp_path / "lake"), fsync=False)
    publish(lake, receipt())
    assert commit(lake, "A", series_table([wanted(1)]))["Status"].to_pylist() == ["complete"]
    assert {call.split()[0] for call in calls} == {"rename"}


def test_threads_that_wait_share_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Flush(tmp_path)
    begun, go_on = threading.Event(), threading.Event()
    flushes: list[None] = []

    def slow(self: Flush) -> None:
        flushes.append(None)
        begun.set()
        assert go_on.wait(30)

    monkeypatch.setattr(Flush, "_sync", slow)
    first = threading.Thread(target=one.everything)
    first.start()
    assert begun.wait(30)
    others = [threading.Thread(target=one.everything) for _ in range(8)]
    for other in others:
        other.start()
    while one._asked < 9:
        pass
    go_on.set()
    for thread in (first, *others):
        thread.join(30)
    assert len(flushes) == 2, "what was written after a flush began is in the next one"


def test_a_flush_that_failed_fails_for_all_who_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system reports a write that failed once only."""
    lake = Lake(str(tmp_path / "lake"))
    publish(lake, receipt(n=1))

    class Disk:
        calls = 0

        def syncfs(self, descriptor: int) -> int:
            self.calls += 1
            if self.calls == 1:
                ctypes.set_errno(errno.EIO)
                return -1
            return 0

    disk = Disk()
    monkeypatch.setattr(flush, "_LIBC", disk)
    for n in (2, 3):
        with pytest.raises(LakeError, match=r"cannot publish images/A/P/1/1\.000\d .*Input/output error"):
            publish(lake, receipt(n=n))
    assert disk.calls == 1
    assert lake.names_in(".staging/journal/A") == ["1.0001.json"]
    assert lake.names_in("images/A/P/1") == ["1.0001"] and lake.staged() == []
