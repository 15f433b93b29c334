"""The quick header reader says what pydicom says, or leaves it to pydicom."""

from __future__ import annotations

import io
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.mirror import dicom_header
from nbia_pipeline.mirror.dicom_header import NotDicom, read_header
from nbia_pipeline_tests.helpers.dicom import dicom

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
uids = st.from_regex(r"[1-9](\.[1-9][0-9]{0,6}){1,6}", fullmatch=True)


@given(uids, uids, st.none() | st.integers(-(2**31) + 1, 2**31 - 1), st.sampled_from(SYNTAXES))
def test_every_encoding_gives_the_same(sop: str, series: str, number: int | None, syntax: str) -> None:
    values = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "PatientName": "Ä^Ö", "SpecificCharacterSet": "ISO_IR 192"}
    content = dicom(syntax, SOPInstanceUID=sop, SeriesInstanceUID=series, InstanceNumber=number, **values)
    header = read_header(content)
    assert (header.SOPInstanceUID, header.SeriesInstanceUID, header.InstanceNumber) == (sop, series, number)
    assert header.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2"


def test_the_demo_s_files_are_read_without_pydicom(demo: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    store = demo.images
    assert store is not None
    series = demo.series["SeriesInstanceUID"].to_pylist()[:12]
    files = [(uid, i, store.read(uid, i.sop_instance_uid)) for uid in series for i in store.instances(uid)]
    by_pydicom = [pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True) for _, _, content in files]
    monkeypatch.setattr(dicom_header, "_by_pydicom", None)
    for (uid, instance, content), whole in zip(files, by_pydicom, strict=True):
        header = read_header(content)
        assert (header.SeriesInstanceUID, header.SOPInstanceUID) == (uid, instance.sop_instance_uid)
        assert header.SOPClassUID == whole.SOPClassUID
        assert header.InstanceNumber == whole.get("InstanceNumber")


def test_a_long_sequence_in_front_is_left_to_pydicom(tmp_path: Path) -> None:
    inner = Dataset()
    inner.SOPInstanceUID = "9.9.9"  # of something that is referred to
    inner.SeriesInstanceUID = "9.9"
    content = dicom(
        SOPInstanceUID="1.2.3.4",
        SeriesInstanceUID="1.2.3",
        ReferencedImageSequence=Sequence([inner]),
        ImageComments="x" * 10_000,
    )
    undefined = pydicom.dcmread(io.BytesIO(content))
    undefined["ReferencedImageSequence"].is_undefined_length = True
    target = tmp_path / "file.dcm"
    undefined.save_as(target)
    for file in (content, target):
        header = read_header(file)
        assert (header.SOPInstanceUID, header.SeriesInstanceUID) == ("1.2.3.4", "1.2.3")


@given(st.binary(max_size=400))
def test_other_bytes_are_not_dicom(content: bytes) -> None:
    with pytest.raises(NotDicom):
        read_header(content)
    with pytest.raises(NotDicom):
        read_header(bytes(128) + b"DICM" + content)


def test_a_file_without_a_uid_of_its_own_is_told() -> None:
    with pytest.raises(NotDicom, match="no SOPInstanceUID"):
        read_header(dicom(SeriesInstanceUID="1.2", PatientID="P"))
