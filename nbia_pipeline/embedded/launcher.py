"""The shared embedded archive: found or started when it is needed, stopped when nobody needs it.

All processes of a user share one server per version, catalog and options. Each keeps one connection to the
server's lifeline; the kernel closes it when the process ends, however it ends, and a server without connections stops
on its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import filelock

from nbia_pipeline._version import __version__

START_SECONDS = 300.0
"""How long a server may take to start."""

_ANSWER_SECONDS = 5.0
_POLL_SECONDS = 0.02
_STOP_SECONDS = 10.0
_OWN_LINGER = 0.5
_LOG_TAIL_BYTES = 1500
# What a Python process needs to start as this one did; nothing else is passed on.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "VIRTUAL_ENV", "TZ")

Option = str | int | float | bool
"""Value of an option of the server."""


class EmbeddedArchiveError(RuntimeError):
    """The embedded archive could not be started."""


@dataclass(frozen=True)
class _Connection:
    """A lifeline of this process."""

    url: str
    line: socket.socket


_connections: dict[str, _Connection] = {}
_servers: list[subprocess.Popen[bytes]] = []
_threads = threading.Lock()


def ensure_running(catalog: str = "demo", *, render_ahead: bool = False, **options: Option) -> str:
    """Return the base URL of the embedded archive that all processes of this user share.

    Starts it if it does not run. It runs as long as this process, or any other that called this, lives.

    Args:
        catalog: name of the catalog, ``demo`` or ``idc``.
        render_ahead: if it is started, let it make its images before they are asked for.
        options: options of ``python -m nbia_pipeline.embedded``, like ``scale=2`` or ``linger=1.0``.

    Returns:
        Base URL like ``http://127.0.0.1:40001/nbia-api``.

    Raises:
        EmbeddedArchiveError: the server ends while it starts, or takes too long; with the end of its log.
    """
    key = _key(catalog, options)
    with _threads:
        known = _connections.get(key)
        if known is not None:
            if _alive(known.line):
                return known.url
            known.line.close()
            del _connections[key]
        directory = state_directory()
        with filelock.FileLock(directory / f"{key}.lock"):
            record = directory / f"{key}.json"
            _connections[key] = _join(record) or _start(record, catalog, {**options, "render_ahead": render_ahead})
        return _connections[key].url


@contextlib.contextmanager
def own_archive(catalog: str = "demo", **options: Option) -> Iterator[tuple[str, str | None]]:
    """Run an embedded archive of one's own, in another process, until the end of the block.

    It ends with this process too, even if that is killed. Arguments and errors are those of :func:`ensure_running`.

    Yields:
        Its base URL, and the address of its control interface or None.
    """
    with tempfile.TemporaryDirectory(prefix="nbia-pipeline-") as directory:
        record = Path(directory) / "archive.json"
        with _threads:
            own = _start(record, catalog, {"linger": _OWN_LINGER, **options})
            server = _servers.pop()
        try:
            yield own.url, json.loads(record.read_text(encoding="utf-8"))["control_url"]
        finally:
            own.line.close()
            server.terminate()
            try:
                server.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def state_directory() -> Path:
    """Return the directory of records and logs of this user, readable by nobody else; it is made if it is missing.

    Raises:
        EmbeddedArchiveError: somebody else made a directory of that name.
    """
    directory = Path(tempfile.gettempdir()) / f"nbia-pipeline-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise EmbeddedArchiveError(f"{directory} is not a directory of this user")
    if stat.S_IMODE(status.st_mode) != 0o700:
        directory.chmod(0o700)
    return directory


def _key(catalog: str, options: dict[str, Option]) -> str:
    text = json.dumps([__version__, catalog, sorted(options.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _alive(line: socket.socket) -> bool:
    """Return whether the server's end is open; costs a system call."""
    try:
        line.setblocking(False)
        return line.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _join(record: Path) -> _Connection | None:
    """Connect to the server of `record`; None if it is not there, is stopping or does not answer."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        url, port = str(known["url"]), int(known["lifeline_port"])
        if known["version"] != __version__:
            return None
        line = socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_SECONDS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        # From the greeting on the connection is counted: the server stays.
        if line.recv(1) and _answers(url):
            return _Connection(url, line)
    except OSError:
        pass
    line.close()
    return None


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parts.netloc, timeout=_ANSWER_SECONDS)) as connection:
        try:
            connection.request("GET", f"{parts.path}/services/up")
            response = connection.getresponse()
            return response.status == 200 and response.read() == b"up"
        except (OSError, http.client.HTTPException):
            return False


def _start(record: Path, catalog: str, options: dict[str, Option]) -> _Connection:
    """Start a server and connect to it; the caller holds the lock."""
    _servers[:] = [server for server in _servers if server.poll() is None]
    record.unlink(missing_ok=True)
    log = record.with_suffix(".log")
    words = _words({**options, "catalog": catalog, "record": str(record)})
    with log.open("wb") as output:
        server = subprocess.Popen(  # noqa: S603 - our own module, arguments are not a shell's
            [sys.executable, "-m", "nbia_pipeline.embedded", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=record.parent,
            env=_environment(),
            start_new_session=True,
        )
    _servers.append(server)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        connection = _join(record) if record.exists() else None
        if connection is not None:
            return connection
        if server.poll() is not None:
            reason = f"ended with code {server.returncode} while it started"
            break
        time.sleep(_POLL_SECONDS)
    else:
        server.terminate()
        reason = f"did not start within {START_SECONDS:.0f} s"
    end = log.read_bytes()[-_LOG_TAIL_BYTES:].decode("utf-8", "replace")
    raise EmbeddedArchiveError(f"the embedded archive {reason}; its log {log} ends:\n{end}")


def _words(options: dict[str, Option]) -> list[str]:
    """Return the options as words of a command line; True is a switch, False is left out."""
    switches = {f"--{name.replace('_', '-')}": value for name, value in sorted(options.items())}
    return [name if value is True else f"{name}={value}" for name, value in switches.items() if value is not False]


def _environment() -> dict[str, str]:
    """Return the environment of the server's process: enough to import this package."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _forget_inherited() -> None:
    """Close the parent's lifelines after a fork: they must end with the parent, not with the child."""
    global _threads
    _threads = threading.Lock()
    for inherited in _connections.values():
        inherited.line.close()
    _connections.clear()
    _servers.clear()


os.register_at_fork(after_in_child=_forget_inherited)
