"""Object stores in memory for the tests of locks, and what dead processes leave in them."""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

from nbia_pipeline.lake.lock import USUAL, ExpectHeld, LockTimings
from nbia_pipeline.lake.object_lock import ObjectLocks

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


LIFE = "d" * 32


def dead(store: MemoryFileSystem, path: str) -> bytes:
    """Leave the lock of a process that died."""
    content = json.dumps({"owner": "elsewhere.7", "since": "2024-01-02T03:04:05", "token": "t", "life": LIFE}).encode()
    store.pipe_file(path, content)
    return content


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
