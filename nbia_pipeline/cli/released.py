"""``nbia-pipeline released``: what was released in a collection since a day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import click
import pyarrow as pa

from nbia_pipeline import clock
from nbia_pipeline.archive import NotAvailable
from nbia_pipeline.changes.released import LOOK_BACK, PATIENT_COLUMNS, STUDY_COLUMNS, ask_released
from nbia_pipeline.cli.home import WRONG_CALL, fail, report, say
from nbia_pipeline.cli.options import Options, argument, as_command, option, settings_of
from nbia_pipeline.connect import connect
from nbia_pipeline.text import table_text


def day(text: str) -> date:
    """Read a day in the order of ISO 8601.

    Raises:
        click.BadParameter: it is not valid.
    """
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a day: use a value such as 2024-01-01") from None


@as_command()
@argument("collection", metavar="COLLECTION", help_="its name, as the archive spells it")
@option("--since", type=day, metavar="DAY", help="such as 2024-01-01 (default: 30 days ago)")
def command(options: Options) -> int:
    """Show the patients and studies of a collection that have a series released on or after a day.

    The archive is asked for them, and nothing is written.
    """
    since = options.since or clock.utc_now().date() - LOOK_BACK
    try:
        with connect(settings_of(options)) as client:
            found = ask_released(client, options.collection, since)
    except NotAvailable as e:  # there is no such collection
        return fail(str(e), WRONG_CALL)
    report({"collection": found.collection, "since": since})
    report({"patients": found.patients.to_pylist(), "studies": found.studies.to_pylist()})
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
