"""The table of the endpoints of v1 and v2, and of those without a version; v4 takes over most of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from nbia_pipeline.embedded.api import downloads, lists, quality, unversioned
from nbia_pipeline.embedded.api.endpoint import Auth, Endpoint
from nbia_pipeline.schema import shapes

_NEEDS_SERIES = "A parameter, SeriesInstanceUID is required for this API call."
NEEDS_DATE = "A parameter, Collection and Date are required for this API call."
_NEEDS_SERIES_FOR_IMAGE = "A parameter, SeriesInstanceUID, is required for this API call."
_NEEDS_BOTH_UIDS = "A parameter, SeriesInstanceUID and SOPInstanceUID, are required for this API call."
_NEEDS_MODALITY = "A parameter, Collection and Modality, are required for this API call."
_NEEDS_SERIES_LIST = "A parameter, seriesList,  a list of SeriesInstanceUID is required for this API call."
_SERIES_PARAMETERS = (
    "Collection PatientID StudyInstanceUID SeriesInstanceUID Modality BodyPartExamined ManufacturerModelName "
    "Manufacturer"
)
_ONE_SERIES = ("SeriesInstanceUID", "SeriesInstanceUID", _NEEDS_SERIES)
_ONE_IMAGE = ("SeriesInstanceUID SOPInstanceUID", "SeriesInstanceUID SOPInstanceUID", _NEEDS_BOTH_UIDS)
_MODALITY = ("Collection Modality", "Collection Modality", _NEEDS_MODALITY)
_NO_BODY_PART = "NOT SPECIFIED"  # Server: how it counts nulls.

_list = partial(Endpoint, auth=Auth.LIST, formats=True)
_file = partial(Endpoint, auth=Auth.STRICT)

LISTS = (
    _list("getCollectionValues", lists.collection_values, auth=Auth.STRICT),
    _list("getModalityValues", lists.values(shapes.MODALITY_VALUE), "Collection BodyPartExamined"),
    _list("getBodyPartValues", lists.values(shapes.BODY_PART_VALUE, upper=True), "Collection Modality"),
    _list("getManufacturerValues", lists.values(shapes.MANUFACTURER_VALUE), "Collection Modality BodyPartExamined"),
    _list("getPatient", lists.patients, "Collection PatientId"),
    _list("getPatientByCollectionAndModality", lists.patient_ids_by_modality, *_MODALITY),
    _list("getPatientStudy", lists.studies, "Collection PatientID StudyInstanceUID"),
    _list("getSeries", lists.series, _SERIES_PARAMETERS),
    _list("getUpdatedSeries", lists.updated_series, "fromDate"),
    _list("getSeriesSize", lists.series_size, *_ONE_SERIES),
    _list("getSOPInstanceUIDs", lists.sop_instance_uids, *_ONE_SERIES),
)
"""Lists of v1, v2 and v4."""

GET_IMAGE = _file(
    "getImage",
    downloads.image,
    *("SeriesInstanceUID NewFileNames", "SeriesInstanceUID", _NEEDS_SERIES_FOR_IMAGE),
    user_first=True,
)
"""getImage of v1 and v2; v4 knows another parameter."""

# Server: the name and its parameter are spelled so in v1 and v2.
MD5_OF_IMAGE = _file("getM5HashForImage", downloads.md5_of_image, "SOPInstanceUid", user_first=True)
"""The digest of one image; v4 spells it otherwise."""

FILES = (
    _file("getImageWithMD5Hash", downloads.image_with_md5, *_ONE_SERIES[:2], _NEEDS_SERIES_FOR_IMAGE),
    _file(
        "getDCMImage",
        downloads.dcm_image,
        *("SeriesInstanceUID IncludeAnnotation MD5Verification", "SeriesInstanceUID", _NEEDS_SERIES_FOR_IMAGE),
        user_first=True,
    ),
    _file("getSingleImage", downloads.single_image, *_ONE_IMAGE),
)
"""Files of v1, v2 and v4."""

_ONLY_V2 = (
    _list("NewPatientsInCollection", lists.new_patients, "Collection Date", "Collection Date", NEEDS_DATE),
    _list(
        "NewStudiesInPatientCollection", lists.new_studies, "Collection Date PatientID", "Collection Date", NEEDS_DATE
    ),
    _list("getSeriesMetaData", lists.series_metadata_v2, *_ONE_SERIES, auth=Auth.QUIET),
    # Server: the 400 of v2 names the wrong parameter.
    Endpoint("getContentsByName", lists.contents_by_name, "name", "name", _NEEDS_SERIES, auth=Auth.LIST),
    GET_IMAGE,
    MD5_OF_IMAGE,
)


def _as_v1(e: Endpoint) -> Endpoint:
    """Return an endpoint of v1: always the guest's rights, a token is not read."""
    text = e.bad_request if e.path != "getContentsByName" else "A parameter, name is required for this API call."
    return replace(e, path=f"v1/{e.path}", auth=Auth.OPEN, bad_request=text)


DENIED = Endpoint(
    "v1/getDeniedSeries",
    quality.denied_series,
    *("seriesList userName", "seriesList", _NEEDS_SERIES_LIST),
    auth=Auth.OPEN,
    formats=True,
)
"""The series that a user does not get, in v1; v4 has it as well, and reads no token there either."""

V1 = (
    *(_as_v1(e) for e in (*LISTS, *FILES, *_ONLY_V2)),
    DENIED,
)
"""The endpoints of v1."""

QC_INFO = _list(
    "v2/getSeriesQCInfo", quality.qc_info, "seriesId", "seriesId", _NEEDS_SERIES, auth=Auth.QUIET, method="POST"
)
"""The state of series in v2; v4 has it as well."""

V2 = (
    *(replace(e, path=f"v2/{e.path}") for e in (*LISTS, *FILES, *_ONLY_V2)),
    QC_INFO,
)
"""The endpoints of v2."""

SHARED_UNVERSIONED = (
    _file("getModalityValuesAndCounts", unversioned.counts("Modality", "Modality"), "Collection BodyPartExamined"),
    _file(
        "getBodyPartValuesAndCounts",
        unversioned.counts("BodyPartExamined", "BodyPart", null_as=_NO_BODY_PART, upper=True),
        "Collection Modality",
    ),
    _file(
        "getManufacturerValuesAndCounts",
        unversioned.counts("Manufacturer", "Manufacturer", null_as=""),
        "Collection Modality BodyPartExamined",
    ),
    _file("getCollectionValuesAndCounts", unversioned.counts("Collection", "Collection")),
    _file("getCollectionDescriptions", unversioned.descriptions, "collectionName"),
    _file(
        "getMD5Hierarchy",
        unversioned.md5_hierarchy,
        "SeriesInstanceUID StudyInstanceUID PatientID Collection",
        method="POST",
    ),
    _file("getDicomTags", unversioned.dicom_tags, "SeriesUID", auth=Auth.TAGS),
    _file(
        "getCollectionOrSeriesForDOI",
        quality.series_for_doi,
        "DOI CollectionOrSeries",
        auth=Auth.NOTHING,
        method="POST",
    ),
)
"""The endpoints without a version that v4 has as well."""

UNVERSIONED = (
    *SHARED_UNVERSIONED,
    _file("getSeriesMetadata2", unversioned.metadata2, "list", method="POST"),
    _file("getLicenses", unversioned.licenses, auth=Auth.OPEN),
)
"""The endpoints without a version."""
