"""Patients, studies and series as tables; what the server filters wrongly is filtered here."""

from __future__ import annotations

from datetime import date

import pyarrow as pa

from nbia_pipeline.archive.calls import Caller
from nbia_pipeline.archive.errors import BadAnswer
from nbia_pipeline.archive.expect import (
    equals_ignoring_case,
    expect_mostly,
    expect_released_after,
    expect_value,
    only,
    without_gaps,
)
from nbia_pipeline.schema.arrow import first_of_each


class ListingCalls(Caller):
    """The calls that list what a collection holds, and what is new in it."""

    # --- patients

    def patients(self, collection: str, *, patient_id: str | None = None) -> pa.Table:
        """Return the patients of a collection: table ``patients``.

        Args:
            collection: name, as :meth:`collection_values` spells it.
            patient_id: only this one, in its exact case. It is looked for here: v2 finds no ID that holds a
                lower-case letter (server).
        """
        if patient_id is not None and not patient_id:
            raise ValueError("patient_id is empty: nothing would match it")
        table = expect_value(self._rows_of_collection("patients", collection), "Collection", collection)
        return only(first_of_each(table, "Collection", "PatientID"), "PatientID", patient_id)

    def patients_by_collection_and_modality(self, collection: str, modality: str) -> list[str]:
        """Return the PatientIDs of a collection that have a series of a modality, each once.

        Args:
            collection: name, as :meth:`collection_values` spells it.
            modality: like ``CT``, in any case.
        """
        table = self._list("patients_by_collection_and_modality", collection=collection, modality=modality)
        return list(dict.fromkeys(without_gaps(table, "PatientID")))

    def new_patients(self, collection: str, since: date) -> pa.Table:
        """Return the patients with a series released on the day `since` or later: table ``patients``.

        v2 has no such filter, only one for "after": it is asked for the day before, and sends patients of that
        day too where a release has a time of day.

        Args:
            collection: name, as :meth:`collection_values` spells it.
            since: a day.
        """
        table = expect_value(self._list("new_patients", collection=collection, since=since), "Collection", collection)
        return first_of_each(table, "Collection", "PatientID")

    # --- studies

    def studies(self, collection: str, *, patient_id: str | None = None, study_uid: str | None = None) -> pa.Table:
        """Return the studies of a collection: table ``studies``.

        A study that spans collections is listed under each and names one of them (server).

        Args:
            collection: name, as :meth:`collection_values` spells it.
            patient_id: only of this patient, in the exact case.
            study_uid: only the study of this StudyInstanceUID.
        """
        if patient_id is None and study_uid is None:
            return expect_mostly(self._rows_of_collection("studies", collection), "Collection", collection)
        table = self._list("studies", collection=collection, patient_id=patient_id, study_uid=study_uid)
        return _of_patient_and_study(table, patient_id, study_uid)

    def new_studies(self, collection: str, since: date, *, patient_id: str | None = None) -> pa.Table:
        """Return the studies with a series released on the day `since` or later: table ``studies``.

        ``SeriesCount`` counts the new series only (server). For what v2 sends more see :meth:`new_patients`.

        Args:
            collection: name, as :meth:`collection_values` spells it.
            since: a day.
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
        """Return series: table ``series``. All that is given must hold.

        Body part, manufacturer and model are looked for here, in any case and whatever blanks stand around
        them: v2 compares them case-sensitively with what is stored, and lists them upper-cased (server).

        Args:
            collection: name, as :meth:`collection_values` spells it.
            patient_id: PatientID in its exact case.
            study_uid: StudyInstanceUID.
            series_uid: SeriesInstanceUID.
            modality: like ``CT``, in any case.
            body_part: BodyPartExamined.
            manufacturer: Manufacturer.
            model: ManufacturerModelName.

        Raises:
            ValueError: neither a collection nor a patient, study or series is named: the answer would be the
                whole archive.
        """
        named = {"patient_id": patient_id, "study_uid": study_uid, "series_uid": series_uid, "modality": modality}
        if collection is None and (patient_id or study_uid or series_uid) is None:
            raise ValueError("name a collection, a patient, a study or a series: the archive is too large")
        if collection is not None and not any(v is not None for v in named.values()):
            table = self._rows_of_collection("series", collection)
        else:
            table = self._list("series", collection=collection, **named)
        table = expect_value(table, "Collection", collection)
        table = expect_value(table, "SeriesInstanceUID", series_uid)
        table = expect_value(table, "Modality", modality)
        table = _of_patient_and_study(table, patient_id, study_uid)
        wanted = {"BodyPartExamined": body_part, "Manufacturer": manufacturer, "ManufacturerModelName": model}
        for column, value in wanted.items():
            table = equals_ignoring_case(table, column, value)
        return table

    def updated_series(self, since: date) -> pa.Table:
        """Return the series released after the day `since`: table ``series``, with what v2 sends of it.

        The filter is strict, and releases can be back-dated: it is a hint, not a feed. A release at the midnight
        of `since` is not sent, so ask from some days before the last one that was seen.

        Args:
            since: a day.

        Raises:
            BadAnswer: a row was released before: the archive read the day as another one.
        """
        shape = self._dialect.endpoint("updated_series").shape
        assert shape is not None  # noqa: S101 - lists have one
        return expect_released_after(self._list("updated_series", since=since), since, shape)

    def contents_by_name(self, name: str) -> pa.Table:
        """Return the series of a shared cart: table ``series``, with what v2 sends of it.

        An unknown cart has no rows, and series that are no longer visible are left out without a word (server).

        Args:
            name: of the cart, in any case.

        Raises:
            NotServed: v4 has no carts.
        """
        return self._list("contents_by_name", name=name)

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
            retryable=True,
        )


def _of_patient_and_study(table: pa.Table, patient_id: str | None, study_uid: str | None) -> pa.Table:
    """Return the rows of a patient and a study.

    The server compares PatientIDs without regard to case, but two that differ in it are two patients.
    """
    table = expect_value(table, "PatientID", patient_id)
    table = expect_value(table, "StudyInstanceUID", study_uid)
    return only(table, "PatientID", patient_id)
