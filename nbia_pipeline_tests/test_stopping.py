"""Threads that wait end when an interrupt leaves the block of their pool."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from nbia_pipeline import stopping
from nbia_pipeline.archive import ClientOptions, NbiaClient
from nbia_pipeline.archive.rate_limit import Limiter
from nbia_pipeline.lake import Lake, Lock, lock
from nbia_pipeline.lake.lock import soon_if_interrupted
from nbia_pipeline.lake.object_store import AT_A_TIME, ObjectStore
from nbia_pipeline.mirror import download
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import Fault, silence

WITHIN_SECONDS = 15  # nothing here takes one; the waits take 300


def interrupted(wait: Callable[[], object], ready: Callable[[], bool]) -> BaseException | None:
    """Let two threads wait and an interrupt leave the block once they do; return how the first one ended."""
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stopping.threads(2, "test") as pool:
        futures = [pool.submit(wait) for _ in range(20)]
        while not ready():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert time.monotonic() - before < WITHIN_SECONDS
    assert all(future.done() for future in futures), "a thread was left behind"
    assert sum(not future.cancelled() for future in futures) == 2
    return futures[0].exception()


def test_threads_that_wait_for_an_answer(archive: TestArchive) -> None:
    archive.faults.inject("getSeries", silence(), times=2)
    patient = ClientOptions(read_timeout=300)
    with archive.client(options=patient, api="v4") as client:
        ended = interrupted(lambda: client.series("TCGA-DEMO"), lambda: archive.faults.count("getSeries") == 2)
        assert isinstance(ended, stopping.Stopped)
        assert client.series("TCGA-DEMO").num_rows == 9, "it can be used again"


def test_threads_in_the_middle_of_a_body_whose_end_only_the_connection_shows(archive: TestArchive) -> None:
    archive.faults.inject("getMD5Hierarchy", silence(b""), times=2)
    with archive.client(api="v4", options=ClientOptions(read_timeout=300)) as client:
        ended = interrupted(
            lambda: client.optional("md5", lambda: client.md5_hierarchy(series_uid="1"), "digests"),
            lambda: archive.faults.count("getMD5Hierarchy") == 2,
        )
        assert isinstance(ended, stopping.Stopped), "an optional call must not go on without an answer"


def test_threads_that_pause_before_another_try(archive: TestArchive) -> None:
    archive.faults.inject("getSeries", Fault("status", status=502), times=2)
    patient = ClientOptions(backoff=300, max_backoff=300)
    with NbiaClient(archive.url, api="v4", options=patient) as client:
        ended = interrupted(lambda: client.series("TCGA-DEMO"), lambda: archive.faults.count("getSeries") == 2)
    assert isinstance(ended, stopping.Stopped)


def test_threads_that_wait_for_a_slot() -> None:
    limiter = Limiter(1)

    def wait() -> None:
        with limiter.slot():
            raise AssertionError("the slot is taken")

    with limiter.slot():
        ended = interrupted(wait, lambda: True)
    assert isinstance(ended, stopping.Stopped)


def test_threads_that_wait_for_their_turn_to_unpack(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = threading.BoundedSemaphore(1)
    monkeypatch.setattr(download, "_PROCESSORS", processors)
    with processors:
        ended = interrupted(lambda: list(download._in_turns(iter([b"zip"]))), lambda: True)
    assert isinstance(ended, stopping.Stopped)


def test_threads_that_wait_for_a_lock_of_another_process(lake: Lake, tmp_path: Path) -> None:
    lake.check_writable()
    waiting = threading.Semaphore(0)

    def wait() -> None:
        waiting.release()
        with lake.lock(Lock.COLLECTION, "A"):
            raise AssertionError("the lock is taken")

    path = tmp_path / "lake" / Lock.COLLECTION.path("A")
    path.parent.mkdir(parents=True)
    with FileLock(path):  # as the other process has it: not through the lake
        ended = interrupted(wait, lambda: waiting.acquire(blocking=False))
    assert isinstance(ended, stopping.Stopped)


def test_a_pool_inside_a_thread_of_another_one_ends_as_well() -> None:
    began = threading.Event()

    def inner() -> None:
        began.set()
        stopping.sleep(300)

    def outer() -> None:
        with stopping.threads(1, "inner") as pool:
            pool.submit(inner).result()

    assert isinstance(interrupted(outer, began.is_set), stopping.Stopped)
    stopping.expect_running()


def test_after_an_error_nothing_more_begins_and_nothing_is_stopped() -> None:
    ends: list[str] = []

    def end(name: str) -> None:
        stopping.sleep(0.2)
        ends.append(name)

    with pytest.raises(ValueError, match="first"), stopping.threads(1, "test") as pool:
        pool.submit(end, "first")
        pool.submit(end, "second")
        time.sleep(0.05)
        raise ValueError("first")
    assert ends == ["first"]


def test_the_way_out_does_not_wait_long_for_a_thread_that_keeps_a_lock(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "WAY_OUT_SECONDS", 0.05)

    def way_out() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            with soon_if_interrupted(), lake.lock(Lock.COLLECTION, "A"):
                pass

    leaving = threading.Thread(target=way_out, daemon=True)
    with lake.lock(Lock.COLLECTION, "A"):
        leaving.start()
        leaving.join(WITHIN_SECONDS)
        assert not leaving.is_alive()
    assert "left to the next run: another thread of this process holds the lock" in caplog.text


def test_an_upload_ends_after_the_files_that_are_on_their_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(f"memory://{tmp_path.name}")
    names = [f"{n:02}.dcm" for n in range(3 * AT_A_TIME)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    begun, stopped, uploaded = threading.Event(), threading.Event(), []

    def slow(store: ObjectStore, staged: Path, path: str, md5: str | None) -> None:
        uploaded.append(staged.name)
        if len(uploaded) == AT_A_TIME:
            begun.set()
        assert stopped.wait(WITHIN_SECONDS)

    monkeypatch.setattr(ObjectStore, "put_file", slow)
    monkeypatch.setattr(stopping, "_wakers", [stopped.set])
    recorded: list[str | None] = []

    def record(staged: str | None) -> str:
        recorded.append(staged)
        return "entry"

    with pytest.raises(KeyboardInterrupt), stopping.threads(1, "test") as pool:
        pool.submit(lake.publish, tmp_path, "images/A/1", "A", "1", record, lambda: None)
        assert begun.wait(WITHIN_SECONDS)
        raise KeyboardInterrupt
    assert sorted(uploaded) == names[:AT_A_TIME]
    assert recorded == []
    with lake.lock(Lock.SERIES, "A", "1"):
        pass  # nobody has to wait until it is stale
