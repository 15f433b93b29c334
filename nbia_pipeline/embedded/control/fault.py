"""What can go wrong on purpose: faults as plain data, for both ends of the control interface."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS: dict[str, str] = {
    # Instead of the answer.
    "status": "answer with `status` (401, 429, 500, 502, 503, 504, ...) and, if set, Retry-After",
    "answer": "answer with `status`, `body` and `headers`",
    "html": "a page of HTML with status 200, as a proxy or a login form sends it",
    "empty": "status 200 and nothing",
    "garbage": "status 200, labelled as JSON, but not valid JSON",
    # To the connection.
    "drop": "the connection is reset at once",
    "cut": "the connection ends after `fraction` of the body",
    "stall": "silence after `fraction` of the body: for `seconds`, or until the client gives up",
    # To the body, which ends in good order.
    "flip": "one bit is wrong at `fraction` of the body",
    "end_early": "the body ends at `fraction` as if that were all: cut JSON, cut CSV, cut zip",
    # To a zip that opens and whose checksums are right.
    "no_files": "no images and no md5hashes.csv",
    "missing_file": "it ends before the image at `fraction`; no md5hashes.csv (the server's read error)",
    "cut_file": "it ends within the image at `fraction`; no md5hashes.csv (the server's read error)",
    "lost_file": "the image at `fraction` is not there, nor in md5hashes.csv",
    "short_file": "the image at `fraction` is cut to half; all else is there",
    "no_hashes": "md5hashes.csv is not there",
    "wrong_hash": "md5hashes.csv has a wrong digest for the image at `fraction`",
    "empty_hash": "md5hashes.csv has an empty digest for the image at `fraction`",
    "path_name": "an entry more, called ../../outside.dcm",
    "absolute_name": "an entry more, called /tmp/outside.dcm",
    "duplicate_name": "the image at `fraction` comes twice under its name, the second time cut to half",
    "bomb": "an entry more, of `size` bytes of zeros",
    # Things that happen before a true answer.
    "expire_tokens": "all tokens run out, then the answer that is due",
    "hide": "the series is hidden, then the answer that is due",
    "replace": "the series is replaced (and stays visible), then the answer that is due",
    # In the archive's own process only.
    "custom": "what `act` does",
}
"""What each kind of fault does."""


class FaultError(ValueError):
    """A fault that makes no sense."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, and when.

    Of all faults that match a request, only the first one that strikes is applied.

    Attributes:
        kind: key of :data:`KINDS`.
        endpoint: last part of the path, like ``getImage``, or a path like ``v2/getSeries``; None: any.
        series: UID that the request must name; None: any.
        probability: chance with which it strikes.
        times: how often it strikes at most; None: no limit.
        skip: number of matching requests that are spared first.
        status: status of the kinds ``status`` and ``answer``.
        retry_after: value of the header Retry-After, of the kind ``status``.
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
            raise FaultError(f"there is no fault {self.kind!r}; there are {', '.join(KINDS)}")
        if (self.kind == "custom") != (self.act is not None):
            raise FaultError("a fault of the kind custom, and no other, has a function `act`")
        for name in ("probability", "fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise FaultError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
