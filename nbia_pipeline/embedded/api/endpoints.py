"""The table of endpoints: path, what answers, identity, parameters."""

from __future__ import annotations

from nbia_pipeline.embedded.api import downloads, quality, search, unversioned
from nbia_pipeline.embedded.api.endpoint import Auth, Endpoint
from nbia_pipeline.embedded.api.endpoints_v2 import V1, V2
from nbia_pipeline.embedded.api.endpoints_v4 import HIERARCHY, NO_BODY_PART, V4

UNVERSIONED = (
    Endpoint(
        "getModalityValuesAndCounts",
        unversioned.counts("Modality", null_as=None),
        Auth.STRICT,
        ("Collection", "BodyPartExamined"),
    ),
    Endpoint(
        "getBodyPartValuesAndCounts",
        unversioned.counts("BodyPartExamined", null_as=NO_BODY_PART, upper=True),
        Auth.STRICT,
        ("Collection", "Modality"),
    ),
    Endpoint(
        "getManufacturerValuesAndCounts",
        unversioned.counts("Manufacturer", null_as=""),
        Auth.STRICT,
        ("Collection", "Modality", "BodyPartExamined"),
    ),
    Endpoint("getCollectionValuesAndCounts", unversioned.counts("Collection", null_as=None), Auth.STRICT),
    Endpoint("getCollectionDescriptions", unversioned.descriptions, Auth.STRICT, ("collectionName",)),
    Endpoint("getSeriesMetadata2", unversioned.metadata2, Auth.STRICT, ("list",), method="POST"),
    Endpoint("getSeriesMetadata3", unversioned.metadata3, Auth.STRICT, ("list",), method="POST"),
    Endpoint("getLicenses", unversioned.licenses, Auth.OPEN),
    Endpoint("getMD5Hierarchy", unversioned.md5_hierarchy, Auth.STRICT, HIERARCHY, method="POST"),
    Endpoint("getDicomTags", unversioned.dicom_tags, Auth.TAGS, ("SeriesUID",)),
    Endpoint(
        "getCollectionOrSeriesForDOI",
        quality.series_for_doi,
        Auth.NOTHING,
        ("DOI", "CollectionOrSeries"),
        method="POST",
    ),
    Endpoint("getThumbnail", downloads.thumbnail, Auth.STRICT, ("seriesUID", "objectUID"), method="POST"),
    Endpoint("getSimpleSearchWithModalityAndBodyPartPaged", search.simple_search_v2, Auth.STRICT, method="POST"),
)
"""The endpoints without a version."""

ENDPOINTS: tuple[Endpoint, ...] = (*V1, *V2, *V4, *UNVERSIONED)
"""Every endpoint of the embedded archive besides token, logout and liveness."""
