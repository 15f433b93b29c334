"""The tables, one asset each: some of the whole archive, the others partitioned by collection."""

import logging
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import dagster as dg
import pyarrow as pa

from nbia_pipeline.archive import ArchiveError, BadAnswer, NbiaClient
from nbia_pipeline.assets.presentation import definition_metadata, materialisation_metadata
from nbia_pipeline.clock import utc_now
from nbia_pipeline.failures import as_failure
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.names import Names
from nbia_pipeline.partitions import register
from nbia_pipeline.schema import Table
from nbia_pipeline.schema import tables as t
from nbia_pipeline.settings import Settings, SettingsError, matching, unmatched
from nbia_pipeline.transfer.receipts import staged_by_journal

log = logging.getLogger(__name__)

# Collections in flight at a time: the largest and, beside it, the others. More gain nothing and cost memory.
COLLECTIONS_AT_A_TIME = 2
DESCRIPTIONS_AT_A_TIME = 8
LISTED_AT = "listed_at"  # fact of every table from the archive: when it was asked (UTC, ISO 8601)

FetchPartition = Callable[[NbiaClient, Lake, str], pa.Table]


def build_table_assets(names: Names) -> list[dg.AssetsDefinition]:
    """Return the table assets of one archive, in the order of the design's table."""
    return [
        _collections(names),
        _values(names, t.MODALITIES, NbiaClient.modality_values),
        _values(names, t.BODY_PARTS, NbiaClient.body_part_values),
        _values(names, t.MANUFACTURERS, NbiaClient.manufacturer_values),
        _partitioned(names, t.PATIENTS, lambda client, lake, c: client.patients(c)),
        _partitioned(names, t.STUDIES, lambda client, lake, c: client.studies(c)),
        _partitioned(names, t.SERIES, lambda client, lake, c: client.series(c)),
        _partitioned(names, t.SERIES_METADATA, fetch_metadata, after=t.SERIES),
    ]


def _collections(names: Names) -> dg.AssetsDefinition:
    @_asset(names, t.COLLECTIONS, group="catalogue")
    def collections(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        archive = names.archive_of(context)
        with as_failure(), archive.client() as client:
            lake = names.lake_of(context).open()
            settings = archive.settings()
            kept = kept_collections(settings, client.collection_values())
            metadata = _write(t.COLLECTIONS, lake, lambda: describe(client, kept))
            lake.sweep(keep=staged_by_journal(lake))
        new = register(context.instance, names.partitions, kept)
        return dg.MaterializeResult(metadata={**metadata, "new_partitions": len(new)})

    return collections


def _values(names: Names, table: Table, fetch: Callable[[NbiaClient], pa.Table]) -> dg.AssetsDefinition:
    @_asset(names, table, group="catalogue")
    def values(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        with as_failure(), names.archive_of(context).client() as client:
            lake = names.lake_of(context).open()
            return dg.MaterializeResult(metadata=_write(table, lake, lambda: fetch(client)))

    return values


def _partitioned(
    names: Names, table: Table, fetch: FetchPartition, after: Table = t.COLLECTIONS
) -> dg.AssetsDefinition:
    @_asset(
        names,
        table,
        group="tables",
        partitions_def=names.partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[names.key(after.name)],
    )
    def partitioned(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        with as_failure(), names.archive_of(context).client() as client:
            lake = names.lake_of(context).open()
            written, failed = _write_partitions(table, fetch, client, lake, context)
        if failed:
            _record(context, names.key(table.name), written)
            raise _failure_of(failed, done=len(written))
        return dg.MaterializeResult()

    return partitioned


def kept_collections(settings: Settings, listed: list[str]) -> list[str]:
    """Return the collections that the settings keep.

    Raises:
        BadAnswer: the archive lists none at all.
        SettingsError: a name or glob of NBIA_COLLECTIONS or NBIA_IMAGES matches nothing.
    """
    if not listed:
        raise BadAnswer(f"the archive lists no collection for the account {settings.username!r}: try later")
    for variable, patterns in (("NBIA_COLLECTIONS", settings.collections), ("NBIA_IMAGES", settings.images or ())):
        for pattern, similar in unmatched(patterns, listed).items():
            hint = f"did you mean {', '.join(similar)}?" if similar else f"there are {_some(listed)}"
            raise SettingsError(
                f"{variable} has {pattern!r}, which matches no collection that {settings.username!r} may see: {hint} "
                "(names are case-sensitive)"
            )
    return matching(settings.collections, listed)


def _some(listed: list[str]) -> str:
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")


def describe(client: NbiaClient, collections: list[str]) -> pa.Table:
    """Return the ``collections`` table: one row per collection, with its count and its latest description."""
    counts = client.collection_counts()

    def row(collection: str) -> dict[str, Any]:
        found = client.collection_description(collection).to_pylist()
        latest = max(found, key=lambda d: str(d["DescriptionTimestamp"])) if found else {}
        return {**latest, "Collection": collection, "PatientCount": counts.get(collection)}

    with ThreadPoolExecutor(DESCRIPTIONS_AT_A_TIME, thread_name_prefix="nbia-descriptions") as pool:
        return pa.Table.from_pylist(list(pool.map(row, collections)), schema=t.COLLECTIONS.schema)


def fetch_metadata(client: NbiaClient, lake: Lake, collection: str) -> pa.Table:
    """Return the metadata of all series that the collection's ``series`` table lists.

    Raises:
        BadAnswer: the archive has metadata of none of them.
        LakeError: the ``series`` table was not materialised yet.
    """
    uids = lake.read_table(t.SERIES, collection, columns=["SeriesInstanceUID"])["SeriesInstanceUID"].to_pylist()
    if not uids:
        raise LakeError(f"the series table has no rows for {collection!r}: materialise series first")
    return client.series_metadata(uids)


def _write(table: Table, lake: Lake, fetch: Callable[[], pa.Table], collection: str | None = None) -> dict[str, Any]:
    started = time.perf_counter()
    facts = {LISTED_AT: utc_now().isoformat()}  # before the question: what changes meanwhile is of a later listing
    data = fetch()
    if data.num_rows == 0 and collection is not None:
        raise BadAnswer(
            f"the archive has nothing in {collection!r} for this account: the collection may be withdrawn, or "
            "restricted to another account. What the lake holds was left as it was"
        )
    size = lake.write_table(table, data, collection, facts=facts)
    seconds = time.perf_counter() - started
    return materialisation_metadata(table, lake, data.num_rows, size, seconds, collection)


def _write_partitions(
    table: Table, fetch: FetchPartition, client: NbiaClient, lake: Lake, context: dg.AssetExecutionContext
) -> tuple[dict[str, dict[str, Any]], dict[str, Exception]]:
    """Write each collection by itself, so that one that fails costs only itself."""
    written: dict[str, dict[str, Any]] = {}
    failed: dict[str, Exception] = {}

    def one(collection: str) -> dict[str, Any]:
        return _write(table, lake, lambda: fetch(client, lake, collection), collection)

    with ThreadPoolExecutor(COLLECTIONS_AT_A_TIME, thread_name_prefix=f"nbia-{table.name}") as pool:
        collections = {pool.submit(one, c): c for c in largest_first(lake, list(context.partition_keys))}
        for future in as_completed(collections):
            collection = collections[future]
            try:
                written[collection] = future.result()
            except (ArchiveError, LakeError) as e:
                log.warning("%s of %s: %s", table.name, collection, e)
                failed[collection] = e
            else:
                # Here rather than at the end: Dagster takes its time for it, and meanwhile the others go on.
                context.add_asset_metadata(written[collection], partition_key=collection)
    return written, failed


def largest_first(lake: Lake, collections: list[str]) -> list[str]:
    """Return the collections by falling number of patients, so that none of the large ones runs alone at the end.

    Those whose number is not known come last, in the order given.
    """
    known = lake.read_table(t.COLLECTIONS, columns=["Collection", "PatientCount"])
    patients = dict(zip(known["Collection"].to_pylist(), known["PatientCount"].to_pylist(), strict=True))
    return sorted(collections, key=lambda c: -(patients.get(c) or 0))


def _record(context: dg.AssetExecutionContext, key: dg.AssetKey, written: dict[str, dict[str, Any]]) -> None:
    """Tell Dagster of the partitions that were written although the step fails."""
    for collection, metadata in written.items():
        context.log_event(dg.AssetMaterialization(asset_key=key, partition=collection, metadata=metadata))


def _failure_of(failed: dict[str, Exception], done: int) -> dg.Failure:
    first = next(iter(failed.values()))
    if len(failed) == 1 and not done:
        return dg.Failure(str(first), metadata={"collection": next(iter(failed))})
    rows = [dg.TableRecord({"collection": c, "reason": str(e)}) for c, e in failed.items()]
    return dg.Failure(
        f"{len(failed)} collections failed, {done} were written. {next(iter(failed))}: {first}",
        metadata={"failed": dg.MetadataValue.table(rows)},
    )


def _asset(names: Names, table: Table, group: str, **more: Any) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Return the asset decorator with what all tables share."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # backfill_policy; the tests notice if it changes
        decorator: Callable[[Callable[..., Any]], dg.AssetsDefinition] = dg.asset(
            key=names.key(table.name),
            description=table.description,
            group_name=group,
            kinds={"parquet"},
            metadata=definition_metadata(table),
            required_resource_keys={names.archive, names.lake},
            pool=names.pool,
            **more,
        )
    return decorator
