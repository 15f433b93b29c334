"""Write docs/tables.md, commands.md, variables.md and the table of variables from the code. A test compares."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import click

from nbia_pipeline.cli.home import EXIT_CODES
from nbia_pipeline.cli.main import COMMANDS
from nbia_pipeline.cli.options import COMMON
from nbia_pipeline.schema import TABLES, Table
from nbia_pipeline.settings import Pipeline, Settings, variable_of

LINE = 120
DOCS = Path(__file__).parent
NOTE = "This page is generated from the code by `python docs/reference.py`; edit the code, not the page."


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


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


def command_lines(name: str, command: click.Command) -> list[str]:
    """Return the section of one command, without the options that all of them have."""
    text = [f"## nbia-pipeline {name}", "", *(line.strip() for line in (command.help or "").splitlines()), ""]
    options = param_rows(name, command, [p for p in command.params if getattr(p, "group", "") != COMMON])
    return [*text, *(rows(("option", "meaning"), *options) if options else []), ""]


def param_rows(name: str, command: click.Command, params: Sequence[click.Parameter]) -> list[tuple[str, str]]:
    """Return a row for each option: how it is written, and what it means."""
    ctx = click.Context(command, info_name=name)
    records = [record for param in params if (record := param.get_help_record(ctx)) is not None]
    return [(", ".join(f"`{word}`" for word in written.split(", ")), meaning) for written, meaning in records]


def commands_page() -> str:
    """Return docs/commands.md."""
    text = """\
An option overrides its [variable](variables.md): `--lake` overrides `NBIA_LAKE`, and `--archive` overrides
`NBIA_ARCHIVE`. A variable that is not set is read from the file `.env` in the working directory, which has a line
`NAME=value` for each; any other line is an error. The name of a collection, a cart, a modality, a patient or a series
that does not exist is an error too, which lists similar names; so is a lake that does not exist, unless `run` makes it.

On a terminal the progress of a run is one line that is rewritten; in a pipe or a file it is a line every ten seconds.
With `--json` the standard output is one JSON document with the figures of the text, at the end; an error is its
`error`. Sizes are in bytes, times are in UTC.

For the completion of commands, options and collections by the Tab key, put this into `~/.bashrc`; for zsh and fish,
replace `bash_source` by `zsh_source` or `fish_source`:

```
eval "$(_NBIA_PIPELINE_COMPLETE=bash_source nbia-pipeline)"
```
"""
    loaded = {name: importlib.import_module(module).command for name, (module, _) in COMMANDS.items()}
    name, command = next(iter(loaded.items()))
    common = param_rows(name, command, [p for p in command.params if getattr(p, "group", "") == COMMON])
    intro = [
        "# Commands",
        "",
        NOTE,
        "",
        "## What all commands have in common",
        "",
        *rows(("option", "meaning"), *common),
        "",
        *rows(("exit code", "meaning"), *((f"`{code}`", meaning) for code, meaning in EXIT_CODES)),
        "",
        *text.splitlines(),
        "",
    ]
    return "\n".join([*intro, *(x for n, c in loaded.items() for x in command_lines(n, c))]).rstrip() + "\n"


def value(default: object) -> str:
    """Return the default of a setting as it is written in a variable."""
    if default in (None, "") or default == {}:
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


def variables_module() -> str:
    """Return nbia_pipeline/variables.py: the settings for a help that does not wait until they are imported."""
    rows = []
    for name, field in Settings.model_fields.items():
        meaning = re.split(r"[.;:] ", f"{field.description} ")[0]
        texts = (variable_of(name), meaning, value(field.default).strip("`"))
        row = f"    ({', '.join(map(json.dumps, texts))}),"
        rows.append(row if len(row) <= LINE else f"{row}  # noqa: E501")
    note = NOTE.replace("page", "module", 1).replace("page", "module")
    intro = ['"""The variables of the settings: name, meaning, default as text."""', "", f"# {note}", "# fmt: off"]
    return "\n".join([*intro, "VARIABLES = (", *rows, ")", ""])


PAGES = {
    "tables.md": tables_page,
    "commands.md": commands_page,
    "variables.md": variables_page,
    "../nbia_pipeline/variables.py": variables_module,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
