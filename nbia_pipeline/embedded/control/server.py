"""The control interface as a web application: one POST per operation, arguments and results as JSON.

It listens on a port of its own, on the loopback interface only, so that the archive's port serves only what
the real server does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nbia_pipeline.embedded.control.client import PATH, Control, plain
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
