"""The lake as it is read: what the engine writes, and methods for notebooks, scripts and assets of one's own.

Each method imports what it needs, so that a program that only mirrors does not wait for pandas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nbia_pipeline import lake
from nbia_pipeline.reading.frames import Names

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

    from nbia_pipeline.reading.images import Images
    from nbia_pipeline.reading.volume import Volume


class Lake(lake.Lake):
    """A lake, and its contents as data frames, Arrow tables, SQL, files and volumes.

    Args:
        uri: directory, or URI such as ``s3://bucket/lake``; the credentials of an object store come from its own
            environment variables.
        fsync: whether what is finished survives a loss of power.

    Raises:
        LakeError: it is no address, no file system is known for the URI, or its store refuses.

    Example:

    .. code-block:: python

        lake = Lake("lake")
        series = lake.frame("series", collection="LIDC-IDRI", columns=["SeriesInstanceUID", "Modality"])
        lake.sql("SELECT Modality, sum(Bytes) FROM series JOIN image_series USING (SeriesInstanceUID) GROUP BY 1")
        lake.volume(series.SeriesInstanceUID[0]).array.mean()
    """

    def frame(self, table: str, collection: Names = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return a table as a pandas data frame; see :func:`~nbia_pipeline.reading.frames.to_pandas` for its types.

        Args:
            table: name, such as ``series``; all are in docs/tables.md.
            collection: one collection, several, or None for all.
            columns: names of the columns to read, None for all.

        Raises:
            NotInLake: there is no table, collection or column of that name.
            LakeError: the lake cannot be read.
        """
        from nbia_pipeline.reading.frames import to_pandas

        return to_pandas(self.arrow(table, collection, columns))

    def arrow(self, table: str, collection: Names = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a table as an Arrow table; see :meth:`frame`."""
        from nbia_pipeline.reading.frames import read

        return read(self, table, collection, columns)

    def sql(self, query: str, parameters: Any = None) -> duckdb.DuckDBPyRelation:
        """Return the result of a query in SQL, in which every table of the lake is a view; it is made when it is read.

        Args:
            query: one SELECT, in DuckDB's SQL.
            parameters: values of its ``?`` or ``$name``.

        Raises:
            MissingExtra: DuckDB is not installed.
            LakeError: the lake cannot be read.
            duckdb.Error: the query is wrong.
        """
        from nbia_pipeline.reading.sql import query as run

        return run(self, query, parameters)

    def images(self, collection: Names = None, modality: Names = None) -> Images:
        """Return the series whose image files are in the lake, to be iterated.

        Args:
            collection: one collection, several, or None for all.
            modality: one Modality, several, or None for all.

        Raises:
            NotInLake: there is no collection of that name.
        """
        from nbia_pipeline.reading.images import images_of

        return images_of(self, collection, modality)

    def volume(self, series_uid: str) -> Volume:
        """Return the images of a series as one array with its place in space; see the class for its conventions.

        Args:
            series_uid: SeriesInstanceUID (0020,000E) of a series whose files are in the lake.

        Raises:
            NotInLake: its files are not in the lake.
            NotAVolume: they are not evenly spaced, parallel slices, or cannot be decoded.
            LakeError: the lake cannot be read.
        """
        from nbia_pipeline.reading.images import series_of

        return series_of(self, series_uid).volume()
