"""Run an embedded archive in this process until it is told to stop or nobody needs it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.server import PortRouter, control_app
from nbia_pipeline.embedded.server.app import API, create_app

_LOG = logging.getLogger(__name__)

FIRST_CONTACT_SECONDS = 30.0
"""How long a server with a lifeline waits for its first client."""

GREETING = b"!"
"""What a lifeline says once the connection counts."""

_WATCH_SECONDS = 0.2
_GOODBYE_SECONDS = 5


class Lifeline:
    """A port on which every client holds one connection; when the last one ends, so does the server.

    Attributes:
        port: TCP port on the loopback interface, known after :meth:`open`.
    """

    def __init__(self, linger: float, farewell: Callable[[], None]) -> None:
        """Prepare a lifeline.

        Args:
            linger: seconds without any connection after which the server stops.
            farewell: called once, before the port closes.
        """
        self.port = 0
        self._linger = linger
        self._farewell = farewell
        self._connections = 0
        self._deadline = 0.0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._hold, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._deadline = time.monotonic() + max(FIRST_CONTACT_SECONDS, self._linger)

    async def until_unneeded(self) -> None:
        """Return when there has been no connection for long enough; then none is accepted any more."""
        while self._connections or time.monotonic() < self._deadline:
            await asyncio.sleep(_WATCH_SECONDS)
        # No await between the last look and the closing: nobody can be greeted in between.
        self._farewell()
        if self._server is not None:
            self._server.close()

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Count one connection until its process closes it or dies."""
        if self._server is None or not self._server.is_serving():
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


def serve(
    catalog: Catalog,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    ready: Callable[[str], None] | None = None,
    lifeline: bool = False,
    linger: float = 10.0,
    lifeline_ready: Callable[[str, int], None] | None = None,
    farewell: Callable[[], None] | None = None,
    control_port: int | None = None,
    control_ready: Callable[[str], None] | None = None,
    **options: Any,
) -> None:
    """Serve `catalogue` over HTTP; returns when the server has stopped.

    Args:
        catalogue: what to serve.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        ready: called with the base URL, like ``http://127.0.0.1:8080/nbia-api``, once requests are answered.
        lifeline: stop when no client holds a lifeline any more.
        linger: seconds without a lifeline after which to stop.
        lifeline_ready: called with the base URL and the lifeline's port, after `ready`.
        farewell: called before a server that nobody needs stops.
        control_port: TCP port of the control interface on the loopback interface, 0 for a free one; None: there is
            no control interface.
        control_ready: called with the address of the control interface, before `ready`.
        options: of :func:`~nbia_pipeline.embedded.server.app.create_app`.

    Raises:
        OSError: if a port cannot be had.
    """
    app = create_app(catalog, **options)
    listener = _listen(host, port)
    control = None if control_port is None else _control_listener(listener, control_port)
    url = f"http://{_address(listener)}{API}"
    line = Lifeline(linger, farewell or _nothing) if lifeline else None

    def started() -> None:
        if control is not None and control_ready is not None:
            control_ready(f"http://{_address(control)}")
        if ready is not None:
            ready(url)
        if line is not None and lifeline_ready is not None:
            lifeline_ready(url, line.port)

    with contextlib.ExitStack() as open_sockets:
        listeners = [open_sockets.enter_context(sock) for sock in (listener, control) if sock is not None]
        asyncio.run(_serve(with_control(app, control), listeners, line, started))


def with_control(app: Starlette, control: socket.socket | None) -> ASGIApp:
    """Return an application that answers as the control interface where requests come in by a socket.

    Args:
        app: the application of an archive.
        control: the socket of the control interface; None: there is none.
    """
    if control is None:
        return app
    operations = app.state.archive.control
    return PortRouter(app, control_app(operations), control.getsockname()[1])


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
    app: ASGIApp, listeners: list[socket.socket], line: Lifeline | None, started: Callable[[], None]
) -> None:
    server = make_server(app)
    if line is not None:
        await line.open()
    running = asyncio.create_task(server.serve(sockets=listeners))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if server.started:
        started()
    if line is not None:
        watch = asyncio.create_task(line.until_unneeded())
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


def _control_listener(archive: socket.socket, port: int) -> socket.socket:
    """Return a socket of the loopback interface; the archive's is closed if it cannot be had."""
    try:
        return _listen("127.0.0.1", port)
    except OSError:
        archive.close()
        raise


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _nothing() -> None:
    return None
