"""How the calls are made: names and values on the wire, answers read, and an empty answer not believed at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import TypeVar

import pyarrow as pa
import requests

from nbia_pipeline.archive.answers import read_csv, read_json
from nbia_pipeline.archive.endpoints import DIALECTS, Endpoint
from nbia_pipeline.archive.errors import ArchiveUnreachable, BadAnswer
from nbia_pipeline.archive.expect import without_gaps
from nbia_pipeline.archive.transport import Patience, Session, pieces
from nbia_pipeline.settings import GUEST

T = TypeVar("T")

Argument = str | date | Sequence[str] | None
"""What a call is asked for: text, a day, or a list of UIDs; None is left out."""


class Caller:
    """What the calls of the client share; see :class:`~nbia_pipeline.archive.NbiaClient`.

    One call is here: the list of collections is what an empty answer is doubted by.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api: str = "v2",
        username: str = GUEST,
        password: str = "",
        ca_bundle: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        if api not in DIALECTS:
            raise ValueError(f"api is {api!r}: use {' or '.join(DIALECTS)}")
        self._dialect = DIALECTS[api]
        # On v4 a stale token is worse than none, so only an account of one's own gets one.
        account = (username, password) if self._dialect.needs_token or username != GUEST else None
        self._session = Session(base_url, account, ca_bundle=ca_bundle, patience=patience)

    def collection_values(self) -> list[str]:
        """Return the names of the collections that the account may see, sorted, in their exact spelling."""
        return sorted(without_gaps(self._list("collection_values"), "Collection"))

    def _bytes(self, name: str, read: Callable[[Iterator[bytes]], T], /, **arguments: Argument) -> T:
        endpoint = self._dialect.endpoint(name)
        return self._session.call(
            endpoint.method,
            endpoint.path,
            on_the_wire(endpoint, arguments),
            lambda answer: read(pieces(answer)),
        )

    def _text(self, name: str, read: Callable[[str], T], /, **arguments: Argument) -> T:
        return self._bytes(name, lambda chunks: read(_utf8(b"".join(chunks)).strip()), **arguments)

    def _list(self, name: str, /, **arguments: Argument) -> pa.Table:
        """Call a list endpoint. An empty answer is believed only with a token that was just confirmed."""
        endpoint = self._dialect.endpoint(name)
        with_token = self._session.tokens is not None
        try:
            table = self._rows(endpoint, arguments)
            if table.num_rows or not (with_token and endpoint.empty_if_unauthorized):
                return table
        except ArchiveUnreachable as e:
            if e.status != 500 or not (with_token and endpoint.refusal_is_500):
                raise
        self._confirm_token()
        return self._rows(endpoint, arguments)

    def _confirm_token(self) -> None:
        """Make sure that the next call goes out with a token that the archive takes.

        v2: getCollectionValues answers 401 where the lists answer "no rows", and the session then logs in
        anew. v4 swallows it there too, so the token is replaced.
        """
        if self._dialect.endpoint("collection_values").empty_if_unauthorized:
            tokens = self._session.tokens
            if tokens:
                tokens.reject(tokens.current())
            return
        self._rows(self._dialect.endpoint("collection_values"), {})

    def _rows(self, endpoint: Endpoint, arguments: dict[str, Argument]) -> pa.Table:
        shape = endpoint.shape
        assert shape is not None  # noqa: S101 - lists have one

        def read(answer: requests.Response) -> pa.Table:
            if endpoint.media == "csv":
                return read_csv(_utf8(answer.content), shape)
            return read_json(pieces(answer), shape)

        return self._session.call(endpoint.method, endpoint.path, on_the_wire(endpoint, arguments), read)


def on_the_wire(endpoint: Endpoint, arguments: dict[str, Argument]) -> dict[str, str]:
    """Spell names and values as the endpoint wants them.

    The server ignores a name that it does not know, and an empty value matches nothing: both are refused here.

    Raises:
        ValueError: a name that the endpoint does not take, an empty value, a UID with a comma.
        TypeError: something else than text, a day where one is due, or a list where one is due.
    """
    wire = {}
    for name, value in arguments.items():
        if value is None:
            continue
        if name not in endpoint.parameters:
            if name == "format":  # JSON is the only format that some endpoints have
                continue
            raise ValueError(f"{endpoint.path} takes no {name}")
        text = _spelled(name, value, endpoint)
        if not text:
            raise ValueError(f"{name} is empty: {endpoint.path} would answer with nothing")
        wire[endpoint.parameters[name]] = text
    return wire


def _spelled(name: str, value: str | date | Sequence[str], endpoint: Endpoint) -> str:
    if name == "since":
        if not isinstance(value, date):
            # The server takes days and months in any order without a word.
            raise TypeError(f"{name} is {value!r}: give a datetime.date")
        return _day(value, endpoint)
    if not endpoint.at_most or name == "format":
        if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}: give a text")
        return value
    if isinstance(value, (str, date)):
        raise TypeError(f"{name} is {value!r}: give a list")
    if any("," in uid for uid in value):
        raise ValueError(f"{name} holds a comma: the server would split it")
    return ",".join(value) if all(value) else ""


def _day(value: date, endpoint: Endpoint) -> str:
    day = value.date() if isinstance(value, datetime) else value
    if day.toordinal() > endpoint.days_earlier:
        day -= timedelta(days=endpoint.days_earlier)
    # strftime does not pad the year everywhere, and the server would read another one.
    return day.strftime(endpoint.date_format.replace("%Y", f"{day.year:04d}"))


def _utf8(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise BadAnswer(f"the answer is not UTF-8: {e}") from e
