"""HTTP to one archive: a pool of connections, time-outs, one retry loop, the token on every call."""

from __future__ import annotations

import logging
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TypeVar, cast
from urllib.parse import urlsplit

import requests
import urllib3

from nbia_pipeline import stopping
from nbia_pipeline._version import __version__
from nbia_pipeline.address import is_base_url
from nbia_pipeline.archive.bounds import CHUNK_BYTES, EXCERPT_BYTES, NO_BOUND, TOKEN_BYTES, Body
from nbia_pipeline.archive.connections import Adapter, Http, explained
from nbia_pipeline.archive.errors import (
    ArchiveError,
    ArchiveUnreachable,
    BadAnswer,
    LoginRefused,
    NotAvailable,
    ServerError,
    call_text,
)
from nbia_pipeline.archive.rate_limit import MAX_IN_FLIGHT, Slot, limiter_of
from nbia_pipeline.archive.tokens import Tokens, authorization
from nbia_pipeline.text import logger

log = logger(__name__)

USER_AGENT = f"nbia-pipeline/{__version__}"
CONNECTIONS = 32  # kept open, or more if more requests may be in flight

# A 500 also stands for "no such path" and "no such image" (server: one mapper catches all), so it is retried
# only twice; the others come from a busy or absent server.
# 520 to 524 are Cloudflare's words for 502.
_RETRYABLE = {408, 429, 500, 502, 503, 504, *range(520, 525)}
_TRIES_OF_500 = 3
# The archive has too much to do: fewer requests at a time help.
_OVERLOADED = {408, 429, 503, 504}
# Server, before April 2021: the text of a 500 instead of an empty list.
NO_ROWS = "No data found."
_NO_SUCH_CALL = re.compile("HTTP 40[456]")

T = TypeVar("T")


@dataclass(frozen=True)
class ClientOptions:
    """How long to wait and how often to try.

    Attributes:
        connect_timeout: seconds for a connection.
        read_timeout: seconds without a byte before an answer is given up; not a limit on its length. One that drips is
            given up after a minute (:class:`~nbia_pipeline.archive.bounds.Steady`).
        tries: most attempts at one call, the first included.
        backoff: seconds before the second try; each further wait doubles, with jitter.
        max_backoff: seconds, the longest wait, also for a Retry-After.
        max_in_flight: most requests to one host at a time, over all threads and clients of the process; see
            :class:`~nbia_pipeline.archive.rate_limit.Limiter`.
        bwlimit: most bytes per second from one host, of all answers of the process together; None: no limit.
    """

    connect_timeout: float = 10.0
    read_timeout: float = 300.0
    tries: int = 5
    backoff: float = 0.5
    max_backoff: float = 60.0
    max_in_flight: int = MAX_IN_FLIGHT
    bwlimit: float | None = None


class Session:
    """Calls to one base URL. Used by many threads at once.

    Args:
        account: user name and password, or None to send no token at all (v4 as guest); the others are those of
            :class:`~nbia_pipeline.archive.NbiaClient`.
    """

    def __init__(
        self,
        base_url: str,
        account: tuple[str, str] | None,
        *,
        ca_bundle: str | None = None,
        options: ClientOptions | None = None,
    ) -> None:
        if "@" in base_url:  # not shown: it may hold a password
            raise ValueError("base_url contains an account: pass username and password instead")
        if not is_base_url(base_url):
            raise ValueError(f"base_url is {base_url!r}: use an address such as https://archive.example.org/nbia-api")
        self.base_url = base_url.rstrip("/")
        self.options = options or ClientOptions()
        self.limiter = limiter_of(base_url, self.options.max_in_flight, self.options.bwlimit)
        self._http = Http()
        kept = max(CONNECTIONS, self.limiter.max_in_flight)
        adapter = Adapter(pool_connections=4, pool_maxsize=kept, pool_block=False)
        self._http.mount("https://", adapter)
        self._http.mount("http://", adapter)
        self._http.headers.update({"User-Agent": USER_AGENT, "Accept": "*/*"})
        if urlsplit(self.base_url).hostname in ("127.0.0.1", "localhost", "::1"):
            self._http.trust_env = False  # no proxy leads to this machine
        # Given with every call, because requests prefers REQUESTS_CA_BUNDLE to what the session says.
        self._verify = ca_bundle or None  # never "": that would switch the verification off
        self.tokens = Tokens(self._post_form, *account) if account else None

    def again(self, options: ClientOptions) -> Session:
        """Return a session with the same token and connections that waits and tries as other options say."""
        other = copy(self)
        other.options = options
        other.limiter = limiter_of(self.base_url, options.max_in_flight, options.bwlimit)
        return other

    def close(self, *, log_out: bool = True) -> None:
        """Log out, best effort, and close the connections; without a logout the token expires on its own."""
        token = self.tokens.take() if self.tokens and log_out else None
        if token:
            wait = self.options.connect_timeout
            try:
                with self._open("POST", "/logout", {}, token, 0, allow_redirects=False, read_timeout=wait):
                    pass
            except ArchiveError as e:
                log.debug("logout failed; the token will expire on its own: %s", type(e).__name__)
        self._http.close()

    def call(
        self,
        method: str,
        endpoint: str,
        parameters: Mapping[str, str],
        read: Callable[[requests.Response], T],
        tries: int | None = None,
        *,
        most: int,
        read_timeout: float | None = None,
        repeated: str = "",
    ) -> T:
        """Call an endpoint and return what `read` makes of its answer.

        The body is read inside the retries: a truncated answer is requested again from its start.

        Args:
            method: GET sends `parameters` in the query, POST as a form.
            endpoint: path below the base URL.
            parameters: names and values as they go over the wire.
            read: takes the complete answer (status 200 or 204); may raise ArchiveError.
            tries: most attempts, if fewer than the options allow.
            most: bytes that the body may have, decoded.
            read_timeout: seconds without a byte, if less than the options allow.
            repeated: name of a field of a form whose values, separated by commas, are sent as a field each.

        Raises:
            ArchiveUnreachable: no connection or no answer after all tries.
            ServerError: the archive fails on this request (500).
            LoginRefused: the account, or a fresh token, is refused.
            NotAvailable: status 400, for unknown, hidden and forbidden.
            BadAnswer: anything else that is not what the endpoint promises.
        """

        def send(token: str | None, slot: Slot) -> T:
            with self._open(
                method, endpoint, parameters, token, most, slot, repeated=repeated, read_timeout=read_timeout
            ) as answer:
                _expect_success(answer, had_token=token is not None)
                result = read(answer)
                stopping.expect_running()  # a connection that was shut down looks like the end of some answers
                return result

        return self._retrying(endpoint, parameters, send, self.tokens, tries)

    def _post_form(self, path: str, form: dict[str, str]) -> requests.Response:
        """Post to the token endpoint; the form never gets into an error."""

        def send(_: str | None, slot: Slot) -> requests.Response:
            # No redirects: the form holds the password.
            with self._open("POST", path, form, None, TOKEN_BYTES, slot, allow_redirects=False) as answer:
                try:
                    # Read here, where the request is tried again if that fails.
                    text = answer.content[:1000].decode("utf-8", "replace")
                except BadAnswer as e:
                    e.body = ""  # it may hold a token
                    raise
                no_such_call = answer.status_code == 500 and _NO_SUCH_CALL.search(text)
                if answer.status_code in _RETRYABLE and not no_such_call:
                    raise _busy(ArchiveUnreachable, "the archive issues no token: try again later", answer)
                return answer

        return self._retrying(path, {}, send)

    def _retrying(
        self,
        endpoint: str,
        parameters: Mapping[str, str],
        send: Callable[[str | None, Slot], T],
        tokens: Tokens | None = None,
        most_tries: int | None = None,
    ) -> T:
        """Return what `send` returns, called with a token; the one loop that retries."""
        allowed = min(self.options.tries, most_tries or self.options.tries)
        tries = 0
        renewed = False
        while True:
            tries += 1
            # Outside the tries and the slot of the limiter: a login has its own.
            token = tokens.current() if tokens else None
            try:
                with self._slot(endpoint) as slot:
                    begun = time.monotonic()
                    result = send(token, slot)
                    if log.isEnabledFor(logging.DEBUG):
                        log.debug("%s, %.2f s", call_text(endpoint, parameters), time.monotonic() - begun)
                    return result
            except ArchiveError as e:
                stopping.expect_running()
                e.at(endpoint, parameters).without([*(self.tokens.secrets() if self.tokens else []), token or ""])
                if tokens and token and e.status == 401 and e.endpoint == endpoint and not renewed:
                    # Any call can meet a token that expired early; a fresh one gets one more chance.
                    tokens.reject(token)
                    renewed = True
                    continue
                most = min(_TRIES_OF_500, allowed) if e.status == 500 else allowed
                if not e.retryable or tries >= most:
                    raise e from e.__cause__
                self._wait(tries, e)

    @contextmanager
    def _slot(self, endpoint: str) -> Iterator[Slot]:
        """Occupy a slot among the requests in flight, and report the outcome to the limiter."""
        with self.limiter.slot(endpoint) as slot:
            try:
                yield slot
            except ArchiveError as e:
                if e.overloaded:
                    asked = None if e.retry_after is None else min(e.retry_after, self.options.max_backoff)
                    self.limiter.refused(slot.refusals, asked)
                raise
            self.limiter.answered()

    @contextmanager
    def _open(
        self,
        method: str,
        endpoint: str,
        parameters: Mapping[str, str],
        token: str | None,
        most: int,
        slot: Slot | None = None,
        allow_redirects: bool = True,
        repeated: str = "",
        read_timeout: float | None = None,
    ) -> Iterator[requests.Response]:
        """Send one request, and translate whatever the layers below raise, also while the body is read.

        Args:
            most: bytes that a body may have, decoded; the others are those of :meth:`call`.
            slot: is told what arrives.
        """
        stopping.expect_running()
        try:
            answer = self._http.request(
                method,
                self.base_url + endpoint,
                params=parameters if method == "GET" else None,
                data=_form(parameters, repeated) if method == "POST" else None,
                auth=authorization(token),
                stream=True,
                timeout=(self.options.connect_timeout, min(self.options.read_timeout, read_timeout or math.inf)),
                verify=self._verify,
                allow_redirects=allow_redirects,
            )
        except ArchiveError:
            raise
        except Exception as e:
            # There is no class that all of requests, urllib3, http.client, ssl, idna and the codecs share.
            raise explained(e, self.base_url, sending=True) from e
        answer.raw = Body(
            answer.raw,
            answer.headers,
            most,
            lambda e: explained(e, self.base_url, sending=False),
            slot.received if slot else lambda count: None,
            slot.piece_bytes if slot else NO_BOUND,
        )
        if slot:
            slot.answer_begins()
        with answer:  # the caller's errors are its own
            if answer.status_code == 407:
                raise ArchiveUnreachable(
                    f"the proxy on the way to {self.base_url} requires an account, or refuses it: check HTTPS_PROXY",
                    status=answer.status_code,
                )
            yield answer

    def _wait(self, tries: int, problem: ArchiveError) -> None:
        wait = min(self.options.max_backoff, self.options.backoff * 2 ** (tries - 1))
        wait *= random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        if problem.retry_after is not None:
            wait = min(self.options.max_backoff, max(wait, problem.retry_after))
        log.info("trying again in %.1f s: %s", wait, problem)
        stopping.sleep(wait)


def _form(fields: Mapping[str, str], repeated: str) -> list[tuple[str, str]]:
    """Return the fields of a form; one of them has a field for each of its values."""
    return [(name, v) for name, value in fields.items() for v in (value.split(",") if name == repeated else [value])]


def _expect_success(answer: requests.Response, had_token: bool) -> None:
    status = answer.status_code
    if status in (200, 204):
        return
    body = " ".join(_body(answer).start(EXCERPT_BYTES).decode("utf-8", "replace").split())

    def problem(kind: type[ArchiveError], what: str, *arguments: str) -> ArchiveError:
        return kind(what, status=status, body=body, arguments=arguments)

    if status == 400 and not body.startswith("<"):  # a page is not the archive's, which refuses with a sentence
        raise problem(NotAvailable, "the archive refuses the call: what it names is unknown, hidden or not permitted")
    if status in (401, 403):
        what = "the archive refuses the account: check username and password, and what it may see"
        raise problem(LoginRefused, what, "username", "password")
    if status == 500 and not had_token and body.rstrip().endswith("null"):
        # Server: a v2 call without a token is a 500 whose message is "null".
        what = "the archive requires a token: use api='v2', or set username and password"
        raise problem(LoginRefused, what, "api", "username", "password")
    if status == 500 and _NO_SUCH_CALL.search(body):
        raise problem(BadAnswer, "the archive has no such endpoint: check base_url and api", "base_url", "api")
    if status == 500 and NO_ROWS in body:
        raise problem(ServerError, "the archive says that it has no rows")
    if status in _RETRYABLE:
        kind = ServerError if status == 500 else ArchiveUnreachable
        raise _busy(kind, "the archive could not answer: it may be busy, try again later", answer, body)
    raise problem(BadAnswer, "an unexpected answer: check base_url", "base_url")


def _busy(kind: type[ArchiveError], what: str, answer: requests.Response, body: str = "") -> ArchiveError:
    """Return the error for an archive that may answer later."""
    return kind(
        what,
        status=answer.status_code,
        body=body,
        retryable=True,
        retry_after=_retry_after(answer),
        overloaded=answer.status_code in _OVERLOADED,
    )


def chunks_of(answer: requests.Response, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield a body in chunks of `size` bytes; ``iter_content`` would yield the server's, which are of 8 KB."""
    for chunk in _body(answer).chunks(size):
        stopping.expect_running()
        yield chunk


def _body(answer: requests.Response) -> Body:
    return cast(Body, answer.raw)


def _retry_after(answer: requests.Response) -> float | None:
    """Return the seconds of a Retry-After header, given as seconds or as an HTTP date."""
    try:
        return float(urllib3.Retry().parse_retry_after(answer.headers.get("Retry-After", "")))
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None
