"""The header of an instance in the lake as a data set of pydicom."""

from __future__ import annotations

import json
import threading
from typing import Any
from urllib.parse import parse_qs

from pydicom import config
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from nbia_pipeline.headers.parse.charset import encodings_of
from nbia_pipeline.headers.parse.source import inflated
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.schema.headers import INSTANCE_HEADERS

_COLUMNS = ["Path", "Header", "FileMeta", "TransferSyntaxUID", "Problems"]
_one_at_a_time = threading.Lock()


def read_dataset(lake: Lake, sop_uid: str) -> Dataset:
    """Return the header of an instance, without its pixel data, from table ``instance_headers`` of a lake.

    Values that are not in the table, since they are large, are read from the file. An element whose value is none of
    its VR has VR UN.

    Args:
        lake: the lake.
        sop_uid: SOPInstanceUID.

    Raises:
        LakeError: the table does not have the instance, its file could not be read when the table was made, or the
            lake cannot be read.
    """
    for collection in lake.collections_of(INSTANCE_HEADERS):
        rows = lake.read_rows(INSTANCE_HEADERS, collection, "SOPInstanceUID", [sop_uid], _COLUMNS)
        if rows.num_rows:
            return _dataset(lake, sop_uid, rows.to_pylist()[0])
    raise LakeError(
        f"instance {sop_uid} is not in table instance_headers of the lake {lake.uri}: materialize the asset headers "
        "of its collection",
        arguments=("sop_uid",),
    )


def _dataset(lake: Lake, sop_uid: str, row: dict[str, Any]) -> Dataset:
    if row["Header"] is None:
        problems = "; ".join(row["Problems"] or ())
        raise LakeError(f"the header of instance {sop_uid} could not be read ({problems}): see {row['Path']}")
    header = json.loads(row["Header"])
    values = _Values(lake, row["TransferSyntaxUID"], header.get("00080005", {}).get("Value", []))
    # What is no value of its VR must stay what it is: by default pydicom would read it by its known VR, and raise.
    with _one_at_a_time:
        before, config.replace_un_with_known_vr = config.replace_un_with_known_vr, False
        try:
            found: Dataset = Dataset.from_json(header, values.of)
            found.file_meta = FileMetaDataset(Dataset.from_json(row["FileMeta"] or "{}"))
        finally:
            config.replace_un_with_known_vr = before
    return found


class _Values:
    """Values that are in the file only."""

    def __init__(self, lake: Lake, syntax: str | None, character_set: list[str | None]) -> None:
        self._lake = lake
        self._encodings = list(
            encodings_of("\\".join(name or "" for name in character_set).encode("latin1", "replace"))
        )
        self._implicit, self._little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian

    def of(self, tag: str, vr: str, uri: str) -> Any:
        """Return the value of an element by its BulkDataURI."""
        path, _, query = uri.partition("?")
        asked = parse_qs(query, keep_blank_values=True)
        offset, length = (int(asked[name][0]) for name in ("offset", "length"))
        with self._lake.open(path) as file:
            if "inflated" in asked:
                value = inflated(file.read())[offset : offset + length]
            else:
                file.seek(offset)
                value = file.read(length)
        raw = RawDataElement(Tag(tag), vr, len(value), value, 0, self._implicit, self._little)
        return convert_raw_data_element(raw, encoding=self._encodings).value
