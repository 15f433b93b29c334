"""The tables, one asset each: some of the entire archive, the others partitioned by collection."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import dagster as dg
from pydantic import Field

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.catalog import NO_EARLIER_VALUES, VALUES, describe, expect_own_lake, values_of
from nbia_pipeline.changes.listing import LISTED, Fetched, fetch_list, write_listing
from nbia_pipeline.changes.metadata import metadata_of
from nbia_pipeline.changes.present import returned_collections, vanished_collections
from nbia_pipeline.defs.assets.changes import ChangesConfig, build_changes_asset, record_collections
from nbia_pipeline.defs.assets.partitioned import each_partition, partitioned_asset, table_asset
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.metadata import materialization_metadata, preview
from nbia_pipeline.defs.naming import Naming, register
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.damage import read_or_empty
from nbia_pipeline.mirror import journal
from nbia_pipeline.reading.sql import write_catalog
from nbia_pipeline.schema import Table
from nbia_pipeline.schema import tables as t
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import first_of, shown

SHOWN = 20


class ListingConfig(dg.Config):
    """What a run of a table takes for right."""

    allow_lost_columns: bool = Field(
        default=False,
        description="Accept an answer in which a column is empty that used to be full. Otherwise it is refused, as an "
        "empty answer is: the archive may have renamed a key.",
    )


class MetadataConfig(ListingConfig):
    """What a run of ``series_metadata`` asks for."""

    full: bool = Field(
        default=False,
        description="Ask about all series, not only new and revised ones: this finds changes that the series table "
        "does not show, in the columns that the archive serves (setting metadata), such as another SOP class on v2.",
    )


def build_table_assets(naming: Naming, settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the table assets of one archive."""
    return [
        _collections(naming, settings),
        *(_values(naming, settings, table) for table in VALUES),
        *(_listing(naming, settings, table) for table in LISTED),
        build_changes_asset(naming, settings),
        _series_metadata(naming, settings),
    ]


def _collections(naming: Naming, settings: Settings) -> dg.AssetsDefinition:
    @table_asset(naming, t.COLLECTIONS)
    def collections(context: dg.AssetExecutionContext, config: ChangesConfig) -> dg.MaterializeResult[Any]:
        with as_failure(settings), naming.archive_of(context).client() as client:
            lake = naming.lake_of(context).open()
            owner = expect_own_lake(lake, naming.prefix, settings.archive)
            known = lake.collections_of(t.SERIES)
            before = read_or_empty(lake, t.COLLECTIONS, lost=NO_EARLIER_VALUES)

            def fetch() -> Fetched:
                fetched = describe(client, settings, before, known)
                return replace(fetched, properties={**fetched.properties, **owner})

            metadata = _write(t.COLLECTIONS, client, lake, fetch)
            journal.sweep(lake)
            vanished = vanished_collections(lake)
            # No other step does: a collection that the archive does not list has no listing of series, and no run.
            record_collections(naming, context, lake, [*vanished, *returned_collections(lake)], config)
        kept = lake.read_table(t.COLLECTIONS, columns=["Collection"])["Collection"].to_pylist()
        new = register(context.instance, naming.partitions, kept)
        return dg.MaterializeResult(metadata={**metadata, "new_partitions": _names(new), "vanished": _names(vanished)})

    return collections


def _names(collections: Sequence[str]) -> str:
    return shown(f"{len(collections)}: {first_of(collections, SHOWN)}" if collections else "none")


def _values(naming: Naming, settings: Settings, table: Table) -> dg.AssetsDefinition:
    @table_asset(naming, table)
    def values(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        with as_failure(settings), naming.archive_of(context).client() as client:
            lake = naming.lake_of(context).open()
            return dg.MaterializeResult(metadata=_write(table, client, lake, lambda: values_of(client, lake, table)))

    return values


def _listing(naming: Naming, settings: Settings, table: Table) -> dg.AssetsDefinition:
    """Return a table whose partitions are each one listing of the archive."""

    @partitioned_asset(naming, table, after=[t.COLLECTIONS])
    def listing(context: dg.AssetExecutionContext, config: ListingConfig) -> dg.MaterializeResult[Any]:
        def salvage(listed: list[str]) -> None:
            # One collection that fails for days must not keep the changes of all others from the feed.
            if table == t.SERIES:
                record_collections(naming, context, naming.lake_of(context).open(), listed, ChangesConfig())

        def fetch(client: NbiaClient, lake: Lake, collection: str) -> Fetched:
            return fetch_list(client, table, collection)

        return _each(naming, settings, table, context, config, fetch, salvage)

    return listing


def _series_metadata(naming: Naming, settings: Settings) -> dg.AssetsDefinition:
    @partitioned_asset(naming, t.SERIES_METADATA, after=[t.SERIES, t.SERIES_CHANGES])
    def series_metadata(context: dg.AssetExecutionContext, config: MetadataConfig) -> dg.MaterializeResult[Any]:
        def fetch(client: NbiaClient, lake: Lake, collection: str) -> Fetched:
            return metadata_of(client, lake, collection, full=config.full, calls=settings.metadata)

        return _each(naming, settings, t.SERIES_METADATA, context, config, fetch)

    return series_metadata


def _each(
    naming: Naming,
    settings: Settings,
    table: Table,
    context: dg.AssetExecutionContext,
    config: ListingConfig,
    fetch: Callable[[NbiaClient, Lake, str], Fetched],
    salvage: Callable[[list[str]], None] = lambda made: None,
) -> dg.MaterializeResult[Any]:
    """Write the partitions of a run, each from its own fetch."""
    with as_failure(settings), naming.archive_of(context).client() as client:
        lake = naming.lake_of(context).open()

        def make(collection: str) -> dict[str, Any]:
            ask = partial(fetch, client, lake, collection)
            return _write(table, client, lake, ask, collection, allow_lost_columns=config.allow_lost_columns)

        each_partition(naming, settings, table, context, lake, make, salvage)
    return dg.MaterializeResult()


def _write(
    table: Table,
    client: NbiaClient,
    lake: Lake,
    fetch: Callable[[], Fetched],
    collection: str | None = None,
    *,
    allow_lost_columns: bool = False,
) -> dict[str, Any]:
    started = time.perf_counter()
    fetched, size = write_listing(lake, table, client.api, fetch, collection, allow_lost_columns=allow_lost_columns)
    seconds = time.perf_counter() - started
    figures = materialization_metadata(table, lake, fetched.rows.num_rows, size, seconds, collection)
    if collection is None:
        write_catalog(lake)
    warnings = [*client.warnings, *fetched.warnings]
    figures |= {**fetched.figures, **preview(table, fetched.rows)}
    return {**figures, **({"warning": "\n".join(map(shown, warnings))} if warnings else {})}
