"""The client: one method per call, days as `date`, tables as Arrow, images as streams of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import date
from types import TracebackType

import pyarrow as pa

from nbia_pipeline.archive.bodies import Downloads
from nbia_pipeline.archive.calls import Take, Taken
from nbia_pipeline.archive.endpoints import DIALECTS
from nbia_pipeline.archive.errors import BadAnswer, NotServed
from nbia_pipeline.archive.expect import (
    equals_ignoring_case,
    expect_few_others,
    expect_mostly,
    expect_released_after,
    expect_value,
    named,
    one_row_each,
    rows_of_collection,
    rows_with,
    split_by_collection,
)
from nbia_pipeline.archive.metadata import MetadataCalls
from nbia_pipeline.archive.optional import OptionalCalls
from nbia_pipeline.archive.transport import ClientOptions, Session
from nbia_pipeline.schema import GUEST, shapes
from nbia_pipeline.schema.arrow import first_of_each, repeats
from nbia_pipeline.schema.tables import PATIENTS, SERIES, STUDIES


@dataclass(frozen=True)
class SeriesSize:
    """How large a series is.

    Attributes:
        file_size: sum of the sizes of its DICOM files in bytes, uncompressed: not what a download transfers.
        image_count: number of its instances.
    """

    file_size: int
    image_count: int


class NbiaClient(MetadataCalls, Downloads):
    """A client for one NBIA archive, usable from any number of threads.

    Args:
        base_url: address that ends in ``/nbia-api``.
        api: ``v2`` (the guide's, with a token) or ``v4`` (no token needed).
        username: account at the archive; the guest by default.
        password: its password; the guest has none.
        ca_bundle: file of certificates to trust, or None for the system's.
        options: time-outs, retries, and how many requests are in flight at a time.

    Every method raises :class:`~nbia_pipeline.archive.errors.ArchiveError` where the call fails, and never
    returns an empty table because a token was refused. An argument that cannot be sent (an empty name, a day as
    text) is a ValueError or TypeError before anything is sent.

    An argument that a method does not explain is one of these: `collection`, a name as ``collection_values``
    spells it (lists of values, and their counts, take it in any case); `modality`, `body_part` and `manufacturer`, in
    any case; `study_uid`, `series_uid` and `sop_instance_uid`, the UIDs of DICOM; `since`, a day.

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
        options: ClientOptions | None = None,
    ) -> None:
        if api not in DIALECTS:
            raise ValueError(f"api is {api!r}: use {' or '.join(DIALECTS)}")
        # On v4 a stale token is worse than none, so the guest gets none.
        account = (username, password) if DIALECTS[api].needs_token or username != GUEST else None
        self._username = username
        super().__init__(Session(base_url, account, ca_bundle=ca_bundle, options=options), DIALECTS[api])

    def __enter__(self) -> NbiaClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        self.close(log_out=not interrupted)  # an archive that does not answer must not delay an interrupt

    def again(self, options: ClientOptions) -> NbiaClient:
        """Return a client that shares the token and the connections of this one, and keeps its own account of warnings.

        It is not closed: this one is, when none of those that share with it is in use.
        """
        other = copy(self)
        other._session = self._session.again(options)
        other.optional_calls = OptionalCalls()
        return other

    @property
    def api(self) -> str:
        """The dialect that the archive is asked in, ``v2`` or ``v4``."""
        return self._dialect.name

    @property
    def misses_updates(self) -> bool:
        """Whether :meth:`updated_series` leaves out what the account may see and the guest not: on v4 (server)."""
        return self._dialect.public_updates and self._username != GUEST

    def close(self, *, log_out: bool = True) -> None:
        """Log out, best effort, and close the connections; without a logout the token expires on its own."""
        self._session.close(log_out=log_out)

    # --- values and counts, of the entire archive or of a filtered part of it

    def modalities(self, collection: str | None = None, *, body_part: str | None = None) -> list[str | None]:
        """Return the modalities in use, in the server's order; None stands for series without one.

        v2 returns them as stored, v4 upper-cased (server).
        """
        return self._values("modality_values", collection=collection, body_part=body_part)

    def body_parts(self, collection: str | None = None, *, modality: str | None = None) -> list[str | None]:
        """Return the body parts in use, upper-cased (server); None stands for series without one."""
        return self._values("body_part_values", collection=collection, modality=modality)

    def manufacturers(
        self, collection: str | None = None, *, modality: str | None = None, body_part: str | None = None
    ) -> list[str | None]:
        """Return the manufacturers in use; None stands for series without one.

        v2 returns them as stored, so that one may come in several spellings; v4 upper-cased (server).
        """
        return self._values("manufacturer_values", collection=collection, modality=modality, body_part=body_part)

    def collection_counts(self) -> dict[str, int]:
        """Return the number of patients by collection."""
        counts = self._list("collection_counts")
        return dict(zip(counts["criteria"].to_pylist(), counts["count"].to_pylist(), strict=True))

    def modality_counts(
        self, collection: str | None = None, *, body_part: str | None = None
    ) -> dict[str | None, int | None]:
        """Return the number of patients by modality."""
        return self._counts("modality_counts", collection, body_part=body_part)

    def body_part_counts(
        self, collection: str | None = None, *, modality: str | None = None
    ) -> dict[str | None, int | None]:
        """Return the number of patients by body part."""
        return self._counts("body_part_counts", collection, modality=modality)

    def manufacturer_counts(
        self, collection: str | None = None, *, modality: str | None = None, body_part: str | None = None
    ) -> dict[str | None, int | None]:
        """Return the number of patients by manufacturer."""
        return self._counts("manufacturer_counts", collection, modality=modality, body_part=body_part)

    def modality_values(self) -> pa.Table:
        """Return the modalities with the number of patients of each: table ``modalities``.

        This number is null where the archive does not answer for it; so it is in the next two tables.
        """
        return self._with_counts("modality_values", "modality_counts")

    def body_part_values(self) -> pa.Table:
        """Return the body parts, upper-cased by the server, with patients: table ``body_parts``."""
        return self._with_counts("body_part_values", "body_part_counts")

    def manufacturer_values(self) -> pa.Table:
        """Return the manufacturers with the number of patients of each: table ``manufacturers``."""
        return self._with_counts("manufacturer_values", "manufacturer_counts")

    def collection_description(self, collection: str) -> pa.Table:
        """Return the description of one collection, in its exact spelling: no row, or one, or several."""
        return self._list("collection_descriptions", collection=collection)

    def licenses(self) -> pa.Table:
        """Return the licenses that the archive knows: getLicenses, which needs no token (server).

        Columns: ``LicenseName`` (long), ``LicenseID``, ``LicenseShortName``, ``LicenseURI``, ``LicenseText``,
        ``CommercialUse`` (``YES`` or ``NO``).
        """
        return self._list("licenses")

    def collection_or_series_for_doi(self, doi: str, *, by_series: bool = False) -> pa.Table:
        """Return what a DOI stands for: collections, or its series one by one.

        Columns: ``Collection``, ``SeriesInstanceUID``, ``ThirdPartyAnalysis``; what was not asked for is null. A
        collection has two rows where some of its series are by third parties.
        Hidden series are listed too (server): not every one can be downloaded.

        Args:
            doi: the address as the archive stores it, like ``https://doi.org/10.7937/...``: the column
                ``CollectionURI`` of table ``series``.
            by_series: a row per series rather than per collection.
        """
        table = self._list("collection_or_series_for_doi", doi=doi, per="series" if by_series else "collection")
        return first_of_each(table, *table.schema.names)

    # --- patients

    def patients(self, collection: str, *, patient_id: str | None = None) -> pa.Table:
        """Return the patients of a collection: table ``patients``.

        Args:
            patient_id: only this one, in its exact case. The client filters by it: v2 finds no ID that contains a
                lower-case letter (server).
        """
        if patient_id is not None and not patient_id:
            raise ValueError("patient_id is empty: nothing would match it")
        table = self._of_collection(self._rows_of_collection("patients", collection), collection)
        return rows_with(one_row_each(table, PATIENTS, "PatientID"), "PatientID", patient_id)

    def patients_by_collection_and_modality(self, collection: str, modality: str) -> list[str]:
        """Return the PatientIDs of a collection that have a series of a modality, each once."""
        table = self._list("patients_by_collection_and_modality", collection=collection, modality=modality)
        return list(dict.fromkeys(named(table, "PatientID", shapes.PATIENT_ID)))

    def new_patients(self, collection: str, since: date) -> pa.Table:
        """Return the patients with a series released on the day `since` or later: table ``patients``.

        v2 has no such filter, only one for "after": it is asked for the day before, and also sends patients
        of that day whose release has a time of day.
        """
        table = self._of_collection(self._list("new_patients", collection=collection, since=since), collection)
        return one_row_each(table, PATIENTS, "PatientID")

    # --- studies

    def studies(self, collection: str, *, patient_id: str | None = None, study_uid: str | None = None) -> pa.Table:
        """Return the studies of a collection: table ``studies``.

        A study that spans collections is listed under each and names one of them (server).

        Args:
            patient_id: only of this patient, in the exact case.
        """
        if patient_id is None and study_uid is None:
            table = expect_mostly(self._rows_of_collection("studies", collection), "Collection", collection)
            table = rows_of_collection(table, collection, self.collection_values, may_span=True)
            return one_row_each(table, STUDIES, "StudyInstanceUID")
        table = self._list("studies", collection=collection, patient_id=patient_id, study_uid=study_uid)
        return _of_patient_and_study(table, patient_id, study_uid)

    def new_studies(self, collection: str, since: date, *, patient_id: str | None = None) -> pa.Table:
        """Return the studies with a series released on the day `since` or later: table ``studies``.

        ``SeriesCount`` counts the new series only (server). v2 sends more, see :meth:`new_patients`.

        Args:
            patient_id: only of this patient, in the exact case.
        """
        table = self._list("new_studies", collection=collection, since=since, patient_id=patient_id)
        return _of_patient_and_study(table, patient_id, None)

    # --- series

    def series(
        self,
        collection: str | None = None,
        *,
        patient_id: str | None = None,
        study_uid: str | None = None,
        series_uid: str | None = None,
        modality: str | None = None,
        body_part: str | None = None,
        manufacturer: str | None = None,
        model: str | None = None,
    ) -> pa.Table:
        """Return series: table ``series``. All filters must match.

        The client filters by body part, manufacturer and model, ignoring case and surrounding blanks: v2
        compares them case-sensitively with what is stored, and lists them upper-cased (server).

        Args:
            patient_id: PatientID in its exact case.
            model: ManufacturerModelName.

        Raises:
            ValueError: neither a collection nor a patient, study or series is named: the answer would be the entire
                archive.
        """
        named = {"patient_id": patient_id, "study_uid": study_uid, "series_uid": series_uid, "modality": modality}
        if collection is None and (patient_id or study_uid or series_uid) is None:
            raise ValueError("name a collection, a patient, a study or a series: the entire archive is too large")
        if collection is not None and not any(v is not None for v in named.values()):
            table: pa.Table = self._rows_of_collection("series", collection)
        else:
            table = self._list("series", collection=collection, **named)
        if collection is not None:
            table = self._of_collection(table, collection)
        table = one_row_each(expect_value(table, "SeriesInstanceUID", series_uid), SERIES, "SeriesInstanceUID")
        table = expect_value(table, "Modality", modality)
        table = _of_patient_and_study(table, patient_id, study_uid)
        wanted = {"BodyPartExamined": body_part, "Manufacturer": manufacturer, "ManufacturerModelName": model}
        for column, value in wanted.items():
            table = equals_ignoring_case(table, column, value)
        return table

    def series_in_pieces(self, collection: str, take: Take[Taken]) -> Taken | pa.Table:
        """Return the series of a collection as :meth:`series` does, without ever having all of them as a table.

        Args:
            take: takes the rows as they come, all of them, and returns what has them. It is called again if the call
                is, and what it returned before does not count then.

        Returns:
            What `take` returned; a table if the archive repeats a series.

        Raises:
            BadAnswer: as :meth:`series`.
        """
        others: list[pa.Table] = []

        def exact(pieces: Iterator[pa.Table]) -> Iterator[pa.Table]:
            others.clear()
            for piece in pieces:
                here, elsewhere = split_by_collection(piece, collection)
                others.append(elsewhere)
                yield here

        def expect_few(taken: Taken) -> Taken:
            foreign = pa.concat_tables(others)
            expect_few_others(foreign, foreign.num_rows + taken.num_rows, collection, self.collection_values)
            return taken

        def take_exact(pieces: Iterator[pa.Table]) -> Taken:
            taken = take(exact(pieces))
            return taken if taken.num_rows else expect_few(taken)  # nothing but others is not "no rows"

        taken = expect_few(self._rows_of_collection("series", collection, take_exact))
        if repeats(taken["SeriesInstanceUID"]):
            return one_row_each(taken.to_table(), SERIES, "SeriesInstanceUID")
        return taken

    def updated_series(self, since: date) -> pa.Table:
        """Return the series released after the day `since`: table ``series``, with what v2 sends of it.

        The filter is strict, and releases can be back-dated: it is a hint, not a feed. A release at the midnight
        of `since` is not sent, so ask from some days before the last known one. v4 sends what the guest may see,
        whatever the account (server).

        Raises:
            BadAnswer: a row was released before: the archive read the day as another one.
        """
        shape = self._dialect.endpoint("updated_series").rows
        return expect_released_after(self._list("updated_series", since=since), since, shape)

    def contents_by_name(self, name: str) -> pa.Table:
        """Return the series of a shared cart: table ``series``, with what v2 sends of it.

        An unknown cart has no rows, and series that are no longer visible are left out silently (server).

        Args:
            name: of the cart, in any case.

        Raises:
            NotServed: v4 has no carts, and an archive can lack the call.
        """
        try:
            return self._list("contents_by_name", name=name)
        except BadAnswer as e:
            if e.status not in (404, 405, 500):
                raise
            what = "this archive has no shared carts: name the series one by one, or in a manifest"
            raise NotServed(what, status=e.status, body=e.body).at(e.endpoint, e.parameters) from e

    # --- one series

    def series_size(self, series_uid: str) -> SeriesSize | None:
        """Return the size of a series, or None where the archive knows none: unknown, or without images.

        Slow at the server; table ``series`` has both numbers. v2 checks no rights; v4 knows no size of a series that
        the guest may not see, whatever the account (server).

        Raises:
            BadAnswer: more than one row.
        """
        rows = self._list("series_size", series_uid=series_uid).to_pylist()
        if len(rows) > 1:
            raise BadAnswer(f"the archive sent {len(rows)} sizes of one series")
        # Server: v2 answers with a row of nulls for a series that it does not know.
        if not rows or not rows[0]["ImageCount"] or rows[0]["FileSize"] is None:
            return None
        return SeriesSize(rows[0]["FileSize"], rows[0]["ImageCount"])

    def series_states(self, series_uids: Sequence[str]) -> pa.Table:
        """Return the state of series of any visibility, hidden ones too: getSeriesQCInfo.

        Columns: ``SeriesInstanceUID``, ``Visibility`` (such as ``Visible``, ``Not Visible``, ``To Be Deleted``) and
        ``Collection``. A series that was deleted, or that the account is not permitted to see, has no row (server).
        """
        return self._in_runs("series_states", series_uids)

    def denied_series(self, series_uids: Sequence[str]) -> set[str]:
        """Return which series the archive does not serve to the account: hidden, deleted or not permitted.

        No series at all is also the answer to an account without any rights (server).
        """
        account = {} if self._username == GUEST else {"username": self._username}
        denied = self._in_runs("denied_series", series_uids, **account)
        return set(named(denied, "SeriesInstanceUID", self._dialect.endpoint("denied_series").rows))

    def sop_instance_uids(self, series_uid: str) -> list[str]:
        """Return the SOPInstanceUIDs of a series; the server answers for hidden series too."""
        listed = self._list("sop_instance_uids", series_uid=series_uid)
        return named(listed, "SOPInstanceUID", shapes.SOP_INSTANCE_UIDS)

    def dicom_tags(self, series_uid: str) -> pa.Table:
        r"""Return the header of one arbitrary image of a series, attribute by attribute.

        Columns: ``Tag`` like ``(0008,0060)``, with a ``>`` in front for each sequence that it is nested in;
        ``Name``; ``Value`` as text, several values joined by ``\``, or null. A sequence ends with a row whose
        name begins with ``End``. No pixel data. Without images there are no rows (server).

        Raises:
            NotAvailable: unknown, hidden or forbidden; the archive does not distinguish them.
        """
        return self._list("dicom_tags", series_uid=series_uid)

    # --- what several calls share

    def _of_collection(self, table: pa.Table, collection: str) -> pa.Table:
        return rows_of_collection(table, collection, self.collection_values)


def _of_patient_and_study(table: pa.Table, patient_id: str | None, study_uid: str | None) -> pa.Table:
    """Return the rows of a patient and a study.

    The server compares PatientIDs without regard to case, but two that differ in it are two patients.
    """
    table = expect_value(table, "PatientID", patient_id)
    table = expect_value(table, "StudyInstanceUID", study_uid)
    return rows_with(table, "PatientID", patient_id)
