"""What the benchmarks share: an archive in a process of its own, sides in fresh processes, and what those take.

A side measures its own work, so that neither its imports nor the start of its process count; the process that runs
it measures the whole. This module needs nothing but the standard library: sides run in environments of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

WORK = "work.json"
"""Name of the file in which a side leaves what its work took."""

_SAMPLE_SECONDS = 0.1
_PROC = Path("/proc")


@dataclass(frozen=True)
class Measured:
    """What one process took, with the processes that it started.

    Attributes:
        work: wall clock of the work, in seconds.
        work_cpu: seconds of processor time of the work.
        seconds: wall clock of the process, from its start to its end.
        cpu: seconds of processor time of the process.
        peak_mb: most memory that it held, in MB of 10^6 bytes.
        parts: seconds of the parts of its work, where it has some.
    """

    work: float
    work_cpu: float
    seconds: float
    cpu: float
    peak_mb: float
    parts: dict[str, float] = field(default_factory=dict)


def run_measured(
    words: Sequence[str | Path], folder: Path, *, whole_tree: bool = False, variables: Mapping[str, str] | None = None
) -> Measured:
    """Run a side in a fresh process and measure it.

    Args:
        words: the command; what it prints goes to ``log.txt`` in `folder`.
        folder: where the side leaves what its work took (see :func:`timed`).
        whole_tree: the memory is the sum over the process and all that it started; else its own.
        variables: more of the environment.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    log, environment = folder / "log.txt", {**side_environment(), **(variables or {})}
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(words, stdout=output, stderr=output, env=environment)
        with _ended(process), sampled(process.pid) if whole_tree else contextlib.nullcontext([0]) as held:
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed:\n{log.read_text(errors='replace')[-4000:]}")
    work = json.loads((folder / WORK).read_text())
    peak = max(work["peak"], *held) / 1e6
    return Measured(work["seconds"], work["cpu"], seconds, usage.ru_utime + usage.ru_stime, peak, work.get("parts", {}))


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process if the block is interrupted."""
    try:
        yield
    except BaseException:
        process.terminate()
        raise


def side_environment() -> dict[str, str]:
    """Return the environment of a side: no setting of ours, no proxy on the way to this machine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NBIA_", "DAGSTER_"))}
    return {**kept, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@contextlib.contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Write what the block took to a file, for the process that measures."""
    started, cpu = time.perf_counter(), cpu_seconds()
    yield
    took = {"seconds": time.perf_counter() - started, "cpu": cpu_seconds() - cpu, "peak": peak_bytes()}
    (folder / WORK).write_text(json.dumps(took))


def cpu_seconds() -> float:
    """Return the processor time of this process and of those that it started and waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_bytes() -> int:
    """Return the most memory that this process held.

    Linux: not ``ru_maxrss``, which begins with the memory of the process that started this one.
    """
    try:
        status = (_PROC / "self" / "status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


# --- processes, seen from outside


def cpu_seconds_of(pid: int) -> float:
    """Return the processor time of a running process without its children; 0 where there is no ``/proc``."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def sampled(pid: int) -> Iterator[list[int]]:
    """Sample the memory of a process and its descendants; the list holds the most bytes seen so far.

    Where there is no ``/proc`` nothing is seen, and it stays 0.
    """
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            most[0] = max(most[0], sum(map(proportional_bytes, descendants(pid))))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started, directly or not; only itself where there is no ``/proc``."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        # A process may end between the listing and the reading.
        with contextlib.suppress(OSError):
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found = [pid]
    for known in found:
        found.extend(children.get(known, ()))
    return found


def proportional_bytes(pid: int) -> int:
    """Return the memory of a process, pages that it shares with others counted in parts; 0 if it is gone.

    A pool of forked processes shares most of its pages: plain sums would count those once for each.
    """
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


# --- the disk


def filesystem(folder: Path) -> str:
    """Return the type of the file system of a folder, like ``ext4``; ``unknown`` where there is no ``/proc``."""
    try:
        mounts = [line.split() for line in (_PROC / "mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    # The longest of those that contain it; of two at one place, the later one hides the other.
    holding = [(len(at), n, kind) for n, (_, at, kind, *_) in enumerate(mounts) if folder.resolve().is_relative_to(at)]
    return max(holding)[2] if holding else "unknown"


def expect_disk(folder: Path | None) -> str:
    """Return the type of the file system in which the benchmark works.

    Args:
        folder: the directory, None for the system's for temporary files.

    Raises:
        SystemExit: it is in memory, where nothing of this waits for a disk.
    """
    place = Path(tempfile.gettempdir()) if folder is None else folder
    kind = filesystem(place)
    if kind in ("tmpfs", "ramfs"):
        raise SystemExit(f"{place} is in memory ({kind}): name a directory on a disk with --folder")
    return kind


# --- the archive


IDC = ("-m", "nbia_pipeline", "archive", "--catalog", "idc", "--port", "0")


@contextlib.contextmanager
def serving(*words: str) -> Iterator[str]:
    """Run Python on `words`, which serves an archive and prints where; give that line.

    Raises:
        SystemExit: it did not start.
    """
    with lines_of(*words, count=1) as (line,):
        yield line


@contextlib.contextmanager
def lines_of(*words: str, count: int) -> Iterator[list[str]]:
    """Do the same for an archive that prints several lines; it ends with the block, and with this process.

    Raises:
        SystemExit: it did not start.
    """
    # A benchmark that is terminated takes its archive along.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            lines = [server.stdout.readline().strip() for _ in range(count)]
            if not all(lines):
                raise SystemExit("the embedded archive did not start")
            yield lines
        finally:
            server.terminate()


def verdict(holds: bool) -> str:
    """Say whether a bar holds."""
    return "holds" if holds else "DOES NOT HOLD"
