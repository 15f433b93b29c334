"""The asset checks: what the lake holds agrees with itself, and nothing that is listed is missing.

Each check reads the whole table, all collections of it, whichever partition was just materialised: Dagster
shows one result per check, and a pass for one collection must not hide the failure of another.
"""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.failures import as_failure
from nbia_pipeline.lake import Lake
from nbia_pipeline.names import Names
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.tables import IMAGE_SERIES, PATIENTS, SERIES, SERIES_METADATA, STUDIES
from nbia_pipeline.settings import Settings
from nbia_pipeline.transfer.plan import COMPLETE, PENDING, make_plan

SHOWN = 10

Finding = tuple[str, str]
"""A collection and what is wrong in it."""


def build_checks(names: Names) -> list[dg.AssetChecksDefinition]:
    """Return the checks of one archive."""
    return [
        _check(names, "series", "uids_unique", "Every series is listed once.", duplicates),
        _check(
            names,
            "patients",
            "cover_series",
            "Every patient of the series table is in the patients table.",
            lambda lake: not_covered(lake, PATIENTS, "PatientID"),
        ),
        _check(
            names,
            "studies",
            "cover_series",
            "Every study of the series table is in the studies table.",
            lambda lake: not_covered(lake, STUDIES, "StudyInstanceUID"),
        ),
        _check(
            names,
            "series_metadata",
            "cover_series",
            "Every series of the series table has its metadata.",
            lambda lake: not_covered(lake, SERIES_METADATA, "SeriesInstanceUID"),
        ),
        _check(
            names,
            "images",
            "complete",
            "Every listed series of a mirrored collection is in the lake, whole, verified and as listed now.",
            incomplete,
            needs_archive=True,
        ),
    ]


def _check(
    names: Names,
    asset: str,
    name: str,
    description: str,
    find: Callable[..., Iterator[Finding]],
    needs_archive: bool = False,
) -> dg.AssetChecksDefinition:
    needed = {names.lake, names.archive} if needs_archive else {names.lake}

    @dg.asset_check(asset=names.key(asset), name=name, description=description, required_resource_keys=needed)
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        with as_failure():
            lake = names.lake_of(context).open(write=False)
            findings = list(find(lake, names.archive_of(context).settings()) if needs_archive else find(lake))
        rows = [dg.TableRecord({"collection": c, "finding": what}) for c, what in findings[:SHOWN]]
        metadata: dict[str, Any] = {"findings": len(findings)}
        if rows:
            metadata["first_findings"] = dg.MetadataValue.table(rows)
        text = (
            f"{description} Not so: {len(findings)} findings, the first: {findings[0][1]}" if findings else description
        )
        return dg.AssetCheckResult(passed=not findings, metadata=metadata, description=text)

    return check


def duplicates(lake: Lake) -> Iterator[Finding]:
    """Yield the series that a partition of the ``series`` table holds more than once."""
    for collection in lake.collections_of(SERIES):
        uids = lake.read_table(SERIES, collection, columns=["SeriesInstanceUID"])["SeriesInstanceUID"]
        for counted in pc.value_counts(uids).filter(_more_than_one(uids)).to_pylist():
            yield collection, f"series {counted['values']} is listed {counted['counts']} times"


def _more_than_one(uids: pa.ChunkedArray) -> pa.Array:
    return pc.greater(pc.value_counts(uids).field("counts"), 1)


def not_covered(lake: Lake, table: Table, column: str) -> Iterator[Finding]:
    """Yield what the ``series`` table names in `column` and `table` does not hold, where both are there."""
    for collection in sorted(set(lake.collections_of(table)) & set(lake.collections_of(SERIES))):
        needed = pc.unique(lake.read_table(SERIES, collection, columns=[column])[column])
        held = lake.read_table(table, collection, columns=[column])[column]
        missing = needed.filter(pc.invert(pc.is_in(needed, pc.unique(held))))
        for value in missing.to_pylist():
            yield collection, f"{column} {value} is not in {table.name}"


def incomplete(lake: Lake, settings: Settings) -> Iterator[Finding]:
    """Yield the listed series without a complete receipt of their present content.

    A collection that is not mirrored, or whose images were never asked for, is left out.
    """
    for collection in filter(settings.mirrors_images_of, lake.collections_of(IMAGE_SERIES)):
        receipts = lake.read_table(IMAGE_SERIES, collection)
        known = {r["SeriesInstanceUID"]: r for r in receipts.to_pylist()}
        for series in make_plan(lake.read_table(SERIES, collection), receipts).todo:
            receipt = known.get(series.SeriesInstanceUID, {})
            status = receipt.get("Status", PENDING)
            status = "outdated" if status == COMPLETE else status
            why = receipt.get("Reason") or "the archive changed it since it was fetched"
            yield collection, f"series {series.SeriesInstanceUID} is {status}: {why}"
