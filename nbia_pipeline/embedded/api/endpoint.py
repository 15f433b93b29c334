"""The vocabulary of the embedded archive's endpoints: a call, its answer, and a row of the table of endpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import pyarrow as pa

from nbia_pipeline.embedded.catalog.holdings import Holdings
from nbia_pipeline.embedded.catalog.scratch import Scratch
from nbia_pipeline.schema.shapes import Shape

UNABLE = "Server was not able to process your request"
"""First line of every 500. Server: the catch-all mapper."""


class ServerFault(Exception):
    """An exception that escapes inside the real server: a 500 with its message.

    Attributes:
        message: second line of the body; None for a body of the first line only.
    """

    def __init__(self, message: str | None = "null") -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class Rows:
    """An answer of rows, to be rendered in the format that the caller asks for.

    Attributes:
        table: columns named as in the shape.
        shape: keys in order.
        jackson: True for the endpoints that answer with Jackson's JSON only.
        default_format: format without a ``format`` parameter.
        nulls: whether Jackson writes nulls or leaves their keys out.
    """

    table: pa.Table
    shape: Shape
    jackson: bool = False
    default_format: str = "JSON"
    nulls: bool = True


@dataclass(frozen=True)
class Reply:
    """An answer as it goes on the wire.

    Attributes:
        body: bytes, or pieces of bytes for a streamed body of unstated length.
        status: HTTP status.
        content_type: value of the header, or None to send none.
        disposition: value of Content-Disposition, or None to send none.
    """

    body: bytes | Iterator[bytes] = b""
    status: int = 200
    content_type: str | None = None
    disposition: str | None = None


EMPTY = Reply()
"""Server: how lists say that there are no rows."""

NOTHING = Reply(b"[]", content_type="application/json")
"""Server: how Jackson says it."""

NO_CONTENT = Reply(status=204)
"""Server: how getSeriesMetaData says the same."""


def bad_request(text: str) -> Reply:
    """Return a 400. Server: plain English labelled as JSON."""
    return Reply(text.encode(), 400, "application/json")


@dataclass
class Settings:
    """What can be set about an embedded archive besides its catalogue.

    Attributes:
        guide_spellings: write the guide's spellings of keys where they differ from the server's.
        downloads: number of downloads begun so far by series, which seeds the order of entries.
        shelf: where things that cost work are kept.
    """

    guide_spellings: bool = False
    downloads: Counter[str] = field(default_factory=Counter)
    scratch: Scratch = field(default_factory=Scratch)


@dataclass(frozen=True)
class Call:
    """One request, as an endpoint sees it.

    Attributes:
        holdings: what the archive holds.
        settings: how the archive is set.
        query: first value of every query parameter.
        form: all values of every form field.
        rights: restricted collections that the caller holds.
    """

    holdings: Holdings
    settings: Settings
    query: Mapping[str, str]
    form: Mapping[str, list[str]]
    rights: frozenset[str]


class Auth(Enum):
    """What an endpoint does about identity: the groups of the reference, section 2.5."""

    LIST = "A: without a good token 200 and nothing"
    QUIET = "A': without a good token 204"
    STRICT = "B: without a header 500, with a bad token 401"
    TAGS = "C: without a good token 500 of one line"
    NOTHING = "D: without a good token 200 and []"
    OPEN = "E: identity is not looked at; the guest's rights"
    V4_NOTHING = "v4: no header is the guest, a bad token gets 200 and []"
    V4_LIST = "v4: no header is the guest, a bad token gets 200 and nothing"
    V4_FRAGILE = "v4: no header is the guest, a bad token gets 500"
    V4_STRICT = "v4: no header is the guest, a bad token gets 401"


Handler = Callable[[Call], Rows | Reply]
"""A function that answers a call; it runs in a thread."""


@dataclass(frozen=True)
class Endpoint:
    """One row of the table of endpoints.

    Attributes:
        path: path below ``/nbia-api/services/``, like ``v2/getSeries``.
        handler: what answers.
        auth: what is done about identity.
        allowed: parameters that the endpoint knows; v4 refuses others.
        required: parameters without which it answers 400.
        complaint: text of that 400.
        user_first: True where the server resolves the user before it looks at parameters.
        method: HTTP method.
        policed: where unknown parameters are refused: ``query``, ``form`` or None for nowhere.
    """

    path: str
    handler: Handler
    auth: Auth
    allowed: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    bad_request: str = ""
    user_first: bool = False
    method: str = "GET"
    strict_params: str | None = None

    def at(self, path: str, auth: Auth) -> Endpoint:
        """Return the same endpoint at another path, with another way to look at identity."""
        return replace(self, path=path, auth=auth)

    def missing(self, call: Call) -> Reply | None:
        """Return the 400 for a missing required parameter, or None if all are there."""
        given = call.query if self.method == "GET" else call.form
        return bad_request(self.bad_request) if any(name not in given for name in self.required) else None

    def unknown_parameter(self, call: Call) -> Reply | None:
        """Return the 400 for an unknown parameter, or None. Server: v4 only; no Content-Type is set."""
        if self.strict_params is None:
            return None
        given = call.query if self.strict_params == "query" else call.form
        for name in given:
            if name not in self.allowed:
                allowed = ", ".join(self.allowed)
                text = f"Invalid {self.strict_params} parameter: '{name}'. Allowed parameters are: [{allowed}]"
                return Reply(text.encode(), 400)
        return None
