"""Series that share a coordinate system: what an annotation without references may be drawn on."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.parquet import Among
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.headers import INSTANCE_HEADERS
from nbia_pipeline.schema.tables import IMAGE_SERIES

DRAWN = ("RTDOSE", "RTSTRUCT", "SEG")
"""Modalities of series that belong to the images of their coordinate system."""

NO_IMAGES = frozenset(
    "ANN ASMT AU CTPROTOCOL DOC ECG EEG EMG EOG EPS FID HD KO M3D PLAN PR REG RESP RTDOSE RTINTENT RTPLAN RTRAD "
    "RTRECORD RTSEGANN RTSTRUCT RWV SEG SMR SR STAIN TEXTUREMAP XAPROTOCOL".split()
)
"""Modalities of what is no image, or derived from images to say something of them: of the defined terms of Modality in
DICOM PS3.3, C.7.3.1.1.1."""

_UID, _STUDY, _FRAME = "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"
_COLUMNS = [_UID, _STUDY, _FRAME, "Modality"]


def same_frame(lake: Lake, collection: str, others: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the series of a collection that images may belong to though they refer to none, each with such a series.

    Both have one FrameOfReferenceUID (0020,0052) and are of one study.

    Args:
        lake: whose table ``instance_headers`` is read, of all collections that have files of these studies.
        collection: of the series that refer to nothing.
        others: its series that refer to something.

    Raises:
        LakeError: the lake cannot be read.
    """
    alone: dict[tuple[str, str], set[str]] = {}
    for piece in lake.read_pieces(
        INSTANCE_HEADERS, collection, [_UID, _STUDY, _FRAME, "Modality"], where=("Modality", Among(DRAWN))
    ):
        piece = piece.filter(pc.and_(among(piece["Modality"], DRAWN), pc.invert(among(piece[_UID], others))))
        for uid, study, frame in _different(piece):
            alone.setdefault((study, frame), set()).add(uid)
    if not alone:
        return
    studies = {study for study, _ in alone}
    for name in lake.collections_of(INSTANCE_HEADERS):
        for uid, of in sorted(_images(lake, name, studies)):
            yield from ((drawn, uid) for drawn in sorted(alone.get(of, ())))


def _images(lake: Lake, collection: str, studies: Collection[str]) -> set[tuple[str, tuple[str, str]]]:
    """Return the series of images of some studies in a collection, with their study and FrameOfReferenceUID."""
    receipts = lake.read_pieces(IMAGE_SERIES, collection, [_UID, _STUDY])
    series = {uid for piece in receipts for uid in piece.filter(among(piece[_STUDY], studies))[_UID].to_pylist()}
    found = set()
    if series:
        for piece in lake.read_pieces(
            INSTANCE_HEADERS, collection, [_UID, _STUDY, _FRAME, "Modality"], where=(_UID, Among(series))
        ):
            wanted = pc.and_(among(piece[_UID], series), pc.invert(among(piece["Modality"], NO_IMAGES)))
            found |= {(uid, (study, frame)) for uid, study, frame in _different(piece.filter(wanted))}
    return found


def _different(rows: pa.Table) -> Iterator[tuple[str, str, str]]:
    rows = rows.filter(pc.and_(pc.is_valid(rows[_FRAME]), pc.not_equal(rows[_FRAME], "")))
    columns = rows.group_by([_UID, _STUDY, _FRAME], use_threads=False).aggregate([])
    yield from zip(*(columns[name].to_pylist() for name in (_UID, _STUDY, _FRAME)), strict=True)
