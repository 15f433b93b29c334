"""Locks exclude, do not outlive their process, and are taken over only from dead ones."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from nbia_pipeline.lake import Lake, LakeError, Lock
from nbia_pipeline.lake.filesystem import Guarded
from nbia_pipeline.lake.lock import HOST, USUAL, ExpectHeld, LockTimings, is_dead, this_machine, this_process
from nbia_pipeline.lake.object_lock import ObjectLocks
from nbia_pipeline_tests.helpers.stores import exception

QUICK = LockTimings(beat=0.02, lease=0.3, older=0.3, wait=5, poll=0.005)


def object_lock(store: Any, path: str, timings: LockTimings = USUAL) -> AbstractContextManager[ExpectHeld]:
    """Hold a lock as a process would that has no other."""
    return ObjectLocks(store, path.rpartition("/")[0], timings).hold(path)


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


LIFE = "d" * 32


def dead(store: MemoryFileSystem, path: str) -> bytes:
    """Leave the lock of a process that died."""
    content = json.dumps({"owner": "elsewhere.7", "since": "2024-01-02T03:04:05", "token": "t", "life": LIFE}).encode()
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
        object_lock(store, path, LockTimings(lease=60, older=60, wait=0.05, poll=0.01)),
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
            time.sleep(3 * QUICK.lease)
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

    def rm_file(self, path: str) -> None:
        if self.error is not None:
            raise self.error
        super().rm_file(path)


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
    with pytest.raises(ZeroDivisionError), object_lock(Guarded(down), f"{path}.lock", LockTimings(beat=60)):
        down.error = error
        raise ZeroDivisionError


def test_a_store_that_ignores_the_condition_is_named_and_its_locks_are_looked_at(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, timings = Forgetful(), LockTimings(wait=0.02, poll=0.01)
    theirs = dead(store, path)
    with pytest.raises(LakeError, match=r"held by elsewhere\.7"), object_lock(store, path, timings):
        pass
    assert store.cat_file(path) == theirs
    store.rm(path)
    locks = ObjectLocks(store, path.rpartition("/")[0], timings)
    for _ in range(2):
        with locks.hold(path) as expect_held:
            expect_held()
            with pytest.raises(LakeError, match="held by"), object_lock(store, path, timings):
                pass
    assert caplog.text.count(f"the store of {path.rpartition('/')[0]} overwrites objects that it is asked not to") == 1


class Refusing(Store):
    """A store that refuses to create an object with an answer of some package, and has none."""

    error: Exception

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if mode == "create":
            raise self.error


def test_a_store_that_refuses_and_has_nothing_says_why(path: str) -> None:
    store = Refusing()
    store.error = OSError(5, "ConditionalRequestConflict")
    store.error.__cause__ = exception("ClientError", "x", code="ConditionalRequestConflict", status=409)
    with pytest.raises(OSError, match="ConditionalRequestConflict"), object_lock(store, path, QUICK):
        pass
    store.error = OSError(22, "InvalidArgument")
    with pytest.raises(OSError, match="InvalidArgument"), object_lock(store, path, LockTimings(lease=60)):
        pass


# --- death


def test_the_second_to_find_a_dead_lock_leaves_the_lock_of_the_first_alone(path: str) -> None:
    """Another takes over after the decision to do so and before the deed, and has finished announcing it."""
    theirs = json.dumps({"owner": "first.1", "token": "first", "life": "f" * 32}).encode()
    looks = 0

    class Slow(Store):
        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
            if mode == "create" and ".lock." in path:
                super().pipe_file(path.rpartition(".")[0], theirs)
            elif mode == "overwrite" and self.exists(path):
                assert self.cat_file(path) != theirs, "the lock of the first was overwritten"
            super().pipe_file(path, value, mode=mode, **kwargs)

        def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
            nonlocal looks
            content = bytes(super().cat_file(path, *args, **kwargs))
            looks += content == theirs
            if looks == 3:
                self.rm(path)  # the first one is done
            return content

    store = Slow()
    dead(store, path)
    with object_lock(store, path, LockTimings(beat=60, lease=0.05, wait=60, poll=0.01)):
        assert looks == 3


def named(path: str, number: int) -> str:
    return f"{path.rpartition('/')[0]}/{number}.lock"


def died(store: Any, path: str, count: int, **about: str) -> list[str]:
    """Leave some locks of a process that died in one life."""
    paths = [named(path, number) for number in range(count)]
    for number, name in enumerate(paths):
        store.pipe_file(name, json.dumps({"owner": "elsewhere.7", "token": str(number), **about}).encode())
    return paths


def new_life() -> str:
    return uuid.uuid4().hex


def test_all_locks_of_a_life_are_dead_once_one_is(path: str) -> None:
    store, timings = Store(), LockTimings(lease=0.1, poll=0.01, wait=5)
    paths = died(store, path, 5, life=new_life())
    with object_lock(store, paths[0], timings):
        pass
    never = LockTimings(lease=1e9, poll=0.01, wait=0)
    for name in paths[1:]:
        with object_lock(store, name, never):
            pass
    assert store.find(path.rpartition("/")[0]) == []


def test_a_life_that_was_only_paused_is_not_dead_any_more(path: str) -> None:
    store, life = Store(), new_life()
    paths = died(store, path, 2, life=life)
    with object_lock(store, paths[0], LockTimings(lease=0.05, poll=0.01, wait=5)):
        pass
    store.pipe_file(f"{path.rpartition('/')[0]}/{life}.lease", b'{"beats": 8}')
    with pytest.raises(LakeError, match="is held by"), object_lock(store, paths[1], LockTimings(poll=0.01, wait=0.1)):
        pass


@pytest.mark.parametrize(
    ("owner", "machine", "taken"),
    [
        ("{host}.999999999-1", "{machine}", True),
        ("{host}.999999999-1", "another boot.pid:[1]", False),
        ("{host}.999999999-1", "", False),
        ("another.999999999-1", "{machine}", False),
        ("{me}", "{machine}", False),
    ],
    ids=["dead", "in another container", "of a system that does not say", "another host", "alive"],
)
def test_a_lock_of_a_dead_process_of_this_machine_is_taken_at_once(
    path: str, owner: str, machine: str, taken: bool
) -> None:
    assert this_machine()
    names = {"host": HOST, "me": this_process(), "machine": this_machine()}
    about = {"owner": owner.format(**names), "machine": machine.format(**names), "life": new_life()}
    store = Store()
    (name,) = died(store, path, 1, **about)
    got = False
    try:
        with object_lock(store, name, LockTimings(lease=1e9, wait=0)):
            got = True
    except LakeError:
        pass
    assert got == taken


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no such name")
def test_a_machine_that_does_not_say_what_it_is_has_no_dead_processes(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbia_pipeline.lake.lock.this_machine", lambda: "")
    store = Store()
    (name,) = died(store, path, 1, owner=f"{HOST}.999999999-1", machine="", life=new_life())
    with pytest.raises(LakeError, match="is held by"), object_lock(store, name, LockTimings(lease=1e9, wait=0)):
        pass


def test_a_takeover_that_was_killed_is_taken_over(path: str) -> None:
    """Two died one after another while they took a lock over; the third does it."""
    store = Store()
    announced, content = path, dead(store, path)
    for number in range(2):
        announced = f"{announced}.{hashlib.md5(content).hexdigest()}"
        content = json.dumps({"owner": "elsewhere.8", "token": f"taker {number}", "life": new_life()}).encode()
        store.pipe_file(announced, content)
    with object_lock(store, path, LockTimings(lease=0.05, poll=0.01, wait=5)) as expect_held:
        expect_held()
    assert store.find(path.rpartition("/")[0]) == []


def test_a_lock_of_an_older_version_is_taken_over_after_its_own_time(path: str) -> None:
    store = Store()
    (name,) = died(store, path, 1)
    with pytest.raises(LakeError), object_lock(store, name, LockTimings(lease=0.01, poll=0.01, wait=0.2)):
        pass
    with object_lock(store, name, LockTimings(lease=1e9, older=0.05, poll=0.01, wait=5)):
        pass


def test_a_holder_that_was_silent_for_long_looks_before_it_removes_its_lock(path: str) -> None:
    store = Store()
    with object_lock(store, path, LockTimings(beat=60, lease=0.02)):
        time.sleep(0.02)
        theirs = dead(store, path)
    assert store.cat_file(path) == theirs


def test_a_holder_that_beats_again_after_a_silence_looks_before_it_removes_its_lock(path: str) -> None:
    store, beaten = Store(), threading.Event()
    locks = ObjectLocks(store, path.rpartition("/")[0], LockTimings(beat=0.3, lease=0.4))
    with locks.hold(path), locks.hold(named(path, 1)) as expect_held:
        theirs = dead(store, path)
        while not store.exists(str(locks._life and locks._life.path)):
            beaten.wait(0.01)
        expect_held()
    assert store.cat_file(path) == theirs


def test_a_process_has_one_lease_for_all_its_locks_and_leaves_none(path: str) -> None:
    store = Counting()
    locks = ObjectLocks(store, path.rpartition("/")[0], LockTimings(beat=0.02))
    with ExitStack() as stack:
        for number in range(24):
            stack.enter_context(locks.hold(named(path, number)))
        while store.calls["PUT"] < 24 + 1 + 5:
            time.sleep(0.005)
        assert len(store.find(locks.folder)) == 25
    assert store.find(locks.folder) == []


def test_a_lock_takes_two_requests_and_a_look_one(path: str) -> None:
    store = Counting()
    locks = ObjectLocks(store, path.rpartition("/")[0])
    with locks.hold(path):
        pass
    assert store.calls == {"GET": 1, "PUT": 2, "DELETE": 1}, "the first one finds out about the store"
    store.calls.clear()
    with locks.hold(path) as expect_held:
        assert store.calls == {"PUT": 1}
        expect_held()
        assert store.calls == {"PUT": 1, "GET": 1}
    assert store.calls == {"PUT": 1, "GET": 1, "DELETE": 1}


class Counting(Store):
    """A store that counts its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def pipe_file(self, *args: Any, **kwargs: Any) -> None:
        self.calls["PUT"] += 1
        super().pipe_file(*args, **kwargs)

    def cat_file(self, *args: Any, **kwargs: Any) -> bytes:
        self.calls["GET"] += 1
        return bytes(super().cat_file(*args, **kwargs))

    def rm_file(self, path: str) -> None:
        self.calls["DELETE"] += 1
        super().rm_file(path)


def test_a_lock_that_could_not_be_removed_is_removed_when_the_store_answers_again(path: str) -> None:
    down = Down()
    locks = ObjectLocks(Guarded(down), path.rpartition("/")[0], QUICK)
    with locks.hold(named(path, 1)):
        with locks.hold(path):
            down.error = ConnectionResetError(104, "reset")
        assert down.exists(path)
        down.error = None
        for _ in range(1000):
            if not down.exists(path):
                break
            time.sleep(0.01)
        assert not down.exists(path)


# --- what is left behind


def aged(store: Any, seconds: float, *paths: str) -> None:
    for path in paths:
        store.store[path].created -= timedelta(seconds=seconds)


def test_a_sweep_removes_what_dead_processes_left_and_nothing_else(path: str) -> None:
    store, folder = Store(), path.rpartition("/")[0]
    old, new, alive, here = (new_life() for _ in range(4))
    about = {"old": {"life": old}, "new": {"life": new}, "alive": {"life": alive}, "version 0.2": {}}
    about["here"] = {"life": here, "owner": f"{HOST}.999999999-1", "machine": this_machine()}
    for name, values in about.items():
        store.pipe_file(f"{folder}/{name}.lock", json.dumps({"owner": "elsewhere.7", **values}).encode())
    announced = f"{folder}/old.lock.{hashlib.md5(store.cat_file(f'{folder}/old.lock')).hexdigest()}"
    store.pipe_file(announced, json.dumps({"life": new_life()}).encode())
    for life in (old, new, alive, here):
        store.pipe_file(f"{folder}/{life}.lease", json.dumps({**about["here"], "life": ""}).encode())
    for life in (old, new, alive):
        store.pipe_file(f"{folder}/{life}.lease", b"{}")
    store.pipe_file(f"{folder}/notes.txt", b"of the user")
    aged(
        store, 61, announced, f"{folder}/{old}.lease", *(f"{folder}/{n}.lock" for n in ("old", "alive", "version 0.2"))
    )
    aged(store, 6, f"{folder}/{here}.lease")
    locks = ObjectLocks(store, folder)
    with locks.hold(f"{folder}/mine.lock"):
        assert locks.sweep() == 5
        left = {
            "mine.lock",
            "new.lock",
            "alive.lock",
            "version 0.2.lock",
            "notes.txt",
            f"{new}.lease",
            f"{alive}.lease",
        }
        assert {name.removeprefix(f"{folder}/") for name in store.find(folder)} - left == {
            str(locks._life and locks._life.path).removeprefix(f"{folder}/")
        }
    aged(store, 120, f"{folder}/version 0.2.lock")
    assert locks.sweep() == 1


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
