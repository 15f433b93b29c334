"""Tasks of Celery that outlive their workers, with a Redis and workers of the test's own.

As a module of a worker (``celery -A``) this is our app with two tasks more, and with times that are short enough for a
test. :func:`outlive` runs two such workers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from nbia_pipeline.defs import celery_app
from nbia_pipeline_tests.power_cut.logged_disk import die_with_parent
from nbia_pipeline_tests.scale_out.hosts import ROOT, descendants, wait_for

LOST_SECONDS = 2
LONG_SECONDS = 3 * LOST_SECONDS
_SECONDS = 60

app = celery_app.app
if os.environ.get("NBIA_TASKS_OF_A_TEST"):
    celery_app.SIGN_SECONDS = float(os.environ["NBIA_TASKS_OF_A_TEST"])
    app.conf.broker_transport_options = {
        **app.conf.broker_transport_options,
        "visibility_timeout": LOST_SECONDS,
        "unacked_restore_interval": 0.3,
    }


def slow(key: str, seconds: float) -> None:
    """Note that it began, and take a while."""
    _redis(os.environ["CELERY_BROKER_URL"]).rpush(key, os.getpid())
    time.sleep(seconds)


def deadly(key: str) -> None:
    """Kill its own process, as the system does when memory runs out."""
    slow(key, 0)
    os.kill(os.getpid(), signal.SIGKILL)


_LOST = {"retry_on_worker_lost": True, "default_retry_delay": 0, "max_retries": celery_app.TRIES_OF_LOST}
app.task(name="slow")(slow)
app.task(name="deadly", **_LOST)(deadly)


def _redis(url: str) -> Any:
    return redis.Redis.from_url(url)


def outlive(folder: Path, program: Path, *, sign_seconds: float = 0.3) -> dict[str, int]:
    """Return how often each of three tasks began: a long one, a deadly one, and one whose whole worker was killed.

    The first and the last have ended well, the second one has failed.

    Args:
        folder: for what the processes print.
        program: the server of Redis.
        sign_seconds: between two signs of a worker.

    Raises:
        AssertionError: they have not.
    """
    with _running(folder, program, sign_seconds) as (url, workers):
        client = Celery("client", broker=url, backend=url)
        long = client.send_task("slow", ("long", LONG_SECONDS), queue="dagster")
        dies = client.send_task("deadly", ("deadly",), queue="dagster")
        long.get(timeout=_SECONDS)
        assert isinstance(dies.get(timeout=_SECONDS, propagate=False), Exception)
        killed = client.send_task("slow", ("killed", 1), queue="dagster")
        store, until = _redis(url), time.monotonic() + _SECONDS
        while not store.llen("killed"):
            assert time.monotonic() < until, "the task did not begin"
            time.sleep(0.05)
        _kill_worker_of(int(store.lindex("killed", 0)), workers)
        killed.get(timeout=_SECONDS)
        return {name: store.llen(name) for name in ("long", "deadly", "killed")}


@contextlib.contextmanager
def _running(folder: Path, program: Path, sign_seconds: float) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"redis://127.0.0.1:{port}/0"
    variables = {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url, "NBIA_TASKS_OF_A_TEST": str(sign_seconds)}
    celery = [sys.executable, "-m", "celery", "-A", __name__, "worker", "--concurrency", "1", "--without-mingle", "-n"]
    commands = [[str(program), "--port", str(port), "--bind", "127.0.0.1", "--save", ""], *([*celery, n] for n in "ab")]
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(folder)}
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / "log").open("ab") as log:
                started.append(
                    subprocess.Popen(
                        command, stdout=log, stderr=log, env=environment, cwd=folder, preexec_fn=die_with_parent
                    )
                )
            wait_for("127.0.0.1", port)
        yield url, started[1:]
    finally:
        for process in started:
            _kill(process)


def _kill_worker_of(pid: int, workers: list[subprocess.Popen[bytes]]) -> None:
    (worker,) = (worker for worker in workers if pid in descendants(worker.pid))
    _kill(worker)


def _kill(process: subprocess.Popen[bytes]) -> None:
    for pid in (process.pid, *descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
