"""``nbia-pipeline status``: what is mirrored, what is missing and why, and how fresh it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

from nbia_pipeline.cli.home import WRONG_CALL, fail, report, say, to_stderr
from nbia_pipeline.cli.options import Options, as_command, collections_argument, existing_lake, settings_of
from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.mirror.selection import Selections
from nbia_pipeline.schema.status import LISTED_AT
from nbia_pipeline.schema.tables import COLLECTIONS
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import did_you_mean, first_of, matching, size_text, table_text, unmatched
from nbia_pipeline.verify.status import CollectionStatus, status_of
from nbia_pipeline.verify.tables import stored_collections

SHOWN = 5
_COUNTS = ("wanted", "complete", "pending", "quarantined", "unavailable", "withdrawn")


@as_command()
@collections_argument("names or globs (default: all that the lake has)")
def command(options: Options) -> int:
    """Show what is mirrored, what is missing and why, and how fresh it is, judging by the tables in the lake.

    The exit code is 1 if a series is quarantined, unavailable or damaged, or a table cannot be read. Series that are
    only pending are no failure: the next run fetches them.
    """
    settings = settings_of(options)
    lake = existing_lake(options, settings)
    stored = stored_collections(lake)
    for name, similar in unmatched(options.collections, stored).items():
        hint = did_you_mean(similar, f"it has {first_of(stored) or 'none'}")
        return fail(f"the lake has no collection {name!r}: {hint}", WRONG_CALL)
    chosen = matching(options.collections, stored) if options.collections else stored
    found, unreadable = _statuses(lake, settings, chosen)
    listed_at, free = lake.read_properties(COLLECTIONS).get(LISTED_AT), lake.free_bytes()
    catalog = datetime.fromisoformat(listed_at) if listed_at else None
    report(
        {
            "lake": lake.uri,
            "format": lake.format,
            "free_bytes": free,
            "catalog_listed_at": catalog,
            "collections": {name: asdict(one) for name, one in found.items()},
            "unreadable": unreadable,
        }
    )
    of_disk = "" if free is None else f", {size_text(free)} free on its disk"
    say(f"{lake.uri}: {size_text(sum(s.bytes for s in found.values()))} of images, format {lake.format}{of_disk}", "")
    if found:
        say(*_table(found).split("\n"), "")
    say(f"The list of collections is from {_moment(catalog)}. Times are in UTC.")
    for name, one in found.items():
        _tell_problems(name, one)
    for name, why in unreadable.items():
        to_stderr(f"{name}: {why}")
    return 0 if all(one.in_order for one in found.values()) and not unreadable else 1


def _moment(when: datetime | None) -> str:
    """Return a time for a person, to the minute."""
    return f"{when:%Y-%m-%d %H:%M}" if when else "never"


def _statuses(
    lake: Lake, settings: Settings, collections: Sequence[str]
) -> tuple[dict[str, CollectionStatus], dict[str, str]]:
    """Return the status of each collection, and why others have none."""
    selections = Selections(settings.select)
    found, unreadable = {}, {}
    for name in collections:
        try:
            found[name] = status_of(lake, name, selections, mirrored=settings.mirrors_images_of(name))
        except DamagedFile as e:
            unreadable[name] = str(e)
    return found, unreadable


def _table(found: Mapping[str, CollectionStatus]) -> str:
    header = ["collection", *_COUNTS, "size", "headers", "listed", "last fetched", "last read again"]
    rows = [
        [
            name,
            *(f"{getattr(one, count):,}" for count in _COUNTS),
            size_text(one.bytes),
            f"{one.headers:,}",
            *(_moment(when) for when in (one.listed_at, one.fetched_at, one.verified_at)),
        ]
        for name, one in found.items()
    ]
    return table_text([header, *rows], total=False)


def _tell_problems(name: str, one: CollectionStatus) -> None:
    if one.note:
        say(f"{name}: {one.note}")
    if one.damaged:
        to_stderr(f"{name}: {one.damaged:,} series are damaged: `nbia-pipeline verify --damaged --repair` repairs them")
    for problem in one.problems[:SHOWN]:
        to_stderr(f"{name}: series {problem['series']} is {problem['what']}")
    if len(one.problems) > SHOWN:
        to_stderr(f"{name}: and {len(one.problems) - SHOWN:,} more, in table image_series")
