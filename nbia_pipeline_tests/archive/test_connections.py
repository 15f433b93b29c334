"""Whatever the layers below the client raise is one of our errors, without a secret in it or in what caused it."""

from __future__ import annotations

import http.client
import json
import logging
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3

from nbia_pipeline.archive import ArchiveError, ArchiveUnreachable, BadAnswer, NbiaClient
from nbia_pipeline.archive.transport import Session, chunks_of
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD
from nbia_pipeline.embedded.server.fault_injection import FaultedRequest
from nbia_pipeline.embedded.server.tokens import GUEST
from nbia_pipeline_tests.helpers.archives import FAST, Serve, TestArchive
from nbia_pipeline_tests.helpers.chains import chain, shown
from nbia_pipeline_tests.helpers.faults import always, answer, custom, html
from nbia_pipeline_tests.helpers.sockets import answering_bytes

LIST = "getCollectionValues"
SECRET = "SECRET-abc-123"
TOKEN = json.dumps({"access_token": SECRET, "expires_in": 7200}).encode()


# --- what a server sends below HTTP

HEAD = b"HTTP/1.1 200 OK\r\n"
BROKEN = {
    "nothing": b"",
    "no status line": b"\x00\x01\x02\r\n\r\n",
    "status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "status line without an end": b"HTTP/1.1 200 " + b"x" * 70_000,
    "too many headers": HEAD + b"".join(b"X-%d: 1\r\n" % n for n in range(200)) + b"\r\n[]",
    "header that is too long": HEAD + b"X: " + b"y" * 70_000 + b"\r\n\r\n[]",
    "length that is no number": HEAD + b"Content-Length: abc\r\n\r\n[",
    "two lengths that differ": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n[]",
    "two lengths": HEAD + b"Content-Length: 1, 2\r\n\r\n[",
    "length beyond the body": HEAD + b"Content-Length: 999\r\n\r\n[",
    "chunk size that is no number": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n0\r\n\r\n",
    "chunk size below zero": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n[]\r\n0\r\n\r\n",
    "chunk size that is too long": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 70_000,
    "chunk that is cut": HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\n[",
    "chunks without an end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n",
    "not gzip": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n[]",
    "not deflate": HEAD + b"Content-Encoding: deflate\r\nContent-Length: 2\r\n\r\n[]",
    "gzip, twice": HEAD + b"Content-Encoding: gzip, gzip\r\nContent-Length: 2\r\n\r\n[]",
    "charset with a null": HEAD + b"Content-Type: text/html; charset=a\x00b\r\nContent-Length: 1\r\n\r\n<",
    "redirect of a login to nowhere": b"HTTP/1.1 302 X\r\nContent-Length: 0\r\n\r\n",
    "status that redirects nothing": b"HTTP/1.1 304 X\r\n\r\n",
    "redirect to bytes": b"HTTP/1.1 302 X\r\nLocation: \xff\xfe://\x80\r\nContent-Length: 0\r\n\r\n",
    "redirect with a broken body": b"HTTP/1.1 302 X\r\nLocation: ftp://x/\r\nTransfer-Encoding: chunked\r\n\r\nzz",
}


@pytest.mark.parametrize("at", ["list", "login"])
@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
def test_an_answer_that_is_broken_below_http_is_an_error_of_the_archive(sent: bytes, at: str) -> None:
    token = HEAD + b"Content-Length: %d\r\n\r\n" % len(TOKEN) + TOKEN

    def answered(path: str) -> bytes:
        return sent if (at == "login") == path.endswith("token") else token

    with (
        answering_bytes(answered) as port,
        NbiaClient(f"http://127.0.0.1:{port}/nbia-api", options=FAST) as client,
        pytest.raises(ArchiveError) as caught,
    ):
        client.collection_values()
    assert caught.value.endpoint.endswith("token" if at == "login" else LIST)
    assert re.search(r"check|try again|base_url", caught.value.what)
    assert not re.search("\n|cannot be sent|redirects the login to ''", caught.value.what)
    assert SECRET not in shown(caught.value)


@pytest.mark.parametrize("at", ["list", "login"])
def test_a_proxy_that_wants_an_account_is_named(at: str) -> None:
    token = HEAD + b"Content-Length: %d\r\n\r\n" % len(TOKEN) + TOKEN
    refusal = b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n"
    with (
        answering_bytes(lambda path: refusal if (at == "login") == path.endswith("token") else token) as port,
        NbiaClient(f"http://127.0.0.1:{port}/nbia-api", options=FAST) as client,
        pytest.raises(ArchiveUnreachable, match=r"^the proxy on the way to .* check HTTPS_PROXY \[.*status 407"),
    ):
        client.collection_values()


@pytest.mark.parametrize("end", ["?x=1", "#x", " ", "\n", "\\x", "/a b"])
def test_a_base_url_to_which_no_path_can_be_appended_is_refused(end: str) -> None:
    with pytest.raises(ValueError, match="use an address such as"):
        NbiaClient(f"http://127.0.0.1:9/nbia-api{end}")


# --- what the packages raise


def raising(error: Exception) -> Any:
    def call(*_: object, **__: object) -> object:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("Invalid header value b'Bearer {}'"), "the request to .* cannot be sent"),
        (requests.exceptions.InvalidHeader("Invalid header: 'Bearer {}'"), "the request to .* cannot be sent"),
        (UnicodeEncodeError("latin-1", "Bearer {}", 0, 1, "ordinal not in range"), "the request to .* cannot be sent"),
        (UnicodeError("label empty or too long: {}"), "the request to .* cannot be sent"),
        (urllib3.exceptions.LocationParseError("http://x/{}"), "the request to .* cannot be sent"),
        (requests.exceptions.InvalidSchema("No connection adapters for {}"), "the request to .* cannot be sent"),
        (AttributeError("'NoneType' object has no attribute '{}'"), "the request to .* cannot be sent"),
        (RecursionError("{}"), "the request to .* cannot be sent"),
        (http.client.InvalidURL("URL can't contain control characters. {}"), "no complete answer from .*"),
        (http.client.HTTPException("got more than 100 headers {}"), "no complete answer from .*"),
        (ConnectionAbortedError("{}"), "no complete answer from .*"),
        (OSError("Could not find a suitable TLS CA certificate bundle: {}"), "no secure connection to .*ca_bundle, RE"),
        (requests.exceptions.InvalidProxyURL("http://me:{}@proxy"), "the proxy on the way .*: check HTTPS_PROXY"),
        (TimeoutError("timed out {}"), "timed out: it may be overloaded"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else "",
)
def test_whatever_sending_raises_is_a_sentence_without_the_token(
    archive: TestArchive, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    archive.faults.inject("token", answer(200, TOKEN))
    session = Session(archive.url, (GUEST, ""), options=FAST)
    assert session.tokens is not None and session.tokens.current() == SECRET
    quoting = type(error)(*(a.replace("{}", SECRET) if isinstance(a, str) else a for a in error.args))
    wrapper = requests.ConnectionError(quoting)
    wrapper.__context__ = quoting
    for raised in (quoting, wrapper):
        monkeypatch.setattr(session._http, "request", raising(raised))
        with pytest.raises(
            ArchiveUnreachable, match=sentence if raised is quoting else r"check base_url|timed out"
        ) as caught:
            session.call("GET", "/services/v2/getSeries", {}, lambda a: a.content, most=1 << 20)
        assert SECRET not in shown(caught.value)
        assert caught.value.endpoint == "/services/v2/getSeries"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("{}"),
        AttributeError("{}"),
        zlib.error("{}"),
        http.client.IncompleteRead(b"{}"),
        OSError(5, "Input/output error"),
        urllib3.exceptions.ReadTimeoutError(None, "", "Read timed out."),  # type: ignore[arg-type]
        urllib3.exceptions.SSLError("bad record"),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("how", ["content", "stream"])
def test_whatever_reading_raises_is_tried_again_and_then_a_sentence(
    archive: TestArchive, monkeypatch: pytest.MonkeyPatch, error: Exception, how: str
) -> None:
    session = Session(archive.url, None, options=FAST)

    def read(answered: requests.Response) -> bytes:
        raw: Any = answered.raw
        monkeypatch.setattr(raw._raw, "read", raising(error))
        return bytes(answered.content) if how == "content" else b"".join(chunks_of(answered))

    with pytest.raises(ArchiveUnreachable, match=r"check base_url|timed out") as caught:
        session.call("GET", "/services/v4/getCollectionValues", {}, read, most=1 << 20)
    assert archive.faults.count(LIST) == FAST.tries
    assert error in chain(caught.value)


def test_a_plain_error_keeps_its_cause(archive: TestArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(archive.url, None, options=FAST)
    cause = requests.ConnectionError("reset by peer")
    monkeypatch.setattr(session._http, "request", raising(cause))
    with pytest.raises(ArchiveUnreachable) as caught:
        session.call("GET", "/services/v4/getCollectionValues", {}, lambda a: a.content, most=1 << 20)
    assert caught.value.__cause__ is cause


def test_certificates_that_vanish_are_a_sentence(tmp_path: Path) -> None:
    bundle = tmp_path / "gone.pem"
    with (
        NbiaClient("https://127.0.0.1:9/nbia-api", api="v4", ca_bundle=str(bundle), options=FAST) as client,
        pytest.raises(ArchiveUnreachable, match=r"no secure connection .*gone\.pem\): check ca_bundle") as caught,
    ):
        client.collection_values()
    assert not caught.value.retryable


@pytest.mark.parametrize("error", [ValueError(SECRET), OSError(SECRET), RuntimeError(SECRET)])
def test_a_logout_that_cannot_be_sent_is_harmless_and_quiet(
    archive: TestArchive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    caplog.set_level(logging.DEBUG)
    client = archive.client()
    client.collection_values()
    monkeypatch.setattr(client._session._http, "request", raising(error))
    client.close()
    assert SECRET not in caplog.text and "logout failed" in caplog.text


# --- redirects

NO_ADDRESS = [
    "http://[::1/x",
    "ftp://127.0.0.1/x",
    "file:///etc/passwd",
    "http://127.0.0.1:99999/x",
    "http://127.0.0.1:x/",
    "javascript:alert(1)",
    "mailto:x@y",
]


@pytest.mark.parametrize("location", NO_ADDRESS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_an_address_that_is_none_is_a_sentence(archive: TestArchive, location: str, status: int) -> None:
    archive.faults.inject(LIST, answer(status, location=location), times=9)
    with (
        pytest.raises(BadAnswer, match=r"^the archive redirects .*, which is not an address: check base_url") as caught,
        archive.client() as client,
    ):
        client.collection_values()
    assert repr(location) in str(caught.value)
    assert (caught.value.status, archive.faults.count(LIST)) == (status, 1)


def test_redirects_in_a_circle_are_given_up(archive: TestArchive) -> None:
    archive.faults.inject(LIST, answer(302, location=f"{archive.url}/services/v2/{LIST}"), times=99)
    with pytest.raises(BadAnswer, match="redirects in a circle: check base_url"), archive.client() as client:
        client.collection_values()


def test_a_redirect_to_a_host_that_does_not_answer_names_it(archive: TestArchive) -> None:
    archive.faults.inject(LIST, answer(302, location="http://localhost:9/x"), times=9)
    with (
        pytest.raises(
            ArchiveUnreachable,
            match=rf"no complete answer from http://localhost:9, where {archive.url} redirects, .*: check base_url",
        ),
        archive.client() as client,
    ):
        client.collection_values()


POST = "getSeriesMetadata2"
UID = "1.3.6.1"


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_form_is_not_lost_by_a_redirect(archive: TestArchive, serve: Serve, status: int) -> None:
    other = always(answer(200, b"[]"))
    url = serve(other)
    archive.faults.inject(POST, answer(status, location=f"{url}/services/{POST}"), times=9)
    with archive.client() as client, pytest.raises(BadAnswer, match=r"redirects a form to .*: if you trust") as caught:
        client._rows(client._dialect.endpoint("series_metadata_bulk"), {"series_uids": [UID]})
    assert (caught.value.status, archive.faults.count(POST), other.seen) == (status, 1, [])


@pytest.mark.parametrize("status", [307, 308])
def test_a_form_goes_with_a_redirect_that_keeps_it(archive: TestArchive, demo: Any, status: int) -> None:
    uid = demo.series["SeriesInstanceUID"][0].as_py()
    archive.faults.inject(POST, answer(status, location=f"{archive.url}/services/{POST}"))
    with archive.client() as client:
        assert client.series_metadata([uid])["SeriesInstanceUID"].to_pylist() == [uid]
    assert [c.method for c in archive.faults.calls(POST)] == ["POST", "POST"]


def test_the_token_does_not_go_with_a_form_to_another_host(archive: TestArchive, serve: Serve) -> None:
    other = always(answer(200, b"x"))
    url = serve(other).replace("127.0.0.1", "localhost")
    archive.faults.inject(POST, answer(307, location=f"{url}/services/{POST}"))
    with archive.client() as client, pytest.raises(BadAnswer):
        client._rows(client._dialect.endpoint("series_metadata_bulk"), {"series_uids": [UID]})
    assert other.count(POST) == 1
    assert "authorization" not in other.seen[0].headers


@pytest.mark.parametrize("location", [*NO_ADDRESS, "/login", "https://me:hunter-22@login.example.org/?token=hunter-22"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_of_the_login_is_never_followed(archive: TestArchive, location: str, status: int) -> None:
    archive.faults.inject("token", answer(status, location=location), times=9)
    with (
        pytest.raises(BadAnswer, match=r"the archive redirects the login to '.*set base_url") as caught,
        archive.client(username=MEMBER, password=MEMBER_PASSWORD) as client,
    ):
        client.collection_values()
    assert len(archive.faults.seen) == 1
    assert "hunter-22" not in shown(caught.value) and MEMBER_PASSWORD not in shown(caught.value)


def test_a_login_that_is_redirected_by_a_page_is_never_followed(archive: TestArchive) -> None:
    page = f'<html><meta http-equiv="refresh" content="0; url={archive.url}/oauth/elsewhere">'
    archive.faults.inject("token", html(page))
    with pytest.raises(BadAnswer, match="token endpoint answered with HTML"), archive.client() as client:
        client.collection_values()
    assert len(archive.faults.seen) == 1


def test_a_redirect_that_shows_the_token_does_not_get_it_into_the_error(archive: TestArchive) -> None:
    async def act(request: FaultedRequest) -> None:
        token = request.exchange.headers["authorization"].removeprefix("Bearer ")
        await request.respond(302, b"", {"location": f"ftp://x/?a={token}&token={token}"})

    archive.faults.inject(LIST, custom(act))
    with pytest.raises(BadAnswer, match=r"a=\*\*\*&token=\*\*\*") as caught, archive.client() as client:
        client.collection_values()
    token = archive.faults.calls(LIST)[0].headers["authorization"].removeprefix("Bearer ")
    assert token not in shown(caught.value)


# --- a base URL that is none


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://x.org/nbia-api", "https://[::1/nbia-api", "https://x.org:99999/", "https://"]
)
def test_a_base_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"^base_url is .*: use an address such as https://"):
        NbiaClient(url)


@pytest.mark.parametrize(
    "url",
    ["https://me:hunter-22@x.org/nbia-api", "http://hunter-22@x.org/", "me:hunter-22@x", "https://a:hunter-22@[x"],
)
def test_an_account_in_the_base_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"^base_url contains an account: pass username and password") as caught:
        NbiaClient(url)
    assert "hunter-22" not in shown(caught.value)
