"""What is said about images: reports (SR), key objects (KO), presentation states (PR) and registrations (REG)."""

from __future__ import annotations

from pydicom.dataset import Dataset

from nbia_pipeline.embedded.phantoms.dicom_files import (
    CT_INTERCEPT,
    SeriesPlan,
    as_dicom,
    code,
    common,
    decimal,
    encode,
    fill,
    uid_of,
)
from nbia_pipeline.embedded.phantoms.references import (
    Named,
    common_references,
    evidence,
    item,
    reference,
    source_of,
)
from nbia_pipeline.embedded.phantoms.sampling import lesion_mask, lesion_slices

_TIME = "113000"
_IDENTITY = ["1" if i % 5 == 0 else "0" for i in range(16)]


def _shown(plan: SeriesPlan) -> list[int]:
    """Return the slices of the source (from 0) that meet the lesion."""
    images = source_of(plan)
    return lesion_slices(images.subject, images.geometry)


def _labels(label: str, description: str) -> dict[str, object]:
    """Return the Content Identification macro (DICOM part 3, 10.9)."""
    return {
        "InstanceNumber": 1,
        "ContentLabel": label,
        "ContentDescription": description,
        "ContentCreatorName": "Reader^One",
    }


# --- structured reports


def _content(kind: str, name: Dataset | None, by: str = "CONTAINS", **values: object) -> Dataset:
    """Return an item of ContentSequence (0040,A730): its ValueType, ConceptName and RelationshipType."""
    named = {} if name is None else {"ConceptNameCodeSequence": [name]}
    return item(RelationshipType=by, ValueType=kind, **named, **values)


def _container(name: Dataset, *children: Dataset, by: str = "CONTAINS") -> Dataset:
    return _content("CONTAINER", name, by, ContinuityOfContent="SEPARATE", ContentSequence=list(children))


def _image(name: Dataset | None, target: Dataset) -> Dataset:
    return _content("IMAGE", name, ReferencedSOPSequence=[target])


def _uid(name: Dataset, value: str, by: str = "CONTAINS") -> Dataset:
    return _content("UIDREF", name, by, UID=value)


def _document(plan: SeriesPlan, title: Dataset, template: str, named: Named, content: list[Dataset]) -> Dataset:
    """Return the modules that SR and KO have in common (DICOM part 3, C.17)."""
    return fill(
        common(plan),
        InstanceNumber=1,
        ContentDate=as_dicom(plan.row["SeriesDate"]),
        ContentTime=_TIME,
        ReferencedPerformedProcedureStepSequence=[],
        CurrentRequestedProcedureEvidenceSequence=evidence(named),
        ValueType="CONTAINER",
        ConceptNameCodeSequence=[title],
        ContinuityOfContent="SEPARATE",
        ContentTemplateSequence=[item(MappingResource="DCMR", TemplateIdentifier=template)],
        ContentSequence=content,
    )


def _volume(plan: SeriesPlan) -> str:
    """Return the volume of the lesion in mm³, as its mask has it."""
    images = source_of(plan)
    pixels = sum(int(lesion_mask(images.subject, images.geometry, i).sum()) for i in _shown(plan))
    return decimal(round(pixels * images.geometry.spacing**2 * images.geometry.thickness, 1))


def _measurements(plan: SeriesPlan) -> list[Dataset]:
    """Return the measurement groups of a segment (TID 1411), and of its second frame (TID 1410)."""
    images, segments = source_of(plan), plan.others[0]
    identity = (
        _content("TEXT", code("112039", "DCM", "Tracking Identifier"), "HAS OBS CONTEXT", TextValue="Lesion 1"),
        _uid(code("112040", "DCM", "Tracking Unique Identifier"), uid_of(plan.uid, "tracking"), by="HAS OBS CONTEXT"),
    )
    measured = item(NumericValue=_volume(plan), MeasurementUnitsCodeSequence=[code("mm3", "UCUM", "cubic millimeter")])
    name = code("125007", "DCM", "Measurement Group")
    return [
        _container(
            name,
            *identity,
            _image(code("121191", "DCM", "Referenced Segment"), reference(segments, 0, ReferencedSegmentNumber=1)),
            _uid(code("121232", "DCM", "Source series for segmentation"), images.uid),
            _content("NUM", code("118565006", "SCT", "Volume"), MeasuredValueSequence=[measured]),
        ),
        _container(
            name,
            *identity,
            _image(
                code("121214", "DCM", "Referenced Segmentation Frame"),
                reference(segments, 0, ReferencedFrameNumber="2", ReferencedSegmentNumber=1),
            ),
            _image(code("121233", "DCM", "Source image for segmentation"), reference(images, _shown(plan)[1])),
        ),
    ]


def report(plan: SeriesPlan) -> bytes:
    """Return a Comprehensive SR Storage file (DICOM part 3, A.35.3): measurements of a segment (TID 1500).

    Args:
        plan: an SR series; its first other series is a SEG of its source.
    """
    images, segments = source_of(plan), plan.others[0]
    library = [_image(None, reference(images, index)) for index in _shown(plan)]
    context = [
        _content(
            "CODE",
            code("121049", "DCM", "Language of Content Item and Descendants"),
            "HAS CONCEPT MOD",
            ConceptCodeSequence=[code("en-US", "RFC5646", "English (United States)")],
        ),
        _content("PNAME", code("121008", "DCM", "Person Observer Name"), "HAS OBS CONTEXT", PersonName="Reader^One"),
        _content(
            "CODE",
            code("121058", "DCM", "Procedure reported"),
            "HAS CONCEPT MOD",
            ConceptCodeSequence=[code("77477000", "SCT", "Computed tomography")],
        ),
    ]
    dataset = _document(
        plan,
        code("126000", "DCM", "Imaging Measurement Report"),
        "1500",
        [(images, _shown(plan)), (segments, [0])],
        [
            *context,
            _container(
                code("111028", "DCM", "Image Library"),
                _container(code("126200", "DCM", "Image Library Group"), *library),
            ),
            _container(code("126010", "DCM", "Imaging Measurements"), *_measurements(plan)),
        ],
    )
    fill(dataset, CompletionFlag="COMPLETE", VerificationFlag="UNVERIFIED", PerformedProcedureCodeSequence=[])
    return encode(dataset, plan.sop_instance(0))


def key_objects(plan: SeriesPlan) -> bytes:
    """Return a Key Object Selection Document Storage file (DICOM part 3, A.35.4): an image of each of its series."""
    images = source_of(plan)
    middle = _shown(plan)[len(_shown(plan)) // 2]
    chosen = [(series, [min(middle, series.count - 1)]) for series in (images, *plan.others)]
    text = _content("TEXT", code("113012", "DCM", "Key Object Description"), TextValue="The lesion at its widest")
    content = [text, *(_image(None, reference(series, i)) for series, indices in chosen for i in indices)]
    dataset = _document(plan, code("113000", "DCM", "Of Interest"), "2010", chosen, content)
    return encode(dataset, plan.sop_instance(0))


# --- presentation states and registrations


def presentation_state(plan: SeriesPlan) -> bytes:
    """Return a Grayscale Softcopy Presentation State Storage file (DICOM part 3, A.33.1): an arrow at the lesion.

    Args:
        plan: a PR series; its source is a CT series of its study.
    """
    images, shown = source_of(plan), _shown(plan)
    matrix = images.geometry.matrix
    annotated = shown[len(shown) // 2]
    text = item(
        AnchorPointAnnotationUnits="PIXEL",
        UnformattedTextValue="Lesion",
        AnchorPoint=[matrix / 4, matrix / 4],
        AnchorPointVisibility="Y",
    )
    line = item(
        GraphicAnnotationUnits="PIXEL",
        GraphicDimensions=2,
        NumberOfGraphicPoints=2,
        GraphicData=[matrix / 4, matrix / 4, matrix / 2, matrix / 2],
        GraphicType="POLYLINE",
        GraphicFilled="N",
    )
    dataset = fill(
        common(plan),
        **_labels("LESION", "The lesion marked by an arrow"),
        PresentationCreationDate=as_dicom(plan.row["SeriesDate"]),
        PresentationCreationTime=_TIME,
        ReferencedSeriesSequence=[
            item(SeriesInstanceUID=images.uid, ReferencedImageSequence=[reference(images, i) for i in shown])
        ],
        RescaleIntercept=str(CT_INTERCEPT),
        RescaleSlope="1",
        RescaleType="HU",
        SoftcopyVOILUTSequence=[item(WindowCenter="40", WindowWidth="350")],
        PresentationLUTShape="IDENTITY",
        DisplayedAreaSelectionSequence=[
            item(
                DisplayedAreaTopLeftHandCorner=[1, 1],
                DisplayedAreaBottomRightHandCorner=[matrix, matrix],
                PresentationSizeMode="SCALE TO FIT",
                PresentationPixelAspectRatio=["1", "1"],
            )
        ],
        GraphicLayerSequence=[item(GraphicLayer="MARKS", GraphicLayerOrder=1)],
        GraphicAnnotationSequence=[
            item(
                ReferencedImageSequence=[reference(images, annotated)],
                GraphicLayer="MARKS",
                TextObjectSequence=[text],
                GraphicObjectSequence=[line],
            )
        ],
    )
    return encode(dataset, plan.sop_instance(0))


def registration(plan: SeriesPlan) -> bytes:
    """Return a Spatial Registration Storage file (DICOM part 3, A.39.1): two series of one patient, by identity.

    Args:
        plan: a REG series; the frame of reference of its source is that to which its first other series is brought.
    """
    images = [source_of(plan), plan.others[0]]
    named = [(series, list(range(series.count))) for series in images]
    registered = [
        item(
            FrameOfReferenceUID=series.frame_of_reference,
            ReferencedImageSequence=[reference(series, i) for i in indices],
            MatrixRegistrationSequence=[
                item(
                    RegistrationTypeCodeSequence=[],
                    MatrixSequence=[
                        item(
                            FrameOfReferenceTransformationMatrixType="RIGID",
                            FrameOfReferenceTransformationMatrix=_IDENTITY,
                        )
                    ],
                )
            ],
        )
        for series, indices in named
    ]
    dataset = fill(
        common(plan),
        **_labels("REGISTRATION", "Two scans of the head"),
        ContentDate=as_dicom(plan.row["SeriesDate"]),
        ContentTime=_TIME,
        RegistrationSequence=registered,
        **common_references(plan, named),
    )
    return encode(dataset, plan.sop_instance(0))
