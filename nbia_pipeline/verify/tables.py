"""Tables of the lake that are damaged, or missing while other tables or files show that they were there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.catalog import NO_EARLIER_VALUES, VALUES, describe, values_of
from nbia_pipeline.changes.feed import record_changes
from nbia_pipeline.changes.listing import LISTED, fetch_list, write_listing
from nbia_pipeline.changes.metadata import metadata_of
from nbia_pipeline.changes.reasons import Reasons
from nbia_pipeline.changes.rebuild import why_feed_is_lost, why_state_is_lost
from nbia_pipeline.headers.graph.resolve import write_references
from nbia_pipeline.headers.shards import plan_headers, write_shard
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.damage import damage_of, missing, read_or_empty, remove_if_damaged
from nbia_pipeline.lake.layout import IMAGES, NO_COLLECTION, decode
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.rebuild.tables import LOST_SELECTION, rebuild, why_instances_are_lost, why_receipts_are_lost
from nbia_pipeline.mirror.selection import Selection, Selections
from nbia_pipeline.schema import TABLES, Table
from nbia_pipeline.schema import tables as t
from nbia_pipeline.schema.headers import SERIES_REFERENCES
from nbia_pipeline.schema.headers import TABLES as OF_HEADERS
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import logger

log = logger(__name__)

OF_IMAGES = (t.IMAGE_SERIES, t.INSTANCES)
_RECORDED_AGAIN = "What it says is recorded again when the archive is listed, or files are read, the next time"
_READ_AGAIN = "It is made again from the headers of the files"
_NOT_LISTED = "The archive no longer lists the collection; what was known of its series is in series_seen"


@dataclass(frozen=True)
class TableDamage:
    """A table, or one collection of it, that is damaged or missing.

    Attributes:
        table: which one.
        collection: the partition; ``~archive`` for a table of the entire archive.
        what: what is wrong with it, and what to do.
    """

    table: Table
    collection: str
    what: str

    @property
    def of_collection(self) -> bool:
        """Whether it is about a collection."""
        return self.collection != NO_COLLECTION

    def __str__(self) -> str:
        return f"{self.collection}: table {self.table.name}, {self.what}"


def stored_collections(lake: Lake) -> list[str]:
    """Return the collections that any table, or any image file, is of."""
    found = {c for table in TABLES.values() if table.partitioned for c in lake.collections_of(table)}
    return sorted(found.union(map(decode, lake.names_in(IMAGES))) - {NO_COLLECTION})


def damaged_tables(lake: Lake, collections: Collection[str] | None = None) -> list[TableDamage]:
    """Return what is damaged or missing; every table is read as a whole.

    Args:
        lake: the lake.
        collections: of which; None for all, and for the tables of the entire archive too.

    Raises:
        LakeError: a file cannot be read, which says nothing about its content.
    """
    found = []
    if collections is None:
        found += [_damage(lake, table, None) for table in TABLES.values() if not table.partitioned]
        found.append(_damage(lake, t.CONFORMANCE, NO_COLLECTION))
    for collection in stored_collections(lake) if collections is None else collections:
        found += _damaged_of(lake, collection)
    return [damage for damage in found if damage]


def _damage(lake: Lake, table: Table, collection: str | None) -> TableDamage | None:
    damage = damage_of(lake, table, collection)
    return TableDamage(table, collection or NO_COLLECTION, str(damage)) if damage else None


def _damaged_of(lake: Lake, collection: str) -> Iterator[TableDamage | None]:
    receipts = why_receipts_are_lost(lake, collection)
    if receipts:
        there = lake.has_table(t.INSTANCES, collection)
        instances = damage_of(lake, t.INSTANCES, collection) if there else missing(t.INSTANCES, collection)
    else:
        instances = why_instances_are_lost(lake, collection, whole=True)
    special = {
        t.SERIES: _why_series_is_lost(lake, collection),
        t.SERIES_CHANGES: why_feed_is_lost(lake, collection),
        t.SERIES_SEEN: why_state_is_lost(lake, collection),
        t.IMAGE_SERIES: receipts,
        t.INSTANCES: instances,
    }
    for table in TABLES.values():
        if table in special:
            if why := special[table]:
                yield TableDamage(table, collection, str(why))
        elif table.partitioned:
            yield _damage(lake, table, collection)


def _why_series_is_lost(lake: Lake, collection: str) -> str | None:
    if damage := damage_of(lake, t.SERIES, collection):
        return str(damage)
    lost = lake.has_table(t.SERIES_SEEN, collection) and not lake.has_table(t.SERIES, collection)
    return missing(t.SERIES, collection) if lost else None


# --- repair


def repair_tables(client: NbiaClient, lake: Lake, settings: Settings, damaged: Sequence[TableDamage]) -> None:
    """Rebuild damaged and missing tables: by listing them, from other tables, or from the files.

    Series whose files turn out not to be those of the archive are fetched again.

    Raises:
        ArchiveError: the archive cannot be asked; what was rebuilt by then stays.
        LakeError: the lake cannot be read or written.
    """
    _repair_catalog(client, lake, settings, {d.table for d in damaged if not d.of_collection})
    for collection in sorted({d.collection for d in damaged if d.of_collection}):
        _repair(client, lake, settings, collection, {d.table for d in damaged if d.collection == collection})


def _repair_catalog(client: NbiaClient, lake: Lake, settings: Settings, tables: set[Table]) -> None:
    if t.COLLECTIONS in tables:
        before = read_or_empty(lake, t.COLLECTIONS, lost=NO_EARLIER_VALUES)
        fetch = partial(describe, client, settings, before, lake.collections_of(t.SERIES))
        write_listing(lake, t.COLLECTIONS, client.api, fetch)
    for table in tables.intersection(VALUES):
        write_listing(lake, table, client.api, partial(values_of, client, lake, table))
    if t.CONFORMANCE in tables:
        remove_if_damaged(lake, t.CONFORMANCE, NO_COLLECTION, _RECORDED_AGAIN)


def _repair(client: NbiaClient, lake: Lake, settings: Settings, collection: str, tables: set[Table]) -> None:
    for table in tables.intersection((t.CONFORMANCE, t.VERIFICATIONS)):
        remove_if_damaged(lake, table, collection, _RECORDED_AGAIN)
    if t.SELECTED_SERIES in tables:
        remove_if_damaged(lake, t.SELECTED_SERIES, collection, LOST_SELECTION)
    listed = collection in client.collection_values()
    for table in tables.intersection((*LISTED, t.SERIES_METADATA)):
        if not listed:
            remove_if_damaged(lake, table, collection, _NOT_LISTED)
        elif table in LISTED:
            write_listing(lake, table, client.api, partial(fetch_list, client, table, collection), collection)
    if tables.intersection((t.SERIES, t.SERIES_CHANGES, t.SERIES_SEEN)):
        record_changes(lake, collection, reasons=Reasons(client).of)
    if t.SERIES_METADATA in tables and listed:
        fetch = partial(metadata_of, client, lake, collection, calls=settings.metadata)
        write_listing(lake, t.SERIES_METADATA, client.api, fetch, collection)
    if tables.intersection((*OF_IMAGES, t.LICENSES, t.ANNOTATION_FILES)):
        _repair_images(client, lake, settings, collection)
    if headers := tables.intersection(OF_HEADERS.values()):
        _repair_headers(lake, collection, headers)


def _repair_headers(lake: Lake, collection: str, tables: Collection[Table]) -> None:
    for table in tables:
        remove_if_damaged(lake, table, collection, _READ_AGAIN)
    if any(table.sharded for table in tables):
        for shard in plan_headers(lake, collection):
            write_shard(lake, shard)
    if SERIES_REFERENCES in tables or lake.has_table(SERIES_REFERENCES, collection):
        write_references(lake, collection)


def _repair_images(client: NbiaClient, lake: Lake, settings: Settings, collection: str) -> None:
    rebuilt = rebuild(client, lake, collection)
    mirror = Mirror(client, lake, annotations=settings.annotations, selections=Selections(settings.select))
    if lake.count_rows(t.SERIES, collection):
        pending = tuple(rebuilt.pending) if rebuilt else ()
        for batch in mirror.plan(collection, Selection(series=pending)).batches() if pending else ():
            mirror.fetch(batch)
        mirror.plan(collection)  # stores the licenses
    mirror.commit(collection)
    if mirror.annotations:
        mirror.fetch_annotations(collection)
