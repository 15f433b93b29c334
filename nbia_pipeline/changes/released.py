"""What is new in a collection since a day: NewPatientsInCollection and NewStudiesInPatientCollection."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import pyarrow as pa

from nbia_pipeline.archive import NbiaClient, NotAvailable
from nbia_pipeline.text import did_you_mean, first_of, similar_names

LOOK_BACK = timedelta(days=30)
"""How far back to look where nothing says since when."""

PATIENT_COLUMNS = ("PatientID", "PatientSex", "EthnicGroup", "SpeciesDescription", "Phantom")
STUDY_COLUMNS = ("PatientID", "StudyDate", "StudyDescription", "SeriesCount", "StudyInstanceUID")


@dataclass(frozen=True)
class News:
    """What is new in a collection.

    Attributes:
        collection: its exact spelling.
        since: the day from which on a release counts.
        patients: patients with a series released since: table ``patients``, by PatientID.
        studies: studies with such a series: table ``studies``, by patient and day; SeriesCount counts the new ones.
    """

    collection: str
    since: date
    patients: pa.Table
    studies: pa.Table


def ask_news(client: NbiaClient, collection: str, since: date) -> News:
    """Ask the archive what is new in a collection.

    Args:
        client: the archive.
        collection: name, as getCollectionValues spells it.
        since: a day.

    Raises:
        NotAvailable: there is no such collection for the account.
        ArchiveError: the archive cannot be asked.
    """
    listed = client.collection_values()
    if collection not in listed:
        hint = did_you_mean(similar_names(collection, listed), f"there are {first_of(listed)}")
        raise NotAvailable(f"the archive lists no collection {collection!r} for this account: {hint}")
    patients = client.new_patients(collection, since).sort_by("PatientID")
    studies = client.new_studies(collection, since)
    order = [(name, "ascending") for name in ("PatientID", "StudyDate", "StudyInstanceUID")]
    return News(collection, since, patients, studies.sort_by(order))
