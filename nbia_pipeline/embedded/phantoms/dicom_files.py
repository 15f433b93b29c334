"""DICOM files of the phantoms: headers that repeat the catalog, and the images (DICOM parts 3, 5, 10).

Everything follows from a :class:`SeriesPlan`; there is no clock and no chance, and the implementation is
named by constants, so the bytes are the same on every machine and in every run.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO

import numpy as np
import pydicom.config
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from nbia_pipeline.embedded.phantoms.anatomy import Body, Geometry, body
from nbia_pipeline.embedded.phantoms.sampling import peak, render

UID_PREFIX = "1.2.826.0.1.3680043.8.498."
IMPLEMENTATION_UID = f"{UID_PREFIX}1.71.1"
IMPLEMENTATION_VERSION = "NBIA_PIPELINE_1"
"""(0002,0012) and (0002,0013) of every file: constants, since pydicom's own change with its version."""

SOP_CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "RTPLAN": "1.2.840.10008.5.1.4.1.1.481.5",
    "RTDOSE": "1.2.840.10008.5.1.4.1.1.481.2",
    "SR": "1.2.840.10008.5.1.4.1.1.88.33",
    "PR": "1.2.840.10008.5.1.4.1.1.11.1",
    "KO": "1.2.840.10008.5.1.4.1.1.88.59",
    "REG": "1.2.840.10008.5.1.4.1.1.66.1",
}
"""SOPClassUID (0008,0016) by Modality (0008,0060)."""

WITHOUT_POSITIONS = ("SR", "PR", "KO")
"""What has no frame of reference."""

CT_INTERCEPT = -1024
BECQUEREL_PER_SUV = 5000.0
"""Bq/ml per unit of SUV: 370 MBq given to 74 kg, as in RadionuclideTotalDose and PatientWeight."""

PIXEL_DATA = 0x7FE00010
_LARGEST_SIGNED = 32767
_ALWAYS_PRESENT = (
    "StudyDate StudyID PatientName PatientID PatientBirthDate PatientSex SeriesNumber Manufacturer".split()
)
_IF_KNOWN = (
    "SeriesDate StudyDescription SeriesDescription ProtocolName BodyPartExamined ManufacturerModelName "
    "SoftwareVersions PatientAge EthnicGroup AdmittingDiagnosesDescription LongitudinalTemporalEventType "
    "LongitudinalTemporalOffsetFromEvent"
).split()


@dataclass(frozen=True)
class SeriesPlan:
    """The parameters from which the files of one series follow.

    Attributes:
        row: the row of the catalog, by column name.
        anatomy: key of :data:`nbia_pipeline.embedded.phantoms.anatomy.ANATOMIES`.
        growth: factor of the lesion's radii at the time of the study.
        geometry: where the slices lie.
        contrasts: contrast of each acquisition; more than one where the stack is scanned repeatedly.
        frame_of_reference: FrameOfReferenceUID (0020,0052).
        numbered: False if AcquisitionNumber (0020,0012) is missing.
        source: the images that it describes or refers to; None for images themselves.
        others: further series that it refers to: more images, or the RTSTRUCT of an RTPLAN, the RTPLAN of an RTDOSE,
            the SEG of an SR.
        flaw: what is wrong with its references: None; "wrong series" (the source's instances are stated to be of
            the first other series), "unknown images" (the source is in no archive), "no references".
        revision: 0 at first; another one makes other contents under the same UIDs, of the same sizes for images.
    """

    row: Mapping[str, object]
    anatomy: str
    growth: float
    geometry: Geometry
    contrasts: tuple[str, ...]
    frame_of_reference: str
    numbered: bool = True
    source: SeriesPlan | None = None
    others: tuple[SeriesPlan, ...] = ()
    flaw: str | None = None
    revision: int = 0

    @property
    def uid(self) -> str:
        """SeriesInstanceUID (0020,000E)."""
        return str(self.row["SeriesInstanceUID"])

    @property
    def modality(self) -> str:
        """Modality (0008,0060)."""
        return str(self.row["Modality"])

    @property
    def sop_class(self) -> str:
        """SOPClassUID (0008,0016) of the instances."""
        return SOP_CLASSES[self.modality]

    @property
    def count(self) -> int:
        """Number of instances: one per slice and acquisition, one in all for what describes images."""
        return 1 if self.source else self.geometry.slices * len(self.contrasts)

    @property
    def subject(self) -> Body:
        """The body of the patient at the time of the study."""
        return body(self.anatomy, str(self.row["PatientID"]), self.growth)

    @cached_property
    def encoded(self) -> tuple[bytes, dict[int, bytes]]:
        """The first image's file up to its dataset, and the elements of it that all images have, by tag."""
        dataset = _shared_header(self)
        file = encode(dataset, self.sop_instance(0))
        elements = _encoded(dataset)
        return file[: len(file) - sum(map(len, elements.values()))], elements

    def sop_instance(self, index: int) -> str:
        """Return SOPInstanceUID (0008,0018) of instance `index` (from 0)."""
        return uid_of(self.uid, index)

    def acquisition(self, index: int) -> int | None:
        """Return AcquisitionNumber (0020,0012) of instance `index` (from 0), or None if it has none."""
        return index // self.geometry.slices + 1 if self.numbered and not self.source else None


def uid_of(*parts: object) -> str:
    """Return the UID that belongs to `parts`: 64 characters, the same in every run."""
    return str(generate_uid(prefix=UID_PREFIX, entropy_srcs=["/".join(str(part) for part in parts)]))


def decimal(value: float) -> str:
    """Return a number as a decimal string (VR DS, at most 16 characters)."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def put(dataset: Dataset, keyword: str, value: object) -> None:
    """Set an attribute as the catalog has it, even if the standard forbids it.

    Archives have code strings in mixed case (BodyPartExamined ``Chest``); pydicom would refuse them.
    """
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(f"no DICOM attribute is called {keyword}")
    dataset.add(DataElement(tag, dictionary_VR(tag), value, validation_mode=pydicom.config.IGNORE))


def fill(dataset: Dataset, **values: object) -> Dataset:
    """Set attributes by keyword and return the dataset."""
    for keyword, value in values.items():
        put(dataset, keyword, value)
    return dataset


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return an item of a code sequence (DICOM part 3, 8.8): (0008,0100), (0008,0102), (0008,0104)."""
    return fill(Dataset(), CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def as_dicom(value: object) -> object:
    """Return a day as DICOM writes it (VR DA), anything else as it is."""
    return value.strftime("%Y%m%d") if isinstance(value, dt.date) else value


def common(plan: SeriesPlan) -> Dataset:
    """Return the patient, study, series and equipment modules (DICOM part 3, C.7.1 to C.7.5).

    A value that is None becomes an empty attribute where the standard wants one, else a missing one.
    """
    row, dataset = plan.row, Dataset()
    if not all(str(value).isascii() for value in row.values()):
        put(dataset, "SpecificCharacterSet", "ISO_IR 192")
    known = [keyword for keyword in _IF_KNOWN if row[keyword] is not None]
    fill(dataset, **{keyword: as_dicom(row[keyword]) for keyword in (*_ALWAYS_PRESENT, *known)})
    fill(
        dataset,
        SOPClassUID=plan.sop_class,
        StudyInstanceUID=row["StudyInstanceUID"],
        SeriesInstanceUID=plan.uid,
        Modality=plan.modality,
        StudyTime="081500",
        SeriesTime="083000",
        AccessionNumber="",
        ReferringPhysicianName="",
        QualityControlSubject=row["Phantom"],
        PatientSpeciesDescription=row["SpeciesDescription"],
        PatientSpeciesCodeSequence=[code(str(row["SpeciesCode"]), "SCT", str(row["SpeciesDescription"]))],
        PatientIdentityRemoved="YES",
        DeidentificationMethod="Synthetic: there is no patient",
    )
    if plan.modality not in WITHOUT_POSITIONS:
        fill(dataset, FrameOfReferenceUID=plan.frame_of_reference, PositionReferenceIndicator="")
    if plan.source and plan.revision:
        # What is drawn has no noise to differ in.
        put(dataset, "InstanceCreationTime", f"{plan.revision % 240000:06d}")
    # The block in which the archive's own anonymizer (CTP) records collection and site.
    block = dataset.private_block(0x0013, "CTP", create=True)
    block.add_new(0x10, "LO", row["Collection"])
    block.add_new(0x12, "LO", row["Site"])
    return dataset


def encode(dataset: Dataset, sop_instance: str) -> bytes:
    """Return a dataset without SOPInstanceUID (0008,0018) as a DICOM file (part 10), explicit VR little endian."""
    put(dataset, "SOPInstanceUID", sop_instance)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = UID(sop_instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    dataset.file_meta = meta
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def content_time(plan: SeriesPlan) -> dict[str, object]:
    """Return ContentDate and AcquisitionDate with their times; empty where the day is not known."""
    day = as_dicom(plan.row["SeriesDate"])
    time = "083100" if day else None
    return {"ContentDate": day, "ContentTime": time, "AcquisitionDate": day, "AcquisitionTime": time}


def _pixel_module(plan: SeriesPlan) -> dict[str, object]:
    geometry = plan.geometry
    # 12 bits unsigned as scanners send CT and MR; PET signed with the whole range and a slope per slice.
    stored = 16 if plan.modality == "PT" else 12
    return {
        "Rows": geometry.matrix,
        "Columns": geometry.matrix,
        "PixelSpacing": [decimal(geometry.spacing)] * 2,
        "SliceThickness": decimal(geometry.thickness),
        "ImageOrientationPatient": [decimal(v) for v in geometry.orientation],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": stored,
        "HighBit": stored - 1,
        "PixelRepresentation": int(plan.modality == "PT"),
        "PatientPosition": "HFP" if plan.anatomy == "breast" else "HFS",
    }


def _ct_module(plan: SeriesPlan) -> dict[str, object]:
    lungs = plan.anatomy == "torso"
    return {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "KVP": "120",
        "XRayTubeCurrent": 180,
        "ExposureTime": 500,
        "ConvolutionKernel": "B40f",
        "RescaleIntercept": str(CT_INTERCEPT),
        "RescaleSlope": "1",
        "RescaleType": "HU",
        "WindowCenter": ["40", "-600"] if lungs else "40",
        "WindowWidth": ["400", "1500"] if lungs else "350",
        "WindowCenterWidthExplanation": ["SOFT TISSUE", "LUNG"] if lungs else "SOFT TISSUE",
    }


def _mr_module(plan: SeriesPlan) -> dict[str, object]:
    echo, repetition, inversion = {"t2": (95, 4200, None), "flair": (110, 9000, 2500)}.get(
        plan.contrasts[0], (4, 450, None)
    )
    timing: dict[str, object] = {} if inversion is None else {"InversionTime": str(inversion)}
    if len(plan.contrasts) > 1:
        timing |= {"NumberOfTemporalPositions": len(plan.contrasts), "ContrastBolusAgent": "Gadolinium-based agent"}
    return timing | {
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "ScanningSequence": "SE" if echo > 4 else "GR",
        "SequenceVariant": "SK" if echo > 4 else "SP",
        "ScanOptions": None,
        "MRAcquisitionType": "2D" if echo > 4 else "3D",
        "EchoTime": str(echo),
        "RepetitionTime": str(repetition),
        "EchoTrainLength": 9 if echo > 4 else 1,
        "FlipAngle": "150" if echo > 4 else "12",
        "MagneticFieldStrength": "3",
        "ImagedNucleus": "1H",
        "WindowCenter": "500",
        "WindowWidth": "1000",
    }


def _pt_module(plan: SeriesPlan) -> dict[str, object]:
    tracer = fill(
        Dataset(),
        Radiopharmaceutical="Fluorodeoxyglucose",
        RadiopharmaceuticalStartTime="073000",
        RadionuclideTotalDose="370000000",
        RadionuclideHalfLife="6586.2",
        RadionuclidePositronFraction="0.97",
        RadionuclideCodeSequence=[code("77004003", "SCT", "^18^Fluorine")],
        RadiopharmaceuticalCodeSequence=[code("35321007", "SCT", "Fluorodeoxyglucose F^18^")],
    )
    return {
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "PatientWeight": "74",
        "Units": "BQML",
        "CountsSource": "EMISSION",
        "SeriesType": ["STATIC", "IMAGE"],
        "NumberOfSlices": plan.geometry.slices,
        "CorrectedImage": ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "NORM"],
        # ADMIN: activities are those at injection, so SUV = value * weight / dose without a decay factor.
        "DecayCorrection": "ADMIN",
        "CollimatorType": "NONE",
        "FrameReferenceTime": "0",
        "ActualFrameDuration": "120000",
        "RadiopharmaceuticalInformationSequence": [tracer],
        "RescaleIntercept": "0",
        # The brain takes up far more tracer than the trunk.
        "WindowCenter": "25000" if plan.anatomy == "head" else "15000",
        "WindowWidth": "50000" if plan.anatomy == "head" else "30000",
    }


_MODULES = {"CT": _ct_module, "MR": _mr_module, "PT": _pt_module}


def varying(plan: SeriesPlan, index: int) -> dict[str, list[str]]:
    """Return the attributes in which the images of a CT, MR or PT series differ, as texts; all but SOPInstanceUID.

    The sizes of the files are computed from these (see :func:`image_sizes`).
    """
    turn, plane = divmod(index, plan.geometry.slices)
    values = {
        "InstanceNumber": [str(index + 1)],
        "ImagePositionPatient": [decimal(v) for v in plan.geometry.position(plane)],
        "SliceLocation": [decimal(plan.geometry.location(plane))],
    }
    if plan.numbered:
        values["AcquisitionNumber"] = [str(turn + 1)]
    if len(plan.contrasts) > 1:
        values["TemporalPositionIdentifier"] = [str(turn + 1)]
    if plan.modality == "PT":
        values["RescaleSlope"] = [f"{_slope(plan, index):.6f}"]
    return values


def _slope(plan: SeriesPlan, index: int) -> float:
    turn, plane = divmod(index, plan.geometry.slices)
    bound = peak(plan.subject, plan.geometry, plane, plan.contrasts[turn]) * BECQUEREL_PER_SUV
    # As the header states it: what is stored must be divided by what is read.
    return float(f"{bound / _LARGEST_SIGNED:.6f}")


def _shared_header(plan: SeriesPlan) -> Dataset:
    """Return what the images of a CT, MR or PT series have in common."""
    return fill(common(plan), **content_time(plan), **_pixel_module(plan), **_MODULES[plan.modality](plan))


def _own_header(plan: SeriesPlan, index: int) -> Dataset:
    """Return what an image of a CT, MR or PT series has for itself, with empty PixelData."""
    dataset = Dataset()
    for keyword, values in varying(plan, index).items():
        put(dataset, keyword, values if len(values) > 1 else values[0])
    if plan.modality == "PT":
        # Binary, hence of one size: it is not among the varying texts.
        put(dataset, "ImageIndex", index + 1)
    dataset.add_new(PIXEL_DATA, "OW", b"")
    return dataset


def image_header(plan: SeriesPlan, index: int) -> Dataset:
    """Return the dataset of an image of a CT, MR or PT series with empty PixelData."""
    dataset = _shared_header(plan)
    dataset.update(_own_header(plan, index))
    return dataset


def _encoded(dataset: Dataset) -> dict[int, bytes]:
    """Return the elements of a dataset by tag, as they are in a file."""
    encodings = convert_encodings(dataset.get("SpecificCharacterSet", "ISO_IR 6"))
    found = {}
    for element in dataset:
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_data_element(buffer, element, encodings)
        found[int(element.tag)] = buffer.getvalue()
    return found


def image_pixels(plan: SeriesPlan, index: int) -> bytes:
    """Return PixelData (7FE0,0010) of an image: 16-bit words, little endian."""
    turn, plane = divmod(index, plan.geometry.slices)
    name = plan.sop_instance(index) + (f"#{plan.revision}" if plan.revision else "")
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    values = render(plan.subject, plan.geometry, plane, plan.contrasts[turn], seed)
    kind, largest = "<u2", 4095
    if plan.modality == "CT":
        values -= np.float32(CT_INTERCEPT)
    elif plan.modality == "PT":
        values *= np.float32(BECQUEREL_PER_SUV / _slope(plan, index))
        kind, largest = "<i2", _LARGEST_SIGNED
    content: bytes = np.clip(np.rint(values), 0, largest).astype(kind).tobytes()
    return content


def image_file(plan: SeriesPlan, index: int) -> bytes:
    """Return one image of a CT, MR or PT series as a DICOM file.

    Only what differs is encoded for each image: encoding takes longer than rendering.
    """
    first, sop_instance, pixels = plan.sop_instance(0), plan.sop_instance(index), image_pixels(plan, index)
    start, shared = plan.encoded
    elements = {**shared, **_encoded(_own_header(plan, index))}
    elements[PIXEL_DATA] = elements[PIXEL_DATA][:-4] + len(pixels).to_bytes(4, "little")
    header = b"".join([start, *(elements[tag] for tag in sorted(elements))])
    # All are of one length, and each file names its own at two places.
    return header.replace(first.encode(), sop_instance.encode()) + pixels


def _text_size(plan: SeriesPlan, index: int) -> int:
    joined = ("\\".join(values) for values in varying(plan, index).values())
    return sum(len(text) + len(text) % 2 for text in joined)


def image_sizes(plan: SeriesPlan) -> list[int]:
    """Return the bytes of every file of a CT, MR or PT series without rendering any.

    One header is written; the others differ in the lengths of a few texts, padded to even ones
    (DICOM part 5, 7.1.1). All SOPInstanceUIDs are of one length.
    """
    first = len(encode(image_header(plan, 0), plan.sop_instance(0))) - _text_size(plan, 0)
    pixels = plan.geometry.matrix**2 * 2
    return [first + pixels + _text_size(plan, i) for i in range(plan.count)]
