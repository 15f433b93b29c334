"""What the headers of the files say: elements, geometry, references and annotations, as tables of the lake."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from nbia_pipeline.lake import Lake


def dataset(lake: Lake, sop_uid: str) -> Dataset:
    """Return the header of an instance in a lake as a data set of pydicom, without its pixel data.

    Args:
        lake: the lake.
        sop_uid: SOPInstanceUID.

    Raises:
        LakeError: the table does not have the instance, its file could not be read when the table was made, or the
            lake cannot be read.
    """
    from nbia_pipeline.headers.pydicom_dataset import read_dataset

    return read_dataset(lake, sop_uid)
