"""The table of endpoints: path, what answers, identity, parameters."""

from __future__ import annotations

from nbia_pipeline.embedded import advanced, images, lists
from nbia_pipeline.embedded.calls import Auth, Endpoint, Handler
from nbia_pipeline.schema import shapes

_NEEDS_SERIES = "A parameter, SeriesInstanceUID is required for this API call."
_NEEDS_SERIES_FOR_IMAGE = "A parameter, SeriesInstanceUID, is required for this API call."
_NEEDS_BOTH_UIDS = "A parameter, SeriesInstanceUID and SOPInstanceUID, are required for this API call."
_NEEDS_DATE = "A parameter, Collection and Date are required for this API call."
_NEEDS_MODALITY = "A parameter, Collection and Modality, are required for this API call."
_NEEDS_LIST = "A form parameter, list, containing at least one SeriesInstanceUID is required."

_SERIES_PARAMETERS = (
    "Collection",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "BodyPartExamined",
    "ManufacturerModelName",
    "Manufacturer",
)
_UID = ("SeriesInstanceUID",)
_BOTH_UIDS = ("SeriesInstanceUID", "SOPInstanceUID")
_HIERARCHY = ("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Collection")
# Server: what a count of nulls is called.
_NO_BODY_PART = "NOT SPECIFIED"


def _list(
    version: str,
    name: str,
    handler: Handler,
    parameters: str = "",
    required: str = "",
    complaint: str = "",
    auth: Auth | None = None,
) -> Endpoint:
    """Make a list endpoint; `parameters` and `required` are names parted by spaces."""
    return Endpoint(
        f"{version}/{name}",
        handler,
        auth or (Auth.LIST if version == "v2" else Auth.V4_LIST),
        allowed=(*parameters.split(), "format"),
        required=tuple(required.split()),
        complaint=complaint,
        policed="query" if version == "v4" else None,
    )


def _file(
    version: str,
    name: str,
    handler: Handler,
    allowed: tuple[str, ...],
    required: tuple[str, ...] = (),
    complaint: str = "",
    user_first: bool = False,
) -> Endpoint:
    return Endpoint(
        f"{version}/{name}",
        handler,
        Auth.STRICT if version == "v2" else Auth.V4_STRICT,
        allowed=allowed,
        required=required,
        complaint=complaint,
        user_first=user_first,
        policed="query" if version == "v4" else None,
    )


_V2_LISTS = (
    _list("v2", "getCollectionValues", lists.collection_values, auth=Auth.STRICT),
    _list(
        "v2",
        "getModalityValues",
        lists.values(shapes.MODALITY_VALUE, upper=False),
        "Collection BodyPartExamined",
    ),
    _list("v2", "getBodyPartValues", lists.values(shapes.BODY_PART_VALUE, upper=True), "Collection Modality"),
    _list(
        "v2",
        "getManufacturerValues",
        lists.values(shapes.MANUFACTURER_VALUE, upper=False),
        "Collection Modality BodyPartExamined",
    ),
    _list("v2", "getPatient", lists.patients_v2, "Collection PatientId"),
    _list(
        "v2",
        "getPatientByCollectionAndModality",
        lists.patient_ids_by_modality_v2,
        "Collection Modality",
        "Collection Modality",
        _NEEDS_MODALITY,
    ),
    _list(
        "v2",
        "NewPatientsInCollection",
        lists.new_patients_v2,
        "Collection Date",
        "Collection Date",
        _NEEDS_DATE,
    ),
    _list("v2", "getPatientStudy", lists.studies_v2, "Collection PatientID StudyInstanceUID"),
    _list(
        "v2",
        "NewStudiesInPatientCollection",
        lists.new_studies_v2,
        "Collection Date PatientID",
        "Collection Date",
        _NEEDS_DATE,
    ),
    _list("v2", "getSeries", lists.series_v2, " ".join(_SERIES_PARAMETERS)),
    _list("v2", "getUpdatedSeries", lists.updated_series_v2, "fromDate"),
    _list(
        "v2",
        "getSeriesMetaData",
        lists.series_metadata_v2,
        *("SeriesInstanceUID", "SeriesInstanceUID", _NEEDS_SERIES),
        auth=Auth.QUIET,
    ),
    _list(
        "v2",
        "getSeriesSize",
        lists.series_size_v2,
        *("SeriesInstanceUID", "SeriesInstanceUID", _NEEDS_SERIES),
    ),
    _list(
        "v2",
        "getSOPInstanceUIDs",
        lists.sop_instance_uids_v2,
        *("SeriesInstanceUID", "SeriesInstanceUID", _NEEDS_SERIES),
    ),
    # Server: the 400 names the wrong parameter.
    _list("v2", "getContentsByName", lists.contents_by_name, "name", "name", _NEEDS_SERIES),
)

_V2_FILES = (
    _file(
        "v2",
        "getImage",
        images.image_v2,
        (*_UID, "NewFileNames"),
        _UID,
        _NEEDS_SERIES_FOR_IMAGE,
        user_first=True,
    ),
    _file("v2", "getImageWithMD5Hash", images.image_with_md5, _UID, _UID, _NEEDS_SERIES_FOR_IMAGE),
    _file(
        "v2",
        "getDCMImage",
        images.dcm_image,
        (*_UID, "IncludeAnnotation", "MD5Verification"),
        _UID,
        _NEEDS_SERIES_FOR_IMAGE,
        user_first=True,
    ),
    _file("v2", "getSingleImage", images.single_image, _BOTH_UIDS, _BOTH_UIDS, _NEEDS_BOTH_UIDS),
    _file("v2", "getM5HashForImage", images.md5_of_image_v2, ("SOPInstanceUid",), user_first=True),
)

_V4_LISTS = (
    _list("v4", "getCollectionValues", lists.collection_values),
    _list(
        "v4",
        "getModalityValues",
        lists.values(shapes.MODALITY_VALUE, upper=True),
        "Collection BodyPartExamined",
    ),
    _list("v4", "getBodyPartValues", lists.values(shapes.BODY_PART_VALUE, upper=True), "Collection Modality"),
    _list(
        "v4",
        "getManufacturerValues",
        lists.values(shapes.MANUFACTURER_VALUE, upper=True),
        "Collection Modality BodyPartExamined",
    ),
    _list("v4", "getPatient", lists.patients_v4, "Collection PatientId"),
    # Server: the text still says Date.
    _list(
        "v4",
        "NewPatientsInCollection",
        lists.new_patients_v4,
        "Collection fromDate",
        "Collection fromDate",
        _NEEDS_DATE,
    ),
    _list(
        "v4",
        "getPatientByCollectionAndModality",
        lists.patient_ids_by_modality_v4,
        "Collection Modality",
        "Collection Modality",
        _NEEDS_MODALITY,
    ),
    _list("v4", "getPatientStudy", lists.studies_v4, "Collection PatientID StudyInstanceUID"),
    _list(
        "v4",
        "NewStudiesInPatientCollection",
        lists.new_studies_v4,
        "Collection fromDate PatientID",
        "Collection fromDate",
        _NEEDS_DATE,
    ),
    _list("v4", "getSeries", lists.series_v4, " ".join(_SERIES_PARAMETERS), auth=Auth.V4_FRAGILE),
    _list("v4", "getUpdatedSeries", lists.updated_series_v4, "fromDate", auth=Auth.OPEN),
    _list(
        "v4",
        "getSeriesSize",
        lists.series_size_v4,
        *("SeriesInstanceUID", "SeriesInstanceUID", _NEEDS_SERIES),
        auth=Auth.OPEN,
    ),
    _list(
        "v4",
        "getSOPInstanceUIDs",
        lists.sop_instance_uids_v4,
        *("SeriesInstanceUID", "SeriesInstanceUID", _NEEDS_SERIES),
        auth=Auth.OPEN,
    ),
    Endpoint(
        "v4/getSeriesMetadata",
        lists.series_metadata_v4,
        Auth.V4_LIST,
        allowed=("list", "format"),
        required=("list",),
        complaint=_NEEDS_LIST,
        method="POST",
    ),
)

_V4_FILES = (
    _file(
        "v4",
        "getImage",
        images.image_v4,
        (*_UID, "NewFileNames", "IncludeMD5"),
        _UID,
        _NEEDS_SERIES_FOR_IMAGE,
        user_first=True,
    ),
    _file("v4", "getImageWithMD5Hash", images.image_with_md5, _UID, _UID, _NEEDS_SERIES_FOR_IMAGE),
    _file(
        "v4",
        "getDCMImage",
        images.dcm_image,
        (*_UID, "IncludeAnnotation", "MD5Verification"),
        _UID,
        _NEEDS_SERIES_FOR_IMAGE,
        user_first=True,
    ),
    _file("v4", "getSingleImage", images.single_image, _BOTH_UIDS, _BOTH_UIDS, _NEEDS_BOTH_UIDS),
    _file("v4", "getMD5HashForImage", images.md5_of_image_v4, ("SOPInstanceUID",), user_first=True),
    Endpoint(
        "v4/getMD5Hierarchy",
        advanced.md5_hierarchy,
        Auth.V4_STRICT,
        allowed=_HIERARCHY,
        method="POST",
        policed="form",
    ),
    _file("v4", "getDicomTags", advanced.dicom_tags, ("SeriesUID",)),
)

_V4_COUNTS = (
    _file(
        "v4",
        "getModalityValuesAndCounts",
        advanced.counts_v4("Modality", "Modality", null_as=None),
        ("Collection", "BodyPartExamined"),
    ),
    _file(
        "v4",
        "getBodyPartValuesAndCounts",
        advanced.counts_v4("BodyPartExamined", "BodyPart", null_as=_NO_BODY_PART, upper=True),
        ("Collection", "Modality"),
    ),
    _file(
        "v4",
        "getManufacturerValuesAndCounts",
        advanced.counts_v4("Manufacturer", "Manufacturer", null_as=""),
        ("Collection", "Modality", "BodyPartExamined"),
    ),
    # Server: the one count whose parameters are not policed.
    Endpoint(
        "v4/getCollectionValuesAndCounts",
        advanced.counts_v4("Collection", "Collection", null_as=None),
        Auth.V4_STRICT,
    ),
    _file("v4", "getCollectionDescriptions", advanced.descriptions_v4, ("collectionName",)),
)

_UNVERSIONED = (
    Endpoint(
        "getModalityValuesAndCounts",
        advanced.counts("Modality", null_as=None),
        Auth.STRICT,
        ("Collection", "BodyPartExamined"),
    ),
    Endpoint(
        "getBodyPartValuesAndCounts",
        advanced.counts("BodyPartExamined", null_as=_NO_BODY_PART, upper=True),
        Auth.STRICT,
        ("Collection", "Modality"),
    ),
    Endpoint(
        "getManufacturerValuesAndCounts",
        advanced.counts("Manufacturer", null_as=""),
        Auth.STRICT,
        ("Collection", "Modality", "BodyPartExamined"),
    ),
    Endpoint("getCollectionValuesAndCounts", advanced.counts("Collection", null_as=None), Auth.STRICT),
    Endpoint("getCollectionDescriptions", advanced.descriptions, Auth.STRICT, ("collectionName",)),
    Endpoint("getSeriesMetadata2", advanced.metadata2, Auth.STRICT, ("list",), method="POST"),
    Endpoint("getLicenses", advanced.licences, Auth.OPEN),
    Endpoint("getMD5Hierarchy", advanced.md5_hierarchy, Auth.STRICT, _HIERARCHY, method="POST"),
    Endpoint("getDicomTags", advanced.dicom_tags, Auth.TAGS, ("SeriesUID",)),
)

ENDPOINTS: tuple[Endpoint, ...] = (
    *_V2_LISTS,
    *_V2_FILES,
    *_V4_LISTS,
    *_V4_FILES,
    *_V4_COUNTS,
    *_UNVERSIONED,
)
"""Every endpoint of the embedded archive besides token, logout and liveness."""
