"""The simple search of v4: patients by numbered criteria, a page at a time, or the manifest of their series.

tcia_utils asks for both. The names of the criteria and of the answer's keys are the server's. Not imitated: its
cache per user, and the internal keys of studies and series, which are checksums of the UIDs here.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.embedded.api import dates
from nbia_pipeline.embedded.api.endpoint import Call, Reply, ServerFault, json_reply

Row = dict[str, Any]
Criteria = Mapping[str, list[str]]

_COLUMNS = (
    "Collection PatientID StudyInstanceUID SeriesInstanceUID Modality BodyPartExamined SpeciesCode "
    "LongitudinalTemporalOffsetFromEvent"
).split()
# Column by type of criterion; all are compared without regard to case.
_EQUAL = {
    "CollectionCriteria": "Collection",
    "ImageModalityCriteria": "Modality",
    "AnatomicalSiteCriteria": "BodyPartExamined",
    "BodyPartExaminedCriteria": "BodyPartExamined",
    "ManufacturerCriteria": "Manufacturer",
    "PatientCriteria": "PatientID",
    "SpeciesCriteria": "SpeciesCode",
}
_FACETS = {
    "bodyParts": "BodyPartExamined",
    "modalities": "Modality",
    "collections": "Collection",
    "species": "SpeciesCode",
}
_SORTS = {
    "subject": "subjectId",
    "collection": "project",
    "study": "totalNumberOfStudies",
    "series": "totalNumberOfSeries",
    "totalNumberOfStudies": "totalNumberOfStudies",
    "totalNumberOfSeries": "totalNumberOfSeries",
}
_MANIFEST = (
    "downloadServerUrl=http://127.0.0.1/nbia-download/servlet/DownloadServlet\nincludeAnnotation=true\nnoOfrRetry=4\n"
    "databasketId=manifest-{count}.tcia\nmanifestVersion=3.0\nListOfSeriesToDownload=\n"
)


def simple_search(call: Call) -> Reply:
    """getSimpleSearch: a page of patients, and counts of all that were found; nulls are left out.

    Server: without any of the four fields of the page it ends in a 500.
    """
    given = {name: texts[0] for name, texts in call.form.items()}
    try:
        start, size = int(given["start"]), int(given["size"])
        sort_field, direction = given["sortField"], given["sortDirection"]
    except (KeyError, ValueError) as error:
        raise ServerFault from error
    rows = _by_patient(_found(call))
    patients = [_patient(*key, of_patient) for key, of_patient in rows.items()]
    if sort_field not in _SORTS or start < 0 or size < 0:
        raise ServerFault
    if start > len(patients):
        raise ServerFault(f"fromIndex({start}) > toIndex({len(patients)})")
    patients.sort(key=lambda p: p[_SORTS[sort_field]], reverse=direction == "descending")
    timepoints = [t for p in patients for t in p.get("timepoints", ())]
    answer: Row = {
        "resultSet": patients[start : start + size],
        "totalPatients": len(patients),
        **{name: _facet(rows.values(), column) for name, column in _FACETS.items()},
        **({"minTimepoints": min(timepoints), "maxTimepoints": max(timepoints)} if timepoints else {}),
        "sort": f"{sort_field} {direction}",
    }
    return json_reply(answer)


def manifest(call: Call) -> Reply:
    """getManifestForSimpleSearch: the ``.tcia`` file of the series that the criteria find."""
    uids = _found(call)["SeriesInstanceUID"].to_pylist()
    return Reply(
        (_MANIFEST.format(count=len(uids)) + "".join(f"{uid}\n" for uid in uids)).encode(),
        content_type="application/x-nbia-manifest-file",
        disposition=f'attachment; filename="manifest-{len(uids)}.tcia"',
    )


def _found(call: Call) -> pa.Table:
    """Return the series of the caller that meet the criteria in the form."""
    rows, criteria = call.holdings.select(call.rights), _criteria(call.form)
    for kind, column in _EQUAL.items():
        if kind in criteria:
            values = pa.array([value.upper() for value in criteria[kind]], pa.string())
            rows = rows.filter(pc.is_in(pc.utf8_upper(rows[column]), values))
    for period in criteria.get("DateRangeCriteria", ()):
        first, last = map(dates.month_first, period.split(" ", 1))
        if first is None or last is None:
            raise ServerFault
        rows = rows.filter((pc.field("DateReleased") >= first) & (pc.field("DateReleased") <= last))
    return _of_patients(rows, criteria)


def _criteria(form: Criteria) -> dict[str, list[str]]:
    """Return the values by type of criterion. Server: the numbers have no gaps, the first gap ends them."""
    criteria: dict[str, list[str]] = {}
    for number in itertools.takewhile(lambda n: f"criteriaType{n}" in form, itertools.count()):
        values = form.get(f"value{number}", [])
        if form[f"criteriaType{number}"][0] == "DateRangeCriteria":
            values = [" ".join(form.get(f"{end}Date{number}", [""])[0] for end in ("from", "to"))]
        criteria.setdefault(form[f"criteriaType{number}"][0], []).extend(values)
    return criteria


def _of_patients(rows: pa.Table, criteria: Criteria) -> pa.Table:
    """Keep the series of the patients who meet the criteria about a patient."""
    least = max((int(v) for v in criteria.get("MinNumberOfStudiesCriteria", ())), default=0)
    together = "all" in map(str.casefold, criteria.get("ModalityAndedSearchCriteria", ()))
    wanted = set(map(str.upper, criteria.get("ImageModalityCriteria", ()))) if together else set()
    kept = [
        s["SeriesInstanceUID"]
        for series in _by_patient(rows).values()
        if len({s["StudyInstanceUID"] for s in series}) >= least
        and wanted <= {str(s["Modality"]).upper() for s in series}
        for s in series
    ]
    return rows.filter(pc.is_in(rows["SeriesInstanceUID"], pa.array(kept, pa.string())))


def _by_patient(rows: pa.Table) -> dict[tuple[str, str], list[Row]]:
    patients: dict[tuple[str, str], list[Row]] = {}
    for row in rows.select(_COLUMNS).to_pylist():
        patients.setdefault((row["Collection"], row["PatientID"]), []).append(row)
    return patients


def _patient(collection: str, patient: str, rows: list[Row]) -> Row:
    studies: dict[str, list[int]] = {}
    for row in rows:
        studies.setdefault(row["StudyInstanceUID"], []).append(_internal(row["SeriesInstanceUID"]))
    timepoints = _distinct(rows, "LongitudinalTemporalOffsetFromEvent")
    return {
        "subjectId": patient,
        "project": collection,
        "id": _internal(f"{collection}/{patient}"),
        "totalNumberOfStudies": len(studies),
        "totalNumberOfSeries": len(rows),
        "modalities": _distinct(rows, "Modality"),
        "bodyParts": _distinct(rows, "BodyPartExamined"),
        "species": _distinct(rows, "SpeciesCode"),
        **({"timepoints": timepoints} if timepoints else {}),
        "studyIdentifiers": [
            {"seriesIdentifiers": series, "studyIdentifier": _internal(study)} for study, series in studies.items()
        ],
        "authorized": 1,
    }


def _internal(text: str) -> int:
    """Return what stands for the server's own key of a row."""
    return zlib.crc32(text.encode())


def _distinct(rows: Iterable[Row], column: str) -> list[Any]:
    return sorted({row[column] for row in rows if row[column] is not None})


def _facet(patients: Iterable[list[Row]], column: str) -> list[Row]:
    counts = Counter(value for rows in patients for value in _distinct(rows, column))
    return [{"value": value, "count": count} for value, count in sorted(counts.items())]
