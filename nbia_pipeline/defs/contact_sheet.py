"""The contact sheet in the asset's page."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pyarrow as pa

from nbia_pipeline.lake import Lake
from nbia_pipeline.preview.contact_sheet import ContactSheet, contact_sheet
from nbia_pipeline.preview.sheet import inline_markdown


def contact_sheet_metadata(
    log: dg.DagsterLogManager, lake: Lake, collection: str, receipts: pa.Table, series: pa.Table
) -> dict[str, Any]:
    """Return the contact sheet of a collection as metadata: the picture, and where the large one lies.

    A picture is never worth a run. What could not be drawn is told in the log and stands on the sheet.

    Args:
        log: of the step.
        lake: the lake.
        collection: exact spelling.
        receipts: its rows of ``image_series``.
        series: its rows of ``series``.
    """
    try:
        sheet = contact_sheet(lake, collection, receipts, series)
        if sheet is None:
            return {}
        inline = inline_markdown(sheet.png, collection)
    except Exception as e:  # noqa: BLE001 - whatever it is: the images are in the lake, and the log says it
        log.warning(f"the contact sheet of {collection} could not be drawn ({type(e).__name__}: {e})")
        return {"contact_sheet": dg.MetadataValue.text(f"could not be drawn: {type(e).__name__}: {e}")}
    _tell(log, collection, sheet)
    return {
        "contact_sheet": dg.MetadataValue.md(inline or "The picture is too large to be shown here."),
        "contact_sheet_path": dg.MetadataValue.path(lake.url(sheet.path)),
    }


def _tell(log: dg.DagsterLogManager, collection: str, sheet: ContactSheet) -> None:
    if sheet.undrawn:
        uid, why = next(iter(sheet.undrawn.items()))
        log.warning(
            f"{len(sheet.undrawn)} of the {sheet.series} series on the contact sheet of {collection} could not be "
            f"drawn, the first: {uid}, {why}"
        )
