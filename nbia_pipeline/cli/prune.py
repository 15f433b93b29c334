"""``nbia-pipeline prune``: delete the files of series that the archive withdrew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nbia_pipeline.cli.home import fail, say
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.prune import Prunable, prunable, prune
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import size_text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("collections", nargs="*", metavar="COLLECTION", help="names of collections (default: all)")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(options: argparse.Namespace) -> int:
    """Show what would be deleted, ask, delete; 1 if the person declines."""
    settings, names = Settings.from_env(), options.collections
    lake = Lake(settings.lake, fsync=settings.fsync)
    stored = lake.collections_of(IMAGE_SERIES)
    unknown = [repr(name) for name in names if name not in stored]
    if unknown:
        there = f"it has those of {', '.join(stored)}" if stored else "it has none at all"
        return fail(f"{lake.uri} has no images of {', '.join(unknown)}: {there}")
    found = [p for p in (prunable(lake, c) for c in dict.fromkeys(names or stored)) if p is not None]
    if not found:
        say(f"Nothing to delete: {lake.uri} has no files of withdrawn series.")
        return 0
    say(f"Withdrawn from the archive, but still in {lake.uri}:")
    for one in found:
        say(f"  {one.collection}: {_amount([one])}, missing since {_span(one)}")
    if len(found) > 1:
        say(f"  in total: {_amount(found)}")
    if not options.yes and not sys.stdin.isatty():
        return fail("nothing was deleted: there is no terminal to ask on, so add --yes")
    if not options.yes and input("Delete these files for good? Type yes: ").strip().lower() != "yes":
        return fail("nothing was deleted")
    deleted = [d for d in (prune(lake, p) for p in found) if d is not None]
    say(f"Deleted {_amount(deleted)}. The receipts stay; a series that returns is fetched again.")
    return 0


def _amount(found: Sequence[Prunable]) -> str:
    series, files = sum(len(p.series) for p in found), sum(p.files for p in found)
    return f"{series:,} series, {files:,} files, {size_text(sum(p.bytes for p in found))}"


def _span(one: Prunable) -> str:
    first, last = one.since.date(), one.until.date()
    return f"{first}" if first == last else f"{first} to {last}"
