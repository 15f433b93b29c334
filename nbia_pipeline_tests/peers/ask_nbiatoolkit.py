"""Ask an archive with nbiatoolkit and print what it says, as JSON. Runs in the peers' environment.

Usage: ask_nbiatoolkit.py URL FOLDER QUESTIONS, where URL ends in ``/nbia-api`` and QUESTIONS is JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import requests
from nbiatoolkit import NBIAClient, OAuth2
from nbiatoolkit.utils import NBIA_BASE_URLS


class Here(Enum):
    """Where the archive is. The client reads ``value`` of what it is given, as of its own enumeration."""

    ARCHIVE = sys.argv[1] + "/services/"


def main() -> None:
    """Answer the questions of the command line."""
    folder, questions = Path(sys.argv[2]), json.loads(sys.argv[3])
    client = NBIAClient(log_level="CRITICAL", return_type="list")
    client.base_url = Here.ARCHIVE
    # The class takes an address, the client that makes it does not pass one on.
    client._oauth2_client = OAuth2(base_url=Here.ARCHIVE.value)
    NBIA_BASE_URLS.LOGOUT_URL._value_ = f"{sys.argv[1]}/logout"
    with contextlib.redirect_stdout(sys.stderr):
        answers = {
            **lists(client, questions),
            **images(client, questions, folder),
            **log_out(client),
        }
    print(json.dumps(answers))


def lists(client: Any, questions: dict[str, Any]) -> dict[str, Any]:
    """Ask for everything that comes as rows."""
    names, since = questions["collections"], questions["since"]
    return {
        "collections": client.getCollections(),
        "modalities": client.getModalityValues(),
        "modality_counts": client.getModalityValues(Counts=True),
        "body_part_counts": client.getBodyPartCounts(),
        "collection_counts": client.getCollectionPatientCount(),
        "descriptions": {name: client.getCollectionDescriptions(name) for name in names},
        "patients": {name: client.getPatients(Collection=name) for name in names},
        "studies": {name: client.getStudies(Collection=name) for name in names},
        "series": {name: client.getSeries(Collection=name) for name in names},
        "updated": {day: client.getNewSeries(day) for day in since},
        "new_patients": {name: _tried(client.getNewPatients, name, since[0]) for name in names},
        "metadata": {uid: _tried(client.getSeriesMetadata, uid) for uid in questions["metadata"]},
        "unknown": _tried(client.getSeries, Collection="No Such Collection"),
        "references": {uid: _tried(client.getRefSeriesUIDs, uid) for uid in questions["drawn"]},
    }


def images(client: Any, questions: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Download series, each into a folder of its own."""
    return {
        "downloaded": {
            uid: client.downloadSeries(uid, downloadDir=str(folder / uid)) for uid in questions["downloads"]
        },
        "refused": client.downloadSeries("1.2.3", downloadDir=str(folder / "unknown")),
    }


def log_out(client: Any) -> dict[str, Any]:
    """Log out, and try the token once more."""
    headers, said = client.headers, io.StringIO()
    with contextlib.redirect_stdout(said):
        client.OAuth_client.logout()
    again = requests.get(f"{Here.ARCHIVE.value}v2/getCollectionValues", headers=headers, timeout=30)
    return {"logout_said": said.getvalue(), "status_after_logout": again.status_code}


def _tried(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return what a call returns, or the text of what it raises."""
    try:
        return call(*arguments, **named)
    except (ValueError, AssertionError, requests.HTTPError) as e:
        return f"{type(e).__name__}: {e}"


if __name__ == "__main__":
    main()
