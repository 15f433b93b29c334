"""``nbia-pipeline plan``: what a run would fetch, before a byte moves."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from nbia_pipeline.cli.home import fail
from nbia_pipeline.cli.options import add_selection, selection_of
from nbia_pipeline.text import size_text

if TYPE_CHECKING:
    from nbia_pipeline.lake import Lake
    from nbia_pipeline.mirror.plan import Figures, Plan
    from nbia_pipeline.settings import Settings

HELP = "show which images a run would fetch, and whether the disk has room for them"
DESCRIPTION = (
    "Shows what a run would fetch, from what the lake knows: series, files and bytes that are wanted, that are there, "
    "that would be fetched, and that a bound leaves for later. Nothing is fetched and nothing is written. Exit code: "
    "0, or 1 where the disk has too little room or the plan cannot be made."
)
_PARTS = ("wanted", "in the lake", "to fetch", "left")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "collections",
        nargs="*",
        metavar="COLLECTION",
        help="names or globs (default: those whose images are mirrored; if there are none, all)",
    )
    add_selection(parser)


def run(options: argparse.Namespace) -> int:
    """Print the plan; 1 if there is too little room, or something is wrong."""
    from nbia_pipeline.archive import ArchiveError
    from nbia_pipeline.lake import Lake, LakeError
    from nbia_pipeline.mirror.plan import expect_room
    from nbia_pipeline.mirror.selection import SelectionError
    from nbia_pipeline.settings import Settings, SettingsError

    try:
        settings = Settings.from_env()
        lake = Lake(settings.lake)
        collections = _collections(lake, settings, options.collections)
        plans, notes = _plans(lake, settings, collections, options)
        free = lake.free_bytes()
        print(_table(plans))
        print(f"\nFree      {'not known: the lake is on an object store' if free is None else size_text(free)}")
        for note in notes:
            print(f"Note      {note}")
        expect_room(lake, *plans.values())
    except (SettingsError, SelectionError, LakeError, ArchiveError) as e:
        sys.stdout.flush()
        return fail(str(e))
    return 0


def _collections(lake: Lake, settings: Settings, patterns: list[str]) -> list[str]:
    """Return the collections to plan for.

    Raises:
        SettingsError: a name or glob matches none, or no collection is known yet.
        LakeError: the lake cannot be read.
    """
    from nbia_pipeline.schema.tables import COLLECTIONS
    from nbia_pipeline.settings import SettingsError, matching, unmatched

    kept: list[str] = sorted(lake.read_table(COLLECTIONS, columns=["Collection"])["Collection"].to_pylist())
    if not kept:
        raise SettingsError(
            f"the lake {settings.lake} knows no collections yet: run `nbia-pipeline run`, or materialize `collections` "
            "and `series`"
        )
    for pattern, similar in unmatched(patterns, kept).items():
        hint = f"did you mean {' or '.join(similar)}?" if similar else f"it knows {', '.join(kept[:10])}"
        raise SettingsError(f"the lake knows no collection {pattern!r}: {hint}")
    if patterns:
        return matching(patterns, kept)
    return [c for c in kept if settings.mirrors_images_of(c)] or kept


def _plans(
    lake: Lake, settings: Settings, collections: list[str], options: argparse.Namespace
) -> tuple[dict[str, Plan], list[str]]:
    """Return the plan of each collection, and what a person should know about them."""
    from nbia_pipeline.mirror.engine import preview
    from nbia_pipeline.mirror.plan import Bounds
    from nbia_pipeline.schema.tables import SERIES

    selection = selection_of(options, settings)
    plans: dict[str, Plan] = {}
    notes: list[str] = []
    for collection in collections:
        if not lake.has_table(SERIES, collection):
            notes.append(f"{collection}: its series are not listed yet: materialize `series` first")
            continue
        bounds = Bounds(options.max_bytes, options.max_series)
        plan = plans[collection] = preview(lake, collection, selection, bounds)
        if not settings.mirrors_images_of(collection):
            notes.append(f"{collection}: its images are not mirrored: a run fetches them once NBIA_IMAGES names it")
        if plan.figures.unsized:
            notes.append(f"{collection}: {plan.figures.unsized} series to fetch are announced without a size")
    unselected = sum(plan.unselected for plan in plans.values())
    if unselected:
        notes.append(f"{unselected} series are not selected, and not counted above")
    return plans, notes


def _table(plans: dict[str, Plan]) -> str:
    from nbia_pipeline.cli.report import aligned
    from nbia_pipeline.mirror.plan import Figures

    parts = {name: _figures(plan) for name, plan in plans.items()}
    total = [sum(column, Figures()) for column in zip(*parts.values(), strict=True)] or [Figures()] * len(_PARTS)
    header = ["collection", *(word for part in _PARTS for word in (part, "files", "size"))]
    rows = [[name, *_cells(figures)] for name, figures in parts.items()]
    return "\n".join(aligned([header, *rows, ["total", *_cells(total)]]))


def _figures(plan: Plan) -> list[Figures]:
    from nbia_pipeline.mirror.plan import Figures

    return [plan.wanted_figures, plan.done_figures, plan.figures, Figures.of(plan.left)]


def _cells(figures: list[Figures]) -> list[str]:
    return [text for f in figures for text in (f"{f.series:,}", f"{f.files:,}", size_text(f.bytes))]
