"""How the client makes its calls: spell names and values, read answers, double-check an empty list."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import requests

from nbia_pipeline.archive.answers import pieces_of_json, read_csv
from nbia_pipeline.archive.endpoints import Dialect, Endpoint
from nbia_pipeline.archive.errors import BadAnswer, ServerError
from nbia_pipeline.archive.expect import named
from nbia_pipeline.archive.optional import OptionalCalls, most_seconds, most_tries
from nbia_pipeline.archive.transport import NO_ROWS, Session, chunks_of
from nbia_pipeline.schema.arrow import with_column

T = TypeVar("T")


class TakenRows(Protocol):
    """What has the rows of a list, in whatever form."""

    @property
    def num_rows(self) -> int:
        """How many there are."""

    def __getitem__(self, column: str) -> Any:
        """Return the values of a column."""

    def to_table(self) -> pa.Table:
        """Return all of them."""


Taken = TypeVar("Taken", bound=TakenRows)

Take = Callable[[Iterator[pa.Table]], Taken]
"""Takes the rows of a list as they come, all of them, and returns what has them; called again if the call is."""

Argument = str | date | Sequence[str] | None
"""An argument of a call: text, a day, or a list of UIDs; None is left out."""

# Server: what the counts call a value that is not set.
_NULL_NAMES = {"modality_counts": "", "body_part_counts": "NOT SPECIFIED", "manufacturer_counts": ""}


class Calls:
    """What the methods of :class:`~nbia_pipeline.archive.NbiaClient` are made of."""

    def __init__(self, session: Session, dialect: Dialect) -> None:
        self._session = session
        self._dialect = dialect
        self.optional_calls = OptionalCalls()

    @property
    def max_in_flight(self) -> int:
        """Most requests in flight to the archive at a time."""
        return self._session.limiter.max_in_flight

    @property
    def warnings(self) -> list[str]:
        """What the archive did not answer so far of what only enriches, in one sentence for each call."""
        return self.optional_calls.warnings

    def optional(self, name: str, call: Callable[[], T], what: str) -> T | None:
        """Make a call that only enriches: return what it returns, None where the archive lacks, refuses or breaks it.

        The first failure of each call is logged as a warning, and one of :attr:`warnings`. A call that would fail each
        time, or failed some times in a row, is not made again by this client.

        Args:
            name: of the call, the same each time it is made.
            call: asks the archive.
            what: what it brings, for the sentence "the archive does not answer for ...".

        Raises:
            ArchiveError: the archive issues no token, because it refuses the account or cannot be reached.
        """
        return self.optional_calls.ask(name, call, what)

    def _bytes(
        self,
        name: str,
        read: Callable[[Iterator[bytes]], T],
        chunks: Callable[[requests.Response], Iterator[bytes]] = chunks_of,
        /,
        **arguments: Argument,
    ) -> T:
        endpoint = self._dialect.endpoint(name)
        return self._call(endpoint, arguments, lambda answer: read(chunks(answer)))

    def _call(self, endpoint: Endpoint, arguments: dict[str, Argument], read: Callable[[requests.Response], T]) -> T:
        wire = on_the_wire(endpoint, arguments)
        repeated = endpoint.parameters["series_uids"] if endpoint.repeated else ""
        return self._session.call(
            endpoint.method,
            endpoint.path,
            wire,
            read,
            most_tries(),
            most=endpoint.most_bytes,
            read_timeout=most_seconds(),
            repeated=repeated,
        )

    def _list(self, name: str, /, **arguments: Argument) -> pa.Table:
        """Call a list endpoint, see :meth:`_taken`."""
        return self._taken(name, pa.concat_tables, **arguments)

    def _taken(self, name: str, take: Take[Taken], /, **arguments: Argument) -> Taken:
        """Call a list endpoint. An empty answer is believed only with a token that was just confirmed.

        Args:
            name: of the endpoint.
            take: returns something with a number of rows.
            arguments: of the call.
        """
        endpoint = self._dialect.endpoint(name)
        with_token = self._session.tokens is not None
        try:
            table = self._take_rows(endpoint, arguments, take)
            if table.num_rows or not (with_token and endpoint.empty_if_unauthorized):
                return table
        except ServerError:
            if not (with_token and endpoint.refusal_is_500):
                raise
        self._confirm_token()
        return self._take_rows(endpoint, arguments, take)

    def _confirm_token(self) -> None:
        """Make sure that the next call goes out with a token that the archive accepts.

        v2: getCollectionValues answers 401 where the lists answer "no rows", and the session then logs in
        again. v4 answers "no rows" there too, so the token is replaced.
        """
        endpoint = self._dialect.endpoint("collection_values")
        tokens = self._session.tokens
        if not endpoint.empty_if_unauthorized:
            self._rows(endpoint, {})
        elif tokens:
            tokens.reject(tokens.current())

    def _rows(self, endpoint: Endpoint, arguments: dict[str, Argument]) -> pa.Table:
        return self._take_rows(endpoint, arguments, pa.concat_tables)

    def _take_rows(self, endpoint: Endpoint, arguments: dict[str, Argument], take: Take[Taken]) -> Taken:
        none = endpoint.rows.schema.empty_table()

        def read(answer: requests.Response) -> Taken:
            if endpoint.media == "csv":
                return take(iter([read_csv(answer.content, endpoint.rows)]))
            return take(itertools.chain([none], pieces_of_json(chunks_of(answer), endpoint.rows)))

        try:
            return self._call(endpoint, arguments, read)
        except ServerError as e:
            if NO_ROWS in e.body:
                return take(iter([none]))
            raise

    def _in_runs(self, name: str, series_uids: Sequence[str], **arguments: Argument) -> pa.Table:
        """Call a list endpoint that takes a limited number of UIDs, as often as needed."""
        if isinstance(series_uids, str):
            raise TypeError(f"series_uids is {series_uids!r}: pass a list")
        endpoint = self._dialect.endpoint(name)
        runs = [series_uids[i : i + endpoint.max_values] for i in range(0, len(series_uids), endpoint.max_values)]
        tables = [self._list(name, series_uids=run, **arguments) for run in runs]
        return pa.concat_tables([endpoint.rows.schema.empty_table(), *tables])

    def _rows_of_collection(self, name: str, collection: str, take: Take[Taken] = pa.concat_tables) -> Taken:
        """List what a collection contains. Empty is refused while the archive lists the collection: it has series then.

        Between two calls a token can run out and a collection can come or go, hence several tries.
        """
        for _ in range(self._session.options.tries):
            table = self._taken(name, take, collection=collection)
            if table.num_rows or collection not in self.collection_values():
                return table
        raise BadAnswer(
            f"the archive lists collection {collection!r}, but sends nothing of it: nothing changed, try again later",
            retryable=True,
        )

    def collection_values(self) -> list[str]:
        """Return the names of the collections that the account may see, sorted, in their exact spelling."""
        endpoint = self._dialect.endpoint("collection_values")
        return sorted(set(named(self._list("collection_values"), "Collection", endpoint.rows)))

    def _values(self, name: str, **filters: str | None) -> list[str | None]:
        return list(self._list(name, **filters)[self._column(name)].to_pylist())

    def _counts(self, name: str, collection: str | None, **filters: Argument) -> dict[str | None, int | None]:
        counted = self._list(name, collection=collection, **filters)
        if collection and not counted.num_rows:
            # Server: the unversioned counts compare the collection's case, the lists do not.
            folded = collection.casefold()
            spelled = next((c for c in self.collection_values() if c.casefold() == folded), collection)
            counted = self._list(name, collection=spelled, **filters)
        names = [None if v in (None, _NULL_NAMES[name]) else v for v in counted["criteria"].to_pylist()]
        return dict(zip(names, counted["count"].to_pylist(), strict=True))

    def _with_counts(self, values: str, counts: str) -> pa.Table:
        """Join a list of values with its counts, null where the archive has none.

        The server counts null under a name of its own.
        """
        table = self._list(values)
        column = self._column(values)
        names = table[column].to_pylist()
        counted = self.optional(counts, lambda: self._list(counts), f"the number of patients by {column}")
        patients = {} if counted is None else _by_name(names, counted, _NULL_NAMES[counts])
        return with_column(table, "PatientCount", pa.array([patients.get(n) for n in names], pa.int64()))

    def _column(self, values: str) -> str:
        """Return the column that a list of values fills; each has one key only."""
        return self._dialect.endpoint(values).rows.keys[0].name


def _by_name(names: Sequence[str | None], counted: pa.Table, null_as: str) -> dict[str | None, int | None]:
    """Map each of `names` to its count.

    v4 upper-cases the names but not what it counts (server). A name for several spellings gets no count: a
    patient may be counted under each.
    """
    known = set(names)
    found: dict[str | None, list[int | None]] = {}
    for criteria, count in zip(counted["criteria"].to_pylist(), counted["count"].to_pylist(), strict=True):
        name = None if criteria in (None, null_as) else criteria
        found.setdefault(name if name is None or name in known else name.upper(), []).append(count)
    return {name: counts[0] for name, counts in found.items() if len(counts) == 1}


def on_the_wire(endpoint: Endpoint, arguments: dict[str, Argument]) -> dict[str, str]:
    """Spell names and values as the endpoint expects them.

    The server ignores a name that it does not know, and an empty value matches nothing: both are refused here.

    Raises:
        ValueError: a name that the endpoint does not take, an empty value, a UID with a comma.
        TypeError: a value that is not text, not a day, or not a list where one is expected.
    """
    wire = dict(endpoint.constants)
    for name, value in arguments.items():
        if value is None:
            continue
        if name not in endpoint.parameters:
            raise ValueError(f"{endpoint.path} takes no {name}")
        text = _spelled(name, value, endpoint)
        if not text:
            raise ValueError(f"{name} is empty: {endpoint.path} would return nothing")
        wire[endpoint.parameters[name]] = text
    return wire


def _spelled(name: str, value: str | date | Sequence[str], endpoint: Endpoint) -> str:
    if name == "since":
        if not isinstance(value, date):
            # The server accepts days and months in any order without an error.
            raise TypeError(f"{name} is {value!r}: pass a datetime.date")
        return _day(value, endpoint)
    if not endpoint.max_values or name != "series_uids":
        if not isinstance(value, str):
            raise TypeError(f"{name} is {value!r}: pass a string")
        return value
    if isinstance(value, (str, date)):
        raise TypeError(f"{name} is {value!r}: pass a list")
    if any("," in uid for uid in value):
        raise ValueError(f"{name} contains a comma: the server would split it")
    return ",".join(value) if all(value) else ""


def _day(value: date, endpoint: Endpoint) -> str:
    day = value.date() if isinstance(value, datetime) else value
    if day.toordinal() > endpoint.days_earlier:
        day -= timedelta(days=endpoint.days_earlier)
    # strftime does not pad the year everywhere, and the server would read another one.
    return day.strftime(endpoint.date_format.replace("%Y", f"{day.year:04d}"))
