"""A file of the lake whose content is not what was written is an error that names it, whoever reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nbia_pipeline.changes.feed import record_changes
from nbia_pipeline.changes.present import collection_listing
from nbia_pipeline.lake import DamagedFile, Lake, LakeError
from nbia_pipeline.lake.damage import damage_of
from nbia_pipeline.lake.layout import JOURNAL, table_path
from nbia_pipeline.lake.lock import this_process
from nbia_pipeline.lake.parquet import with_properties
from nbia_pipeline.mirror import journal
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.mirror.unpack import VerifiedInstance
from nbia_pipeline.schema.status import ABSENT_AT, API, CHANGES, KEPT, LISTED_AT, QUARANTINED, SERVED
from nbia_pipeline.schema.tables import COLLECTIONS, IMAGE_SERIES, SERIES

UID = "SeriesInstanceUID"
WANTED = WantedSeries("1.2", "1", "P", "C", 1, 5, datetime(2026, 1, 1), None)  # noqa: DTZ001 - the tables state none
RECEIPT = Receipt(WANTED, QUARANTINED, 1, [VerifiedInstance("1.2.1", None, 1, 5, "00")], reason="x")
ENTRY = f"{JOURNAL}/C/1.2.json"

Rows = Callable[[pa.Table], pa.Table]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_file_of_another_table_is_damage(rows: int, lake: Lake) -> None:
    table = pa.Table.from_pylist([{UID: "1.2", "Collection": "C"}] * rows, schema=SERIES.schema)
    lake.write_table(SERIES, table, "C", properties={API: "v9"})
    lake.put_bytes(table_path(IMAGE_SERIES.name, "C"), lake.read_bytes(table_path(SERIES.name, "C")) or b"")
    assert damage_of(lake, SERIES, "C") is None
    readers: list[Callable[[], Any]] = [
        lambda: lake.read_table(IMAGE_SERIES, "C"),
        lambda: lake.read_table(IMAGE_SERIES, "C", columns=[UID]),
        lambda: lake.read_properties(IMAGE_SERIES, "C"),
    ]
    if rows:
        readers.append(lambda: list(lake.read_pieces(IMAGE_SERIES, "C")))
        readers.append(lambda: lake.read_rows(IMAGE_SERIES, "C", UID, {"1.2"}, [UID]))
    for read in readers:
        with pytest.raises(DamagedFile, match="it is a file of table series"):
            read()


# --- the journal


def edited(*path: str | int, value: Any = None) -> bytes:
    """The entry of the receipt with another value somewhere, or without one."""
    entry = {"receipt": RECEIPT.to_json(), "staged": None}
    at: Any = entry
    for step in path[:-1]:
        at = at[step]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(entry).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        edited("staged", value=7)[:40],
        b"\0" * 100,
        b"\xff{}",
        b"[" * 100_000,
        b"0",
        b"[1]",
        edited("receipt"),
        edited("staged"),
        edited("staged", value=7),
        edited("staged", value="../../home"),
        edited("staged", value="/etc"),
        edited("receipt", "wanted"),
        edited("receipt", "unknown", value=1),
        edited("receipt", "status", value=7),
        edited("receipt", "attempts", value="many"),
        edited("receipt", "fetched_at", value="yesterday"),
        edited("receipt", "fetched_at", value="2026-02-30T00:00:00"),
        edited("receipt", "wanted", "SeriesInstanceUID", value=5),
        edited("receipt", "wanted", "ImageCount", value="5"),
        edited("receipt", "wanted", "FileSize", value=10**30),
        edited("receipt", "wanted", "TimeStamp", value="x"),
        edited("receipt", "instances", value="x"),
        edited("receipt", "instances", 0, value={"a": 1}),
        edited("receipt", "instances", 0, "Size", value="5"),
        edited("receipt", "instances", 0, "MD5"),
    ],
    ids=lambda content: content[:12].decode("ascii", "replace"),
)
def test_a_damaged_entry_is_no_entry_and_the_commit_removes_it(
    content: bytes, caplog: pytest.LogCaptureFixture, lake: Lake
) -> None:
    lake.put_bytes(ENTRY, content)
    assert list(journal.read_slices(lake, "C")) == [[]]
    assert lake.read_bytes(ENTRY) == content and not caplog.records, "a reader changes nothing"
    commit(lake, "C")
    assert lake.read_bytes(ENTRY) is None
    assert f"{lake.uri}/{ENTRY} is damaged" in caplog.text and "its series is fetched again" in caplog.text


def test_an_entry_comes_back_as_it_was_written(lake: Lake) -> None:
    journal.record_failure(lake, RECEIPT)
    [[entry]] = journal.read_slices(lake, "C")
    assert entry == journal.Entry(ENTRY, RECEIPT, None)
    lake.put_bytes(ENTRY, edited("staged", value="host.1.ab/1.2"))
    assert [e.staged for e in journal.read_entries(lake, "C", ["1.2"])] == ["host.1.ab/1.2"]


@pytest.mark.disk("working directories that are in the lake")
def test_a_damaged_entry_needs_no_staged_directory(lake: Lake) -> None:
    lake.put_bytes(ENTRY, b"")
    dead = f".staging/{this_process().rsplit('.', 1)[0]}.999999999.ab"
    lake.put_bytes(dead, b"x")
    assert journal.sweep(lake) == 1 and lake.read_bytes(dead) is None


# --- properties of tables


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (LISTED_AT, text)
            for text in ("", "yesterday", "2026-13-01", "2026-01-01T00:00:00+02:00", "2026-01-01T25:00")
        ),
        *((ABSENT_AT, text) for text in ("x", "2026-01-01T00:00:00+00:00")),
        *((CHANGES, text) for text in ("", "many", "-1", "1.5", "9" * 5000)),
        *((KEPT, text) for text in ("", "x", "{}", "null", "[1]", '"a"', "[" * 100_000)),
    ],
    ids=lambda text: text[:20],
)
def test_a_property_that_does_not_state_what_it_should_names_its_file(name: str, value: str, lake: Lake) -> None:
    put(lake, lambda rows: rows.replace_schema_metadata(with_properties(rows.schema, {name: value}).metadata))
    with pytest.raises(
        LakeError,
        match=r"read tables/series/Collection=C/part-0.parquet .*its property .*is damaged: `nbia-pipeline run` rebuil",
    ):
        lake.read_properties(SERIES, "C")
    with pytest.raises(LakeError, match=f"its property {name} is"):
        record_changes(lake, "C")


def test_a_property_that_is_no_text_names_its_file(lake: Lake) -> None:
    rows = COLLECTIONS.schema.empty_table()
    lake.put_bytes(table_path(COLLECTIONS.name), parquet(rows.replace_schema_metadata({b"nbia_fact:kept": b"\xff"})))
    with pytest.raises(LakeError, match="its property kept is"):
        lake.read_properties(COLLECTIONS)


def test_other_properties_are_any_text(lake: Lake) -> None:
    stated = {API: "v9", SERVED: "", "other": "ä", CHANGES: "12", LISTED_AT: "2026-01-01T10:00:00.5", KEPT: '["*"]'}
    lake.write_table(COLLECTIONS, COLLECTIONS.schema.empty_table(), properties=stated)
    assert lake.read_properties(COLLECTIONS) == stated
    assert collection_listing(lake).kept == ["*"]


# --- rows of tables


def series() -> pa.Table:
    rows = [{UID: f"1.{n}", "StudyInstanceUID": "1", "PatientID": "P"} for n in range(3)]
    return pa.Table.from_pylist(rows, schema=SERIES.schema).drop_columns(["Collection"])


def replaced(name: str, values: pa.Array) -> Rows:
    return lambda rows: rows.set_column(rows.schema.get_field_index(name), name, values)


def parquet(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def put(lake: Lake, damage: Rows) -> None:
    lake.put_bytes(table_path(SERIES.name, "C"), parquet(damage(series())))


DAMAGES: dict[str, Rows] = {
    "no key": lambda rows: rows.drop_columns([UID]),
    "key of no row": replaced(UID, pa.nulls(3, pa.string())),
    "key of lists": replaced(UID, pa.array([["1"]] * 3)),
    "key twice": lambda rows: rows.append_column(UID, rows[UID]),
    "key of bytes": replaced(UID, pa.array([b"\xff"] * 3)),
    "key that is not UTF-8": replaced(UID, pa.array([b"\xff"] * 3).view(pa.string())),
    "numbers that are none": replaced("ImageCount", pa.array(["many"] * 3)),
    "times that are none": replaced("TimeStamp", pa.array(["yesterday"] * 3)),
    "another column that is not UTF-8": replaced("PatientID", pa.array([b"\xff"] * 3).view(pa.string())),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_table_with_damaged_columns_names_its_file(damage: Rows, lake: Lake) -> None:
    put(lake, damage)
    reads: list[Callable[[], object]] = [
        lambda: lake.read_table(SERIES, "C"),
        lambda: list(lake.read_pieces(SERIES, "C")),
        lambda: lake.read_rows(SERIES, "C", UID, {"1.1", "\ufffd"}, [UID, "PatientID", "ImageCount", "TimeStamp"]),
    ]
    for read in reads:
        with pytest.raises(
            DamagedFile, match=r"^cannot read tables/series/Collection=C/part-0.parquet .*: the file is dam"
        ):
            read()


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "end without a beginning": lambda content: content[-12:],
    "broken footer": lambda content: content[:-400] + bytes(392) + content[-8:],
    "broken pages": lambda content: content[:4] + bytes(len(content) // 3) + content[4 + len(content) // 3 :],
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_table_that_is_cut_names_its_file(cut: Callable[[bytes], bytes], lake: Lake) -> None:
    lake.put_bytes(table_path(SERIES.name, "C"), cut(parquet(series())))
    for read in (lambda: lake.read_table(SERIES, "C"), lambda: list(lake.read_pieces(SERIES, "C"))):
        with pytest.raises(
            DamagedFile, match=r"tables/series/Collection=C/part-0.parquet .*: the file is damaged"
        ) as raised:
            read()
        assert "\n" not in str(raised.value)
