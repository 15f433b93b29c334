"""The table of the endpoints of v1 and v2: the same ones, with different identity and some other texts."""

from __future__ import annotations

from functools import partial

from nbia_pipeline.embedded.api import downloads, lists, quality
from nbia_pipeline.embedded.api.endpoint import Auth, Endpoint, Handler
from nbia_pipeline.schema import shapes

NEEDS_SERIES = "A parameter, SeriesInstanceUID is required for this API call."
NEEDS_SERIES_FOR_IMAGE = "A parameter, SeriesInstanceUID, is required for this API call."
NEEDS_BOTH_UIDS = "A parameter, SeriesInstanceUID and SOPInstanceUID, are required for this API call."
NEEDS_DATE = "A parameter, Collection and Date are required for this API call."
NEEDS_MODALITY = "A parameter, Collection and Modality, are required for this API call."
NEEDS_NAME = "A parameter, name is required for this API call."

SERIES_PARAMETERS = (
    "Collection PatientID StudyInstanceUID SeriesInstanceUID Modality BodyPartExamined ManufacturerModelName "
    "Manufacturer"
)
UID = ("SeriesInstanceUID",)
BOTH_UIDS = ("SeriesInstanceUID", "SOPInstanceUID")


def _endpoint(
    name: str,
    handler: Handler,
    auth: Auth = Auth.LIST,
    parameters: str = "",
    required: str = "",
    bad_request: str = "",
    *,
    user_first: bool = False,
    formats: bool = True,
) -> Endpoint:
    """Make an endpoint without version; `parameters` and `required` are names parted by spaces."""
    return Endpoint(
        name,
        handler,
        auth,
        allowed=(*parameters.split(), *(["format"] if formats else [])),
        required=tuple(required.split()),
        bad_request=bad_request,
        user_first=user_first,
    )


def _lists(needs_name: str) -> tuple[Endpoint, ...]:
    one, new, series = ("SeriesInstanceUID",) * 2, ("Collection Date",) * 2, (Auth.LIST, SERIES_PARAMETERS)
    return (
        _endpoint("getCollectionValues", lists.collection_values, Auth.STRICT),
        _endpoint(
            "getModalityValues",
            lists.values(shapes.MODALITY_VALUE, upper=False),
            Auth.LIST,
            "Collection BodyPartExamined",
        ),
        _endpoint(
            "getBodyPartValues", lists.values(shapes.BODY_PART_VALUE, upper=True), Auth.LIST, "Collection Modality"
        ),
        _endpoint(
            "getManufacturerValues",
            lists.values(shapes.MANUFACTURER_VALUE, upper=False),
            Auth.LIST,
            "Collection Modality BodyPartExamined",
        ),
        _endpoint("getPatient", lists.patients_v2, Auth.LIST, "Collection PatientId"),
        _endpoint(
            "getPatientByCollectionAndModality",
            lists.patient_ids_by_modality_v2,
            Auth.LIST,
            *("Collection Modality", "Collection Modality", NEEDS_MODALITY),
        ),
        _endpoint("NewPatientsInCollection", lists.new_patients_v2, Auth.LIST, *new, NEEDS_DATE),
        _endpoint("getPatientStudy", lists.studies_v2, Auth.LIST, "Collection PatientID StudyInstanceUID"),
        _endpoint(
            "NewStudiesInPatientCollection",
            lists.new_studies_v2,
            Auth.LIST,
            *("Collection Date PatientID", "Collection Date", NEEDS_DATE),
        ),
        _endpoint("getSeries", lists.series_v2, *series),
        _endpoint("getUpdatedSeries", lists.updated_series_v2, Auth.LIST, "fromDate"),
        _endpoint("getSeriesMetaData", lists.series_metadata_v2, Auth.QUIET, *one, NEEDS_SERIES),
        _endpoint("getSeriesSize", lists.series_size_v2, Auth.LIST, *one, NEEDS_SERIES),
        _endpoint("getSOPInstanceUIDs", lists.sop_instance_uids_v2, Auth.LIST, *one, NEEDS_SERIES),
        _endpoint("getContentsByName", lists.contents_by_name, Auth.LIST, "name", "name", needs_name, formats=False),
    )


def _files(refusal: downloads.Refusal) -> tuple[Endpoint, ...]:
    uid = " ".join(UID)
    image = partial(downloads.image_v2, refusal=refusal)
    hashed = partial(downloads.image_with_md5, refusal=refusal)
    both = " ".join(BOTH_UIDS)
    return (
        _endpoint(
            "getImage",
            image,
            Auth.STRICT,
            *(f"{uid} NewFileNames", uid, NEEDS_SERIES_FOR_IMAGE),
            user_first=True,
            formats=False,
        ),
        _endpoint("getImageWithMD5Hash", hashed, Auth.STRICT, uid, uid, NEEDS_SERIES_FOR_IMAGE, formats=False),
        _endpoint(
            "getDCMImage",
            downloads.dcm_image,
            Auth.STRICT,
            *(f"{uid} IncludeAnnotation MD5Verification", uid, NEEDS_SERIES_FOR_IMAGE),
            user_first=True,
            formats=False,
        ),
        _endpoint("getSingleImage", downloads.single_image, Auth.STRICT, both, both, NEEDS_BOTH_UIDS, formats=False),
        # Server: the name and its parameter are spelled so.
        _endpoint(
            "getM5HashForImage",
            downloads.md5_of_image_v2,
            Auth.STRICT,
            "SOPInstanceUid",
            user_first=True,
            formats=False,
        ),
    )


def _as_v1(endpoint: Endpoint) -> Endpoint:
    """Return an endpoint of v1: always the guest's rights, a token is not read."""
    return endpoint.at(f"v1/{endpoint.path}", Auth.OPEN)


V1 = (
    *(_as_v1(e) for e in (*_lists(NEEDS_NAME), *_files(downloads.not_public))),
    Endpoint("v1/getDeniedSeries", quality.denied_series, Auth.OPEN, ("seriesList", "userName", "format")),
    Endpoint("v1/status", quality.status, Auth.OPEN),
)
"""The endpoints of v1."""

V2 = (
    # Server: the 400 of getContentsByName names the wrong parameter.
    *(e.at(f"v2/{e.path}", e.auth) for e in (*_lists(NEEDS_SERIES), *_files(downloads.refused))),
    Endpoint(
        "v2/getSeriesQCInfo",
        quality.qc_info_v2,
        Auth.QUIET,
        *(("seriesId", "format"), ("seriesId",), NEEDS_SERIES),
        method="POST",
    ),
)
"""The endpoints of v2."""
