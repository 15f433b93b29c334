"""The shapes of the archive's answers: for each, its keys in order and the column each one fills.

A shape is what one family of endpoints sends in one dialect. The client reads answers by these shapes
and the embedded archive writes them by the same ones. The spelling is the server's; where the official
guide prints another one, it is given as `guide`. All of this is from the server's source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import pyarrow as pa

from nbia_pipeline.schema.tables import (
    BODY_PARTS,
    COLLECTIONS,
    COUNT,
    MANUFACTURERS,
    MODALITIES,
    PATIENTS,
    SERIES,
    SERIES_METADATA,
    STUDIES,
    TEXT,
    Table,
)


class Form(Enum):
    """How the server writes a value. The client reads every form in every place."""

    TEXT = "JSON string"
    NUMBER = "JSON number"
    NUMBER_TEXT = "number as a string, like 12"
    DECIMAL_TEXT = "number as a string with six decimals, like 1.000000"
    BOOLEAN = "JSON true or false"
    FLAG_TEXT = "the string true or false"
    DATETIME = "yyyy-MM-dd HH:mm:ss.f"
    ISO_DAY = "yyyy-MM-dd"
    US_DAY = "MM-dd-yyyy"
    JAVA = "Java's Date text: Mon Aug 07 00:00:00 CDT 2023"
    EPOCH_MS = "milliseconds since 1970-01-01 UTC as a JSON number"


@dataclass(frozen=True)
class Key:
    """One key of an answer.

    Attributes:
        name: the server's spelling.
        column: name of the column that it fills, or None where no table wants it (or must not have it).
        form: how the server writes the value.
        guide: the guide's spelling where it differs.
        former: the spelling of older builds of the server where it differs.
        source: name of the value behind it where `column` is None or misleading; the embedded archive
            fills the key from it.
    """

    name: str
    column: str | None
    form: Form = Form.TEXT
    guide: str | None = None
    source: str | None = None
    former: str | None = None


@dataclass(frozen=True)
class Shape:
    """The keys of one kind of answer, in the order in which the server sends them.

    Attributes:
        name: name of the shape.
        table: the table whose columns it fills, or None where the answer fills none.
        keys: the keys in order.
    """

    name: str
    table: Table | None
    keys: tuple[Key, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of an answer: the table's columns, else the shape's own, which are numbers or text."""
        if self.table is not None:
            return self.table.schema
        numbers = (Form.NUMBER, Form.NUMBER_TEXT)
        return pa.schema([pa.field(k.column, COUNT if k.form in numbers else TEXT) for k in self.keys if k.column])

    @property
    def fills(self) -> str:
        """Name of the table whose columns it fills, or its own name where it fills none."""
        return self.table.name if self.table is not None else self.name

    @cached_property
    def columns_by_wire_name(self) -> dict[str, str | None]:
        """Column (None: not wanted) of each spelling, normalized by :func:`normalize`."""
        return {
            normalize(spelling): key.column
            for key in self.keys
            for spelling in (key.former, key.name, key.guide)
            if spelling is not None
        }


def normalize(wire_name: str) -> str:
    """Return a key without spaces and case, so that the guide's and the server's spellings meet."""
    return wire_name.replace(" ", "").casefold()


def _keys(text: str, table: Table | None = None, /, **exceptions: Key) -> tuple[Key, ...]:
    """Make keys from names separated by spaces; `exceptions` replace the plain text key of their name.

    Where a table is given, a key of a column that it lacks fills none.
    """
    keys = tuple(exceptions.get(name, Key(name, name)) for name in text.split())
    if table is None:
        return keys
    columns = table.schema.names
    return tuple(k if k.column in columns else replace(k, column=None, source=k.column) for k in keys)


def _of_form(form: Form, names: str) -> dict[str, Key]:
    """Make keys, by name, of columns whose values the server writes in one form."""
    return {name: Key(name, name, form) for name in names.split()}


_AUTHORIZED = Key("Authorized", None, Form.NUMBER)
_PATIENT_ID = Key("PatientId", "PatientID", guide="PatientID")

COLLECTION_VALUE = Shape("COLLECTION_VALUE", COLLECTIONS, _keys("Collection"))
MODALITY_VALUE = Shape("MODALITY_VALUE", MODALITIES, _keys("Modality"))
BODY_PART_VALUE = Shape("BODY_PART_VALUE", BODY_PARTS, _keys("BodyPartExamined"))
MANUFACTURER_VALUE = Shape("MANUFACTURER_VALUE", MANUFACTURERS, _keys("Manufacturer"))

PATIENT = Shape(
    "PATIENT",
    PATIENTS,
    _keys(
        "PatientId PatientName PatientBirthDate PatientSex EthnicGroup Collection Phantom SpeciesCode "
        "SpeciesDescription",
        PatientId=_PATIENT_ID,
        **_of_form(Form.DATETIME, "PatientBirthDate"),
    ),
)
PATIENT_ID = Shape("PATIENT_ID", None, (_PATIENT_ID,))

STUDY = Shape(
    "STUDY",
    STUDIES,
    _keys(
        "StudyInstanceUID StudyDate StudyDescription AdmittingDiagnosesDescription StudyID PatientAge PatientID "
        "PatientName PatientBirthDate PatientSex EthnicGroup Collection SeriesCount "
        "LongitudinalTemporalEventType LongitudinalTemporalOffsetFromEvent",
        **_of_form(Form.DATETIME, "StudyDate PatientBirthDate"),
        **_of_form(Form.NUMBER, "SeriesCount"),
        LongitudinalTemporalOffsetFromEvent=Key(
            "LongitudinalTemporalOffsetFromEvent",
            "LongitudinalTemporalOffsetFromEvent",
            Form.NUMBER,
            guide="LongitudinalTemportalOffsetFromEvent",
        ),
    ),
)

_SERIES_FORMS = {
    **_of_form(Form.NUMBER, "SeriesNumber ImageCount FileSize"),
    "StudyDesc": Key("StudyDesc", "StudyDescription", guide="StudyDescription"),
}
_SERIES_FORMS_V2 = {
    **_SERIES_FORMS,
    **_of_form(Form.DATETIME, "SeriesDate StudyDate TimeStamp DateReleased"),
    **_of_form(Form.BOOLEAN, "AnnotationsFlag"),
}
_SERIES_1_TO_15 = (
    "SeriesInstanceUID StudyInstanceUID Modality ProtocolName SeriesDate SeriesDescription BodyPartExamined "
    "SeriesNumber AnnotationsFlag Collection PatientID Manufacturer ManufacturerModelName SoftwareVersions "
    "ImageCount "
)
SERIES_V2 = Shape(
    "SERIES",
    SERIES,
    _keys(
        _SERIES_1_TO_15 + "TimeStamp LicenseName LicenseURI CollectionURI FileSize DateReleased StudyDesc StudyDate "
        "ThirdPartyAnalysis",
        **_SERIES_FORMS_V2,
    ),
)
SERIES_SHORT = Shape("SERIES_SHORT", SERIES, _keys(_SERIES_1_TO_15 + "DateReleased", **_SERIES_FORMS_V2))
# getContentsByName: the server puts a space into the last key, the guide does not.
SERIES_CART = Shape(
    "SERIES_CART",
    SERIES,
    (
        *SERIES_SHORT.keys[:-1],
        Key("Date Released", "DateReleased", Form.DATETIME, guide="DateReleased"),
    ),
)
SERIES_SIZE = Shape(
    "SERIES_SIZE",
    None,
    (Key("TotalSizeInBytes", "FileSize", Form.NUMBER), Key("ObjectCount", "ImageCount", Form.NUMBER)),
)
SOP_INSTANCE_UIDS = Shape("SOP_INSTANCE_UIDS", None, _keys("SOPInstanceUID"))

# Every value is a string. "File Location" holds the Study ID; descriptions are sanitized.
META27 = Shape(
    "META27",
    SERIES_METADATA,
    (
        Key("Series UID", "SeriesInstanceUID"),
        Key("Collection", "Collection"),
        Key("3rd Party Analysis", "ThirdPartyAnalysis"),
        Key("Data Description URI", "CollectionURI"),
        Key("Subject ID", "PatientID"),
        Key("Study UID", "StudyInstanceUID"),
        Key("Study Description", "StudyDescription"),
        Key("Study Date", "StudyDate", Form.US_DAY),
        Key("Series Description", "SeriesDescription"),
        Key("Manufacturer", "Manufacturer"),
        Key("Modality", "Modality"),
        Key("SOP Class UID", "SOPClassUID"),
        Key("Number of Images", "ImageCount", Form.NUMBER_TEXT),
        Key("File Size", "FileSize", Form.NUMBER_TEXT),
        Key("File Location", "StudyID"),
        Key("Series Number", "SeriesNumber", Form.DECIMAL_TEXT),
        Key("License Name", "LicenseName"),
        Key("License URL", "LicenseURI"),
        Key("Annotation Size", "AnnotationSize", Form.NUMBER_TEXT),
        Key("Date Released", "DateReleased", Form.JAVA),
        Key("Series Date", "SeriesDate", Form.JAVA, guide="SeriesDate"),
        Key("Protocol Name", "ProtocolName", guide="ProtocolName"),
        Key("Body Part Examined", "BodyPartExamined", guide="BodyPartExamined"),
        Key("Annotations Flag", "AnnotationsFlag", Form.FLAG_TEXT, guide="AnnotationsFlag"),
        Key("Manufacturer Model Name", "ManufacturerModelName", guide="ManufacturerModelName"),
        Key("Software Versions", "SoftwareVersions", guide="SoftwareVersions"),
        Key("TimeStamp", "TimeStamp", Form.JAVA),
    ),
)
# CSV. Its TimeStamp is the release date with time text, not the submission time: no column takes it.
METADATA2 = Shape(
    "METADATA2",
    SERIES_METADATA,
    (
        Key("Subject ID", "PatientID"),
        Key("Study UID", "StudyInstanceUID"),
        Key("Study Description", "StudyDescription"),
        Key("Study Date", "StudyDate", Form.ISO_DAY),
        Key("Series ID", "SeriesInstanceUID"),
        Key("Series Description", "SeriesDescription"),
        Key("Number of images", "ImageCount", Form.NUMBER_TEXT),
        Key("File Size (Bytes)", "FileSize", Form.NUMBER_TEXT),
        Key("Collection Name", "Collection"),
        Key("Modality", "Modality"),
        Key("Manufacturer", "Manufacturer"),
        Key("3rd Party Analysis", "ThirdPartyAnalysis"),
        Key("Data Description URI", "CollectionURI"),
        Key("Series Number", "SeriesNumber", Form.NUMBER_TEXT),
        Key("License Name", "LicenseName"),
        Key("License URL", "LicenseURI"),
        Key("Date Released", "DateReleased", Form.ISO_DAY),
        Key("Series Date", "SeriesDate", Form.ISO_DAY),
        Key("Protocol Name", "ProtocolName"),
        Key("Body Part Examined", "BodyPartExamined"),
        Key("Annotations Flag", "AnnotationsFlag", Form.FLAG_TEXT),
        Key("Manufacturer Model Name", "ManufacturerModelName"),
        Key("Software Versions", "SoftwareVersions"),
        Key("TimeStamp", None, Form.DATETIME, source="DateReleased"),
    ),
)

# The state of a series of any visibility. Only what distinguishes a hidden series from a deleted one is read.
_STATE = {"SeriesInstanceUID", "Collection", "Visibility"}
_VISIBILITY = Key("Visibility", "Visibility", source="VisibilityText")


def _state_only(keys: Iterable[Key]) -> tuple[Key, ...]:
    return tuple(k if k.column in _STATE else replace(k, column=None, source=k.source or k.column) for k in keys)


QC_V2 = Shape(
    "QC",
    None,
    _state_only(
        (
            Key("SeriesInstanceUID", "SeriesInstanceUID"),
            _VISIBILITY,
            Key("ReleaseStatus", "ReleasedStatus"),
            Key("ReleaseDate", "DateReleased", Form.DATETIME),
            Key("ImageCount", "ImageCount", Form.NUMBER),
            Key("Doi", "CollectionURI"),
            Key("LicenseName", "LicenseName"),
            Key("Site", "Site"),
            Key("Project", "Collection"),
            *_keys("PatientID Modality StudyDescription SeriesDescription"),
        )
    ),
)
DENIED = Shape("DENIED", None, _keys("SeriesInstanceUID"))

COUNTS = Shape("COUNTS", None, (Key("criteria", "criteria"), Key("count", "count", Form.NUMBER_TEXT)))


def counts_v4(name: str) -> Shape:
    """Return the counts of v4, which writes the value that is counted under a name of its own."""
    keys = (Key(name, "criteria"), Key("Count", "count", Form.NUMBER), _AUTHORIZED)
    return Shape(f"COUNTS4_{name}", None, keys)


DESCRIPTIONS = Shape(
    "DESCRIPTIONS",
    COLLECTIONS,
    (
        Key("description", "Description"),
        Key("id", None, Form.NUMBER),
        Key("collectionDescTimestamp", "DescriptionTimestamp", Form.EPOCH_MS),
        Key("collectionName", "Collection"),
        Key("userName", None),
        Key("licenseId", None, Form.NUMBER),
        Key("descriptionURI", "DescriptionURI"),
    ),
)

# The lake has no table for these: a license, a DICOM attribute, what a DOI refers to.
LICENSES = Shape(
    "LICENSES",
    None,
    (
        Key("longName", "LicenseName"),
        Key("id", "LicenseID", Form.NUMBER),
        Key("shortName", "LicenseShortName"),
        Key("licenseURL", "LicenseURI"),
        Key("licenseText", "LicenseText"),
        Key("commercialUse", "CommercialUse"),
    ),
)
DICOM_TAGS = Shape("DICOM_TAGS", None, (Key("element", "Tag"), Key("name", "Name"), Key("data", "Value")))
# The server misspells its third key; older ones wrote nulls where today's leave keys out.
DOI_CONTENTS = Shape(
    "DOI_CONTENTS",
    None,
    (
        Key("collection", "Collection"),
        Key("seriesInstanceUID", "SeriesInstanceUID"),
        Key("thirdPartyAnanlysis", "ThirdPartyAnalysis", guide="thirdPartyAnalysis"),
        Key("authorized", None, Form.NUMBER, source="Authorized"),
    ),
)

# --- v4: dates as MM-dd-yyyy without a time, no birth date, one more column on every row
PATIENT_V4 = Shape(
    "PATIENT4",
    PATIENTS,
    (*(k for k in PATIENT.keys if k.name != "PatientBirthDate"), _AUTHORIZED),
)
PATIENT_ID_V4 = Shape("PATIENT_ID4", None, (_PATIENT_ID, _AUTHORIZED))
STUDY_V4 = Shape(
    "STUDY4",
    STUDIES,
    (
        *(
            replace(k, form=Form.US_DAY) if k.name == "StudyDate" else k
            for k in STUDY.keys
            if k.name != "PatientBirthDate"
        ),
        _AUTHORIZED,
    ),
)
_V4_RENAMES = {
    # Builds of August to October 2025 call it TimeStamp.
    "MaxSubmissionTimestamp": Key("MaxSubmissionTimestamp", "TimeStamp", Form.US_DAY, former="TimeStamp"),
    "DataDescriptionURI": Key("DataDescriptionURI", "CollectionURI"),
    "AdmittingDiagnosisDescription": Key("AdmittingDiagnosisDescription", "AdmittingDiagnosesDescription"),
    **_of_form(Form.US_DAY, "DateReleased SeriesDate StudyDate"),
    **_of_form(Form.FLAG_TEXT, "AnnotationsFlag"),
}
SERIES_V4 = Shape(
    "SERIES4",
    SERIES,
    (
        *_keys(
            "SeriesInstanceUID StudyInstanceUID Modality ProtocolName SeriesDate SeriesDescription "
            "BodyPartExamined SeriesNumber AnnotationsFlag Collection Site PatientID PatientSex PatientAge "
            "AdmittingDiagnosisDescription Manufacturer ManufacturerModelName SoftwareVersions ImageCount "
            "MaxSubmissionTimestamp LicenseName LicenseURI DataDescriptionURI FileSize ReleasedStatus "
            "DateReleased StudyDesc StudyDate ThirdPartyAnalysis",
            **{**_SERIES_FORMS, **_V4_RENAMES},
        ),
        _AUTHORIZED,
    ),
)
_SPACINGS = {"PixelSpacing(mm)-Row": "PixelSpacing", "SliceThickness(mm)": "SliceThickness"}
METADATA_V4 = Shape(
    "META4",
    SERIES_METADATA,
    (
        *_keys(
            "PatientID PatientName PatientSex EthnicGroup Phantom SpeciesCode SpeciesDescription "
            "StudyInstanceUID StudyDate StudyDesc AdmittingDiagnosisDescription StudyID PatientAge "
            "LongitudinalTemporalEventType LongitudinalTemporalOffsetFromEvent SeriesInstanceUID Collection "
            "Site Modality ProtocolName SeriesDate SeriesDescription BodyPartExamined SeriesNumber "
            "AnnotationsFlag Manufacturer ManufacturerModelName PixelSpacing(mm)-Row SliceThickness(mm) "
            "SoftwareVersions ImageCount MaxSubmissionTimestamp LicenseName LicenseURI DataDescriptionURI "
            "FileSize ReleasedStatus DateReleased ThirdPartyAnalysis",
            SERIES_METADATA,
            **{
                **_SERIES_FORMS,
                **_V4_RENAMES,
                **_of_form(Form.DECIMAL_TEXT, "SeriesNumber LongitudinalTemporalOffsetFromEvent"),
                **{name: Key(name, column, source=name) for name, column in _SPACINGS.items()},
            },
        ),
        Key("Authorized", None),
    ),
)
_BEFORE_VISIBILITY = [key.name for key in METADATA_V4.keys].index("ReleasedStatus")
QC_V4 = Shape(
    "QC4",
    None,
    _state_only(
        (*METADATA_V4.keys[:_BEFORE_VISIBILITY], _VISIBILITY, *METADATA_V4.keys[_BEFORE_VISIBILITY:]),
    ),
)
