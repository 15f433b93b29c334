"""The references that the files of series in the lake state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pydicom

from nbia_pipeline import stopping
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.headers import INSTANCE_REFERENCES
from nbia_pipeline.schema.tables import INSTANCES

UID = "SeriesInstanceUID"
TARGET = "ReferencedSOPInstanceUID"
TARGET_CLASS = "ReferencedSOPClassUID"
STATED = "StatedSeriesInstanceUID"
STUDY = "StatedStudyInstanceUID"
COLUMNS = [UID, TARGET, TARGET_CLASS, STATED, STUDY]
SCHEMA = pa.schema([INSTANCE_REFERENCES.schema.field(name) for name in COLUMNS])


class Held(NamedTuple):
    """A series whose files are in the lake: columns of its receipt."""

    SeriesInstanceUID: str
    Collection: str
    PatientID: str
    StudyInstanceUID: str
    SeriesMD5: str | None


def references_of(lake: Lake, series: Iterable[Held]) -> pa.Table:
    """Return the references of some series, each once: the columns :data:`COLUMNS` of ``instance_references``.

    Raises:
        LakeError: the lake cannot be read.
    """
    found = [SCHEMA.empty_table()]
    by_collection: dict[str, list[str]] = {}
    for one in series:
        by_collection.setdefault(one.Collection, []).append(one.SeriesInstanceUID)
    for collection, uids in by_collection.items():
        found.append(pa.Table.from_pylist(list(_read(lake, collection, uids)), schema=SCHEMA))
    return pa.concat_tables(found).group_by(COLUMNS).aggregate([]).select(COLUMNS)


def _read(lake: Lake, collection: str, uids: list[str]) -> Iterator[dict[str, Any]]:
    for row in lake.read_rows(INSTANCES, collection, UID, uids, [UID, "Path"]).to_pylist():
        stopping.expect_running()
        with lake.open(row["Path"]) as file:
            yield from _walk(pydicom.dcmread(file, stop_before_pixels=True), row[UID], None, None)


def _walk(dataset: Any, uid: str, series: str | None, study: str | None) -> Iterator[dict[str, Any]]:
    for element in dataset:
        if element.VR == "SQ" and element.tag not in (0x00081110, 0x00081111, 0x00081120):
            for item in element.value:
                if element.tag == 0x30060012:
                    yield from _walk(item, uid, series, item.get("ReferencedSOPInstanceUID"))
                    continue
                of, within = item.get(UID, series), item.get("StudyInstanceUID", study)
                if "ReferencedSOPInstanceUID" in item:
                    names = (item.get(TARGET), item.get(TARGET_CLASS))
                    yield dict(
                        zip(COLUMNS, (uid, *map(str, names), of and str(of), within and str(within)), strict=True)
                    )
                yield from _walk(item, uid, of, within)
