"""The option ``--with-references``, and what commands say of what references lead to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from nbia_pipeline.cli.options import F, Options, option
from nbia_pipeline.mirror.plan import Figures
from nbia_pipeline.text import size_text

if TYPE_CHECKING:
    from nbia_pipeline.mirror.references.preview import Foreseen

_KINDS = {"images": ["images"], "annotations": ["annotations"], "both": ["images", "annotations"]}


def _kinds(text: str) -> list[str]:
    """Read what to fetch.

    Raises:
        click.BadParameter: it is something else, such as a collection.
    """
    if text not in _KINDS:
        raise click.BadParameter(f"{text!r} is not one of {', '.join(_KINDS)}: name collections before this option")
    return _KINDS[text]


def with_references(function: F) -> F:
    """Add the option that follows references, as ``with_references``: a list of what they may lead to, or None."""
    return option(
        "--with-references",
        type=_kinds,
        is_flag=False,
        flag_value="images",
        metavar="[images|annotations|both]",
        group="Which images (repeat an option to allow several values; different options must all match)",
        help="fetch besides, in whatever study or collection: images, what the selected series refer to (the default); "
        "annotations, what refers to them; or both",
    )(function)


def references_fields(options: Options) -> dict[str, Any]:
    """Return the option, if it was given, as a field of ``ImagesConfig``."""
    return {"with_references": options.with_references} if options.with_references else {}


def references_lines(n: Mapping[str, int]) -> list[str]:
    """Return what came of following references, by the figures of a run; nothing if none were followed."""
    if "referenced_series" not in n:
        return []
    parts = [
        f"{n['referenced_series']} series fetched, {n['referenced_files']} files, {size_text(n['referenced_bytes'])}",
        f"{n['referenced_there']} series were already in the lake",
    ]
    named = {"left": "are left for a later run", "failed": "could not be fetched", "not_found": "could not be resolved"}
    parts += [f"{n[f'referenced_{name}']} {text}" for name, text in named.items() if n[f"referenced_{name}"]]
    return [f"Followed  references: {'; '.join(parts)}."]


def foreseen_figures(foreseen: Foreseen) -> dict[str, Any]:
    """Return what is known of references before a run, for ``--json``."""
    return {
        "to_fetch": asdict(Figures.of(foreseen.series.values())),
        "in_the_lake": foreseen.there,
        "unread": len(foreseen.unread),
        "unlisted": len(foreseen.unlisted),
    }


def foreseen_note(foreseen: Foreseen) -> str:
    """Return the same as a sentence, in which counts what follows from what is in the lake."""
    known = Figures.of(foreseen.series.values())
    parts = [
        f"references lead to {known.series} series to fetch besides ({known.files:,} files, {size_text(known.bytes)}), "
        f"within the same bounds, and to {foreseen.there} in the lake"
    ]
    if foreseen.unlisted:
        parts.append(f"targets in no table, which a run asks the archive for: {len(foreseen.unlisted)}")
    if foreseen.unread:
        parts.append(f"series of annotations to fetch and read before the rest is known: {len(foreseen.unread)}")
    return "; ".join(parts)
