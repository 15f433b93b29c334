"""Connections to an archive: pools, redirects, and any error of the layers below as one of ours."""

from __future__ import annotations

import http.client
import io
import re
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
                f"the archive redirects a form to {where}, which would drop its contents: if you trust that address, "
                "set base_url to its base URL"
            )
        if what:
            resp.close()
            raise BadAnswer(what, status=resp.status_code, arguments=("base_url",))
        resp.close()  # else requests would read its body, however long that is
        return location


# The end of a chunk, and the size of the next one; what may follow a semicolon means nothing here.
_SIZE = re.compile(rb"\r\n[ \t]*([0-9a-fA-F]{1,16})[ \t]*(?:;.*)?\r?\n")
_LONGEST_LINE = 1 << 16


class Chunked:
    """The contents of a body in chunked encoding, decoded in one buffer and copied once.

    The server's chunks have 8 KB, and ``http.client`` makes a dozen calls for each.

    Args:
        steady: reads from the connection.
        begun: what was already read of the body.
    """

    def __init__(self, steady: Steady, begun: bytes) -> None:
        self._steady = steady
        self._buffer = bytearray(b"\r\n" + begun)  # as if a chunk had ended
        self._view = memoryview(self._buffer)
        self._at, self._end = 0, len(self._buffer)
        self._left = 0  # of a chunk
        self._head, self._size = b"", 0  # how the last one began, and its size: most are like it
        self._last = self.ended = False

    def read(self, most: int) -> bytes:
        """Return so many bytes of contents, fewer only at the end.

        Raises:
            http.client.HTTPException: the body ends early, or is not encoded so.
        """
        self._have_room(most + 2 * _LONGEST_LINE)
        pieces = []
        while most and not self._last:
            pieces.append(self._some(most))
            most -= len(pieces[-1])
        if self._last and not self.ended:
            while self._line().strip():  # trailers
                pass
            self.ended = True
        return b"".join(pieces)

    def _some(self, most: int) -> bytes:
        """Return so many bytes of contents, or as many as the buffer takes."""
        self._compact()
        parts: list[memoryview] = []
        while (most := most - self._take(parts, most)) and not self._last and self._end < len(self._buffer):
            if not self._fill(most):
                raise http.client.IncompleteRead(b"".join(parts))
        return b"".join(parts)

    def _take(self, parts: list[memoryview], most: int) -> int:
        """Add what the buffer holds of the contents, at most so many bytes, and return how many."""
        buffer, view, at, end, left, taken = self._buffer, self._view, self._at, self._end, self._left, 0
        head, step = len(self._head), len(self._head) + self._size
        while taken < most:
            while head and not left and at + step <= end and taken + step <= most and buffer.startswith(self._head, at):
                parts.append(view[at + head : at + step])
                at, taken = at + step, taken + self._size
            if not left:
                stop = buffer.find(b"\n", at + 2, end) + 1
                if not stop:
                    _expect_no_longer_line(end - at)
                    break
                size = _SIZE.fullmatch(buffer, at, stop)
                if size is None:
                    raise http.client.HTTPException("a chunk does not end, or its size is no number")
                left = int(size[1], 16)
                self._head, self._size = bytes(view[at:stop]), left
                head, step, at, self._last = stop - at, stop - at + left, stop, not left
            here = min(left, end - at, most - taken)
            if not here:
                break
            parts.append(view[at : at + here])
            at, left, taken = at + here, left - here, taken + here
        self._at, self._left = at, left
        return taken

    def _line(self) -> bytes:
        """Return the next line; a body that ends there lacks nothing of its contents."""
        while not (stop := self._buffer.find(b"\n", self._at, self._end) + 1):
            _expect_no_longer_line(self._end - self._at)
            self._compact()
            if not self._fill(_LONGEST_LINE):
                return b""
        line = bytes(self._view[self._at : stop])
        self._at = stop
        return line

    def _fill(self, contents: int) -> bool:
        """Read once, up to so many bytes and what is around them; return whether there was anything."""
        count = self._steady.readinto(self._view[self._end : self._end + contents + contents // 64 + 64])
        self._end += count
        return count > 0

    def _have_room(self, size: int) -> None:
        """Have a buffer of so many bytes at least."""
        if size > len(self._buffer):
            before, self._buffer = self._view, bytearray(size)
            self._view = memoryview(self._buffer)
            self._view[: len(before)] = before

    def _compact(self) -> None:
        """Move what is left to the front of the buffer, of which nothing may be in use."""
        left = self._end - self._at
        self._view[:left] = self._view[self._at : self._end]
        self._at, self._end = 0, left


def _expect_no_longer_line(length: int) -> None:
    if length > _LONGEST_LINE:
        raise http.client.LineTooLong("line between chunks")


class _Response(http.client.HTTPResponse):
    """Reads from the socket in large chunks: the server sends chunks of 8 KB, and the usual buffer is as small.

    Whatever is read, status line and headers too, passes :class:`~nbia_pipeline.archive.bounds.Steady`. Bodies are read
    with :meth:`read` alone.
    """

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self._steady = Steady(sock.makefile("rb", buffering=0))
        self.fp = io.BufferedReader(self._steady, CHUNK_BYTES)
        self._chunked: Chunked | None = None

    def begin(self) -> None:
        """Read the status line and the headers; what follows them may take its time."""
        super().begin()
        self._steady.restart()

    def read(self, amt: int | None = None) -> bytes:
        """Read so many bytes of the body, or all that is left."""
        self._steady.allow(amt or 0)
        if amt is None or not self.chunked or self.fp is None or self._method == "HEAD":  # type: ignore[attr-defined]
            return super().read(amt)
        if self._chunked is None:
            self._chunked = Chunked(self._steady, self.fp.read1(CHUNK_BYTES))
        contents = self._chunked.read(amt)
        if self._chunked.ended:
            self._close_conn()  # type: ignore[attr-defined]
        return contents


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
