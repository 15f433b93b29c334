"""The types of the embedded archive's endpoints: a call, its answer, and a row of the table of endpoints."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
"""Server: a list without rows."""

NO_DATA_FOUND = Reply(b"No data found.", 500)
"""Server: the same before April 2021."""

EMPTY_ARRAY = Reply(b"[]", content_type="application/json")
"""Server: the same from the endpoints that answer with Jackson's JSON."""

NO_CONTENT = Reply(status=204)
"""Server: the same from getSeriesMetaData."""

UNAUTHORIZED = Reply(status=401)
FAILED_BRIEFLY = Reply(UNABLE.encode(), 500, "text/plain")
FAILED = Reply(f"{UNABLE}\nnull".encode(), 500, "text/plain")
"""Server: an exception without a message escaped."""


def bad_request(text: str) -> Reply:
    """Return a 400. Server: plain English labeled as JSON."""
    return Reply(text.encode(), 400, "application/json")


def json_reply(answer: object) -> Reply:
    """Return a small answer as JSON."""
    body = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
    return Reply(body, content_type="application/json")


NO_DATA = "no data"
UNDATED = "undated"
TIME_STAMP = "time stamp"
HISTORY = {
    NO_DATA: "before 2021-04-15: a list without rows is a 500 with the text `No data found.`",
    UNDATED: "before 2024-05-02: getUpdatedSeries of v1 and v2 has no DateReleased",
    TIME_STAMP: "2025-08-29 to 2025-10-05: v4 sends `TimeStamp` for MaxSubmissionTimestamp",
}
"""How older builds of the server answered otherwise, by a name."""


@dataclass
class Settings:
    """The settings of an embedded archive besides its catalog.

    Attributes:
        guide_spellings: write the guide's spellings of keys where they differ from the server's.
        history: which older builds it answers like; keys of :data:`HISTORY`.
        downloads: number of downloads begun so far by series, which seeds the order of entries.
        scratch: where rendered answers and deflated files are kept.
    """

    guide_spellings: bool = False
    history: frozenset[str] = frozenset()
    downloads: Counter[str] = field(default_factory=Counter)
    scratch: Scratch = field(default_factory=Scratch)


@dataclass(frozen=True)
class Call:
    """One request, as an endpoint sees it.

    Attributes:
        holdings: the series of the archive.
        settings: how the archive is set.
        query: first value of every query parameter.
        form: all values of every form field.
        rights: restricted collections that the caller may see.
        version: ``v1``, ``v2``, ``v4``, or empty for the endpoints without a version.
    """

    holdings: Holdings
    settings: Settings
    query: Mapping[str, str]
    form: Mapping[str, list[str]]
    rights: frozenset[str]
    version: str

    @property
    def v4(self) -> bool:
        """Whether the answer is v4's."""
        return self.version == "v4"


class Auth(Enum):
    """What an endpoint does about identity: its answers without a header, and to an invalid token.

    Where there is no answer, the request gets the guest's rights.
    """

    LIST = EMPTY, EMPTY
    QUIET = NO_CONTENT, NO_CONTENT
    STRICT = FAILED, UNAUTHORIZED
    TAGS = FAILED_BRIEFLY, FAILED_BRIEFLY
    NOTHING = EMPTY_ARRAY, EMPTY_ARRAY
    OPEN = None, None
    V4_TAGS = None, FAILED_BRIEFLY
    V4_QUIET = None, NO_CONTENT
    V4_NOTHING = None, EMPTY_ARRAY
    V4_LIST = None, EMPTY
    V4_FRAGILE = None, FAILED
    V4_STRICT = None, UNAUTHORIZED


Handler = Callable[[Call], Rows | Reply]
"""A function that answers a call; it runs in a thread."""


@dataclass(frozen=True)
class Endpoint:
    """One row of the table of endpoints.

    Attributes:
        path: path below ``/nbia-api/services/``, like ``v2/getSeries``.
        handler: what answers.
        parameters: names of the parameters that the endpoint knows, separated by spaces; v4 refuses others.
        required: names of those without which it answers 400.
        bad_request: text of that 400.
        auth: what is done about identity.
        formats: whether it knows the parameter ``format`` too.
        user_first: True where the server resolves the user before it checks parameters.
        method: HTTP method.
        strict_params: where unknown parameters are refused: ``query``, ``form`` or None for nowhere.
    """

    path: str
    handler: Handler
    parameters: str = ""
    required: str = ""
    bad_request: str = ""
    auth: Auth = field(kw_only=True)
    formats: bool = False
    user_first: bool = False
    method: str = "GET"
    strict_params: str | None = None

    @property
    def version(self) -> str:
        """``v1``, ``v2`` or ``v4``; empty for an endpoint without a version."""
        return self.path.rpartition("/")[0]

    @property
    def allowed(self) -> list[str]:
        """Names of the parameters that the endpoint knows."""
        return [*self.parameters.split(), *(["format"] if self.formats else [])]

    def missing(self, call: Call) -> Reply | None:
        """Return the 400 for a missing required parameter, or None if all are there."""
        given = call.query if self.method == "GET" else call.form
        return bad_request(self.bad_request) if any(name not in given for name in self.required.split()) else None

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
