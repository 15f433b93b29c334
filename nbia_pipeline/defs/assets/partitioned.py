"""What the assets of tables share: the decorator, and the processing of the partitions of one run."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from typing import Any

import dagster as dg

from nbia_pipeline import stopping
from nbia_pipeline.archive import ArchiveError
from nbia_pipeline.defs.metadata import records
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.errors import error_text
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.damage import read_or_empty
from nbia_pipeline.reading.sql import write_catalog
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.tables import COLLECTIONS
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import logger, shown

log = logger(__name__)

# The largest collection and, at the same time, the others. More at a time gain nothing and cost memory.
COLLECTIONS_AT_A_TIME = 2

FAILED_COLLECTIONS = "failed_collections"
"""Metadata of a failed step: the names of the collections that it failed for."""

Decorator = Callable[[Callable[..., Any]], dg.AssetsDefinition]


def table_asset(naming: Naming, table: Table, *, asset: str = "", calls_archive: bool = True, **more: Any) -> Decorator:
    """Return the asset decorator with what all tables share.

    Args:
        table: which one.
        asset: name of the asset; that of the table by default.
        calls_archive: whether it counts against the pool that limits the steps that call the archive.
        more: arguments of :func:`dagster.asset`.
    """
    return quiet_asset(
        key=naming.key(asset or table.name),
        io_manager_key=naming.io,
        required_resource_keys={naming.archive, naming.lake},
        pool=naming.pool if calls_archive else None,
        **more,
    )


def quiet_asset(**how: Any) -> Decorator:
    """Return the asset decorator without the warning that the argument `backfill_policy` is in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # the tests fail if it changes
        decorator: Decorator = dg.asset(**how)
    return decorator


def partitioned_asset(
    naming: Naming, table: Table, *, after: Sequence[Table] = (), calls_archive: bool = True
) -> Decorator:
    """Return the asset decorator of a table with one partition per collection; a backfill of it is one run.

    Args:
        table: which one.
        after: the tables that it depends on.
        calls_archive: whether it counts against the pool; one that only asks now and then does not.
    """
    return table_asset(
        naming,
        table,
        calls_archive=calls_archive,
        partitions_def=naming.partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[naming.key(t.name) for t in after],
    )


def each_partition(
    naming: Naming,
    settings: Settings,
    table: Table,
    context: dg.AssetExecutionContext,
    lake: Lake,
    make: Callable[[str], dict[str, Any]],
    salvage: Callable[[list[str]], None] = lambda made: None,
    asset: str = "",
) -> None:
    """Make the partitions of a run, each by itself, so that one that fails does not stop the others.

    Args:
        table: whose partitions they are.
        make: makes the partition of a collection and returns its metadata; called from several threads.
        salvage: called with the collections that were made if others failed: Dagster then skips the next steps.
        asset: name of the asset; that of the table by default.

    Raises:
        dagster.Failure: some could not be made.
    """
    made: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with stopping.threads(COLLECTIONS_AT_A_TIME, f"nbia-{table.name}") as pool:
        collections = {pool.submit(make, c): c for c in largest_first(lake, list(context.partition_keys))}
        for future in as_completed(collections):
            collection = collections[future]
            try:
                made[collection] = future.result()
            except (ArchiveError, LakeError) as e:
                log.warning("%s of %s: %s", table.name, collection, e)
                failed[collection] = error_text(e, settings.name_of)
            else:
                # Here rather than at the end: Dagster is slow at this, and meanwhile the other thread goes on.
                context.add_asset_metadata(made[collection], partition_key=collection)
    write_catalog(lake)
    if failed:
        record(context, naming.key(asset or table.name), made)
        salvage(list(made))
        raise failure_of(failed, len(made))


def failure_of(failed: Mapping[str, str], made: int) -> dg.Failure:
    """Return the failure of a step that made the partitions of some collections, and not those of others.

    Args:
        failed: why, by collection.
        made: how many were made.
    """
    first, why = next(iter(failed.items()))
    names: dict[str, Any] = {FAILED_COLLECTIONS: dg.MetadataValue.json(list(failed))}
    if len(failed) == 1 and not made:
        return dg.Failure(why, metadata={"collection": shown(first), **names}, allow_retries=False)
    return dg.Failure(
        shown(f"{len(failed)} of {len(failed) + made} collections failed, the first: {first}: {why}"),
        metadata={"failed": records({"collection": c, "reason": text} for c, text in failed.items()), **names},
        allow_retries=False,
    )


def largest_first(lake: Lake, collections: list[str]) -> list[str]:
    """Return the collections by decreasing number of patients, so that no large one runs alone at the end.

    Collections without a known number come last, in the given order.
    """
    columns = ["Collection", "PatientCount"]
    known = read_or_empty(lake, COLLECTIONS, columns=columns, lost="The collections are taken in any order")
    patients = dict(zip(known["Collection"].to_pylist(), known["PatientCount"].to_pylist(), strict=True))
    return sorted(collections, key=lambda c: -(patients.get(c) or 0))


def record(context: dg.AssetExecutionContext, key: dg.AssetKey, made: dict[str, dict[str, Any]]) -> None:
    """Report partitions to Dagster that were made although the step fails, or belongs to another asset."""
    for collection, metadata in made.items():
        context.log_event(dg.AssetMaterialization(asset_key=key, partition=collection, metadata=metadata))
