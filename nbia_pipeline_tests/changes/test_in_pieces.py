"""Large collections are listed and compared piece by piece, with the same outcome as in one."""

# ruff: noqa: DTZ001 - the tables state no zone

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.diff import UID, Observation, diff, diff_in_pieces
from nbia_pipeline.lake.table_file import Packed, TableFile
from nbia_pipeline.schema.arrow import repeats
from nbia_pipeline.schema.tables import SERIES, SERIES_SEEN
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import edited

BREAST = "QIN_Breast.v2"
NOW = datetime(2026, 1, 1)


def listing(names: list[str], changed: int = 0) -> pa.Table:
    """Return series; of every fifth the size depends on `changed`."""
    rows = [
        {UID: n, "StudyInstanceUID": "1", "PatientID": "P", "Collection": "C", "FileSize": changed * (i % 5 == 0)}
        for i, n in enumerate(names)
    ]
    return pa.Table.from_pylist(rows, schema=SERIES.schema)


def cut(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    return (table.slice(at, rows) for at in range(0, table.num_rows, rows))


def look(day: int) -> Observation:
    when = NOW + timedelta(days=day)
    return Observation(when, when, "run", timedelta(0))


def mixed(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: name[::-1])


@pytest.mark.parametrize("order", [list, lambda names: names[::-1], mixed], ids=["same", "reversed", "mixed"])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_a_listing_in_pieces_is_compared_as_the_whole(order: Callable[[list[str]], list[str]], rows: int) -> None:
    known = [f"1.{n}" for n in range(60)]
    _, state = diff(SERIES_SEEN.schema.empty_table(), listing(known), look(0))
    names = order([n for i, n in enumerate(known) if i % 7] + [f"2.{n}" for n in range(6)])
    listed = listing(names, changed=1)
    whole = diff(state, listed, look(1))
    at = pc.index_in(listed[UID], value_set=state[UID])
    pieces = list(diff_in_pieces(cut(state, 9), cut(listed, rows), at, state.num_rows, look(1)))
    for expected, parts in zip(whole, zip(*pieces, strict=True), strict=True):
        assert expected.num_rows > 6
        order_by = [(UID, "ascending"), *((n, "ascending") for n in ("ColumnName",) if n in expected.schema.names)]
        assert pa.concat_tables(parts).sort_by(order_by).equals(expected.sort_by(order_by))


def test_an_empty_listing_and_an_empty_state_have_no_pieces() -> None:
    none = pa.chunked_array([], pa.int32())
    _, state = diff(SERIES_SEEN.schema.empty_table(), listing(["1", "2", "3"]), look(0))
    gone = list(diff_in_pieces(cut(state, 2), iter([]), none, 3, look(1)))
    assert [changes["Change"].to_pylist() for changes, _ in gone] == [["withdrawn"] * 2, ["withdrawn"]]
    at = pc.index_in(listing(["1"])[UID], value_set=none.cast(pa.string()))
    ((changes, _),) = diff_in_pieces(iter([]), cut(listing(["1"]), 2), at, 0, look(1))
    assert changes["Change"].to_pylist() == ["added"]


def test_pieces_of_a_list_are_not_kept(archive: TestArchive, client: NbiaClient) -> None:
    count, most, whole = 60_000, 0, 0

    def take(pieces: Iterator[pa.Table]) -> pa.Table:
        nonlocal most, whole
        uids = []
        before = pa.total_allocated_bytes()
        for piece in pieces:
            whole += piece.nbytes
            uids.append(piece.select([UID]))
            del piece
            most = max(most, pa.total_allocated_bytes() - before)
        return pa.concat_tables(table for table in uids if table.num_rows)

    def many(rows: list[dict[str, object]]) -> None:
        rows[:] = [{**rows[0], UID: f"1.2.{n}"} for n in range(count)]

    archive.faults.inject("getSeries", edited(many))
    assert client.series_in_pieces(BREAST, take).num_rows == count
    assert whole > 20_000_000
    assert most < 0.7 * whole


def test_a_file_in_memory_knows_its_rows() -> None:
    rows = listing(["1", "2"], changed=1)
    file = TableFile.of(SERIES.schema, cut(rows, 1), "C", {"api": "v2"})
    assert (file.num_rows, file.properties) == (2, {"api": "v2"})
    assert file.to_table().equals(rows)
    assert file["Collection"].to_pylist() == ["C", "C"]
    assert [file.lacks(name) for name in ("PatientID", "Modality", "FileSize")] == [False, True, False]
    blank = TableFile.of(SERIES.schema, [rows.set_column(5, rows.schema.field(5), [["", None]])], "C")
    assert blank.lacks("Modality")
    assert Packed(SERIES.schema, cut(rows, 1)).to_table().equals(rows)


def test_a_text_that_repeats_is_found() -> None:
    assert not repeats(pa.chunked_array([["1.1", "1.2", "2.2"], []]))
    assert repeats(pa.chunked_array([["1.1", "1.2"], ["1.1"]]))
