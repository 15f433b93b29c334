"""The embedded archive as a web application: routes, identity, formats, errors.

It answers as the real NBIA server does, oddities included; the endpoints are those of
:mod:`nbia_pipeline.embedded.api.endpoints`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from nbia_pipeline.embedded.api import render
from nbia_pipeline.embedded.api.endpoint import (
    EMPTY,
    NO_DATA,
    NO_DATA_FOUND,
    UNABLE,
    Auth,
    Call,
    Endpoint,
    Reply,
    Rows,
    ServerFault,
    Settings,
)
from nbia_pipeline.embedded.api.endpoints import ENDPOINTS
from nbia_pipeline.embedded.catalog.holdings import Holdings
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.traffic import Traffic
from nbia_pipeline.embedded.server.archive import Archive
from nbia_pipeline.embedded.server.fault_injection import FaultInjection
from nbia_pipeline.embedded.server.tokens import TokenStore

API = "/nbia-api"
SERVICES = f"{API}/services"

_GUEST_HEADER = "bearer undefined"
# Server: it drops this many characters of the header, whatever the scheme says.
_SCHEME_LENGTH = len("Bearer ")
_NO_RIGHTS: frozenset[str] = frozenset()

Fields = Mapping[str, list[str]]
"""All values of every field of a query or a form."""


def create_app(
    catalog: Catalog,
    *,
    token_lifetime: float = 7200.0,
    refresh_lifetime: float | None = None,
    guide_spellings: bool = False,
    clock: Callable[[], float] = time.monotonic,
    latency: float = 0.0,
    bandwidth: float | None = None,
    line: float | None = None,
) -> Starlette:
    """Make the web application of an embedded archive.

    Args:
        catalog: what it serves.
        token_lifetime: lifetime of an access token in seconds (guide: 7200).
        refresh_lifetime: lifetime of a refresh token in seconds; None: that of an access token.
        guide_spellings: write the guide's spellings of keys where they differ from the server's.
        clock: a monotonic clock in seconds; measures the lifetime of tokens.
        latency: seconds before every answer.
        bandwidth: bytes per second of every answer; None: no limit.
        line: bytes per second of all answers together, in equal shares; None: no limit.

    Returns:
        The application; its ``state.archive`` is the :class:`Archive`, whose ``control`` changes it.
    """
    archive = Archive(
        Holdings(catalog),
        TokenStore(catalog.accounts, token_lifetime, refresh_lifetime, clock),
        Settings(guide_spellings),
        Traffic(latency, bandwidth, line),
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            archive.forget()

    app = Starlette(
        routes=[*_session_routes(archive.tokens), *(_route(archive, e) for e in ENDPOINTS)],
        exception_handlers=dict.fromkeys((HTTPException, ServerFault, Exception), _failed),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.archive = archive
    # Outside of Starlette's own layers too: faults need the connection itself.
    app.middleware_stack = FaultInjection(app.build_middleware_stack(), API, archive.traffic, archive.control)
    return app


def answer(archive: Archive, endpoint: Endpoint, query: Fields, form: Fields, authorization: str | None) -> Reply:
    """Answer one request to an endpoint of an archive; runs in a thread.

    Raises:
        ServerFault: where the real server ends in a 500.
    """
    given = {name: values[0] for name, values in query.items()}
    call = Call(archive.holdings, archive.settings, given, form, _NO_RIGHTS, endpoint.version)
    refusal = endpoint.unknown_parameter(call) or (None if endpoint.user_first else endpoint.missing(call))
    if refusal is not None:
        return refusal
    rights = identify(endpoint.auth, authorization, archive.tokens)
    if isinstance(rights, Reply):
        return rights
    # Server: unknown query parameters are ignored.
    known = {name: value for name, value in call.query.items() if name in endpoint.allowed}
    call = replace(call, query=known, rights=rights)
    return endpoint.missing(call) or _result(archive, endpoint, call)


def _result(archive: Archive, endpoint: Endpoint, call: Call) -> Reply:
    """Return a cached answer, or make one and cache it if it is large."""
    collection, guide = call.query.get("Collection"), call.settings.guide_spellings
    stamp = call.holdings.stamp(collection)
    history = sorted(call.settings.history)
    key = repr((stamp, guide, history, endpoint.path, sorted(call.query.items()), sorted(call.rights)))
    cached = archive.cache.find(key) if endpoint.method == "GET" else None
    if cached is not None:
        return cached
    result = endpoint.handler(call)
    if isinstance(result, Reply):
        return result
    if endpoint.method == "GET":
        return archive.cache.keep(key, rendered(result, call.query.get("format"), call.settings), collection)
    # Not every form has a format that is read.
    wanted = call.form.get("format", [None])[0] if endpoint.formats else None
    return rendered(result, wanted, call.settings)


def identify(auth: Auth, header: str | None, tokens: TokenStore) -> frozenset[str] | Reply:
    """Return the restricted collections that the caller may see, or the answer to a missing or invalid identity."""
    without_header, invalid = auth.value
    if header is None:
        return without_header or _NO_RIGHTS
    if auth is Auth.OPEN or header.casefold() == _GUEST_HEADER:
        return _NO_RIGHTS
    user = tokens.user_of(header[_SCHEME_LENGTH:])
    return tokens.collections_of(user) if user is not None else invalid or _NO_RIGHTS


def rendered(rows: Rows, wanted: str | None, settings: Settings) -> Reply:
    """Render rows in the format `wanted`, None for the endpoint's default, as the archive is set.

    Raises:
        ServerFault: for a format other than JSON and CSV, if there are rows. Server: so for an unknown one; its XML
            and HTML, which no client asks for, are not imitated.
    """
    guide = settings.guide_spellings
    if rows.jackson:
        body = render.render_jackson(rows.table, rows.shape, guide, rows.nulls)
        return Reply(body, content_type="application/json")
    if not rows.table.num_rows:
        return NO_DATA_FOUND if NO_DATA in settings.history else EMPTY
    wanted = (rows.default_format if wanted is None else wanted).upper()
    single = len(rows.shape.keys) == 1
    if wanted == "JSON":
        return Reply(_body(rows, render.render_json(rows.table, rows.shape, guide)), content_type="application/json")
    if wanted not in ("CSV", "CSV-DOWNLOAD") and (wanted != "CSVQUOTED" or single):
        raise ServerFault(None)
    native = any(key.name == "Authorized" for key in rows.shape.keys)
    shape = render.with_native_decimals(rows.shape) if native else rows.shape
    download = wanted == "CSV-DOWNLOAD"
    return Reply(
        _body(rows, render.render_csv(rows.table, shape, guide)),
        content_type="application/force-download" if download and single else "text/csv",
        disposition='attachment; filename="SeriesMetaData.csv"' if download else None,
    )


def _body(rows: Rows, pieces: Iterator[bytes]) -> bytes | Iterator[bytes]:
    """Join the pieces of a small answer: it is not worth a stream."""
    return pieces if rows.table.num_rows > render.ROWS_PER_BATCH // 4 else b"".join(pieces)


def _route(archive: Archive, endpoint: Endpoint) -> Route:
    async def respond(request: Request) -> Response:
        query = parse_qs(request.url.query, keep_blank_values=True)
        form = await _form(request) if endpoint.method == "POST" else {}
        header = request.headers.get("authorization")
        return _response(await run_in_threadpool(answer, archive, endpoint, query, form, header))

    return Route(f"{SERVICES}/{endpoint.path}", respond, methods=[endpoint.method])


def _session_routes(tokens: TokenStore) -> Iterator[Route]:
    """Yield the routes of token, logout and liveness. Server: the first two are at two paths each."""

    async def token(request: Request) -> Response:
        form = await _form(request)
        status, body = tokens.grant({name: values[0] for name, values in form.items()})
        return JSONResponse(body, status)

    async def logout(request: Request) -> Response:
        header = request.headers.get("authorization")
        if header is None or header.casefold() == _GUEST_HEADER:
            # Server: it tries to answer with status 0, which its framework refuses.
            raise ServerFault("Illegal status value: 0")
        tokens.log_out(header[_SCHEME_LENGTH:])
        return Response(status_code=204)

    for base in (API, SERVICES):
        yield Route(f"{base}/oauth/token", token, methods=["POST"])
        yield Route(f"{base}/logout", logout, methods=["POST"])
    yield Route(f"{SERVICES}/up", lambda request: _response(Reply(b"up", content_type="text/plain")))


async def _form(request: Request) -> dict[str, list[str]]:
    return parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)


def _response(reply: Reply) -> Response:
    # The type is set as a header, because Starlette would add a charset that the real server does not send.
    given = {"content-type": reply.content_type, "content-disposition": reply.disposition}
    headers = {name: value for name, value in given.items() if value is not None}
    if isinstance(reply.body, bytes):
        return Response(reply.body, reply.status, headers)
    return StreamingResponse(reply.body, reply.status, headers)


async def _failed(request: Request, error: Exception) -> Response:
    """Answer an error. Server: its catch-all mapper turns all into a 500, unknown paths and wrong methods too."""
    message = error.message if isinstance(error, ServerFault) else str(error)
    if isinstance(error, HTTPException):
        message = f"HTTP {error.status_code} {error.detail}"
    text = UNABLE if message is None else f"{UNABLE}\n{message}"
    return _response(Reply(text.encode(), 500, "text/plain"))
