"""What can go wrong with an archive, one class per remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class ArchiveError(Exception):
    """A call that failed. The text names the endpoint, the parameters, the status and the remedy.

    It never holds a token or a password.

    Attributes:
        what: what happened and what to do.
        endpoint: path of the endpoint below the base URL.
        parameters: names and values as they went over the wire.
        body: the beginning of the answer.
        status: HTTP status, or None where there was no answer.
        may_pass: True if the same call may succeed later (a lost connection, a 503).
    """

    def __init__(self, what: str, *, status: int | None = None, body: str = "", may_pass: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.endpoint = ""
        self.parameters: Mapping[str, str] = {}
        self.status = status
        self.body = body
        self.may_pass = may_pass

    def at(self, endpoint: str, parameters: Mapping[str, str]) -> Self:
        """Name the call that failed, unless it is named already, and return the error."""
        if not self.endpoint:
            self.endpoint, self.parameters = endpoint, parameters
        return self

    def __str__(self) -> str:
        shown = "&".join(f"{k}={v if len(v) <= 100 else v[:97] + '...'}" for k, v in self.parameters.items())
        status = f"status {self.status}" if self.status is not None else ""
        where = ", ".join(part for part in (f"{self.endpoint} {shown}".strip(), status) if part)
        return self.what + (f" [{where}]" if where else "") + (f" It began: {self.body!r}" if self.body else "")


class ArchiveUnreachable(ArchiveError):
    """No connection, no answer in time, or a certificate that does not verify.

    Attributes:
        retry_after: seconds that the archive asks to wait, or None.
    """

    retry_after: float | None = None


class LoginRefused(ArchiveError):
    """The token endpoint refuses the account, or a fresh token is refused."""


class NotAvailable(ArchiveError):
    """The archive has no such object for this account: unknown, hidden and forbidden look the same."""


class BadAnswer(ArchiveError):
    """An answer that is not what the endpoint promises: HTML, a cut body, rows of another collection."""
