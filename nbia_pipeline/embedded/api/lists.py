"""The list endpoints of v2 and v4, as queries over the facts of the holdings."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.embedded.api import dates
from nbia_pipeline.embedded.api.endpoint import NO_CONTENT, Call, Handler, Reply, Rows, ServerFault
from nbia_pipeline.embedded.catalog.holdings import ANY_VISIBILITY, DOWNLOADABLE, ONLY_VISIBLE
from nbia_pipeline.schema import shapes
from nbia_pipeline.schema.shapes import Shape

_AUTHORIZED = next(k for k in shapes.SERIES_V4.keys if k.name == "Authorized")
_PATIENT_ID_V4 = Shape("PATIENT_ID4", None, (*shapes.PATIENT_ID.keys, _AUTHORIZED))
_ROW = "__row"


def collection_values(call: Call) -> Rows:
    """getCollectionValues: collections with a visible series that the caller may see."""
    held = call.holdings
    names = [n for n in held.collections() if held.select(call.rights, n, ignore_case=False).num_rows]
    return Rows(pa.table({"Collection": pa.array(names, pa.string())}), shapes.COLLECTION_VALUE)


def values(shape: Shape, upper: bool) -> Handler:
    """Make one of getModalityValues, getBodyPartValues, getManufacturerValues.

    Server: sorted by the upper-cased value; body parts always, all of them in v4, are upper-cased; a null
    gives a leading ``{}``.

    Args:
        shape: shape of the answer, whose only key names the column.
        upper: whether the values are written in upper case.
    """
    name = shape.keys[0].name

    def handler(call: Call) -> Rows:
        column = filtered(call, _VALUE_FILTERS)[name]
        distinct = pc.unique(pc.utf8_upper(column) if upper else column).to_pylist()
        ordered = sorted(distinct, key=lambda v: ("", "") if v is None else (v.upper(), v))
        return Rows(pa.table({name: pa.array(ordered, pa.string())}), shape)

    return handler


def patients_v2(call: Call) -> Rows:
    """getPatient of v2. Server: compares the stored PatientID with the upper-cased parameter."""
    rows = filtered(call, {})
    if "PatientId" in call.query:
        rows = _where(rows, "PatientID", call.query["PatientId"].upper())
    return Rows(_distinct(rows, ["Collection", "PatientID"]), shapes.PATIENT)


def patients_v4(call: Call) -> Rows:
    """getPatient of v4: the PatientId is compared exactly."""
    rows = filtered(call, {})
    if "PatientId" in call.query:
        rows = _where(rows, "PatientID", call.query["PatientId"])
    return Rows(authorised(_distinct(rows, ["Collection", "PatientID"])), shapes.PATIENT_V4)


def patient_ids_by_modality_v2(call: Call) -> Rows:
    """getPatientByCollectionAndModality. Server: distinct over hidden columns, so that an ID can repeat."""
    rows = filtered(call, {"Modality": "Modality"})
    return Rows(_distinct(rows, ["PatientID", "StudyInstanceUID"]), shapes.PATIENT_ID)


def patient_ids_by_modality_v4(call: Call) -> Rows:
    """getPatientByCollectionAndModality of v4."""
    return Rows(authorised(patient_ids_by_modality_v2(call).table), _PATIENT_ID_V4)


def new_patients_v2(call: Call) -> Rows:
    """NewPatientsInCollection: patients with a series released after the day (strictly)."""
    rows = _released(filtered(call, {}), dates.year_first(call.query["Date"]))
    return Rows(_distinct(rows, ["Collection", "PatientID"]), shapes.PATIENT)


def new_patients_v4(call: Call) -> Rows:
    """NewPatientsInCollection of v4: on the day or after it."""
    rows = _released(filtered(call, {}), dates.month_first(call.query["fromDate"]), on_the_day=True)
    return Rows(authorised(_distinct(rows, ["Collection", "PatientID"])), shapes.PATIENT_V4)


def studies_v2(call: Call) -> Rows:
    """getPatientStudy of v2."""
    return Rows(_studies(filtered(call, _STUDY_FILTERS, exact=_UIDS)), shapes.STUDY)


def studies_v4(call: Call) -> Rows:
    """getPatientStudy of v4."""
    return Rows(authorised(_studies(filtered(call, _STUDY_FILTERS, exact=_UIDS))), shapes.STUDY_V4)


def new_studies_v2(call: Call) -> Rows:
    """NewStudiesInPatientCollection: SeriesCount counts the new series only."""
    rows = _released(filtered(call, _STUDY_FILTERS, exact=_UIDS), dates.year_first(call.query["Date"]))
    return Rows(_studies(rows), shapes.STUDY)


def new_studies_v4(call: Call) -> Rows:
    """NewStudiesInPatientCollection of v4: on the day or after it."""
    rows = _released(
        filtered(call, _STUDY_FILTERS, exact=_UIDS), dates.month_first(call.query["fromDate"]), on_the_day=True
    )
    return Rows(authorised(_studies(rows)), shapes.STUDY_V4)


def series_v2(call: Call) -> Rows:
    """getSeries of v2. Server: body part, manufacturer and model are compared case-sensitively."""
    return Rows(_series(call, ignore_case=False), shapes.SERIES_V2)


def series_v4(call: Call) -> Rows:
    """getSeries of v4. Server: all text is compared without regard to case."""
    return Rows(authorised(_series(call, ignore_case=True)), shapes.SERIES_V4)


def updated_series_v2(call: Call) -> Rows:
    """getUpdatedSeries of v2: released strictly after the midnight that begins the day."""
    since = dates.day_first(call.query.get("fromDate", "01/01/1900"))
    return Rows(_released(call.holdings.select(call.rights), since), shapes.SERIES_SHORT)


def updated_series_v4(call: Call) -> Rows:
    """getUpdatedSeries of v4: strictly after, with all columns and the guest's rights."""
    since = dates.month_first(call.query.get("fromDate", "01-01-1900"))
    return Rows(authorised(_released(call.holdings.select(frozenset()), since)), shapes.SERIES_V4)


def series_metadata_v2(call: Call) -> Rows | Reply:
    """getSeriesMetaData: one row of text.

    Server: 204 if the series is unknown, hidden or not permitted; 500 without images or licence address.
    """
    uid = call.query["SeriesInstanceUID"]
    row = call.holdings.one_series(uid, call.rights, ONLY_VISIBLE | {DOWNLOADABLE})
    if not row.num_rows:
        return NO_CONTENT
    if not row["ImageCount"][0].as_py() or row["LicenseURI"][0].as_py() is None:
        raise ServerFault
    return Rows(_meta27(row), shapes.META27)


def series_metadata_v4(call: Call) -> Rows:
    """getSeriesMetadata of v4: CSV unless JSON is asked for. Server: an empty list is a 500."""
    uids = [uid for text in call.form["list"] for uid in text.split(",") if uid]
    if not uids:
        raise ServerFault
    rows = call.holdings.among(uids, call.rights)
    return Rows(authorised(rows), shapes.METADATA_V4, default_format="CSV-DOWNLOAD")


def series_size_v2(call: Call) -> Rows:
    """getSeriesSize of v2. Server: rights are not checked; an unknown series is a row with holes."""
    rows = call.holdings.one_series(call.query["SeriesInstanceUID"], None)
    if not rows.num_rows:
        rows = pa.table({"FileSize": pa.nulls(1, pa.int64()), "ImageCount": pa.array([0], pa.int64())})
    return Rows(rows, shapes.SERIES_SIZE)


def series_size_v4(call: Call) -> Rows:
    """getSeriesSize of v4: the guest's rights, nothing for an unknown series."""
    return Rows(call.holdings.one_series(call.query["SeriesInstanceUID"], frozenset()), shapes.SERIES_SIZE)


def sop_instance_uids_v2(call: Call) -> Rows:
    """getSOPInstanceUIDs of v2: rights are checked, visibility is not."""
    return _sop_instance_uids(call, call.rights)


def sop_instance_uids_v4(call: Call) -> Rows:
    """getSOPInstanceUIDs of v4: neither rights nor visibility are checked."""
    return _sop_instance_uids(call, None)


def contents_by_name(call: Call) -> Rows:
    """getContentsByName: a shared cart, always as JSON.

    Server: the name is compared without regard to case; series that are no longer visible are left out
    silently; an unknown name has no rows.
    """
    wanted = call.query["name"].casefold()
    carts = call.holdings.catalog.carts.items()
    uids = [uid for name, listed in carts if name.casefold() == wanted for uid in listed]
    return Rows(call.holdings.among(uids, call.rights), shapes.SERIES_CART)


def authorised(rows: pa.Table) -> pa.Table:
    """Add v4's column ``Authorized``, which is 1 on every row that is sent."""
    return rows.append_column("Authorized", pa.repeat(pa.scalar(1, pa.int64()), rows.num_rows))


def filtered(
    call: Call,
    parameters: dict[str, str],
    *,
    exact: frozenset[str] = frozenset(),
    exact_collection: bool = False,
) -> pa.Table:
    """Return the visible series of the caller that pass the filters of the query.

    A parameter that is absent does not filter; an empty one keeps rows with the empty string, hence none.

    Args:
        call: the request.
        parameters: column by name of the parameter, besides ``Collection``.
        exact: parameters that are compared case-sensitively.
        exact_collection: whether the collection is, too.
    """
    rows = call.holdings.select(call.rights, call.query.get("Collection"), ignore_case=not exact_collection)
    for parameter, column in parameters.items():
        if parameter in call.query:
            rows = _where(rows, column, call.query[parameter], ignore_case=parameter not in exact)
    return rows


_VALUE_FILTERS = {"Modality": "Modality", "BodyPartExamined": "BodyPartExamined"}
_STUDY_FILTERS = {"PatientID": "PatientID", "StudyInstanceUID": "StudyInstanceUID"}
_UIDS = frozenset({"SeriesInstanceUID", "StudyInstanceUID"})
_CASED_IN_V2 = frozenset({"BodyPartExamined", "Manufacturer", "ManufacturerModelName"})
_SERIES_FILTERS = {
    name: name
    for name in (
        "PatientID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "Modality",
        "BodyPartExamined",
        "ManufacturerModelName",
        "Manufacturer",
    )
}


def _series(call: Call, ignore_case: bool) -> pa.Table:
    return filtered(call, _SERIES_FILTERS, exact=_UIDS if ignore_case else _UIDS | _CASED_IN_V2)


def _where(rows: pa.Table, column: str, value: str, ignore_case: bool = False) -> pa.Table:
    if ignore_case:
        return rows.filter(pc.equal(pc.utf8_upper(rows[column]), value.upper()))
    return rows.filter(pc.equal(rows[column], value))


def _released(rows: pa.Table, since: datetime | None, on_the_day: bool = False) -> pa.Table:
    """Keep what was released after `since`; None (no date found) keeps nothing, as does a null release."""
    if since is None:
        return rows.slice(0, 0)
    compare = pc.greater_equal if on_the_day else pc.greater
    return rows.filter(compare(rows["DateReleased"], pa.scalar(since, pa.timestamp("us"))))


def _distinct(rows: pa.Table, key: list[str]) -> pa.Table:
    """Return the first row of every distinct `key`, in order of appearance."""
    return rows.take(_first_and_count(rows, key)[_ROW + "_min"])


def _studies(rows: pa.Table) -> pa.Table:
    """Return one row per study with the number of its series among `rows`."""
    groups = _first_and_count(rows, ["StudyInstanceUID"])
    return rows.take(groups[_ROW + "_min"]).append_column("SeriesCount", groups[_ROW + "_count"])


def _first_and_count(rows: pa.Table, key: list[str]) -> pa.Table:
    numbered = rows.select(key).append_column(_ROW, pa.array(np.arange(rows.num_rows)))
    groups = numbered.group_by(key).aggregate([(_ROW, "min"), (_ROW, "count")])
    return groups.sort_by(_ROW + "_min")


def _sop_instance_uids(call: Call, rights: frozenset[str] | None) -> Rows:
    uid, images = call.query["SeriesInstanceUID"], call.holdings.catalog.images
    known = call.holdings.one_series(uid, rights, ANY_VISIBILITY).num_rows and images is not None
    uids = [i.sop_instance_uid for i in images.instances(uid)] if known and images is not None else []
    return Rows(pa.table({"SOPInstanceUID": pa.array(uids, pa.string())}), shapes.SOP_INSTANCE_UIDS)


def _meta27(row: pa.Table) -> pa.Table:
    """Return a row as getSeriesMetaData shows it.

    Server: descriptions keep only ASCII letters, digits, space, dot and hyphen; commas of the manufacturer
    become spaces; the flag says whether the column is set, whatever it says; an unknown study day is an
    empty string; no annotations are 0 bytes.
    """
    changed = {
        "StudyDescription": pc.replace_substring_regex(row["StudyDescription"], r"[^A-Za-z0-9 .\-]", ""),
        "SeriesDescription": pc.replace_substring_regex(row["SeriesDescription"], r"[^A-Za-z0-9 .\-]", ""),
        "Manufacturer": pc.replace_substring(row["Manufacturer"], ",", " "),
        "AnnotationsFlag": pc.is_valid(row["AnnotationsFlag"]),
        "AnnotationSize": pc.fill_null(row["AnnotationSize"], 0),
    }
    if row["StudyDate"].null_count:
        changed["StudyDate"] = pa.array([""])
    for name, column in changed.items():
        row = row.set_column(row.schema.get_field_index(name), name, column)
    return row
