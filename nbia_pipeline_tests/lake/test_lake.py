"""The lake replaces a table as a whole, never with nothing, and every reader can read it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from nbia_pipeline.lake import Lake, LakeError, Lock, WouldEmpty, parquet
from nbia_pipeline.lake.layout import FORMAT, FORMAT_FILE, STAGING, table_path
from nbia_pipeline.lake.local_store import LocalStore
from nbia_pipeline.lake.object_store import ObjectStore
from nbia_pipeline.lake.store import Store
from nbia_pipeline.schema.tables import COLLECTIONS, SERIES_METADATA, STUDIES
from nbia_pipeline_tests.helpers.places import WHERE, Place, file_system_of, files_below, lake_in, path_in, relative
from nbia_pipeline_tests.helpers.series import read_files

pytestmark = pytest.mark.stores("seaweedfs", "moto")

NAMES = ["RIDER Lung CT", "Müller/x", "LIDC-IDRI"]


@pytest.fixture(params=WHERE)
def lake(request: pytest.FixtureRequest, place: Place) -> Lake:
    return lake_in(place, request.param)


def studies(collection: str, count: int) -> pa.Table:
    rows = [
        {"StudyInstanceUID": f"1.{n}", "PatientID": f"P{n}", "Collection": collection, "StudyDescription": 'a "b",\nc'}
        for n in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=STUDIES.schema)


def test_a_table_comes_back_as_it_was_written(lake: Lake) -> None:
    for name in NAMES:
        lake.write_table(STUDIES, studies(name, 3), name)
    for name in NAMES:
        assert lake.read_table(STUDIES, name).equals(studies(name, 3))
        assert lake.count_rows(STUDIES, name) == 3
    assert lake.collections_of(STUDIES) == sorted(NAMES)


def test_some_columns_can_be_read(lake: Lake) -> None:
    lake.write_table(STUDIES, studies("A", 2), "A")
    read = lake.read_table(STUDIES, "A", columns=["Collection", "PatientID"])
    assert read.to_pydict() == {"Collection": ["A", "A"], "PatientID": ["P0", "P1"]}


def test_what_was_never_written_has_no_rows(lake: Lake) -> None:
    assert lake.read_table(STUDIES, "A").equals(STUDIES.schema.empty_table())
    assert lake.count_rows(STUDIES, "A") == 0
    assert lake.collections_of(STUDIES) == []


def test_a_table_with_rows_is_never_replaced_by_one_without(lake: Lake) -> None:
    lake.write_table(STUDIES, studies("A", 2), "A")
    with pytest.raises(WouldEmpty, match="left as it was"):
        lake.write_table(STUDIES, STUDIES.schema.empty_table(), "A")
    assert lake.count_rows(STUDIES, "A") == 2


def test_an_unpartitioned_table_keeps_its_collection_column(lake: Lake) -> None:
    data = pa.Table.from_pylist([{"Collection": "A"}], schema=COLLECTIONS.schema)
    lake.write_table(COLLECTIONS, data)
    assert lake.read_table(COLLECTIONS)["Collection"].to_pylist() == ["A"]


def test_every_reader_sees_one_data_set_with_the_original_names(place: Place) -> None:
    lake = Lake(str(place))
    for name in NAMES:
        lake.write_table(STUDIES, studies(name, 2), name)
    folder = place / "tables" / "studies"
    query = f"SELECT DISTINCT Collection FROM read_parquet('{folder}/*/*.parquet', hive_partitioning = true)"
    assert {row[0] for row in duckdb.execute(query).fetchall()} == set(NAMES)
    path, fs = path_in(folder), file_system_of(folder)
    assert set(pd.read_parquet(path, filesystem=fs)["Collection"]) == set(NAMES)
    found = ds.dataset(path, filesystem=fs, partitioning="hive").to_table()
    assert set(found["Collection"].to_pylist()) == set(NAMES)


def test_no_temporary_file_lies_among_the_tables(place: Place) -> None:
    lake = Lake(str(place))
    lake.check_writable()
    lake.write_table(STUDIES, studies("A", 2), "A")
    files = [relative(p, place) for p in files_below(place)]
    assert sorted(files) == ["lake.json", table_path("studies", "A")]


def test_a_reader_sees_the_old_table_or_the_new_one(place: Place) -> None:
    lake = Lake(str(place))
    lake.write_table(STUDIES, studies("A", 1), "A")
    counts: set[int] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            counts.add(lake.read_table(STUDIES, "A").num_rows)

    reader = threading.Thread(target=read)
    reader.start()
    for count in (5000, 1) * 10:
        lake.write_table(STUDIES, studies("A", count), "A")
    stop.set()
    reader.join()
    assert counts <= {1, 5000}


@pytest.mark.disk("what a file is in the way of")
def test_a_lake_that_cannot_be_written_says_where_why_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    lake = Lake(str(tmp_path / "file" / "lake"))
    with pytest.raises(
        LakeError, match=r"cannot write in the lake .*file/lake \(Not a directory\): check that you may write"
    ) as raised:
        lake.check_writable()
    assert raised.value.arguments == ("lake",)


def test_an_unknown_kind_of_lake_is_refused() -> None:
    with pytest.raises(LakeError, match=r"the lake 'foo://x' cannot be opened .*: set it to") as raised:
        Lake("foo://x")
    assert raised.value.arguments == ("lake",)


def test_a_damaged_table_is_an_error_not_an_empty_table(place: Place) -> None:
    lake = Lake(str(place))
    lake.put_bytes(table_path("studies", "A"), b"PAR1 but no more")
    with pytest.raises(LakeError, match="cannot read tables/studies/Collection=A"):
        lake.read_table(STUDIES, "A")


def test_a_folder_of_files_replaces_the_older_one(lake: Lake) -> None:
    path = "images/A/P/1/2"
    records: list[str | None] = []
    replaced: list[int] = []

    def record(staged: str | None) -> str:
        records.append(staged)
        return "entry"

    for names in (["a.dcm", "b.dcm"], ["b.dcm", "c.dcm"]):
        with lake.workspace() as work:
            (work / "files").mkdir()
            for name in names:
                (work / "files" / name).write_text(f"{name} of {names}")
            lake.publish(work / "files", path, "A", "2", record, lambda: replaced.append(len(lake.names_in(path))))
    if records[-1] is None:  # an object store
        assert replaced == [2], "called once, before the older files were touched"
    else:
        assert read_files(lake, path)[f"{path}/b.dcm"] == b"b.dcm of ['a.dcm', 'b.dcm']", "left to the commit"
        assert lake.publish_staged(records[-1], path) and not lake.publish_staged(records[-1], path)
        assert lake.staged() == []
    held = read_files(lake, "images/A/P/1/2")
    assert {path.rsplit("/", 1)[-1] for path in held} == {"b.dcm", "c.dcm"}
    assert held["images/A/P/1/2/b.dcm"] == b"b.dcm of ['b.dcm', 'c.dcm']"
    assert len(records) == 2


@pytest.mark.parametrize("name", [".DS_Store", "._2", "Thumbs.db", "desktop.ini"])
def test_a_folder_with_nothing_but_a_file_manager_s_notes_is_empty(lake: Lake, name: str) -> None:
    for path in ("P/1/2/a.dcm", f"P/1/2/{name}", f"P/1/{name}", f"P/{name}", f"Q/{name}"):
        lake.put_bytes(f"images/A/{path}", b"x")
    lake.remove_folder("images/A/P/1/2")
    if isinstance(lake._store, LocalStore):  # an object store has no folders
        assert lake.names_in("images/A") == ["Q"]
    assert lake.names_in("images/A/P/1/2") == [] and lake.read_bytes(f"images/A/Q/{name}") == b"x"


@pytest.mark.parametrize("name", ["notes.txt", "a.dcm~", "lost+found/a", ".Trash-1000/a"])
def test_a_folder_with_other_people_s_contents_stays(lake: Lake, name: str) -> None:
    for path in ("1/2/a.dcm", "1/.DS_Store", f"1/{name}"):
        lake.put_bytes(f"images/A/P/{path}", b"x")
    lake.remove_folder("images/A/P/1/2")
    assert set(lake.sizes("images/A")) == {"images/A/P/1/.DS_Store", f"images/A/P/1/{name}"}


@pytest.mark.disk("how NFS renames what is open")
def test_a_file_that_is_held_open_does_not_keep_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS, a file that was deleted while it was open is renamed, and deleting that fails."""
    lake = Lake(str(tmp_path))
    unlink = os.unlink

    def busy(path: str, **how: int) -> None:
        if ".nfs" in str(path) or (refused and str(path).endswith(refused)):
            raise OSError(errno.EBUSY, "Device or resource busy")
        unlink(path, **how)

    monkeypatch.setattr(os, "unlink", busy)
    for refused in ("", "b.dcm"):
        for file in ("a.dcm", "b.dcm", ".nfs0123"):
            lake.put_bytes(f"images/A/P/1/2/{file}", b"x")
        if refused:
            with pytest.raises(LakeError, match=r"cannot remove images/A/P/1/2 .*Device or resource busy"):
                lake.remove_folder("images/A/P/1/2")
        else:
            lake.remove_folder("images/A/P/1/2")
            assert lake.names_in("images/A") == []


def test_what_others_leave_among_a_lake_s_folders_stays_and_counts_for_nothing(lake: Lake) -> None:
    lake.write_table(STUDIES, studies("A", 1), "A")
    for path in (".DS_Store", "._Collection=A", "Collection=A/._part-0.parquet", "lost+found/x"):
        lake.put_bytes(f"tables/studies/{path}", b"x")
    assert lake.collections_of(STUDIES) == ["A"] and lake.count_rows(STUDIES, "A") == 1
    lake.put_bytes(f"{STAGING}/.DS_Store", b"x")
    if isinstance(lake._store, LocalStore):
        os.utime(Path(lake.uri, STAGING, ".DS_Store"), (0, 0))
    assert lake.staged() == [] and lake.sweep(keep=set()) == 0
    assert lake.read_bytes(f"{STAGING}/.DS_Store") == b"x"


def test_an_object_store_keeps_what_others_left_in_a_folder_that_is_replaced() -> None:
    lake = Lake(f"memory://lake-{uuid.uuid4().hex}")
    for name in (".DS_Store", "old.dcm"):
        lake.put_bytes(f"images/A/P/1/2/{name}", b"x")
    with lake.workspace() as work:
        (work / "files").mkdir()
        (work / "files" / "a.dcm").write_text("a")
        lake.publish(work / "files", "images/A/P/1/2", "A", "2", lambda staged: "entry", lambda: None)
    assert lake.names_in("images/A/P/1/2") == [".DS_Store", "a.dcm"]


def test_a_workspace_is_gone_after_its_block(lake: Lake) -> None:
    with lake.workspace() as work:
        (work / "x").write_text("x")
    assert not work.exists()


@pytest.mark.disk("working directories that are in the lake")
def test_leftovers_of_a_dead_process_are_swept_and_a_workspace_in_use_is_not(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    dead = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from nbia_pipeline.lake import Lake\nw = Lake({str(tmp_path)!r}).workspace()\n"
            "print(w.__enter__(), flush=True)\nimport os\nos._exit(0)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert Path(dead).is_dir()
    with lake.workspace() as alive:
        assert lake.sweep(keep=set()) == 1
        assert alive.is_dir()
    assert not Path(dead).exists()


@pytest.mark.disk("working directories that are in the lake")
def test_what_the_journal_names_is_not_swept(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    old = tmp_path / STAGING / "elsewhere.1.abc"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    assert lake.sweep(keep={old.name}) == 0
    assert lake.sweep(keep=set()) == 1


def test_properties_are_kept_beside_the_rows_and_change_no_schema(lake: Lake) -> None:
    data = studies("A", 3)
    lake.write_table(STUDIES, data, "A", properties={"listed_at": "2026-01-02T03:04:05", "of": "Ä"})
    assert lake.read_properties(STUDIES, "A") == {"listed_at": "2026-01-02T03:04:05", "of": "Ä"}
    assert lake.read_table(STUDIES, "A").equals(data, check_metadata=True)
    lake.write_table(STUDIES, data, "A")
    assert lake.read_properties(STUDIES, "A") == lake.read_properties(STUDIES, "B") == {}


def test_row_groups_keep_their_size_however_often_a_table_grows(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    for pieces in ([7, 0, 30, 1], [10] * 4, [95], [3], []):
        table = studies("A", sum(pieces))
        starts = [sum(pieces[:n]) for n in range(len(pieces))]
        cut = (table.slice(start, length) for start, length in zip(starts, pieces, strict=True))
        with file.open("wb") as opened:
            assert parquet.write_groups(opened, STUDIES.schema, cut, rows=10) == sum(pieces)
        with file.open("rb") as opened:
            groups = list(parquet.groups_of(opened))
        assert [r for g in groups for r in g.to_pylist()] == table.to_pylist()
        assert all(10 <= g.num_rows <= 20 for g in groups[:-1])


# --- files of other versions


def put_parquet(lake: Lake, path: str, rows: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    lake.put_bytes(path, sink.getvalue())


def test_a_column_that_an_older_file_lacks_is_null_and_one_that_a_newer_file_has_is_left_out(lake: Lake) -> None:
    rows = [{"SeriesInstanceUID": f"1.{n}", "PatientID": f"P{n}", "Collection": "A"} for n in range(3)]
    table = pa.Table.from_pylist(rows, schema=SERIES_METADATA.schema)
    older = table.drop_columns(["PixelSpacing", "Collection"]).append_column("Future", pa.array([1, 2, 3]))
    put_parquet(lake, table_path("series_metadata", "A"), older)
    for read in (lake.read_table(SERIES_METADATA, "A"), *lake.read_pieces(SERIES_METADATA, "A")):
        assert read.to_pylist() == table.to_pylist()
        assert read.schema.equals(SERIES_METADATA.schema, check_metadata=True)
    only = lake.read_table(SERIES_METADATA, "A", columns=["PixelSpacing", "Collection"])
    assert only.to_pylist() == [{"PixelSpacing": None, "Collection": "A"}] * 3
    columns = ["PixelSpacing", "PatientID"]
    found = lake.read_rows(SERIES_METADATA, "A", "SeriesInstanceUID", {"1.1"}, columns)
    assert found.to_pylist() == [{"PixelSpacing": None, "PatientID": "P1"}]
    assert lake.read_rows(SERIES_METADATA, "A", "SeriesInstanceUID", {"1.1"}, columns[:1]).num_rows == 1
    assert lake.read_rows(SERIES_METADATA, "A", "PixelSpacing", {"x"}, columns).num_rows == 0
    grown = pa.concat_tables([*lake.read_pieces(SERIES_METADATA, "A"), table.slice(0, 1)])
    assert lake.write_pieces(SERIES_METADATA, [grown], "A") == 4
    assert lake.read_table(SERIES_METADATA, "A").equals(grown)


def test_a_lake_states_its_format_once_it_is_opened_for_writing(lake: Lake) -> None:
    assert lake.format == FORMAT
    lake.write_table(STUDIES, studies("A", 1), "A")
    assert lake.format == 1, "version 0.1.0 stated none"
    lake.check_writable()
    assert lake.format == Lake(lake.uri).format == FORMAT
    about = json.loads(lake.read_bytes(FORMAT_FILE) or b"")
    assert about["format"] == 2 and about["written_by"].startswith("nbia-pipeline ")


def test_an_older_format_is_raised_and_the_same_is_not_written_again(lake: Lake) -> None:
    lake.put_bytes(FORMAT_FILE, b'{"format": 1}')
    assert lake.format == 1
    lake.check_writable()
    assert lake.format == FORMAT
    same = json.dumps({"format": FORMAT, "written_by": "another"}).encode()
    lake.put_bytes(FORMAT_FILE, same)
    lake.check_writable()
    assert lake.read_bytes(FORMAT_FILE) == same


def test_a_lake_of_a_newer_format_is_refused_whatever_is_done_with_it(lake: Lake) -> None:
    lake.write_table(STUDIES, studies("A", 1), "A")
    newer = json.dumps({"format": FORMAT + 1, "written_by": "nbia-pipeline 7.1"}).encode()
    lake.put_bytes(FORMAT_FILE, newer)
    uses: list[Callable[[Lake], object]] = [
        lambda late: late.format,
        lambda late: late.check_writable(),
        lambda late: late.read_table(STUDIES, "A"),
        lambda late: late.count_rows(STUDIES, "A"),
        lambda late: late.write_table(STUDIES, studies("A", 2), "A"),
        lambda late: late.put_bytes("x", b""),
        lambda late: late.lock(Lock.COLLECTION, "A").__enter__(),
        lambda late: late.workspace().__enter__(),
    ]
    for use in uses:
        with pytest.raises(LakeError, match=r"has format 3, and .* knows formats up to 2: upgrade it; .* 7\.1"):
            use(Lake(lake.uri))
    assert lake.read_bytes(FORMAT_FILE) == newer
    assert lake.count_rows(STUDIES, "A") == 1


@pytest.mark.parametrize("content", [b"", bytes(60)])
def test_a_format_that_a_power_cut_emptied_counts_as_absent(lake: Lake, content: bytes) -> None:
    lake.put_bytes(FORMAT_FILE, content)
    assert lake.format == FORMAT
    lake.check_writable()
    assert json.loads(lake.read_bytes(FORMAT_FILE) or b"")["format"] == FORMAT


@pytest.mark.parametrize("content", [b'{"form', b"[]", b"{}", b'{"format": "x"}', b"\xff"])
def test_a_lake_whose_format_cannot_be_read_is_refused(lake: Lake, content: bytes) -> None:
    lake.put_bytes(FORMAT_FILE, content)
    with pytest.raises(LakeError, match=r"lake\.json does not state the format of the lake .*: restore the file"):
        Lake(lake.uri).read_table(STUDIES, "A")


def test_the_format_is_read_once_and_not_at_every_use(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    lake.check_writable()
    opened = Lake(lake.uri)
    reads: list[str] = []
    for store in (LocalStore, ObjectStore):
        was = store.read_first

        def read(self: Store, path: str, _was: Callable[..., bytes | None] = was) -> bytes | None:
            reads.append(path)
            return _was(self, path)

        monkeypatch.setattr(store, "read_first", read)
    for _ in range(3):
        opened.read_table(STUDIES, "A")
    assert reads.count(FORMAT_FILE) == 1


@pytest.mark.disk("folders without files")
def test_a_folder_that_is_not_the_lake_s_own_is_no_error(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.write_table(STUDIES, STUDIES.schema.empty_table(), "A")
    for name in ("Collection=%FF", "Collection=%", "Collection", "%C3%28"):
        (tmp_path / "tables" / "studies" / name).mkdir()
    found = lake.collections_of(STUDIES)
    assert "A" in found and [lake.count_rows(STUDIES, c) for c in found] == [0] * len(found)
