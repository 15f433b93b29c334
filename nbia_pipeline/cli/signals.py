"""What SIGINT, SIGTERM and SIGHUP do to a command: the first one ends it in order, a further one at once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WAKE = signal.SIGUSR1  # sent by this process to its main thread only
# One person's Ctrl-C can arrive twice: from the terminal, and from a program in between that passes it on.
ONE_REQUEST_SECONDS = 1.0
LOOK_SECONDS = 0.2
# Here Dagster waits for a slot in a pool, or to retry a step, and takes no interrupt.
_DEAF = "sleep_til_ready"


class Stop:
    """The request to stop, if there was one.

    Attributes:
        signal: number of the first signal, None as long as there is none.
        begun: False as long as there is nothing to end in order.
        watched: True while a thread watches for signals.
        deaf: True if the main thread sleeps where it takes no interrupt.
        handled: the signals that are not ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.begun = False
        self.watched = False
        self.deaf = False
        self.handled: list[int] = []
        self._raised = False
        self._once = threading.RLock()
        self._noted_at: float | None = None

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that the signal ended, such as 130 or 143."""
        return 128 + (self.signal or signal.SIGINT)

    def begin(self) -> None:
        """From now on a command is interrupted, and ends in order."""
        self.begun = True
        if self.signal is not None:
            self.end()

    def arm(self) -> None:
        """Handle the signals, again where Dagster gave SIGTERM the handler of a SIGINT that is ignored."""
        for signum in self.handled:
            signal.signal(signum, self.interrupt)

    def request(self) -> None:
        """Ask this process to stop, as a SIGTERM from outside does, unless it is stopping already."""
        if self.watched and self.signal is None:
            os.kill(os.getpid(), signal.SIGTERM)

    def hang_up(self, signum: int, frame: FrameType | None) -> None:
        """Stop because the terminal is gone: by the signal for which Dagster has a handler while a job runs."""
        self.signal = self.signal or signum
        os.kill(os.getpid(), signal.SIGTERM)

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Interrupt the main thread, once; the handler of the signals."""
        self.signal = self.signal or signum
        if not self.begun:
            self.end()
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def wake(self, signum: int, frame: FrameType | None) -> None:
        """Do nothing but end the system call that the main thread waits in; see :data:`_DEAF` for the exception."""
        if self.deaf:
            self.deaf = False
            raise KeyboardInterrupt

    def note(self, signum: int) -> None:
        """Note a signal of whatever handler, and end the process if that is another request."""
        self.signal = self.signal or signum
        self._noted_at = self._noted_at or time.monotonic()
        if not self.begun or time.monotonic() > self._noted_at + ONE_REQUEST_SECONDS:
            self.end()

    def end(self) -> None:
        """End the process at once. What it leaves is what a crash leaves: the next run removes it."""
        with self._once:  # two threads may come here
            os.write(2, b"nbia-pipeline: interrupted\n")
            os._exit(self.exit_code)


STOP = Stop()
"""Of this process."""


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Let no process that is started meanwhile have the Ctrl-C of the terminal.

    Dagster starts two for each job, which would print a traceback each. A thread has a mask of signals of its own, so
    the one that watches still has it.
    """
    if not STOP.watched:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def handled(*, process_ends: bool) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread at the first SIGINT or SIGTERM; see :data:`STOP`.

    Dagster has handlers of its own while a job runs, and forgets which signal it was, or that there was any. So a
    thread reads the signals from where Python writes them whatever the handler.

    Args:
        process_ends: whether nothing follows, so that a signal that comes too late ends the process without a word.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    vars(STOP).update(vars(Stop()))
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    STOP.handled = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]  # as a shell's `&` has it
    before: dict[int, Any] = {s: signal.getsignal(s) for s in STOP.handled}
    STOP.arm()
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, STOP.hang_up)
    waking = signal.signal(WAKE, STOP.wake)
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reader,), name="nbia-signals", daemon=True)
    watch.start()
    STOP.watched = True
    try:
        yield
    finally:
        STOP.watched, STOP.handled = False, []
        signal.set_wakeup_fd(descriptor)
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if process_ends else handler)
        writer.close()
        watch.join()  # until then it may wake this thread
        signal.signal(WAKE, waking)


def _watch(reader: socket.socket) -> None:
    nudged = False
    with reader:
        while True:
            reader.settimeout(None if STOP.signal is None or nudged else LOOK_SECONDS)
            try:
                numbers = reader.recv(64)
            except TimeoutError:
                nudged = _nudge()
                continue
            if not numbers:
                return
            for signum in numbers:
                if signum in SIGNALS:
                    STOP.note(signum)
                    signal.pthread_kill(_main(), WAKE)


def _nudge() -> bool:
    """Interrupt the main thread where Dagster sleeps and takes no interrupt; return whether it did."""
    frame = sys._current_frames().get(_main())
    while frame is not None:
        if frame.f_code.co_name == _DEAF:
            STOP.deaf = True
            signal.pthread_kill(_main(), WAKE)
            return True
        frame = frame.f_back
    return False


def _main() -> int:
    return threading.main_thread().ident or 0
