"""The options that select series and limit how much is fetched, shared by the commands that have them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from nbia_pipeline.connect import connect
from nbia_pipeline.mirror.selection import Selection, with_lists
from nbia_pipeline.settings import Settings

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?B?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_LISTS = ("modalities", "body_parts", "patients", "series")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options that select series, and those that bound a run."""
    group = parser.add_argument_group(
        "which images", "Repeat an option to match any of several values; different options must all match."
    )

    def several(option: str, dest: str, metavar: str, help_: str) -> None:
        group.add_argument(option, dest=dest, metavar=metavar, action="append", default=[], help=help_)

    several("--modality", "modalities", "M", "series of this modality, such as CT (case-insensitive)")
    several("--body-part", "body_parts", "B", "series of this body part, such as CHEST (case-insensitive)")
    several("--patient", "patients", "P", "series of this PatientID")
    several("--series", "series", "UID", "this SeriesInstanceUID")
    group.add_argument(
        "--manifest", type=Path, metavar="FILE", help="the series of a manifest (.tcia), a table or a list"
    )
    group.add_argument("--cart", metavar="NAME", help="the series of a shared cart (v2 of the API)")
    bounds = parser.add_argument_group(
        "how much", "Limits of all collections together; the rest is left for a later run."
    )
    bounds.add_argument("--max-bytes", type=size, metavar="SIZE", help="fetch at most this much, such as 10GB")
    bounds.add_argument("--max-series", type=count, metavar="N", help="fetch at most this many series")


def images_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, as fields of ``ImagesConfig``."""
    asked: dict[str, Any] = {name: getattr(options, name) for name in (*_LISTS, "cart", "max_bytes", "max_series")}
    # Dagster's step may have another working directory.
    asked["manifest"] = None if options.manifest is None else str(options.manifest.absolute())
    return {name: value for name, value in asked.items() if value not in (None, [])}


def selection_of(options: argparse.Namespace, settings: Settings) -> Selection:
    """Return which series are asked for; a cart is looked up in the archive.

    Raises:
        SelectionError: the manifest or the cart names no series.
        ArchiveError: the archive cannot be asked for the cart.
    """
    selection = Selection(*(tuple(getattr(options, name)) for name in _LISTS))
    if options.cart is None:
        return with_lists(selection, manifest=options.manifest)
    with connect(settings) as client:
        return with_lists(selection, manifest=options.manifest, cart=options.cart, client=client)


def size(text: str) -> int:
    """Read a size such as ``10GB``, ``1.5 TB`` or ``500000``, in powers of ten.

    Raises:
        argparse.ArgumentTypeError: it is not valid, or less than a byte.
    """
    found = _SIZE.fullmatch(text.strip())
    value = int(float(found[1]) * _UNITS[found[2].lower().removesuffix("b")]) if found else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: use a value such as 10GB, 500MB or 1.5TB")
    return value


def count(text: str) -> int:
    """Read a number of one or more.

    Raises:
        argparse.ArgumentTypeError: it is not valid.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)
