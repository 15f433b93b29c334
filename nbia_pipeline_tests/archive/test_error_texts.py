"""The texts of errors: one sentence with a remedy, the call that failed, and no secret."""

from __future__ import annotations

from dataclasses import replace

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
