"""The texts of errors: one sentence with a remedy, the call that failed, and no secret."""

from __future__ import annotations

import html as markup
import json
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import quote, quote_plus

import pytest

from nbia_pipeline.archive import ArchiveError, BadAnswer
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive
from nbia_pipeline_tests.helpers.faults import (
    NO_SUCH_ENDPOINT,
    NULL,
    Fault,
    answer,
    closed_early,
    cut,
    echo_headers,
    html,
    silence,
)

QUIET = replace(FAST, read_timeout=0.2, tries=2)

FAILURES: list[Fault] = [
    answer(400, b"no"),
    answer(403, b"no"),
    answer(404),
    answer(500, NO_SUCH_ENDPOINT),
    answer(500, NULL),
    answer(503),
    cut(10),
    closed_early(10),
    html(),
    silence(),
    echo_headers(),
    echo_headers("x" * 150, 400),
]


@pytest.mark.parametrize("fault", FAILURES)
def test_an_error_is_one_sentence_with_a_remedy_and_without_secrets(archive: TestArchive, fault: Fault) -> None:
    archive.faults.inject("getSeries", fault, times=9)
    client = archive.client(username="demo_member", password="demo-member-password", options=QUIET)
    with pytest.raises(ArchiveError) as caught:
        client.series("TCGA-DEMO")
    text = str(caught.value)
    tokens = client._session.tokens
    assert tokens is not None
    secrets = tokens.secrets()
    assert len(secrets) == 3
    assert not [s for s in secrets if s[:8] in text + repr(caught.value) + str(vars(caught.value))]
    assert "\n" not in text
    assert not caught.value.what.endswith(".")
    assert any(
        remedy in text for remedy in ("check", "try again later", "not permitted", "set ", "may not be that of an NBIA")
    )
    assert "[/services/v2/getSeries Collection=TCGA-DEMO" in text
    client.close()


@pytest.mark.parametrize(
    ("fault", "arguments"),
    [
        (answer(403), ("username", "password")),
        (answer(404), ("base_url",)),
        (answer(500, NO_SUCH_ENDPOINT), ("base_url", "api")),
        (html(), ("base_url",)),
        (cut(10), ("base_url",)),
        (answer(500), ()),
        (answer(503), ()),
        (silence(), ()),
    ],
)
def test_an_error_names_the_arguments_to_check(archive: TestArchive, fault: Fault, arguments: tuple[str, ...]) -> None:
    archive.faults.inject("getSeries", fault, times=9)
    with archive.client(options=QUIET) as client, pytest.raises(ArchiveError) as caught:
        client.series("TCGA-DEMO")
    assert caught.value.arguments == arguments
    assert all(argument in caught.value.what for argument in arguments)


def test_a_secret_is_taken_out_wherever_it_stands_even_if_it_was_cut() -> None:
    error = BadAnswer("first secret-token, then secret-tok", body="secret-token" * 2).without(["", "secret-token"])
    assert (str(error), error.body, error.args) == ("first ***, then ***", "******", ("first ***, then ***",))


PASSWORD = "p%&+<\"w'ä ss/=1#"
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in a form": quote_plus,
    "in a URL": lambda text: quote(text, safe=""),
    "in a path": quote,
    "in a URL in lower case": lambda text: quote(text, safe="").lower(),
    "in HTML": markup.escape,
    "in HTML by numbers": lambda text: "".join(c if c.isalnum() else f"&#{ord(c)};" for c in text),
    "in HTML by hexadecimal numbers": lambda text: "".join(f"&#x{ord(c):X};" for c in text),
    "in JSON": json.dumps,
    "in JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "in Python": repr,
    "over two lines": lambda text: f"{text[:5]}\n  {text[5:]}",
    "cut short": lambda text: text[:-3],
}


@pytest.mark.parametrize("secret", [PASSWORD, "eyJhbGciOiJSUzI1NiJ9.eyJzdWIi.c2lnLW5hdHVyZQ", "correct horse"])
@pytest.mark.parametrize("spelled", SPELLINGS.values(), ids=SPELLINGS)
def test_a_secret_is_taken_out_however_it_is_spelled(spelled: Callable[[str], str], secret: str) -> None:
    echo = spelled(secret)
    error = BadAnswer(f"it begins with {f'<p>{echo} end'!r}", body=f"{echo} end")
    error.__cause__ = ValueError(echo)
    error.without([secret])
    assert error.what.replace('"', "'").replace("\\", "") in (
        f"it begins with '<p>{q}***{q} end'" for q in ("", "'", "''")
    )
    assert error.body.strip("\"'\\ end") == "***" and error.__cause__ is None


def test_what_only_resembles_a_secret_stays() -> None:
    assert BadAnswer("a tokenless answer of 1.2.840", body="sec-ret").without(["token-1234", "1.2.841"]).what == (
        "a tokenless answer of 1.2.840"
    )
