"""Faults of the embedded archive in the words of tests, and what any application was asked.

There is one injector, the embedded archive's own; :class:`Faults` puts it around other applications, too.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from nbia_pipeline.embedded.control.fault import Fault as Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.control.traffic import Exchange, Traffic
from nbia_pipeline.embedded.server.app import API
from nbia_pipeline.embedded.server.fault_injection import FaultedRequest, FaultInjection

NO_SUCH_ENDPOINT = b"Server was not able to process your request\nHTTP 404 Not Found"
NULL = b"Server was not able to process your request\nnull"


class Faults:
    """What goes wrong at an application, and what it was asked. It is an application itself, to be served.

    Attributes:
        app: the application with its injector.
        traffic: the injector's plan and record.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Use the injector of an embedded archive, or put one around any other application."""
        archive = getattr(getattr(app, "state", None), "archive", None)
        self.traffic: Traffic = Traffic() if archive is None else archive.traffic
        # Only kinds that change an archive use its control.
        self.app = app if archive is not None else FaultInjection(app, API, self.traffic, cast(Operations, None))

    @property
    def seen(self) -> list[Exchange]:
        """The requests in order."""
        return self.traffic.exchanges()

    def inject(self, endpoint: str, *faults: Fault, times: int = 1) -> None:
        """Let `faults` happen to the next calls of `endpoint`, one after the other, `times` over."""
        self.traffic.add(replace(fault, endpoint=endpoint, times=1) for fault in faults * times)

    def reset(self) -> None:
        """Forget what was seen and what was planned."""
        self.traffic.reset()

    def count(self, endpoint: str) -> int:
        """Return how often `endpoint` was called."""
        return len(self.calls(endpoint))

    def calls(self, endpoint: str) -> list[Exchange]:
        """Return the calls of `endpoint`."""
        return [r for r in self.seen if r.endpoint == endpoint]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def always(fault: Fault) -> Faults:
    """Return an application that does nothing else."""

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] != "http"

    faults = Faults(nothing)
    faults.traffic.add([fault])
    return faults


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Fault:
    """Answer with `status` and `body`; an underscore in the name of a header stands for a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault("answer", status=status, body=body, headers=named)


def html(page: str = "<!DOCTYPE html><html><title>Sign in</title></html>") -> Fault:
    """Answer 200 with a page, as a proxy or a login form does."""
    return answer(200, page.encode(), content_type="text/html")


def cut(after: int) -> Fault:
    """Send the first bytes of the true answer, then drop the connection."""
    return Fault("cut", at=after)


def closed_early(after: int) -> Fault:
    """Send the first bytes of the true answer and end as if that were all."""
    return Fault("end_early", at=after)


def custom(act: Callable[[FaultedRequest], Awaitable[None]]) -> Fault:
    """Do what a test wants."""
    return Fault("custom", act=act)


def pass_on() -> Fault:
    """Answer truly."""
    return custom(FaultedRequest.pass_on)


def changed(change: Callable[[bytes], bytes]) -> Fault:
    """Answer truly but for a changed body."""

    async def act(request: FaultedRequest) -> None:
        start, body = await request.true_answer()
        await request.answer(start, change(body))

    return custom(act)


def edited(edit: Callable[[list[dict[str, Any]]], object]) -> Fault:
    """Answer truly but for the rows of the JSON that `edit` changes."""

    def change(body: bytes) -> bytes:
        rows = json.loads(body)
        edit(rows)
        return json.dumps(rows).encode()

    return changed(change)


def echo_headers(prefix: str = "<html>", status: int = 200) -> Fault:
    """Answer with the headers of the request, as a debugging proxy does."""

    async def act(request: FaultedRequest) -> None:
        shown = prefix + request.exchange.headers.get("authorization", "")
        await request.respond(status, shown.encode(), {})

    return custom(act)


def silence(first: bytes | None = None) -> Fault:
    """Send nothing, or only `first`, until the client gives up."""

    async def act(request: FaultedRequest) -> None:
        if first is not None:
            start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
            await request.answer(start, first, more=True)
        await request.disconnected()

    return custom(act)


def without_query() -> Fault:
    """Answer as if no filter had been sent, as the server does with names that it does not know."""

    async def act(request: FaultedRequest) -> None:
        await replace(request, scope={**request.scope, "query_string": b""}).pass_on()

    return custom(act)
