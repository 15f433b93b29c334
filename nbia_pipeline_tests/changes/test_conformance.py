"""What the archive sends that fits no table: a cell or a row is lost, and said to be; a lost column is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import duckdb
import pytest

from nbia_pipeline.archive import BadAnswer, NbiaClient
from nbia_pipeline.changes.listing import write_listing
from nbia_pipeline.changes.metadata import metadata_of
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.schema.tables import CONFORMANCE, PATIENTS, SERIES, SERIES_CHANGES, SERIES_METADATA, STUDIES
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import changed, edited
from nbia_pipeline_tests.helpers.places import Place

BREAST = "QIN_Breast.v2"
Rows = list[dict[str, Any]]


@pytest.fixture
def mirror(client: NbiaClient, place: Place) -> Mirror:
    return Mirror(client, Lake(str(place / "lake")))


def found(lake: Lake) -> list[tuple[Any, ...]]:
    """Return table ``conformance`` as DuckDB reads it."""
    pattern = f"{lake.uri}/tables/conformance/**/*.parquet"
    columns = "Collection, TableName, RowKey, ColumnName, SentValue, Why"
    source = f"read_parquet('{pattern}', hive_partitioning = true)"
    return duckdb.execute(f"SELECT {columns} FROM {source} ORDER BY ALL").fetchall()


@pytest.mark.parametrize(
    ("endpoint", "table", "key", "column", "value", "why"),
    [
        ("getSeries", SERIES, "SeriesDate", "SeriesDate", "0000-00-00 00:00:00.0", "not a day or time that exists"),
        ("getSeries", SERIES, "ImageCount", "ImageCount", 12.5, "not a whole number"),
        ("getSeries", SERIES, "FileSize", "FileSize", 2**64, "not a number of 64 bits"),
        ("getSeries", SERIES, "AnnotationsFlag", "AnnotationsFlag", "Y", "not a flag"),
        ("getSeries", SERIES, "StudyDesc", "StudyDescription", ["a", "b"], "not a text"),
        ("getSeries", SERIES, "PatientID", "PatientID", "\ud800", "not UTF-8"),
        ("getPatient", PATIENTS, "Phantom", "Phantom", True, "not a text"),
        ("getPatientStudy", STUDIES, "SeriesCount", "SeriesCount", "many", "not a number"),
    ],
)
def test_one_odd_value_costs_its_cell_and_is_listed(
    archive: TestArchive, mirror: Mirror, endpoint: str, table: Any, key: str, column: str, value: Any, why: str
) -> None:
    def edit(rows: Rows) -> None:
        rows[0][key] = value

    archive.faults.inject(endpoint, edited(edit))
    mirror.update_tables(BREAST)
    rows = mirror.lake.read_table(table, BREAST)
    assert rows[column].null_count == 1 + (rows.num_rows - 1 if key == "AnnotationsFlag" else 0)
    ((collection, name, of, where, sent, said),) = found(mirror.lake)
    assert (collection, name, where, said.split(";")[0]) == (BREAST, table.name, column, why)
    assert sent == {"\ud800": "\\ud800"}.get(str(value), value if isinstance(value, str) else json.dumps(value))
    odd = rows.filter(rows[column].is_null()).to_pylist()
    assert of in [" ".join(row[part] for part in table.key) for row in odd]


def test_what_fits_again_is_no_longer_listed(archive: TestArchive, mirror: Mirror) -> None:
    archive.faults.inject("getSeries", edited(lambda rows: rows[0].update(SeriesDate="x")))
    archive.faults.inject("getPatient", edited(lambda rows: rows[0].update(Phantom=True)))
    mirror.update_tables(BREAST)
    assert [(row[1], row[3]) for row in found(mirror.lake)] == [("patients", "Phantom"), ("series", "SeriesDate")]
    archive.faults.inject("getPatient", edited(lambda rows: rows[0].update(Phantom=True)))
    mirror.update_tables(BREAST)
    assert [(row[1], row[3]) for row in found(mirror.lake)] == [("patients", "Phantom")]
    mirror.update_tables(BREAST)
    assert mirror.lake.count_rows(CONFORMANCE, BREAST) == 0


def test_what_was_not_asked_for_again_keeps_its_findings(
    archive: TestArchive, mirror: Mirror, client: NbiaClient
) -> None:
    def write() -> int:
        fetched, _ = write_listing(
            mirror.lake, SERIES_METADATA, "v2", lambda: metadata_of(client, mirror.lake, BREAST, calls="bulk"), BREAST
        )
        return int(fetched.figures["asked"])

    mirror.update_tables(BREAST)
    archive.faults.inject("getSeriesMetadata2", changed(lambda body: body.replace(b'"Modality"', b'"Modus"')))
    assert write() == 5
    listed = found(mirror.lake)
    assert [(row[1], row[3]) for row in listed] == [("series_metadata", "Modus")]
    assert write() == 0
    assert found(mirror.lake) == listed


@pytest.mark.parametrize("lost", ["SeriesInstanceUID", "Collection"])
def test_a_row_without_its_key_is_left_out_and_listed(archive: TestArchive, mirror: Mirror, lost: str) -> None:
    archive.faults.inject("getSeries", edited(lambda rows: rows[1].pop(lost)))
    mirror.update_tables(BREAST)
    assert mirror.lake.count_rows(SERIES, BREAST) == 4
    ((_, name, _, column, _, why),) = found(mirror.lake)
    assert (name, column) == ("series", lost)
    assert "left out" in why


def test_equal_rows_count_once_and_different_ones_of_a_uid_are_listed(archive: TestArchive, mirror: Mirror) -> None:
    def edit(rows: Rows) -> None:
        rows += [dict(rows[0]), {**rows[1], "Modality": "XX"}, dict(rows[1])]

    archive.faults.inject("getSeries", edited(edit))
    mirror.update_tables(BREAST)
    rows = mirror.lake.read_table(SERIES, BREAST).to_pylist()
    assert len({row["SeriesInstanceUID"] for row in rows}) == len(rows) == 5
    assert "XX" not in {row["Modality"] for row in rows}
    ((_, name, _, column, sent, why),) = found(mirror.lake)
    assert (name, column, sent) == ("series", "Modality", "XX")
    assert why.startswith("another row of the same SeriesInstanceUID has ")


# --- answers that change their shape


def renamed(old: str, new: str) -> Callable[[Rows], None]:
    def edit(rows: Rows) -> None:
        for row in rows:
            if old in row:
                row[new] = row.pop(old)

    return edit


def without(key: str) -> Callable[[Rows], None]:
    def edit(rows: Rows) -> None:
        for row in rows:
            row.pop(key, None)

    return edit


@pytest.mark.parametrize(
    ("endpoint", "table", "old", "new"),
    [
        ("getSeries", SERIES, "FileSize", "TotalSize"),
        ("getSeries", SERIES, "DateReleased", "ReleaseDate"),
        ("getSeries", SERIES, "PatientID", "Subject"),
        ("getPatientStudy", STUDIES, "StudyDate", "DateOfStudy"),
        ("getPatient", PATIENTS, "PatientSex", "Gender"),
    ],
)
def test_a_renamed_key_is_refused_and_both_names_are_said(
    archive: TestArchive, mirror: Mirror, endpoint: str, table: Any, old: str, new: str
) -> None:
    mirror.update_tables(BREAST)
    before = mirror.lake.read_table(table, BREAST)
    archive.faults.inject(endpoint, edited(renamed(old, new)), times=2)
    with pytest.raises(BadAnswer, match=rf"has {old} any longer, and has {new} instead, which no column takes"):
        mirror.update_tables(BREAST)
    assert mirror.lake.read_table(table, BREAST).equals(before)
    ((_, name, _, column, _, why),) = found(mirror.lake)
    assert (name, column) == (table.name, new)
    assert old in why
    mirror.update_tables(BREAST, allow_lost_columns=True)
    after = mirror.lake.read_table(table, BREAST)
    assert after.column(old).null_count == after.num_rows


@pytest.mark.parametrize("key", ["FileSize", "Modality", "TimeStamp", "LicenseName"])
def test_a_column_that_was_full_and_is_empty_is_refused(archive: TestArchive, mirror: Mirror, key: str) -> None:
    mirror.update_tables(BREAST)
    feed = mirror.lake.read_table(SERIES_CHANGES, BREAST)
    archive.faults.inject("getSeries", edited(without(key)))
    with pytest.raises(BadAnswer, match=rf"none of the 5 rows of series of '{BREAST}' .* has {key} any longer:"):
        mirror.update_tables(BREAST)
    mirror.update_tables(BREAST)
    assert mirror.lake.read_table(SERIES_CHANGES, BREAST).equals(feed), "no revisions to null and back"


@pytest.mark.parametrize(
    ("endpoint", "key", "value", "text"),
    [
        ("getSeries", "Modality", "", "has Modality any longer:"),
        ("getPatient", "PatientSex", "", "has PatientSex any longer:"),
        ("getSeries", "SeriesDate", "08.11.2011", "what it sends for SeriesDate does not fit, see table conformance"),
        ("getSeries", "ImageCount", "many", "what it sends for ImageCount does not fit, see table conformance"),
    ],
)
def test_a_column_of_empty_texts_or_of_odd_values_only_is_refused(
    archive: TestArchive, mirror: Mirror, endpoint: str, key: str, value: str, text: str
) -> None:
    mirror.update_tables(BREAST)
    feed = mirror.lake.read_table(SERIES_CHANGES, BREAST)
    archive.faults.inject(endpoint, edited(lambda rows: [row.update({key: value}) for row in rows]), times=1)
    with pytest.raises(BadAnswer, match=text):
        mirror.update_tables(BREAST)
    assert mirror.lake.read_table(SERIES_CHANGES, BREAST).equals(feed)


def test_a_column_that_was_always_empty_is_not_lost(archive: TestArchive, mirror: Mirror) -> None:
    blank = edited(lambda rows: [row.update(ProtocolName="", PatientName="") for row in rows])
    for _ in range(2):
        archive.faults.inject("getSeries", blank)
        archive.faults.inject("getPatient", blank)
        mirror.update_tables(BREAST)
    assert set(mirror.lake.read_table(SERIES, BREAST)["ProtocolName"].to_pylist()) == {""}


@pytest.mark.parametrize(("key", "value"), [("SeriesDate", "0000-00-00"), ("FileSize", "NaN"), ("TimeStamp", "soon")])
def test_the_odd_value_of_a_collection_of_one_series_is_no_lost_column(
    archive: TestArchive, mirror: Mirror, key: str, value: str
) -> None:
    def only(**more: str) -> Any:
        return edited(lambda rows: rows.__setitem__(slice(None), [{**rows[0], **more}]))

    archive.faults.inject("getSeries", only())
    mirror.update_tables(BREAST)
    archive.faults.inject("getSeries", only(**{key: value}))
    mirror.update_tables(BREAST)
    assert mirror.lake.read_table(SERIES, BREAST)[key].to_pylist() == [None]
    assert [(row[3], row[4]) for row in found(mirror.lake)] == [(key, value)]


@pytest.mark.parametrize(("old", "new"), [("SeriesInstanceUID", "SeriesUID"), ("Collection", "Project")])
def test_a_renamed_key_of_the_rows_is_refused_and_listed(
    archive: TestArchive, mirror: Mirror, old: str, new: str
) -> None:
    mirror.update_tables(BREAST)
    archive.faults.inject("getSeries", edited(renamed(old, new)))
    with pytest.raises(BadAnswer):
        mirror.update_tables(BREAST)
    assert mirror.lake.count_rows(SERIES, BREAST) == 5
    assert any(row[3] == new and old in row[5] for row in found(mirror.lake))
    mirror.update_tables(BREAST)
    assert found(mirror.lake) == []


def test_a_new_key_and_a_value_that_goes_are_no_lost_column(archive: TestArchive, mirror: Mirror) -> None:
    def edit(rows: Rows) -> None:
        for row in rows:
            row["Colour"] = "blue"

    archive.faults.inject("getSeries", edited(lambda rows: rows[0].update(ThirdPartyAnalysis="YES")))
    mirror.update_tables(BREAST)
    mirror.update_tables(BREAST)  # one of five rows had a value, now none has
    archive.faults.inject("getSeries", edited(edit))
    mirror.update_tables(BREAST)
    assert [(row[3], row[4]) for row in found(mirror.lake)] == [("Colour", "blue")]


def test_another_dialect_may_lack_columns(archive: TestArchive, mirror: Mirror, client: NbiaClient) -> None:
    with archive.client(api="v4") as v4:
        Mirror(v4, mirror.lake).update_tables(BREAST)
    assert mirror.lake.read_table(SERIES, BREAST)["Site"].null_count == 0
    mirror.update_tables(BREAST)
    rows = mirror.lake.read_table(SERIES, BREAST)
    assert rows["Site"].null_count == rows.num_rows
