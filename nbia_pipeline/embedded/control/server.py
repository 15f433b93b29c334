"""The control interface as a web application: one POST per operation, arguments and results as JSON.

It listens on a port of its own, on the loopback interface only, so that the archive's port serves only what
the real server does. Other users of the machine, and pages in a browser, can reach it there: so it takes only requests
that carry the token of its address, that name this machine, and that no page sends.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nbia_pipeline.embedded.control.client import PATH, Control, plain
from nbia_pipeline.embedded.control.fault import Fault, FaultError
from nbia_pipeline.embedded.control.operations import OperationError, Operations

OPERATIONS = [name for name in vars(Control) if not name.startswith("_")]
"""Names of the operations: the methods of the client."""


USER = "control"
"""The name before the token in the address: ``http://control:TOKEN@127.0.0.1:8043``."""


def control_app(operations: Operations, token: str) -> Starlette:
    """Return the web application of the control interface to the operations of an archive, for those with a token."""
    return Starlette(
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=partial(_guarded, token))],
        routes=[
            Route(PATH, _list, methods=["GET"]),
            *(Route(f"{PATH}/{name}", _responder(getattr(operations, name)), methods=["POST"]) for name in OPERATIONS),
        ],
    )


async def _guarded(token: str, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    refusal = _refusal(token, request)
    return await answer(request) if refusal is None else _json({"error": refusal}, 403)


def _refusal(token: str, request: Request) -> str | None:
    """Return why a request is refused, None if it is not."""
    # Browsers send this header with the requests of web pages, which must not control the archive.
    if "origin" in request.headers:
        return "the control interface is not for web pages"
    # A page whose own name was made to lead here has the same origin; but its name gives it away.
    if _host(request.headers.get("host", "")) not in ("127.0.0.1", "localhost"):
        return "the control interface is for this machine only: use the address that the archive printed"
    expected = "Basic " + base64.b64encode(f"{USER}:{token}".encode()).decode()
    if not secrets.compare_digest(request.headers.get("authorization", "").encode(), expected.encode()):
        return "the token is missing or wrong: use the address that the archive printed, with the token in it"
    return None


def _host(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


async def _list(request: Request) -> Response:
    return _json({"operations": OPERATIONS})


def _responder(operation: Callable[..., Any]) -> Callable[[Request], Any]:
    async def respond(request: Request) -> Response:
        try:
            named = json.loads(await request.body() or b"{}")
            if not isinstance(named, dict):
                raise OperationError("the arguments must be a JSON object")
            faults = [Fault(**fault) for fault in named.pop("faults", ())]
            result = await run_in_threadpool(operation, *faults, **named)
        # A TypeError comes from wrong names of arguments.
        except (OperationError, FaultError, TypeError, ValueError) as error:
            return _json({"error": f"{operation.__name__}: {error}"}, 400)
        return _json({"result": result})

    return respond


def _json(content: object, status: int = 200) -> Response:
    body = json.dumps(content, default=plain, ensure_ascii=False).encode()
    return Response(body, status, media_type="application/json")
