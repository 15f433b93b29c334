"""Every fault, over real HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError

from nbia_pipeline.embedded.control.fault import KINDS, Fault, FaultError
from nbia_pipeline.embedded.server import fault_injection
from nbia_pipeline.embedded.server.fault_injection import _FAULTS, FaultedRequest
from nbia_pipeline_tests.helpers.archive_client import ArchiveClient
from nbia_pipeline_tests.helpers.tiny import dicom

IMAGES = "v2/getImageWithMD5Hash"
GUEST = {"Authorization": "Bearer undefined"}


@pytest.fixture
def site(site: ArchiveClient) -> Iterator[ArchiveClient]:
    """The archive without history."""
    site.control.reset()
    yield site
    site.control.reset()


def ask(site: ArchiveClient, path: str = IMAGES, timeout: float = 5, **query: Any) -> requests.Response:
    query = query or {"SeriesInstanceUID": "1.1"}
    return requests.get(f"{site.url}/services/{path}", params=query, headers=GUEST, timeout=timeout)


def entries(answer: requests.Response) -> list[tuple[str, bytes]]:
    """Return names and contents; the checksums are tested while they are read."""
    assert answer.status_code == 200
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def digests(answer: requests.Response) -> dict[str, str]:
    listed = dict(entries(answer))["md5hashes.csv"].decode().splitlines()
    assert listed[0] == "Filename,MD5Hash"
    return dict(line.split(",") for line in listed[1:])


@pytest.mark.parametrize("endpoint", ["getImage", "getLicenses", "getMD5Hierarchy", "logout"])
def test_a_missing_endpoint_answers_like_an_unknown_path(site: ArchiveClient, endpoint: str) -> None:
    unknown = requests.get(f"{site.url}/services/v2/getNothing", timeout=5)
    before = site.get("v2/getSeries").content
    site.control.faults(Fault("missing", endpoint=endpoint))
    for path in (f"services/{endpoint}", f"services/v2/{endpoint}", f"services/v4/{endpoint}"):
        for answer in (requests.get(f"{site.url}/{path}", timeout=5), requests.post(f"{site.url}/{path}", timeout=5)):
            assert (answer.status_code, answer.text) == (500, unknown.text)
            assert answer.headers["content-type"] == unknown.headers["content-type"]
    assert site.get("v2/getSeries").content == before


def test_every_kind_has_a_function() -> None:
    assert set(KINDS) == set(_FAULTS)


@pytest.mark.parametrize(
    "wrong", [{"kind": "x"}, {"kind": "cut", "fraction": 2}, {"kind": "cut", "probability": -1}, {"kind": "custom"}]
)
def test_faults_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(FaultError):
        Fault(**wrong)


# --- which requests


def statuses(site: ArchiveClient, number: int, path: str = "v2/getModalityValues", **query: Any) -> list[int]:
    return [site.get(path, **query).status_code for _ in range(number)]


def test_so_many_times_and_then_no_more(site: ArchiveClient) -> None:
    site.control.faults(Fault("status", times=2, skip=1))
    assert statuses(site, 5) == [200, 503, 503, 200, 200]


def test_by_endpoint(site: ArchiveClient) -> None:
    site.control.faults(
        Fault("status", endpoint="v2/getModalityValues"), Fault("status", endpoint="getPatient", status=502)
    )
    assert statuses(site, 1) == [503]
    assert statuses(site, 1, "v4/getModalityValues") == [200]
    assert statuses(site, 1, "v2/getPatient") == statuses(site, 1, "v4/getPatient") == [502]
    assert statuses(site, 1, "v2/getPatientStudy") == [200]
    site.control.faults(Fault("status", endpoint="oauth/token"))
    assert requests.post(f"{site.url}/oauth/token", data={}, timeout=5).status_code == 503


def test_by_series(site: ArchiveClient) -> None:
    site.control.faults(Fault("status", series="1.1"))
    assert ask(site).status_code == 503
    assert ask(site, SeriesInstanceUID="1.2").status_code == 200
    assert site.get("getDicomTags", SeriesUID="1.1").status_code == 503
    assert site.post("v4/getSeriesMetadata", {"list": "3.1,1.1"}).status_code == 503
    answer = site.post("v4/getSeriesMetadata", {"list": "3.1,1.2", "format": "JSON"})
    assert [r["SeriesInstanceUID"] for r in answer.json()] == ["1.2", "3.1"]


def test_by_chance_that_repeats_itself(site: ArchiveClient) -> None:
    runs = []
    for seed in (1, 1, 2):
        site.control.faults(Fault("status", probability=0.5), seed=seed)
        runs.append(statuses(site, 40))
    assert runs[0] == runs[1] != runs[2]
    assert 8 < runs[0].count(503) < 32


def test_the_first_that_strikes_wins(site: ArchiveClient) -> None:
    site.control.faults(Fault("status", status=500, times=1), Fault("status", status=502, times=1))
    assert statuses(site, 3) == [500, 502, 200]


# --- instead of the answer


@pytest.mark.parametrize("status", [401, 429, 500, 502, 503, 504])
def test_status(site: ArchiveClient, status: int) -> None:
    site.control.faults(Fault("status", status=status, retry_after="7"))
    answer = site.get("v2/getSeries")
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "7"
    assert (answer.content == b"") == (status == 401)
    if status == 500:
        assert answer.text == "Server was not able to process your request\nnull"


def test_what_is_no_answer_of_this_server(site: ArchiveClient) -> None:
    site.control.faults(Fault("html", times=1), Fault("empty", times=1), Fault("garbage", times=1))
    html, empty, garbage = (site.get("v2/getSeries") for _ in range(3))
    assert (html.status_code, html.headers["content-type"]) == (200, "text/html")
    assert html.text.startswith("<!DOCTYPE html>")
    assert (empty.status_code, empty.content) == (200, b"")
    assert (garbage.status_code, garbage.headers["content-type"]) == (200, "application/json")
    with pytest.raises(json.JSONDecodeError):
        json.loads(garbage.content)


def test_any_answer(site: ArchiveClient) -> None:
    site.control.faults(Fault("answer", status=302, body="moved", headers={"location": "/elsewhere"}))
    answer = requests.get(f"{site.url}/services/v2/getSeries", timeout=5, allow_redirects=False)
    assert (answer.status_code, answer.text, answer.headers["location"]) == (302, "moved", "/elsewhere")


def test_what_a_test_wants(site: ArchiveClient) -> None:
    async def act(request: FaultedRequest) -> None:
        await request.respond(200, f"{request.exchange.endpoint} {request.exchange.headers['x-told']}".encode(), {})

    site.control.faults(Fault("custom", act=act))
    answer = requests.get(f"{site.url}/services/v2/getSeries", headers={"X-Told": "so"}, timeout=5)
    assert answer.text == "getSeries so"
    assert "so" not in repr(site.control.requests()), "headers hold tokens"


# --- to the connection


def test_dropped_at_once(site: ArchiveClient) -> None:
    site.control.faults(Fault("drop", times=1))
    with pytest.raises(requests.ConnectionError, match="reset"):
        ask(site)
    assert ask(site).status_code == 200


def received(site: ArchiveClient, **fault: Any) -> tuple[int, bytes]:
    """Return the whole length of a true answer and what arrives of a disturbed one."""
    whole = len(ask(site).content)
    site.control.faults(Fault(times=1, **fault))
    got = b""
    with requests.get(
        f"{site.url}/services/{IMAGES}", {"SeriesInstanceUID": "1.1"}, headers=GUEST, stream=True, timeout=1
    ) as answer:
        assert answer.status_code == 200
        try:
            for piece in answer.raw.stream(16):
                got += piece
        except HTTPError as error:
            assert isinstance(error, (ProtocolError, ReadTimeoutError))
        else:
            pytest.fail("the answer came to an end")
    return whole, got


@pytest.mark.parametrize("fraction", [0, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["cut", "stall"])
def test_a_part_of_the_answer(site: ArchiveClient, kind: str, fraction: float) -> None:
    whole, got = received(site, kind=kind, fraction=fraction)
    # The list of digests deflates a little differently in every order of files.
    assert abs(len(got) - whole * fraction) < 16
    assert (got == b"") == (fraction == 0)


def test_a_cut_answer_of_stated_length(site: ArchiveClient) -> None:
    site.control.faults(Fault("cut", times=1))
    with pytest.raises(requests.RequestException):
        site.get("v2/getSeries")
    assert site.control.requests()[-1]["bytes"] == len(site.get("v2/getSeries").content) // 2


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the archive would have paused; nobody waits for them, but its clock says that they are over."""
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr(fault_injection, "asyncio", SimpleNamespace(sleep=pause))
    monkeypatch.setattr(fault_injection, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + sum(paused)))
    return paused


def test_a_stall_that_ends(site: ArchiveClient, pauses: list[float]) -> None:
    site.control.faults(Fault("stall", seconds=60, times=1))
    assert len(entries(ask(site))) == 4
    assert pauses == [60]


# --- to the body


def test_one_bit(site: ArchiveClient) -> None:
    true = site.get("v2/getSeries").content
    site.control.faults(Fault("flip", fraction=0.25))
    wrong = site.get("v2/getSeries").content
    assert [n for n in range(len(true)) if true[n] != wrong[n]] == [int(len(true) * 0.25)]
    with pytest.raises(zipfile.BadZipFile):
        entries(ask(site))


def test_ended_early_in_good_order(site: ArchiveClient) -> None:
    true = site.get("v2/getSeries").content
    site.control.faults(Fault("end_early", at=7))
    assert site.get("v2/getSeries").content == true[:7]
    site.control.faults(Fault("end_early", fraction=0.9))
    assert site.get("v2/getSeries").content == true[: int(len(true) * 0.9)]


# --- to a zip that opens


def names(site: ArchiveClient, kind: str, path: str = IMAGES, **more: Any) -> list[str]:
    site.control.faults(Fault(kind, **more))
    return [name for name, _ in entries(ask(site, path))]


def test_files_that_are_not_there(site: ArchiveClient) -> None:
    assert names(site, "no_files") == []
    assert names(site, "no_files", "v2/getImage") == ["LICENSE"]
    assert names(site, "missing_file") == ["00000001.dcm"]
    assert names(site, "missing_file", fraction=1.0) == ["00000001.dcm", "00000002.dcm"]
    assert names(site, "lost_file") == ["00000001.dcm", "00000003.dcm", "md5hashes.csv"]
    assert sorted(digests(ask(site))) == ["00000001.dcm", "00000003.dcm"]


@pytest.mark.parametrize(("kind", "count"), [("cut_file", 2), ("short_file", 4)])
def test_files_that_are_cut(site: ArchiveClient, kind: str, count: int) -> None:
    site.control.faults(Fault(kind, fraction=0.5))
    found = entries(ask(site))
    assert len(found) == count
    sizes = [len(data) for name, data in found if name.endswith(".dcm")]
    whole = len(dicom("1.1", "1.1.1"))
    assert sizes == [whole, whole // 2, whole][: len(sizes)]
    assert (found[-1][0] == "md5hashes.csv") == (kind == "short_file")


def wrong_digests(answer: requests.Response) -> list[str]:
    """Return the digests that do not fit their files."""
    files = dict(entries(answer))
    return [d for name, d in digests(answer).items() if hashlib.md5(files[name]).hexdigest() != d]


def test_digests(site: ArchiveClient) -> None:
    assert names(site, "no_hashes") == ["00000001.dcm", "00000002.dcm", "00000003.dcm"]
    site.control.faults(Fault("wrong_hash"))
    (wrong,) = wrong_digests(ask(site))
    assert len(wrong) == 32
    site.control.faults(Fault("empty_hash"))
    assert wrong_digests(ask(site)) == [""]
    site.control.faults()
    assert wrong_digests(ask(site)) == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [("path_name", "../../outside.dcm"), ("absolute_name", "/tmp/outside.dcm"), ("duplicate_name", "00000002.dcm")],
)
def test_hostile_names(site: ArchiveClient, kind: str, name: str) -> None:
    listed = names(site, kind)
    assert len(listed) == 5
    assert listed[3] == name
    assert len(set(listed)) == (4 if kind == "duplicate_name" else 5)


def test_a_bomb(site: ArchiveClient) -> None:
    site.control.faults(Fault("bomb", size=50_000_001))
    answer = ask(site, timeout=30)
    assert len(answer.content) < 200_000
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        (bomb,) = [i for i in archive.infolist() if i.file_size > 10_000]
        assert bomb.file_size == 50_000_001
        with archive.open(bomb) as file:
            assert sum(len(p) for p in iter(lambda: file.read(1 << 20), b"")) == 50_000_001


def test_what_is_no_zip_stays_as_it_is(site: ArchiveClient) -> None:
    true = site.get("v2/getSeries").content
    site.control.faults(Fault("missing_file"))
    assert site.get("v2/getSeries").content == true
    assert ask(site, SeriesInstanceUID="nope").status_code == 400


# --- before a true answer


def test_tokens_run_out_in_between(site: ArchiveClient) -> None:
    header = f"Bearer {site.token()}"
    site.control.faults(Fault("expire_tokens", endpoint="getImage", times=1))
    assert site.get("v2/getCollectionValues", header).status_code == 200
    assert site.get("v2/getImage", header, SeriesInstanceUID="1.1").status_code == 401
    assert site.get("v2/getCollectionValues", header).status_code == 401


def test_hidden_between_listing_and_download(site: ArchiveClient) -> None:
    site.control.faults(Fault("hide", endpoint="getImageWithMD5Hash", times=1))
    assert "1.1" in site.column("v2/getSeries", "SeriesInstanceUID")
    assert ask(site).status_code == 400
    assert "1.1" not in site.column("v2/getSeries", "SeriesInstanceUID")
    assert ask(site, SeriesInstanceUID="nope").status_code == 400


def test_replaced_between_listing_and_download(site: ArchiveClient) -> None:
    uid = site.control.add_series("Alpha Set", slices=3)
    before = site.get("v2/getSeries", SeriesInstanceUID=uid).json()[0]
    site.control.faults(Fault("replace", series=uid, endpoint="getImageWithMD5Hash", times=1))
    assert len(entries(ask(site, SeriesInstanceUID=uid))) == 4
    after = site.get("v2/getSeries", SeriesInstanceUID=uid).json()[0]
    assert after["TimeStamp"] > before["TimeStamp"]


# --- slowness and the record


def test_latency(site: ArchiveClient, pauses: list[float]) -> None:
    site.control.latency(60)
    site.get("up")
    assert pauses == [60]


def test_bandwidth(site: ArchiveClient, pauses: list[float]) -> None:
    true = site.get("v2/getSeries").content
    site.control.bandwidth(len(true) / 60)
    assert site.get("v2/getSeries").content == true
    assert len(pauses) > 10
    assert sum(pauses) == pytest.approx(60, abs=5)


def test_a_line_that_all_answers_share(site: ArchiveClient, pauses: list[float]) -> None:
    true = site.get("v2/getSeries").content
    site.control.line(2 * len(true) / 60)
    for _ in range(2):
        assert site.get("v2/getSeries").content == true
    assert len(pauses) > 10
    assert sum(pauses) == pytest.approx(60, abs=5)


def test_the_record(site: ArchiveClient) -> None:
    site.control.faults(Fault("status", endpoint="getPatient", status=504))
    body = site.get("v2/getSeries", Collection="beta-set").content
    site.get("v4/getPatient")
    site.post("getSeriesMetadata2", {"list": "1.1"})
    first, second, third = site.control.requests(clear=True)
    assert first.pop("seconds") > 0
    assert first == {
        "method": "GET",
        "path": "/services/v2/getSeries",
        "endpoint": "getSeries",
        "query": {"Collection": "beta-set"},
        "status": 200,
        "bytes": len(body),
        "fault": None,
    }
    assert (second["status"], second["fault"]) == (504, "status")
    assert (third["method"], third["endpoint"]) == ("POST", "getSeriesMetadata2")
    assert site.control.requests() == []


def test_reset_lets_everything_be_right_again(make_site: Callable[..., ArchiveClient]) -> None:
    site = make_site(latency=0.01)
    site.control.latency(5)
    site.control.bandwidth(1)
    site.control.line(1)
    site.control.faults(Fault("drop"))
    site.control.reset()
    assert site.get("v2/getSeries").json()
    assert site.app.state.archive.traffic.latency == 0.01
