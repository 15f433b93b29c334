"""The life of a token: requested when first needed, renewed before it expires, given back at the end."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests

from nbia_pipeline.address import without_secrets
from nbia_pipeline.archive.errors import ArchiveError, ArchiveUnreachable, BadAnswer, LoginRefused
from nbia_pipeline.text import logger

log = logger(__name__)

# The refresh grant is forwarded to Keycloak with the client id as given, so it must be the real one.
CLIENT_ID = "nbia"
TOKEN_PATH = "/oauth/token"  # noqa: S105 - a path

_LONGEST_LIFE = 366 * 86400.0
_SENDABLE = re.compile(r"[!-~]+")

PostForm = Callable[[str, dict[str, str]], requests.Response]


def authorization(token: str | None) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    """Return what puts a token into the header, if there is one; without it requests would take a netrc entry."""

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize


@dataclass(frozen=True)
class _Grant:
    access: str = field(repr=False)
    refresh: str | None = field(repr=False)
    renew_at: float
    refresh_until: float


class Tokens:
    """The token of one account at one host, shared by the threads of a process.

    Args:
        post_form: sends a form to a path below the base URL and returns the answer, whatever its status; it may
            raise ArchiveError after its own retries.
        username: account at the archive.
        password: its password; the server ignores the guest's.
        clock: seconds, monotonic.
    """

    def __init__(
        self, post_form: PostForm, username: str, password: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._post_form = post_form
        self._username = username
        self._password = password
        self._clock = clock
        self._lock = threading.Lock()
        self._grant: _Grant | None = None
        self._refusal: LoginRefused | None = None

    def current(self) -> str:
        """Return a token that is not about to expire; many threads cause one login.

        Raises:
            LoginRefused: the archive refuses the account.
            ArchiveUnreachable: no answer from the token endpoint.
        """
        with self._lock:
            if self._refusal is not None:
                raise self._refusal  # asking again with the same password could lock the account
            if self._grant is None or self._clock() >= self._grant.renew_at:
                self._grant = self._renewed(self._grant)
            return self._grant.access

    def reject(self, token: str) -> None:
        """Forget `token`, which the archive refused; a newer one of another thread is kept."""
        with self._lock:
            if self._grant is not None and self._grant.access == token:
                self._grant = None

    def secrets(self) -> list[str]:
        """Return what must not appear in any text."""
        grant = self._grant
        secrets = [self._password, grant.access if grant else None, grant.refresh if grant else None]
        return [s for s in secrets if s]

    def take(self) -> str | None:
        """Return the token, if there is one, and forget it: for the logout."""
        with self._lock:
            grant, self._grant = self._grant, None
            return grant.access if grant else None

    def _renewed(self, old: _Grant | None) -> _Grant:
        if old is not None and old.refresh and self._clock() < old.refresh_until:
            try:
                return self._ask({"grant_type": "refresh_token", "refresh_token": old.refresh, "client_id": CLIENT_ID})
            except ArchiveError as e:
                if e.status is None:
                    raise
                log.info("the refresh token was not accepted, logging in again: %s", e)
        account = {"username": self._username, "password": self._password}
        try:
            return self._ask({"grant_type": "password", "client_id": CLIENT_ID, **account})
        except LoginRefused as e:
            self._refusal = e
            raise

    def _ask(self, form: dict[str, str]) -> _Grant:
        asked_at = self._clock()
        answer = self._post_form(TOKEN_PATH, form)
        try:
            return _grant(self._accepted(answer), asked_at)
        except ArchiveError as e:
            secrets = (form.get("password", ""), form.get("refresh_token", ""))
            raise e.at(TOKEN_PATH, {}).without(secrets) from e.__cause__

    def _accepted(self, answer: requests.Response) -> dict[str, Any]:
        status = answer.status_code
        if status in (400, 401, 403):
            # The error fields of Keycloak hold no secret.
            fields = _json(answer) or {}
            said = (str(fields[k])[:100] for k in ("error", "error_description") if k in fields)
            why = ": ".join(" ".join(text.split()) for text in said)
            raise LoginRefused(
                f"the archive refuses the account {self._username!r} ({why or 'no reason given'}): check username and "
                "password",
                status=status,
                arguments=("username", "password"),
            )
        if answer.is_redirect:
            # Not followed: the form holds the password.
            raise _not_an_archive(
                f"the archive redirects the login to {without_secrets(answer.headers.get('Location', ''))[:200]!r}: if "
                "you trust that address, set base_url to its base URL",
                status,
            )
        if 300 <= status < 400:
            raise _not_an_archive("the token endpoint redirects the login to no address: check base_url", status)
        if status in (404, 405) or (status == 500 and b"HTTP 40" in answer.content[:1000]):
            raise _not_an_archive("there is no token endpoint here: check base_url", status)
        if status != 200:
            raise ArchiveUnreachable("the archive issues no token: try again later", status=status)
        return _json_object(answer)


def _not_an_archive(what: str, status: int) -> BadAnswer:
    return BadAnswer(what, status=status, arguments=("base_url",))


def _grant(reply: dict[str, Any], asked_at: float) -> _Grant:
    access = _token(reply, "access_token")
    if access is None:
        # It is not quoted: what cannot be sent may be a token nevertheless.
        sent = "an access_token that no header can hold" if reply.get("access_token") else "no access_token"
        raise BadAnswer(
            f"the token endpoint sent {sent}: check base_url, or ask the operators of the archive",
            status=200,
            arguments=("base_url",),
        )
    lifetime = _seconds(reply.get("expires_in"))
    # The margin covers the request's way to the server and clocks that differ.
    margin = min(60.0, lifetime / 10)
    return _Grant(
        access=access,
        refresh=_token(reply, "refresh_token"),
        renew_at=asked_at + lifetime - margin,
        # Without a margin: if it has expired after all, the password is sent.
        refresh_until=asked_at + _seconds(reply.get("refresh_expires_in")),
    )


def _token(reply: dict[str, Any], name: str) -> str | None:
    """Return a token without the white space around it; None where there is none that can be sent."""
    token = reply.get(name)
    stripped = token.strip() if isinstance(token, str) else ""
    return stripped if _SENDABLE.fullmatch(stripped) else None


def _seconds(lifetime: object) -> float:
    """Return how long a token lives, a minute where that is not stated."""
    return float(min(lifetime, _LONGEST_LIFE)) if isinstance(lifetime, (int, float)) and lifetime > 0 else 60.0


def _json_object(answer: requests.Response) -> dict[str, Any]:
    # The body is never quoted: it holds the token.
    reply = _json(answer)
    if reply is not None:
        return reply
    what = "the token endpoint did not answer with a JSON object: base_url may not be that of an NBIA archive"
    if answer.content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        what = (
            "the token endpoint answered with HTML or XML: a proxy or a login page may be between you and the archive, "
            "or base_url may not be that of an NBIA archive"
        )
    raise _not_an_archive(what, answer.status_code)


def _json(answer: requests.Response) -> dict[str, Any] | None:
    try:
        reply = json.loads(answer.content)
    except (ValueError, RecursionError):
        return None
    return reply if isinstance(reply, dict) else None
