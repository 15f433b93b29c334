"""What is new in a collection since a day: NewPatientsInCollection and NewStudiesInPatientCollection."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import pyarrow as pa

from nbia_pipeline.archive import NbiaClient, NotAvailable
from nbia_pipeline.text import did_you_mean, first_of, similar_names

LOOK_BACK = timedelta(days=30)
"""How far back to look where no day is given."""

PATIENT_COLUMNS = ("PatientID", "PatientSex", "EthnicGroup", "SpeciesDescription", "Phantom")
STUDY_COLUMNS = ("PatientID", "StudyDate", "StudyDescription", "SeriesCount", "StudyInstanceUID")


@dataclass(frozen=True)
class Released:
    """What is new in a collection.

    Attributes:
        collection: its exact spelling.
        patients: patients with a series released since: table ``patients``, by PatientID.
        studies: studies with such a series: table ``studies``, by patient and day; SeriesCount counts the new ones.
    """

    collection: str
    patients: pa.Table
    studies: pa.Table


def ask_released(client: NbiaClient, collection: str, since: date) -> Released:
    """Ask the archive what was released in a collection since a day.

    Args:
        client: the archive.
        collection: name, as getCollectionValues spells it.
        since: a day.

    Raises:
        NotAvailable: the archive lists no such collection for the account.
        ArchiveError: the archive cannot be asked.
    """
    listed = client.collection_values()
    if collection not in listed:
        hint = did_you_mean(similar_names(collection, listed), f"it lists {first_of(listed)}")
        raise NotAvailable(f"the archive lists no collection {collection!r} for this account: {hint}")
    patients = client.new_patients(collection, since).sort_by("PatientID")
    studies = client.new_studies(collection, since)
    order = [(name, "ascending") for name in ("PatientID", "StudyDate", "StudyInstanceUID")]
    return Released(collection, patients, studies.sort_by(order))
