"""The references that the files of series in the lake state: from up-to-date tables, or from the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.schema.headers import INSTANCE_HEADERS, INSTANCE_REFERENCES
from nbia_pipeline.schema.tables import INSTANCES
from nbia_pipeline.text import logger

if TYPE_CHECKING:
    from nbia_pipeline.headers.batch import Known

log = logger(__name__)

UID = "SeriesInstanceUID"
TARGET = "ReferencedSOPInstanceUID"
TARGET_CLASS = "ReferencedSOPClassUID"
STATED = "StatedSeriesInstanceUID"
STUDY = "StatedStudyInstanceUID"
COLUMNS = [UID, TARGET, TARGET_CLASS, STATED, STUDY]

# So many files have their headers in memory at a time.
FILES = 2000


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
    schema = pa.schema([INSTANCE_REFERENCES.schema.field(name) for name in COLUMNS])
    found = [schema.empty_table()]
    by_collection: dict[str, dict[str, Held]] = {}
    for one in series:
        by_collection.setdefault(one.Collection, {})[one.SeriesInstanceUID] = one
    for collection, held in by_collection.items():
        for rows in _of_collection(lake, collection, held):
            found.append(rows.select(COLUMNS).group_by(COLUMNS).aggregate([]).cast(schema))
    return pa.concat_tables(found).group_by(COLUMNS).aggregate([]).select(COLUMNS)


def _of_collection(lake: Lake, collection: str, held: Mapping[str, Held]) -> Iterator[pa.Table]:
    known: set[str] = set()
    try:
        known = _up_to_date(lake, collection, held)
        if known:
            yield lake.read_rows(INSTANCE_REFERENCES, collection, UID, known, COLUMNS)
    except DamagedFile as e:
        log.warning("the headers of %s are read again: %s", collection, e)
        known = set()
    unread = {uid: one for uid, one in held.items() if uid not in known}
    if unread:
        yield from _read(lake, collection, unread)


def _read(lake: Lake, collection: str, held: Mapping[str, Held]) -> Iterator[pa.Table]:
    # Not before: a mirror that follows no references does without pydicom.
    from nbia_pipeline.headers.batch import Batch
    from nbia_pipeline.headers.shards.files import read_files

    files = _files(lake, collection, held)
    while some := list(islice(files, FILES)):
        batch = Batch()
        read_files(lake, some, batch.add)
        yield batch.tables()[INSTANCE_REFERENCES.name]


def _up_to_date(lake: Lake, collection: str, held: Mapping[str, Held]) -> set[str]:
    """Return the series whose files as they are now were read by the asset of headers."""
    if not lake.has_table(INSTANCE_HEADERS, collection):
        return set()
    rows = lake.read_rows(INSTANCE_HEADERS, collection, UID, list(held), [UID, "SeriesMD5"])
    rows = rows.group_by([UID, "SeriesMD5"]).aggregate([]).to_pylist()
    return {row[UID] for row in rows if row["SeriesMD5"] == held[row[UID]].SeriesMD5}


def _files(lake: Lake, collection: str, held: Mapping[str, Held]) -> Iterator[Known]:
    from nbia_pipeline.headers.batch import Known

    names = ["SOPInstanceUID", UID, "SOPClassUID", "Path", "Size"]
    rows = lake.read_rows(INSTANCES, collection, UID, list(held), names)
    for piece in rows.to_batches():
        for sop, uid, kind, path, size in zip(*(piece[name].to_pylist() for name in names), strict=True):
            one = held[uid]
            yield Known(sop, uid, one.StudyInstanceUID, one.PatientID, collection, kind, one.SeriesMD5, path, size)
