"""How threads end when the process is asked to stop: those that wait are woken, and none begins anything new.

Python raises the interrupt of a signal, and Dagster that of a termination, in the main thread only. Pools of threads
are therefore made with :func:`threads`: when an interrupt leaves its block, the threads are stopped as well. What can
block for long takes part: it sleeps with :func:`sleep`, calls :func:`expect_running` between its steps, or is woken by
a function of :func:`when_stopping`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

LOOK_SECONDS = 0.5
"""How often a thread that cannot be woken where it waits should look whether it is to stop."""
WAIT_SECONDS = 3.0
"""How long an interrupt waits for the threads of a pool; a look-up of a name, for one, cannot be woken."""

_stopping = threading.Event()
_wakers: list[Callable[[], None]] = []


class Stopped(BaseException):
    """Ends the work of a thread whose process is asked to stop.

    It is no Exception, so that nothing that goes on without an answer, or tries again, takes it for a failure.
    """


def expect_running() -> None:
    """Call it between the steps of long work.

    Raises:
        Stopped: the threads are being stopped, and this is one of them. The main thread has its interrupt.
    """
    if _stopping.is_set() and threading.current_thread() is not threading.main_thread():
        raise Stopped


def sleep(seconds: float) -> None:
    """Sleep, and wake up when the threads are stopped.

    Raises:
        Stopped: see :func:`expect_running`.
    """
    _stopping.wait(seconds)
    expect_running()


def when_stopping(wake: Callable[[], None]) -> None:
    """Register a function that wakes threads; after it they call :func:`expect_running`."""
    _wakers.append(wake)


@contextmanager
def threads(most: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Run work in threads that have ended at the end of the block; what has not begun after an error never does.

    Args:
        most: threads at a time.
        name: of the threads.
    """
    pool = ThreadPoolExecutor(most, thread_name_prefix=name)
    try:
        try:
            yield pool
        except (Exception, GeneratorExit):
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()
    except (Exception, GeneratorExit):
        raise
    except BaseException:
        _stop(pool)
        raise


def in_order(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], T]], most: int) -> Iterator[T]:
    """Yield what some calls return, in their order.

    Args:
        pool: threads that make the calls.
        calls: taken one by one, when there is room for another.
        most: calls whose results are not taken yet, so that memory stays bounded.
    """
    begun: deque[Future[T]] = deque()
    for call in calls:
        begun.append(pool.submit(call))
        if len(begun) >= most:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _stop(pool: ThreadPoolExecutor) -> None:
    first = not _stopping.is_set()  # else a pool within a pool: the outer one ends it
    pool.shutdown(wait=False, cancel_futures=True)
    _stopping.set()

    def wait() -> None:
        pool.shutdown()
        if first:
            _stopping.clear()

    ending = threading.Thread(target=wait, name="nbia-stopping", daemon=True)
    ending.start()
    for wake in _wakers:
        wake()
    ending.join(WAIT_SECONDS)
