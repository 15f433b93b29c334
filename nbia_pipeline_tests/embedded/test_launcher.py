from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from nbia_pipeline.embedded import launcher
from nbia_pipeline.embedded.launcher import EmbeddedArchiveError, ensure_running

pytestmark = pytest.mark.slow

ROOT = Path(launcher.__file__).resolve().parents[2]
LINGER = 0.5
CLIENT = (
    "import sys; from nbia_pipeline.embedded.launcher import ensure_running; "
    f"print(ensure_running('demo', linger={LINGER}), flush=True); sys.stdin.read()"
)
Client = subprocess.Popen[str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of one's own for records; lifelines of this process end with the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield tmp_path / f"nbia-pipeline-{os.getuid()}"
    let_go()


@pytest.fixture
def client(place: Path) -> Iterator[Callable[[], Client]]:
    """Start processes that hold a lifeline until they are killed."""
    started: list[Client] = []

    def start() -> Client:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def let_go() -> None:
    for connection in launcher._connections.values():
        connection.line.close()
    launcher._connections.clear()


def url_of(process: Client) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def record_of(place: Path) -> dict[str, object]:
    (path,) = place.glob("*.json")
    facts: dict[str, object] = json.loads(path.read_text())
    return facts


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/services/up", timeout=5).text == "up"
    except requests.ConnectionError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_many_processes_share_one_server_that_ends_with_them(client: Callable[[], Client], place: Path) -> None:
    clients = [client() for _ in range(8)]
    urls = {url_of(process) for process in clients}
    assert len(urls) == 1
    (url,) = urls
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith("/nbia-api")
    assert answers(url)
    assert place.stat().st_mode & 0o777 == 0o700
    for process in clients[:7]:
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(LINGER * 3)
    assert answers(url)
    os.kill(clients[7].pid, signal.SIGKILL)
    assert wait_until(lambda: not answers(url))
    assert wait_until(lambda: not list(place.glob("*.json")))


def test_a_held_archive_is_found_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = ensure_running("demo", linger=LINGER)
    for what in ("state_directory", "_join", "_start"):
        monkeypatch.delattr(launcher, what)  # no file is read, no server is asked
    assert ensure_running("demo", linger=LINGER) == url


def test_other_options_are_another_archive(place: Path) -> None:
    plain = ensure_running("demo", linger=LINGER)
    guide = ensure_running("demo", linger=LINGER, guide_spellings=True)
    assert plain != guide
    form = {"grant_type": "password", "username": "nbia_guest", "password": ""}
    token = requests.post(f"{guide}/oauth/token", data=form, timeout=10).json()["access_token"]
    rows = requests.get(
        f"{guide}/services/v2/getPatient", headers={"Authorization": f"Bearer {token}"}, timeout=10
    ).json()
    assert "PatientID" in rows[0]


def test_a_dead_server_is_replaced(place: Path) -> None:
    first = ensure_running("demo", linger=LINGER)
    pid = record_of(place)["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not answers(first))
    second = ensure_running("demo", linger=LINGER)
    assert answers(second)
    assert record_of(place)["pid"] != pid


@pytest.mark.parametrize("change", [{"version": "0"}, {"lifeline_port": 1}, {"url": "http://127.0.0.1:1/x"}])
def test_a_stale_record_is_replaced(place: Path, change: dict[str, object]) -> None:
    first = ensure_running("demo", linger=LINGER)
    (path,) = place.glob("*.json")
    path.write_text(json.dumps({**record_of(place), **change}))
    let_go()
    second = ensure_running("demo", linger=LINGER)
    assert second != first
    assert answers(second)


def test_a_broken_record_is_replaced(place: Path) -> None:
    launcher.state_directory()
    key = launcher._key("demo", {"linger": LINGER})
    (place / f"{key}.json").write_text("{")
    assert answers(ensure_running("demo", linger=LINGER))


def test_a_server_that_cannot_start_tells_why(place: Path) -> None:
    with pytest.raises(EmbeddedArchiveError, match=r"code 2(.|\n)*--no-such-option"):
        ensure_running("demo", no_such_option=1)


def test_a_foreign_directory_is_refused(place: Path, tmp_path: Path) -> None:
    place.symlink_to(tmp_path)
    with pytest.raises(EmbeddedArchiveError, match="not a directory of this user"):
        ensure_running("demo", linger=LINGER)


def test_a_forked_child_takes_its_own_lifeline(place: Path) -> None:
    url = ensure_running("demo", linger=LINGER)
    child = os.fork()
    if child == 0:
        inherited = dict(launcher._connections)
        found = ensure_running("demo", linger=LINGER)
        os._exit(0 if not inherited and found == url else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ensure_running("demo", linger=LINGER) == url


def test_importing_the_launcher_is_light() -> None:
    code = (
        "import sys, nbia_pipeline.embedded.launcher; "
        "print([m for m in ('starlette', 'pandas', 'pyarrow', 'numpy', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_server_by_hand_stops_quietly_and_tidies_up(place: Path, sent: signal.Signals) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "nbia_pipeline.embedded"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    url = url_of(server)
    guest = {"Authorization": "Bearer undefined"}
    rows = requests.get(f"{url}/services/v2/getSeries", headers=guest, timeout=10).json()
    uid = {"SeriesInstanceUID": rows[0]["SeriesInstanceUID"]}
    requests.get(f"{url}/services/v2/getImage", uid, headers=guest, timeout=30).raise_for_status()
    assert list(place.parent.glob("nbia-archive-*"))
    server.send_signal(sent)
    assert server.communicate(timeout=20)[1] == ""
    assert not list(place.parent.glob("nbia-archive-*"))
