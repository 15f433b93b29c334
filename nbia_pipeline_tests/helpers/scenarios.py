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
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.plan import Plan
from nbia_pipeline.mirror.prune import prunable, prune
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
    return [*_fetched(mirror, mirror.plan(COLLECTION)), *mirror.fetch_annotations(COLLECTION).problems.values()]


def cart(client: NbiaClient, lake: Lake) -> list[str]:
    """Mirror a shared cart, whose series are in two collections."""
    mirror = Mirror(client, lake, streams=1)
    return _fetched(mirror, mirror.plan_cart(CART))


def _fetched(mirror: Mirror, plan: Plan) -> list[str]:
    failed = []
    try:
        for batch in plan.batches():
            failed += [str(r.reason) for r in mirror.fetch(batch) if r.status != COMPLETE]
    finally:
        for collection in sorted({wanted.Collection for wanted in plan.todo}):
            mirror.commit(collection)
    return failed


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
    """

    step: Step
    base: tuple[tuple[Step, bool, float], ...] = ()
    hours: float = 8


_LISTED_TWICE = ((images, False, 0.0), (tables, True, 1.0))  # at the third listing a series counts as withdrawn

SCENARIOS = {
    "first run": Scenario(images),
    "series revised, moved, withdrawn, new": Scenario(images, _LISTED_TWICE),
    "tables alone": Scenario(tables, _LISTED_TWICE),
    "cart": Scenario(cart, ((tables, True, 0.0),)),
    "verify --repair": Scenario(verify, ((images, True, 0.0), (damage, True, 1.0))),
    "prune": Scenario(remove_withdrawn, (*_LISTED_TWICE, (images, True, 8.0)), 9),
}
