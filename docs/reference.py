"""Write docs/tables.md and docs/commands.md from the code: ``python docs/reference.py``. A test compares them."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from nbia_pipeline.cli.main import COMMANDS
from nbia_pipeline.schema import TABLES, Table

DOCS = Path(__file__).parent
NOTE = "This page is generated from the code by `python docs/reference.py`; edit the code, not the page."


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("%%", "%")


def rows(*rows: tuple[str, ...]) -> list[str]:
    """Return a table: a header, then its rows."""
    header, *rest = (f"| {' | '.join(map(cell, row))} |" for row in rows)
    return [header, "|" + "---|" * len(rows[0]), *rest]


def table_lines(table: Table) -> list[str]:
    """Return the section of one table."""
    columns = [
        (
            f"`{c.name}`" + (" (key)" if c.name in table.key else ""),
            str(c.type),
            c.tag or "",
            " ".join(t for t in (c.description, c.unit and f"Unit: {c.unit}.", table.served.get(c.name)) if t),
        )
        for c in table.columns
    ]
    where = "One partition per collection." if table.partitioned else "One file for the entire archive."
    text = [f"## {table.name}", "", f"{table.description} {where}", ""]
    return [*text, *rows(("column", "type", "DICOM tag", "meaning"), *columns), ""]


def tables_page() -> str:
    """Return docs/tables.md."""
    text = """\
A column is named by its DICOM keyword where one exists, else as the archive's guide names it. Its meaning, its DICOM
tag and, if it is not both, which version of the API serves it are in the Parquet field metadata and in the Dagster UI
too; what is not served is null. `Collection` is in the path of a partition, not in its file.
"""
    intro = [
        "# Tables",
        "",
        NOTE,
        "",
        *text.splitlines(),
        "",
    ]
    return "\n".join([*intro, *(line for table in TABLES.values() for line in table_lines(table))]).rstrip() + "\n"


def command_lines(name: str, module: str, summary: str) -> list[str]:
    """Return the section of one command."""
    text = [f"## nbia-pipeline {name}", ""]
    parser = argparse.ArgumentParser(prog=f"nbia-pipeline {name}", add_help=False)
    command = importlib.import_module(module)
    if not hasattr(command, "add_options"):
        return [*text, f"{summary[0].upper()}{summary[1:]}.", ""]
    command.add_options(parser)
    text += [parser.description or f"{summary[0].upper()}{summary[1:]}.", ""]
    actions = [a for a in parser._actions if a.help is not argparse.SUPPRESS]
    options = []
    for action in actions:
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        if not action.option_strings:
            names = f"`{metavar}`"
        else:
            value = "" if action.nargs == 0 else f" {metavar}"
            names = ", ".join(f"`{option}{value}`" for option in action.option_strings)
        options.append((names, (action.help or "").replace("%(default)s", str(action.default))))
    return [*text, *(rows(("option", "meaning"), *options) if options else []), ""]


def commands_page() -> str:
    """Return docs/commands.md."""
    intro = ["# Commands", "", NOTE, ""]
    return "\n".join([*intro, *(x for n, (m, s) in COMMANDS.items() for x in command_lines(n, m, s))]).rstrip() + "\n"


PAGES = {"tables.md": tables_page, "commands.md": commands_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
