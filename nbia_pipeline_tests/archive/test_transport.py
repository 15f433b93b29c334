from __future__ import annotations

import email.utils
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import requests

from nbia_pipeline.archive import ArchiveError, ArchiveUnreachable, BadAnswer, LoginRefused, NotAvailable, ServerError
from nbia_pipeline.archive.errors import BODY_SHOWN
from nbia_pipeline.archive.rate_limit import Limiter
from nbia_pipeline.archive.transport import USER_AGENT, Session
from nbia_pipeline.embedded.server.fault_injection import FaultedRequest
from nbia_pipeline.embedded.server.tokens import GUEST
from nbia_pipeline_tests.helpers.archives import FAST, Serve, TestArchive
from nbia_pipeline_tests.helpers.faults import (
    NO_SUCH_ENDPOINT,
    NULL,
    Fault,
    always,
    answer,
    custom,
    cut,
    silence,
)
from nbia_pipeline_tests.helpers.sockets import answering_with

PATH = "/services/v2/getSeries"
PARAMETERS = {"Collection": "TCGA-DEMO"}
QUIET = replace(FAST, read_timeout=0.2, tries=2)


def whole(answered: requests.Response) -> bytes:
    return answered.content


@pytest.fixture
def session(archive: TestArchive) -> Iterator[Session]:
    made = Session(archive.url, (GUEST, ""), options=FAST)
    yield made
    made.close()


@pytest.fixture
def body(archive: TestArchive, session: Session) -> bytes:
    """The true answer; getting it leaves no trace."""
    found = session.call("GET", PATH, PARAMETERS, whole, most=1 << 20)
    archive.faults.reset()
    assert found.count(b"SeriesInstanceUID") == 9
    return found


def get(session: Session) -> bytes:
    return session.call("GET", PATH, PARAMETERS, whole, most=1 << 20)


# --- what may pass is tried again


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524])
def test_a_busy_archive_is_asked_again(archive: TestArchive, session: Session, body: bytes, status: int) -> None:
    archive.faults.inject("getSeries", answer(status, b"busy"), times=2)
    assert get(session) == body
    assert archive.faults.count("getSeries") == 3


def test_an_archive_that_stays_busy_is_given_up(archive: TestArchive, session: Session, body: bytes) -> None:
    archive.faults.inject("getSeries", answer(503, b"closed for\n repair"), times=9)
    with pytest.raises(ArchiveUnreachable) as caught:
        get(session)
    assert archive.faults.count("getSeries") == FAST.tries
    assert str(caught.value) == (
        "the archive could not answer: it may be busy, try again later "
        "[/services/v2/getSeries Collection=TCGA-DEMO, status 503, answer 'closed for repair']"
    )
    assert (caught.value.status, caught.value.retryable) == (503, True)


@pytest.mark.parametrize(("tries", "calls"), [(9, 3), (3, 3), (2, 2), (1, 1)])
def test_a_500_is_tried_three_times_at_most(archive: TestArchive, tries: int, calls: int) -> None:
    archive.faults.inject("getSeries", answer(500, b"Server was not able\nto"), times=20)
    session = Session(archive.url, (GUEST, ""), options=replace(FAST, tries=tries))
    with pytest.raises(ServerError, match="status 500"):
        get(session)
    assert archive.faults.count("getSeries") == calls
    session.close()


@pytest.mark.parametrize("status", [500, 503, 520, 524])
@pytest.mark.parametrize("tries", [1, 3])
def test_a_token_endpoint_that_stays_busy_is_given_up(archive: TestArchive, status: int, tries: int) -> None:
    archive.faults.inject("token", answer(status, b"busy"), times=20)
    session = Session(archive.url, (GUEST, ""), options=replace(FAST, tries=tries))
    with pytest.raises(ArchiveUnreachable, match="issues no token: try again later") as caught:
        get(session)
    assert archive.faults.count("token") == tries
    assert (caught.value.endpoint, caught.value.status) == ("/oauth/token", status)


def test_a_token_endpoint_that_is_busy_for_a_moment_is_asked_again(archive: TestArchive, session: Session) -> None:
    archive.faults.inject("token", answer(503), answer(502))
    assert b"SeriesInstanceUID" in get(session)
    assert archive.faults.count("token") == 3


@pytest.mark.parametrize("status", [519, 525, 530])
def test_a_status_that_nobody_knows_is_asked_once(archive: TestArchive, session: Session, status: int) -> None:
    archive.faults.inject("getSeries", answer(status), times=2)
    with pytest.raises(BadAnswer, match=f"an unexpected answer: check base_url .*status {status}"):
        get(session)
    assert archive.faults.count("getSeries") == 1


def test_the_statuses_of_cloudflare_do_not_count_as_overload(archive: TestArchive, session: Session) -> None:
    """The host cannot be reached at all; fewer requests at a time would not help."""
    limit = session.limiter.limit
    archive.faults.inject("getSeries", answer(520), answer(522), answer(524))
    with pytest.raises(ArchiveUnreachable) as caught:
        get(session)
    assert (caught.value.status, caught.value.retryable, caught.value.overloaded) == (524, True, False)
    assert session.limiter.limit == limit


# --- waits


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were to be waited; nobody waits them."""
    waited: list[float] = []
    monkeypatch.setattr("nbia_pipeline.archive.transport.stopping.sleep", waited.append)
    # All threads are held back as well; that is shown in test_rate_limit.
    monkeypatch.setattr(Limiter, "refused", lambda self, began, seconds=None: None)
    return waited


def test_waits_double_up_to_the_longest(archive: TestArchive, waits: list[float]) -> None:
    archive.faults.inject("getSeries", answer(503), times=9)
    session = Session(archive.url, (GUEST, ""), options=replace(FAST, tries=6, backoff=10, max_backoff=50))
    with pytest.raises(ArchiveUnreachable):
        get(session)
    assert len(waits) == 5
    for waited, full in zip(waits, [10, 20, 40, 50, 50], strict=True):
        assert full / 2 <= waited <= full


@pytest.mark.parametrize("endpoint", ["getSeries", "token"])
@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("7", 7), ("0", 0), ("100000", 30), ("soon", 0), ("-5", 0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
)
def test_retry_after_is_honoured_within_the_longest_wait(
    archive: TestArchive, waits: list[float], endpoint: str, retry_after: str, seconds: float
) -> None:
    archive.faults.inject(endpoint, answer(503, retry_after=retry_after))
    session = Session(archive.url, (GUEST, ""), options=replace(FAST, max_backoff=30))
    get(session)
    assert waits == [pytest.approx(seconds, abs=0.01)]


def test_retry_after_may_be_a_date(archive: TestArchive, waits: list[float]) -> None:
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    archive.faults.inject("getSeries", answer(429, retry_after=later))
    session = Session(archive.url, (GUEST, ""), options=replace(FAST, max_backoff=1e9))
    get(session)
    assert 3500 < waits[0] <= 3600


# --- what cannot pass is not


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (
            answer(400, b"A parameter, x, is required for this API call.", content_type="application/json"),
            NotAvailable,
            "unknown, hidden or not permitted",
        ),
        (answer(403, b"no"), LoginRefused, "check username and password, and what it may see"),
        (answer(500, NO_SUCH_ENDPOINT), BadAnswer, "no such endpoint: check base_url and api"),
        (answer(500, NO_SUCH_ENDPOINT.replace(b"404", b"405")), BadAnswer, "no such endpoint"),
        (answer(404, b"<html>nothing"), BadAnswer, "check base_url"),
        (answer(301), BadAnswer, "check base_url"),
    ],
)
def test_what_cannot_pass_is_asked_once(
    archive: TestArchive, session: Session, fault: Fault, error: type[ArchiveError], text: str
) -> None:
    archive.faults.inject("getSeries", fault, times=3)
    with pytest.raises(error, match=text) as caught:
        get(session)
    assert archive.faults.count("getSeries") == 1
    assert (caught.value.endpoint, caught.value.parameters) == (PATH, PARAMETERS)
    assert not caught.value.retryable


def test_the_words_of_a_400_are_kept(archive: TestArchive, session: Session) -> None:
    with pytest.raises(NotAvailable) as caught:
        session.call("GET", "/services/v2/getImageWithMD5Hash", {"SeriesInstanceUID": "9.9"}, whole, most=1 << 20)
    assert "has not been granted the access to image with given SeriesInstanceUID,9.9." in caught.value.body
    assert caught.value.status == 400
    assert str(caught.value).startswith("the archive refuses the call: ")


def test_a_500_for_want_of_a_token_is_a_refused_login(archive: TestArchive) -> None:
    session = Session(archive.url, None, options=FAST)
    with pytest.raises(LoginRefused, match="requires a token: use api='v2', or set username and password"):
        session.call("GET", "/services/v2/getCollectionValues", {}, whole, most=1 << 20)
    assert archive.faults.count("getCollectionValues") == 1


def test_a_500_that_says_null_to_a_token_may_pass(archive: TestArchive, session: Session, body: bytes) -> None:
    archive.faults.inject("getSeries", answer(500, NULL), times=2)
    assert get(session) == body


def test_only_the_beginning_of_an_answer_is_shown(archive: TestArchive, session: Session) -> None:
    archive.faults.inject("getSeries", answer(418, b"tea \n" * 10_000))
    with pytest.raises(BadAnswer) as caught:
        get(session)
    assert caught.value.body == ("tea " * 10_000)[:BODY_SHOWN]


def test_long_parameters_are_shortened_in_the_text(archive: TestArchive, session: Session) -> None:
    uids = ",".join(f"1.2.{n}" for n in range(1000))
    archive.faults.inject("getSeriesMetadata2", answer(418))
    with pytest.raises(BadAnswer) as caught:
        session.call("POST", "/services/getSeriesMetadata2", {"list": uids}, whole, most=1 << 20)
    assert len(str(caught.value)) < 300
    assert caught.value.parameters == {"list": uids}


# --- a body that is cut, silence, a dropped connection


def test_a_cut_answer_is_asked_for_again_and_read_afresh(archive: TestArchive, session: Session, body: bytes) -> None:
    archive.faults.inject("getSeries", cut(100), cut(1000))
    read: list[bytes] = []

    def piece_by_piece(answered: requests.Response) -> bytes:
        read.clear()
        for piece in answered.iter_content(64):
            read.append(piece)
        return b"".join(read)

    assert session.call("GET", PATH, PARAMETERS, piece_by_piece, most=1 << 20) == body
    assert archive.faults.count("getSeries") == 3


def test_an_answer_that_is_always_cut_is_never_taken_for_whole(archive: TestArchive, session: Session) -> None:
    archive.faults.inject("getSeries", cut(500), times=9)
    with pytest.raises(ArchiveUnreachable, match=r"no complete answer from .*: check base_url and your connection"):
        get(session)
    assert archive.faults.count("getSeries") == FAST.tries


def test_a_reader_may_ask_for_another_try(archive: TestArchive, session: Session) -> None:
    calls: list[int] = []

    def read(answered: requests.Response) -> int:
        calls.append(len(answered.content))
        if len(calls) < 3:
            raise BadAnswer("not yet", retryable=True)
        return len(calls)

    assert session.call("GET", PATH, PARAMETERS, read, most=1 << 20) == 3


def test_an_error_of_the_reader_itself_is_not_hidden(archive: TestArchive, session: Session) -> None:
    def read(answered: requests.Response) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        session.call("GET", PATH, PARAMETERS, read, most=1 << 20)
    assert archive.faults.count("getSeries") == 1


@pytest.mark.parametrize("first", [None, b'[{"Series'], ids=["before", "within"])
def test_silence_is_given_up(archive: TestArchive, first: bytes | None) -> None:
    archive.faults.inject("getSeries", silence(first), times=2)
    session = Session(archive.url, (GUEST, ""), options=QUIET)
    with pytest.raises(ArchiveUnreachable, match="timed out: it may be overloaded, try again later") as caught:
        get(session)
    assert archive.faults.count("getSeries") == 2
    assert (caught.value.endpoint, caught.value.parameters, caught.value.status) == (PATH, PARAMETERS, None)


def test_a_short_silence_is_waited_out(archive: TestArchive, body: bytes) -> None:
    archive.faults.inject("getSeries", silence())
    assert get(Session(archive.url, (GUEST, ""), options=QUIET)) == body


def test_a_dropped_connection_is_given_up_after_all_tries() -> None:
    dropped: list[bytes] = []
    with answering_with(lambda c: dropped.append(c.recv(4096))) as port:
        session = Session(f"http://127.0.0.1:{port}/nbia-api", None, options=FAST)
        with pytest.raises(ArchiveUnreachable, match=r"no complete answer from .*: check base_url") as caught:
            get(session)
    assert len(dropped) == FAST.tries
    assert caught.value.endpoint == PATH
    assert caught.value.parameters == PARAMETERS
    assert "0x" not in str(caught.value)


def test_what_does_not_speak_http_is_given_up() -> None:
    with answering_with(lambda c: c.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")) as port:
        session = Session(f"http://127.0.0.1:{port}/nbia-api", None, options=FAST)
        with pytest.raises(ArchiveUnreachable, match="check base_url"):
            get(session)


@pytest.mark.parametrize("account", [None, (GUEST, "")], ids=["list", "login"])
def test_a_refused_connection_is_named(account: tuple[str, str] | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    session = Session(f"http://127.0.0.1:{port}/nbia-api", account, options=FAST)
    with pytest.raises(ArchiveUnreachable, match=rf"127\.0\.0\.1:{port}/nbia-api \(ConnectionRefused.*base_url"):
        get(session)


def test_a_host_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    session = Session("http://archive.invalid/nbia-api", None, options=replace(FAST, tries=1))
    with pytest.raises(ArchiveUnreachable, match=r"http://archive\.invalid/nbia-api .*check base_url"):
        get(session)


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    session = Session("http://archive.invalid/nbia-api", None, options=replace(FAST, tries=1))
    with pytest.raises(ArchiveUnreachable, match=r"the proxy on the way to .*: check HTTPS_PROXY and NO_PROXY"):
        get(session)


def test_no_proxy_is_used_on_the_way_to_this_machine(
    archive: TestArchive, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert get(Session(archive.url, (GUEST, ""), options=FAST)) == body


# --- what is sent


def test_requests_tell_who_asks_and_take_anything(archive: TestArchive, session: Session) -> None:
    get(session)
    headers = archive.faults.calls("getSeries")[0].headers
    assert headers["user-agent"] == USER_AGENT
    assert headers["accept"] == "*/*"


@pytest.mark.parametrize("name", ["RIDER Lung CT", "a&b=c+d%20/é?#", "Thorax-Trial (limited)"])
def test_names_arrive_as_they_are(archive: TestArchive, session: Session, name: str) -> None:
    session.call("GET", PATH, {"Collection": name}, whole, most=1 << 20)
    assert archive.faults.calls("getSeries")[0].query == {"Collection": name}


def test_a_slash_at_the_end_of_the_base_url_does_no_harm(archive: TestArchive, body: bytes) -> None:
    assert get(Session(archive.url + "/", (GUEST, ""), options=FAST)) == body


def test_connections_are_used_again(archive: TestArchive, serve: Serve) -> None:
    ports: list[int] = []

    async def remember(request: FaultedRequest) -> None:
        ports.append(request.scope["client"][1])
        await request.respond(200, b"[]", {})

    session = Session(serve(always(custom(remember))), None, options=FAST)
    for _ in range(5):
        get(session)
    assert len(ports) == 5
    assert len(set(ports)) == 1
