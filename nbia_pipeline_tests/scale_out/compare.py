"""Lakes compared: the files byte for byte, the tables row by row, without what differs from run to run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

Contents = dict[str, str]
"""A digest for each file of a lake, by its path: of the bytes, or of the rows of a table."""

_OF_TIME = ("FetchedAt", "SeenAt", "ListedAt", "VerifiedAt", "MissingSince", "RunID")
_NOT_COMPARED = ("verifications",)  # a sample
_SHOWN = 5


def contents(fs: Any, root: str) -> Contents:
    """Read a lake.

    Args:
        fs: its file system, as fsspec has them.
        root: its path there.
    """
    names = sorted(_files(fs, root))
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(name, fs.cat_file(f"{root}/{name}")), names), strict=True))


def rows_of(fs: Any, root: str, table: str) -> int:
    """Return how many rows a table has."""
    names = [name for name in _files(fs, root) if name.startswith(f"tables/{table}/")]
    return sum(pq.read_metadata(pa.BufferReader(fs.cat_file(f"{root}/{name}"))).num_rows for name in names)


def _files(fs: Any, root: str) -> Iterator[str]:
    fs.invalidate_cache()
    for top in ("tables", "images", "annotations"):
        for path in fs.find(f"{root}/{top}"):
            name = path[len(root.lstrip("/") if not path.startswith("/") else root) + 1 :]
            if name.split("/")[1] not in _NOT_COMPARED:
                yield name


def _digest(name: str, content: bytes) -> str:
    if name.endswith(".parquet"):
        return digest_of_rows(pq.read_table(pa.BufferReader(content)))
    return hashlib.md5(content).hexdigest()


def digest_of_rows(rows: pa.Table) -> str:
    """Return a digest of the rows of a table, in whatever order they are, and without times."""
    rows = rows.select([name for name in rows.column_names if name not in _OF_TIME])
    text = pa.BufferOutputStream()
    csv.write_csv(rows.sort_by([(name, "ascending") for name in rows.column_names]), text)
    return hashlib.md5(text.getvalue()).hexdigest()


def differences(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Return the files and tables in which a lake differs from another, each with how."""
    names = sorted({*found, *wanted})
    kinds = ((n, "is missing" if n not in found else "is too much" if n not in wanted else "differs") for n in names)
    return [f"{name} {how}" for name, how in kinds if found.get(name) != wanted.get(name)]


def expect_equal(found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Make sure that two lakes hold the same.

    Raises:
        AssertionError: they do not.
    """
    differ = differences(found, wanted)
    assert not differ, f"the lakes differ in {len(differ)} files: {', '.join(differ[:_SHOWN])}"
