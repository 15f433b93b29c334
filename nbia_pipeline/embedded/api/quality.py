"""The endpoints about the state of a series: quality control, denied series, series of a DOI."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.embedded.api.endpoint import NO_CONTENT, Call, Reply, Rows
from nbia_pipeline.embedded.api.lists import authorized
from nbia_pipeline.embedded.catalog.holdings import ANY_VISIBILITY, DOWNLOADABLE
from nbia_pipeline.embedded.catalog.model import VISIBLE
from nbia_pipeline.schema import shapes

_STAGES = (f"Stage {number}" for number in range(1, 8))
VISIBILITIES = dict(
    enumerate(("Not Yet Reviewed", "Visible", "Not Visible", "To Be Deleted", "Delete", *_STAGES, "Downloadable"))
)
"""Text of a visibility code; the stages' wording is ours."""

_TEXT = "VisibilityText"


def qc_info(call: Call) -> Rows:
    """getSeriesQCInfo: series of any visibility, so that a hidden one differs from a deleted one.

    Server: v4 sends the columns of getSeriesMetadata and the visibility.
    """
    rows = call.holdings.among(call.form["seriesId"], call.rights, ANY_VISIBILITY)
    texts = [VISIBILITIES.get(code, str(code)) for code in rows["Visibility"].to_pylist()]
    rows = rows.append_column(_TEXT, pa.array(texts, pa.string()))
    return Rows(authorized(rows), shapes.QC_V4) if call.v4 else Rows(rows, shapes.QC_V2)


def denied_series(call: Call) -> Rows | Reply:
    """getDeniedSeries: which of the series asked for are not available.

    Server: for the user who is named, else for the guest; 204 if none is denied, and also if the user has no rights at
    all.
    """
    asked = [uid for uid in call.query.get("seriesList", "").split(",") if uid]
    rights = call.rights
    if "userName" in call.query:
        account = call.holdings.catalog.accounts.get(call.query["userName"])
        if account is None:
            return NO_CONTENT
        rights = account.collections
    rows = call.holdings.among(asked, rights, frozenset({VISIBLE, DOWNLOADABLE}))
    available = set(rows["SeriesInstanceUID"].to_pylist())
    denied = [uid for uid in dict.fromkeys(asked) if uid not in available]
    if not denied:
        return NO_CONTENT
    return Rows(pa.table({"SeriesInstanceUID": pa.array(denied, pa.string())}), shapes.DENIED)


def series_for_doi(call: Call) -> Rows:
    """getCollectionOrSeriesForDOI. Server: compares the stored address; hidden series are included.

    ``authorized`` is v4's.
    """
    rows = call.holdings.select(call.rights, visibility=ANY_VISIBILITY)
    doi = call.form.get("DOI", [None])[0]
    if doi is not None:
        rows = rows.filter(pc.equal(rows["CollectionURI"], doi))
    if call.form.get("CollectionOrSeries", [""])[0].casefold() != "series":
        rows = rows.group_by(["Collection", "ThirdPartyAnalysis"], use_threads=False).aggregate([])
    return Rows(authorized(rows) if call.v4 else rows, shapes.DOI_CONTENTS, jackson=True, nulls=False)
