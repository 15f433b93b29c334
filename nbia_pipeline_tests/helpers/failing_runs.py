"""Runs on a failing disk, each in a process of its own that is forked from one that has imported everything.

As the process that forks them, which needs failing_disk.so preloaded::

    python -m nbia_pipeline_tests.helpers.failing_runs

It takes a line of JSON for each run, and answers with one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

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
        log: file that takes a line for every operation; empty for none.
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
        operations: how many operations of the disk there were.
    """

    how: str
    text: str = ""
    failed: tuple[str, ...] = ()
    operations: int = 0


class Forker(AbstractContextManager["Forker"]):
    """The process that forks the runs; it ends with the context.

    Args:
        library: failing_disk.so.
    """

    def __init__(self, library: Path) -> None:
        environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, run: Run) -> End:
        """Make a run, and return how it ended."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(asdict(run)) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return End(answer["how"], answer["text"], tuple(answer["failed"]), answer["operations"])


def _in_a_fork(run: Run) -> End:
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.close(reader)
        with open(writer, "w") as answer:
            json.dump(asdict(_made(run)), answer)
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return End(**json.loads(text)) if text else End(KILLED)


def _made(run: Run) -> End:
    moment: datetime = scenarios.START + timedelta(hours=run.hours)
    clock.utc_now = lambda: moment
    log = os.open(run.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if run.log else -1
    how, text, failed = DONE, "", ()
    # What opens no lake is done before, as it costs most of the time.
    with NbiaClient(run.url, options=FAST) as client:
        failing_disk.arm(Path(run.lake), KINDS[run.kind], run.number, log)
        try:
            failed = tuple(getattr(scenarios, run.step)(client, Lake(run.lake)))
        except LakeError as e:
            how, text = REFUSED, str(e)
        except BaseException:  # noqa: BLE001 - reported
            how, text = BROKEN, traceback.format_exc()
        return End(how, text, failed, failing_disk.disarm())


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(asdict(_in_a_fork(Run(**json.loads(line))))) + "\n")
        sys.stdout.flush()
