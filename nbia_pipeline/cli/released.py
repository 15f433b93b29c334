"""``nbia-pipeline news``: what is new in a collection since a day."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from nbia_pipeline import clock
from nbia_pipeline.cli.home import fail

if TYPE_CHECKING:
    import pyarrow as pa

HELP = "show the patients and studies of a collection that were released since a day"
DESCRIPTION = (
    "Asks the archive for the patients and the studies of a collection with a series released on a day or later. "
    "Nothing is written. Exit code: 0, also where nothing is new; 1 if the archive cannot be asked."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = DESCRIPTION
    parser.add_argument("collection", metavar="COLLECTION", help="its name, as the archive spells it")
    parser.add_argument("--since", type=day, metavar="DAY", help="like 2024-01-01 (default: 30 days ago)")


def day(text: str) -> date:
    """Read a day in the order of ISO 8601.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day: write it like 2024-01-01") from None


def run(options: argparse.Namespace) -> int:
    """Print what is new; 1 if the archive cannot be asked."""
    # Imported here: `--help` needs no Dagster.
    from nbia_pipeline.archive import ArchiveError
    from nbia_pipeline.changes.released import LOOK_BACK, PATIENT_COLUMNS, STUDY_COLUMNS, ask_released
    from nbia_pipeline.defs.resources import client_of
    from nbia_pipeline.settings import Settings, SettingsError

    since = options.since or clock.utc_now().date() - LOOK_BACK
    try:
        with client_of(Settings.from_env()) as client:
            found = ask_released(client, options.collection, since)
    except (SettingsError, ArchiveError) as e:
        sys.stdout.flush()
        return fail(str(e))
    print(f"New in {found.collection} since {since}: {_counted(found.patients, 'patient', 'patients')}, ", end="")
    print(_counted(found.studies, "study", "studies"))
    for table, columns in ((found.patients, PATIENT_COLUMNS), (found.studies, STUDY_COLUMNS)):
        if table.num_rows:
            print("\n" + "\n".join(_lines(table, columns)))
    return 0


def _counted(table: pa.Table, one: str, many: str) -> str:
    return f"{table.num_rows:,} {one if table.num_rows == 1 else many}"


def _lines(table: pa.Table, columns: Sequence[str]) -> list[str]:
    """Return the lines of a table: a header, a rule, the rows."""
    rows = [list(columns)]
    rows += [["" if row[c] is None else str(row[c]) for c in columns] for row in table.select(columns).to_pylist()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
