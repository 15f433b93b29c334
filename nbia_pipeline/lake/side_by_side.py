"""Requests to an object store side by side: threads that the whole process shares, and work that one does for all."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Generic, TypeVar

from nbia_pipeline import stopping
from nbia_pipeline.lake.lock import among_threads

T = TypeVar("T")


class SharedThreads:
    """Threads for all who need some at the same time; they end with the last of these.

    Args:
        most: threads, however many need them.
        name: of the threads.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._guard = threading.Lock()
        self._users = 0
        self._pool: ThreadPoolExecutor
        self._ending = ExitStack()

    def results(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield what some calls return, in their order; after an error none of them still runs.

        Each user has only some of its calls in line, so that all take turns. One that is in such a thread itself makes
        its calls there: it must not wait for others.
        """
        if threading.current_thread().name.startswith(f"{self._name}_"):
            yield from (call() for call in calls)
            return
        begun: deque[Future[T]] = deque()
        with self._shared() as pool:
            try:
                for call in calls:
                    begun.append(pool.submit(_unless_stopped, call))
                    if len(begun) >= 2 * self._most:
                        yield begun.popleft().result()
                while begun:
                    yield begun.popleft().result()
            except BaseException as e:
                for future in begun:
                    future.cancel()
                # Of the interrupt of the main thread the others do not know before it leaves stopping.threads.
                if isinstance(e, Exception | GeneratorExit | stopping.Stopped):
                    wait(begun)
                raise

    @contextmanager
    def _shared(self) -> Iterator[ThreadPoolExecutor]:
        with self._guard:
            if not self._users:
                self._pool = self._ending.enter_context(stopping.threads(self._most, self._name))
            self._users += 1
        try:
            yield self._pool
        except BaseException as e:
            self._leave(type(e), e, e.__traceback__)
            raise
        self._leave(None, None, None)

    def _leave(self, *error: Any) -> None:
        with self._guard:
            self._users -= 1
            if not self._users:
                self._ending.__exit__(*error)


class Budget:
    """So much of something, as memory, for all threads together.

    Args:
        most: of it.
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._more = threading.Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Have some of it in the block, all of it at most; waits until others give theirs back."""
        amount = min(amount, self._most)
        with self._more:
            while self._left < amount:
                self._more.wait(stopping.LOOK_SECONDS)
                stopping.expect_running()
            self._left -= amount
        try:
            yield
        finally:
            with self._more:
                self._left += amount
                self._more.notify_all()


def _unless_stopped(call: Callable[[], T]) -> T:
    stopping.expect_running()
    return call()


class Together(Generic[T]):
    """Work of several threads under one lock: one of them takes it, and does what all have brought meanwhile.

    Args:
        place: whose work it is, for the name of what the threads wait for.
        hold: takes the lock of a name.
        threads: do the work.
    """

    def __init__(
        self, place: str, hold: Callable[[str], AbstractContextManager[object]], threads: SharedThreads
    ) -> None:
        self._place = place
        self._hold = hold
        self._threads = threads
        self._guard = threading.Lock()
        self._waiting: dict[str, list[_Work[T]]] = defaultdict(list)

    def do(self, name: str, call: Callable[[], T]) -> T:
        """Return what a call returns that is made while the lock of that name is held.

        Raises:
            LakeError: the lock could not be taken.
        """
        mine = _Work(call)
        with self._guard:
            self._waiting[name].append(mine)
        try:
            with among_threads(f"{self._place}: work of {name}"):
                if not mine.outcome.done():
                    self._do_all(name)
        finally:
            with self._guard:
                left = mine in self._waiting[name]
                if left:
                    self._waiting[name].remove(mine)
            if not left:  # another does it: what it is about must not end before
                wait([mine.outcome])
        return mine.outcome.result()

    def _do_all(self, name: str) -> None:
        with self._guard:
            group = self._waiting.pop(name)
        try:
            with self._hold(name):
                for _ in self._threads.results(work.do for work in group):
                    pass
        except BaseException as e:
            for work in group:
                work.fail(e)
            raise


class _Work(Generic[T]):
    def __init__(self, call: Callable[[], T]) -> None:
        self.outcome: Future[T] = Future()
        self._call = call

    def do(self) -> None:
        try:
            self.outcome.set_result(self._call())
        except Exception as e:  # noqa: BLE001 - it is raised where the outcome is asked for
            self.outcome.set_exception(e)

    def fail(self, error: BaseException) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)
