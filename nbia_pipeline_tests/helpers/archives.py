"""The demo archive as a test uses it, and servers of one's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from starlette.applications import Starlette
from starlette.types import ASGIApp

from nbia_pipeline.archive import ClientOptions, NbiaClient
from nbia_pipeline.embedded.server.tokens import TokenStore
from nbia_pipeline_tests.helpers.faults import Faults
from nbia_pipeline_tests.helpers.tiny import Clock, running

FAST = ClientOptions(connect_timeout=2, read_timeout=5, tries=3, backoff=0.01, max_backoff=0.05)
Serve = Callable[[ASGIApp], str]


@dataclass
class TestArchive:
    """The demo archive behind a middleware that injects faults.

    Attributes:
        url: base URL.
        faults: what goes wrong, and what was asked.
        tokens: who is logged in at the server.
        clock: the server's clock, for the life of tokens.
    """

    __test__ = False  # not a class of tests

    url: str
    faults: Faults
    tokens: TokenStore
    clock: Clock

    def client(self, **options: Any) -> NbiaClient:
        """Return a client; the caller closes it, or lets the token be forgotten."""
        return NbiaClient(self.url, **{"options": FAST, **options})


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serve any ASGI application from a thread; yields the base URL."""
    with running(cast(Starlette, app)) as url:
        yield url
