"""The control interface as a web application: one POST per operation, arguments and results as JSON.

It listens on a port of its own, on the loopback interface only, so that the archive's port serves only what
the real server does.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nbia_pipeline.embedded.control.client import PATH, Control
from nbia_pipeline.embedded.control.fault import Fault, FaultError
from nbia_pipeline.embedded.control.operations import OperationError, Operations

OPERATIONS = [name for name in vars(Control) if not name.startswith("_")]
"""Names of the operations: the methods of the client."""


def control_app(operations: Operations) -> Starlette:
    """Return the web application of the control interface to the operations of an archive."""
    return Starlette(
        routes=[
            Route(PATH, _list, methods=["GET"]),
            *(Route(f"{PATH}/{name}", _responder(getattr(operations, name)), methods=["POST"]) for name in OPERATIONS),
        ]
    )


async def _list(request: Request) -> Response:
    return _json({"operations": OPERATIONS})


def _responder(operation: Callable[..., Any]) -> Callable[[Request], Any]:
    async def respond(request: Request) -> Response:
        # Browsers send this header with the requests of web pages, which must not control the archive.
        if "origin" in request.headers:
            return _json({"error": "the control interface is not for web pages"}, 403)
        try:
            positional, named = _arguments(await request.body())
            result = await run_in_threadpool(operation, *positional, **named)
        # A TypeError comes from wrong names of arguments.
        except (OperationError, FaultError, TypeError, ValueError) as error:
            return _json({"error": f"{operation.__name__}: {error}"}, 400)
        return _json({"result": result})

    return respond


def _arguments(body: bytes) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of an operation; faults become objects."""
    given = json.loads(body or b"{}")
    if not isinstance(given, Mapping):
        raise OperationError("the arguments must be a JSON object")
    named = dict(given)
    return [Fault(**fault) for fault in named.pop("faults", ())], named


def _json(content: object, status: int = 200) -> Response:
    body = json.dumps(content, default=_plain, ensure_ascii=False).encode()
    return Response(body, status, media_type="application/json")


def _plain(value: object) -> str:
    if isinstance(value, dt.date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
