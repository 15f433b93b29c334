"""The table of endpoints, and those of v4, which refuses parameters that it does not know."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from nbia_pipeline.embedded.api import lists, search
from nbia_pipeline.embedded.api.endpoint import Auth, Endpoint
from nbia_pipeline.embedded.api.endpoints_v2 import (
    DENIED,
    FILES,
    GET_IMAGE,
    LISTS,
    MD5_OF_IMAGE,
    NEEDS_DATE,
    QC_INFO,
    SHARED_UNVERSIONED,
    UNVERSIONED,
    V1,
    V2,
)

_NEEDS_LIST = "A form parameter, list, containing at least one SeriesInstanceUID is required."
_ONE_LIST = ("list", "list", _NEEDS_LIST)
_SINCE = ("Collection fromDate", "Collection fromDate")
_AUTH = {
    "getCollectionValues": Auth.V4_STRICT,
    "getCollectionDescriptions": Auth.V4_FRAGILE,
    "getDicomTags": Auth.V4_TAGS,
    "getSeries": Auth.V4_FRAGILE,
    "getUpdatedSeries": Auth.OPEN,
    "getSeriesSize": Auth.OPEN,
    "getSOPInstanceUIDs": Auth.OPEN,
    "getCollectionOrSeriesForDOI": Auth.V4_NOTHING,
}
# Server: the one count that accepts unknown parameters.
_LENIENT = "getCollectionValuesAndCounts"


def _as_v4(e: Endpoint, auth: Auth) -> Endpoint:
    """Return an endpoint of another version as v4 has it."""
    strict = None if e.path == _LENIENT else "form" if e.method == "POST" else "query"
    return replace(e, path=f"v4/{e.path}", auth=_AUTH.get(e.path, auth), strict_params=strict)


_list = partial(Endpoint, auth=Auth.V4_LIST, formats=True, strict_params="query")
_form = partial(Endpoint, auth=Auth.V4_STRICT, method="POST")

V4 = (
    *(_as_v4(e, Auth.V4_LIST) for e in LISTS),
    *(_as_v4(e, Auth.V4_STRICT) for e in (*FILES, *SHARED_UNVERSIONED)),
    # Server: the text still says Date.
    _list("v4/NewPatientsInCollection", lists.new_patients, *_SINCE, NEEDS_DATE),
    _list("v4/NewStudiesInPatientCollection", lists.new_studies, f"{_SINCE[0]} PatientID", _SINCE[1], NEEDS_DATE),
    replace(DENIED, path="v4/getDeniedSeries", strict_params="query"),
    _form("v4/getSeriesMetadata", lists.series_metadata_v4, *_ONE_LIST, formats=True),
    replace(QC_INFO, path="v4/getSeriesQCInfo", auth=Auth.V4_QUIET, strict_params="form"),
    _as_v4(replace(GET_IMAGE, parameters=f"{GET_IMAGE.parameters} IncludeMD5"), Auth.V4_STRICT),
    _as_v4(replace(MD5_OF_IMAGE, path="getMD5HashForImage", parameters="SOPInstanceUID"), Auth.V4_STRICT),
    _form("v4/getSimpleSearch", search.simple_search),
    _form("v4/getManifestForSimpleSearch", search.manifest),
)
"""The endpoints of v4."""

ENDPOINTS: tuple[Endpoint, ...] = (*V1, *V2, *V4, *UNVERSIONED)
"""Every endpoint of the embedded archive besides token, logout and liveness."""
