"""Reading some columns of tables that may be larger than memory, and UIDs as numbers."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from posixpath import dirname
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import stopping
from nbia_pipeline.lake import Lake, parquet
from nbia_pipeline.lake.errors import content_of_table
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.schema import Table

Numbers = npt.NDArray[Any]

UID_BYTES = 64
"""Most bytes of a UID: DICOM PS3.5, 6.2."""

_ODD = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


class Among:
    """Some texts, by which row groups are chosen that can contain any of them.

    Args:
        texts: the texts, or their first characters.
        length: how many characters of a text are compared; None for all.
    """

    def __init__(self, texts: Iterable[str], length: int | None = None) -> None:
        self._texts = sorted(texts)
        self._length = length

    def may_be_between(self, least: str, greatest: str) -> bool:
        """Return whether some text can be between two others, both included."""
        at = bisect_left(self._texts, least[: self._length])
        return at < len(self._texts) and self._texts[at] <= greatest[: self._length]


def scan(
    lake: Lake, table: Table, collection: str, columns: list[str], where: tuple[str, Among] | None = None
) -> Iterator[pa.Table]:
    """Yield some columns of one collection of a table, row group by row group, of all its parts.

    Args:
        lake: the lake.
        table: which one; nothing comes of one that was never written.
        collection: the partition.
        columns: their names, without Collection.
        where: a column, and texts: row groups that can have none of these in it are not read.

    Raises:
        LakeError: the lake cannot be read.
    """
    schema = table.schema
    schema = pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)
    folder = dirname(table_path(table.name, collection))
    for path in sorted(f"{folder}/{name}" for name in lake.names_in(folder) if name.endswith(".parquet")):
        with lake.open(path) as file, content_of_table(path, lake.uri):
            stored = parquet.opened(file)
            for group in range(stored.num_row_groups):
                stopping.expect_running()
                if where is None or _may_contain(stored.metadata.row_group(group), *where):
                    piece = stored.read_row_group(group, columns=columns, use_threads=False)
                    yield parquet.conform(piece, schema)


def _may_contain(group: Any, column: str, texts: Among) -> bool:
    for at in range(group.num_columns):
        if group.column(at).path_in_schema == column:
            known = group.column(at).statistics
            try:
                return known is None or not known.has_min_max or texts.may_be_between(known.min, known.max)
            except ValueError:  # a text that is not UTF-8: reading it shows that
                return True
    return False  # an older file lacks the column: it is null


def filled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of texts in which empty ones are null, as a file may state either."""
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)


def numbers_of(column: pa.ChunkedArray) -> Numbers:
    """Return each UID of a column as a number of 64 bits, 0 for null.

    An eighth of its length in memory, and compared at once. That two of ten million UIDs have the number of one of a
    hundred million others has a chance of 1 : 20,000.
    """
    if (pc.max(pc.binary_length(column)).as_py() or 0) > UID_BYTES:
        column = pa.chunked_array([[_shortened(text) for text in column.to_pylist()]], pa.string())
    padded = pc.ascii_rpad(pc.fill_null(column, ""), width=UID_BYTES, padding="\0").combine_chunks()
    content = np.frombuffer(padded.buffers()[2] or b"", np.uint64)
    first = padded.offset * UID_BYTES // 8
    words = content[first : first + len(padded) * UID_BYTES // 8].reshape(len(padded), UID_BYTES // 8)
    numbers = np.zeros(len(padded), np.uint64)
    for at in range(words.shape[1]):
        numbers ^= words[:, at]
        numbers *= _ODD
        numbers ^= numbers >> _HALF
    return numbers


def _shortened(text: str | None) -> str | None:
    if text is None or len(text.encode()) <= UID_BYTES:
        return text
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class Names:
    """Texts, each with a number, from 0 on in the order in which they come."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def number(self, text: str | None) -> int:
        """Return the number of a text, a new one if need be; -1 for None."""
        if text is None:
            return -1
        number = self._numbers.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number

    def numbers(self, column: pa.ChunkedArray) -> Numbers:
        """Return the numbers of a column of texts."""
        coded = pc.dictionary_encode(column.combine_chunks())
        known = [*map(self.number, coded.dictionary.to_pylist()), -1]
        numbers: Numbers = np.array(known, np.int64)
        return numbers[pc.fill_null(coded.indices, len(known) - 1).to_numpy(zero_copy_only=False)]
