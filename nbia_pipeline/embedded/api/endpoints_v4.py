"""The table of the endpoints of v4, which refuses parameters that it does not know."""

from __future__ import annotations

from nbia_pipeline.embedded.api import downloads, lists, manifests, quality, search, unversioned
from nbia_pipeline.embedded.api.endpoint import Auth, Endpoint, Handler
from nbia_pipeline.embedded.api.endpoints_v2 import (
    BOTH_UIDS,
    NEEDS_BOTH_UIDS,
    NEEDS_DATE,
    NEEDS_MODALITY,
    NEEDS_SERIES,
    NEEDS_SERIES_FOR_IMAGE,
    SERIES_PARAMETERS,
    UID,
)
from nbia_pipeline.schema import shapes

NEEDS_LIST = "A form parameter, list, containing at least one SeriesInstanceUID is required."
HIERARCHY = ("SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Collection")
NO_BODY_PART = "NOT SPECIFIED"
"""Server: what a count of nulls is called."""


def _list(
    name: str,
    handler: Handler,
    parameters: str = "",
    required: str = "",
    bad_request: str = "",
    auth: Auth = Auth.V4_LIST,
) -> Endpoint:
    """Make a list endpoint; `parameters` and `required` are names parted by spaces."""
    return Endpoint(
        f"v4/{name}",
        handler,
        auth,
        allowed=(*parameters.split(), "format"),
        required=tuple(required.split()),
        bad_request=bad_request,
        strict_params="query",
    )


def _file(
    name: str,
    handler: Handler,
    allowed: tuple[str, ...],
    required: tuple[str, ...] = (),
    bad_request: str = "",
    user_first: bool = False,
) -> Endpoint:
    return Endpoint(
        f"v4/{name}",
        handler,
        Auth.V4_STRICT,
        allowed=allowed,
        required=required,
        bad_request=bad_request,
        user_first=user_first,
        strict_params="query",
    )


def _form(
    name: str, handler: Handler, allowed: tuple[str, ...] = (), auth: Auth = Auth.V4_STRICT, strict_params: bool = True
) -> Endpoint:
    return Endpoint(
        f"v4/{name}", handler, auth, allowed, method="POST", strict_params="form" if strict_params else None
    )


_ONE_SERIES = ("SeriesInstanceUID", "SeriesInstanceUID", NEEDS_SERIES)

_LISTS = (
    _list("getCollectionValues", lists.collection_values),
    _list("getModalityValues", lists.values(shapes.MODALITY_VALUE, upper=True), "Collection BodyPartExamined"),
    _list("getBodyPartValues", lists.values(shapes.BODY_PART_VALUE, upper=True), "Collection Modality"),
    _list(
        "getManufacturerValues",
        lists.values(shapes.MANUFACTURER_VALUE, upper=True),
        "Collection Modality BodyPartExamined",
    ),
    _list("getPatient", lists.patients_v4, "Collection PatientId"),
    # Server: the text still says Date.
    _list(
        "NewPatientsInCollection",
        lists.new_patients_v4,
        *("Collection fromDate", "Collection fromDate", NEEDS_DATE),
    ),
    _list(
        "getPatientByCollectionAndModality",
        lists.patient_ids_by_modality_v4,
        *("Collection Modality", "Collection Modality", NEEDS_MODALITY),
    ),
    _list("getPatientStudy", lists.studies_v4, "Collection PatientID StudyInstanceUID"),
    _list(
        "NewStudiesInPatientCollection",
        lists.new_studies_v4,
        *("Collection fromDate PatientID", "Collection fromDate", NEEDS_DATE),
    ),
    _list("getSeries", lists.series_v4, SERIES_PARAMETERS, auth=Auth.V4_FRAGILE),
    _list("getUpdatedSeries", lists.updated_series_v4, "fromDate", auth=Auth.OPEN),
    _list("getSeriesSize", lists.series_size_v4, *_ONE_SERIES, auth=Auth.OPEN),
    _list("getSOPInstanceUIDs", lists.sop_instance_uids_v4, *_ONE_SERIES, auth=Auth.OPEN),
    _list("getDeniedSeries", quality.denied_series, "seriesList userName"),
    Endpoint(
        "v4/getSeriesMetadata",
        lists.series_metadata_v4,
        Auth.V4_LIST,
        allowed=("list", "format"),
        required=("list",),
        bad_request=NEEDS_LIST,
        method="POST",
    ),
    Endpoint(
        "v4/getSeriesQCInfo",
        quality.qc_info_v4,
        Auth.V4_LIST,
        allowed=("seriesId", "format"),
        required=("seriesId",),
        bad_request=NEEDS_SERIES,
        method="POST",
        strict_params="form",
    ),
)

_FILES = (
    _file(
        "getImage",
        downloads.image_v4,
        (*UID, "NewFileNames", "IncludeMD5"),
        UID,
        NEEDS_SERIES_FOR_IMAGE,
        user_first=True,
    ),
    _file("getImageWithMD5Hash", downloads.image_with_md5, UID, UID, NEEDS_SERIES_FOR_IMAGE),
    _file(
        "getDCMImage",
        downloads.dcm_image,
        (*UID, "IncludeAnnotation", "MD5Verification"),
        UID,
        NEEDS_SERIES_FOR_IMAGE,
        user_first=True,
    ),
    _file("getSingleImage", downloads.single_image, BOTH_UIDS, BOTH_UIDS, NEEDS_BOTH_UIDS),
    _file("getMD5HashForImage", downloads.md5_of_image_v4, ("SOPInstanceUID",), user_first=True),
    _file("getDicomTags", unversioned.dicom_tags, ("SeriesUID",)),
    _form("getMD5Hierarchy", unversioned.md5_hierarchy, HIERARCHY),
    # Server: only the query string is policed, although the fields are the form's.
    Endpoint("v4/getThumbnail", downloads.thumbnail, Auth.V4_STRICT, method="POST", strict_params="query"),
)

_COUNTS = (
    _file(
        "getModalityValuesAndCounts",
        unversioned.counts_v4("Modality", "Modality", null_as=None),
        ("Collection", "BodyPartExamined"),
    ),
    _file(
        "getBodyPartValuesAndCounts",
        unversioned.counts_v4("BodyPartExamined", "BodyPart", null_as=NO_BODY_PART, upper=True),
        ("Collection", "Modality"),
    ),
    _file(
        "getManufacturerValuesAndCounts",
        unversioned.counts_v4("Manufacturer", "Manufacturer", null_as=""),
        ("Collection", "Modality", "BodyPartExamined"),
    ),
    # Server: the one count whose parameters are not policed.
    Endpoint(
        "v4/getCollectionValuesAndCounts",
        unversioned.counts_v4("Collection", "Collection", null_as=None),
        Auth.V4_STRICT,
    ),
    _file("getCollectionDescriptions", unversioned.descriptions_v4, ("collectionName",)),
)

_FORMS = (
    _form("getCollectionOrSeriesForDOI", quality.series_for_doi, ("DOI", "CollectionOrSeries"), Auth.V4_NOTHING),
    _form("getSimpleSearch", search.simple_search_v4, strict_params=False),
    _form("getManifestForSimpleSearch", manifests.of_search, strict_params=False),
    _form("getManifestText", manifests.of_series, strict_params=False),
    _form("getManifestForCollection", manifests.of_collection, strict_params=False),
    _form("getManifestFromPatientStudySeries", manifests.of_anything, strict_params=False),
)

V4 = (*_LISTS, *_FILES, *_COUNTS, *_FORMS)
"""The endpoints of v4."""
