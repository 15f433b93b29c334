"""The checks of the tables: they agree with each other."""

from collections.abc import Iterator

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.defs.checks.check import Finding, Report, build_check
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.tables import PATIENTS, SERIES, SERIES_METADATA, STUDIES
from nbia_pipeline.settings import Settings


def build_checks(names: Naming, settings: Settings) -> list[dg.AssetChecksDefinition]:
    """Return the checks of the tables of one archive."""
    return [
        build_check(
            names,
            settings,
            "series",
            "uids_unique",
            "Every series is listed once.",
            lambda subject: Report(duplicates(subject.lake)),
        ),
        build_check(
            names,
            settings,
            "patients",
            "cover_series",
            "Every patient of the series table is in the patients table.",
            lambda subject: Report(not_covered(subject.lake, PATIENTS, "PatientID")),
        ),
        build_check(
            names,
            settings,
            "studies",
            "cover_series",
            "Every study of the series table is in the studies table.",
            lambda subject: Report(not_covered(subject.lake, STUDIES, "StudyInstanceUID")),
        ),
        build_check(
            names,
            settings,
            "series_metadata",
            "cover_series",
            "Every series of the series table has its metadata.",
            lambda subject: Report(not_covered(subject.lake, SERIES_METADATA, "SeriesInstanceUID")),
        ),
    ]


def duplicates(lake: Lake) -> Iterator[Finding]:
    """Yield the series that a partition of the ``series`` table holds more than once."""
    for collection in lake.collections_of(SERIES):
        uids = lake.read_table(SERIES, collection, columns=["SeriesInstanceUID"])["SeriesInstanceUID"]
        for counted in pc.value_counts(uids).filter(_more_than_one(uids)).to_pylist():
            uid = counted["values"]
            yield Finding(collection, f"series {uid} is listed {counted['counts']} times", uid)


def _more_than_one(uids: pa.ChunkedArray) -> pa.Array:
    return pc.greater(pc.value_counts(uids).field("counts"), 1)


def not_covered(lake: Lake, table: Table, column: str) -> Iterator[Finding]:
    """Yield what the ``series`` table names in `column` and `table` does not hold, where both are there."""
    for collection in sorted(set(lake.collections_of(table)) & set(lake.collections_of(SERIES))):
        needed = pc.unique(lake.read_table(SERIES, collection, columns=[column])[column])
        held = lake.read_table(table, collection, columns=[column])[column]
        missing = needed.filter(pc.invert(pc.is_in(needed, pc.unique(held))))
        for value in missing.to_pylist():
            series = value if column == "SeriesInstanceUID" else None
            yield Finding(collection, f"{column} {value} is not in {table.name}", series)
