"""Ask an archive with tcia_utils and print what it says, as JSON. Runs in the peers' environment.

Usage: ask_tcia_utils.py URL FOLDER QUESTIONS, where URL ends in ``/nbia-api`` and QUESTIONS is JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from tcia_utils import nbia


def main() -> None:
    """Answer the questions of the command line."""
    url, folder, questions = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    logging.disable(logging.INFO)
    # The one place that names a host: it knows two by name and takes no others.
    nbia.setApiUrl = lambda endpoint, api_url="": f"{url}/services/v4/"
    with contextlib.redirect_stdout(sys.stderr):
        answers = {
            **lists(questions),
            **metadata(questions),
            **images(questions, folder),
        }
    print(json.dumps(answers))


def lists(questions: dict[str, Any]) -> dict[str, Any]:
    """Ask for what comes as plain JSON, the default of its functions."""
    names, since = questions["collections"], questions["since"]
    return {
        "collections": nbia.getCollections(),
        "modalities": nbia.getModality(),
        "body_parts": nbia.getBodyPart(),
        "manufacturers": nbia.getManufacturer(),
        "collection_counts": nbia.getCollectionPatientCounts(),
        "descriptions": nbia.getCollectionDescriptions(),
        "patients": {name: nbia.getPatient(collection=name) for name in names},
        "studies": {name: nbia.getStudy(collection=name) for name in names},
        "series": {name: nbia.getSeries(collection=name) for name in names},
        "updated": {day: nbia.getUpdatedSeries(day) for day in since},
        "new_patients": {name: nbia.getNewPatientsInCollection(name, since[0]) for name in names},
        "sop_instance_uids": {uid: nbia.getSopInstanceUids(uid) for uid in questions["downloads"]},
        "unknown": nbia.getSeries(collection="No Such Collection"),
        "series_frame": _frame(nbia.getSeries(collection=names[0], format="df")),
        "references": {uid: _first_reference(uid) for uid in questions["drawn"]},
    }


def _first_reference(uid: str) -> str:
    """Return what it says, or the text of what it raises where there are several."""
    try:
        found: str = nbia.getSegRefSeries(uid)
    except ValueError as e:
        return f"ValueError: {e}"
    return found


def metadata(questions: dict[str, Any]) -> dict[str, Any]:
    """Ask for the bulk metadata, and for the report that it makes of a list of series."""
    uids = questions["metadata"]
    report = nbia.makeSeriesReport(uids, input_type="list", format="var")
    return {
        "metadata": _frame(nbia.getSeriesList(uids)),
        "report": {name: int(report[name]) for name in ("subjects", "studies", "series", "images")},
    }


def images(questions: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Download series in its two ways, and one instance."""
    uids = questions["downloads"]
    nbia.downloadSeries(uids, input_type="list", path=str(folder / "plain"))
    nbia.downloadSeries(uids, input_type="list", path=str(folder / "hashed"), hash="y")
    uid, instance = questions["instance"]
    nbia.downloadImage(uid, instance, path=str(folder / "single"))
    refused = nbia.downloadSeries(["1.2.3"], input_type="list", path=str(folder / "unknown"), format="df")
    return {"refused": _frame(refused)}


def _frame(frame: Any) -> dict[str, Any]:
    """Return a data frame as its columns, their types and its rows, with null for every kind of missing."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return {"columns": list(frame.columns), "types": {c: str(t) for c, t in frame.dtypes.items()}, "rows": rows}


if __name__ == "__main__":
    main()
