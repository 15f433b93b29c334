from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from nbia_pipeline.archive import BadAnswer, LoginRefused
from nbia_pipeline.archive.tokens import Tokens
from nbia_pipeline.archive.transport import Session
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD
from nbia_pipeline.embedded.server.tokens import GUEST
from nbia_pipeline_tests.helpers.archives import FAST, Serve, TestArchive
from nbia_pipeline_tests.helpers.faults import Fault, Faults, always, answer, echo_headers, html, silence

GRANT = "token"
COLLECTION = "TCGA-DEMO"


def tokens_of(archive: TestArchive, username: str = GUEST, password: str = "") -> Tokens:
    """Return tokens that live by the server's clock."""

    def post_form(path: str, form: dict[str, str]) -> requests.Response:
        return requests.post(archive.url + path, data=form, timeout=5)

    return Tokens(post_form, username, password, clock=archive.clock)


def list_series(session: Session, collection: str = COLLECTION) -> bytes:
    return session.call("GET", "/services/v2/getSeries", {"Collection": collection}, lambda a: a.content, most=1 << 20)


@pytest.fixture
def session(archive: TestArchive) -> Iterator[Session]:
    made = Session(archive.url, (GUEST, ""), options=FAST)
    yield made
    made.close()


# --- the life of a token


def test_nobody_logs_in_before_the_first_call(archive: TestArchive) -> None:
    with archive.client():
        pass
    assert archive.faults.seen == []


def test_a_hundred_threads_cause_one_login(archive: TestArchive) -> None:
    tokens = tokens_of(archive)
    together = threading.Barrier(100)

    def take() -> str:
        together.wait()
        return tokens.current()

    with ThreadPoolExecutor(100) as pool:
        got = {f.result() for f in [pool.submit(take) for _ in range(100)]}
    assert len(got) == 1
    assert archive.faults.count(GRANT) == 1


@pytest.mark.parametrize(("lifetime", "margin"), [(7200, 60), (300, 30), (60, 6)])
def test_a_token_is_renewed_ahead_of_its_end(archive: TestArchive, lifetime: int, margin: int) -> None:
    archive.tokens.lifetime = archive.tokens.refresh_lifetime = lifetime
    tokens = tokens_of(archive)
    first = tokens.current()
    archive.clock.now += lifetime - margin - 1
    assert tokens.current() == first
    assert archive.faults.count(GRANT) == 1
    archive.clock.now += 1
    second = tokens.current()
    assert second != first
    assert archive.faults.count(GRANT) == 2
    assert archive.tokens.user_of(second) == GUEST


def test_a_token_is_renewed_by_its_refresh_token(archive: TestArchive) -> None:
    forms: list[dict[str, str]] = []

    def post_form(path: str, form: dict[str, str]) -> requests.Response:
        forms.append(form)
        return requests.post(archive.url + path, data=form, timeout=5)

    archive.tokens.refresh_lifetime = 86400
    tokens = Tokens(post_form, MEMBER, MEMBER_PASSWORD, clock=archive.clock)
    tokens.current()
    archive.clock.now += 7200
    assert archive.tokens.user_of(tokens.current()) == MEMBER
    assert [f["grant_type"] for f in forms] == ["password", "refresh_token"]
    assert "password" not in forms[1]
    assert forms[1]["client_id"] == "nbia"


def test_a_refresh_token_that_has_run_out_is_not_tried(archive: TestArchive) -> None:
    tokens = tokens_of(archive)
    tokens.current()
    archive.clock.now += 10_000
    assert archive.tokens.user_of(tokens.current()) == GUEST
    assert archive.faults.count(GRANT) == 2


def test_a_refused_refresh_falls_back_to_the_password(archive: TestArchive) -> None:
    tokens = tokens_of(archive, MEMBER, MEMBER_PASSWORD)
    tokens.current()
    archive.tokens.expire_all()
    archive.clock.now += 7150
    assert archive.tokens.user_of(tokens.current()) == MEMBER
    assert archive.faults.count(GRANT) == 3


@pytest.mark.parametrize("fault", [answer(500, b"null"), answer(200, b"{}"), html(), answer(401)])
def test_a_refresh_that_fails_in_any_way_falls_back_to_the_password(archive: TestArchive, fault: Fault) -> None:
    tokens = tokens_of(archive)
    tokens.current()
    archive.clock.now += 7150
    archive.faults.inject(GRANT, fault)
    assert archive.tokens.user_of(tokens.current()) == GUEST
    assert archive.faults.count(GRANT) == 3


def test_a_token_without_a_stated_life_is_used_for_less_than_a_minute(archive: TestArchive) -> None:
    archive.faults.inject(GRANT, answer(200, b'{"access_token":"a"}'))
    tokens = tokens_of(archive)
    assert tokens.current() == "a"
    archive.clock.now += 53
    assert tokens.current() == "a"
    archive.clock.now += 2
    assert tokens.current() != "a"


def test_a_rejected_token_is_replaced_but_a_newer_one_is_kept(archive: TestArchive) -> None:
    tokens = tokens_of(archive)
    first = tokens.current()
    tokens.reject(first)
    second = tokens.current()
    tokens.reject(first)
    assert tokens.current() == second != first
    assert archive.faults.count(GRANT) == 2


# --- a token that the server forgot in mid-run


def test_a_forgotten_token_is_found_out_by_a_401(archive: TestArchive) -> None:
    with archive.client() as client:
        names = client.collection_values()
        archive.tokens.expire_all()
        assert client.collection_values() == names
    assert archive.faults.count(GRANT) == 2


@pytest.mark.parametrize("username", [GUEST, MEMBER])
def test_a_forgotten_token_does_not_empty_a_list(archive: TestArchive, username: str) -> None:
    password = MEMBER_PASSWORD if username == MEMBER else ""
    with archive.client(username=username, password=password) as client:
        whole = client.series(COLLECTION)
        assert whole.num_rows == 9
        archive.tokens.expire_all()
        assert client.series(COLLECTION).equals(whole)
        archive.tokens.expire_all()
        assert client.sop_instance_uids(whole["SeriesInstanceUID"][0].as_py()) != []
    assert archive.faults.count(GRANT) == 3


def test_a_forgotten_token_does_not_lose_single_metadata(archive: TestArchive, demo: Catalog) -> None:
    uid = demo.series["SeriesInstanceUID"][0].as_py()
    with archive.client() as client:
        client.collection_values()
        archive.tokens.expire_all()
        archive.faults.inject("getSeriesMetadata2", answer(500, b"HTTP 404 Not Found"))
        assert client.series_metadata([uid])["SeriesInstanceUID"].to_pylist() == [uid]


@pytest.mark.parametrize("call", ["series", "patients", "studies"])
def test_v4_with_an_account_finds_out_a_forgotten_token(archive: TestArchive, call: str) -> None:
    with archive.client(api="v4", username=MEMBER, password=MEMBER_PASSWORD) as client:
        whole = getattr(client, call)("Thorax-Trial (limited)")
        assert whole.num_rows > 0
        archive.tokens.expire_all()
        assert getattr(client, call)("Thorax-Trial (limited)").equals(whole)


def test_a_fresh_token_that_is_refused_is_a_refused_login(archive: TestArchive, session: Session) -> None:
    archive.faults.inject("getSeries", answer(401), times=2)
    with pytest.raises(LoginRefused, match="check username and password"):
        list_series(session)
    assert (archive.faults.count("getSeries"), archive.faults.count(GRANT)) == (2, 2)


# --- what is refused


def test_a_hundred_threads_with_a_wrong_password_try_it_once(archive: TestArchive) -> None:
    tokens = tokens_of(archive, MEMBER, "wrong")

    def take(_: int) -> str:
        with pytest.raises(LoginRefused) as caught:
            tokens.current()
        return str(caught.value)

    with ThreadPoolExecutor(100) as pool:
        assert len(set(pool.map(take, range(100)))) == 1
    assert archive.faults.count(GRANT) == 1


def test_a_wrong_password_is_refused_by_name_and_not_shown(archive: TestArchive) -> None:
    with pytest.raises(LoginRefused) as caught, archive.client(username=MEMBER, password="hunter-2") as client:
        client.collection_values()
    assert "'demo_member'" in str(caught.value)
    assert "Invalid user credentials" in str(caught.value)
    assert "check username and password" in str(caught.value)
    assert "hunter-2" not in repr(caught.value) + str(caught.value) + str(vars(caught.value))
    assert archive.faults.count(GRANT) == 1


def test_a_token_endpoint_that_echoes_the_password_does_not_get_it_into_the_error(archive: TestArchive) -> None:
    archive.faults.inject(GRANT, answer(400, b'{"error":"bad","error_description":"no user with hunter-2"}'))
    with pytest.raises(LoginRefused) as caught, archive.client(username=MEMBER, password="hunter-2") as client:
        client.collection_values()
    assert "no user with ***" in str(caught.value)
    assert "hunter-2" not in repr(caught.value)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"access_token":""}', b'{"access_token":1}', b"<html>"])
def test_a_token_endpoint_that_sends_no_token_is_a_bad_answer(archive: TestArchive, body: bytes) -> None:
    archive.faults.inject(GRANT, answer(200, body))
    with pytest.raises(BadAnswer, match="token endpoint") as caught, archive.client() as client:
        client.collection_values()
    assert caught.value.endpoint == "/oauth/token"


def test_tokens_do_not_print_what_they_hold(archive: TestArchive) -> None:
    tokens = tokens_of(archive, MEMBER, MEMBER_PASSWORD)
    token = tokens.current()
    shown = repr(tokens) + repr(vars(tokens)["_grant"])
    assert token not in shown
    assert all(secret not in shown for secret in tokens.secrets())
    assert len(tokens.secrets()) == 3


@pytest.mark.parametrize("status", [200, 400, 403, 418])
@pytest.mark.parametrize("prefix", ["<html>", "", "x" * 120, "<" + "x" * 170], ids=["html", "bare", "late", "cut"])
def test_an_answer_that_echoes_the_token_does_not_get_it_into_an_error(
    archive: TestArchive, session: Session, status: int, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "nbia_pipeline")
    archive.faults.inject("getCollectionValues", echo_headers(prefix, status))
    with pytest.raises(Exception, match=r"\*\*\*") as caught, archive.client() as client:
        client.collection_values()
    token = archive.faults.calls("getCollectionValues")[0].headers["authorization"].removeprefix("Bearer ")
    for text in (str(caught.value), repr(caught.value), str(vars(caught.value)), caplog.text):
        assert token[:20] not in text


# --- where tokens and passwords go


def elsewhere(serve: Serve) -> tuple[Faults, str]:
    """Serve another archive under another name of this machine."""
    other = always(answer(200, b"[]"))
    return other, serve(other).replace("127.0.0.1", "localhost")


def test_the_token_does_not_go_to_another_host(archive: TestArchive, session: Session, serve: Serve) -> None:
    other, url = elsewhere(serve)
    archive.faults.inject("getSeries", answer(302, location=f"{url}/services/v2/getSeries"))
    assert list_series(session) == b"[]"
    assert archive.faults.calls("getSeries")[0].headers["authorization"].startswith("Bearer ")
    assert other.count("getSeries") == 1
    assert "authorization" not in other.seen[0].headers


def test_the_token_follows_a_redirect_within_the_host(archive: TestArchive, session: Session) -> None:
    archive.faults.inject("up", answer(302, location=f"{archive.url}/services/v2/getCollectionValues"))
    found = session.call("GET", "/services/up", {}, lambda a: a.content, most=1 << 20)
    assert b"TCGA-DEMO" in found


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_password_does_not_go_to_another_host(archive: TestArchive, serve: Serve, status: int) -> None:
    other, url = elsewhere(serve)
    archive.faults.inject(GRANT, answer(status, location=f"{url}/oauth/token"))
    with (
        pytest.raises(BadAnswer, match=r"redirects the login to 'http://localhost.* set base_url"),
        archive.client(username=MEMBER, password=MEMBER_PASSWORD) as client,
    ):
        client.collection_values()
    assert other.seen == []


@pytest.mark.parametrize("redirected", [False, True])
def test_netrc_is_not_used(
    archive: TestArchive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redirected: bool
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login intruder password intruder\ndefault login intruder password intruder\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with archive.client(api="v4") as guest, archive.client() as client:
        for one in (guest, client):
            one._session._http.trust_env = True  # as for hosts elsewhere
            one._session._http.proxies = {"no_proxy": "127.0.0.1"}
        if redirected:
            there = f"{archive.url}/services/v2/getSeries?Collection={COLLECTION}"
            archive.faults.inject("getSeries", answer(302, location=there))
        assert client.series(COLLECTION).num_rows == 9
        assert guest.series(COLLECTION).num_rows == 9
    sent = {r.headers.get("authorization", "none").split()[0] for r in archive.faults.seen}
    assert sent == {"Bearer", "none"}


def test_v4_as_guest_sends_no_token_and_asks_for_none(archive: TestArchive) -> None:
    with archive.client(api="v4") as client:
        client.collection_values()
        client.series(COLLECTION)
        client.modality_values()
        client.patients("No Such")
    assert len(archive.faults.seen) > 4
    assert all("authorization" not in r.headers for r in archive.faults.seen)
    assert archive.faults.count(GRANT) == 0


# --- logging out


def test_closing_logs_out_once(archive: TestArchive) -> None:
    client = archive.client()
    client.collection_values()
    token = archive.faults.calls("getCollectionValues")[0].headers["authorization"].removeprefix("Bearer ")
    assert archive.tokens.user_of(token) == GUEST
    client.close()
    client.close()
    assert [(r.method, r.headers["authorization"]) for r in archive.faults.calls("logout")] == [
        ("POST", f"Bearer {token}")
    ]
    assert archive.tokens.user_of(token) is None


@pytest.mark.parametrize("fault", [answer(500, b"null"), answer(404), html(), silence(), answer(302, location="/x")])
def test_a_logout_that_fails_is_harmless(archive: TestArchive, fault: Fault) -> None:
    archive.faults.inject("logout", fault)
    with archive.client(options=replace(FAST, connect_timeout=0.2)) as client:
        assert COLLECTION in client.collection_values()
    assert archive.faults.count("logout") == 1


def test_a_failure_inside_is_not_hidden_by_the_logout(archive: TestArchive) -> None:
    archive.faults.inject("logout", answer(500))
    with pytest.raises(ZeroDivisionError), archive.client() as client:
        client.collection_values()
        raise ZeroDivisionError
