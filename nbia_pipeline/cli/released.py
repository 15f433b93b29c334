"""``nbia-pipeline released``: what was released in a collection since a day."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import date

import pyarrow as pa

from nbia_pipeline import clock
from nbia_pipeline.changes.released import LOOK_BACK, PATIENT_COLUMNS, STUDY_COLUMNS, ask_released
from nbia_pipeline.cli.home import say
from nbia_pipeline.connect import connect
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import table_text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Asks the archive for the patients and studies of a collection that have a series released on or after a day. "
        "Nothing is written. Exit code: 0, even if nothing is new; 1 if the archive cannot be asked."
    )
    parser.add_argument("collection", metavar="COLLECTION", help="its name, as the archive spells it")
    parser.add_argument("--since", type=day, metavar="DAY", help="such as 2024-01-01 (default: 30 days ago)")


def day(text: str) -> date:
    """Read a day in the order of ISO 8601.

    Raises:
        argparse.ArgumentTypeError: it is not valid.
    """
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day: use a value such as 2024-01-01") from None


def run(options: argparse.Namespace) -> int:
    """Print what is new."""
    since = options.since or clock.utc_now().date() - LOOK_BACK
    with connect(Settings.from_env()) as client:
        found = ask_released(client, options.collection, since)
    patients, studies = _counted(found.patients, "patient", "patients"), _counted(found.studies, "study", "studies")
    say(f"New in {found.collection} since {since}: {patients}, {studies}")
    for table, columns in ((found.patients, PATIENT_COLUMNS), (found.studies, STUDY_COLUMNS)):
        if table.num_rows:
            say("", *table_text(_cells(table, columns), numbers=False, total=False).split("\n"))
    return 0


def _counted(table: pa.Table, one: str, many: str) -> str:
    return f"{table.num_rows:,} {one if table.num_rows == 1 else many}"


def _cells(table: pa.Table, columns: Sequence[str]) -> list[list[str]]:
    rows = table.select(columns).to_pylist()
    return [list(columns), *(["" if row[c] is None else str(row[c]) for c in columns] for row in rows)]
