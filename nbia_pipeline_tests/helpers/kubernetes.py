"""A stand-in for the API server of Kubernetes: it takes the Jobs of steps, and executes each as a process here.

There is no cluster. What is real: the client, the Jobs as they go over HTTP, and the command and variables of each,
by which its step is executed. What is not: images, volumes, limits, and the rights of service accounts.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Job = dict[str, Any]


class Cluster:
    """The Jobs that were made, and their processes."""

    def __init__(self, environment: Callable[[Job], Mapping[str, str]], log: Path) -> None:
        self.jobs: dict[str, Job] = {}
        self._environment, self._log = environment, log
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def create(self, job: Job) -> Job:
        """Take a Job, and start its command."""
        with self._lock, self._log.open("ab") as log:
            name = job["metadata"]["name"]
            self.jobs[name] = job
            words = container(job).get("command", []) + container(job)["args"]
            self._processes[name] = subprocess.Popen(words, env={**self._environment(job)}, stdout=log, stderr=log)
        return job

    def status(self, name: str) -> Job:
        """Return a Job with its status."""
        code = self._processes[name].poll()
        how = "active" if code is None else "failed" if code else "succeeded"
        return {**self.jobs[name], "status": {how: 1}}

    def end(self) -> None:
        """End what still runs."""
        for process in self._processes.values():
            process.kill()
            process.wait()


def container(job: Job) -> dict[str, Any]:
    """Return the one container of a Job."""
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return dict(found)


@contextmanager
def cluster(folder: Path, environment: Callable[[Job], Mapping[str, str]]) -> Iterator[tuple[Path, Cluster]]:
    """Serve it; yields the path of a kubeconfig, and what was made.

    Args:
        folder: for the kubeconfig and for what the steps print.
        environment: returns the variables of the process of a Job.
    """
    made = Cluster(environment, folder / "pods.log")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path.split("?")[0].endswith("/jobs"), self.path
            self._answer(made.create(body))

        def do_GET(self) -> None:
            self._answer(made.status(self.path.split("?")[0].removesuffix("/status").rpartition("/")[2]))

        def _answer(self, body: Job) -> None:
            content = json.dumps({"apiVersion": "batch/v1", "kind": "Job", **body}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}]
    context = [{"name": "here", "context": {"cluster": "here", "user": "here"}}]
    config = {"clusters": here, "contexts": context, "users": [{"name": "here", "user": {}}], "current-context": "here"}
    (folder / "kubeconfig").write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
    try:
        yield folder / "kubeconfig", made
    finally:
        made.end()
        server.shutdown()
        server.server_close()
