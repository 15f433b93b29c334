"""Hosts for a test: sets of processes with nothing in common but a network.

As root on Linux each host has namespaces of its own: mounts, in which the directory of the host is the only place that
can be written and those of the other hosts do not exist; processes, which end with it, as in a machine that loses its
power; a network with an address of its own; and a name. All hosts see their directory at the same path, as machines
made from one image do. Elsewhere a host is a set of processes with variables and an address (127.0.0.N) of its own,
and nothing but that keeps it from the directories of the others: :attr:`Network.isolation` says which it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nbia_pipeline_tests.power_cut.logged_disk import die_with_parent, mount, own_mounts

ROOT = Path(__file__).resolve().parents[2]
FULL = "namespaces of its own for each host: mounts, processes, network, name"
NONE = "no namespaces, for want of root or Linux: own variables, directories and addresses for each host"

_BIND, _REMOUNT, _READ_ONLY, _RECURSIVE = 1 << 12, 1 << 5, 1, 1 << 14
_TOOLS = ("unshare", "nsenter", "ip")
_ENTERED = "NBIA_SCALE_OUT_NETWORK"
_BRIDGE = "nbia0"
_READY = "ready"


def enter() -> None:
    """Give this process a network of its own, in which hosts can be made; it is gone when the process is.

    The program is begun again for that, once. Where the system does not allow it, nothing happens.
    """
    if os.environ.get(_ENTERED) or not _may_isolate():
        return
    os.environ[_ENTERED] = "1"
    os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.orig_argv[1:]])


def _may_isolate() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, _TOOLS)):
        return False
    words = "unshare --net --mount --pid --fork --uts --ipc ip link add name".split()
    done = subprocess.run([*words, _BRIDGE, "type", "veth"], capture_output=True, check=False)
    return done.returncode == 0


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, directly or not, the youngest generation last."""
    found = [pid]
    for known in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{known}/task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
    return found[1:]


@dataclass
class Host:
    """A host that runs.

    Attributes:
        name: its name.
        address: its address.
        folder: its directory, as seen from outside.
        inside: its directory, as its processes see it.
        pid: the first of its processes, 0 without namespaces.
        started: those that were started on it.
    """

    name: str
    address: str
    folder: Path
    inside: Path
    pid: int = 0
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _first: subprocess.Popen[str] | None = None

    def environment(self) -> dict[str, str]:
        """Return the variables of its processes; none of this process's are among them."""
        return {
            "HOME": str(self.inside / "home"),
            "TMPDIR": "/tmp" if self.pid else str(self.inside / "tmp"),
            "DAGSTER_HOME": str(self.inside / "dagster_home"),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
            "ADDRESS": self.address,
        }

    def start(self, words: str | Sequence[str], variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a process of the host, which works in its home; what it prints goes to ``log`` there.

        Args:
            words: the command, or a line for the shell.
            variables: more of its environment.
        """
        line = ["sh", "-c", words] if isinstance(words, str) else list(words)
        command = [*self._entry(), "sh", "-c", 'cd "$HOME" && exec "$@"', "sh", *line]
        environment = {**self.environment(), **(variables or {})}
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.started.append(process)
        return process

    def run(self, words: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        """Run a command of the host to its end.

        Raises:
            AssertionError: it failed.
        """
        code = self.start(words, variables).wait()
        assert code == 0, f"{self.name}: {' '.join(words)} ended with {code}: {self.log()}"

    def _entry(self) -> list[str]:
        if not self.pid:
            return []
        return ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-u", "-i", "--"]

    def log(self) -> str:
        """Return the end of what its processes printed."""
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def expect_alive(self) -> None:
        """Make sure that all that was started, and did not end well, still runs.

        Raises:
            AssertionError: something ended.
        """
        for process in self.started:
            assert not process.poll(), f"{self.name}: {process.args!r} ended with {process.returncode}: {self.log()}"

    def kill(self) -> None:
        """End all its processes at once, with SIGKILL, as a loss of power does."""
        if self._first is not None:
            self._first.kill()  # the first process of the namespace goes with it, and all others with that one
            self._first.wait()
        for process in self.started:
            for pid in (process.pid, *descendants(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        self.started.clear()


@dataclass
class Network:
    """Where hosts are.

    Attributes:
        folder: for their directories; on a disk.
        isolation: what keeps them apart, in words.
        hosts: those that were made.
    """

    folder: Path
    isolation: str
    hosts: list[Host] = field(default_factory=list)

    def host(self, name: str) -> Host:
        """Make a host and start it."""
        number = 10 + len(self.hosts)
        folder = self.folder / f"{number}-{name}"
        for part in ("home", "tmp", "dagster_home"):
            (folder / part).mkdir(parents=True)
        if self.isolation == FULL:
            host = self._isolated(name, number, folder)
        else:
            host = Host(name, f"127.0.0.{number}", folder, folder)
        self.hosts.append(host)
        return host

    def _isolated(self, name: str, number: int, folder: Path) -> Host:
        inside, kinds = self.folder / "host", ("mount", "pid", "fork", "kill-child", "mount-proc", "net", "uts", "ipc")
        words = ["unshare", *(f"--{kind}" for kind in kinds), sys.executable, "-m", __name__, name, str(folder)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        first = subprocess.Popen(
            [*words, str(inside)], stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=die_with_parent
        )
        assert first.stdout is not None
        assert first.stdout.readline().strip() == _READY, f"the host {name} did not start"
        (pid,) = descendants(first.pid)
        address, outside = f"10.77.0.{number}", f"v{number}"
        _ip(f"link add {outside} type veth peer name eth0 netns {pid}")
        _ip(f"link set {outside} master {_BRIDGE} up")
        for line in ("link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up"):
            _ip(line, entry=("nsenter", "-t", str(pid), "-n"))
        return Host(name, address, folder, inside, pid, _first=first)


@contextlib.contextmanager
def network(folder: Path) -> Iterator[Network]:
    """Make a network of hosts, which end with the block."""
    made = Network(folder, FULL if os.environ.get(_ENTERED) else NONE)
    if made.isolation == FULL:
        for line in ("link set lo up", f"link add {_BRIDGE} type bridge", f"link set {_BRIDGE} up"):
            _ip(line)
        _ip(f"addr add 10.77.0.1/24 dev {_BRIDGE}")
    try:
        yield made
    finally:
        for host in made.hosts:
            host.kill()
        if made.isolation == FULL:
            _ip(f"link delete {_BRIDGE}")


def _ip(line: str, entry: Sequence[str] = ()) -> None:
    done = subprocess.run([*entry, "ip", *line.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {line}: {done.stderr.strip()}"


def wait_for(address: str, port: int, seconds: float = 60, host: Host | None = None) -> None:
    """Wait until something listens.

    Raises:
        AssertionError: nothing does.
    """
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
            return
        if host is not None:
            host.expect_alive()
        assert time.monotonic() < until, f"nothing listens at {address}:{port}: {host.log() if host else ''}"
        time.sleep(0.1)


# --- the first process of a host


def main(name: str, folder: str, inside: str) -> None:
    """Become the first process of a host: take everything away but its directory and what it runs, and wait."""
    die_with_parent()
    own_mounts()
    keep = {inside: folder, str(ROOT): str(ROOT), sys.prefix: sys.prefix, sys.base_prefix: sys.base_prefix}
    opened = {path: os.open(source, os.O_PATH) for path, source in keep.items()}
    mount(f"{folder}/tmp", "/tmp", "none", "", _BIND)
    mount("none", "/", "none", "", _REMOUNT | _BIND | _READ_ONLY)
    for place in ("/dev/shm", str(Path(folder).parent)):
        with contextlib.suppress(FileNotFoundError):  # it was below /tmp
            mount("none", place, "tmpfs", "")
    for path, descriptor in opened.items():
        if path == inside or not Path(path).exists():
            Path(path).mkdir(parents=True)
            mount(f"/proc/self/fd/{descriptor}", path, "none", "", _BIND)
            mount("none", path, "none", "", _REMOUNT | _BIND | (0 if path == inside else _READ_ONLY))
        os.close(descriptor)
    socket.sethostname(name)
    print(_READY, flush=True)
    while True:  # those whose parents ended are children of this process
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
