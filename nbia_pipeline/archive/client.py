"""The client: one method per call, days as `date`, tables as Arrow, images as streams of bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from types import TracebackType
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import requests

from nbia_pipeline.archive.dialects import DIALECTS, Endpoint
from nbia_pipeline.archive.errors import ArchiveUnreachable, BadAnswer
from nbia_pipeline.archive.parse import read_csv, read_json
from nbia_pipeline.archive.session import CHUNK_BYTES, Patience, Session
from nbia_pipeline.schema.tables import SERIES_METADATA
from nbia_pipeline.settings import GUEST

log = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 8


class NbiaClient:
    """A client of one NBIA archive, for any number of threads.

    Args:
        base_url: address that ends in ``/nbia-api``.
        api: ``v2`` (the guide's, with a token) or ``v4`` (no token needed).
        username: account at the archive; the guest by default.
        password: its password; the guest has none.
        ca_bundle: file of certificates to trust, or None for the system's.
        patience: time-outs and retries.

    Every method raises :class:`~nbia_pipeline.archive.errors.ArchiveError` where the call fails, and never
    returns an empty table on the word of a refused token.

    Example:
        >>> with NbiaClient("https://services.cancerimagingarchive.net/nbia-api") as client:
        ...     frame = client.series(collection="LIDC-IDRI").to_pandas()
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
        self._dialect = DIALECTS[api]
        # On v4 a stale token is worse than none, so only an account of one's own gets one.
        account = (username, password) if self._dialect.needs_token or username != GUEST else None
        self._session = Session(base_url, account, ca_bundle=ca_bundle, patience=patience)

    def __enter__(self) -> NbiaClient:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Log out, best effort, and close the connections."""
        self._session.close()

    # --- lists of values

    def collection_values(self) -> list[str]:
        """Return the names of the collections that the account may see, sorted, in their exact spelling."""
        return sorted(_names(self._list("collection_values"), "Collection"))

    def modality_values(self) -> pa.Table:
        """Return the modalities with the number of patients of each: table ``modalities``."""
        return self._with_counts("modality_values", "modality_counts", null_as="")

    def body_part_values(self) -> pa.Table:
        """Return the body parts, upper-cased by the server, with patients: table ``body_parts``."""
        return self._with_counts("body_part_values", "body_part_counts", null_as="NOT SPECIFIED")

    def manufacturer_values(self) -> pa.Table:
        """Return the manufacturers with the number of patients of each: table ``manufacturers``."""
        return self._with_counts("manufacturer_values", "manufacturer_counts", null_as="")

    def collection_counts(self) -> dict[str, int]:
        """Return the number of patients by collection."""
        counts = self._list("collection_counts")
        return dict(zip(counts["criteria"].to_pylist(), counts["count"].to_pylist(), strict=True))

    def collection_description(self, collection: str) -> pa.Table:
        """Return the description of one collection, in its exact spelling: no row, or one, or several."""
        return self._list("collection_descriptions", collection=collection)

    # --- patients, studies, series

    def patients(self, collection: str) -> pa.Table:
        """Return the patients of a collection: table ``patients``."""
        return self._list_of_collection("patients", collection)

    def studies(self, collection: str) -> pa.Table:
        """Return the studies of a collection: table ``studies``.

        A study that spans collections is listed under each and names one of them (server).
        """
        return self._rows_of_collection("studies", collection)

    def series(self, collection: str) -> pa.Table:
        """Return the series of a collection: table ``series``."""
        return self._list_of_collection("series", collection)

    def updated_series(self, since: date) -> pa.Table:
        """Return the series released after the day `since`: table ``series``, with what v2 sends of it.

        The filter is strict, and releases can be back-dated: it is a hint, not a feed.
        """
        return self._list("updated_series", since=since)

    def series_metadata(self, series_uids: Sequence[str]) -> pa.Table:
        """Return the metadata of the series: table ``series_metadata``.

        Asks in bulk where the archive can, else one by one in parallel. The bulk call drops a UID silently
        where a series is hidden or unknown (server): such a series has no row here.
        """
        if not series_uids:
            return SERIES_METADATA.schema.empty_table()
        try:
            table = self._metadata_in_bulk(series_uids)
        except BadAnswer as e:
            if "series_metadata" not in self._dialect.endpoints or e.status not in (404, 405, 500):
                raise
            log.info("the archive has no bulk metadata, asking one by one: %s", e)
            table = self._metadata_one_by_one(series_uids)
        wanted = pc.is_in(table["SeriesInstanceUID"], pa.array(series_uids, pa.string()))
        if not pc.all(wanted, min_count=0).as_py():
            raise BadAnswer("the archive sent metadata of series that were not asked for")
        return table

    def sop_instance_uids(self, series_uid: str) -> list[str]:
        """Return the SOPInstanceUIDs of a series; the server answers for hidden series too."""
        return _names(self._list("sop_instance_uids", series_uid=series_uid), "SOPInstanceUID")

    # --- images

    def image_with_md5(self, series_uid: str, read: Callable[[Iterator[bytes]], T]) -> T:
        """Download the files of a series and ``md5hashes.csv``, as one zip.

        Args:
            series_uid: SeriesInstanceUID.
            read: takes the bytes and returns what this method shall return. Where the stream breaks it is
                called again from the first byte, so it must start afresh.

        Raises:
            NotAvailable: unknown, hidden or forbidden; the archive does not tell which.
        """
        return self._bytes("image_with_md5", read, series_uid=series_uid)

    def single_image(self, series_uid: str, sop_instance_uid: str, read: Callable[[Iterator[bytes]], T]) -> T:
        """Download one DICOM file; see :meth:`image_with_md5` for `read`.

        A missing file is a 500 (server), hence an ArchiveUnreachable after a few tries.
        """
        return self._bytes("single_image", read, series_uid=series_uid, sop_instance_uid=sop_instance_uid)

    # --- how calls are made

    def _bytes(self, name: str, read: Callable[[Iterator[bytes]], T], **arguments: str) -> T:
        endpoint = self._dialect.endpoints[name]
        return self._session.call(
            endpoint.method,
            endpoint.path,
            _on_the_wire(endpoint, arguments),
            lambda answer: read(answer.iter_content(CHUNK_BYTES)),
        )

    def _list_of_collection(self, name: str, collection: str) -> pa.Table:
        table = self._rows_of_collection(name, collection)
        sent = pc.unique(table["Collection"]).to_pylist()
        others = [c for c in sent if c is None or c.casefold() != collection.casefold()]
        if others:
            # The server ignores a filter that it does not know and sends the whole archive.
            raise BadAnswer(f"asked for collection {collection!r}, the archive sent rows of {others[:3]}")
        return table

    def _rows_of_collection(self, name: str, collection: str) -> pa.Table:
        """Ask for what a collection holds; empty is refused while the archive lists it: it has series then.

        Between two calls a token can run out and a collection can come or go, so it is asked a few times.
        """
        for _ in range(self._session.patience.tries):
            table = self._list(name, collection=collection)
            if table.num_rows or collection not in self.collection_values():
                return table
        raise BadAnswer(
            f"the archive lists collection {collection!r}, but sends nothing of it: nothing is changed, try later",
            may_pass=True,
        )

    def _list(self, name: str, **arguments: str | date | Sequence[str]) -> pa.Table:
        """Call a list endpoint. An empty answer is believed only with a token that was just confirmed."""
        endpoint = self._dialect.endpoints[name]
        doubtful = endpoint.swallows_refusal and self._session.tokens is not None
        try:
            table = self._rows(endpoint, arguments)
            if table.num_rows or not doubtful:
                return table
        except ArchiveUnreachable as e:
            # Server: v4's getSeries answers a stale token with a 500.
            if e.status != 500 or not doubtful or self._dialect.needs_token:
                raise
        self._confirm_token()
        return self._rows(endpoint, arguments)

    def _confirm_token(self) -> None:
        """Make sure that the next call goes out with a token that the archive takes.

        v2: getCollectionValues answers 401 where the lists answer "no rows", and the session then logs in
        anew. v4 swallows it there too, so the token is replaced.
        """
        if self._dialect.endpoints["collection_values"].swallows_refusal:
            tokens = self._session.tokens
            if tokens:
                tokens.reject(tokens.current())
            return
        self._rows(self._dialect.endpoints["collection_values"], {})

    def _rows(self, endpoint: Endpoint, arguments: dict[str, str | date | Sequence[str]]) -> pa.Table:
        shape = endpoint.shape
        assert shape is not None  # noqa: S101 - lists have one

        def read(answer: requests.Response) -> pa.Table:
            if endpoint.media == "csv":
                return read_csv(_utf8(answer.content), shape)
            return read_json(answer.iter_content(CHUNK_BYTES), shape)

        return self._session.call(endpoint.method, endpoint.path, _on_the_wire(endpoint, arguments), read)

    def _with_counts(self, values: str, counts: str, null_as: str) -> pa.Table:
        """Join a list of values with its counts; the server counts null under a name of its own."""
        table = self._list(values)
        counted = self._list(counts)
        value = self._dialect.endpoints[values].shape
        assert value is not None  # noqa: S101 - lists have one
        names = table[value.keys[0].name].to_pylist()
        patients = _by_name(names, counted, null_as)
        return table.set_column(
            table.schema.get_field_index("PatientCount"),
            table.schema.field("PatientCount"),
            pa.array([patients.get(n) for n in names], pa.int64()),
        )

    def _metadata_in_bulk(self, series_uids: Sequence[str]) -> pa.Table:
        size = self._dialect.endpoints["series_metadata_bulk"].at_most
        runs = [series_uids[i : i + size] for i in range(0, len(series_uids), size)]
        return pa.concat_tables([self._list("series_metadata_bulk", series_uids=run, format="JSON") for run in runs])

    def _metadata_one_by_one(self, series_uids: Sequence[str]) -> pa.Table:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="nbia-metadata") as pool:
            return pa.concat_tables(pool.map(lambda uid: self._list("series_metadata", series_uid=uid), series_uids))


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


def _names(table: pa.Table, column: str) -> list[str]:
    if table[column].null_count:
        raise BadAnswer(f"the archive sent {table[column].null_count} rows without {column}: try later")
    return list(table[column].to_pylist())


def _on_the_wire(
    endpoint: Endpoint, arguments: dict[str, str | date | Sequence[str]] | dict[str, str]
) -> dict[str, str]:
    """Spell names and values as the endpoint wants them.

    The server ignores a name that it does not know, and an empty value matches nothing: both are refused here.
    """
    wire = {}
    for name, value in arguments.items():
        if name not in endpoint.parameters:
            if name == "format":  # JSON is the only format that some endpoints have
                continue
            raise ValueError(f"{endpoint.path} takes no {name}")
        if isinstance(value, date):
            text = value.strftime(endpoint.date_format)
        else:
            text = value if isinstance(value, str) else ",".join(value)
        if not text:
            raise ValueError(f"{name} is empty: {endpoint.path} would answer with nothing")
        wire[endpoint.parameters[name]] = text
    return wire


def _utf8(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise BadAnswer(f"the answer is not UTF-8: {e}") from e
