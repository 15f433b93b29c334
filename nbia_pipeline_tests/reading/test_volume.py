"""Series as volumes: the same values and the same place as SimpleITK reads from the same files, or a reason why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset

from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.reading.frames import MissingExtra, NotInLake
from nbia_pipeline.reading.images import SeriesImages
from nbia_pipeline.reading.lake import Lake
from nbia_pipeline.reading.volume import NotAVolume, Volume, volume_of
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline_tests.helpers import references_of_demo as of_demo

TCGA, QIN = "TCGA-DEMO", "QIN_Breast.v2"
sitk: Any = SimpleITK  # its types are of no use


def close(one: Any, other: Any, **tolerance: Any) -> None:
    np.testing.assert_allclose(np.asarray(one, float), np.asarray(other, float), **tolerance)


def of_modality(lake: Lake, collection: str, modality: str) -> list[SeriesImages]:
    return list(lake.images(collection, modality))


@pytest.fixture
def ct(mirrored: Lake) -> Iterator[list[Dataset]]:
    """The files of a CT series."""
    yield list(of_modality(mirrored, TCGA, "CT")[0].datasets())


def itk_image(series: SeriesImages) -> Any:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series.paths[0]).rpartition("/")[0]))
    return reader.Execute()


def test_a_volume_is_what_simpleitk_reads(mirrored: Lake) -> None:
    """CT in Hounsfield units, PET with a slope for each slice, MR without any, which is coronal."""
    seen = set()
    for series in mirrored.images(TCGA, ["CT", "PT", "MR"]):
        volume, other = mirrored.volume(series.SeriesInstanceUID), itk_image(series)
        close(volume.array, sitk.GetArrayFromImage(other), rtol=1e-6)
        close(volume.spacing, other.GetSpacing(), rtol=1e-6)
        close(volume.origin, other.GetOrigin())
        close(volume.direction.ravel(), other.GetDirection(), atol=1e-6)
        mine = volume.to_itk()
        assert mine.GetSize() == other.GetSize()
        close(volume.position_of((3, 20, 40)), other.TransformContinuousIndexToPhysicalPoint((40, 20, 3)), atol=1e-4)
        close(volume.index_of(mine.TransformIndexToPhysicalPoint((40, 20, 3))), (3, 20, 40))
        seen.add((series.Modality, str(volume.array.dtype), tuple(np.abs(volume.direction[:, 2]).round(3))))
    assert seen == {
        ("CT", "float32", (0, 0, 1)),
        ("PT", "float32", (0, 0, 1)),
        ("MR", "uint16", (0, 1, 0)),
    }


def test_a_segmentation_lies_on_its_images(mirrored: Lake) -> None:
    (series, *_) = of_modality(mirrored, TCGA, "SEG")
    (file,) = series.datasets()
    source = file.ReferencedSeriesSequence[0]
    mask, images = series.volume(), mirrored.volume(source.SeriesInstanceUID)
    first, row, column = images.index_of(mask.origin)
    assert (round(row, 6), round(column, 6)) == (0, 0)
    assert set(np.unique(mask.array)) == {0, 1}
    referenced = [item.ReferencedSOPInstanceUID for item in source.ReferencedInstanceSequence]
    assert list(images.files[round(first) :][: len(mask.array)]) == referenced
    np.testing.assert_array_equal(mask.array, file.pixel_array)  # its frames ascend


@pytest.mark.parametrize("first", [0.0, None], ids=["relative", "absolute"])
def test_a_dose_is_a_volume_in_gray(demo: Catalog, tmp_path: Path, first: float | None) -> None:
    assert demo.images is not None
    uid = of_demo.uid(of_demo.DOSE)
    (instance,) = demo.images.instances(uid)
    (tmp_path / "dose.dcm").write_bytes(demo.images.read(uid, instance.sop_instance_uid))
    file = pydicom.dcmread(tmp_path / "dose.dcm")
    start = float(file.ImagePositionPatient[2]) if first is None else first
    file.GridFrameOffsetVector = [f"{start + float(v):.4f}" for v in file.GridFrameOffsetVector]
    volume, other = volume_of([file], "the dose"), sitk.ReadImage(str(tmp_path / "dose.dcm"))
    close(volume.array, sitk.GetArrayFromImage(other) * float(file.DoseGridScaling), rtol=1e-6)
    assert volume.array.max() == 70
    close(volume.spacing, other.GetSpacing(), rtol=1e-5)
    close(volume.origin, other.GetOrigin())
    close(volume.direction.ravel(), other.GetDirection(), atol=1e-6)


def test_slices_are_in_the_order_of_their_positions(ct: list[Dataset]) -> None:
    shuffled = [ct[n] for n in np.random.default_rng(1).permutation(len(ct))]
    volume = volume_of(shuffled, "it")
    positions = [file.ImagePositionPatient[2] for file in sorted(ct, key=lambda f: f.ImagePositionPatient[2])]
    close([volume.position_of((n, 0, 0))[2] for n in range(len(ct))], positions, atol=1e-5)
    stored = {str(file.SOPInstanceUID): file.pixel_array * file.RescaleSlope + file.RescaleIntercept for file in ct}
    for plane, uid in zip(volume.array, volume.files, strict=True):
        np.testing.assert_array_equal(plane, stored[uid])


def test_one_slice_is_a_volume_with_the_thickness_that_it_states(ct: list[Dataset]) -> None:
    ct[0].SliceThickness = "2.5"
    assert volume_of(ct[:1], "it").spacing[2] == 2.5
    del ct[0].SliceThickness
    assert volume_of(ct[:1], "it").spacing[2] == 1.0


def multi_frame(ct: list[Dataset]) -> Dataset:
    """Return the slices as one enhanced file, whose frames are in the opposite order."""
    whole = deepcopy(ct[0])
    frames = []
    for file in reversed(ct):
        frame = Dataset()
        plane, values = Dataset(), Dataset()
        plane.ImagePositionPatient = file.ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept = file.RescaleSlope, file.RescaleIntercept
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [plane], [values]
        frames.append(frame)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, orientation.ImageOrientationPatient = ct[0].PixelSpacing, ct[0].ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], frames
    whole.NumberOfFrames = len(ct)
    whole.PixelData = b"".join(file.pixel_array.tobytes() for file in reversed(ct))
    whole["PixelData"].VR = "OW"
    whole.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(whole, keyword)
    return whole


def test_the_frames_of_one_file_are_the_same_volume(ct: list[Dataset]) -> None:
    whole, slices = volume_of([multi_frame(ct)], "it"), volume_of(ct, "it")
    np.testing.assert_array_equal(whole.array, slices.array)
    close(whole.origin, slices.origin)
    close(whole.spacing, slices.spacing)


def without(files: list[Dataset], keyword: str) -> None:
    delattr(files[1], keyword)


def set_to(files: list[Dataset], keyword: str, value: Any) -> None:
    setattr(files[1], keyword, value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda files: files.pop(3), "its slices are not evenly spaced: 11.111 to 22.222 mm; some may be missing"),
        (lambda files: files.append(files[0]), "its 19 images have 18 positions: phases, echoes, segments or"),
        (lambda files: without(files, "ImagePositionPatient"), "its images do not state ImagePositionPatient"),
        (lambda files: without(files, "RescaleSlope"), "some of its images state a RescaleSlope, and others do not"),
        (lambda files: set_to(files, "PixelSpacing", [1, 1]), "its images differ in Rows, Columns or PixelSpacing"),
        (lambda files: set_to(files, "ImageOrientationPatient", [1, 0, 0, 0, 0, -1]), "in ImageOrientationPatient"),
        (lambda files: set_to(files, "ImagePositionPatient", [0, 0, -83.333]), "shifted against each other"),
        (lambda files: set_to(files, "SamplesPerPixel", 3), "its images are in color"),
        (lambda files: set_to(files, "PixelData", b"12"), "cannot be decoded"),
        (lambda files: files.clear(), "it has no images"),
    ],
    ids="gap twice no-position no-slope spacing orientation tilt color pixels none".split(),
)
def test_what_is_no_volume_is_an_error_that_says_why(
    ct: list[Dataset], change: Callable[[list[Dataset]], Any], text: str
) -> None:
    ct.sort(key=lambda file: float(file.ImagePositionPatient[2]))
    change(ct)
    with pytest.raises(NotAVolume) as e:
        volume_of(ct, "series 1.2.3")
    assert str(e.value).startswith("series 1.2.3 is not a volume: ") and text in str(e.value)


def test_series_of_the_lake_that_are_none(mirrored: Lake) -> None:
    (structures, *_) = of_modality(mirrored, "HeadNeckMix", "RTSTRUCT")
    with pytest.raises(NotAVolume, match=r"its files have no images \(Modality is RTSTRUCT\)$"):
        structures.volume()
    phases = next(s for s in of_modality(mirrored, QIN, "MR") if len(s.files) == 28)
    with pytest.raises(NotAVolume, match="its 28 images have 14 positions: phases"):
        mirrored.volume(phases.SeriesInstanceUID)
    receipts = mirrored.frame("image_series", "HeadNeckMix")
    pending = receipts[receipts.Status == "pending"].SeriesInstanceUID.iloc[0]
    with pytest.raises(NotInLake, match=r"are not in the lake: its status is pending \(not fetched yet\)$"):
        mirrored.volume(pending)


def test_images_are_the_series_whose_files_are_there(mirrored: Lake) -> None:
    found = list(mirrored.images())
    receipts = {
        row["SeriesInstanceUID"]: row
        for collection in mirrored.collections_of(IMAGE_SERIES)
        for row in mirrored.read_table(IMAGE_SERIES, collection).to_pylist()
        if row["Status"] == "complete"
    }
    assert [s.SeriesInstanceUID for s in found] == sorted(receipts, key=lambda u: (receipts[u]["Collection"], u))
    for series in found:
        row = receipts[series.SeriesInstanceUID]
        assert (series.PatientID, series.StudyInstanceUID) == (row["PatientID"], row["StudyInstanceUID"])
        assert {file.rpartition("/")[0] for file in series.files} == {row["Path"]}, "Path is the folder of the series"
        numbers = [file.InstanceNumber for file in series.datasets(stop_before_pixels=True)]
        assert numbers == sorted(numbers) and len(numbers) == row["ImageCount"]
    files = mirrored.frame("instances", columns=["Path"]).Path
    assert sorted(file for series in found for file in series.files) == sorted(files)
    assert mirrored.frame("image_series", "HeadNeckMix").Path.notna().sum() == 3, "null without files"


def test_itk_without_its_package_names_the_extra(ct: list[Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    volume: Volume = volume_of(ct, "it")
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(MissingExtra, match=r"^SimpleITK is not installed: pip install 'nbia-pipeline\[itk\]'$"):
        volume.to_itk()
