"""The checks of the tables: they agree with each other."""

from collections.abc import Iterator
from functools import partial

import dagster as dg
import pyarrow.compute as pc

from nbia_pipeline.archive.conformance import Nonconformity
from nbia_pipeline.defs.checks.check import Finding, Report, build_check
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import NO_COLLECTION
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.arrow import places_in, repeats
from nbia_pipeline.schema.tables import COLLECTIONS, CONFORMANCE, PATIENTS, SERIES, SERIES_METADATA, STUDIES
from nbia_pipeline.settings import Settings


def build_checks(naming: Naming, settings: Settings) -> list[dg.AssetChecksDefinition]:
    """Return the checks of the tables of one archive."""
    check = partial(build_check, naming, settings)

    def covers_series(table: Table, column: str, description: str) -> dg.AssetChecksDefinition:
        find = partial(not_covered, table=table, column=column)
        return check(table, "cover_series", description, lambda s: Report(find(s.lake, s.collection)))

    def conformance(table: Table) -> dg.AssetChecksDefinition:
        return check(
            table,
            "conformance",
            "Every value, row and key that the archive sends fits the table.",
            lambda s: Report(nonconforming(s.lake, s.collection, table)),
            severity=dg.AssetCheckSeverity.WARN,
        )

    return [
        *map(conformance, (COLLECTIONS, PATIENTS, STUDIES, SERIES, SERIES_METADATA)),
        check(
            SERIES, "uids_unique", "Every series is listed once.", lambda s: Report(duplicates(s.lake, s.collection))
        ),
        covers_series(PATIENTS, "PatientID", "Every patient of the series table is in the patients table."),
        covers_series(STUDIES, "StudyInstanceUID", "Every study of the series table is in the studies table."),
        covers_series(SERIES_METADATA, "SeriesInstanceUID", "Every series of the series table has its metadata."),
    ]


def duplicates(lake: Lake, collection: str) -> Iterator[Finding]:
    """Yield the series that are more than once in a partition of the ``series`` table."""
    uids = lake.read_file(SERIES, collection)["SeriesInstanceUID"]
    counts = pc.value_counts(uids if repeats(uids) else uids[:0])
    for repeated in counts.filter(pc.greater(counts.field("counts"), 1)).to_pylist():
        uid = repeated["values"]
        yield Finding(f"series {uid} is listed {repeated['counts']} times", uid)


def nonconforming(lake: Lake, collection: str, table: Table) -> Iterator[Finding]:
    """Yield what in the last answers for a table did not fit it; `collection` is "" for one of the entire archive."""
    rows = lake.read_table(CONFORMANCE, collection or NO_COLLECTION)
    for row in rows.filter(pc.equal(rows["TableName"], table.name)).to_pylist():
        one = Nonconformity(*(row[name] for name in ("TableName", "RowKey", "ColumnName", "SentValue", "Why")))
        yield Finding(one.text, one.key if table.key == ("SeriesInstanceUID",) else None)


def not_covered(lake: Lake, collection: str, table: Table, column: str) -> Iterator[Finding]:
    """Yield the values of `column` in the ``series`` table of a collection that `table` lacks."""
    if not lake.has_table(table, collection):
        return
    needed = lake.read_file(SERIES, collection)[column]
    known = lake.read_file(table, collection)[column]
    missing = needed.filter(pc.is_null(places_in(pc.fill_null(needed, ""), pc.fill_null(known, ""))))
    for value in pc.unique(missing).to_pylist():
        yield Finding(f"{column} {value} is not in {table.name}", value if column == "SeriesInstanceUID" else None)
