"""HTTP to one archive: a pool of connections, time-outs, bounded retries, the token on every call."""

from __future__ import annotations

import email.utils
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from nbia_pipeline._version import __version__
from nbia_pipeline.archive.auth import BearerToken, Tokens
from nbia_pipeline.archive.errors import ArchiveError, ArchiveUnreachable, BadAnswer, LoginRefused, NotAvailable

log = logging.getLogger(__name__)

USER_AGENT = f"nbia-pipeline/{__version__}"
CHUNK_BYTES = 1 << 20
BODY_SHOWN = 200

# A 500 also stands for "no such path" and "no such image" (server: one mapper catches all), so it is tried
# again only twice; the others tell of a busy or absent server.
_MAY_PASS = {408, 429, 500, 502, 503, 504}
_TRIES_OF_500 = 3

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
    """

    connect: float = 10.0
    silence: float = 300.0
    tries: int = 5
    first_wait: float = 0.5
    longest_wait: float = 60.0


class Session:
    """Calls to one base URL. Used by many threads at once.

    Args:
        base_url: address that ends in ``/nbia-api``.
        account: user name and password, or None to send no token at all (v4 as guest).
        ca_bundle: file of certificates to trust, or None for the system's.
        patience: time-outs and retries.
        connections: most connections kept open.
    """

    def __init__(
        self,
        base_url: str,
        account: tuple[str, str] | None,
        *,
        ca_bundle: str | None = None,
        patience: Patience | None = None,
        connections: int = 32,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.patience = patience or Patience()
        self._http = requests.Session()
        adapter = HTTPAdapter(pool_connections=4, pool_maxsize=connections, pool_block=False)
        self._http.mount("https://", adapter)
        self._http.mount("http://", adapter)
        self._http.headers.update({"User-Agent": USER_AGENT, "Accept": "*/*"})
        if urlsplit(self.base_url).hostname in ("127.0.0.1", "localhost", "::1"):
            self._http.trust_env = False  # no proxy leads to this machine
        if ca_bundle:
            self._http.verify = ca_bundle
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
            try:
                with self._open(method, endpoint, parameters) as (answer, token):
                    if answer.status_code == 401 and self.tokens and token and not renewed:
                        # Any call can meet a token that ran out early; a fresh one gets one more chance.
                        self.tokens.reject(token)
                        renewed = True
                        continue
                    self._expect_success(answer, had_token=bool(token))
                    return read(answer)
            except ArchiveError as e:
                if not e.may_pass or tries >= (_TRIES_OF_500 if e.status == 500 else self.patience.tries):
                    raise e.at(endpoint, parameters) from e.__cause__
                self._wait(tries, e.at(endpoint, parameters))

    @contextmanager
    def _open(
        self, method: str, endpoint: str, parameters: Mapping[str, str]
    ) -> Iterator[tuple[requests.Response, str | None]]:
        """Send one request and translate every failure of the network, also while the body is read."""
        token = self.tokens.current() if self.tokens else None
        try:
            answer = self._http.request(
                method,
                self.base_url + endpoint,
                params=parameters if method == "GET" else None,
                data=parameters if method == "POST" else None,
                auth=BearerToken(token) if token else _no_auth,
                stream=True,
                timeout=(self.patience.connect, self.patience.silence),
            )
            with answer:
                yield answer, token
        except (requests.RequestException, urllib3.exceptions.HTTPError) as e:
            raise self._unreachable(e) from e

    def _post_form(self, path: str, form: dict[str, str]) -> requests.Response:
        """Post to the token endpoint, with retries on what can pass; the form never gets into an error."""
        tries = 0
        while True:
            tries += 1
            try:
                answer = self._http.post(
                    self.base_url + path,
                    data=form,
                    auth=_no_auth,
                    timeout=(self.patience.connect, self.patience.silence),
                )
            except requests.RequestException as e:
                problem = self._unreachable(e)
            else:
                limit = _TRIES_OF_500 if answer.status_code == 500 else self.patience.tries
                if answer.status_code not in _MAY_PASS or tries >= limit:
                    return answer
                problem = ArchiveUnreachable("no token", status=answer.status_code, may_pass=True)
            if not problem.may_pass or tries >= self.patience.tries:
                raise problem.at(path, {})
            self._wait(tries, problem.at(path, {}))

    def _expect_success(self, answer: requests.Response, had_token: bool) -> None:
        status = answer.status_code
        if status in (200, 204):
            return
        body = self._excerpt(answer)
        if status == 400:
            raise NotAvailable("the archive refuses the call.", status=status, body=body)
        if status in (401, 403):
            raise LoginRefused(
                "the archive refuses the account: check NBIA_USERNAME and NBIA_PASSWORD, and what it may see.",
                status=status,
                body=body,
            )
        if status == 500 and not had_token and body.rstrip().endswith("null"):
            # Server: a v2 call without a token is a 500 whose message is "null".
            raise LoginRefused("the archive wants a token: use NBIA_API=v2, or set an account.", status=status)
        if status == 500 and "HTTP 404" in body:
            raise BadAnswer("no such endpoint: check NBIA_ARCHIVE and NBIA_API.", status=status, body=body)
        if status in _MAY_PASS:
            problem = ArchiveUnreachable("the archive could not answer.", status=status, body=body, may_pass=True)
            problem.retry_after = _retry_after(answer)
            raise problem
        raise BadAnswer("an answer of unknown kind: check NBIA_ARCHIVE.", status=status, body=body)

    def _excerpt(self, answer: requests.Response) -> str:
        """Return the beginning of a body for an error, without any secret that it might echo."""
        text = next(answer.iter_content(4096), b"").decode("utf-8", "replace")
        for secret in self.tokens.secrets() if self.tokens else []:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:BODY_SHOWN]

    def _unreachable(self, e: Exception) -> ArchiveUnreachable:
        """Say in one sentence what a failure of the network means and what to do."""
        if isinstance(e, requests.exceptions.SSLError):
            return ArchiveUnreachable(
                f"the certificate of {self.base_url} does not verify ({_innermost(e)}): if your site has its own "
                "authority, set NBIA_CA_BUNDLE to its certificates"
            )
        if isinstance(e, requests.exceptions.ProxyError):
            return ArchiveUnreachable(
                f"the proxy on the way to {self.base_url} does not answer ({_innermost(e)}): check HTTPS_PROXY and "
                "NO_PROXY",
                may_pass=True,
            )
        if isinstance(e, (requests.Timeout, urllib3.exceptions.TimeoutError)) or "timed out" in str(e):
            return ArchiveUnreachable(f"{self.base_url} fell silent: it may be overloaded, try later", may_pass=True)
        return ArchiveUnreachable(
            f"no whole answer from {self.base_url} ({_innermost(e)}): check NBIA_ARCHIVE and your connection",
            may_pass=True,
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


def _innermost(e: BaseException) -> str:
    """Return the last cause of a network error in words; the outer ones hold object addresses."""
    for _ in range(20):
        inner = e.__cause__ or e.__context__ or next((a for a in e.args if isinstance(a, BaseException)), None)
        inner = inner or getattr(e, "reason", None)
        if not isinstance(inner, BaseException) or inner is e:
            break
        e = inner
    return f"{type(e).__name__}: {e}" if str(e) else type(e).__name__
