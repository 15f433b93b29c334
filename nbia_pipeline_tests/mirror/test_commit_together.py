"""Two who commit and publish at once do each other no harm; large journals and tables are committed in pieces."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import STAGING
from nbia_pipeline.mirror import journal
from nbia_pipeline.mirror.commit import commit, instances_of, with_instances
from nbia_pipeline.mirror.journal import record_failure, staged_by_journal
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.unpack import VerifiedInstance
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES
from nbia_pipeline_tests.helpers.committer import EACH, LISTED, work
from nbia_pipeline_tests.helpers.places import Place
from nbia_pipeline_tests.helpers.series import crash_before_the_move, publish, read_files, receipt, series_table, wanted


def expect_all_there(lake: Lake) -> None:
    table = lake.read_table(IMAGE_SERIES, "A")
    assert table["Status"].to_pylist() == ["complete"] * 2 * EACH
    assert table["Bytes"].to_pylist() == [n + 1 for n in range(2 * EACH)]
    rows = lake.read_table(INSTANCES, "A").to_pylist()
    assert [(r["SeriesInstanceUID"], r["Size"]) for r in rows] == [(f"1.{n:04d}", n + 1) for n in range(2 * EACH)]
    for row in rows:
        assert len(lake.read_bytes(row["Path"]) or b"") == row["Size"]
    assert lake.names_in(f"{STAGING}/journal/A") == []


@pytest.mark.slow
def test_two_processes_on_one_collection_lose_no_receipt(place: Place) -> None:
    root = Path(__file__).parents[2]
    words = [sys.executable, "-m", "nbia_pipeline_tests.helpers.committer", str(place)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    both = [
        subprocess.Popen(
            [*words, str(n)], cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in (0, 1)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.communicate("go\n", timeout=60)
        assert process.returncode == 0
    lake = Lake(str(place))
    expect_all_there(lake)
    assert lake.sweep(keep=set()) == 0


@pytest.mark.slow
@pytest.mark.stores("seaweedfs")
@pytest.mark.not_on_disk
def test_two_threads_on_one_collection_of_an_object_store_lose_no_receipt(place: Place) -> None:
    uri = str(place)
    problems: list[BaseException] = []

    def one(first: int) -> None:
        try:
            work(Lake(uri), first)
        except BaseException as e:  # noqa: BLE001 - told by the thread of the test
            problems.append(e)

    threads = [threading.Thread(target=one, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    lake = Lake(uri)
    expect_all_there(lake)
    assert lake.names_in(f"{STAGING}/locks") == []


@pytest.mark.stores("seaweedfs")
def test_two_who_fetched_the_same_series_leave_one_of_them_whole(place: Place) -> None:
    """The archive replaced it between the two: whoever publishes last counts, with files and receipt."""
    lake = Lake(str(place / "lake"))
    versions = {n: replace(receipt(), instances=_instances(n)) for n in (3, 4)}
    threads = [threading.Thread(target=publish, args=(lake, versions[n])) for n in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    commit(lake, "A", series_table([wanted(1)]))
    rows = lake.read_table(INSTANCES, "A").to_pylist()
    assert len(rows) in versions
    held = {path: len(content) for path, content in read_files(lake, receipt().path).items()}
    assert held == {r["Path"]: r["Size"] for r in rows}


def test_a_series_that_moves_twice_before_the_commit_leaves_nothing_behind(place: Place) -> None:
    for uri in (str(place / "lake"), f"memory://moved-{uuid.uuid4().hex}"):
        lake = Lake(uri)
        publish(lake, receipt())
        commit(lake, "A", series_table([wanted(1)]))
        for patient in ("Q", "R"):
            publish(lake, replace(receipt(), wanted=replace(wanted(1), PatientID=patient)))
        table = commit(lake, "A", series_table([replace(wanted(1), PatientID="R")]))
        assert table.select(["PatientID", "Status"]).to_pylist() == [{"PatientID": "R", "Status": "complete"}]
        assert list(lake.sizes("images")) == ["images/A/R/1/1.0001/9.1.dcm"]


def _instances(count: int) -> list[VerifiedInstance]:
    digest = hashlib.md5(b"x" * count, usedforsecurity=False).hexdigest()
    return [VerifiedInstance(f"9.{count}.{n}", None, n, count, digest) for n in range(count)]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_journal_is_committed_in_slices(place: Place, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    lake = Lake(str(place))
    for number in range(2 * EACH):
        publish(lake, receipt(size=number + 1, n=number))
    monkeypatch.setattr(journal, "SLICE_INSTANCES", size)
    commit(lake, "A", series_table(LISTED))
    expect_all_there(lake)
    assert commit(lake, "A", series_table(LISTED)).equals(lake.read_table(IMAGE_SERIES, "A"))


def test_a_crash_between_the_tables_costs_no_receipt(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(str(place))
    publish(lake, receipt(n=1))
    record_failure(lake, Receipt(wanted(2), "quarantined", 3, reason="short"))
    for step in ("write_pieces", "write_table", "remove_all"):
        with monkeypatch.context() as patch:

            def crash(self: Lake, *args: object, **options: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(Lake, step, crash)
            with pytest.raises(KeyboardInterrupt):
                commit(lake, "A", series_table([wanted(1), wanted(2)]))
        assert len(lake.names_in(f"{STAGING}/journal/A")) == 2
    table = commit(lake, "A", series_table([wanted(1), wanted(2)]))
    assert table["Status"].to_pylist() == ["complete", "quarantined"]
    assert lake.read_table(INSTANCES, "A").num_rows == 1


@pytest.mark.disk("working directories that are in the lake")
def test_leftovers_of_dead_processes_vanish_and_what_the_journal_needs_does_not(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    crash_before_the_move(lake, receipt())
    dead = subprocess.run(
        [sys.executable, "-c", "import os; from nbia_pipeline.lake.lock import this_process; print(this_process())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    staging = tmp_path / STAGING
    (staging / f"{dead}.1").mkdir()
    (staging / f"{dead}.1" / "half.dcm").write_text("half")
    (staging / f"{dead}.2").write_text("half a table")
    os.utime(staging / "host.1.abc", (0, 0))
    assert lake.sweep(keep=staged_by_journal(lake)) == 2
    assert sorted(p.name for p in staging.iterdir()) == ["host.1.abc", "journal", "locks"]
    commit(lake, "A", series_table([wanted(1)]))
    os.utime(staging / "host.1.abc", (0, 0))
    assert lake.sweep(keep=staged_by_journal(lake)) == 1
    assert sorted(p.name for p in staging.iterdir()) == ["journal", "locks"]


SERIES = st.sampled_from("abcdef")
ROWS = st.lists(st.tuples(SERIES, st.one_of(st.none(), st.integers(0, 3)), st.uuids().map(str)), max_size=12)


def index(rows: list[tuple[str, int | None, str]], size: int) -> pa.Table:
    made = [
        {"SeriesInstanceUID": uid, "InstanceNumber": n, "SOPInstanceUID": sop, "Collection": "A", "Size": size}
        for uid, n, sop in rows
    ]
    table = pa.Table.from_pylist(made, schema=INSTANCES.schema)
    return table.sort_by([(c, "ascending") for c in ("SeriesInstanceUID", "InstanceNumber", "SOPInstanceUID")])


@given(ROWS, ROWS, st.integers(1, 4))
def test_the_index_is_merged_as_one_would_merge_it_whole(
    old: list[tuple[str, int | None, str]], new: list[tuple[str, int | None, str]], cut: int
) -> None:
    table, fresh = index(old, 1), index(new, 2)
    replaced = sorted({uid for uid, _, _ in new})
    pieces = (table.slice(start, cut) for start in range(0, table.num_rows, cut))
    merged = pa.concat_tables(with_instances(pieces, fresh, pa.array(replaced, pa.string())))
    kept = [row for row in table.to_pylist() if row["SeriesInstanceUID"] not in replaced]
    whole = pa.Table.from_pylist([*kept, *fresh.to_pylist()], schema=INSTANCES.schema)
    order = [(c, "ascending") for c in ("SeriesInstanceUID", "InstanceNumber", "SOPInstanceUID")]
    assert merged.to_pylist() == whole.sort_by(order).to_pylist()


def test_what_is_written_in_pieces_is_read_by_another_reader(place: Place) -> None:
    lake = Lake(str(place))
    many = [replace(receipt(n=n), instances=_instances(3)) for n in range(50)]
    pieces = [instances_of([one]) for one in many]
    assert lake.write_pieces(INSTANCES, pieces, "A") == 150
    query = f"SELECT count(*), sum(Size), min(Collection) FROM '{place}/tables/instances/*/*.parquet'"
    assert duckdb.execute(query).fetchall() == [(150, 450, "A")]
    assert pa.concat_tables(lake.read_pieces(INSTANCES, "A")).equals(pa.concat_tables(pieces))
