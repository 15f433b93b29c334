"""Locks in an object store are taken over from dead processes, only from these, and nothing is left of them."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from nbia_pipeline.lake import LakeError
from nbia_pipeline.lake.lock import HOST, LockTimings, this_machine, this_process
from nbia_pipeline.lake.object_lock import ObjectLocks
from nbia_pipeline_tests.helpers.locks import (
    QUICK,
    Store,
    all_at_once,
    dead,
    died,
    named,
    new_life,
    object_lock,
)


@pytest.fixture
def path() -> str:
    return f"/lock-{uuid.uuid4().hex}/a.lock"


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
    timings = replace(QUICK, lease=1)
    order: list[str] = []
    holding = threading.Event()

    def hold() -> None:
        with object_lock(store, path, timings):
            holding.set()
            time.sleep(1.5 * timings.lease)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    with object_lock(store, path, timings):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


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
