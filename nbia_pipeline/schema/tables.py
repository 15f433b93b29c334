"""The tables of the lake: every column's name, type, unit, DICOM tag and meaning.

A column is named by its DICOM keyword where one exists, else as the NBIA guide names it, and is
spelled the same in every table. Days are ``date32``, times ``timestamp[us]`` without a zone (the server
states none), counts and sizes ``int64``, UIDs ``string``.

The Arrow schemas, the column panels of the Dagster UI, the parsing of answers and the answers of the
embedded archive are all derived from this module and from :mod:`nbia_pipeline.schema.shapes`.

What a description says about curation is from TCIA's wiki. De-identified at submission, inspected and cleaned, labeled
in curation, in SNOMED terms: the tables of return values in the NBIA Search REST API Guides, and in the TCIA
Programmatic Interface Usage Guide v1, from which they come. What these leave open is from the Submission and
De-identification Overview: TCIA applies the Basic Application Confidentiality Profile (DICOM PS3.15, annex E) with the
options to clean descriptors, and to retain modified dates, patient characteristics and the identity of the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

TEXT = pa.string()
COUNT = pa.int64()
REAL = pa.float64()
FLAG = pa.bool_()
DAY = pa.date32()
TIME = pa.timestamp("us")


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: DICOM keyword, or the name in the NBIA guide.
        type: Arrow type of the values.
        description: what the value means and, where it is surprising, where it comes from.
        tag: DICOM tag as ``gggg,eeee``, or None for what the archive adds.
        unit: unit of a number, or None.
    """

    name: str
    type: pa.DataType
    description: str
    tag: str | None = None
    unit: str | None = None


@dataclass(frozen=True)
class Table:
    """One table of the lake.

    Attributes:
        name: name of the table, of its directory and of its asset.
        description: one row per what, and from where.
        columns: the columns in order.
        key: names of the columns that identify a row.
        partitioned: True if the lake keeps one partition per collection.
        served: by column, which version of the API serves it, and how, where that is not simply both.
        sharded: True if a partition can have several files, ``part-<k>.parquet``, by the series.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    partitioned: bool = True
    served: Mapping[str, str] = field(default_factory=dict, hash=False)
    sharded: bool = False

    def column(self, name: str) -> Column:
        """Return the column called `name`; raises KeyError if the table has none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"table {self.name} has no column {name}")

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema; each field carries its description, DICOM tag, unit and who serves it as metadata."""
        return pa.schema(
            [pa.field(c.name, c.type, metadata=_field_metadata(c, self.served.get(c.name))) for c in self.columns],
            metadata={"nbia_table": self.name, "description": self.description},
        )


def _field_metadata(column: Column, served: str | None) -> dict[str, str]:
    known = {"description": column.description, "dicom_tag": column.tag, "unit": column.unit, "served": served}
    return {name: value for name, value in known.items() if value is not None}


_DEIDENTIFIED = "De-identified at submission."
_CLEANED = "Inspected, and cleaned of protected health information (PHI)."
_KEPT = "Not changed in curation."

_COLUMNS = {
    c.name: c
    for c in (
        # --- DICOM attributes
        Column("SeriesInstanceUID", TEXT, f"Unique identifier of the series. {_DEIDENTIFIED}", "0020,000E"),
        Column("StudyInstanceUID", TEXT, f"Unique identifier of the study. {_DEIDENTIFIED}", "0020,000D"),
        Column("SOPInstanceUID", TEXT, f"Unique identifier of the instance (one file). {_DEIDENTIFIED}", "0008,0018"),
        Column("SOPClassUID", TEXT, "What kind of object an instance is.", "0008,0016"),
        Column("InstanceNumber", COUNT, "Number of the instance within its series.", "0020,0013"),
        Column("PatientID", TEXT, f"Identifier of the patient within the collection. {_DEIDENTIFIED}", "0010,0020"),
        Column(
            "PatientName",
            TEXT,
            f"Name of the patient. {_DEIDENTIFIED} Often the PatientID, or an empty text.",
            "0010,0010",
        ),
        Column("PatientBirthDate", DAY, f"Date of birth. {_DEIDENTIFIED} Usually empty.", "0010,0030"),
        Column("PatientSex", TEXT, f"Sex of the patient. {_KEPT}", "0010,0040"),
        Column("PatientAge", TEXT, f"Age of the patient at the study, like 061Y. {_KEPT}", "0010,1010"),
        Column("EthnicGroup", TEXT, f"Ethnic group of the patient. {_KEPT}", "0010,2160"),
        Column("SpeciesCode", TEXT, "SNOMED code of the species (server: 337915000).", "0010,2202"),
        Column("SpeciesDescription", TEXT, "Species (server default: Homo sapiens).", "0010,2201"),
        Column("Phantom", TEXT, "YES if a quality-control phantom was imaged.", "0010,0200"),
        Column(
            "StudyDate",
            DAY,
            f"Day on which the study began. {_DEIDENTIFIED} The days between the studies of a patient are preserved.",
            "0008,0020",
        ),
        Column("StudyDescription", TEXT, f"Description of the study. {_CLEANED}", "0008,1030"),
        Column("StudyID", TEXT, f"Identifier of the study given by the site. {_DEIDENTIFIED}", "0020,0010"),
        Column("AdmittingDiagnosesDescription", TEXT, f"Diagnoses at admission. {_CLEANED}", "0008,1080"),
        Column("LongitudinalTemporalEventType", TEXT, "Event from which the offset counts.", "0012,0053"),
        Column(
            "LongitudinalTemporalOffsetFromEvent",
            REAL,
            "Days from the event to the study; may be fractional.",
            "0012,0052",
            "days",
        ),
        Column("Modality", TEXT, "Kind of equipment that produced the series.", "0008,0060"),
        Column("ProtocolName", TEXT, f"Protocol under which the series was acquired. {_CLEANED}", "0018,1030"),
        Column("SeriesDate", DAY, "Day on which the series began. De-identified: all dates are modified.", "0008,0021"),
        Column("SeriesDescription", TEXT, f"Description of the series. {_CLEANED}", "0008,103E"),
        Column("SeriesNumber", COUNT, "Number of the series within its study.", "0020,0011"),
        Column(
            "BodyPartExamined",
            TEXT,
            "Part of the body; 16 characters at most. Entered per collection in SNOMED terms (guide); others occur.",
            "0018,0015",
        ),
        Column("Manufacturer", TEXT, f"Manufacturer of the equipment. {_KEPT}", "0008,0070"),
        Column("ManufacturerModelName", TEXT, f"Model of the equipment. {_KEPT}", "0008,1090"),
        Column("SoftwareVersions", TEXT, f"Software of the equipment. {_KEPT}", "0018,1020"),
        Column(
            "PixelSpacing",
            TEXT,
            "Distance of the centers of adjacent rows; where images differ, all values, joined by commas.",
            "0028,0030",
            "mm",
        ),
        Column(
            "SliceThickness",
            TEXT,
            "Nominal thickness of a slice; where images differ, all values, joined by commas.",
            "0018,0050",
            "mm",
        ),
        # --- what the archive adds
        Column(
            "Collection",
            TEXT,
            "Collection, in the exact spelling of getCollectionValues. A label that was assigned in curation.",
        ),
        Column("Site", TEXT, "Site that sent the series."),
        Column("PatientCount", COUNT, "Number of patients.", unit="patients"),
        Column("SeriesCount", COUNT, "Number of visible series: of the study, or with the license.", unit="series"),
        Column("ImageCount", COUNT, "Number of instances of the series.", unit="instances"),
        Column("FileSize", COUNT, "Sum of the sizes of the DICOM files, uncompressed.", unit="bytes"),
        Column("AnnotationsFlag", FLAG, "Whether annotations exist, according to the archive; unreliable."),
        Column("AnnotationSize", COUNT, "Size of the annotation files, as the archive states it.", unit="bytes"),
        Column(
            "TimeStamp",
            TIME,
            "Last submission of any image of the series, in the server's unstated time zone; v4 gives only the day.",
        ),
        Column("DateReleased", TIME, "Date of release, normally at midnight; can be back-dated."),
        Column("ReleasedStatus", TEXT, "Whether the series is released."),
        Column("LicenseName", TEXT, "Long name of the license of the data."),
        Column("LicenseURI", TEXT, "Address of the license."),
        Column("CollectionURI", TEXT, "DOI of the collection or of the derived data set."),
        Column("ThirdPartyAnalysis", TEXT, "YES or yes if the data were not made by the original submitter."),
        Column("Description", TEXT, "Description of the collection, as HTML."),
        Column("DescriptionURI", TEXT, "DOI of the collection."),
        Column("DescriptionTimestamp", TIME, "When the description was last edited (UTC)."),
        # --- what the pipeline adds: receipts and the index of files
        Column(
            "Status",
            TEXT,
            "complete, pending, unavailable (the archive refuses it), quarantined or withdrawn.",
        ),
        Column("Bytes", COUNT, "Sum of the sizes of the files in the lake.", unit="bytes"),
        Column("SeriesMD5", TEXT, "MD5 of the sorted MD5s of the files: the server's own formula."),
        Column("FetchedAt", TIME, "When the files were fetched (UTC)."),
        Column("Attempts", COUNT, "Number of times that the series was downloaded.", unit="downloads"),
        Column("Healed", COUNT, "Instances that were downloaded one by one to complete the series.", unit="instances"),
        Column(
            "Proof",
            TEXT,
            "How the files were verified: md5 (each has its MD5, and the archive listed the instances), md5+count+size "
            "(each has its MD5, and all of them have ImageCount and FileSize), or count+size where the archive has no "
            "digests.",
        ),
        Column(
            "Reason",
            TEXT,
            "Why the series is withdrawn, not complete, or not in its newest version, for people; of a complete one, "
            "for whose references it was fetched. Null if there is no reason, or it is not known.",
        ),
        Column(
            "RefreshFailedAt",
            TIME,
            "When the newest version of a series in the lake could not be fetched (UTC); null otherwise.",
        ),
        Column("NewerImageCount", COUNT, "ImageCount of that newest version.", unit="instances"),
        Column("NewerFileSize", COUNT, "FileSize of that newest version.", unit="bytes"),
        Column("NewerTimeStamp", TIME, "TimeStamp of that newest version."),
        Column("NewerDateReleased", TIME, "DateReleased of that newest version."),
        Column("Name", TEXT, "Name of the file as the archive sends it; null in a row without a file."),
        Column(
            "Path",
            TEXT,
            "Path relative to the lake: of the file; in image_series, of the folder with the files of the series, null "
            "where there are none.",
        ),
        Column("Size", COUNT, "Size of the file.", unit="bytes"),
        Column("MD5", TEXT, "MD5 of the file, lower-case hex."),
        # --- what the pipeline adds: the feed of changes
        Column("Change", TEXT, "added, revised, withdrawn or returned."),
        Column(
            "ColumnName",
            TEXT,
            "Column that was revised, or that a value does not fit; null where it is about no single column.",
        ),
        Column("OldValue", TEXT, "Value before the revision, as text; null if it was null."),
        Column("NewValue", TEXT, "Value after the revision, as text; null if it was null."),
        Column("SeenAt", TIME, "When the change was recorded (UTC)."),
        Column("ListedAt", TIME, "Time of the listing that shows the change (UTC)."),
        Column("RunID", TEXT, "Dagster run that recorded the change."),
        Column("Version", COUNT, "Version of the series: 1 when it was added, one more with every change."),
        Column(
            "MissingSince",
            TIME,
            "Time of the first listing without the series (UTC); null if it is listed.",
        ),
        Column("Withdrawn", FLAG, "Whether the withdrawal is confirmed: two listings some time apart lack the series."),
        Column("LicenseText", TEXT, "Text of the license: file LICENSE of getImage; null if the archive serves none."),
        # --- what does not fit
        Column("TableName", TEXT, "Table that the answer fills."),
        Column("RowKey", TEXT, "Key of the row; null for a row without a key, and for a finding about all rows."),
        Column("SentValue", TEXT, "Value as the archive sent it; its first 500 characters."),
        Column("Why", TEXT, "What does not fit, and what was done about it."),
        Column("VerifiedAt", TIME, "When the files of the series were last read again (UTC)."),
        Column("Finding", TEXT, "What is wrong with the files; null if they are intact."),
    )
}


_V2_ONLY = "Served by v2 only."
_V4_ONLY = "Served by v4 only."
_V2_SINGLY = "Served by v2 only, with one call per series (setting metadata)."
_V2_SINGLY_AND_V4 = "Served by v4, and by v2 with one call per series (setting metadata)."


def of_tables(names: str) -> tuple[Column, ...]:
    """Return the columns of these names, separated by spaces, that the tables of this module have."""
    return tuple(_COLUMNS[name] for name in names.split())


def _table(
    name: str,
    description: str,
    columns: str,
    key: str,
    partitioned: bool = True,
    served: Mapping[str, str] | None = None,
) -> Table:
    return Table(name, description, of_tables(columns), tuple(key.split()), partitioned, served or {})


def _values(name: str, column: str, description: str) -> Table:
    return _table(name, description, f"{column} PatientCount", key=column, partitioned=False)


COLLECTIONS = _table(
    "collections",
    "One row per mirrored collection, with its number of patients and its description.",
    "Collection PatientCount Description DescriptionURI DescriptionTimestamp",
    key="Collection",
    partitioned=False,
)
MODALITIES = _values("modalities", "Modality", "One row per modality of the archive, with its number of patients.")
BODY_PARTS = _values(
    "body_parts",
    "BodyPartExamined",
    "One row per body part of the archive (the server upper-cases them), with its number of patients.",
)
MANUFACTURERS = _values(
    "manufacturers", "Manufacturer", "One row per manufacturer as stored, with its number of patients."
)
PATIENTS = _table(
    "patients",
    "One row per patient of the collection: getPatient.",
    "PatientID PatientName PatientBirthDate PatientSex EthnicGroup Collection Phantom SpeciesCode SpeciesDescription",
    key="Collection PatientID",
    served={"PatientBirthDate": _V2_ONLY},
)
STUDIES = _table(
    "studies",
    "One row per study of the collection: getPatientStudy.",
    "StudyInstanceUID PatientID Collection StudyDate StudyDescription AdmittingDiagnosesDescription StudyID "
    "PatientAge PatientName PatientBirthDate PatientSex EthnicGroup SeriesCount LongitudinalTemporalEventType "
    "LongitudinalTemporalOffsetFromEvent",
    key="StudyInstanceUID",
    served={"PatientBirthDate": _V2_ONLY},
)
SERIES = _table(
    "series",
    "One row per series of the collection: getSeries.",
    "SeriesInstanceUID StudyInstanceUID PatientID Collection Site Modality ProtocolName SeriesDate "
    "SeriesDescription BodyPartExamined SeriesNumber AnnotationsFlag PatientSex PatientAge "
    "AdmittingDiagnosesDescription Manufacturer ManufacturerModelName SoftwareVersions ImageCount FileSize "
    "TimeStamp ReleasedStatus DateReleased LicenseName LicenseURI CollectionURI StudyDescription StudyDate "
    "ThirdPartyAnalysis",
    key="SeriesInstanceUID",
    served=dict.fromkeys(
        ("Site", "PatientSex", "PatientAge", "AdmittingDiagnosesDescription", "ReleasedStatus"), _V4_ONLY
    ),
)
SERIES_METADATA = _table(
    "series_metadata",
    "One row per series of the collection: getSeriesMetadata2 (v4: getSeriesMetadata) in bulk; on v2 "
    "getSeriesMetaData, series by series, adds what that lacks.",
    "SeriesInstanceUID StudyInstanceUID PatientID Collection Modality SOPClassUID StudyID StudyDescription "
    "StudyDate SeriesDescription SeriesDate SeriesNumber ProtocolName BodyPartExamined Manufacturer "
    "ManufacturerModelName SoftwareVersions PixelSpacing SliceThickness ImageCount FileSize AnnotationsFlag "
    "AnnotationSize TimeStamp DateReleased LicenseName LicenseURI CollectionURI ThirdPartyAnalysis",
    key="SeriesInstanceUID",
    served={
        "SOPClassUID": _V2_SINGLY,
        "AnnotationSize": _V2_SINGLY,
        "StudyID": _V2_SINGLY_AND_V4,
        "TimeStamp": _V2_SINGLY_AND_V4,
        "PixelSpacing": _V4_ONLY,
        "SliceThickness": _V4_ONLY,
    },
)
IMAGE_SERIES = _table(
    "image_series",
    "The receipts: one row per wanted series, with what was fetched and how it was verified.",
    "SeriesInstanceUID StudyInstanceUID PatientID Collection Status ImageCount Bytes SeriesMD5 TimeStamp FileSize "
    "DateReleased FetchedAt Attempts Healed Proof Reason RefreshFailedAt NewerImageCount NewerFileSize NewerTimeStamp "
    "NewerDateReleased Path",
    key="SeriesInstanceUID",
)
INSTANCES = _table(
    "instances",
    "The index of the image files: one row per file in the lake.",
    "SOPInstanceUID SeriesInstanceUID Collection SOPClassUID InstanceNumber Path Size MD5",
    key="SOPInstanceUID",
)
LICENSES = _table(
    "licences",
    "One row per license of the collection's series, with its text; SeriesCount is 0 if no series has it any longer.",
    "Collection LicenseName LicenseURI SeriesCount LicenseText Path",
    key="Collection LicenseName LicenseURI",
)
SELECTED_SERIES = _table(
    "selected_series",
    "One row per series of the collection that the manifest or the cart of the setting select named, when a run of "
    "images last read it.",
    "SeriesInstanceUID Collection",
    key="SeriesInstanceUID",
)
VERIFICATIONS = _table(
    "verifications",
    "One row per series whose files were read again since they were fetched, by nbia-pipeline verify or check intact.",
    "SeriesInstanceUID Collection SeriesMD5 VerifiedAt Finding",
    key="SeriesInstanceUID",
)
ANNOTATION_FILES = _table(
    "annotation_files",
    "One row per annotation file in the lake, beside the images that SeriesMD5 identifies; of a series whose announced "
    "files did not arrive, one row without a file, whose Finding says so.",
    "SeriesInstanceUID StudyInstanceUID PatientID Collection Name Path Size MD5 AnnotationSize SeriesMD5 FetchedAt "
    "Finding",
    key="SeriesInstanceUID Path",
)

SERIES_CHANGES = _table(
    "series_changes",
    "One row per change of the series table: a series added, withdrawn or returned, a column revised. Append-only.",
    "SeriesInstanceUID StudyInstanceUID PatientID Collection Change ColumnName OldValue NewValue SeenAt ListedAt "
    "RunID Version Reason",
    key="SeriesInstanceUID Version ColumnName",
)
SERIES_SEEN = Table(
    "series_seen",
    "One row per series that was ever listed, with its last values: the next listing is compared with them.",
    (*SERIES.columns, *(_COLUMNS[c] for c in ("MissingSince", "Withdrawn", "Version"))),
    key=("SeriesInstanceUID",),
    served=SERIES.served,
)
CONFORMANCE = _table(
    "conformance",
    "One row per value, row or key in the last answers of the archive that does not fit its table; Collection is "
    "~archive for tables of the entire archive.",
    "Collection TableName RowKey ColumnName SentValue Why",
    key="Collection TableName RowKey ColumnName",
)

TABLES = {table.name: table for table in list(globals().values()) if isinstance(table, Table)}
"""Every table of this module by its name, in the order above."""

COUNTED = (PATIENTS, STUDIES, SERIES, SERIES_METADATA)
"""The tables whose rows the summary of a run counts."""
