"""Run an embedded archive in this process until it is stopped or no longer needed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.server import USER, control_app
from nbia_pipeline.embedded.server.app import API, create_app

_LOG = logging.getLogger(__name__)

FIRST_CONTACT_SECONDS = 30.0
"""How long a server with a lifeline waits for its first client."""

GREETING = b"!"
"""Sent over a lifeline once the connection is counted."""

_WATCH_SECONDS = 0.2
_GOODBYE_SECONDS = 5


class Lifeline:
    """A port of the loopback interface to which every client keeps one connection; the server ends with the last."""

    def __init__(self, linger: float, farewell: Callable[[], None]) -> None:
        """Stop after `linger` seconds without any connection; `farewell` is called before the port closes."""
        self.port = 0
        self._linger = linger
        self._farewell = farewell
        self._connections = 0
        self._deadline = 0.0
        self._server: asyncio.Server

    async def open(self) -> None:
        """Start to listen."""
        self._server = await asyncio.start_server(self._hold, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._deadline = time.monotonic() + max(FIRST_CONTACT_SECONDS, self._linger)

    async def until_unneeded(self) -> None:
        """Return when there has been no connection for `linger` seconds; from then on none is accepted."""
        while self._connections or time.monotonic() < self._deadline:
            await asyncio.sleep(_WATCH_SECONDS)
        # No await between the check and the closing: no connection can be accepted in between.
        self._farewell()
        self._server.close()

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Count one connection until its process closes it or dies."""
        if not self._server.is_serving():
            writer.close()
            return
        self._connections += 1
        try:
            writer.write(GREETING)
            while await reader.read(1024):
                pass
        except ConnectionError:
            _LOG.debug("a client went away without closing its lifeline")
        finally:
            self._connections -= 1
            self._deadline = time.monotonic() + self._linger
            writer.close()


@dataclass(frozen=True)
class Addresses:
    """Where a running server is reached: base URL of the archive, and control interface and lifeline or None.

    The address of the control interface contains its token, as that of a user and password: who has it, has control.
    """

    url: str
    control_url: str | None
    lifeline_port: int | None


def serve(
    catalog: Catalog,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    ready: Callable[[Addresses], None],
    linger: float | None = None,
    farewell: Callable[[], None] = lambda: None,
    control_port: int | None = None,
    **options: Any,
) -> None:
    """Serve `catalog` over HTTP; returns when the server has stopped.

    Args:
        catalog: what to serve.
        host: address to listen on.
        port: TCP port; 0 picks a free one.
        ready: called once requests are answered.
        linger: seconds after which to stop when no client is connected to the lifeline; None: there is no lifeline.
        farewell: called before a server that nobody needs stops.
        control_port: TCP port of the control interface on the loopback interface, 0 for a free one; None: there is
            no control interface.
        options: of :func:`~nbia_pipeline.embedded.server.app.create_app`.

    Raises:
        OSError: a port is not available.
    """
    app = create_app(catalog, **options)
    lifeline = None if linger is None else Lifeline(linger, farewell)
    with contextlib.ExitStack() as open_sockets:
        listener = open_sockets.enter_context(_listen(host, port))
        control = None if control_port is None else open_sockets.enter_context(_listen("127.0.0.1", control_port))

        token = secrets.token_urlsafe(24)

        def started() -> None:
            control_url = None if control is None else with_token(_url(control), token)
            ready(Addresses(f"{_url(listener)}{API}", control_url, None if lifeline is None else lifeline.port))

        if control is None:
            asyncio.run(_serve(app, [listener], lifeline, started))
        else:
            asyncio.run(_serve(with_control(app, control, token), [listener, control], lifeline, started))


def with_token(url: str, token: str) -> str:
    """Return the address of a control interface with its token: clients send it as they send an account."""
    return url.replace("://", f"://{USER}:{token}@", 1)


def with_control(app: Starlette, control: socket.socket, token: str) -> ASGIApp:
    """Return an application that answers as the control interface, for those with `token`, on the port of a socket."""
    operations, port = control_app(app.state.archive.control, token), control.getsockname()[1]

    async def by_port(scope: Scope, receive: Receive, send: Send) -> None:
        controls = scope["type"] == "http" and scope["server"][1] == port
        await (operations if controls else app)(scope, receive, send)

    return by_port


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a uvicorn server for `app`, without access log."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=_GOODBYE_SECONDS,
            # The real server names neither of these.
            server_header=False,
            ws="none",
        )
    )


async def _serve(
    app: ASGIApp, listeners: list[socket.socket], lifeline: Lifeline | None, started: Callable[[], None]
) -> None:
    server = make_server(app)
    if lifeline is not None:
        await lifeline.open()
    running = asyncio.create_task(server.serve(sockets=listeners))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if server.started:
        started()
    if lifeline is not None:
        watch = asyncio.create_task(lifeline.until_unneeded())
        await asyncio.wait([running, watch], return_when=asyncio.FIRST_COMPLETED)
        watch.cancel()
        server.should_exit = True
    await running


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # asyncio sets it only on sockets that name their protocol; without it every small answer waits for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
