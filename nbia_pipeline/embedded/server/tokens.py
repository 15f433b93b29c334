"""The token store of the embedded archive: log in, refresh, log out, expire.

Server: NBIA delegates to Keycloak and passes its status and body through; field names and errors are
Keycloak's.
"""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nbia_pipeline.embedded.api.endpoint import ServerFault
from nbia_pipeline.embedded.catalog.model import Account
from nbia_pipeline.schema import GUEST as GUEST

CLIENT_ID = "nbia"
"""Keycloak client. Server: substituted on the password grant, forwarded unchanged on a refresh."""

TokenReply = tuple[int, dict[str, str | int]]
"""Status and JSON body of the token endpoint."""


@dataclass(frozen=True)
class _Token:
    user: str
    session: str
    expires: float


class TokenStore:
    """The valid tokens and their accounts; `lifetime` and `refresh_lifetime` may be changed at any time."""

    def __init__(
        self,
        accounts: Mapping[str, Account],
        lifetime: float = 7200.0,
        refresh_lifetime: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an empty store of `accounts` by user name; the other arguments are those of an application."""
        self.lifetime = lifetime
        self.refresh_lifetime = lifetime if refresh_lifetime is None else refresh_lifetime
        self._accounts = accounts
        self._clock = clock
        self._lock = threading.Lock()
        self._access: dict[str, _Token] = {}
        self._refresh: dict[str, _Token] = {}

    def grant(self, form: Mapping[str, str]) -> TokenReply:
        """Answer a request for a token, given the first value of each of its fields.

        Raises:
            ServerFault: without ``grant_type`` or with an unknown one. Server: it fails itself, before Keycloak.
        """
        if "grant_type" not in form:
            raise ServerFault
        if form["grant_type"].casefold() == "password":
            return self._grant_password(form)
        if form["grant_type"].casefold() == "refresh_token":
            return self._grant_refresh(form)
        # Server: it tries to answer with status 0, which its framework refuses.
        raise ServerFault("Illegal status value: 0")

    def user_of(self, token: str) -> str | None:
        """Return the user of an access token, or None if it is unknown, expired or logged out."""
        known = self._access.get(token)
        return known.user if known is not None and known.expires > self._clock() else None

    def log_out(self, token: str) -> None:
        """End the session of an access token, with its refresh tokens; unknown tokens are ignored."""
        with self._lock:
            known = self._access.get(token)
            if known is not None:
                self._access = {t: k for t, k in self._access.items() if k.session != known.session}
                self._refresh = {t: k for t, k in self._refresh.items() if k.session != known.session}

    def expire_all(self) -> None:
        """Expire every token now."""
        with self._lock:
            self._access.clear()
            self._refresh.clear()

    def collections_of(self, user: str) -> frozenset[str]:
        """Return the restricted collections that `user` may see; none for the guest."""
        account = self._accounts.get(user)
        return frozenset() if account is None or user == GUEST else account.collections

    def _grant_password(self, form: Mapping[str, str]) -> TokenReply:
        user = form.get("username")
        if user is None:
            return 400, _error("invalid_request", "Missing parameter: username")
        account = self._accounts.get(user)
        # Server: it ignores the password that is sent with the guest's name.
        if user != GUEST and (account is None or account.password != form.get("password", "")):
            return 401, _error("invalid_grant", "Invalid user credentials")
        return 200, self._issue(user, str(uuid.uuid4()))

    def _grant_refresh(self, form: Mapping[str, str]) -> TokenReply:
        if form.get("client_id") != CLIENT_ID:
            return 401, _error("invalid_client", "Invalid client or Invalid client credentials")
        token = form.get("refresh_token")
        if token is None:
            return 400, _error("invalid_request", "No refresh token")
        known = self._refresh.get(token)
        if known is None:
            return 400, _error("invalid_grant", "Invalid refresh token")
        if known.expires <= self._clock():
            return 400, _error("invalid_grant", "Token is not active")
        return 200, self._issue(known.user, known.session)

    def _issue(self, user: str, session: str) -> dict[str, str | int]:
        access, refresh, now = secrets.token_urlsafe(48), secrets.token_urlsafe(48), self._clock()
        with self._lock:
            self._access[access] = _Token(user, session, now + self.lifetime)
            self._refresh[refresh] = _Token(user, session, now + self.refresh_lifetime)
        return {
            "access_token": access,
            "expires_in": int(self.lifetime),
            "refresh_expires_in": int(self.refresh_lifetime),
            "refresh_token": refresh,
            "token_type": "Bearer",
            "id_token": secrets.token_urlsafe(48),
            "not-before-policy": 0,
            "session_state": session,
            "scope": "openid profile email",
        }


def _error(kind: str, description: str) -> dict[str, str | int]:
    return {"error": kind, "error_description": description}
