"""The two dialects of the API as data: for each call its path, parameters, dates and answer.

All of this is from the server's source. v2 is the guide's and needs a token; v4 is the current one and serves the guest
without one. The client has one method per call and no branch per dialect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nbia_pipeline.archive.bounds import (
    CSV_BYTES,
    DIGEST_BYTES,
    FEW_ROWS_BYTES,
    LIST_BYTES,
    MANY_ROWS_BYTES,
    NO_BOUND,
)
from nbia_pipeline.archive.errors import NotServed
from nbia_pipeline.schema import shapes
from nbia_pipeline.schema.shapes import Shape

V1 = "/services/v1/"
V2 = "/services/v2/"
V4 = "/services/v4/"
UNVERSIONED = "/services/"


@dataclass(frozen=True)
class Endpoint:
    """One call in one dialect.

    Attributes:
        path: path below the base URL.
        shape: what comes back, or None for bytes and plain text.
        parameters: wire name by the name that the client uses.
        constants: what is always sent, by wire name.
        method: GET, or POST with a form.
        date_format: how a day is written into a parameter, for strftime.
        media: ``json`` or ``csv``.
        empty_if_unauthorized: of a list, True if a refused token looks like "no rows" (status 200 or 204).
        max_values: most values of a list parameter in one call, 0 where there is none.
        repeated: True if each value of the list is a field of its own; otherwise commas separate them.
        refusal_is_500: True if a refused token is a 500 here, as any failure of the server is.
        days_earlier: days to subtract from the day that is meant: the filter is strict.
        most_bytes: how long an answer may be; by default as long as the list of all series.
    """

    path: str
    shape: Shape | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    method: str = "GET"
    date_format: str = ""
    media: str = "json"
    empty_if_unauthorized: bool = True
    max_values: int = 0
    repeated: bool = False
    refusal_is_500: bool = False
    days_earlier: int = 0
    most_bytes: int = LIST_BYTES

    @property
    def rows(self) -> Shape:
        """Shape of the rows of a list endpoint."""
        assert self.shape is not None, f"{self.path} is not a list"  # noqa: S101
        return self.shape


@dataclass(frozen=True)
class Dialect:
    """A version of the API.

    Attributes:
        name: ``v2`` or ``v4``.
        needs_token: True if a call without a token is refused.
        public_updates: True if getUpdatedSeries has the guest's rights, whatever the token.
        endpoints: by the name of the client's method.
    """

    name: str
    needs_token: bool
    public_updates: bool
    endpoints: Mapping[str, Endpoint]

    def endpoint(self, name: str) -> Endpoint:
        """Return the endpoint behind a call.

        Raises:
            NotServed: this dialect has none.
        """
        if name in self.endpoints:
            return self.endpoints[name]
        other = next(d for d in DIALECTS.values() if name in d.endpoints)
        called = other.endpoints[name].path.rsplit("/", 1)[-1]
        raise NotServed(
            f"{self.name} of the API has no {called}, {other.name} has it: use api={other.name!r}", arguments=("api",)
        )


_COLLECTION = {"collection": "Collection"}
_MODALITY = {"modality": "Modality"}
_BODY_PART = {"body_part": "BodyPartExamined"}
_SERIES_UID = {"series_uid": "SeriesInstanceUID"}
_STUDY_FILTERS = {**_COLLECTION, "patient_id": "PatientID", "study_uid": "StudyInstanceUID"}
# Body part, manufacturer and model are not here: v2 compares them case-sensitively, so the client filters by them.
_SERIES_FILTERS = {**_STUDY_FILTERS, **_SERIES_UID, **_MODALITY}
_NEW = {**_COLLECTION, "since": "Date"}
_NEW_V4 = {**_COLLECTION, "since": "fromDate"}
_DOI = {"doi": "DOI", "per": "CollectionOrSeries"}
_DESCRIPTION = {"collection": "collectionName"}


def _states_and_denied(base: str, denied_base: str, states: Shape) -> dict[str, Endpoint]:
    """Return the calls that distinguish hidden series from deleted ones; v2 takes the second one from v1."""
    return {
        "series_states": Endpoint(
            base + "getSeriesQCInfo",
            states,
            {"series_uids": "seriesId"},
            method="POST",
            max_values=500,
            repeated=True,
            most_bytes=FEW_ROWS_BYTES,
        ),
        "denied_series": Endpoint(
            denied_base + "getDeniedSeries",
            shapes.DENIED,
            {"series_uids": "seriesList", "username": "userName"},
            empty_if_unauthorized=denied_base == V4,
            max_values=50,  # in the address, so fewer than elsewhere
            most_bytes=FEW_ROWS_BYTES,
        ),
    }


# What the counts and the lists of values can be narrowed by.
_NARROWED_BY = {
    "modality": {**_COLLECTION, **_BODY_PART},
    "body_part": {**_COLLECTION, **_MODALITY},
    "manufacturer": {**_COLLECTION, **_MODALITY, **_BODY_PART},
}

# The key of the value in the counts of v4; v2 calls it criteria everywhere.
_COUNTED = {
    "collection": "Collection",
    "modality": "Modality",
    "body_part": "BodyPart",
    "manufacturer": "Manufacturer",
}


def _counts(*, v4: bool) -> dict[str, Endpoint]:
    """Return the calls that count patients: below no version in v2, hence with other rules for tokens."""
    found = {}
    for name, key in _COUNTED.items():
        call = f"get{key}ValuesAndCounts"
        filters = _NARROWED_BY.get(name, {})
        if v4:
            found[f"{name}_counts"] = Endpoint(V4 + call, shapes.counts_v4(key), filters, most_bytes=FEW_ROWS_BYTES)
        else:
            found[f"{name}_counts"] = Endpoint(
                UNVERSIONED + call, shapes.COUNTS, filters, empty_if_unauthorized=False, most_bytes=FEW_ROWS_BYTES
            )
    return found


def _same_in_both(base: str, other_base: str, patient: Shape, patient_id: Shape, study: Shape) -> dict[str, Endpoint]:
    """Return the calls of which the dialects differ in path and shape only; a few are below `other_base`."""
    return {
        "patients": Endpoint(base + "getPatient", patient, _COLLECTION),
        "patients_by_collection_and_modality": Endpoint(
            base + "getPatientByCollectionAndModality", patient_id, {**_COLLECTION, **_MODALITY}
        ),
        "studies": Endpoint(base + "getPatientStudy", study, _STUDY_FILTERS),
        "modality_values": Endpoint(
            base + "getModalityValues", shapes.MODALITY_VALUE, _NARROWED_BY["modality"], most_bytes=FEW_ROWS_BYTES
        ),
        "body_part_values": Endpoint(
            base + "getBodyPartValues", shapes.BODY_PART_VALUE, _NARROWED_BY["body_part"], most_bytes=FEW_ROWS_BYTES
        ),
        "manufacturer_values": Endpoint(
            base + "getManufacturerValues",
            shapes.MANUFACTURER_VALUE,
            _NARROWED_BY["manufacturer"],
            most_bytes=FEW_ROWS_BYTES,
        ),
        # Below no version in either dialect, and without a check of the token.
        "licenses": Endpoint(
            UNVERSIONED + "getLicenses", shapes.LICENSES, empty_if_unauthorized=False, most_bytes=FEW_ROWS_BYTES
        ),
        "collection_or_series_for_doi": Endpoint(
            other_base + "getCollectionOrSeriesForDOI", shapes.DOI_CONTENTS, _DOI, method="POST"
        ),
        "series_size": Endpoint(base + "getSeriesSize", shapes.SERIES_SIZE, _SERIES_UID, most_bytes=FEW_ROWS_BYTES),
        "sop_instance_uids": Endpoint(
            base + "getSOPInstanceUIDs", shapes.SOP_INSTANCE_UIDS, _SERIES_UID, most_bytes=MANY_ROWS_BYTES
        ),
        "dicom_tags": Endpoint(
            other_base + "getDicomTags",
            shapes.DICOM_TAGS,
            {"series_uid": "SeriesUID"},
            empty_if_unauthorized=False,
            refusal_is_500=True,
            most_bytes=FEW_ROWS_BYTES,
        ),
        "image": Endpoint(
            base + "getImage", None, {**_SERIES_UID, "new_file_names": "NewFileNames"}, most_bytes=NO_BOUND
        ),
        "image_with_md5": Endpoint(base + "getImageWithMD5Hash", None, _SERIES_UID, most_bytes=NO_BOUND),
        "dcm_image": Endpoint(
            base + "getDCMImage",
            None,
            _SERIES_UID,
            {"IncludeAnnotation": "true", "MD5Verification": "true"},
            most_bytes=NO_BOUND,
        ),
        "single_image": Endpoint(
            base + "getSingleImage",
            None,
            {**_SERIES_UID, "sop_instance_uid": "SOPInstanceUID"},
            most_bytes=NO_BOUND,
        ),
        "md5_hierarchy": Endpoint(
            other_base + "getMD5Hierarchy",
            None,
            {**_STUDY_FILTERS, **_SERIES_UID},
            method="POST",
            most_bytes=DIGEST_BYTES,
        ),
    }


_DIALECT_V2 = Dialect(
    "v2",
    needs_token=True,
    public_updates=False,
    endpoints={
        **_same_in_both(V2, UNVERSIONED, shapes.PATIENT, shapes.PATIENT_ID, shapes.STUDY),
        "collection_values": Endpoint(
            V2 + "getCollectionValues",
            shapes.COLLECTION_VALUE,
            empty_if_unauthorized=False,
            most_bytes=FEW_ROWS_BYTES,
        ),
        **_counts(v4=False),
        "collection_descriptions": Endpoint(
            UNVERSIONED + "getCollectionDescriptions",
            shapes.DESCRIPTIONS,
            _DESCRIPTION,
            empty_if_unauthorized=False,
            most_bytes=FEW_ROWS_BYTES,
        ),
        "contents_by_name": Endpoint(V2 + "getContentsByName", shapes.SERIES_CART, {"name": "name"}),
        "new_patients": Endpoint(
            V2 + "NewPatientsInCollection", shapes.PATIENT, _NEW, date_format="%Y/%m/%d", days_earlier=1
        ),
        "new_studies": Endpoint(
            V2 + "NewStudiesInPatientCollection",
            shapes.STUDY,
            {**_NEW, "patient_id": "PatientID"},
            date_format="%Y/%m/%d",
            days_earlier=1,
        ),
        "series": Endpoint(V2 + "getSeries", shapes.SERIES_V2, _SERIES_FILTERS),
        "updated_series": Endpoint(
            V2 + "getUpdatedSeries", shapes.SERIES_SHORT, {"since": "fromDate"}, date_format="%d/%m/%Y"
        ),
        "series_metadata": Endpoint(V2 + "getSeriesMetaData", shapes.META27, _SERIES_UID, most_bytes=FEW_ROWS_BYTES),
        "series_metadata_bulk": Endpoint(
            UNVERSIONED + "getSeriesMetadata2",
            shapes.METADATA2,
            {"series_uids": "list"},
            method="POST",
            media="csv",
            most_bytes=CSV_BYTES,
            empty_if_unauthorized=False,
            max_values=5000,
        ),
        **_states_and_denied(V2, V1, shapes.QC_V2),
        "md5_of_image": Endpoint(
            V2 + "getM5HashForImage", None, {"sop_instance_uid": "SOPInstanceUid"}, most_bytes=DIGEST_BYTES
        ),
    },
)

_DIALECT_V4 = Dialect(
    "v4",
    needs_token=False,
    public_updates=True,
    endpoints={
        **_same_in_both(V4, V4, shapes.PATIENT_V4, shapes.PATIENT_ID_V4, shapes.STUDY_V4),
        "collection_values": Endpoint(V4 + "getCollectionValues", shapes.COLLECTION_VALUE, most_bytes=FEW_ROWS_BYTES),
        **_counts(v4=True),
        "collection_descriptions": Endpoint(
            V4 + "getCollectionDescriptions",
            shapes.DESCRIPTIONS,
            _DESCRIPTION,
            refusal_is_500=True,
            most_bytes=FEW_ROWS_BYTES,
        ),
        "new_patients": Endpoint(V4 + "NewPatientsInCollection", shapes.PATIENT_V4, _NEW_V4, date_format="%m-%d-%Y"),
        "new_studies": Endpoint(
            V4 + "NewStudiesInPatientCollection",
            shapes.STUDY_V4,
            {**_NEW_V4, "patient_id": "PatientID"},
            date_format="%m-%d-%Y",
        ),
        "series": Endpoint(V4 + "getSeries", shapes.SERIES_V4, _SERIES_FILTERS, refusal_is_500=True),
        "updated_series": Endpoint(
            V4 + "getUpdatedSeries", shapes.SERIES_V4, {"since": "fromDate"}, date_format="%m-%d-%Y"
        ),
        "series_metadata_bulk": Endpoint(
            V4 + "getSeriesMetadata",
            shapes.METADATA_V4,
            {"series_uids": "list"},
            constants={"format": "JSON"},
            method="POST",
            max_values=5000,
            most_bytes=MANY_ROWS_BYTES,
        ),
        **_states_and_denied(V4, V4, shapes.QC_V4),
        "md5_of_image": Endpoint(
            V4 + "getMD5HashForImage", None, {"sop_instance_uid": "SOPInstanceUID"}, most_bytes=DIGEST_BYTES
        ),
    },
)

DIALECTS = {d.name: d for d in (_DIALECT_V2, _DIALECT_V4)}


def metadata_columns(api: str, *, single: bool) -> frozenset[str]:
    """Return the columns of ``series_metadata`` that a dialect serves in bulk.

    Args:
        api: the dialect.
        single: also those that a call for one series adds; v4 has no such call.
    """
    endpoints = DIALECTS[api].endpoints
    names = [n for n in ("series_metadata_bulk", *(("series_metadata",) if single else ())) if n in endpoints]
    return frozenset(key.column for name in names for key in endpoints[name].rows.keys if key.column)
