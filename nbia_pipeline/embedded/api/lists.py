"""The list endpoints of v1, v2 and v4, as queries over the series rows of the holdings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.embedded.api import dates
from nbia_pipeline.embedded.api.endpoint import NO_CONTENT, TIME_STAMP, UNDATED, Call, Handler, Reply, Rows, ServerFault
from nbia_pipeline.embedded.catalog.holdings import ANY_VISIBILITY, DOWNLOADABLE, ONLY_VISIBLE
from nbia_pipeline.schema import shapes
from nbia_pipeline.schema.arrow import first_of_each
from nbia_pipeline.schema.shapes import Shape

_PATIENT_KEY = ("Collection", "PatientID")
_VALUE_FILTERS = ("Modality", "BodyPartExamined")
_STUDY_FILTERS = ("PatientID", "StudyInstanceUID")
_CASED_IN_V2 = frozenset({"BodyPartExamined", "Manufacturer", "ManufacturerModelName"})
_SERIES_FILTERS = (*_STUDY_FILTERS, "SeriesInstanceUID", *_VALUE_FILTERS, "ManufacturerModelName", "Manufacturer")

# What older builds sent.
_UNDATED_SHORT = replace(shapes.SERIES_SHORT, keys=shapes.SERIES_SHORT.keys[:-1])
_TIME_STAMP_V4 = replace(
    shapes.SERIES_V4,
    keys=tuple(replace(k, name="TimeStamp") if k.column == "TimeStamp" else k for k in shapes.SERIES_V4.keys),
)

UIDS = frozenset({"SeriesInstanceUID", "StudyInstanceUID"})
"""Parameters that every version compares case-sensitively."""


def collection_values(call: Call) -> Rows:
    """getCollectionValues: collections with a visible series that the caller may see."""
    holdings = call.holdings
    names = [n for n in holdings.collections() if holdings.select(call.rights, n, ignore_case=False).num_rows]
    return Rows(pa.table({"Collection": pa.array(names, pa.string())}), shapes.COLLECTION_VALUE)


def values(shape: Shape, *, upper: bool = False) -> Handler:
    """Make one of getModalityValues, getBodyPartValues, getManufacturerValues.

    Server: sorted by the upper-cased value; v4 upper-cases all of them, v1 and v2 only body parts; a null
    gives a leading ``{}``.

    Args:
        shape: shape of the answer, whose only key names the column.
        upper: whether v1 and v2 write the values in upper case, too.
    """
    name = shape.keys[0].name

    def handler(call: Call) -> Rows:
        column = filtered(call, _VALUE_FILTERS)[name]
        distinct = pc.unique(pc.utf8_upper(column) if upper or call.v4 else column).to_pylist()
        ordered = sorted(distinct, key=lambda v: ("", "") if v is None else (v.upper(), v))
        return Rows(pa.table({name: pa.array(ordered, pa.string())}), shape)

    return handler


def patients(call: Call) -> Rows:
    """getPatient. Server: v2 compares the stored PatientID with the upper-cased parameter, v4 with the parameter."""
    rows = filtered(call, ())
    if "PatientId" in call.query:
        wanted = call.query["PatientId"]
        rows = where(rows, "PatientID", wanted if call.v4 else wanted.upper())
    return _rows(call, first_of_each(rows, *_PATIENT_KEY), shapes.PATIENT, shapes.PATIENT_V4)


def patient_ids_by_modality(call: Call) -> Rows:
    """getPatientByCollectionAndModality. Server: distinct over hidden columns, so that an ID can repeat."""
    rows = filtered(call, ("Modality",))
    distinct = first_of_each(rows, "PatientID", "StudyInstanceUID")
    return _rows(call, distinct, shapes.PATIENT_ID, shapes.PATIENT_ID_V4)


def new_patients(call: Call) -> Rows:
    """NewPatientsInCollection: patients with a series released after a day; see :func:`_new`."""
    rows = _new(call, filtered(call, ()))
    return _rows(call, first_of_each(rows, *_PATIENT_KEY), shapes.PATIENT, shapes.PATIENT_V4)


def studies(call: Call) -> Rows:
    """getPatientStudy."""
    return _rows(call, _studies(filtered(call, _STUDY_FILTERS)), shapes.STUDY, shapes.STUDY_V4)


def new_studies(call: Call) -> Rows:
    """NewStudiesInPatientCollection: SeriesCount counts the new series only."""
    rows = _new(call, filtered(call, _STUDY_FILTERS))
    return _rows(call, _studies(rows), shapes.STUDY, shapes.STUDY_V4)


def series(call: Call) -> Rows:
    """getSeries. Server: v2 compares body part, manufacturer and model case-sensitively, v4 ignores case."""
    rows = filtered(call, _SERIES_FILTERS, exact=UIDS if call.v4 else UIDS | _CASED_IN_V2)
    return _rows(call, rows, shapes.SERIES_V2, _series_v4(call))


def updated_series(call: Call) -> Rows:
    """getUpdatedSeries: strictly after the midnight that begins the day; v4 sends all columns."""
    day = call.query.get("fromDate", "01-01-1900" if call.v4 else "01/01/1900")
    since = dates.month_first(day) if call.v4 else dates.day_first(day)
    rows = _released(call.holdings.select(call.rights), since)
    short = _UNDATED_SHORT if UNDATED in call.settings.history else shapes.SERIES_SHORT
    return _rows(call, rows, short, _series_v4(call))


def series_metadata_v2(call: Call) -> Rows | Reply:
    """getSeriesMetaData: one row of text.

    Server: 204 if the series is unknown, hidden or not permitted; 500 without images or license address.
    """
    uid = call.query["SeriesInstanceUID"]
    row = call.holdings.among([uid], call.rights, ONLY_VISIBLE | {DOWNLOADABLE})
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
    return Rows(authorized(rows), shapes.METADATA_V4, default_format="CSV-DOWNLOAD")


def series_size(call: Call) -> Rows:
    """getSeriesSize. Server: v2 does not check rights, and an unknown series is a row with holes; v4 sends nothing."""
    rows = call.holdings.among([call.query["SeriesInstanceUID"]], call.rights if call.v4 else None)
    if not rows.num_rows and not call.v4:
        rows = pa.table({"FileSize": pa.nulls(1, pa.int64()), "ImageCount": pa.array([0], pa.int64())})
    return Rows(rows, shapes.SERIES_SIZE)


def sop_instance_uids(call: Call) -> Rows:
    """getSOPInstanceUIDs: of any visibility. Server: v4 does not check rights either."""
    uid, images = call.query["SeriesInstanceUID"], call.holdings.catalog.images
    known = call.holdings.among([uid], None if call.v4 else call.rights, ANY_VISIBILITY).num_rows
    uids = [i.sop_instance_uid for i in images.instances(uid)] if known and images is not None else []
    return Rows(pa.table({"SOPInstanceUID": pa.array(uids, pa.string())}), shapes.SOP_INSTANCE_UIDS)


def contents_by_name(call: Call) -> Rows:
    """getContentsByName: a shared cart, always as JSON.

    Server: the name is compared without regard to case; series that are no longer visible are left out
    silently; an unknown name has no rows.
    """
    wanted = call.query["name"].casefold()
    carts = call.holdings.catalog.carts.items()
    uids = [uid for name, listed in carts if name.casefold() == wanted for uid in listed]
    return Rows(call.holdings.among(uids, call.rights), shapes.SERIES_CART)


def authorized(rows: pa.Table) -> pa.Table:
    """Add v4's column ``Authorized``, which is 1 on every row that is sent."""
    return rows.append_column("Authorized", pa.repeat(pa.scalar(1, pa.int64()), rows.num_rows))


def filtered(
    call: Call, parameters: Iterable[str], *, exact: frozenset[str] = UIDS, exact_collection: bool = False
) -> pa.Table:
    """Return the visible series of the caller that pass the filters of the query.

    A parameter that is absent does not filter; an empty one keeps rows with the empty string, hence none.

    Args:
        call: the request.
        parameters: the parameters that filter the column of their name, besides ``Collection``.
        exact: parameters that are compared case-sensitively.
        exact_collection: whether the collection is, too.
    """
    rows = call.holdings.select(call.rights, call.query.get("Collection"), ignore_case=not exact_collection)
    for name in parameters:
        if name in call.query:
            rows = where(rows, name, call.query[name], ignore_case=name not in exact)
    return rows


def _rows(call: Call, rows: pa.Table, shape: Shape, shape_v4: Shape) -> Rows:
    """Return rows in the shape of the version that is asked."""
    return Rows(authorized(rows), shape_v4) if call.v4 else Rows(rows, shape)


def _series_v4(call: Call) -> Shape:
    """Return the shape of a series in v4."""
    return _TIME_STAMP_V4 if TIME_STAMP in call.settings.history else shapes.SERIES_V4


def _new(call: Call, rows: pa.Table) -> pa.Table:
    """Keep what was released after the day of the query. Server: v2 compares strictly, v4 includes the day itself."""
    if call.v4:
        return _released(rows, dates.month_first(call.query["fromDate"]), on_the_day=True)
    return _released(rows, dates.year_first(call.query["Date"]))


def where(rows: pa.Table, column: str, value: str, ignore_case: bool = False) -> pa.Table:
    """Return the rows with a value in a column."""
    if ignore_case:
        return rows.filter(pc.equal(pc.utf8_upper(rows[column]), value.upper()))
    return rows.filter(pc.equal(rows[column], value))


def _released(rows: pa.Table, since: datetime | None, on_the_day: bool = False) -> pa.Table:
    """Keep what was released after `since`; None (no date found) keeps nothing, as does a null release."""
    if since is None:
        return rows.slice(0, 0)
    compare = pc.greater_equal if on_the_day else pc.greater
    return rows.filter(compare(rows["DateReleased"], pa.scalar(since, pa.timestamp("us"))))


def _studies(rows: pa.Table) -> pa.Table:
    """Return one row per study with the number of its series among `rows`."""
    studies = first_of_each(rows, "StudyInstanceUID")
    counted = pc.value_counts(rows["StudyInstanceUID"])
    at = pc.index_in(studies["StudyInstanceUID"], value_set=counted.field("values"))
    return studies.append_column("SeriesCount", counted.field("counts").take(at.combine_chunks()))


def _meta27(row: pa.Table) -> pa.Table:
    """Return a row as getSeriesMetaData shows it.

    Server: descriptions keep only ASCII letters, digits, space, dot and hyphen; commas of the manufacturer
    become spaces; the flag is whether the column is set, whatever its value; an unknown study day is an
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
