"""Requests to an object store: how many, how many at a time, and what is there when one fails."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from nbia_pipeline import stopping
from nbia_pipeline.lake import Lake, LakeError, Lock
from nbia_pipeline.lake.layout import JOURNAL, RUNS
from nbia_pipeline.lake.lock import LEFTOVER_SECONDS
from nbia_pipeline.lake.object_store import AT_A_TIME, PART_BYTES, ObjectStore
from nbia_pipeline.lake.side_by_side import SharedThreads
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.journal import publish_series
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline_tests.helpers.object_stores import make_bucket, seaweedfs
from nbia_pipeline_tests.helpers.series import publish, receipt, series_table, wanted

SERIES = 8
OLD = LEFTOVER_SECONDS + 3600


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with seaweedfs(tmp_path_factory.mktemp("store")) as variables:
        yield variables


@pytest.fixture
def s3(store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    """An empty lake in SeaweedFS."""
    for name, value in {**store, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # one may know another store
    yield Lake(f"{make_bucket(store, f'b{uuid.uuid4().hex}')}/a lake")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def counted(lake: Lake) -> Counter[str]:
    """Count the requests to S3 from now on, by their methods."""
    found: Counter[str] = Counter()
    fs = lake._unchecked.fs
    fs.connect()
    fs.s3.meta.events.register("before-send.s3", lambda request, **_: found.update([request.method]))
    return found


def files(folder: Path, sizes: dict[str, int]) -> Path:
    folder.mkdir()
    for name, size in sizes.items():
        (folder / name).write_bytes(b"x" * size)
    return folder


def ignore(staged: str | None) -> str:
    return ""


# --- how many


def test_a_series_takes_a_few_requests_besides_its_files(s3: Lake, tmp_path: Path) -> None:
    s3.check_writable()
    found = counted(s3)
    with s3.lock(Lock.SERIES, "A", "1"), s3.lock(Lock.COLLECTION, "A"):
        pass
    of_locks = found.total()
    found.clear()
    s3.publish(files(tmp_path / "files", {f"{n}.dcm": n for n in range(20)}), "images/A/P/1/1", "A", "1", ignore, print)
    # Besides: the list of what is there, and the question whether the lock is still held.
    assert found.total() - of_locks - 20 <= 1 + 2
    assert len(s3.sizes("images/A/P/1/1")) == 20


def test_a_journal_is_carried_over_with_one_request_for_an_entry_and_one_for_all(s3: Lake) -> None:
    for n in range(SERIES):
        publish(s3, receipt(n=n))
    commit(s3, "A", series_table([]))
    found = counted(s3)
    commit(s3, "A", series_table([]))
    without_entries = found.total()
    for n in range(SERIES):
        publish(s3, receipt(n=n + SERIES))
    found.clear()
    table = commit(s3, "A", series_table([]))
    assert table["Status"].to_pylist() == ["complete"] * 2 * SERIES
    assert s3.names_in(f"{JOURNAL}/A") == []
    # Each entry is read, all are removed together, and the two tables are written.
    assert found.total() - without_entries <= SERIES + 8


def test_a_small_file_is_read_in_one_request_and_a_missing_one_too(s3: Lake) -> None:
    s3.put_bytes("images/a", b"abc")
    s3.check_writable()
    found = counted(s3)
    assert s3.md5("images/a", 3) == hashlib.md5(b"abc", usedforsecurity=False).hexdigest()
    assert (s3.read_bytes("images/a"), s3.read_bytes("images/b")) == (b"abc", None)
    assert s3.sizes("images") == {"images/a": 3}
    assert s3.sizes("images/none") == {}
    assert found == {"GET": 5}
    s3.remove("images/none")
    assert found == {"GET": 5, "DELETE": 1}
    with pytest.raises(LakeError, match="cannot read images/none in the lake"):
        s3.open("images/none", 3)


# --- what arrives


def test_s3_refuses_what_has_not_the_digest_that_was_verified(s3: Lake, tmp_path: Path) -> None:
    staged = files(tmp_path / "files", {"1.dcm": 5})
    recorded: list[str | None] = []
    digests = {"1.dcm": hashlib.md5(b"other", usedforsecurity=False).hexdigest()}
    with pytest.raises(LakeError, match="cannot publish images/A/P/1/1 in the lake"):
        s3.publish(staged, "images/A/P/1/1", "A", "1", lambda name: recorded.append(name) or "", print, digests)  # type: ignore[func-returns-value]
    assert (recorded, s3.sizes("images")) == ([], {})
    digests = {"1.dcm": hashlib.md5(b"xxxxx", usedforsecurity=False).hexdigest()}
    s3.publish(staged, "images/A/P/1/1", "A", "1", lambda name: recorded.append(name) or "", print, digests)  # type: ignore[func-returns-value]
    assert (recorded, s3.read_bytes("images/A/P/1/1/1.dcm")) == ([None], b"xxxxx")


def parts_of(lake: Lake) -> list[Any]:
    bucket, _, prefix = lake._unchecked.full("").partition("/")
    found = lake._unchecked.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
    return list(found.get("Uploads", []))


def test_a_large_file_is_sent_in_parts_which_an_interrupt_gives_up(
    s3: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = files(tmp_path / "files", {"1.dcm": 3 * PART_BYTES + 1})
    found = counted(s3)
    s3.publish_folder(staged, "annotations/1")
    assert (found["PUT"], found["POST"]) == (4, 2)
    assert s3.md5("annotations/1/1.dcm") == hashlib.md5(staged.joinpath("1.dcm").read_bytes()).hexdigest()
    begun = threading.Event()
    going_on = stopping.expect_running

    def expect_running() -> None:
        if found["PUT"] > 4:  # after the first part
            begun.set()
            time.sleep(0.2)
        going_on()

    monkeypatch.setattr(stopping, "expect_running", expect_running)
    with pytest.raises(KeyboardInterrupt), stopping.threads(1, "test") as pool:
        ended = pool.submit(s3.publish_folder, staged, "annotations/2")
        assert begun.wait(60)
        raise KeyboardInterrupt
    assert isinstance(ended.exception(), stopping.Stopped)
    assert found["PUT"] < 4 + 4
    assert s3.sizes("annotations/2") == {}
    assert parts_of(s3) == []


# --- several at a time


def test_all_series_of_a_process_share_the_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, guard, now, most = Lake(f"memory://{tmp_path.name}"), threading.Lock(), [0], [0]

    def put_file(self: ObjectStore, staged: Path, path: str, md5: str | None = None) -> None:
        with guard:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.002)
        with guard:
            now[0] -= 1

    monkeypatch.setattr(ObjectStore, "put_file", put_file)
    staged = files(tmp_path / "files", {f"{n}.dcm": 1 for n in range(40)})
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(lake.publish_folder, staged, f"annotations/{n}") for n in range(6)]:
            done.result()
    assert most == [AT_A_TIME]
    assert [t.name for t in threading.enumerate() if t.name.startswith("nbia-store")] == []


def test_an_upload_that_fails_fails_its_series_only_and_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, running = Lake(f"memory://{tmp_path.name}"), threading.Semaphore(0)
    was = ObjectStore.put_file

    def put_file(self: ObjectStore, staged: Path, path: str, md5: str | None = None) -> None:
        if path.endswith("bad/03.dcm"):
            raise PermissionError("no")
        time.sleep(0.01)
        was(self, staged, path, md5)
        running.release()

    monkeypatch.setattr(ObjectStore, "put_file", put_file)
    staged = files(tmp_path / "files", {f"{n:02}.dcm": 1 for n in range(30)})
    recorded: list[str] = []

    def publish_to(name: str) -> None:
        lake.publish(staged, f"images/A/P/1/{name}", "A", name, lambda _: recorded.append(name) or "", print)  # type: ignore[func-returns-value]

    with ThreadPoolExecutor(2) as pool:
        good, bad = (pool.submit(publish_to, name) for name in ("good", "bad"))
        with pytest.raises(LakeError, match=r"cannot publish images/A/P/1/bad in the lake .*no"):
            bad.result()
        there = len(lake.sizes("images/A/P/1/bad"))
        good.result()
    assert recorded == ["good"]
    assert len(lake.sizes("images/A/P/1/good")) == 30
    assert len(lake.sizes("images/A/P/1/bad")) == there < 30


def test_threads_that_publish_together_take_the_lock_of_the_collection_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, taken = Lake(f"memory://{tmp_path.name}"), []
    first, all_there = threading.Event(), threading.Event()
    was = MemoryFileSystem.pipe_file

    def pipe_file(self: MemoryFileSystem, path: str, value: bytes, **kwargs: Any) -> None:
        if path.endswith("locks/A.lock") and kwargs.get("mode") == "create":
            taken.append(path)
            first.set()
            assert all_there.wait(60)
        was(self, path, value, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    with ThreadPoolExecutor(9) as pool:
        done = [pool.submit(publish, lake, receipt(n=1))]
        assert first.wait(60)
        done += [pool.submit(publish, lake, receipt(n=n)) for n in range(2, 10)]
        waiting = lake._unchecked._records._waiting  # type: ignore[union-attr]
        while len(waiting["A"]) < 8:
            time.sleep(0.01)
        all_there.set()
        for one in done:
            one.result()
    assert len(taken) == 2
    assert len(lake.names_in(f"{JOURNAL}/A")) == 9


def test_a_lock_that_cannot_be_taken_fails_all_who_wait_for_it_and_the_next_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(f"memory://{tmp_path.name}")
    with monkeypatch.context() as patch:

        def lock(self: ObjectStore, lock: Lock, *_: str) -> Any:
            raise PermissionError("no lock")

        patch.setattr(lake._unchecked._records, "_hold", lambda name: lock(lake._unchecked, Lock.COLLECTION))  # type: ignore[union-attr,arg-type]
        with ThreadPoolExecutor(3) as pool:
            for one in [pool.submit(publish, lake, receipt(n=n)) for n in range(3)]:
                with pytest.raises(LakeError, match="no lock"):
                    one.result()
    publish(lake, receipt(n=1))
    assert lake.names_in(f"{JOURNAL}/A") == ["1.0001.json"]


def test_an_entry_of_another_patient_is_replaced_with_its_files_and_receipts(tmp_path: Path) -> None:
    lake = Lake(f"memory://{tmp_path.name}")
    older, newer = receipt(n=1), receipt(n=1, size=7)
    object.__setattr__(older.wanted, "PatientID", "Q")
    publish(lake, older)
    publish(lake, newer)
    assert lake.sizes("images/A") == {f"{newer.path}/9.1.dcm": 7}
    assert commit(lake, "A", series_table([wanted(1)]))["PatientID"].to_pylist() == ["P"]


def test_shared_threads_that_need_each_other_do_not_wait_for_each_other() -> None:
    threads = SharedThreads(2, "shared")
    inner = [lambda: list(threads.results([lambda: 1, lambda: 2])) for _ in range(5)]
    assert list(threads.results(inner)) == [[1, 2]] * 5


# --- sweeps


def test_what_steps_handed_over_is_swept_a_week_after_the_last_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lake in (Lake(str(tmp_path / "lake")), Lake(f"memory://{tmp_path.name}")):
        for run in ("old", "long", "new"):
            for step in ("plan", "fetch"):
                lake.put_bytes(f"{RUNS}/{run}/{step}", b"{}")
        now = time.time()
        if lake.uri.startswith("memory"):
            entries = MemoryFileSystem.store
            for name in entries:
                if "/runs/old/" in name or name.endswith("/runs/long/plan"):
                    entries[name].created = datetime.fromtimestamp(now - OLD, timezone.utc)
        else:
            runs = tmp_path / "lake" / RUNS
            for path in (runs / "old", *(runs / "old").iterdir(), runs / "long" / "plan"):
                os.utime(path, (now - OLD, now - OLD))
        assert lake.staged() == []
        assert lake.sweep(keep=set()) == 1
        assert sorted(lake.sizes(RUNS)) == [
            f"{RUNS}/{run}/{step}" for run in ("long", "new") for step in ("fetch", "plan")
        ]


def test_what_s3_says_of_an_object_is_its_age_and_that_of_parts(s3: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_bytes(f"{RUNS}/one/plan", b"{}")
    bucket, _, key = s3._unchecked.full("images/x.dcm").partition("/")
    s3._unchecked.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    assert s3.sweep(keep=set()) == 0
    assert len(parts_of(s3)) == 1
    later = time.time() + OLD
    monkeypatch.setattr(time, "time", lambda: later)
    assert s3._unchecked._sweep_runs() == s3._unchecked._sweep_parts() == 1  # type: ignore[union-attr]
    assert (s3.sizes(RUNS), parts_of(s3)) == ({}, [])


def test_an_account_that_may_not_list_parts_can_plan(
    s3: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied.")

    monkeypatch.setattr(s3._unchecked.fs._target, "call_s3", refuse)
    with caplog.at_level("INFO"):
        assert s3.sweep(keep=set()) == 0
    assert "cannot list the parts of abandoned uploads: PermissionError: Access Denied." in caplog.text


def test_receipts_are_revoked_before_the_first_older_object_is_replaced(
    s3: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(s3, receipt(n=1))
    commit(s3, "A", series_table([wanted(1)]))
    seen: list[str] = []
    was = ObjectStore.put_file

    def put_file(self: ObjectStore, staged: Path, path: str, md5: str | None = None) -> None:
        seen.extend(s3.read_table(IMAGE_SERIES, "A")["Status"].to_pylist())
        was(self, staged, path, md5)

    monkeypatch.setattr(ObjectStore, "put_file", put_file)
    newer = receipt(n=1, size=9)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "9.1.dcm").write_bytes(b"x" * 9)
    publish_series(s3, newer, tmp_path / "files")
    assert seen == ["pending"]
    assert commit(s3, "A", series_table([wanted(1)]))["Bytes"].to_pylist() == [9]
