"""Who left this here? Names of processes, so that a dead one's leftovers can be told from a live one's work."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

LEFTOVER_SECONDS = 7 * 24 * 3600
HOST = socket.gethostname()


def this_process() -> str:
    """Name this process."""
    return f"{HOST.replace('.', '-')}.{os.getpid()}"


def abandoned(entry: Path) -> bool:
    """Tell whether nobody works any more in a file or directory that is named after its process.

    That is so if the process was on this machine and is dead, or if the entry is a week old: of a process
    elsewhere nothing else can be known.
    """
    try:
        age = time.time() - entry.stat().st_mtime
    except FileNotFoundError:
        return False  # its owner finished meanwhile
    if age > LEFTOVER_SECONDS:
        return True
    host, _, rest = entry.name.partition(".")
    pid = rest.partition(".")[0]
    return host == HOST.replace(".", "-") and pid.isdecimal() and not _alive(int(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
