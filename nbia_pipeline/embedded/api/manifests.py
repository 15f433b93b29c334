"""Manifests of v4: the ``.tcia`` files that the archive's own downloader reads.

The reference names the endpoints and the form of the file; the names of the fields are those of the other
endpoints, because it does not state them.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.embedded.api.endpoint import Call, Reply
from nbia_pipeline.embedded.api.search import found

_LINES = (
    "downloadServerUrl=http://127.0.0.1/nbia-download/servlet/DownloadServlet",
    "includeAnnotation=true",
    "noOfrRetry=4",
    "databasketId=manifest-{count}.tcia",
    "manifestVersion=3.0",
    "ListOfSeriesToDownload=",
)


def of_search(call: Call) -> Reply:
    """getManifestForSimpleSearch: the series that the criteria find."""
    return _manifest(found(call, v4=True))


def of_series(call: Call) -> Reply:
    """getManifestText: the series of the field ``list``, as far as the caller may see them."""
    return _manifest(call.holdings.among(_listed(call, "list"), call.rights))


def of_collection(call: Call) -> Reply:
    """getManifestForCollection: all series of the field ``Collection``."""
    return _manifest(call.holdings.select(call.rights, call.form.get("Collection", [""])[0]))


def of_anything(call: Call) -> Reply:
    """getManifestFromPatientStudySeries: whatever one of three lists of identifiers names."""
    rows = call.holdings.select(call.rights)
    wanted: pa.ChunkedArray | None = None
    for column in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        mask = pc.is_in(rows[column], pa.array(_listed(call, column), pa.string()))
        wanted = mask if wanted is None else pc.or_(wanted, mask)
    return _manifest(rows.filter(wanted))


def _listed(call: Call, field: str) -> list[str]:
    return [value for text in call.form.get(field, ()) for value in text.split(",") if value]


def _manifest(rows: pa.Table) -> Reply:
    uids: Iterable[str] = rows["SeriesInstanceUID"].to_pylist()
    lines = [*(line.format(count=rows.num_rows) for line in _LINES), *uids]
    return Reply(
        ("\n".join(lines) + "\n").encode(),
        content_type="application/x-nbia-manifest-file",
        disposition=f'attachment; filename="manifest-{rows.num_rows}.tcia"',
    )
