"""Write docs/tables.md, commands.md and variables.md from the code: ``python docs/reference.py``. A test compares."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from nbia_pipeline.cli.main import COMMANDS
from nbia_pipeline.schema import TABLES, Table
from nbia_pipeline.settings import Pipeline, Settings, variable_of

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


def value(default: object) -> str:
    """Return the default of a setting as it is written in a variable."""
    if default is None or default == "":
        return ""
    text = ",".join(default) if isinstance(default, tuple) else str(default).lower()
    return f"`{text}`"


def variables_page() -> str:
    """Return docs/variables.md."""
    text = """\
The variables are read once, and checked: a wrong value is an error that names the variable, its value and what is
allowed. In YAML ([NbiaComponent](python.md#dagster)) and in Python (`Settings`) the same settings have the names of the
second column; only the password is given as the name of a variable, `password_env`. Lists are separated by commas in a
variable. Names of collections are case-sensitive, and one that matches nothing is an error. The password appears in no
log, event, run configuration or file.
"""
    rest = """\
## Variables of other programs

| variable | meaning | default |
|---|---|---|
| `DAGSTER_HOME` | directory in which Dagster stores runs, partitions and cursors | `./dagster_home` |
| `HTTPS_PROXY`, `NO_PROXY` | proxies | |
| `AWS_*`, `GOOGLE_*`, `AZURE_*` | account and address of a store: [Object stores](scale-out.md#object-stores) | |
| `TMPDIR` | where files are unpacked before they are uploaded to an object store | `/tmp` |
"""
    fields = sorted(Settings.model_fields.items(), key=lambda item: item[0] not in ("archive", "api", "username"))
    described = [
        (
            f"`{variable_of(name)}`",
            f"`{name}`" if name in Pipeline.model_fields else "",
            f.description or "",
            value(f.default),
        )
        for name, f in fields
    ]
    table = rows(("variable", "field", "meaning", "default"), *described)
    intro = ["# Variables", "", NOTE, "", *text.splitlines(), "", "## Settings", ""]
    return "\n".join([*intro, *table, "", *rest.splitlines()]) + "\n"


PAGES = {"tables.md": tables_page, "commands.md": commands_page, "variables.md": variables_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
