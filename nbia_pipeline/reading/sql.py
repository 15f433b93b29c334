"""The lake in SQL: queries by DuckDB, and ``catalog.sql``, by which any DuckDB knows the tables."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nbia_pipeline.address import is_uri
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import PARTITION
from nbia_pipeline.lake.layout import TABLES as FOLDER
from nbia_pipeline.reading.frames import dataset, optional
from nbia_pipeline.schema import TABLES, Table

if TYPE_CHECKING:
    import duckdb
    import pyarrow.dataset as ds

CATALOG = "catalog.sql"
"""The file of the views, in the lake."""

_TYPES = {
    pa.string(): "VARCHAR",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.date32(): "DATE",
    pa.timestamp("us"): "TIMESTAMP",
}


def query(lake: Lake, text: str, parameters: Any = None) -> duckdb.DuckDBPyRelation:
    """Return the result of a query; see :meth:`~nbia_pipeline.reading.lake.Lake.sql`."""
    connection = optional("duckdb", "duckdb").connect()
    for table in TABLES.values():
        connection.register(table.name, dataset(lake, table))
    result: duckdb.DuckDBPyRelation = connection.sql(text, params=parameters)
    return result


def relation(rows: ds.Dataset, name: str) -> duckdb.DuckDBPyRelation:
    """Return a data set as a relation of DuckDB, of which only what is asked is read.

    Raises:
        MissingExtra: DuckDB is not installed.
    """
    connection = optional("duckdb", "duckdb").connect()
    connection.register(name, rows)
    found: duckdb.DuckDBPyRelation = connection.table(name)
    return found


# --- the file


def write_catalog(lake: Lake) -> None:
    """Write ``catalog.sql`` if it is not the one of the tables that the lake has now.

    Called after tables were written; two processes that write different tables both see those of the other.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    stored = None
    while stored != (stored := {path.split("/")[1] for path in lake.sizes(FOLDER) if path.endswith(".parquet")}):
        content = catalog_sql(lake.uri, stored).encode()
        if lake.read_bytes(CATALOG) == content:
            return
        lake.put_bytes(CATALOG, content)


def catalog_sql(address: str, stored: Collection[str]) -> str:
    """Return the statements that make each table a view.

    Args:
        address: of the lake.
        stored: names of the tables that have files; the views of the others have no rows.
    """
    return "\n".join([_head(address), *(_view(address, table, table.name in stored) for table in TABLES.values())])


def _head(address: str) -> str:
    store = """\
--
-- DuckDB reads a store with an extension and a secret of its own, such as:
--
--     INSTALL httpfs; LOAD httpfs; CREATE SECRET (TYPE s3, PROVIDER credential_chain);
"""
    return f"""\
-- The tables of this lake as views, for DuckDB 1.3 or newer. Written by nbia-pipeline, and again when a table appears.
--
--     duckdb -init catalog.sql           or, in a session:  .read catalog.sql
--     FROM series WHERE Modality = 'CT';
--
-- The files are read where the lake was when this file was written. Of a copy, or where it is mounted elsewhere:
--
--     SET VARIABLE nbia_lake = '/other/lake';
{store if is_uri(address) else ""}"""


def _view(address: str, table: Table, has_files: bool) -> str:
    empty = ", ".join(f'NULL::{_sql_type(field.type)} AS "{field.name}"' for field in table.schema)
    lines = [f'CREATE OR REPLACE VIEW "{table.name}" AS', f"SELECT * FROM (SELECT {empty} LIMIT 0)"]  # noqa: S608 - names of ours
    if has_files:
        pattern = f"/{FOLDER}/{table.name}/{'*/' if table.partitioned else ''}*.parquet"
        # The names of collections are text, and columns that an older file lacks are null.
        hive = f", hive_partitioning = true, hive_types = {{'{PARTITION}': VARCHAR}}" if table.partitioned else ""
        place = f"coalesce(getvariable('nbia_lake'), {_literal(address)})"
        lines += [
            "UNION ALL BY NAME",
            f"SELECT * FROM read_parquet({place} || '{pattern}'{hive}, union_by_name = true)",  # noqa: S608
        ]
    return "\n".join(lines) + ";\n"


def _literal(address: str) -> str:
    """Return an address as a text of SQL in which nothing stands for any name."""
    plain = re.sub(r"[*?\[]", r"[\g<0>]", address.rstrip("/"))
    return "'" + plain.replace("'", "''") + "'"


def _sql_type(type_: pa.DataType) -> str:
    if pa.types.is_list(type_):
        return f"{_sql_type(type_.value_type)}[]"
    if pa.types.is_struct(type_):
        fields = (f'"{field.name}" {_sql_type(field.type)}' for field in type_.fields)
        return f"STRUCT({', '.join(fields)})"
    return _TYPES[type_]
