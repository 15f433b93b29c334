"""The simple search: patients by numbered criteria, a page at a time, with counts of what was found.

The names of the criteria and of the answer's keys are the server's. Not imitated: its cache per user, and
the internal keys of studies and series, which are checksums of the UIDs here.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.embedded.api import dates
from nbia_pipeline.embedded.api.endpoint import Call, Reply, ServerFault

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
    "ManufacturerCriteria": "Manufacturer",
    "PatientCriteria": "PatientID",
    "SpeciesCriteria": "SpeciesCode",
}
# v4 takes this name besides.
_SYNONYMS = {"BodyPartExaminedCriteria": "AnatomicalSiteCriteria"}
_FACETS = {
    "bodyParts": "BodyPartExamined",
    "modalities": "Modality",
    "collections": "Collection",
    "species": "SpeciesCode",
}
_SORTS: dict[str, Callable[[Row], Any]] = {
    "subject": lambda p: p["subjectId"],
    "collection": lambda p: p["project"],
    "study": lambda p: p["totalNumberOfStudies"],
    "series": lambda p: p["totalNumberOfSeries"],
    "totalNumberOfStudies": lambda p: p["totalNumberOfStudies"],
    "totalNumberOfSeries": lambda p: p["totalNumberOfSeries"],
}


def simple_search_v2(call: Call) -> Reply:
    """getSimpleSearchWithModalityAndBodyPartPaged: nulls are written, dates are ``dd/MM/yyyy``."""
    return _search(call, v4=False)


def simple_search_v4(call: Call) -> Reply:
    """getSimpleSearch of v4: nulls are omitted, dates are ``MM-DD-YYYY``, items say ``authorized``."""
    return _search(call, v4=True)


def found(call: Call, v4: bool) -> pa.Table:
    """Return the series of the caller that meet the criteria in the form.

    Args:
        call: the request.
        v4: whether dates and synonyms are v4's.
    """
    criteria = _criteria(call.form, v4)
    rows = call.holdings.select(call.rights)
    for kind, column in _EQUAL.items():
        if kind in criteria:
            values = pa.array([value.upper() for value in criteria[kind]], pa.string())
            rows = rows.filter(pc.is_in(pc.utf8_upper(rows[column]), values))
    for first, last in _periods(call.form, v4):
        released = rows["DateReleased"]
        mask = pc.and_(
            pc.greater_equal(released, pa.scalar(first, pa.timestamp("us"))),
            pc.less_equal(released, pa.scalar(last, pa.timestamp("us"))),
        )
        rows = rows.filter(mask)
    return _of_patients(rows, criteria)


def _search(call: Call, v4: bool) -> Reply:
    sort_field, direction, start, size = _page(call)
    patients = _patients(found(call, v4), v4)
    if start > len(patients):
        raise ServerFault(f"fromIndex({start}) > toIndex({len(patients)})")
    patients.sort(key=_SORTS[sort_field], reverse=direction == "descending")
    stages = [t for p in patients for t in p["timepoints"] or ()]
    answer: Row = {
        "resultSet": [{k: v for k, v in p.items() if k != "facts"} for p in patients[start : start + size]],
        "totalPatients": len(patients),
        **{name: _facet(patients, column) for name, column in _FACETS.items()},
        "minTimepoints": min(stages, default=None),
        "maxTimepoints": max(stages, default=None),
        "sort": f"{sort_field} {direction}",
    }
    if v4:
        answer = _without_nulls(answer)
    body = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
    return Reply(body, content_type="application/json")


def _page(call: Call) -> tuple[str, str, int, int]:
    """Return sort field, direction, start and size. Server: without any of the four it ends in a 500."""
    given = {name: texts[0] for name, texts in call.form.items()}
    try:
        start, size = int(given["start"]), int(given["size"])
        sort_field, direction = given["sortField"], given["sortDirection"]
    except (KeyError, ValueError) as error:
        raise ServerFault from error
    if sort_field not in _SORTS or start < 0 or size < 0:
        raise ServerFault
    return sort_field, direction, start, size


def _numbered(form: Criteria) -> Iterable[tuple[int, str]]:
    """Yield number and type of the criteria. Server: the numbers have no gaps, the first gap ends them."""
    number = 0
    while f"criteriaType{number}" in form:
        yield number, form[f"criteriaType{number}"][0]
        number += 1


def _criteria(form: Criteria, v4: bool) -> dict[str, list[str]]:
    criteria: dict[str, list[str]] = {}
    for number, kind in _numbered(form):
        name = _SYNONYMS.get(kind, kind) if v4 else kind
        criteria.setdefault(name, []).extend(form.get(f"value{number}", []))
    return criteria


def _periods(form: Criteria, v4: bool) -> Iterable[tuple[datetime, datetime]]:
    parse = dates.month_first if v4 else dates.day_first
    for number, kind in _numbered(form):
        if kind == "DateRangeCriteria":
            first, last = (parse(form.get(f"{end}Date{number}", [""])[0]) for end in ("from", "to"))
            if first is None or last is None:
                raise ServerFault
            yield first, last


def _of_patients(rows: pa.Table, criteria: Criteria) -> pa.Table:
    """Keep the series of the patients who meet the criteria that look at a patient as a whole."""
    least = max((int(v) for v in criteria.get("MinNumberOfStudiesCriteria", ())), default=0)
    together = "all" in (v.casefold() for v in criteria.get("ModalityAndedSearchCriteria", ()))
    wanted = {v.upper() for v in criteria.get("ImageModalityCriteria", ())} if together else set()
    if least < 2 and not wanted:
        return rows
    kept = {
        (collection, patient)
        for (collection, patient), facts in _by_patient(rows).items()
        if len({f["StudyInstanceUID"] for f in facts}) >= least
        and wanted <= {str(f["Modality"]).upper() for f in facts}
    }
    pairs = zip(rows["Collection"].to_pylist(), rows["PatientID"].to_pylist(), strict=True)
    return rows.filter(pa.array([pair in kept for pair in pairs], pa.bool_()))


def _by_patient(rows: pa.Table) -> dict[tuple[str, str], list[Row]]:
    patients: dict[tuple[str, str], list[Row]] = {}
    for row in rows.select(_COLUMNS).to_pylist():
        patients.setdefault((row["Collection"], row["PatientID"]), []).append(row)
    return patients


def _patients(rows: pa.Table, v4: bool) -> list[Row]:
    return [_patient(*key, facts, v4) for key, facts in _by_patient(rows).items()]


def _patient(collection: str, patient: str, facts: list[Row], v4: bool) -> Row:
    studies: dict[str, list[int]] = {}
    for fact in facts:
        studies.setdefault(fact["StudyInstanceUID"], []).append(_internal(fact["SeriesInstanceUID"]))
    return {
        "subjectId": patient,
        "project": collection,
        "id": _internal(f"{collection}/{patient}"),
        "totalNumberOfStudies": len(studies),
        "totalNumberOfSeries": len(facts),
        "modalities": _distinct(facts, "Modality"),
        "bodyParts": _distinct(facts, "BodyPartExamined"),
        "species": _distinct(facts, "SpeciesCode"),
        "timepoints": _distinct(facts, "LongitudinalTemporalOffsetFromEvent") or None,
        "studyIdentifiers": [
            {"seriesIdentifiers": series, "studyIdentifier": _internal(study)} for study, series in studies.items()
        ],
        **({"authorized": 1} if v4 else {}),
        "facts": facts,
    }


def _internal(text: str) -> int:
    """Return what stands for the server's own key of a row."""
    return zlib.crc32(text.encode())


def _distinct(facts: Iterable[Row], column: str) -> list[Any]:
    return sorted({fact[column] for fact in facts if fact[column] is not None})


def _facet(patients: Iterable[Row], column: str) -> list[Row]:
    counts: dict[str, int] = {}
    for patient in patients:
        for value in _distinct(patient["facts"], column):
            counts[value] = counts.get(value, 0) + 1
    return [{"value": value, "count": count} for value, count in sorted(counts.items())]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value
