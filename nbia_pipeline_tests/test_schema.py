from __future__ import annotations

import pyarrow as pa
import pytest

from nbia_pipeline.archive.endpoints import DIALECTS
from nbia_pipeline.schema import TABLES, Form, Shape, Table, headers, normalize, shapes, tables

SHAPES = [s for s in vars(shapes).values() if isinstance(s, Shape)]
ENDPOINT_SHAPES = {e.shape.name: e.shape for d in DIALECTS.values() for e in d.endpoints.values() if e.shape}
ALL = list({**{s.name: s for s in SHAPES}, **ENDPOINT_SHAPES}.values())
named = pytest.mark.parametrize("shape", ALL, ids=lambda s: s.name)
TIME = pa.timestamp("us")


@named
def test_every_column_of_a_shape_is_in_its_table(shape: Shape) -> None:
    columns = {k.column for k in shape.keys if k.column is not None}
    assert columns <= set(shape.schema.names)


@named
def test_no_two_keys_of_a_shape_are_told_apart_by_blanks_or_case_only(shape: Shape) -> None:
    spellings = [normalize(k.name) for k in shape.keys]
    assert len(spellings) == len(set(spellings))


@named
def test_no_two_keys_of_a_shape_fill_the_same_column(shape: Shape) -> None:
    columns = [k.column for k in shape.keys if k.column is not None]
    assert len(columns) == len(set(columns))


@named
def test_the_spellings_of_guide_and_server_fill_the_same_column(shape: Shape) -> None:
    known = shape.columns_by_wire_name
    for key in shape.keys:
        assert known[normalize(key.name)] == key.column
        assert known[normalize(key.guide or key.name)] == key.column


@named
def test_a_shape_holds_the_key_of_its_table(shape: Shape) -> None:
    if shape.table is not None:
        assert set(shape.table.key) <= {k.column for k in shape.keys}


@named
def test_a_form_can_be_read_into_the_type_of_its_column(shape: Shape) -> None:
    fits = {
        Form.TEXT: {pa.string()},
        Form.NUMBER: {pa.int64(), pa.float64()},
        Form.NUMBER_TEXT: {pa.int64()},
        Form.DECIMAL_TEXT: {pa.int64(), pa.float64()},
        Form.BOOLEAN: {pa.bool_()},
        Form.FLAG_TEXT: {pa.bool_()},
        Form.DATETIME: {pa.date32(), TIME},
        Form.ISO_DAY: {pa.date32(), TIME},
        Form.US_DAY: {pa.date32(), TIME},
        Form.JAVA: {pa.date32(), TIME},
        Form.EPOCH_MS: {TIME},
    }
    schema = shape.schema
    for key in shape.keys:
        if key.column is not None:
            assert schema.field(key.column).type in fits[key.form], key


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        (shapes.PATIENT, 9),
        (shapes.STUDY, 15),
        (shapes.SERIES_V2, 24),
        (shapes.SERIES_SHORT, 16),
        (shapes.SERIES_CART, 16),
        (shapes.META27, 27),
        (shapes.METADATA2, 24),
        (shapes.PATIENT_V4, 9),
        (shapes.STUDY_V4, 15),
        (shapes.SERIES_V4, 30),
        (shapes.METADATA_V4, 40),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_a_shape_has_as_many_keys_as_the_server_sends(shape: Shape, count: int) -> None:
    assert len(shape.keys) == count


@pytest.mark.parametrize(
    ("shape", "column", "spellings"),
    [
        (shapes.PATIENT, "PatientID", ["PatientId", "PatientID"]),
        (shapes.PATIENT_V4, "PatientID", ["PatientId", "PatientID"]),
        (shapes.STUDY, "PatientID", ["PatientID"]),
        (shapes.META27, "PatientID", ["Subject ID"]),
        (shapes.METADATA2, "PatientID", ["Subject ID"]),
        (shapes.METADATA_V4, "PatientID", ["PatientID"]),
        (shapes.STUDY, "StudyDescription", ["StudyDescription", "Study Description"]),
        (shapes.SERIES_V2, "StudyDescription", ["StudyDesc", "StudyDescription", "Study Description"]),
        (shapes.SERIES_V4, "StudyDescription", ["StudyDesc", "StudyDescription"]),
        (shapes.META27, "StudyDescription", ["Study Description"]),
        (shapes.STUDY, "AdmittingDiagnosesDescription", ["AdmittingDiagnosesDescription"]),
        (shapes.SERIES_V4, "AdmittingDiagnosesDescription", ["AdmittingDiagnosisDescription"]),
        (shapes.META27, "ThirdPartyAnalysis", ["3rd Party Analysis"]),
        (shapes.META27, "ProtocolName", ["Protocol Name", "ProtocolName"]),
        (shapes.META27, "SeriesDate", ["Series Date", "SeriesDate"]),
        (shapes.META27, "StudyID", ["File Location"]),
        (shapes.SERIES_CART, "DateReleased", ["Date Released", "DateReleased"]),
        (shapes.SERIES_V4, "TimeStamp", ["MaxSubmissionTimestamp"]),
        (shapes.SERIES_V4, "CollectionURI", ["DataDescriptionURI"]),
        (shapes.METADATA2, None, ["TimeStamp"]),
        (
            shapes.STUDY,
            "LongitudinalTemporalOffsetFromEvent",
            ["LongitudinalTemporalOffsetFromEvent", "LongitudinalTemportalOffsetFromEvent"],
        ),
    ],
)
def test_every_known_spelling_fills_the_column(shape: Shape, column: str | None, spellings: list[str]) -> None:
    known = shape.columns_by_wire_name
    for spelling in spellings:
        assert known[normalize(spelling)] == column


# --- the contract


def test_receipts_have_the_columns_of_the_contract() -> None:
    assert dict(zip(TABLES["image_series"].schema.names, TABLES["image_series"].schema.types, strict=True)) == {
        "SeriesInstanceUID": pa.string(),
        "StudyInstanceUID": pa.string(),
        "PatientID": pa.string(),
        "Collection": pa.string(),
        "Status": pa.string(),
        "ImageCount": pa.int64(),
        "Bytes": pa.int64(),
        "SeriesMD5": pa.string(),
        "TimeStamp": TIME,
        "FileSize": pa.int64(),
        "DateReleased": TIME,
        "FetchedAt": TIME,
        "Attempts": pa.int64(),
        "Healed": pa.int64(),
        "Proof": pa.string(),
        "Reason": pa.string(),
        "RefreshFailedAt": TIME,
        "NewerImageCount": pa.int64(),
        "NewerFileSize": pa.int64(),
        "NewerTimeStamp": TIME,
        "NewerDateReleased": TIME,
        "Path": pa.string(),
    }


def test_the_index_of_files_has_the_columns_of_the_contract() -> None:
    schema = TABLES["instances"].schema
    assert {n: schema.field(n).type for n in schema.names if n != "Collection"} == {
        "SOPInstanceUID": pa.string(),
        "SeriesInstanceUID": pa.string(),
        "SOPClassUID": pa.string(),
        "InstanceNumber": pa.int64(),
        "Path": pa.string(),
        "Size": pa.int64(),
        "MD5": pa.string(),
    }


def test_the_tables_of_the_contract_are_there() -> None:
    assert set(TABLES) >= {
        *("collections", "modalities", "body_parts", "manufacturers", "patients", "studies", "series"),
        *("series_metadata", "image_series", "instances"),
    }


def test_partitioned_tables_name_the_collection() -> None:
    for table in TABLES.values():
        assert not table.partitioned or "Collection" in table.schema.names
    assert {t.name for t in TABLES.values() if not t.partitioned} == {
        *("collections", "modalities", "body_parts", "manufacturers"),
    }


DAYS = {"PatientBirthDate", "StudyDate", "SeriesDate"}
TIMES = {
    "TimeStamp",
    "DateReleased",
    "DescriptionTimestamp",
    "FetchedAt",
    "VerifiedAt",
    "SeenAt",
    "ListedAt",
    "MissingSince",
    "RefreshFailedAt",
    "NewerTimeStamp",
    "NewerDateReleased",
}
COUNTS = {
    *("PatientCount", "SeriesCount", "ImageCount", "FileSize", "SeriesNumber", "AnnotationSize", "InstanceNumber"),
    *("Bytes", "Size", "Attempts", "Healed", "Version", "NewerImageCount", "NewerFileSize"),
}


@pytest.mark.parametrize("table", tables.TABLES.values(), ids=lambda t: t.name)
def test_days_times_and_counts_have_their_types_and_everything_else_is_text(table: Table) -> None:
    expected = {
        **dict.fromkeys(DAYS, pa.date32()),
        **dict.fromkeys(TIMES, TIME),
        **dict.fromkeys(COUNTS, pa.int64()),
        "AnnotationsFlag": pa.bool_(),
        "Withdrawn": pa.bool_(),
        "LongitudinalTemporalOffsetFromEvent": pa.float64(),
    }
    for field in table.schema:
        assert field.type == expected.get(field.name, pa.string()), field.name


def test_a_column_means_the_same_in_every_table() -> None:
    seen: dict[str, object] = {}
    for table in tables.TABLES.values():
        for column in table.columns:
            assert seen.setdefault(column.name, column) == column


def test_a_column_of_the_headers_has_one_type_and_is_of_one_element() -> None:
    seen: dict[str, object] = {}
    for table in headers.TABLES.values():
        for column in table.columns:
            this = (column.type, column.tag)
            # Of a reference its frames, of a segment how many.
            assert seen.setdefault(column.name, this) == this or column.name == "Frames"
    known = {column.name: column for table in tables.TABLES.values() for column in table.columns}
    names = {column.name for table in headers.TABLES.values() for column in table.columns if column.name in known}
    assert {name for name in names if known[name].tag and seen[name] != (known[name].type, known[name].tag)} == {
        *("PixelSpacing", "SliceThickness"),  # of a series a text of all values
    }


SERVED_BY = [("patients", "patients"), ("studies", "studies"), ("series", "series")]


@pytest.mark.parametrize(("table", "call"), [*SERVED_BY, ("series_metadata", "series_metadata_bulk")])
def test_a_table_says_of_each_column_which_dialect_serves_it(table: str, call: str) -> None:
    v2, v4 = ({k.column for k in DIALECTS[api].endpoint(call).rows.keys} for api in ("v2", "v4"))
    singly = {k.column for k in shapes.META27.keys} - v2 if table == "series_metadata" else set()
    expected = {}
    for name in TABLES[table].schema.names:
        by_v2, alone, by_v4 = name in v2, name in singly, name in v4
        expected[name] = {
            (True, False, True): None,
            (True, False, False): "Served by v2 only.",
            (False, False, True): "Served by v4 only.",
            (False, True, False): "Served by v2 only, with one call per series (setting metadata).",
            (False, True, True): "Served by v4, and by v2 with one call per series (setting metadata).",
        }[by_v2, alone, by_v4]
    assert {n: TABLES[table].served.get(n) for n in TABLES[table].schema.names} == expected
    for field in TABLES[table].schema:
        assert field.metadata.get(b"served", b"").decode() == (expected[field.name] or "")


def test_the_state_of_the_feed_says_the_same_of_its_columns_as_series() -> None:
    assert TABLES["series_seen"].served == TABLES["series"].served


def test_the_metadata_of_a_field_tells_meaning_tag_and_unit() -> None:
    schema = TABLES["studies"].schema
    assert schema.field("LongitudinalTemporalOffsetFromEvent").metadata == {
        b"description": b"Days from the event to the study; may be fractional.",
        b"dicom_tag": b"0012,0052",
        b"unit": b"days",
    }
    assert b"dicom_tag" not in schema.field("Collection").metadata
    assert schema.metadata[b"nbia_table"] == b"studies"


# What the guides and TCIA say about curation, by column; they say nothing about those of NOT_CURATED.
CURATION = {
    **dict.fromkeys(
        ("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "PatientID", "PatientName", "PatientBirthDate"),
        "De-identified at submission.",
    ),
    **dict.fromkeys(("StudyDate", "StudyID"), "De-identified at submission."),
    "SeriesDate": "De-identified: all dates are modified.",
    **dict.fromkeys(
        ("StudyDescription", "SeriesDescription", "ProtocolName", "AdmittingDiagnosesDescription"),
        "Inspected, and cleaned of protected health information (PHI).",
    ),
    **dict.fromkeys(("PatientSex", "PatientAge", "EthnicGroup"), "Not changed in curation."),
    **dict.fromkeys(("Manufacturer", "ManufacturerModelName", "SoftwareVersions"), "Not changed in curation."),
    "BodyPartExamined": "Entered per collection in SNOMED terms (guide)",
    "SpeciesCode": "SNOMED code",
    "Collection": "A label that was assigned in curation.",
}
NOT_CURATED = {
    *("Modality", "SeriesNumber", "SOPClassUID", "Phantom", "SpeciesDescription"),
    *("LongitudinalTemporalEventType", "LongitudinalTemporalOffsetFromEvent"),
    # What the archive adds or computes.
    *("AnnotationsFlag", "AnnotationSize", "ImageCount", "FileSize", "SeriesCount", "TimeStamp", "DateReleased"),
    *("LicenseName", "LicenseURI", "CollectionURI", "ThirdPartyAnalysis"),
}
OF_THE_GUIDE = (
    *(shapes.COLLECTION_VALUE, shapes.MODALITY_VALUE, shapes.BODY_PART_VALUE, shapes.MANUFACTURER_VALUE),
    *(shapes.PATIENT, shapes.PATIENT_ID, shapes.STUDY, shapes.SERIES_V2, shapes.SERIES_SHORT, shapes.SERIES_CART),
    *(shapes.META27, shapes.SERIES_SIZE, shapes.SOP_INSTANCE_UIDS),
)


@pytest.mark.parametrize(("column", "statement"), CURATION.items(), ids=lambda x: x if " " not in x else "")
def test_a_column_says_what_curation_did_to_it(column: str, statement: str) -> None:
    described = [t.column(column).description for t in tables.TABLES.values() if column in t.schema.names]
    assert described
    assert all(statement in text for text in described)


@pytest.mark.parametrize("shape", OF_THE_GUIDE, ids=lambda s: s.name)
def test_every_attribute_of_the_guide_is_known_to_be_curated_or_not(shape: Shape) -> None:
    columns = {k.column for k in shape.keys if k.column is not None}
    assert columns <= CURATION.keys() | NOT_CURATED


def test_no_other_column_claims_to_be_curated() -> None:
    columns = {c.name: c.description for t in tables.TABLES.values() for c in t.columns if c.name not in CURATION}
    words = ("De-identified", "cleaned", "SNOMED", "curation")
    assert [name for name, text in columns.items() if any(word in text for word in words)] == []


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda t: t.name)
def test_the_key_of_a_table_is_among_its_columns(table: Table) -> None:
    assert set(table.key) <= set(table.schema.names)
    assert len(set(table.schema.names)) == len(table.columns)


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(KeyError, match="series has no column PatientId"):
        TABLES["series"].column("PatientId")
