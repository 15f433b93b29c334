"""Segments and regions of interest: one row each, with what belongs to it and to no other."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from nbia_pipeline.embedded.demo.catalog import demo_plans
from nbia_pipeline.embedded.phantoms.annotations import segmentation, structure_set
from nbia_pipeline.headers.batch import Batch, Known
from nbia_pipeline.headers.graph import tree
from nbia_pipeline.headers.graph.edges import Edge
from nbia_pipeline.headers.graph.regions import Region
from nbia_pipeline_tests.helpers import dicom_objects
from nbia_pipeline_tests.helpers.dicom_objects import FIRST, SECOND
from nbia_pipeline_tests.helpers.references import (
    by_pydicom,
    edges_of,
    encoded,
    of_bytes,
    of_dataset,
    opened,
    regions_of,
)

SEG, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"


def dataset(**values: Any) -> Dataset:
    data = Dataset()
    for keyword, value in values.items():
        setattr(data, keyword, value)
    return data


def code(value: str, meaning: str, keyword: str = "CodeValue") -> Dataset:
    return dataset(**{keyword: value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning})


def in_json(value: str, meaning: str) -> dict[str, str | None]:
    return {"Value": value, "Scheme": "SCT", "Meaning": meaning}


def image(series: str, number: int, **more: Any) -> Dataset:
    return dataset(
        ReferencedSOPClassUID=pydicom.uid.CTImageStorage, ReferencedSOPInstanceUID=f"{series}.{number}", **more
    )


def described(**images: list[int]) -> list[Dataset]:
    return [
        dataset(SeriesInstanceUID=uid, ReferencedInstanceSequence=[image(uid, n) for n in numbers])
        for uid, numbers in zip((FIRST, SECOND), images.values(), strict=False)
    ]


def frame(segments: int | list[int] | None, *sources: Dataset, z: float | None = None) -> Dataset:
    data = dataset()
    if segments is not None:
        data.SegmentIdentificationSequence = [dataset(ReferencedSegmentNumber=segments)]
    if sources:
        data.DerivationImageSequence = [dataset(SourceImageSequence=list(sources))]
    if z is not None:
        data.PlanePositionSequence = [dataset(ImagePositionPatient=[0, 0, z])]
    return data


def segment(number: int | None, **more: Any) -> Dataset:
    return dataset(**({} if number is None else {"SegmentNumber": number}), **more)


def rows(data: Dataset, problems: list[str] | None = None) -> list[Region]:
    """Return the rows of a data set; those of all its encodings are the same."""
    found = regions_of(of_dataset(data), problems)
    assert regions_of(of_bytes(encoded(data, implicit=True), False, SEG)) == found
    assert regions_of(of_dataset(without_lengths(data))) == found
    return found


def without_lengths(data: Dataset) -> Dataset:
    """Let all sequences and items of a data set end with delimiters."""
    for element in data.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
    return data


def test_a_segment_has_all_that_its_item_says_and_nothing_of_another() -> None:
    left, right = regions_of(opened(dicom_objects.seg_over_two_series()))
    assert left == Region(
        Kind="segment",
        Number=1,
        Label="Left",
        Description=None,
        AlgorithmType="AUTOMATIC",
        AlgorithmName="net",
        InterpretedType=None,
        TrackingUID="1.2.6.9.1",
        ReferencedSeriesInstanceUID=FIRST,
        Frames=3,
        Contours=None,
        Slices=3,
        Category=in_json("85756007", "Tissue"),
        Type=in_json("39607008", "Lung"),
        AnatomicRegion=in_json("816094009", "Thorax"),
    )
    assert (right.Number, right.Label, right.TrackingUID, right.Frames) == (2, "Right", "1.2.6.9.2", 1)
    assert right.Type == in_json("272673000", "Bone")


def test_segments_of_two_series_have_their_own_one() -> None:
    data = dataset(
        ReferencedSeriesSequence=described(first=[1, 2], second=[1]),
        SegmentSequence=[segment(n) for n in (1, 2, 3, 4)],
        PerFrameFunctionalGroupsSequence=[
            frame(1, image(FIRST, 1), z=1),
            frame(1, image(FIRST, 2), z=2),
            frame(2, image(SECOND, 1), z=1),
            frame(3, image(FIRST, 1), image(SECOND, 1), z=1),
        ],
    )
    found = [(r.Number, r.ReferencedSeriesInstanceUID, r.Frames, r.Slices) for r in rows(data)]
    assert found == [(1, FIRST, 2, 2), (2, SECOND, 1, 1), (3, None, 1, 1), (4, None, 0, 0)]
    # The frames say nothing: then it is the series of all references, if there is one.
    data.PerFrameFunctionalGroupsSequence = [frame(1, z=1)]
    assert {r.ReferencedSeriesInstanceUID for r in rows(data)} == {None}
    data.ReferencedSeriesSequence = data.ReferencedSeriesSequence[:1]
    assert {r.ReferencedSeriesInstanceUID for r in rows(data)} == {FIRST}
    del data.ReferencedSeriesSequence
    assert {r.ReferencedSeriesInstanceUID for r in rows(data)} == {None}


@pytest.mark.parametrize(
    ("frames", "count", "slices"),
    [
        # The same slice twice; two phases at one position; frames of one source; positions alone; nothing at all.
        ([frame(1, image(FIRST, 1), z=1)] * 2, 2, 1),
        ([frame(1, image(FIRST, 1), z=1), frame(1, image(FIRST, 2), z=1)], 2, 2),
        ([frame(1, image(FIRST, 1, ReferencedFrameNumber=n)) for n in (1, 2, 2)], 3, 2),
        ([frame(1, z=n) for n in (1, 2, 2)], 3, 2),
        ([frame(1), frame(1)], 2, None),
        ([frame([1, 2], z=1), frame(2, z=2)], 1, 1),
        # A label map: the segments are in the pixels.
        ([frame(None, z=1), frame(None, z=2)], None, None),
    ],
)
def test_slices_are_different_images_or_positions(frames: list[Dataset], count: int | None, slices: int | None) -> None:
    data = dataset(SegmentSequence=[segment(1)], PerFrameFunctionalGroupsSequence=frames)
    (row,) = rows(data)
    assert (row.Frames, row.Slices) == (count, slices)


def test_a_segment_that_all_frames_share_has_them_all() -> None:
    shared = [dataset(SegmentIdentificationSequence=[dataset(ReferencedSegmentNumber=1)])]
    data = dataset(
        SegmentSequence=[segment(1, SegmentLabel="All ", SegmentDescription="of it")],
        SharedFunctionalGroupsSequence=shared,
        PerFrameFunctionalGroupsSequence=[frame(None, z=n) for n in range(3)],
    )
    (row,) = rows(data)
    assert (row.Label, row.Description, row.Frames, row.Slices) == ("All", "of it", 3, 3)


def test_a_region_of_interest_is_joined_from_three_sequences() -> None:
    contours = {
        7: [(FIRST, 1), (FIRST, 1), (FIRST, 2)],
        3: [(SECOND, 1)],
        9: [],
    }
    data = dataset(
        ReferencedFrameOfReferenceSequence=[
            dataset(
                RTReferencedStudySequence=[
                    dataset(
                        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
                        ReferencedSOPInstanceUID="1.2.5",
                        RTReferencedSeriesSequence=[
                            dataset(SeriesInstanceUID=uid, ContourImageSequence=[image(uid, 1), image(uid, 2)])
                            for uid in (FIRST, SECOND)
                        ],
                    )
                ]
            )
        ],
        StructureSetROISequence=[
            dataset(ROINumber=3, ROIName="Heart", ROIGenerationAlgorithm="AUTOMATIC"),
            dataset(ROINumber=7, ROIName="GTV-1", ROIDescription="by hand", ROIGenerationAlgorithm="MANUAL"),
            dataset(ROINumber=9, ROIName=""),
        ],
        ROIContourSequence=[
            dataset(
                ReferencedROINumber=number,
                ContourSequence=[dataset(ContourImageSequence=[image(*one)]) for one in images],
            )
            for number, images in contours.items()
        ],
        RTROIObservationsSequence=[
            dataset(
                ReferencedROINumber=7,
                RTROIInterpretedType="GTV",
                SegmentedPropertyCategoryCodeSequence=[code("49755003", "Lesion")],
                RTROIIdentificationCodeSequence=[code("4147007", "Mass", "LongCodeValue"), code("1", "Another")],
                AnatomicRegionSequence=[code("39607008", "Lung")],
            ),
            dataset(ReferencedROINumber=3, RTROIInterpretedType="ORGAN"),
        ],
    )
    heart, tumor, empty = rows(data)
    assert tumor == Region(
        Kind="roi",
        Number=7,
        Label="GTV-1",
        Description="by hand",
        AlgorithmType="MANUAL",
        AlgorithmName=None,
        InterpretedType="GTV",
        TrackingUID=None,
        ReferencedSeriesInstanceUID=FIRST,
        Frames=None,
        Contours=3,
        Slices=2,
        Category=in_json("49755003", "Lesion"),
        Type=in_json("4147007", "Mass"),
        AnatomicRegion=in_json("39607008", "Lung"),
    )
    assert (heart.Label, heart.InterpretedType, heart.ReferencedSeriesInstanceUID) == ("Heart", "ORGAN", SECOND)
    assert (heart.Contours, heart.Slices, heart.Type) == (1, 1, None)
    assert (empty.Label, empty.Contours, empty.Slices, empty.ReferencedSeriesInstanceUID) == (None, 0, 0, None)


def test_contours_without_images_are_counted_by_their_height() -> None:
    def contour(*points: float) -> Dataset:
        return dataset(ContourGeometricType="CLOSED_PLANAR", ContourData=list(points))

    def slices(*contours: Dataset) -> tuple[int | None, int | None]:
        (row,) = rows(
            dataset(
                StructureSetROISequence=[dataset(ROINumber=1)],
                ROIContourSequence=[dataset(ReferencedROINumber=1, ContourSequence=list(contours))],
            )
        )
        return row.Contours, row.Slices

    axial = [contour(0, 0, z, 1, 0, z, 1, 1, z) for z in (2.5, 5, 5)]
    assert slices(*axial) == (3, 2)
    assert slices(contour(0, 0, 1, 0, 1, 2)) == (1, None)
    assert slices(contour()) == (1, None)


def test_an_odd_number_an_empty_code_and_an_item_too_many_are_no_errors() -> None:
    data = dataset(
        SegmentSequence=[
            segment(None, SegmentLabel="none"),
            segment(2, SegmentedPropertyTypeCodeSequence=[], SegmentedPropertyCategoryCodeSequence=[dataset()]),
            segment(2, SegmentLabel="again"),
        ],
        PerFrameFunctionalGroupsSequence=[frame(2, z=1), frame(5, z=1), dataset()],
    )
    found = [(r.Number, r.Label, r.Frames, r.Type, r.Category) for r in rows(data)]
    assert found == [(None, "none", 0, None, None), (2, None, 1, None, None), (2, "again", 1, None, None)]
    assert rows(dataset(SegmentSequence=[], StructureSetROISequence=[])) == []
    assert rows(dataset(PatientID="1")) == []
    roi = dataset(
        StructureSetROISequence=[dataset(ROIName="no number")], ROIContourSequence=[dataset(ContourSequence=[])]
    )
    assert [(r.Number, r.Label, r.Contours) for r in rows(roi)] == [(None, "no number", 0)]


def test_the_phantoms_have_a_row_for_each_segment_and_region() -> None:
    plans = demo_plans()
    seg = next(plan for plan in plans if plan.modality == "SEG")
    (lesion,) = regions_of(opened(segmentation(seg)))
    assert seg.source is not None
    assert (lesion.Kind, lesion.Label, lesion.Frames, lesion.Slices) == ("segment", "Lesion", 7, 7)
    assert lesion.ReferencedSeriesInstanceUID == seg.source.uid
    plan = next(plan for plan in plans if plan.modality == "RTSTRUCT")
    file = structure_set(plan)
    found = regions_of(opened(file))
    data = pydicom.dcmread(io.BytesIO(file))
    assert [(r.Number, r.Label) for r in found] == [
        (roi.ROINumber, roi.ROIName) for roi in data.StructureSetROISequence
    ]
    assert [r.Contours for r in found] == [len(roi.ContourSequence) for roi in data.ROIContourSequence]
    assert [r.InterpretedType for r in found] == ["GTV", *["ORGAN"] * (len(found) - 1)]


def test_references_that_are_known_are_not_looked_for_again() -> None:
    what = opened(dicom_objects.seg_over_two_series())
    assert regions_of(what) == regions_of(what, references=edges_of(what))
    assert {r.ReferencedSeriesInstanceUID for r in regions_of(what, references=[])} == {None}


def odd_frames(n: int) -> list[Dataset]:
    """Return frames that look like others and mean something else; those of another number have other images."""
    purpose = {"PurposeOfReferenceCodeSequence": [code("121322", "Source")]}
    z, one, two = float(n), image(FIRST, n, **purpose), image(FIRST, n + 1, **purpose)
    within = image(FIRST, n, SourceInstanceSequence=[image(FIRST, n if n < 53 else 49)])
    other_class, padded, empty, several = (image(FIRST, n + m, **purpose) for m in (10, 0, 0, 0))
    other_class.ReferencedSOPClassUID = pydicom.uid.CTImageStorage if n < 53 else pydicom.uid.MRImageStorage
    padded.ReferencedSOPInstanceUID = "1.2.5.1.1 " if n < 53 else "1.2.5.1. "
    empty.ReferencedSOPInstanceUID = "1.2.5.1.10" if n < 53 else " " * 10
    several.ReferencedSOPInstanceUID = "1.2.5.1.10" if n < 53 else "1.2.5\\1.99"
    related = frame(1, one, z=z)
    related.ReferencedImageSequence = [image(SECOND, n)]
    return [
        *(frame(1, source, z=z) for source in (one, within, other_class, padded, empty, several)),
        frame(1, one, one, z=z),
        frame(1, one, two, z=z),
        frame(2, image(FIRST, 10, ReferencedFrameNumber=n), z=z),
        frame(3, image(FIRST, n, PurposeOfReferenceCodeSequence=[code("121323", f"{n:08}")]), z=z),
        frame(1, one),
        frame(None, one, z=z),
        frame(3, z=z),
        related,
        dataset(),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("undefined", [False, True])
def test_frames_that_are_alike_are_as_if_each_were_read(undefined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(
        SegmentSequence=[segment(n) for n in (1, 2, 3)],
        PerFrameFunctionalGroupsSequence=[one for n in range(50, 60) for one in odd_frames(n)],
    )
    if undefined:
        without_lengths(data)
    what = of_dataset(data)
    monkeypatch.setattr(tree, "_LONG_BYTES", 1 << 10)
    problems, problems_of_others = list[str](), list[str]()
    edges, rows = edges_of(what, problems), regions_of(what)
    with monkeypatch.context() as patch:
        patch.setattr(tree, "_LONG_BYTES", 1 << 30)
        assert (edges_of(what, problems_of_others), regions_of(what)) == (edges, rows)
    assert problems_of_others == problems
    expected = Counter(name for _, name in by_pydicom(data))
    assert Counter({e.ReferencedSOPInstanceUID: 0 for e in edges}).keys() == expected.keys()
    assert sum(e.Times for e in edges) == sum(expected.values())
    assert problems == ["52009230: a ReferencedSOPInstanceUID is empty"]
    assert sum(row.Frames or 0 for row in rows) == 130
    # Nearly all frames were not read one by one.
    calls = 0
    elements = tree.Tree._elements

    def counted(*args: Any) -> int:
        nonlocal calls
        calls += 1
        return elements(*args)

    monkeypatch.setattr(tree.Tree, "_elements", counted)
    tree.forget()
    edges_of(what)
    assert calls < 300


def test_a_batch_has_the_same_rows_for_files_with_lengths_and_without() -> None:
    batch, expected = Batch(), list[dict[str, Any]]()
    for number, make in enumerate(dicom_objects.MAKERS):
        file = make()
        data, target = pydicom.dcmread(io.BytesIO(file)), io.BytesIO()
        without_lengths(data).save_as(target)
        edges = edges_of(opened(file))
        for content in (file, target.getvalue(), target.getvalue()):
            known = Known(f"1.{number}", "1", None, None, "C", None, None, f"{number}.dcm")
            batch.add(known, content, len(content), lambda at, count: b"")
            expected += [edge._asdict() for edge in edges]
    rows = batch.tables()["instance_references"].select(Edge._fields).to_pylist()
    assert rows == expected
    assert batch.tables()["annotations"].column("Label").to_pylist() == ["Left", "Right"] * 3
