"""Locks exclude, do not outlive their process, and are taken over only from dead ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from nbia_pipeline.lake import Lake, LakeError, Lock
from nbia_pipeline.lake.filesystem import Guarded
from nbia_pipeline.lake.lock import HOST, LockTimings, is_dead, object_lock, this_process

QUICK = LockTimings(beat=0.02, stale=0.3, wait=5, poll=0.005)


class Store(MemoryFileSystem):  # type: ignore[misc]
    """A store that creates as a real one does: of two that create one object, one is refused."""

    cachable = False
    _one_at_a_time = threading.Lock()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        with self._one_at_a_time:
            super().pipe_file(path, value, mode=mode, **kwargs)


class Forgetful(Store):
    """A store that is merely similar to S3: it ignores the condition of a create."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value)


class Odd(Store):
    """A store whose refusal is not FileExistsError (s3fs, where a store words its answer differently)."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        try:
            super().pipe_file(path, value, mode=mode)
        except FileExistsError as e:
            raise OSError(22, "PreconditionFailed") from e


@pytest.fixture
def path() -> str:
    return f"/lock-{uuid.uuid4().hex}/a.lock"


def dead(store: MemoryFileSystem, path: str) -> bytes:
    """Leave the lock of a process that died."""
    content = json.dumps({"owner": "elsewhere.7", "since": "2024-01-02T03:04:05", "token": "t", "beats": 3}).encode()
    store.pipe_file(path, content)
    return content


def all_at_once(count: int, do: Callable[[int], None]) -> None:
    problems: list[BaseException] = []

    def one(number: int) -> None:
        try:
            do(number)
        except BaseException as e:  # noqa: BLE001 - the thread of the test raises it
            problems.append(e)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


@pytest.mark.parametrize("kind", [Store, Odd])
def test_one_of_many_holds_an_object_at_a_time(kind: type[Store], path: str) -> None:
    store = kind()
    inside: list[int] = []
    most = 0

    def work(number: int) -> None:
        nonlocal most
        for _ in range(3):
            with object_lock(store, path, QUICK) as expect_held:
                inside.append(number)
                most = max(most, len(inside))
                time.sleep(0.002)
                expect_held()
                inside.remove(number)

    all_at_once(6, work)
    assert most == 1
    assert not store.exists(path)


@pytest.mark.parametrize("place", ["disk", "object store"])
def test_the_locks_of_a_lake_exclude(place: str, tmp_path: Path) -> None:
    uri = str(tmp_path) if place == "disk" else f"memory://locks-{uuid.uuid4().hex}"
    count = {"a": 0}

    def add(number: int) -> None:
        lake = Lake(uri)
        for _ in range(5):
            with lake.lock(Lock.COLLECTION, "a"):
                before = count["a"]
                time.sleep(0.001)
                count["a"] = before + 1

    all_at_once(5, add)
    assert count["a"] == 25


def test_two_locks_do_not_wait_for_each_other(tmp_path: Path) -> None:
    for lake in (Lake(str(tmp_path)), Lake(f"memory://locks-{uuid.uuid4().hex}")):
        with lake.lock(Lock.COLLECTION, "a"), lake.lock(Lock.COLLECTION, "b"), lake.lock(Lock.CHANGES, "a"):
            pass


@pytest.mark.parametrize(
    ("lock", "names", "file"),
    [
        (Lock.COLLECTION, ("A b",), "A%20b.lock"),
        (Lock.SERIES, ("A b", "1.2"), "A%20b.1.2.lock"),
        (Lock.CHANGES, ("A b",), "A%20b~changes.lock"),
        (Lock.VERIFICATIONS, ("A b",), "A%20b~verified.lock"),
    ],
)
def test_the_files_of_locks_have_the_names_that_version_0_1_gave_them(
    lock: Lock, names: tuple[str, ...], file: str, tmp_path: Path
) -> None:
    with Lake(str(tmp_path)).lock(lock, *names):
        assert [p.name for p in (tmp_path / ".staging" / "locks").iterdir()] == [file]


def test_a_lock_of_a_series_needs_the_series(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="empty name"), Lake(str(tmp_path)).lock(Lock.SERIES, "A"):
        pass


def test_a_lock_is_released_when_its_block_fails(path: str) -> None:
    store = Store()
    with pytest.raises(KeyError), object_lock(store, path, QUICK):
        raise KeyError
    assert not store.exists(path)


def test_a_lock_names_its_owner_and_since_when(path: str) -> None:
    store = Store()
    with object_lock(store, path, QUICK):
        about = json.loads(store.cat_file(path))
    assert about["owner"] == this_process()
    assert about["since"].startswith("20")


def test_the_error_after_waiting_too_long_names_the_holder(path: str) -> None:
    store = Store()
    dead(store, path)
    with (
        pytest.raises(
            LakeError, match=r"held by elsewhere\.7 since 2024-01-02T03:04:05 \(UTC\): wait .* remove /lock-"
        ),
        object_lock(store, path, LockTimings(stale=60, wait=0.05, poll=0.01)),
    ):
        pass
    assert store.exists(path), "another's lock was removed"


def test_the_lock_of_a_dead_process_is_taken_over_once(path: str) -> None:
    store = Store()
    dead(store, path)
    inside: list[int] = []
    most = 0

    def work(number: int) -> None:
        nonlocal most
        with object_lock(store, path, QUICK):
            inside.append(number)
            most = max(most, len(inside))
            time.sleep(0.01)
            inside.remove(number)

    all_at_once(6, work)
    assert most == 1
    assert store.find(path.rsplit("/", 1)[0]) == []


def test_the_lock_of_a_living_process_is_not_taken_over(path: str) -> None:
    """It is held for longer than a heartbeat may be missing."""
    store = Store()
    order: list[str] = []
    holding = threading.Event()

    def hold() -> None:
        with object_lock(store, path, QUICK):
            holding.set()
            time.sleep(3 * QUICK.stale)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    with object_lock(store, path, QUICK):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_losing_a_lock_is_an_error_and_the_new_holder_keeps_it(path: str) -> None:
    store = Store()
    with object_lock(store, path, LockTimings(beat=60)) as expect_held:
        expect_held()
        theirs = dead(store, path)
        with pytest.raises(LakeError, match=r"taken over by elsewhere\.7 .* run it again"):
            expect_held()
    assert store.cat_file(path) == theirs


def test_a_heartbeat_does_not_overwrite_another_holder(path: str) -> None:
    store = Store()
    with object_lock(store, path, QUICK):
        theirs = dead(store, path)
        time.sleep(5 * QUICK.beat)
        assert store.cat_file(path) == theirs


class Down(Store):
    """A store whose writes fail while `error` is set, with whatever a package below fsspec raises."""

    error: Exception | None = None
    beaten = threading.Event()

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if self.error is not None:
            self.beaten.set()
            raise self.error
        super().pipe_file(path, value, mode=mode, **kwargs)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        if self.error is not None:
            raise self.error
        super().rm(path, recursive=recursive, maxdepth=maxdepth)


ERRORS = [ConnectionResetError(104, "reset"), PermissionError("Forbidden"), RuntimeError("no loop"), KeyError("Key")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_heartbeat_that_fails_is_an_error_once_somebody_asks(path: str, error: Exception) -> None:
    store = Guarded(down := Down())
    down.beaten = threading.Event()
    with object_lock(store, path, QUICK) as expect_held:
        down.error = error
        assert down.beaten.wait(10)
        time.sleep(3 * QUICK.beat)
        with pytest.raises(OSError, match=str(error.args[-1])):
            expect_held()
        down.error = None
        expect_held()  # it was never lost
        assert "nbia-lock" in {thread.name for thread in threading.enumerate()}
    assert not down.exists(path)


def test_a_lock_that_was_lost_while_heartbeats_failed_says_why(path: str) -> None:
    down = Down()
    down.beaten = threading.Event()
    with object_lock(Guarded(down), path, QUICK) as expect_held:
        down.error = RuntimeError("no route to the store")
        assert down.beaten.wait(10)
        time.sleep(3 * QUICK.beat)
        theirs = dead(Store(), path)
        with pytest.raises(LakeError, match=r"by elsewhere\.7 .* too long \(RuntimeError: no route to the store\)\."):
            expect_held()
    assert down.cat_file(path) == theirs


@pytest.mark.parametrize("error", ERRORS[:3], ids=lambda e: type(e).__name__)
def test_a_lock_that_cannot_be_removed_costs_no_work(
    path: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    down = Down()
    with object_lock(Guarded(down), path, LockTimings(beat=60)):
        down.error = error
    assert f"the lock {path} could not be removed" in caplog.text
    down.error = None
    with pytest.raises(ZeroDivisionError), object_lock(Guarded(down), f"{path}2", LockTimings(beat=60)):
        down.error = error
        raise ZeroDivisionError


def test_where_a_store_ignores_the_condition_the_loser_notices(path: str) -> None:
    """The last write counts; a process that finds another's name in the object did not get the lock."""
    store = Forgetful()
    reading = store.cat_file

    class Overtaken(Forgetful):
        def cat_file(self, path: str, **kwargs: Any) -> bytes:
            return dead(store, path) if not order else bytes(reading(path))

    order: list[str] = []
    waited = Overtaken()
    with pytest.raises(LakeError, match=r"elsewhere\.7"), object_lock(waited, path, LockTimings(wait=0.02, poll=0.01)):
        order.append("held")
    assert order == []


def test_the_second_to_find_a_dead_lock_leaves_the_lock_of_the_first_alone(path: str) -> None:
    """Another takes over after the decision to do so and before the deed, and has finished announcing it."""
    theirs = json.dumps({"owner": "first.1", "token": "first", "beats": 0}).encode()
    looks = 0

    class Slow(Store):
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
            if path.endswith(".lock.t"):
                super().pipe_file(path.removesuffix(".t"), theirs)
            elif mode == "overwrite" and self.exists(path):
                assert self.cat_file(path) != theirs, "the lock of the first was overwritten"
            super().pipe_file(path, value, mode=mode, **kwargs)

        def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
            nonlocal looks
            content = bytes(super().cat_file(path, *args, **kwargs))
            looks += content == theirs
            if looks == 5:
                self.rm(path)  # the first one is done
            return content

    store = Slow()
    dead(store, path)
    with object_lock(store, path, LockTimings(beat=60, stale=0.1, wait=60, poll=0.01)):
        assert looks == 5


# --- names of processes


@pytest.mark.parametrize(
    ("name", "dead"),
    [
        ("{me}", False),
        ("{me}.5f.old", False),
        ("{host}.{pid}", False),  # by a version that knew no start, or on a system without /proc
        ("{host}.{pid}.5f", False),
        ("{host}.999999999-1.5f", True),
        ("{host}.99999999999999999999999999", True),
        ("another.999999999-1.5f", False),
        ("another.999999999.5f", False),
        ("{host}", False),
        ("{host}.journal", False),
        ("", False),
    ],
)
def test_a_process_is_dead_only_if_it_was_on_this_machine(name: str, dead: bool) -> None:
    assert is_dead(name.format(me=this_process(), host=HOST, pid=os.getpid())) == dead


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say when a process started")
def test_a_number_that_was_used_again_is_another_process() -> None:
    assert is_dead(f"{this_process()}1.5f")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say what is a zombie")
def test_a_process_that_was_killed_is_dead_even_if_nobody_asks_how_it_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"{HOST}.{process.pid}"
    assert not is_dead(name)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not is_dead(name) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_dead(name) and process.returncode is None
    process.communicate()
