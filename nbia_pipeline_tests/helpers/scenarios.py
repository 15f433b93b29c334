"""What is done with a lake while its disk fails: all that changes a lake, each with a lake to begin with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.listing import write_listing
from nbia_pipeline.changes.metadata import metadata_of
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror import journal
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.plan import Plan
from nbia_pipeline.mirror.prune import prunable, prune
from nbia_pipeline.mirror.series import as_table
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.schema.tables import IMAGE_SERIES, SERIES_METADATA
from nbia_pipeline.verify.refetch import refetch
from nbia_pipeline.verify.rehash import plan_verification, read_again
from nbia_pipeline_tests.helpers.small_archive import CART, COLLECTION, NEW, OTHER, STAYS

START = datetime(2024, 5, 1, 12)  # noqa: DTZ001 - UTC without a zone, as the tables have it

Step = Callable[[NbiaClient, Lake], "list[str]"]
"""Does something with a lake, and returns what of it failed without an error."""


def tables(client: NbiaClient, lake: Lake) -> list[str]:
    """List everything into the tables, without images."""
    Mirror(client, lake).update_tables(COLLECTION)
    fetch = partial(metadata_of, client, lake, COLLECTION)
    write_listing(lake, SERIES_METADATA, client.api, fetch, COLLECTION)
    return []


def images(client: NbiaClient, lake: Lake) -> list[str]:
    """Mirror a collection: tables, images, licenses, annotation files."""
    tables(client, lake)
    mirror = Mirror(client, lake, streams=1)
    plan = mirror.plan(COLLECTION)
    try:
        failed = _fetched(mirror, plan)
    finally:
        mirror.commit(COLLECTION)
    return [*failed, *mirror.fetch_annotations(COLLECTION).problems.values()]


def cart(client: NbiaClient, lake: Lake) -> list[str]:
    """Mirror a shared cart, whose series are in two collections."""
    mirror = Mirror(client, lake, streams=1)
    plan, wanted = mirror.plan_cart(CART)
    try:
        return _fetched(mirror, plan)
    finally:
        for collection in (COLLECTION, OTHER):
            commit(lake, collection, as_table([w for w in wanted if w.Collection == collection]))


def _fetched(mirror: Mirror, plan: Plan) -> list[str]:
    receipts = [receipt for batch in plan.batches() for receipt in mirror.fetch(batch)]
    return [str(receipt.reason) for receipt in receipts if receipt.status != COMPLETE]


def verify(client: NbiaClient, lake: Lake) -> list[str]:
    """Read all files again, fetch damaged series again, and read these again."""
    lake.check_writable()
    stored = lake.collections_of(IMAGE_SERIES)
    damaged = read_again(lake, plan_verification(lake, stored), threads=1).damaged
    failures = refetch(client, lake, damaged).failures
    return [*failures.values(), *map(str, read_again(lake, plan_verification(lake, stored), threads=1).damaged)]


def remove_withdrawn(client: NbiaClient, lake: Lake) -> list[str]:
    """Prune what the archive withdrew."""
    for collection in (COLLECTION, OTHER):
        if what := prunable(lake, collection):
            prune(lake, what)
    return []


def sweep(client: NbiaClient, lake: Lake) -> list[str]:
    """Remove what dead processes left, as every run does that lists the collections or fetches images."""
    journal.sweep(lake)
    return []


def damage(client: NbiaClient, lake: Lake) -> list[str]:
    """Change a file of one series, and remove one of another."""
    changed, *_ = sorted(path for path in lake.sizes("images") if f"/{STAYS}/" in path)
    removed, *_ = sorted(path for path in lake.sizes("images") if f"/{NEW}/" in path)
    Path(lake.url(changed)).write_bytes(b"damaged")
    Path(lake.url(removed)).unlink()
    return []


@dataclass(frozen=True)
class Scenario:
    """What is done with a lake, and how that lake came about.

    Attributes:
        step: what is done, once the archive has changed.
        base: what was done with the lake before: step, whether the archive had changed then, and hours.
        hours: time of the step.
        again: what is done after a failure.
    """

    step: Step
    again: tuple[Step, ...]
    base: tuple[tuple[Step, bool, float], ...] = ()
    hours: float = 8


_LISTED_TWICE = ((images, False, 0.0), (tables, True, 1.0))  # at the third listing a series counts as withdrawn

SCENARIOS = {
    "first run": Scenario(images, (images,)),
    "series revised, moved, withdrawn, new": Scenario(images, (images,), _LISTED_TWICE),
    "tables alone": Scenario(tables, (tables, sweep), _LISTED_TWICE),
    "cart": Scenario(cart, (cart,), ((tables, True, 0.0),)),
    # What was found damaged, and could not be repaired, is pending: the next run of images fetches it.
    "verify --repair": Scenario(verify, (verify, images), ((images, True, 0.0), (damage, True, 1.0))),
    "prune": Scenario(remove_withdrawn, (remove_withdrawn, sweep), (*_LISTED_TWICE, (images, True, 8.0)), 9),
}
