"""The rows of a part: those that are carried over, those of files, and the files of the tables that take both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import stopping
from nbia_pipeline.headers.batch import Batch, Known
from nbia_pipeline.headers.geometry import COLUMNS, series_geometry
from nbia_pipeline.headers.shards.files import read_files
from nbia_pipeline.headers.shards.state import READ, UID, Receipt
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.parquet import ROW_GROUP_ROWS, GroupWriter, stored_schema, with_properties
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.headers import INSTANCE_HEADERS, SERIES_GEOMETRY, SHARDED, TABLES
from nbia_pipeline.schema.tables import INSTANCES

GROUP_ROWS = 4_000
"""Of a row group of headers: some 25 MB of text."""
BATCH_FILES = 1_000
"""Whose rows are in memory as Python objects at a time."""

_OF_FILE = ["SOPInstanceUID", UID, "SOPClassUID", "Path", "Size"]


@dataclass(frozen=True)
class ShardReport:
    """What became of a part.

    Attributes:
        collection: of which.
        part: its number.
        series: how many it has.
        instances: how many rows ``instance_headers`` has.
        series_read: how many of the series were read.
        instances_read: how many files that were.
        unreadable: how many of these could not be read.
        problems: how many of these have Problems, the unreadable ones included.
        bytes: the sizes of the files of the four tables.
    """

    collection: str
    part: int
    series: int = 0
    instances: int = 0
    series_read: int = 0
    instances_read: int = 0
    unreadable: int = 0
    problems: int = 0
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ShardReport:
        """Return what :meth:`to_json` was made of."""
        return cls(**values)


class Writers:
    """The files of the four tables while they are written.

    Args:
        lake: the lake.
        folder: in which they are.
        facts: their properties.

    Attributes:
        instances: rows of the headers.
        bytes: of all four, when they are whole.
    """

    def __init__(self, lake: Lake, folder: Path, facts: Mapping[str, str]) -> None:
        self._lake, self._folder = lake, folder
        self._schemas = {table: with_properties(stored_schema(table.schema), facts) for table in SHARDED}
        self.instances = self.bytes = 0

    def __enter__(self) -> Writers:
        self._open = ExitStack()
        with self._errors():
            self._writers = {table: self._open.enter_context(self._writer(table)) for table in SHARDED}
        return self

    @contextmanager
    def _writer(self, table: Table) -> Iterator[GroupWriter]:
        rows = GROUP_ROWS if table is INSTANCE_HEADERS else ROW_GROUP_ROWS
        path = self._folder / table.name
        with path.open("wb") as file, GroupWriter(file, self._schemas[table], rows) as writer:
            yield writer
        self.bytes += path.stat().st_size

    def add(self, table: Table, rows: pa.Table) -> None:
        """Add rows of a table."""
        schema = self._schemas[table]
        self.instances += rows.num_rows if table is INSTANCE_HEADERS else 0
        with self._errors():
            self._writers[table].add(rows.select(schema.names).cast(schema))

    def __exit__(self, *error: Any) -> None:
        with self._errors():
            self._open.__exit__(*error)

    def _errors(self) -> AbstractContextManager[None]:
        return self._lake.storage_errors("write tables of headers")


class Rows:
    """The rows of a table in the order of their series, of which some are taken, in this order.

    Args:
        pieces: the table; the next one is read when it is needed.
    """

    def __init__(self, pieces: Iterator[pa.Table]) -> None:
        self._pieces = pieces
        self._piece: pa.Table | None = None

    def take(self, uids: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the rows of some series, sorted, which come after those that were taken before."""
        wanted = pa.array(uids, pa.string())
        while True:
            stopping.expect_running()
            if self._piece is None:
                self._piece = next(self._pieces, None)
            piece = self._piece
            if piece is None:
                return
            found = piece.filter(pc.is_in(piece[UID], value_set=wanted))
            if found.num_rows:
                yield found
            if piece.num_rows and piece[UID][-1].as_py() > uids[-1]:
                return
            self._piece = None


def kept_rows(earlier: Mapping[Table, Rows], uids: Sequence[str]) -> Iterator[tuple[Table, pa.Table]]:
    """Yield the rows of some series of each table; see :meth:`Rows.take`."""
    for table, rows in earlier.items():
        yield from ((table, piece) for piece in rows.take(uids))


class Fresh:
    """The series of a part that are read.

    Args:
        lake: the lake.
        collection: of which.
        receipts: of these series.

    Attributes:
        versions: SeriesMD5 of each.
        report: what was read.
    """

    def __init__(self, lake: Lake, collection: str, receipts: Mapping[str, Receipt]) -> None:
        self._lake, self._receipts, self._collection = lake, receipts, collection
        self._rows = Rows(lake.read_pieces(INSTANCES, collection, _OF_FILE))
        self.versions = {uid: receipt.version for uid, receipt in receipts.items()}
        self.report = ShardReport(collection, 0, series_read=len(receipts))

    def tables(self, uids: Sequence[str]) -> Iterator[tuple[Table, pa.Table]]:
        """Yield the rows of the tables of some series, in this order."""
        files = self._files(uids)
        unfinished: list[pa.Table] = []  # of the last series, whose geometry is known when all of it is read
        while chunk := list(islice(files, BATCH_FILES)):
            batch = Batch()
            read_files(self._lake, chunk, batch.add)
            found = batch.tables()
            yield from ((TABLES[name], rows) for name, rows in found.items())
            headers = found[INSTANCE_HEADERS.name]
            self._count(headers)
            planes = headers.select(list(COLUMNS))
            is_last = pc.equal(planes[UID], chunk[-1].SeriesInstanceUID)
            if not pc.all(is_last).as_py():
                whole = pa.concat_tables([*unfinished, planes.filter(pc.invert(is_last))])
                yield SERIES_GEOMETRY, series_geometry(whole)
                unfinished = []
            unfinished.append(planes.filter(is_last))
        if unfinished:
            yield SERIES_GEOMETRY, series_geometry(pa.concat_tables(unfinished))

    def _files(self, uids: Sequence[str]) -> Iterator[Known]:
        """Yield the files of some series, in the order of ``instances``, which is that of the tables of headers."""
        for rows in self._rows.take(uids):
            for batch in rows.to_batches(max_chunksize=BATCH_FILES):
                columns = (column.to_pylist() for column in batch.columns)
                for sop, uid, sop_class, path, size in zip(*columns, strict=True):
                    whose = self._receipts[uid]
                    of_series = (uid, whose.study, whose.patient, self._collection, sop_class, whose.version)
                    yield Known(sop, *of_series, path, size)

    def _count(self, headers: pa.Table) -> None:
        before = self.report
        problems = pc.sum(pc.greater(pc.list_value_length(headers["Problems"]), 0)).as_py() or 0
        self.report = replace(
            before,
            instances_read=before.instances_read + headers.num_rows,
            unreadable=before.unreadable + headers[READ].null_count,
            problems=before.problems + problems,
        )
