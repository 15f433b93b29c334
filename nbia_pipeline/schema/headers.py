"""The tables that are read off the headers of the files: elements, geometry, references, annotations.

Their columns are those of :mod:`nbia_pipeline.schema.tables` where these have the same values; what DICOM files state
as numbers is a number here. All but ``series_references`` are in shards: ``part-<k>.parquet``, by the series.
"""

from __future__ import annotations

import pyarrow as pa

from nbia_pipeline.schema.tables import COUNT, DAY, FLAG, REAL, TEXT, Column, Table, of_tables

TEXTS = pa.list_(TEXT)
REALS = pa.list_(REAL)
COUNTS = pa.list_(COUNT)
CODE = pa.struct([("Value", TEXT), ("Scheme", TEXT), ("Meaning", TEXT)])
OMITTED = pa.list_(pa.struct([("Tag", TEXT), ("VR", TEXT), ("Offset", COUNT), ("Length", COUNT)]))

_TYPES = {"text": TEXT, "texts": TEXTS, "int": COUNT, "real": REAL, "reals": REALS, "day": DAY, "flag": FLAG}


def _columns(text: str) -> tuple[Column, ...]:
    """Return columns from lines: name, type, tag or ``-``, unit or ``-``, description."""
    lines = (line.split(None, 4) for line in text.strip().splitlines())
    return tuple(
        Column(name, _TYPES[kind], description, *(None if word == "-" else word for word in (tag, unit)))
        for name, kind, tag, unit, description in lines
    )


_IDENTITY = of_tables("SOPInstanceUID SeriesInstanceUID StudyInstanceUID PatientID Collection SOPClassUID")
_VERSION = Column("SeriesMD5", TEXT, "SeriesMD5 of the receipt of the series whose files were read.")

_ELEMENTS = _columns("""
TransferSyntaxUID text 0002,0010 - How the file is encoded.
Modality text 0008,0060 - Kind of equipment that produced the instance.
InstanceNumber int 0020,0013 - Number of the instance within its series.
AcquisitionNumber int 0020,0012 - Number of the acquisition.
TemporalPositionIdentifier int 0020,0100 - Order of the instance in time.
NumberOfFrames int 0028,0008 frames Number of frames.
ImageType texts 0008,0008 - What kind of image it is: ORIGINAL or DERIVED, PRIMARY or SECONDARY, and more.
AcquisitionDate day 0008,0022 - Day on which the acquisition began. De-identified: all dates are modified.
AcquisitionTime text 0008,0032 - Time at which the acquisition began, as the file states it.
ContentTime text 0008,0033 - Time at which the content was made, as the file states it.
FrameOfReferenceUID text 0020,0052 - Identifier of the coordinate system of the positions.
PatientPosition text 0018,5100 - Position of the patient in the equipment, such as HFS.
ImageLaterality text 0020,0062 - Side of a paired body part.
ViewPosition text 0018,5101 - View of a projection, such as CC or MLO.
Rows int 0028,0010 pixels Number of rows.
Columns int 0028,0011 pixels Number of columns.
PixelSpacing reals 0028,0030 mm Distance of the centers of adjacent rows, and of adjacent columns.
ImagerPixelSpacing reals 0018,1164 mm The same at the front of the detector.
ImagePositionPatient reals 0020,0032 mm Position of the center of the first pixel.
ImageOrientationPatient reals 0020,0037 - Direction cosines of the first row and of the first column.
SliceThickness real 0018,0050 mm Nominal thickness of a slice.
SpacingBetweenSlices real 0018,0088 mm Distance of adjacent slices, as the file states it.
SliceLocation real 0020,1041 mm Position of the slice, as the file states it.
SamplesPerPixel int 0028,0002 - Number of samples of a pixel.
BitsAllocated int 0028,0100 bits Bits of a sample in the file.
BitsStored int 0028,0101 bits Bits of a sample that are used.
PixelRepresentation int 0028,0103 - 0 for unsigned samples, 1 for signed ones.
PhotometricInterpretation text 0028,0004 - What the samples mean, such as MONOCHROME2.
LossyImageCompression text 0028,2110 - 01 if the image was ever compressed with losses.
BurnedInAnnotation text 0028,0301 - YES if text that identifies the patient may be in the pixels.
RescaleType text 0028,1054 - Unit of the rescaled values, such as HU.
RescaleSlope real 0028,1053 - Slope from stored to rescaled values.
RescaleIntercept real 0028,1052 - Intercept of the same.
WindowCenter reals 0028,1050 - Centers of the windows to show it with.
WindowWidth reals 0028,1051 - Widths of these windows.
KVP real 0018,0060 kV Peak voltage of the tube.
XRayTubeCurrent real 0018,1151 mA Current of the tube.
Exposure real 0018,1152 mAs Exposure.
SpiralPitchFactor real 0018,9311 - Advance of the table in a turn, in widths of the beam.
ReconstructionDiameter real 0018,1100 mm Diameter of the region of the reconstruction.
CTDIvol real 0018,9345 mGy Dose index of the volume.
ConvolutionKernel texts 0018,1210 - Kernels of the reconstruction.
MagneticFieldStrength real 0018,0087 T Strength of the magnet.
EchoTime real 0018,0081 ms Time from the pulse to the echo.
RepetitionTime real 0018,0080 ms Time between two pulse sequences.
InversionTime real 0018,0082 ms Time from the inversion to the pulse.
FlipAngle real 0018,1314 degrees Angle by which the pulse turns the magnetization.
DiffusionBValue real 0018,9087 s/mm2 Sensitivity to diffusion.
ScanningSequence texts 0018,0020 - Kinds of pulse sequence, such as SE or GR.
SequenceVariant texts 0018,0021 - Variants of the sequence.
MRAcquisitionType text 0018,0023 - 2D or 3D.
SequenceName text 0018,0024 - Name of the sequence.
Units text 0054,1001 - Unit of the rescaled values of PET, such as BQML.
DecayCorrection text 0054,1102 - To which time decay was corrected: NONE, START or ADMIN.
CorrectedImage texts 0028,0051 - Corrections that were applied.
FrameReferenceTime real 0054,1300 ms Time of the image since the beginning of the series.
ActualFrameDuration real 0018,1242 ms Duration of the acquisition.
RadionuclideTotalDose real 0018,1074 Bq Activity that was given, of the first radiopharmaceutical (0054,0016).
PatientSex text 0010,0040 - Sex of the patient.
PatientAge text 0010,1010 - Age of the patient, like 061Y.
PatientSize real 0010,1020 m Height of the patient.
PatientWeight real 0010,1030 kg Weight of the patient.
PatientIdentityRemoved text 0012,0062 - YES if the file was de-identified.
LongitudinalTemporalInformationModified text 0028,0303 - Whether dates were kept, MODIFIED or REMOVED.
CTPCollection text 0013,xx10 - Collection that the archive's own private block (CTP) states.
PrivateCreators texts gggg,00xx - Private creators of the data set, each once.
ElementCount int - elements Elements of the data set, without those in sequences.
HeaderBytes int - bytes Bytes before the pixel data, or of the entire file.
PixelDataOffset int - bytes Position of the value of PixelData in the file; null without one, or if it is deflated.
PixelDataLength int - bytes Length of PixelData; null if it is encapsulated, or not there.
Header text - - All other elements: DICOM JSON (PS3.18 Annex F). Null if the file cannot be read.
FileMeta text - - The same of group 0002.
""")
_REST = (
    Column(
        "Omitted",
        OMITTED,
        "Elements whose bytes are in the file only, by their positions in it, or in a deflated one when inflated. "
        "Header has their BulkDataURI, but for those of group 7FE0 and those that occur again.",
    ),
    Column("Problems", TEXTS, "What in the file cannot be read, or is no value of its VR, one sentence each."),
)

INSTANCE_HEADERS = Table(
    "instance_headers",
    "One row per file in the lake, with its header: common elements as columns, all of them in Header.",
    (*_IDENTITY, *_ELEMENTS[:2], _VERSION, *of_tables("Path"), *_ELEMENTS[2:], *_REST),
    key=("SOPInstanceUID",),
    sharded=True,
)

SERIES_GEOMETRY = Table(
    "series_geometry",
    "One row per series of single-frame CT, MR or PT images, but of localizers and MIPs: whether it is a regular "
    "volume, by the definitions and tolerances of IDC's volume_geometry_index.",
    (
        *of_tables("SeriesInstanceUID Collection Modality"),
        *_columns("""
FrameOfReferenceUID text 0020,0052 - Identifier of the coordinate system; null if the series has several.
Plane text - - axial, sagittal or coronal if the normal is within 37 degrees of that of such a plane; else oblique.
Instances int - instances Number of single-frame images.
Positions int - - Number of different positions along the normal; null if orientations differ.
Stacks int - - Images at each position: phases, echoes and the like; null if positions differ in it.
MissingSlices int - slices Positions that are missing in an otherwise regular stack; null if it is none.
Rows int 0028,0010 pixels Number of rows; null if images differ.
Columns int 0028,0011 pixels Number of columns; null if images differ.
PixelSpacing reals 0028,0030 mm Distance of adjacent rows and columns; null if images differ.
ImageOrientationPatient reals 0020,0037 - Direction cosines of rows and columns of the first slice; null if they differ.
Origin reals 0020,0032 mm Position of the first slice along the normal; null if orientations differ.
SliceSpacing real - mm Mean distance of adjacent slices, missing ones counted; the median if they are uneven.
SliceThickness real 0018,0050 mm Nominal thickness of a slice; null if images differ.
Extent real - mm Distance of the first and the last position, and one SliceSpacing.
ObliquityDegrees real - degrees Angle between the normal and the nearest axis of the patient.
SingleOrientation flag - - Whether all images state the same ImageOrientationPatient.
OrthogonalOrientation flag - - Whether the normal, the product of both directions, has a length within 0.01 of 1.
UniqueSlicePositions flag - - Whether no two images are at one position along the normal.
ConsistentInPlaneRow flag - - Whether slices are shifted by less than 0.1 mm along their rows.
ConsistentInPlaneColumn flag - - Whether slices are shifted by less than 0.1 mm along their columns.
ConsistentPixelSpacing flag - - Whether all images state the same PixelSpacing.
ConsistentImageDimensions flag - - Whether all images have as many Rows and Columns.
UniformSliceSpacing flag - - Whether all distances are within 1 % of their mean; null for one slice.
RegularVolume flag - - Whether all flags are true; null if one is null and none false.
"""),
    ),
    key=("SeriesInstanceUID",),
    sharded=True,
)

INSTANCE_REFERENCES = Table(
    "instance_references",
    "One row per reference in the header of a file to another instance or series: instance, role and target.",
    (
        *of_tables("SOPInstanceUID SeriesInstanceUID Collection SOPClassUID"),
        *_columns("""
Role text - - What the target is to the instance, such as described, contour, source, evidence or plan.
TagPath text - - Tags of the sequences around the reference, such as 00081115.0008114A.
ReferencedSOPInstanceUID text 0008,1155 - The target; null if it is a series as a whole.
ReferencedSOPClassUID text 0008,1150 - What kind of object the target is, as stated.
StatedSeriesInstanceUID text 0020,000E - Series of the target, as the nearest enclosing item states it.
StatedStudyInstanceUID text 0020,000D - Study of the target, as the nearest enclosing item states it.
Purpose text 0040,A170 - Purpose of the reference: meaning of its first code.
Times int - - How often the instance names the target in this role.
"""),
        Column("Frames", COUNTS, "Frames of the target that are named.", "0008,1160"),
        Column("Segments", COUNTS, "Segments of the target that are named.", "0062,000B"),
        _VERSION,
    ),
    key=("SOPInstanceUID", "Role", "ReferencedSOPInstanceUID"),
    sharded=True,
)

SERIES_REFERENCES = Table(
    "series_references",
    "One row per series, role and series that it refers to, and where the lake or the archive has that.",
    (
        *of_tables("SeriesInstanceUID Collection Modality"),
        *_columns("""
Role text - - As in instance_references; frame_of_reference where no reference is stated.
ReferencedSeriesInstanceUID text - - The series that has the targets, or is stated to; null if none is known.
ReferencedCollection text - - Its collection; null if it is not known.
ReferencedModality text - - Its modality; null if it is not known.
Resolution text - - held, listed, elsewhere, moved or unknown: see docs/headers.md.
ReferencedInstances int - instances Number of different instances that are referred to.
OfInstances int - instances Number of instances of the referenced series; null if it is not known.
Missing int - instances Number of referenced instances that are not in the lake.
Coverage real - - ReferencedInstances of OfInstances.
SameStudy flag - - Whether both series are of one study; null if that is not known.
SamePatient flag - - Whether both series are of one patient; null if that is not known.
Stated flag - - Whether a file states the reference; false if it follows from a common FrameOfReferenceUID.
"""),
    ),
    key=("SeriesInstanceUID", "Role", "ReferencedSeriesInstanceUID"),
)

ANNOTATIONS = Table(
    "annotations",
    "One row per segment of a segmentation, and per region of interest (ROI) of a structure set.",
    (
        *of_tables("SeriesInstanceUID SOPInstanceUID Collection"),
        *_columns("""
Kind text - - segment or roi.
Number int - - SegmentNumber (0062,0004) or ROINumber (3006,0022).
Label text - - SegmentLabel (0062,0005) or ROIName (3006,0026).
Description text - - SegmentDescription (0062,0006) or ROIDescription (3006,0028).
AlgorithmType text - - SegmentAlgorithmType (0062,0008) or ROIGenerationAlgorithm (3006,0036).
AlgorithmName text 0062,0009 - SegmentAlgorithmName.
InterpretedType text 3006,00A4 - RTROIInterpretedType.
TrackingUID text 0062,0021 - Identifier by which a finding is followed over studies.
ReferencedSeriesInstanceUID text - - The series that it is drawn on; null if there are several, or none is stated.
Frames int - frames Frames of a segment.
Contours int - contours Contours of an ROI.
Slices int - slices Different images that it is drawn on.
"""),
        Column("Category", CODE, "SegmentedPropertyCategoryCodeSequence, or that of the ROI.", "0062,0003"),
        Column("Type", CODE, "SegmentedPropertyTypeCodeSequence, or that of the ROI.", "0062,000F"),
        Column("AnatomicRegion", CODE, "AnatomicRegionSequence.", "0008,2218"),
    ),
    key=("SOPInstanceUID", "Kind", "Number"),
    sharded=True,
)

SHARDED = (INSTANCE_HEADERS, SERIES_GEOMETRY, INSTANCE_REFERENCES, ANNOTATIONS)
"""The tables that are written together, shard by shard."""

TABLES = {table.name: table for table in (*SHARDED, SERIES_REFERENCES)}
"""Every table of this module by its name."""
