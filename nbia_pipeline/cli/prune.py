"""``nbia-pipeline prune``: delete the files of series that the archive withdrew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nbia_pipeline.cli.home import WRONG_CALL, agreed, fail, report, say
from nbia_pipeline.cli.options import Options, as_command, collections_argument, existing_lake, option, settings_of
from nbia_pipeline.mirror.prune import Prunable, prunable, prune
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.text import size_text


@as_command()
@collections_argument("names of collections (default: all)")
@option("--yes", is_flag=True, help="do not ask")
def command(options: Options) -> int:
    """Delete the files of series that the archive withdrew, after showing which, and asking.

    Their receipts stay. The exit code is 1 if the answer is not yes.
    """
    settings, names = settings_of(options), options.collections
    lake = existing_lake(options, settings)
    stored = lake.collections_of(IMAGE_SERIES)
    unknown = [repr(name) for name in names if name not in stored]
    if unknown:
        there = f"it has those of {', '.join(stored)}" if stored else "it has none at all"
        return fail(f"{lake.uri} has no images of {', '.join(unknown)}: {there}", WRONG_CALL)
    found = [p for p in (prunable(lake, c) for c in dict.fromkeys(names or stored)) if p is not None]
    report({"lake": lake.uri, "withdrawn": {p.collection: _figures(p) for p in found}, "deleted": {}})
    if not found:
        say(f"Nothing to delete: {lake.uri} has no files of withdrawn series.")
        return 0
    say(f"Withdrawn from the archive, but still in {lake.uri}:")
    for one in found:
        say(f"  {one.collection}: {_amount([one])}, missing since {_span(one)}")
    if len(found) > 1:
        say(f"  in total: {_amount(found)}")
    if not options.yes and not agreed("Delete these files for good?"):
        return 1
    deleted = [d for d in (prune(lake, p) for p in found) if d is not None]
    report({"deleted": {d.collection: _figures(d) for d in deleted}})
    say(f"Deleted {_amount(deleted)}. The receipts stay; a series that returns is fetched again.")
    return 0


def _figures(one: Prunable) -> dict[str, Any]:
    return {**asdict(one), "series": sorted(one.series)}


def _amount(found: Sequence[Prunable]) -> str:
    series, files = sum(len(p.series) for p in found), sum(p.files for p in found)
    return f"{series:,} series, {files:,} files, {size_text(sum(p.bytes for p in found))}"


def _span(one: Prunable) -> str:
    first, last = one.since.date(), one.until.date()
    return f"{first}" if first == last else f"{first} to {last}"
