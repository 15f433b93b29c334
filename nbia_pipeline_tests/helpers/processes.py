"""Commands in processes of their own, and an end to waiting."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def environment(folder: Path, **variables: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NBIA_") and k != "DAGSTER_HOME"}
    return {**inherited, "DAGSTER_HOME": str(folder / "home"), "NBIA_LAKE": str(folder / "a lake"), **variables}


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread if it takes longer than that."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
