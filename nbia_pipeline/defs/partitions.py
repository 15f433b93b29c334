"""One partition per collection, never one per series: there are a million of those."""

from __future__ import annotations

import dagster as dg

PREFIX = "nbia"


def collection_partitions(prefix: str = PREFIX) -> dg.DynamicPartitionsDefinition:
    """Return the partitions of an archive: its kept collections, in their exact spelling."""
    return dg.DynamicPartitionsDefinition(name=f"{prefix}_collections")


def cart_partitions(prefix: str = PREFIX) -> dg.DynamicPartitionsDefinition:
    """Return the shared carts of an archive whose images a person wants; each is added by hand, by its name."""
    return dg.DynamicPartitionsDefinition(name=f"{prefix}_carts")


def register(
    instance: dg.DagsterInstance, partitions: dg.DynamicPartitionsDefinition, collections: list[str]
) -> list[str]:
    """Add the collections that are not partitions yet, sorted, and return them.

    Partitions of collections that are gone stay: their tables and files do too.
    """
    name = str(partitions.name)
    new = sorted(set(collections) - set(instance.get_dynamic_partitions(name)))
    if new:
        instance.add_dynamic_partitions(name, new)
    return new


def contiguous_ranges(keys: list[str], registered: list[str]) -> list[tuple[str, str]]:
    """Cover `keys` by ranges of neighbours in the order of registration, as single-run backfills need them."""
    ranges: list[tuple[str, str]] = []
    wanted = set(keys)
    previous: str | None = None
    for key in registered:
        if key in wanted:
            if previous is not None and ranges and ranges[-1][1] == previous:
                ranges[-1] = (ranges[-1][0], key)
            else:
                ranges.append((key, key))
        previous = key
    return ranges
