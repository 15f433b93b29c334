"""The control interface over HTTP, the command that offers it, and the fixtures for other projects."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from nbia_pipeline.embedded import launcher
from nbia_pipeline.embedded.control.client import Control, ControlError, Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.control.server import OPERATIONS
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD
from nbia_pipeline.embedded.launcher import own_archive
from nbia_pipeline.embedded.pytest_plugin import MEMBER as PLUGIN_MEMBER
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline_tests.helpers.tiny import TOKEN, running_with_control, tiny_catalog

ROOT = Path(launcher.__file__).resolve().parents[2]


@dataclass
class Pair:
    """An archive and its control interface."""

    url: str
    control: Control

    def uids(self, **query: str) -> list[str]:
        answer = requests.get(f"{self.url}/services/v1/getSeries", query, timeout=10)
        return [r["SeriesInstanceUID"] for r in answer.json()] if answer.content else []


@pytest.fixture(scope="module")
def _pair() -> Iterator[Pair]:
    with running_with_control(create_app(tiny_catalog())) as (url, control):
        yield Pair(url, Control(control))


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    _pair.control.reset()
    return _pair


def public(kind: type) -> dict[str, inspect.Signature]:
    methods = inspect.getmembers(kind, inspect.isfunction)
    return {name: inspect.signature(m) for name, m in methods if not name.startswith("_")}


def test_both_ends_have_the_same_operations() -> None:
    inside, outside = public(Operations), public(Control)
    del inside["clock"]
    assert set(inside) == set(outside) == set(OPERATIONS)
    for name in OPERATIONS:
        assert str(inside[name]) == str(outside[name]), name


def test_every_operation_over_http(pair: Pair) -> None:
    control = pair.control
    assert control.now(dt.datetime.fromisoformat("2024-05-06T07:08:09")) == "2024-05-06T07:08:09"
    control.hide(iter(["1.1", "3.1"]))
    assert pair.uids() == ["1.2", "2.1"]
    control.show("1.1")
    control.release("3.1", dt.date(2024, 5, 1))
    control.back_date("1.2", "2001-02-03")
    control.edit("1.1", LicenseName="L", DateReleased=dt.datetime.fromisoformat("2020-01-01T01:02:03"))
    rows = {r["SeriesInstanceUID"]: r for r in control.series()}
    assert rows["3.1"]["DateReleased"] == "2024-05-01T00:00:00"
    assert rows["1.2"]["DateReleased"] == "2001-02-03T00:00:00"
    assert (rows["1.1"]["LicenseName"], rows["1.1"]["DateReleased"]) == ("L", "2020-01-01T01:02:03")
    uid = control.add_series("Fresh", patient="P", released=dt.date(2024, 1, 1), slices=2, SeriesNumber=7)
    (row,) = control.series("Fresh")
    assert (row["SeriesInstanceUID"], row["ImageCount"], row["SeriesNumber"]) == (uid, 2, 7)
    assert row["TimeStamp"] == "2024-05-06T07:08:09"
    control.replace(uid, hidden=False, slices=3)
    assert control.series("Fresh")[0]["ImageCount"] == 3
    control.add_collection("Fresh", "<p/>", restricted=True)
    assert uid not in pair.uids()
    control.cart("C", [uid, "1.1"])
    cart = requests.get(f"{pair.url}/services/v1/getContentsByName", {"name": "c"}, timeout=10).json()
    assert [r["SeriesInstanceUID"] for r in cart] == ["1.1"]
    control.annotate("1.1", {"a.xml": "<a/>"})
    assert {r["SeriesInstanceUID"]: r["AnnotationSize"] for r in control.series()}["1.1"] == 4
    control.digests(["1.1.1", "1.1.2"], "blank")
    digest = {"SOPInstanceUid": "1.1.2"}
    assert requests.get(f"{pair.url}/services/v1/getM5HashForImage", digest, timeout=10).text == " "
    control.history(["undated"])
    assert "DateReleased" not in requests.get(f"{pair.url}/services/v1/getUpdatedSeries", timeout=10).text
    control.delete(uid)
    actions = [e["action"] for e in control.events()]
    assert actions == [
        *("hide", "show", "release", "back_date", "edit", "add_series", "replace", "add_collection", "cart"),
        *("annotate", "digests", "delete"),
    ]
    assert control.events()[0]["time"] == "2024-05-06T07:08:09"
    control.reset()
    assert pair.uids() == ["1.1", "1.2", "2.1", "3.1"]


def test_tokens_and_traffic_over_http(pair: Pair) -> None:
    form = {"grant_type": "password", "username": "nbia_guest"}
    pair.control.token_lifetime(9)
    token = requests.post(f"{pair.url}/oauth/token", form, timeout=10).json()
    assert (token["expires_in"], token["refresh_expires_in"]) == (9, 9)
    header = {"Authorization": f"Bearer {token['access_token']}"}
    pair.control.expire_tokens()
    ask = f"{pair.url}/services/v2/getCollectionValues"
    assert requests.get(ask, headers=header, timeout=10).status_code == 401
    pair.control.faults(Fault("status", endpoint="getCollectionValues", status=429, retry_after="3", times=1), seed=4)
    answer = requests.get(ask, timeout=10)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    pair.control.latency(0.05)
    pair.control.bandwidth(1e6)
    pair.control.line(1e7)
    pair.control.guide_spellings(True)
    assert "PatientID" in requests.get(f"{pair.url}/services/v1/getPatient", timeout=10).json()[0]
    records = pair.control.requests(clear=True)
    assert [(r["endpoint"], r["status"]) for r in records] == [
        ("token", 200),
        ("getCollectionValues", 401),
        ("getCollectionValues", 429),
        ("getPatient", 200),
    ]
    assert records[-1]["seconds"] >= 0.05
    assert pair.control.requests() == []


def test_refusals_are_sentences(pair: Pair) -> None:
    with pytest.raises(ControlError, match="hide: there is no series 9"):
        pair.control.hide("9")
    with pytest.raises(ControlError, match="no column License"):
        pair.control.edit("1.1", License="x")
    with pytest.raises(ControlError, match="wrong_name"):
        pair.control._do("hide", wrong_name=1)
    for body in (b"{", b"[1]"):
        assert requests.post(f"{pair.control.url}/control/reset", body, timeout=10).status_code == 400


@pytest.mark.parametrize(
    ("changed", "token", "status"),
    [
        ({}, TOKEN, 200),
        ({"Host": "localhost:9000"}, TOKEN, 200),  # as through a tunnel
        ({}, None, 403),
        ({}, "another", 403),
        ({}, "", 403),
        ({"Authorization": f"Bearer {TOKEN}"}, None, 403),
        ({"Host": "evil.example"}, TOKEN, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, TOKEN, 403),
        ({"Host": "[::1"}, TOKEN, 403),
        ({"Origin": "https://evil.example"}, TOKEN, 403),
        ({"Origin": "null"}, TOKEN, 403),
    ],
)
def test_only_those_with_the_token_on_this_machine_and_no_page_have_control(
    pair: Pair, changed: dict[str, str], token: str | None, status: int
) -> None:
    address = pair.control.url.replace(f"control:{TOKEN}@", "" if token is None else f"control:{token}@")
    pair.control.hide("1.1")
    for method, path in (("POST", "reset"), ("GET", "")):
        answer = requests.request(method, f"{address}/control/{path}".rstrip("/"), headers=changed, timeout=10)
        assert answer.status_code == status
        assert ("error" in answer.json()) == (status == 403)
    assert ("1.1" in pair.uids()) == (status == 200)


def test_without_its_token_the_client_says_what_is_missing(pair: Pair) -> None:
    control = Control(pair.control.url.replace(f"control:{TOKEN}@", ""))
    with pytest.raises(ControlError, match="the token is missing or wrong: use the address that the archive printed"):
        control.reset()


def test_the_two_ports_have_nothing_in_common(pair: Pair) -> None:
    base = pair.url.removesuffix("/nbia-api")
    assert requests.post(f"{base}/control/reset", timeout=10).status_code == 500
    assert requests.get(f"{pair.control.url}/nbia-api/services/up", timeout=10).status_code == 404
    assert requests.get(f"{pair.control.url}/control", timeout=10).json() == {"operations": OPERATIONS}


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "nbia_pipeline", "archive", "--port", "0", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_command_with_all_its_options() -> None:
    words = "--control-port 0 --token-lifetime 11 --guide-spellings --latency 0.1 --bandwidth 5e6 --line 4e7".split()
    with start(*words) as process:
        try:
            url, address = line_of(process), line_of(process).removeprefix("control: ")
            assert re.fullmatch(r"http://control:[\w-]{32}@127\.0\.0\.1:\d+", address)
            assert line_of(process).startswith(f"use it: curl -X POST {address}/control/reset ")
            control = Control(address)
            assert "PatientID" in requests.get(f"{url}/services/v1/getPatient", timeout=10).json()[0]
            form = {"grant_type": "password", "username": MEMBER, "password": MEMBER_PASSWORD}
            assert requests.post(f"{url}/oauth/token", form, timeout=10).json()["expires_in"] == 11
            assert all(r["seconds"] >= 0.1 for r in control.requests())
        finally:
            process.terminate()


def test_the_command_has_no_control_interface_unless_asked() -> None:
    with start() as process:
        try:
            url = line_of(process)
            requests.get(f"{url}/services/up", timeout=10).raise_for_status()
        finally:
            process.terminate()
        assert line_of(process) == ""


@pytest.mark.slow
def test_an_archive_of_ones_own_ends_with_its_block() -> None:
    with own_archive(control_port=0) as (url, control_url):
        assert requests.get(f"{url}/services/up", timeout=10).text == "up"
        assert control_url is not None
        assert Control(control_url).series("TCGA-DEMO")
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/services/up", timeout=10)
    with own_archive() as (_, none):
        assert none is None


FOREIGN = """
import requests
from nbia_pipeline.embedded.control import Fault


def test_a_series(fresh_nbia_archive):
    uid = fresh_nbia_archive.control.add_series("TCGA-DEMO", patient="X")
    rows = requests.get(f"{fresh_nbia_archive.url}/services/v4/getSeries", {"PatientID": "X"}, timeout=9).json()
    assert [r["SeriesInstanceUID"] for r in rows] == [uid]


def test_it_is_fresh(fresh_nbia_archive):
    answer = requests.get(f"{fresh_nbia_archive.url}/services/v4/getSeries", {"PatientID": "X"}, timeout=9)
    assert answer.content == b""
    assert len(fresh_nbia_archive.control.requests()) == 1


def test_a_fault(nbia_archive):
    nbia_archive.control.faults(Fault("status", status=502))
    assert requests.get(f"{nbia_archive.url}/services/up", timeout=9).status_code == 502


def test_an_account(fresh_nbia_archive):
    user, password = fresh_nbia_archive.member
    form = {"grant_type": "password", "username": user, "password": password}
    assert requests.post(f"{fresh_nbia_archive.url}/oauth/token", form, timeout=9).json()["expires_in"] == 77
"""
FOREIGN_CONFTEST = """
import pytest


@pytest.fixture(scope="session")
def nbia_archive_options():
    return {"token_lifetime": 77.0}
"""


@pytest.mark.slow
def test_a_foreign_project_uses_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "test_foreign.py").write_text(textwrap.dedent(FOREIGN))
    (tmp_path / "conftest.py").write_text(FOREIGN_CONFTEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_plugin_is_registered_and_light() -> None:
    (entry,) = [e for e in importlib.metadata.entry_points(group="pytest11") if e.name == "nbia_pipeline"]
    assert entry.value == "nbia_pipeline.embedded.pytest_plugin"
    code = (
        f"import sys, {entry.value}, nbia_pipeline.embedded.launcher; "
        "print([m for m in ('starlette', 'pandas', 'pyarrow', 'numpy', 'uvicorn', 'requests', 'dagster') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_control_class_needs_requests_only() -> None:
    code = (
        "import sys, nbia_pipeline.embedded.control.client; "
        "print([m for m in ('starlette', 'pandas', 'pyarrow', 'numpy', 'uvicorn', 'dagster') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_published_account_is_the_demos() -> None:
    assert PLUGIN_MEMBER == (MEMBER, MEMBER_PASSWORD)
