"""Tokens that cannot be sent, and tokens that the server has forgotten: a new login or a sentence, never the token."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nbia_pipeline.archive import ArchiveError, BadAnswer
from nbia_pipeline.embedded.demo.catalog import MEMBER, MEMBER_PASSWORD
from nbia_pipeline.embedded.server.fault_injection import FaultedRequest
from nbia_pipeline.embedded.server.tokens import GUEST
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive
from nbia_pipeline_tests.helpers.chains import shown
from nbia_pipeline_tests.helpers.faults import Fault, answer, custom

LIST = "getCollectionValues"
SECRET = "SECRET-abc-123"


def granted(**fields: object) -> Fault:
    return answer(200, json.dumps({"access_token": SECRET, "expires_in": 7200, **fields}).encode())


# --- tokens that no header can hold


@pytest.mark.parametrize("sent", [f"{SECRET}\n", f" {SECRET}", f"\t{SECRET}\r\n", f"{SECRET}\u2028", SECRET])
def test_white_space_around_a_token_is_left_out(archive: TestArchive, sent: str) -> None:
    archive.faults.inject("token", granted(access_token=sent))
    archive.faults.inject(LIST, answer(200, b'[{"Collection":"A"}]'))
    with archive.client() as client:
        assert client.collection_values() == ["A"]
    assert [c.headers["authorization"] for c in archive.faults.calls(LIST)] == [f"Bearer {SECRET}"]


ODD = [
    f"{SECRET}\nX: 1",
    f"{SECRET} x",
    f"{SECRET}\x00",
    f"{SECRET}\x7fx",
    f"{SECRET}é",
    f"Ж{SECRET}",
    f"{SECRET}\ud800",
]


@pytest.mark.parametrize("sent", [*ODD, " \n", 12345678, [SECRET], {"x": SECRET}, True])
def test_a_token_that_cannot_be_sent_is_refused_in_a_sentence_without_it(
    archive: TestArchive, sent: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    archive.faults.inject("token", granted(access_token=sent), times=9)
    with (
        pytest.raises(BadAnswer, match=r"^the token endpoint sent an access_token that no header can hold: ") as caught,
        archive.client() as client,
    ):
        client.collection_values()
    for secret in (SECRET, "12345678"):
        assert secret not in shown(caught.value) + caplog.text
    assert archive.faults.count("token") == 1 and archive.faults.count(LIST) == 0
    assert caught.value.endpoint == "/oauth/token"


@pytest.mark.parametrize("refresh", [*ODD, 1, None])
def test_a_refresh_token_that_cannot_be_sent_is_not_used(archive: TestArchive, refresh: object) -> None:
    archive.faults.inject("token", granted(refresh_token=refresh, refresh_expires_in=9e9))
    with archive.client() as client:
        tokens = client._session.tokens
        assert tokens is not None and tokens.current() == SECRET
        assert len(tokens.secrets()) == 1
        tokens._clock = lambda: 1e12
        assert tokens.current() != SECRET
    assert archive.faults.count("token") == 2


@pytest.mark.parametrize("lifetime", [10**400, float("inf"), float("nan"), -1, 0, "7200", True, None, [], 1e308])
def test_any_lifetime_of_a_token_is_taken(archive: TestArchive, lifetime: object) -> None:
    archive.faults.inject("token", granted(expires_in=lifetime, refresh_expires_in=lifetime))
    with archive.client() as client:
        tokens = client._session.tokens
        assert tokens is not None and tokens.current() == SECRET


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff\xfe", b"9" * 5000, b'{"access_token": "' + SECRET.encode()])
def test_json_that_no_parser_takes_is_a_bad_answer_of_the_token_endpoint(archive: TestArchive, body: bytes) -> None:
    archive.faults.inject("token", answer(200, body))
    with pytest.raises(BadAnswer, match="did not answer with a JSON object") as caught, archive.client() as client:
        client.collection_values()
    assert SECRET not in shown(caught.value)


@pytest.mark.parametrize("spelled", ["p%40ss+w0rd-x%2F", "p%40ss%20w0rd-x%2F", "p@ss w0rd-x/"])
def test_a_password_is_hidden_however_an_answer_spells_it(archive: TestArchive, spelled: str) -> None:
    said = json.dumps({"error": "no", "error_description": f"form was password={spelled}&client_id=nbia"}).encode()
    archive.faults.inject("token", answer(401, said))
    with (
        pytest.raises(ArchiveError, match=r"password=\*\*\*") as caught,
        archive.client(username=MEMBER, password="p@ss w0rd-x/") as client,
    ):
        client.collection_values()
    assert spelled not in shown(caught.value) and "w0rd" not in shown(caught.value)


# --- a token that ran out, where v4 answers 500


@pytest.mark.parametrize("call", ["collection_description", "dicom_tags", "series"])
def test_v4_with_a_stale_token_logs_in_again_where_a_refusal_is_a_500(archive: TestArchive, call: str) -> None:
    endpoint = {
        "collection_description": "getCollectionDescriptions",
        "dicom_tags": "getDicomTags",
        "series": "getSeries",
    }[call]
    with archive.client(api="v4", username=MEMBER, password=MEMBER_PASSWORD) as client:
        uid = client.series("TCGA-DEMO")["SeriesInstanceUID"][0].as_py()
        argument = uid if call == "dicom_tags" else "TCGA-DEMO"
        whole = getattr(client, call)(argument)
        assert whole.num_rows > 0
        logins = archive.faults.count("token")
        with stale(archive, endpoint):
            assert getattr(client, call)(argument).equals(whole)
        assert archive.faults.count("token") == logins + 1


@contextmanager
def stale(archive: TestArchive, endpoint: str) -> Iterator[None]:
    """Let an endpoint refuse the present token as the server's v4 does: with a 500 whose message is null."""
    seen: list[str] = []

    async def act(request: FaultedRequest) -> None:
        token = request.exchange.headers.get("authorization", "")
        if not seen or token == seen[0]:
            seen.append(token)
            await request.respond(500, b"Server was not able to process your request\nnull", {})
        else:
            await request.pass_on()

    archive.faults.inject(endpoint, custom(act), times=5)
    yield
    assert len(seen) == FAST.tries


@pytest.mark.parametrize("username", [GUEST, MEMBER])
def test_v2_with_a_stale_token_logs_in_again_for_descriptions(archive: TestArchive, username: str) -> None:
    with archive.client(username=username, password=MEMBER_PASSWORD if username == MEMBER else "") as client:
        whole = client.collection_description("TCGA-DEMO")
        assert whole.num_rows == 1
        archive.tokens.expire_all()
        assert client.collection_description("TCGA-DEMO").equals(whole)


def test_v4_as_guest_takes_a_500_for_what_it_is(archive: TestArchive) -> None:
    archive.faults.inject("getCollectionDescriptions", answer(500, b"null"), times=9)
    with archive.client(api="v4") as client, pytest.raises(ArchiveError, match="status 500"):
        client.collection_description("TCGA-DEMO")
    assert archive.faults.count("token") == 0
