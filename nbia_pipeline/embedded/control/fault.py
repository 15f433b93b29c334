"""The faults that an archive can inject, as plain data for both ends of the control interface."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS: dict[str, str] = {
    # Instead of the answer.
    "status": "answer with `status` (401, 429, 500, 502, 503, 504, ...) and, if set, Retry-After",
    "missing": "the answer of a server that has no such endpoint: 500, as for any unknown path",
    "answer": "answer with `status`, `body` and `headers`",
    "html": "a page of HTML with status 200, as a proxy or a login form sends it",
    "empty": "status 200 and nothing",
    "garbage": "status 200, labeled as JSON, that is not valid JSON",
    # To the connection.
    "drop": "the connection is reset at once",
    "cut": "the connection ends after `fraction` of the body",
    "stall": "silence after `fraction` of the body: for `seconds`, or until the client gives up",
    # To the body, which ends properly.
    "flip": "one bit is wrong at `fraction` of the body",
    "end_early": "the body ends at `fraction` as if that were all: truncated JSON, CSV or zip",
    # To a zip that opens and whose checksums are correct.
    "no_files": "no images and no md5hashes.csv",
    "missing_file": "it ends before the image at `fraction`; no md5hashes.csv (the server's read error)",
    "cut_file": "it ends within the image at `fraction`; no md5hashes.csv (the server's read error)",
    "lost_file": "the image at `fraction` is not there, nor in md5hashes.csv",
    "short_file": "the image at `fraction` is cut in half; everything else is complete",
    "no_hashes": "md5hashes.csv is not there",
    "wrong_hash": "md5hashes.csv has a wrong digest for the image at `fraction`",
    "empty_hash": "md5hashes.csv has an empty digest for the image at `fraction`",
    "path_name": "an additional entry called ../../outside.dcm",
    "absolute_name": "an additional entry called /tmp/outside.dcm",
    "duplicate_name": "the image at `fraction` appears twice under its name, the second time cut in half",
    "bomb": "an additional entry of `size` bytes of zeros",
    # Before a correct answer.
    "expire_tokens": "all tokens expire, then the request is answered",
    "hide": "the series is hidden, then the request is answered",
    "replace": "the series is replaced (and stays visible), then the request is answered",
    # In the archive's own process only.
    "custom": "what `act` does",
}
"""The effect of each kind of fault."""


class FaultError(ValueError):
    """A fault with an unknown kind or an invalid value."""


@dataclass(frozen=True)
class Fault:
    """A fault, and the requests to which it is applied.

    Of all faults that match a request only the first is applied that `skip`, `times` and `probability` allow.

    Attributes:
        kind: key of :data:`KINDS`.
        endpoint: last part of the path, like ``getImage``, or a path like ``v2/getSeries``; None: any.
        series: UID that the request must name; None: any.
        probability: probability with which it is applied.
        times: how often it is applied at most; None: without limit.
        skip: number of matching requests that are answered correctly first.
        status: status of the kinds ``status`` and ``answer``.
        retry_after: value of the header Retry-After of the kind ``status``.
        body: body of the kind ``answer``; only text can be sent through the control interface.
        headers: headers of the kind ``answer``.
        fraction: where in the body, or among the images of a zip.
        at: where in the body, in bytes, instead of `fraction`.
        seconds: length of a stall; None: until the client gives up.
        size: bytes of a bomb when unpacked.
        act: function of the kind ``custom``; takes a
            :class:`~nbia_pipeline.embedded.server.fault_injection.FaultedRequest`.
    """

    kind: str
    endpoint: str | None = None
    series: str | None = None
    probability: float = 1.0
    times: int | None = None
    skip: int = 0
    status: int = 503
    retry_after: str | None = None
    body: bytes | str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    fraction: float = 0.5
    at: int | None = None
    seconds: float | None = None
    size: int = 300_000_000
    act: Callable[[Any], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FaultError(f"there is no fault {self.kind!r}; the kinds are {', '.join(KINDS)}")
        if (self.kind == "custom") != (self.act is not None):
            raise FaultError("a fault of the kind custom, and no other, has a function `act`")
        for name in ("probability", "fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise FaultError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
