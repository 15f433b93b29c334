"""The outermost layer of an embedded archive: it records requests, slows answers down, and injects faults."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nbia_pipeline.embedded.api.downloads import access_refused
from nbia_pipeline.embedded.api.endpoint import UNABLE
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.line import Pace
from nbia_pipeline.embedded.control.operations import OperationError, Operations
from nbia_pipeline.embedded.control.traffic import Exchange, Traffic
from nbia_pipeline.embedded.server.bad_zips import ZIP_FAULTS, wrong_zip

HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in.</body></html>"
GARBAGE = b'[{"SeriesInstanceUID":"1.2.3",,'

CHUNK_BYTES = 8192
"""Bytes of a chunk of a streamed answer. Server: the size of its container's buffer."""


@dataclass(frozen=True)
class FaultInjection:
    """ASGI middleware around an application that answers correctly; the record leaves out the path `base`."""

    app: ASGIApp
    base: str
    traffic: Traffic
    control: Operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or apply the fault that is planned for it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].removeprefix(self.base)
        exchange = Exchange(scope["method"], path, _first(scope["query_string"]), headers=headers)
        if not self.traffic.quiet:
            receive, form = await _replayed(receive)
            exchange.form = _first(form)
        fault = self.traffic.strike(exchange)
        self.traffic.record(exchange)
        if self.traffic.latency:
            await asyncio.sleep(self.traffic.latency)
        throttled = _ThrottledSend(send, exchange, self.traffic.pace(time.monotonic()))
        try:
            if fault is None:
                await self.app(scope, receive, throttled)
            else:
                request = FaultedRequest(self.app, scope, receive, throttled, fault, exchange, self.control)
                await _FAULTS[fault.kind](request)
        finally:
            exchange.seconds = time.monotonic() - exchange.began


@dataclass(frozen=True)
class _ThrottledSend:
    """Sends an answer, counts its bytes and keeps to the pace."""

    send: Send
    exchange: Exchange
    pace: Pace | None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.exchange.status = message["status"]
            await self.send(message)
            return
        body = message.get("body", b"")
        if self.pace and body:
            size = self.pace.slice_bytes
            for start in range(0, len(body), size):
                piece = body[start : start + size]
                now = time.monotonic()
                await asyncio.sleep(max(0.0, self.pace.sent(len(piece), now) - now))
                await self._pass({**message, "body": piece, "more_body": True})
            message = {**message, "body": b""}
        await self._pass(message)

    async def _pass(self, message: Message) -> None:
        body = message.get("body", b"")
        self.exchange.sent += len(body)
        if len(body) <= CHUNK_BYTES or not message.get("more_body"):
            await self.send(message)
            return
        # Server: streamed answers come in chunks of this size.
        for start in range(0, len(body), CHUNK_BYTES):
            await self.send({**message, "body": body[start : start + CHUNK_BYTES]})


@dataclass(frozen=True)
class FaultedRequest:
    """A request that a fault strikes, as ASGI passes it; `exchange` is its record, `control` changes the archive."""

    app: ASGIApp
    scope: Scope
    receive: Receive
    send: _ThrottledSend
    fault: Fault
    exchange: Exchange
    control: Operations

    async def pass_on(self) -> None:
        """Let the archive answer."""
        await self.app(self.scope, self.receive, self.send)

    async def true_answer(self) -> tuple[Message, bytes]:
        """Return the start and the complete body of the correct answer."""
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)

        await self.app(self.scope, self.receive, keep)
        return sent[0], b"".join(message.get("body", b"") for message in sent[1:])

    async def answer(self, start: Message, body: bytes, more: bool = False) -> None:
        """Send a start and a body; a Content-Length is adapted."""
        headers = [(n, v) for n, v in start["headers"] if n != b"content-length"]
        if len(headers) < len(start["headers"]) and not more:
            headers.append((b"content-length", str(len(body)).encode()))
        await self.send({**start, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def respond(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Answer with something that the archive would not send."""
        named = [(name.encode(), value.encode()) for name, value in {**headers, "content-length": ""}.items()]
        await self.answer({"type": "http.response.start", "status": status, "headers": named}, body)

    async def hang_up(self, *, at_once: bool) -> None:
        """End the connection: with a reset, or after all that was sent.

        Where it is not accessible, the server does so when the application returns.
        """
        # uvicorn's `send` is a method of the object that holds the connection; ASGI itself has no way to it.
        transport = getattr(getattr(self.send.send, "__self__", None), "transport", None)
        if transport is None:
            return
        if at_once:
            # By a second handle, because event loops hide the first one; closing with a linger of 0 seconds sends it.
            with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as handle:
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()
        await self.disconnected()

    async def disconnected(self) -> None:
        """Wait until the client has closed the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            await asyncio.sleep(0)

    def part(self, body: bytes) -> int:
        """Return where in a body the fault strikes."""
        at = int(len(body) * self.fault.fraction) if self.fault.at is None else self.fault.at
        return min(at, max(len(body) - 1, 0))


_Act = Callable[[FaultedRequest], Awaitable[None]]


async def _status(request: FaultedRequest) -> None:
    status = request.fault.status
    headers = {} if request.fault.retry_after is None else {"retry-after": request.fault.retry_after}
    if status == HTTPStatus.UNAUTHORIZED:
        await request.respond(status, b"", headers)
    elif status == HTTPStatus.INTERNAL_SERVER_ERROR:
        await request.respond(status, f"{UNABLE}\nnull".encode(), {**headers, "content-type": "text/plain"})
    elif status == HTTPStatus.BAD_REQUEST:  # the server's own: a sentence that is labeled as JSON
        uid = request.exchange.query.get("SeriesInstanceUID", "")
        await request.respond(status, access_refused(uid).encode(), {**headers, "content-type": "application/json"})
    else:
        # A proxy in front of the server answers with these, in HTML.
        page = f"<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>"
        await request.respond(status, page.encode(), {**headers, "content-type": "text/html"})


async def _missing(request: FaultedRequest) -> None:
    await request.respond(500, f"{UNABLE}\nHTTP 404 Not Found".encode(), {"content-type": "text/plain"})


async def _answer(request: FaultedRequest) -> None:
    body = request.fault.body
    await request.respond(request.fault.status, body.encode() if isinstance(body, str) else body, request.fault.headers)


async def _custom(request: FaultedRequest) -> None:
    assert request.fault.act is not None  # noqa: S101 - a fault of this kind has one
    await request.fault.act(request)


async def _cut(request: FaultedRequest) -> None:
    start, body = await request.true_answer()
    await request.answer(start, body[: request.part(body)], more=True)
    await request.hang_up(at_once=False)


async def _stall(request: FaultedRequest) -> None:
    start, body = await request.true_answer()
    part = request.part(body)
    await request.answer(start, body[:part], more=True)
    if request.fault.seconds is None:
        await request.disconnected()
        return
    await asyncio.sleep(request.fault.seconds)
    await request.send({"type": "http.response.body", "body": body[part:]})


def _changed(change: Callable[[FaultedRequest, bytes], bytes]) -> _Act:
    """Make a fault that answers truly but for a changed body; the change runs in a thread."""

    async def fault(request: FaultedRequest) -> None:
        start, body = await request.true_answer()
        await request.answer(start, await run_in_threadpool(change, request, body))

    return fault


def _flipped(request: FaultedRequest, body: bytes) -> bytes:
    if not body:
        return body
    part = request.part(body)
    return body[:part] + bytes([body[part] ^ 1]) + body[part + 1 :]


def _before(deed: Callable[[FaultedRequest], Any]) -> _Act:
    """Make a fault that does something to the archive and then answers truly."""

    async def fault(request: FaultedRequest) -> None:
        # What is asked for by a wrong UID cannot be hidden; the answer says so itself.
        with contextlib.suppress(OperationError):
            await run_in_threadpool(deed, request)
        await request.pass_on()

    return fault


def _series(request: FaultedRequest) -> str:
    asked = request.exchange.query
    return request.fault.series or asked.get("SeriesInstanceUID") or asked.get("SeriesUID") or ""


_FAULTS: dict[str, _Act] = {
    "status": _status,
    "missing": _missing,
    "answer": _answer,
    "html": lambda request: request.respond(200, HTML, {"content-type": "text/html"}),
    "empty": lambda request: request.respond(200, b"", {}),
    "garbage": lambda request: request.respond(200, GARBAGE, {"content-type": "application/json"}),
    "drop": lambda request: request.hang_up(at_once=True),
    "cut": _cut,
    "stall": _stall,
    "flip": _changed(_flipped),
    "end_early": _changed(lambda request, body: body[: request.part(body)]),
    **dict.fromkeys(ZIP_FAULTS, _changed(lambda request, body: wrong_zip(body, request.fault))),
    "expire_tokens": _before(lambda request: request.control.expire_tokens()),
    "hide": _before(lambda request: request.control.hide(_series(request))),
    "replace": _before(lambda request: request.control.replace(_series(request), hidden=False)),
    "custom": _custom,
}


def _first(fields: bytes) -> dict[str, str]:
    parsed = parse_qs(fields.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in parsed.items()}


async def _replayed(receive: Receive) -> tuple[Receive, bytes]:
    """Read the body of a request; return it, and a `receive` that returns it again."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again, body
