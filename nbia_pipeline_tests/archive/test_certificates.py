"""Certificates, and secure connections that fail."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from nbia_pipeline.archive import ArchiveUnreachable
from nbia_pipeline.archive.transport import Session
from nbia_pipeline.embedded.server.tokens import GUEST
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive
from nbia_pipeline_tests.helpers.sockets import answering_with
from nbia_pipeline_tests.helpers.tls import serving_tls


def get(session: Session) -> bytes:
    return session.call("GET", "/services/v2/getSeries", {}, lambda answered: answered.content, most=1 << 20)


def test_a_certificate_that_does_not_verify_is_refused_at_once(certificate: tuple[Path, Path]) -> None:
    with serving_tls(certificate, "127.0.0.1") as url:
        session = Session(url, (GUEST, "hunter-2"), options=replace(FAST, tries=1000))
        with pytest.raises(ArchiveUnreachable) as caught:
            get(session)
    assert f"the certificate of {url} does not verify (SSLCertVerificationError" in str(caught.value)
    assert "set ca_bundle to its certificates" in str(caught.value)
    assert not caught.value.retryable


def test_a_ca_bundle_makes_a_certificate_verify(certificate: tuple[Path, Path]) -> None:
    with serving_tls(certificate, "127.0.0.1") as url:
        assert get(Session(url, None, ca_bundle=str(certificate[0]), options=FAST)) == b"[]"


def test_a_ca_bundle_is_not_overruled_by_the_environment(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.utils.DEFAULT_CA_BUNDLE_PATH)
    monkeypatch.setenv("no_proxy", "*")
    with serving_tls(certificate, "127.0.0.2") as url:
        assert get(Session(url, None, ca_bundle=str(certificate[0]), options=FAST)) == b"[]"


def test_verification_cannot_be_switched_off_by_an_empty_bundle(certificate: tuple[Path, Path]) -> None:
    with serving_tls(certificate, "127.0.0.1") as url, pytest.raises(ArchiveUnreachable, match="does not verify"):
        get(Session(url, None, ca_bundle="", options=FAST))


def test_a_bundle_without_certificates_is_named(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    with (
        serving_tls(certificate, "127.0.0.1") as url,
        pytest.raises(ArchiveUnreachable, match=r"check .*ca_bundle"),
    ):
        get(Session(url, None, ca_bundle=str(empty), options=FAST))


def test_a_secure_connection_that_drops_is_tried_again() -> None:
    hellos: list[bytes] = []
    with answering_with(lambda c: hellos.append(c.recv(4096))) as port:
        session = Session(f"https://127.0.0.1:{port}/nbia-api", None, options=FAST)
        with pytest.raises(ArchiveUnreachable, match="check base_url") as caught:
            get(session)
    assert len(hellos) == FAST.tries
    assert "does not verify" not in str(caught.value)


def test_plain_http_where_tls_is_due_is_named(archive: TestArchive) -> None:
    session = Session(archive.url.replace("http:", "https:"), None, options=FAST)
    with pytest.raises(ArchiveUnreachable, match=r"no secure connection to https://.*: check base_url"):
        get(session)
    assert issubclass(ssl.SSLCertVerificationError, ssl.SSLError)  # why the order of the questions matters
