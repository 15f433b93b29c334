"""The table of the endpoints of v4, which refuses parameters that it does not know."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from nbia_pipeline.embedded.api import downloads, lists, quality, search
from nbia_pipeline.embedded.api.endpoint import Auth, Endpoint, endpoint
from nbia_pipeline.embedded.api.endpoints_v2 import (
    FILES,
    GET_IMAGE,
    LISTS,
    NEEDS_DATE,
    NEEDS_SERIES,
    SHARED_UNVERSIONED,
)

_NEEDS_LIST = "A form parameter, list, containing at least one SeriesInstanceUID is required."
_AUTH = {
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


_list = partial(endpoint, auth=Auth.V4_LIST, formats=True, strict_params="query")
_form = partial(endpoint, auth=Auth.V4_STRICT, method="POST")

V4 = (
    *(_as_v4(e, Auth.V4_LIST) for e in LISTS),
    *(_as_v4(e, Auth.V4_STRICT) for e in (*FILES, *SHARED_UNVERSIONED)),
    # Server: the text still says Date.
    _list("v4/NewPatientsInCollection", lists.new_patients, *("Collection fromDate",) * 2, NEEDS_DATE),
    _list(
        "v4/NewStudiesInPatientCollection",
        lists.new_studies,
        *("Collection fromDate PatientID", "Collection fromDate", NEEDS_DATE),
    ),
    _list("v4/getDeniedSeries", quality.denied_series, "seriesList userName"),
    _list(
        "v4/getSeriesMetadata",
        lists.series_metadata_v4,
        *("list", "list", _NEEDS_LIST),
        method="POST",
        strict_params=None,
    ),
    _list(
        "v4/getSeriesQCInfo",
        quality.qc_info,
        *("seriesId", "seriesId", NEEDS_SERIES),
        method="POST",
        strict_params="form",
    ),
    _as_v4(replace(GET_IMAGE, allowed=(*GET_IMAGE.allowed, "IncludeMD5")), Auth.V4_STRICT),
    endpoint(
        "v4/getMD5HashForImage",
        downloads.md5_of_image,
        "SOPInstanceUID",
        auth=Auth.V4_STRICT,
        user_first=True,
        strict_params="query",
    ),
    _form("v4/getSimpleSearch", search.simple_search),
    _form("v4/getManifestForSimpleSearch", search.manifest),
)
"""The endpoints of v4."""
