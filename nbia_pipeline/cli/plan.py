"""``nbia-pipeline plan``: what a run would fetch, before anything is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nbia_pipeline.cli.home import report, say, to_stderr
from nbia_pipeline.cli.options import (
    Options,
    as_command,
    collections_argument,
    existing_lake,
    expect_found,
    selection_of,
    settings_of,
    with_selection,
)
from nbia_pipeline.cli.referenced import foreseen_figures, foreseen_note, with_references
from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.mirror.engine import preview
from nbia_pipeline.mirror.plan import Bounds, Figures, Missing, Plan, choose, room_for_files
from nbia_pipeline.mirror.references.preview import Foreseen, foresee
from nbia_pipeline.mirror.selection import NotRead, Selections
from nbia_pipeline.schema.tables import COLLECTIONS, SERIES
from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline.text import did_you_mean, first_of, matching, size_text, table_text, unmatched

_PARTS = ("wanted", "in the lake", "to fetch", "left")


@as_command()
@collections_argument("names or globs (default: those whose images are mirrored; if there are none, all)")
@with_selection
@with_references
def command(options: Options) -> int:
    """Show what a run would fetch, judging by the tables in the lake.

    These are series, files and bytes that are wanted, are in the lake, would be fetched, and would be left for a later
    run, by a bound or because the disk has too little room for them. Nothing is fetched and nothing is written.
    """
    settings = settings_of(options)
    lake = existing_lake(options, settings)
    collections = _collections(lake, settings, options.collections)
    plans, notes, damaged = _plans(lake, settings, collections, options)
    free = lake.free_bytes()
    figures = _figures(plans)
    foreseen = _foreseen(lake, settings, list(plans), options)
    if foreseen is not None:
        figures["references"] = foreseen_figures(foreseen)
        notes.append(foreseen_note(foreseen))
    report({"lake": settings.lake, "free_bytes": free, "notes": notes, "damaged": damaged, **figures})
    say(*_table(plans).split("\n"), "")
    say(f"Free      {'unknown: the lake is on an object store' if free is None else size_text(free)}")
    for note in notes:
        say(f"Note      {note}")
    for text in damaged:
        to_stderr(text)
    return 1 if damaged else 0


def _collections(lake: Lake, settings: Settings, patterns: Sequence[str]) -> list[str]:
    kept: list[str] = sorted(lake.read_table(COLLECTIONS, columns=["Collection"])["Collection"].to_pylist())
    if not kept:
        raise SettingsError(
            f"the lake {settings.lake} has no list of collections yet: run `nbia-pipeline run`, or materialize "
            f"`collections` "
            "and `series`"
        )
    for pattern, similar in unmatched(patterns, kept).items():
        hint = did_you_mean(similar, f"it has {first_of(kept)}")
        raise SettingsError(f"the lake has no collection {pattern!r}: {hint}")
    if patterns:
        return matching(patterns, kept)
    return [c for c in kept if settings.mirrors_images_of(c)] or kept


def _plans(
    lake: Lake, settings: Settings, collections: list[str], options: Options
) -> tuple[dict[str, Plan], list[str], list[str]]:
    """Return the plan of each collection, what a person should know about them, and which tables cannot be read."""
    selection, selections = selection_of(options, settings), Selections(settings.select)
    expect_found(options, selection, lake, [c for c in collections if lake.has_table(SERIES, c)])
    parts: dict[str, Missing] = {}
    notes: list[str] = []
    damaged: list[str] = []
    for collection in collections:
        if not lake.has_table(SERIES, collection):
            notes.append(f"{collection}: its series are not listed yet: materialize `series` first")
            continue
        try:
            (parts[collection],) = preview(lake, collection, selection, selections=selections).parts.values()
        except NotRead as e:
            notes.append(f"{collection}: {e}")
        except DamagedFile as e:
            damaged.append(f"{collection}: {e}")
    free = lake.free_bytes()
    plans = _by_collection(choose(parts, Bounds(options.max_bytes, options.max_series), free))
    for collection, plan in plans.items():
        if plan.no_room:
            needed, room = Figures.of(plan.no_room), size_text(max(0, int(room_for_files(free))))
            notes.append(
                f"{collection}: {needed.series} series of {size_text(needed.bytes)} do not fit on the disk, which has "
                f"room for {room}: make room, or fetch less"
            )
        free = None if free is None else free - plan.figures.bytes
        if not settings.mirrors_images_of(collection):
            variable = settings.name_of("images")
            notes.append(f"{collection}: its images are not mirrored: a run fetches them once {variable} names it")
        if plan.figures.unsized:
            notes.append(f"{collection}: {plan.figures.unsized} series to fetch have no announced size")
    unselected = sum(plan.unselected for plan in plans.values())
    if unselected:
        notes.append(f"{unselected} series are not selected, and not counted above")
    return plans, notes, damaged


def _foreseen(lake: Lake, settings: Settings, collections: list[str], options: Options) -> Foreseen | None:
    """Return what references lead to, None if they are not to be followed."""
    if not options.with_references:
        return None
    selections = Selections(settings.select)
    return foresee(lake, collections, selection_of(options, settings), selections, options.with_references)


def _by_collection(plan: Plan) -> dict[str, Plan]:
    """Return the plan of each collection out of that of all."""
    plans = {collection: Plan([], [], [], {collection: part}) for collection, part in plan.parts.items()}
    for name in ("todo", "left", "no_room"):
        for one in getattr(plan, name):
            getattr(plans[one.Collection], name).append(one)
    return plans


def _parts(plan: Plan) -> list[Figures]:
    return [plan.wanted_figures, plan.done_figures, plan.figures, Figures.of([*plan.left, *plan.no_room])]


def _figures(plans: Mapping[str, Plan]) -> dict[str, Any]:
    names = [name.replace(" ", "_") for name in _PARTS]
    return {
        "collections": {
            collection: {name: asdict(part) for name, part in zip(names, _parts(plan), strict=True)}
            for collection, plan in plans.items()
        }
    }


def _table(plans: Mapping[str, Plan]) -> str:
    parts = {name: _parts(plan) for name, plan in plans.items()}
    total = [sum(column, Figures()) for column in zip(*parts.values(), strict=True)] or [Figures()] * len(_PARTS)
    header = ["collection", *(word for part in _PARTS for word in (part, "files", "size"))]
    return table_text([header, *([name, *_cells(part)] for name, part in parts.items()), ["total", *_cells(total)]])


def _cells(figures: list[Figures]) -> list[str]:
    return [text for f in figures for text in (f"{f.series:,}", f"{f.files:,}", size_text(f.bytes))]
