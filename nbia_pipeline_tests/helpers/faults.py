"""An embedded archive that misbehaves on purpose, over real HTTP, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Fault = Callable[[ASGIApp, Scope, Receive, Send], Awaitable[None]]
"""What happens instead of the answer; it may ask the archive that stands behind."""

PREFIX = "/nbia-api"
NO_SUCH_ENDPOINT = b"Server was not able to process your request\nHTTP 404 Not Found"
NULL = b"Server was not able to process your request\nnull"


@dataclass(frozen=True)
class Request:
    """What the archive was asked.

    Attributes:
        method: GET or POST.
        path: path below the base URL.
        query: first value of each parameter.
        headers: by lower-case name.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def endpoint(self) -> str:
        """Last part of the path."""
        return self.path.rsplit("/", 1)[-1]


@dataclass
class Faults:
    """Middleware: counts every request and, where told to, does something else than answer it.

    Attributes:
        app: the archive behind.
        seen: the requests in order.
    """

    app: ASGIApp
    seen: list[Request] = field(default_factory=list)
    _planned: dict[str, list[Fault]] = field(default_factory=dict)

    def inject(self, endpoint: str, *faults: Fault, times: int = 1) -> None:
        """Let `faults` happen to the next calls of `endpoint`, one after the other, `times` over."""
        self._planned.setdefault(endpoint, []).extend(faults * times)

    def reset(self) -> None:
        """Forget what was seen and what was planned."""
        self.seen.clear()
        self._planned.clear()

    def count(self, endpoint: str) -> int:
        """Return how often `endpoint` was called."""
        return len(self.calls(endpoint))

    def calls(self, endpoint: str) -> list[Request]:
        """Return the calls of `endpoint`."""
        return [r for r in self.seen if r.endpoint == endpoint]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _request(scope)
        self.seen.append(request)
        planned = self._planned.get(request.endpoint)
        if planned:
            await planned.pop(0)(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _request(scope: Scope) -> Request:
    query = parse_qs(scope["query_string"].decode(), keep_blank_values=True)
    return Request(
        scope["method"],
        scope["path"].removeprefix(PREFIX),
        {name: values[0] for name, values in query.items()},
        {name.decode().lower(): value.decode("latin1") for name, value in scope["headers"]},
    )


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Fault:
    """Answer with `status` and `body`; an underscore in the name of a header stands for a hyphen."""

    async def fault(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await _read_form(receive)
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        named.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": named})
        await send({"type": "http.response.body", "body": body})

    return fault


def html(page: str = "<!DOCTYPE html><html><title>Sign in</title></html>") -> Fault:
    """Answer 200 with a page, as a proxy or a login form does."""
    return answer(200, page.encode(), content_type="text/html")


def echo_headers(prefix: str = "<html>", status: int = 200) -> Fault:
    """Answer with the headers of the request, as a debugging proxy does."""

    async def fault(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        shown = prefix + " ".join(value.decode() for name, value in scope["headers"] if name == b"authorization")
        await answer(status, shown.encode())(app, scope, receive, send)

    return fault


def cut(after: int) -> Fault:
    """Send the first bytes of the true answer as a chunked stream, then drop the connection."""

    async def fault(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        start, body = await true_answer(app, scope, receive)
        assert len(body) > after, "the answer is too short to be cut there"
        headers = [(n, v) for n, v in start["headers"] if n != b"content-length"]
        await send({**start, "headers": headers})
        # uvicorn drops the connection of an application that returns before its answer has ended.
        await send({"type": "http.response.body", "body": body[:after], "more_body": True})

    return fault


def closed_early(after: int) -> Fault:
    """Send the first bytes of the true answer and end the stream as if that were all."""

    async def fault(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        start, body = await true_answer(app, scope, receive)
        assert len(body) > after, "the answer is too short to be cut there"
        headers = [(n, v) for n, v in start["headers"] if n != b"content-length"]
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body[:after]})

    return fault


def silence(first: bytes | None = None) -> Fault:
    """Say nothing, or only `first`, until the client has had enough."""

    async def fault(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if first is not None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": first, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            await asyncio.sleep(0)

    return fault


def without_query() -> Fault:
    """Answer as if no filter had been sent, as the server does with names that it does not know."""

    async def fault(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "query_string": b""}, receive, send)

    return fault


def after(deed: Callable[[], None]) -> Fault:
    """Do something on the server, then answer truly."""

    async def fault(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        deed()
        await app(scope, receive, send)

    return fault


async def _read_form(receive: Receive) -> None:
    """Take the body of the request, so that the connection can be used again."""
    while (await receive()).get("more_body"):
        pass


async def true_answer(app: ASGIApp, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
    sent: list[Message] = []

    async def keep(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, keep)
    return sent[0], b"".join(message.get("body", b"") for message in sent[1:])


def always(fault: Fault) -> ASGIApp:
    """Return an application that does nothing else."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await fault(app, scope, receive, send)

    return app
