"""The index of the Imaging Data Commons as a catalog: a million real series, tables only.

The benchmarks of tables use it. The package ``idc-index-data`` contains the index.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, VISIBLE, Catalog
from nbia_pipeline.embedded.demo.tables import BY4, BYNC4

_COLUMNS = (
    "collection_id PatientID SeriesInstanceUID StudyInstanceUID source_DOI PatientAge PatientSex StudyDate "
    "StudyDescription BodyPartExamined Modality SOPClassUID Manufacturer ManufacturerModelName SeriesDate "
    "SeriesDescription SeriesNumber instanceCount license_short_name series_init_idc_version "
    "series_revised_idc_version series_size_MB"
).split()
_LICENSES = {
    "CC BY 3.0": ("Creative Commons Attribution 3.0 Unported License", "http://creativecommons.org/licenses/by/3.0/"),
    "CC BY 4.0": BY4,
    "CC BY-NC 3.0": (
        "Creative Commons Attribution-NonCommercial 3.0 Unported License",
        "https://creativecommons.org/licenses/by-nc/3.0/",
    ),
    "CC BY-NC 4.0": BYNC4,
}
_OTHER_LICENSE_URI = "https://www.nlm.nih.gov/databases/download/terms_and_conditions.html"
_START_YEAR = 2020
# A submission carries a time of day, a release is a day at midnight, as on the server.
_SUBMISSION_HOUR = 8


class IdcIndexMissingError(ImportError):
    """The package with the index of the Imaging Data Commons is not installed."""


def idc_catalog() -> Catalog:
    """Return the catalog of every series in the Imaging Data Commons.

    Release and submission days are made from the index's version numbers, one month a version from January
    2020, so that every start gives the same catalog.

    Raises:
        IdcIndexMissingError: without the package ``idc-index-data``.
    """
    try:
        package = importlib.import_module("idc_index_data")
    except ImportError as error:
        raise IdcIndexMissingError(
            "the catalog idc needs the package idc-index-data: pip install 'nbia-pipeline[idc]'"
        ) from error
    index = pq.read_table(package.IDC_INDEX_PARQUET_FILEPATH, columns=_COLUMNS)
    # Reading through a data set of batches keeps the pieces small enough for 32-bit text offsets.
    batches = [_columns(batch) for batch in index.to_batches(max_chunksize=100_000)]
    return Catalog(pa.Table.from_batches(batches, CATALOG_SCHEMA))


def _columns(index: pa.RecordBatch) -> pa.RecordBatch:
    """Map rows of the index to the rows of a catalog."""
    rows = index.num_rows
    versions = index.column("series_revised_idc_version"), index.column("series_init_idc_version")
    license = index.column("license_short_name")
    known: dict[str, pa.Array] = {
        "Collection": index.column("collection_id"),
        "Site": _constant("IDC", rows),
        "PatientName": index.column("PatientID"),
        "StudyDate": index.column("StudyDate").cast(pa.string()),
        "SeriesDate": index.column("SeriesDate").cast(pa.string()),
        "SeriesNumber": _whole_number(index.column("SeriesNumber")),
        "ImageCount": index.column("instanceCount"),
        "FileSize": pc.round(pc.multiply(index.column("series_size_MB"), 1e6)).cast(pa.int64()),
        "TimeStamp": _by_unique(versions[0], lambda v: _month(v, _SUBMISSION_HOUR), pa.timestamp("us")),
        "DateReleased": _by_unique(versions[1], lambda v: _month(v, 0), pa.timestamp("us")),
        "ReleasedStatus": _constant("Yes", rows),
        "LicenseName": _by_unique(license, lambda name: _license(name)[0], pa.string()),
        "LicenseURI": _by_unique(license, lambda name: _license(name)[1], pa.string()),
        "CollectionURI": _by_unique(index.column("source_DOI"), lambda doi: f"https://doi.org/{doi}", pa.string()),
        "AnnotationSize": _constant(0, rows),
        "Visibility": _constant(VISIBLE, rows),
    }
    columns = {**dict(zip(index.schema.names, index.columns, strict=True)), **known}
    unknown = pa.nulls(rows)
    arrays = [columns.get(field.name, unknown).cast(field.type) for field in CATALOG_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=CATALOG_SCHEMA)


def _constant(value: str | int, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), rows)


def _by_unique(values: pa.Array, derive: Callable[[object], object], kind: pa.DataType) -> pa.Array:
    encoded = values.dictionary_encode()
    derived = [derive(value) for value in encoded.dictionary.to_pylist()]
    return pa.array(derived, kind).take(encoded.indices)


def _license(short_name: object) -> tuple[str, str]:
    return _LICENSES.get(str(short_name), (str(short_name), _OTHER_LICENSE_URI))


def _month(version: object, hour: int) -> datetime:
    months = int(str(version))
    return datetime(_START_YEAR + months // 12, months % 12 + 1, 1, hour)  # noqa: DTZ001 - the server's times are naive


def _whole_number(texts: pa.Array) -> pa.Array:
    """Return the numbers among `texts`; null where the text is not a whole number."""
    whole = pc.match_substring_regex(texts, r"^-?[0-9]{1,18}$")
    return pc.if_else(whole, texts, pa.scalar(None, texts.type)).cast(pa.int64())
