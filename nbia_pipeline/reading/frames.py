"""Tables of the lake as Arrow tables, Arrow data sets and pandas data frames."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nbia_pipeline.address import is_uri
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.layout import PARTITION, collection_of
from nbia_pipeline.lake.layout import TABLES as FOLDER
from nbia_pipeline.lake.store import open_store
from nbia_pipeline.schema import TABLES, Table
from nbia_pipeline.text import TextError, did_you_mean, first_of, similar_names

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.dataset as ds

Names = str | Sequence[str] | None
"""One name, several, or None for all."""


class NotInLake(LakeError):
    """The lake has no table, collection, column or series of that name; the text says what it has."""


class MissingExtra(TextError):
    """A package is not installed; the text says how to install it."""


def optional(package: str, extra: str) -> Any:
    """Return a package that an extra of this one installs.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as e:
        raise MissingExtra(f"{package} is not installed: pip install 'nbia-pipeline[{extra}]'") from e


def table_named(name: str) -> Table:
    """Return a table of the lake.

    Raises:
        NotInLake: there is none of that name.
    """
    if name not in TABLES:
        raise NotInLake(f"there is no table {name!r}: {_hint(name, TABLES)}")
    return TABLES[name]


def names(given: Names) -> list[str] | None:
    """Return one name or several as a list; None stays None."""
    return [given] if isinstance(given, str) else None if given is None else list(given)


def read(lake: Lake, name: str, collection: Names = None, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a table as an Arrow table; see :meth:`~nbia_pipeline.reading.lake.Lake.frame`."""
    table, chosen = table_named(name), names(columns)
    expect_columns(table, chosen)
    if not table.partitioned:
        if collection is not None:
            raise NotInLake(f"table {name} has no partitions: read it without a collection")
        if not lake.has_table(table):
            _expect_lake(lake)
        return lake.read_table(table, columns=chosen)
    read_one = partial(lake.read_table, table, columns=chosen)
    parts = lake.side_by_side(partial(read_one, c) for c in collections_in(lake, table, names(collection)))
    empty = table.schema.empty_table()
    return pa.concat_tables([empty if chosen is None else empty.select(chosen), *parts])


def collections_in(lake: Lake, table: Table, wanted: Iterable[str] | None = None) -> list[str]:
    """Return the collections of a partitioned table: those that are wanted, or all.

    Raises:
        NotInLake: it does not have one of them.
    """
    stored = lake.collections_of(table)
    if not stored:
        _expect_lake(lake)
    if wanted is None:
        return stored
    found = list(dict.fromkeys(wanted))
    _expect(f"table {table.name} of the lake {lake.uri} has no collection", found, stored)
    return found


def expect_columns(table: Table, columns: Iterable[str] | None) -> None:
    """Make sure that a table has some columns.

    Raises:
        NotInLake: it does not have one of them.
    """
    _expect(f"table {table.name} has no column", columns or (), table.schema.names)


def _expect_lake(lake: Lake) -> None:
    if not lake.exists(FOLDER):
        raise NotInLake(f"there is no lake with tables at {lake.uri}: check its address", arguments=("lake",))


def _expect(problem: str, wanted: Iterable[str], known: Sequence[str]) -> None:
    for name in wanted:
        if name not in known:
            raise NotInLake(f"{problem} {name!r}: {_hint(name, known)}")


def _hint(name: str, known: Iterable[str]) -> str:
    listed = list(known)
    return did_you_mean(similar_names(name, listed), f"it can be {first_of(listed)}" if listed else "it has none yet")


def dataset(lake: Lake, table: Table, collections: Sequence[str] | None = None) -> ds.Dataset:
    """Return a table, or some collections of it, as a data set, of which no row is read yet.

    Columns that the file of an older version lacks are null; Collection is text, whatever a name looks like.

    Raises:
        LakeError: the lake cannot be read.
    """
    import pyarrow.dataset as ds
    from pyarrow import fs

    paths, parts = [], []
    for path in lake.sizes(f"{FOLDER}/{table.name}"):
        name = collection_of(path.split("/")[2])
        is_wanted = (name in collections if collections is not None else name is not None) or not table.partitioned
        if is_wanted and path.endswith(".parquet"):
            paths.append(path)
            parts.append(ds.field(PARTITION) == name if table.partitioned else ds.scalar(True))
    if not paths:
        _expect_lake(lake)
        return ds.dataset(table.schema.empty_table())
    store = open_store(lake.uri)
    return ds.FileSystemDataset.from_paths(
        [store.full(path) for path in paths],
        schema=table.schema,
        format=ds.ParquetFileFormat(),
        filesystem=fs.PyFileSystem(fs.FSSpecHandler(store.fs)) if is_uri(lake.uri) else fs.LocalFileSystem(),
        partitions=parts,
    )


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Return an Arrow table as a data frame, in types that keep null apart from every value.

    Texts are ``string``, counts ``Int64``, flags ``boolean``, days and times ``datetime64``; other numbers are
    ``float64``, in which null is NaN.
    """
    import pandas as pd

    types = {pa.string(): pd.StringDtype("pyarrow"), pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=types.get, date_as_object=False)
    return frame
