"""The two dialects of the API as data: for each call its path, parameters, dates and answer.

Facts from the server's source. v2 is the guide's and wants a token; v4 is today's and answers the guest
without one. The client has one method per call and no branch per dialect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nbia_pipeline.schema import shapes
from nbia_pipeline.schema.shapes import Shape

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
        method: GET, or POST with a form.
        date_format: how a day is written into a parameter, for strftime.
        media: ``json`` or ``csv``.
        swallows_refusal: True if a refused token looks like "no rows" here (status 200 or 204).
        at_most: most values of a list parameter in one call, 0 where there is none.
    """

    path: str
    shape: Shape | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    method: str = "GET"
    date_format: str = ""
    media: str = "json"
    swallows_refusal: bool = True
    at_most: int = 0


@dataclass(frozen=True)
class Dialect:
    """A version of the API.

    Attributes:
        name: ``v2`` or ``v4``.
        needs_token: True if a call without a token is refused.
        endpoints: by the name of the client's method.
    """

    name: str
    needs_token: bool
    endpoints: Mapping[str, Endpoint]


_COLLECTION = {"collection": "Collection"}
_SERIES_UID = {"series_uid": "SeriesInstanceUID"}
_SERIES_FILTERS = {
    "collection": "Collection",
    "patient_id": "PatientID",
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
    "modality": "Modality",
}
_IMAGE = {**_SERIES_UID, "sop_instance_uid": "SOPInstanceUID"}


def _counts(base: str, key: str, swallows: bool, shape: Shape) -> Endpoint:
    return Endpoint(f"{base}get{key}ValuesAndCounts", shape, swallows_refusal=swallows)


def _count_shape(key: str, column: str) -> Shape:
    """v4 names the value and its count; v2 says criteria and count."""
    return Shape(
        f"COUNTS4_{key}",
        None,
        (
            shapes.Key(key, "criteria", source=column),
            shapes.Key("Count", "count", shapes.Form.NUMBER),
            shapes.Key("Authorized", None, shapes.Form.NUMBER),
        ),
    )


_DIALECT_V2 = Dialect(
    "v2",
    needs_token=True,
    endpoints={
        "collection_values": Endpoint(V2 + "getCollectionValues", shapes.COLLECTION_VALUE, swallows_refusal=False),
        "modality_values": Endpoint(V2 + "getModalityValues", shapes.MODALITY_VALUE, _COLLECTION),
        "body_part_values": Endpoint(V2 + "getBodyPartValues", shapes.BODY_PART_VALUE, _COLLECTION),
        "manufacturer_values": Endpoint(V2 + "getManufacturerValues", shapes.MANUFACTURER_VALUE, _COLLECTION),
        "collection_counts": _counts(UNVERSIONED, "Collection", False, shapes.COUNTS),
        "modality_counts": _counts(UNVERSIONED, "Modality", False, shapes.COUNTS),
        "body_part_counts": _counts(UNVERSIONED, "BodyPart", False, shapes.COUNTS),
        "manufacturer_counts": _counts(UNVERSIONED, "Manufacturer", False, shapes.COUNTS),
        "collection_descriptions": Endpoint(
            UNVERSIONED + "getCollectionDescriptions",
            shapes.DESCRIPTIONS,
            {"collection": "collectionName"},
            swallows_refusal=False,
        ),
        "patients": Endpoint(V2 + "getPatient", shapes.PATIENT, _COLLECTION),
        "studies": Endpoint(
            V2 + "getPatientStudy", shapes.STUDY, {"collection": "Collection", "patient_id": "PatientID"}
        ),
        "series": Endpoint(V2 + "getSeries", shapes.SERIES_V2, _SERIES_FILTERS),
        "updated_series": Endpoint(
            V2 + "getUpdatedSeries", shapes.SERIES_SHORT, {"since": "fromDate"}, date_format="%d/%m/%Y"
        ),
        "series_metadata": Endpoint(V2 + "getSeriesMetaData", shapes.META27, _SERIES_UID),
        "series_metadata_bulk": Endpoint(
            UNVERSIONED + "getSeriesMetadata2",
            shapes.METADATA2,
            {"series_uids": "list"},
            method="POST",
            media="csv",
            swallows_refusal=False,
            at_most=5000,
        ),
        "sop_instance_uids": Endpoint(V2 + "getSOPInstanceUIDs", shapes.SOP_INSTANCE_UIDS, _SERIES_UID),
        "image_with_md5": Endpoint(V2 + "getImageWithMD5Hash", None, _SERIES_UID, swallows_refusal=False),
        "single_image": Endpoint(V2 + "getSingleImage", None, _IMAGE, swallows_refusal=False),
    },
)

_DIALECT_V4 = Dialect(
    "v4",
    needs_token=False,
    endpoints={
        "collection_values": Endpoint(V4 + "getCollectionValues", shapes.COLLECTION_VALUE),
        "modality_values": Endpoint(V4 + "getModalityValues", shapes.MODALITY_VALUE, _COLLECTION),
        "body_part_values": Endpoint(V4 + "getBodyPartValues", shapes.BODY_PART_VALUE, _COLLECTION),
        "manufacturer_values": Endpoint(V4 + "getManufacturerValues", shapes.MANUFACTURER_VALUE, _COLLECTION),
        "collection_counts": _counts(V4, "Collection", True, _count_shape("Collection", "Collection")),
        "modality_counts": _counts(V4, "Modality", True, _count_shape("Modality", "Modality")),
        "body_part_counts": _counts(V4, "BodyPart", True, _count_shape("BodyPart", "BodyPartExamined")),
        "manufacturer_counts": _counts(V4, "Manufacturer", True, _count_shape("Manufacturer", "Manufacturer")),
        "collection_descriptions": Endpoint(
            V4 + "getCollectionDescriptions", shapes.DESCRIPTIONS, {"collection": "collectionName"}
        ),
        "patients": Endpoint(V4 + "getPatient", shapes.PATIENT_V4, _COLLECTION),
        "studies": Endpoint(
            V4 + "getPatientStudy", shapes.STUDY_V4, {"collection": "Collection", "patient_id": "PatientID"}
        ),
        "series": Endpoint(V4 + "getSeries", shapes.SERIES_V4, _SERIES_FILTERS),
        "updated_series": Endpoint(
            V4 + "getUpdatedSeries", shapes.SERIES_V4, {"since": "fromDate"}, date_format="%m-%d-%Y"
        ),
        "series_metadata_bulk": Endpoint(
            V4 + "getSeriesMetadata",
            shapes.METADATA_V4,
            {"series_uids": "list", "format": "format"},
            method="POST",
            at_most=5000,
        ),
        "sop_instance_uids": Endpoint(V4 + "getSOPInstanceUIDs", shapes.SOP_INSTANCE_UIDS, _SERIES_UID),
        "image_with_md5": Endpoint(V4 + "getImageWithMD5Hash", None, _SERIES_UID, swallows_refusal=False),
        "single_image": Endpoint(V4 + "getSingleImage", None, _IMAGE, swallows_refusal=False),
    },
)

DIALECTS = {d.name: d for d in (_DIALECT_V2, _DIALECT_V4)}
