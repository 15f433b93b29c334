"""Locks in an object store exclude, cost two requests, and are lost only with an error."""

from __future__ import annotations

import json
import threading
import time
import uuid
from contextlib import ExitStack
from typing import Any

import pytest

from nbia_pipeline.lake import LakeError
from nbia_pipeline.lake.filesystem import Guarded
from nbia_pipeline.lake.lock import LockTimings, this_process
from nbia_pipeline.lake.object_lock import ObjectLocks
from nbia_pipeline_tests.helpers.locks import (
    QUICK,
    Counting,
    Down,
    Forgetful,
    Odd,
    Store,
    all_at_once,
    dead,
    named,
    object_lock,
)
from nbia_pipeline_tests.helpers.stores import exception


@pytest.fixture
def path() -> str:
    return f"/lock-{uuid.uuid4().hex}/a.lock"


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
    assert caplog.text.count(f"the store of {path.rpartition('/')[0]} ignores conditional writes") == 1


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
