"""Connections to an archive: pools, redirects, and any error of the layers below as one of ours."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin, urlsplit
from weakref import WeakSet

import requests
import urllib3
from requests.adapters import HTTPAdapter

from nbia_pipeline import stopping
from nbia_pipeline.address import is_web_address, without_secrets
from nbia_pipeline.archive.bounds import CHUNK_BYTES, ENCODINGS, Steady
from nbia_pipeline.archive.errors import ArchiveError, ArchiveUnreachable, BadAnswer

_OF_THE_NETWORK = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)

_ELSEWHERE = "nbia_elsewhere"  # an attribute of a request to another host than the base URL's


class Http(requests.Session):
    """A pool of connections that takes no credentials from anywhere but the call."""

    def __init__(self) -> None:
        super().__init__()
        self.headers["Accept-Encoding"] = ENCODINGS  # requests asks for whatever packages happen to be installed

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Drop the token on the way to another host; requests would also take a netrc entry."""
        there, here = prepared_request.url or "", response.request.url or ""
        if self.should_strip_auth(here, there):  # type: ignore[no-untyped-call]
            prepared_request.headers.pop("Authorization", None)
        elsewhere = urlsplit(there).netloc != urlsplit(here).netloc
        setattr(prepared_request, _ELSEWHERE, elsewhere or getattr(response.request, _ELSEWHERE, False))

    def resolve_redirects(self, *args: Any, yield_requests: bool = False, **kwargs: Any) -> Any:
        """Follow redirects; where they must not be followed, requests would still read the address."""
        return iter(()) if yield_requests else super().resolve_redirects(*args, **kwargs)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where an answer leads; one that cannot be followed is an error.

        Raises:
            BadAnswer: that is not an address, or a form would be lost on the way: a browser turns POST into GET.
        """
        if not resp.is_redirect:
            return None
        location = resp.headers["location"].encode("latin-1").decode("utf-8", "replace")
        where = repr(without_secrets(location)[:200])
        what = ""
        if not is_web_address(_joined(resp.url, location)):
            what = f"the archive redirects to {where}, which is not an address: check base_url"
        elif resp.request.method == "POST" and resp.status_code in (301, 302, 303):
            what = (
                f"the archive redirects a form to {where}, and it would get lost: if you trust that address, set "
                "base_url to its base URL"
            )
        if what:
            resp.close()
            raise BadAnswer(what, status=resp.status_code, arguments=("base_url",))
        resp.close()  # else requests would read its body, however long that is
        return location


class _Response(http.client.HTTPResponse):
    """Reads from the socket in large chunks: the server sends chunks of 8 KB, and the usual buffer is as small.

    Whatever is read, status line and headers too, passes :class:`~nbia_pipeline.archive.bounds.Steady`.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self._steady = Steady(sock.makefile("rb", buffering=0))
        self.fp = io.BufferedReader(self._steady, CHUNK_BYTES)

    def begin(self) -> None:
        """Read the status line and the headers; what follows them may take its time."""
        super().begin()
        self._steady.restart()

    def read(self, amt: int | None = None) -> bytes:
        """Read so many bytes of the body, or all that is left."""
        self._steady.allow(amt or 0)
        return super().read(amt)


_sockets: WeakSet[Any] = WeakSet()


def _register(sock: Any) -> None:
    _sockets.add(sock)
    stopping.expect_running()  # in this order: a socket that comes too late for `_shut_down` is not used


def _shut_down() -> None:
    """Wake the threads that wait for an archive: for them the connection ends."""
    for sock in list(_sockets):
        with suppress(OSError):  # it is closed
            # An SSLSocket would first forget that it is one, while another thread reads from it.
            socket.socket.shutdown(getattr(sock, "socket", sock), socket.SHUT_RDWR)


stopping.when_stopping(_shut_down)


class _HttpPool(urllib3.HTTPConnectionPool):
    class ConnectionCls(urllib3.connection.HTTPConnection):
        response_class = _Response

        def connect(self) -> None:
            super().connect()
            _register(self.sock)


class _HttpsPool(urllib3.HTTPSConnectionPool):
    class ConnectionCls(urllib3.connection.HTTPSConnection):
        response_class = _Response

        def connect(self) -> None:
            super().connect()
            _register(self.sock)


class Adapter(HTTPAdapter):
    """Pools of connections that read in large chunks."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


def explained(e: Exception, base_url: str, *, sending: bool) -> ArchiveError:
    """Return in one sentence what a failure of a request means and what to do.

    Args:
        e: what the layers below raised.
        base_url: of the archive.
        sending: True if there is no answer yet, False if its body was being read.
    """

    def problem(what: str, *arguments: str, retryable: bool = True, overloaded: bool = False) -> ArchiveError:
        return ArchiveUnreachable(what, retryable=retryable, overloaded=overloaded, arguments=arguments)

    cause = _innermost(e)
    text = " ".join(str(cause).split())
    why = without_secrets(f"{type(cause).__name__}: {text}" if text else type(cause).__name__)
    where = _where(e, base_url)
    if isinstance(e, ssl.SSLCertVerificationError) or isinstance(cause, ssl.SSLCertVerificationError):
        remedy = "if your site has its own authority, set ca_bundle to its certificates"
        return problem(f"the certificate of {where} does not verify ({why}): {remedy}", "ca_bundle", retryable=False)
    if isinstance(e, (requests.exceptions.SSLError, urllib3.exceptions.SSLError)):
        what = f"no secure connection to {where} ({why}): check base_url and ca_bundle"
        return problem(what, "base_url", "ca_bundle")
    if isinstance(e, (requests.exceptions.ProxyError, requests.exceptions.InvalidProxyURL)):
        return problem(f"the proxy on the way to {where} does not answer ({why}): check HTTPS_PROXY and NO_PROXY")
    if isinstance(e, (requests.Timeout, urllib3.exceptions.TimeoutError)) or "timed out" in str(e):
        return problem(f"{where} timed out: it may be overloaded, try again later", overloaded=True)
    if isinstance(e, requests.TooManyRedirects):
        return BadAnswer(f"{where} redirects in a circle: check base_url", arguments=("base_url",))
    if sending and type(e) is OSError:  # requests: a file of certificates that is not there
        remedy = "check ca_bundle, REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE"
        return problem(f"no secure connection to {where} ({why}): {remedy}", "ca_bundle", retryable=False)
    of_the_answer = isinstance(cause, urllib3.exceptions.InvalidHeader)
    if sending and not of_the_answer and (isinstance(e, ValueError) or not isinstance(e, _OF_THE_NETWORK)):
        # The request itself: an address, a header or a parameter that cannot be sent. It stays as it is.
        remedy = "check base_url and your proxy (HTTPS_PROXY)"
        return problem(f"the request to {where} cannot be sent ({why}): {remedy}", "base_url", retryable=False)
    return problem(f"no complete answer from {where} ({why}): check base_url and your connection", "base_url")


def _where(e: Exception, base_url: str) -> str:
    """Return the base URL, or the host that it redirects to if that is the one that failed."""
    request: Any = getattr(e, "request", None)
    if not getattr(request, _ELSEWHERE, False):
        return base_url
    there = urlsplit(request.url)
    return f"{there.scheme}://{there.netloc.rpartition('@')[2]}, where {base_url} redirects,"


def _joined(base: str, location: str) -> str | None:
    """Return the absolute address of a Location, None if there is none."""
    try:
        return urljoin(base, location)
    except ValueError:
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
