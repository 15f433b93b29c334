"""What can go wrong with an archive, one class per remedy.

* ArchiveError
  x ArchiveUnreachable  no usable answer at all: the network, TLS, a proxy, a time-out, 408, 429, 502, 503, 504,
                        520 to 524, or no token. Check the connection, or try again later: other calls fail too.
  x ServerError         the archive answered, and failed on this request (500). Other calls may succeed: go on
                        without this one, or try again later.
  x LoginRefused        the account or a fresh token is refused. Check username and password.
  x NotServed           this version of the API has no such call. Use the other one.
  x NotAvailable        unknown, hidden or forbidden: the server does not distinguish them (400). Go on without it.
  x BadAnswer           not what the endpoint promises: HTML, a truncated body, rows of another collection. Check that
                        base_url is an NBIA archive; if it is, nothing of this answer can be trusted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from html.entities import html5
from typing import TYPE_CHECKING
from urllib.parse import quote

from nbia_pipeline.text import TextError, is_plain, shown

if TYPE_CHECKING:
    from typing_extensions import Self


BODY_SHOWN = 200

_SEPARATOR = r"(?:\s|\\[nrt]?)*"
_BEGINNING = 8  # characters of a secret by which it is recognized


def call_text(endpoint: str, parameters: Mapping[str, str]) -> str:
    """Return how errors and the log show a call; of a login, the parameters must not be given."""
    return f"{endpoint} {'&'.join(f'{k}={shown(v, 100)}' for k, v in parameters.items())}".strip()


@dataclass(eq=False, repr=False)
class ArchiveError(TextError):
    """A call that failed. The text names the endpoint, the parameters, the status and the remedy.

    It never contains a token or a password.

    Attributes:
        what: what happened and what to do.
        endpoint: path of the endpoint below the base URL.
        parameters: names and values as they went over the wire.
        body: the beginning of the answer.
        status: HTTP status, or None if there was no answer.
        retryable: True if the same call may succeed later (a lost connection, a 503).
        retry_after: seconds that the archive asks to wait, or None.
        overloaded: True if the archive has too much to do: it says so, or did not answer in time.
        arguments: names of the arguments of NbiaClient to check, such as ``("username", "password")``.
    """

    what: str
    _: KW_ONLY
    endpoint: str = field(default="", init=False)
    parameters: Mapping[str, str] = field(default_factory=dict, init=False)
    body: str = ""
    status: int | None = None
    retryable: bool = False
    retry_after: float | None = None
    overloaded: bool = False
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__init__(self.what)

    def at(self, endpoint: str, parameters: Mapping[str, str]) -> Self:
        """Name the call that failed, unless it is named already, and return the error."""
        if not self.endpoint:
            self.endpoint, self.parameters = endpoint, parameters
        return self

    def without(self, secrets: Iterable[str]) -> Self:
        """Take `secrets` out of the texts, which may quote an answer that echoes them; return the error.

        A cause that quotes one, or cannot be shown as it is, is forgotten: Dagster stores the texts of causes, too.
        """
        known = [secret for secret in secrets if secret]
        for secret in known:
            self.what, self.body = _redacted(self.what, secret), _redacted(self.body, secret)
        self.body = self.body[:BODY_SHOWN]
        self.args = (self.what,)
        forget_causes(self, lambda text: not is_plain(text) or any(_redacted(text, each) != text for each in known))
        return self

    def __str__(self) -> str:
        status = f"status {self.status}" if self.status is not None else ""
        where = ", ".join(part for part in (call_text(self.endpoint, self.parameters), status) if part)
        began = f", answer {self.body!r}" if self.body else ""
        return shown(self.what) + shown(f" [{where}{began}]" if where else "")


class ArchiveUnreachable(ArchiveError):
    """No usable answer at all: no connection, no answer in time, a certificate that does not verify, a 503."""


class ServerError(ArchiveError):
    """The archive answered, and failed on this request: HTTP 500, also after a few tries."""


class LoginRefused(ArchiveError):
    """The token endpoint refuses the account, or a fresh token is refused."""


class NotServed(ArchiveError):
    """The call does not exist in this version of the API; the text names the one that has it."""


class NotAvailable(ArchiveError):
    """The archive has no such object for this account: unknown, hidden and forbidden look the same."""


class BadAnswer(ArchiveError):
    """An answer that is not what the endpoint promises: HTML, a truncated body, rows of another collection."""


def forget_causes(error: BaseException, unfit: Callable[[str], bool] = lambda text: not is_plain(text)) -> None:
    """Cut the chain of causes of an error before the first whose text must not be shown."""
    link, seen = error, {id(error)}
    while (cause := link.__cause__ or link.__context__) is not None and id(cause) not in seen:
        seen.add(id(cause))
        if unfit(f"{cause} {cause!r}"):
            link.__cause__ = link.__context__ = None
            return
        link.__context__ = cause  # the context of an error that has a cause is never shown
        link = cause


def _redacted(text: str, secret: str) -> str:
    """Return `text` with stars for `secret`, in any spelling, even where it was cut short."""
    shown, at = "", 0
    for found in _beginning_of(secret[:_BEGINNING]).finditer(text):
        if found.start() < at:
            continue
        end = found.end()
        for character in secret[_BEGINNING:]:
            more = _spellings(character).match(text, end)
            if more is None:
                break
            end = more.end()
        shown, at = f"{shown}{text[at : found.start()]}***", end
    return shown + text[at:]


@lru_cache(maxsize=16)
def _beginning_of(secret: str) -> re.Pattern[str]:
    first, *others = (_spellings(character).pattern for character in secret)
    return re.compile("".join([first.removeprefix(_SEPARATOR), *others]), re.IGNORECASE)


@lru_cache(maxsize=256)
def _spellings(character: str) -> re.Pattern[str]:
    """Return what a character of a secret may look like: in a URL, a form, HTML, JSON, Python, or on the next line."""
    number = ord(character)
    named = "".join(f"|&{name};?" for name, text in html5.items() if text == character and name.isalpha())
    plus = "|[+]" if character == " " else ""
    plain, in_url = re.escape(character), re.escape(quote(character, safe="", errors="replace"))
    hexadecimal = "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "replace"))
    return re.compile(
        rf"{_SEPARATOR}(?:{plain}|{in_url}|{hexadecimal}|&#0*{number};|&#x0*{number:x};|u{number:04x}{plus}{named})",
        re.IGNORECASE,
    )
