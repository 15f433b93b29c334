"""HTTP to one archive: a pool of connections, time-outs, bounded retries, the token on every call."""

from __future__ import annotations

import email.utils
import http.client
import io
import logging
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from nbia_pipeline._version import __version__
from nbia_pipeline.archive.errors import ArchiveError, ArchiveUnreachable, BadAnswer, LoginRefused, NotAvailable
from nbia_pipeline.archive.rate_limit import IN_FLIGHT, Limiter, limiter_of
from nbia_pipeline.archive.tokens import BearerToken, Tokens

log = logging.getLogger(__name__)

USER_AGENT = f"nbia-pipeline/{__version__}"
PIECE_BYTES = 1 << 18

# A 500 also stands for "no such path" and "no such image" (server: one mapper catches all), so it is tried
# again only twice; the others tell of a busy or absent server.
_MAY_PASS = {408, 429, 500, 502, 503, 504}
_TRIES_OF_500 = 3
# These tell of an archive that has too much to do: fewer requests at a time help.
_OVERLOADED = {408, 429, 503, 504}
_NO_SUCH_CALL = re.compile("HTTP 40[456]")

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to wait and how often to try.

    Attributes:
        connect: seconds for a connection.
        silence: seconds without a byte before an answer is given up; not a limit on its length.
        tries: calls at the most, the first included.
        first_wait: seconds before the second try; each further wait doubles, with jitter.
        longest_wait: seconds, the cap of a wait, also of a Retry-After.
        in_flight: requests at a time to one host at the most, over all threads and clients of the process.
    """

    connect: float = 10.0
    silence: float = 300.0
    tries: int = 5
    first_wait: float = 0.5
    longest_wait: float = 60.0
    in_flight: int = IN_FLIGHT


class _Http(requests.Session):
    """A pool of connections that takes no credentials from anywhere but the call."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Drop the token on the way to another host; requests would also take a netrc entry."""
        there, here = prepared_request.url or "", response.request.url or ""
        if self.should_strip_auth(here, there):  # type: ignore[no-untyped-call]
            prepared_request.headers.pop("Authorization", None)


class _Response(http.client.HTTPResponse):
    """Reads from the socket in large pieces: the server sends chunks of 8 KB, and so is the usual buffer."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = cast("io.BufferedReader[Any]", sock.makefile("rb", buffering=PIECE_BYTES))


class _Http1(urllib3.connection.HTTPConnection):
    response_class = _Response


class _Https1(urllib3.connection.HTTPSConnection):
    response_class = _Response


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Http1


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Https1


class _Adapter(HTTPAdapter):
    """Pools of connections that read in large pieces."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


class Session:
    """Calls to one base URL. Used by many threads at once.

    Args:
        base_url: address that ends in ``/nbia-api``.
        account: user name and password, or None to send no token at all (v4 as guest).
        ca_bundle: file of certificates to trust, or None for the system's.
        patience: time-outs, retries, and how much is asked at a time.
        connections: most connections kept open.
        limiter: bounds the requests in flight; by default the one of the host.
    """

    def __init__(
        self,
        base_url: str,
        account: tuple[str, str] | None,
        *,
        ca_bundle: str | None = None,
        patience: Patience | None = None,
        connections: int = 32,
        limiter: Limiter | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.patience = patience or Patience()
        self.limiter = limiter or limiter_of(base_url, self.patience.in_flight)
        self._http = _Http()
        kept = max(connections, self.limiter.most)
        adapter = _Adapter(pool_connections=4, pool_maxsize=kept, pool_block=False)
        self._http.mount("https://", adapter)
        self._http.mount("http://", adapter)
        self._http.headers.update({"User-Agent": USER_AGENT, "Accept": "*/*"})
        if urlsplit(self.base_url).hostname in ("127.0.0.1", "localhost", "::1"):
            self._http.trust_env = False  # no proxy leads to this machine
        # Given with every call, because requests prefers REQUESTS_CA_BUNDLE to what the session says.
        self._verify = ca_bundle or None  # never "": that would switch the verification off
        self.tokens = Tokens(self._post_form, *account) if account else None

    def close(self) -> None:
        """Log out, best effort, and close the connections."""
        token = self.tokens.take() if self.tokens else None
        if token:
            try:
                self._http.post(
                    f"{self.base_url}/logout",
                    auth=BearerToken(token),
                    timeout=(self.patience.connect, self.patience.connect),
                    verify=self._verify,
                    allow_redirects=False,
                )
            except requests.RequestException as e:
                log.debug("logout failed, the token will run out by itself: %s", type(e).__name__)
        self._http.close()

    def call(
        self,
        method: str,
        endpoint: str,
        parameters: Mapping[str, str],
        read: Callable[[requests.Response], T],
    ) -> T:
        """Call an endpoint and return what `read` makes of its answer.

        The body is read inside the retries: an answer that is cut is asked for again from its start.

        Args:
            method: GET sends `parameters` in the query, POST as a form.
            endpoint: path below the base URL.
            parameters: names and values as they go over the wire.
            read: takes the whole answer (status 200 or 204); may raise ArchiveError.

        Raises:
            ArchiveUnreachable: no connection or no answer after all tries.
            LoginRefused: the account, or a fresh token, is refused.
            NotAvailable: status 400, the archive's word for unknown, hidden and forbidden.
            BadAnswer: anything else that is not what the endpoint promises.
        """
        tries = 0
        renewed = False
        while True:
            tries += 1
            # Outside the tries and the place among the requests in flight: the login has its own.
            token = self.tokens.current() if self.tokens else None
            try:
                with self._place(), self._open(method, endpoint, parameters, token) as answer:
                    if answer.status_code != 401 or token is None or renewed:
                        self._expect_success(answer, had_token=token is not None)
                        return read(answer)
                # Any call can meet a token that ran out early; a fresh one gets one more chance.
                self._reject(token)
                renewed = True
            except ArchiveError as e:
                secrets = [*self.tokens.secrets(), token or ""] if self.tokens else []
                e.at(endpoint, parameters).without(secrets)
                if not e.retryable or tries >= self._tries_at(e.status):
                    raise e from e.__cause__
                self._wait(tries, e)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Hold a place among the requests in flight, and tell the limiter how it went."""
        with self.limiter.slot() as began:
            try:
                yield
            except ArchiveUnreachable as e:
                if e.overloaded:
                    asked = None if e.retry_after is None else min(e.retry_after, self.patience.longest_wait)
                    self.limiter.refused(began, asked)
                raise
            self.limiter.answered()

    def _reject(self, token: str) -> None:
        if self.tokens:
            self.tokens.reject(token)

    @contextmanager
    def _open(
        self, method: str, endpoint: str, parameters: Mapping[str, str], token: str | None
    ) -> Iterator[requests.Response]:
        """Send one request and translate every failure of the network, also while the body is read."""
        try:
            answer = self._http.request(
                method,
                self.base_url + endpoint,
                params=parameters if method == "GET" else None,
                data=parameters if method == "POST" else None,
                auth=BearerToken(token) if token else _no_auth,
                stream=True,
                timeout=(self.patience.connect, self.patience.silence),
                verify=self._verify,
            )
            with answer:
                yield answer
        except (requests.RequestException, urllib3.exceptions.HTTPError) as e:
            raise self._unreachable(e) from e

    def _post_form(self, path: str, form: dict[str, str]) -> requests.Response:
        """Post to the token endpoint, with retries on what can pass; the form never gets into an error."""
        tries = 0
        while True:
            tries += 1
            try:
                with self._place():
                    answer = self._post_once(path, form)
                    if answer.status_code not in _MAY_PASS or tries >= self._tries_at(answer.status_code):
                        return answer
                    raise _busy("no token", answer)
            except ArchiveUnreachable as e:
                e.at(path, {})
                if not e.retryable or tries >= self.patience.tries:
                    raise e from e.__cause__
                self._wait(tries, e)

    def _post_once(self, path: str, form: dict[str, str]) -> requests.Response:
        try:
            return self._http.post(
                self.base_url + path,
                data=form,
                auth=_no_auth,
                timeout=(self.patience.connect, self.patience.silence),
                verify=self._verify,
                allow_redirects=False,  # the form holds the password
            )
        except requests.RequestException as e:
            raise self._unreachable(e) from e

    def _tries_at(self, status: int | None) -> int:
        return min(_TRIES_OF_500, self.patience.tries) if status == 500 else self.patience.tries

    def _expect_success(self, answer: requests.Response, had_token: bool) -> None:
        status = answer.status_code
        if status in (200, 204):
            return
        body = _excerpt(answer)
        if status == 400:
            raise NotAvailable(
                "the archive refuses the call: what it names is unknown, hidden or not permitted",
                status=status,
                body=body,
            )
        if status in (401, 403):
            raise LoginRefused(
                "the archive refuses the account: check NBIA_USERNAME and NBIA_PASSWORD, and what it may see",
                status=status,
                body=body,
            )
        if status == 500 and not had_token and body.rstrip().endswith("null"):
            # Server: a v2 call without a token is a 500 whose message is "null".
            raise LoginRefused("the archive wants a token: use NBIA_API=v2, or set an account", status=status)
        if status == 500 and _NO_SUCH_CALL.search(body):
            raise BadAnswer(
                "the archive has no such endpoint: check NBIA_ARCHIVE and NBIA_API", status=status, body=body
            )
        if status in _MAY_PASS:
            raise _busy("the archive could not answer: it may be busy, try later", answer, body)
        raise BadAnswer("an answer of unknown kind: check NBIA_ARCHIVE", status=status, body=body)

    def _unreachable(self, e: Exception) -> ArchiveUnreachable:
        """Say in one sentence what a failure of the network means and what to do."""
        cause = _innermost(e)
        why = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ArchiveUnreachable(
                f"the certificate of {self.base_url} does not verify ({why}): if your site has its own "
                "authority, set NBIA_CA_BUNDLE to its certificates"
            )
        if isinstance(e, requests.exceptions.SSLError):
            return ArchiveUnreachable(
                f"no secure connection to {self.base_url} ({why}): check NBIA_ARCHIVE and NBIA_CA_BUNDLE",
                retryable=True,
            )
        if isinstance(e, requests.exceptions.ProxyError):
            return ArchiveUnreachable(
                f"the proxy on the way to {self.base_url} does not answer ({why}): check HTTPS_PROXY and NO_PROXY",
                retryable=True,
            )
        if isinstance(e, (requests.Timeout, urllib3.exceptions.TimeoutError)) or "timed out" in str(e):
            silent = ArchiveUnreachable(f"{self.base_url} fell silent: it may be overloaded, try later", retryable=True)
            silent.overloaded = True
            return silent
        return ArchiveUnreachable(
            f"no whole answer from {self.base_url} ({why}): check NBIA_ARCHIVE and your connection",
            retryable=True,
        )

    def _wait(self, tries: int, problem: ArchiveError) -> None:
        wait = min(self.patience.longest_wait, self.patience.first_wait * 2 ** (tries - 1))
        wait *= random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        if isinstance(problem, ArchiveUnreachable) and problem.retry_after is not None:
            wait = min(self.patience.longest_wait, max(wait, problem.retry_after))
        log.info("trying again in %.1f s: %s", wait, problem)
        time.sleep(wait)


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Send no credentials; without it requests would take a netrc entry for the host."""
    return request


def _busy(what: str, answer: requests.Response, body: str = "") -> ArchiveUnreachable:
    """Return the error for an archive that may answer later."""
    problem = ArchiveUnreachable(what, status=answer.status_code, body=body, retryable=True)
    problem.retry_after = _retry_after(answer)
    problem.overloaded = answer.status_code in _OVERLOADED
    return problem


def pieces(answer: requests.Response) -> Iterator[bytes]:
    """Yield a body in pieces of 256 KiB.

    ``iter_content`` would yield each chunk of the server by itself, and those are of 8 KB.
    """
    while piece := answer.raw.read(PIECE_BYTES, decode_content=True):
        yield piece


def _excerpt(answer: requests.Response) -> str:
    """Return the beginning of a body for an error."""
    text = next(answer.iter_content(4096), b"").decode("utf-8", "replace")
    return " ".join(text.split())


def _retry_after(answer: requests.Response) -> float | None:
    """Return the seconds of a Retry-After header, given as seconds or as an HTTP date."""
    value = answer.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    if not value:
        return None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _innermost(e: BaseException) -> BaseException:
    """Return the last cause of a network error; the texts of the outer ones hold object addresses."""
    for _ in range(20):
        inner = e.__cause__ or e.__context__ or next((a for a in e.args if isinstance(a, BaseException)), None)
        inner = inner or getattr(e, "reason", None)
        if not isinstance(inner, BaseException) or inner is e or isinstance(e, http.client.IncompleteRead):
            break
        e = inner
    return e
