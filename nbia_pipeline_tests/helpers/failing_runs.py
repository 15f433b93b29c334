"""Runs on a failing disk, each in a process of its own that is forked from one that has imported everything.

As the process that forks them, which needs failing_disk.so preloaded::

    python -m nbia_pipeline_tests.helpers.failing_runs

It takes a line of JSON for each run, and answers with one.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import traceback
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow.dataset  # noqa: F401 - a run imports it when it needs it, which takes a third of its time

from nbia_pipeline import clock
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline_tests.helpers import failing_disk, scenarios
from nbia_pipeline_tests.helpers.archives import FAST
from nbia_pipeline_tests.helpers.failing_disk import KINDS

ROOT = Path(__file__).parents[2]
KILLED, DONE, REFUSED, BROKEN = "killed", "done", "LakeError", "an error that is not ours"


@dataclass(frozen=True)
class Run:
    """A run to be made.

    Attributes:
        step: name of a function of :mod:`~nbia_pipeline_tests.helpers.scenarios`.
        url: of the archive.
        lake: directory of the lake.
        hours: time of the run, after :data:`~nbia_pipeline_tests.helpers.scenarios.START`.
        kind: name of the way in which the disk fails.
        number: of the operation that fails, 0 for none.
        log: file that takes a line for every operation instead; empty for none.
    """

    step: str
    url: str
    lake: str
    hours: float = 0
    kind: str = "killed"
    number: int = 0
    log: str = ""


@dataclass(frozen=True)
class End:
    """How a run ended.

    Attributes:
        how: killed, done, LakeError, or an error that is not ours.
        text: of the error; for one that is not ours, its traceback.
        failed: what failed without an error, when it was done.
        reached: whether there was an operation of that number, which then failed.
    """

    how: str
    text: str = ""
    failed: tuple[str, ...] = ()
    reached: bool = False


class Forker(AbstractContextManager["Forker"]):
    """The process that forks the runs; it ends with the context.

    Args:
        library: failing_disk.so.
    """

    def __init__(self, library: Path) -> None:
        environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1"}
        command, pipe = [sys.executable, "-m", __name__], subprocess.PIPE
        # Warnings of the runs are no news here.
        self._log = library.with_suffix(".log").open("w")
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=self._log, text=True
        )

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._log.close()

    def run(self, run: Run) -> End:
        """Make a run, and return how it ended."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(asdict(run)) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return End(**{**answer, "failed": tuple(answer["failed"])})


def _in_a_fork(run: Run) -> End:
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.close(reader)
        with os.fdopen(writer, "w") as answer:
            json.dump(asdict(_made(run)), answer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return End(**json.loads(text)) if text else End(KILLED, reached=True)


def _made(run: Run) -> End:
    moment: datetime = scenarios.START + timedelta(hours=run.hours)
    clock.utc_now = lambda: moment
    how, text, failed = DONE, "", ()
    with NbiaClient(run.url, options=FAST) as client:
        if run.log:
            failing_disk.watch(Path(run.lake), os.open(run.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        elif run.number:
            failing_disk.arm(Path(run.lake), KINDS[run.kind], run.number)
        try:
            failed = tuple(getattr(scenarios, run.step)(client, Lake(run.lake)))
        except LakeError as e:
            how, text = REFUSED, str(e)
        except BaseException:  # noqa: BLE001 - reported
            how, text = BROKEN, traceback.format_exc()
        return End(how, text, failed, reached=run.number > 0 and failing_disk.disarm() >= run.number)


if __name__ == "__main__":
    gc.freeze()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(asdict(_in_a_fork(Run(**json.loads(line))))) + "\n")
        sys.stdout.flush()
