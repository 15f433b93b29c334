"""Numbers, lists and tables as people read them; and texts of others, which are shown and never interpreted."""

from __future__ import annotations

import difflib
import fnmatch
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence

MESSAGE_CHARACTERS = 2000
CELL_CHARACTERS = 100

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BACKTICKS = re.compile("`+")


# --- texts of others


def shown(text: object, most: int = MESSAGE_CHARACTERS) -> str:
    """Return a text on one line, as a terminal, a log or a page shows it: nothing in it acts on what shows it.

    What is not printable becomes an escape like ``\\x1b``: control characters, line breaks, marks that reorder or hide
    characters (the bidirectional ones, zero-width ones), halves of surrogate pairs. A text of more than `most`
    characters is cut.
    """
    found = str(text)[: most + 1]
    if not found.isprintable():
        found = "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in found)
    return found if len(found) <= most else f"{found[: most - 3]}..."


def is_plain(text: str) -> bool:
    """Return whether a text of several lines can be shown as it is."""
    return text.replace("\n", "").replace("\t", "").isprintable()


def markdown_code(text: object) -> str:
    """Return Markdown that shows a text as it is, on one line: no link, image, HTML or emphasis in it counts."""
    line = shown(text)
    longest = max((len(run) for run in _BACKTICKS.findall(line)), default=0)
    fence, gap = "`" * (longest + 1), " " if line[:1] in ("`", " ", "") or line[-1:] in ("`", " ") else ""
    return f"{fence}{gap}{line}{gap}{fence}"


class TextError(Exception):
    """An error whose text is written for people, and may quote others: see :func:`shown`."""

    def __str__(self) -> str:
        return shown(super().__str__())


def logger(name: str) -> logging.Logger:
    """Return the logger of a module, whose messages are :func:`shown`, whatever their arguments quote."""
    found = logging.getLogger(name)
    found.addFilter(_shown_record)
    return found


def _shown_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = shown(record.getMessage()), None
    return True


# --- numbers, lists, tables


def size_text(size: float) -> str:
    """Return a size in bytes in powers of ten, like ``1.2 MB``."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def bytes_of(text: str) -> int:
    """Read a size such as ``10GB``, ``1.5 TB`` or ``500000``, in powers of ten.

    Raises:
        ValueError: it is none, or less than a byte.
    """
    found = _SIZE.fullmatch(text.strip())
    value = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if value < 1:
        raise ValueError(f"{text!r} is not a size: use a value such as 10GB, 500MB or 1.5TB")
    return value


def duration_text(seconds: float) -> str:
    """Return a time in seconds in its two largest units, like ``3 min 20 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, smaller, name, smaller_name in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {smaller_name}"
    return f"{whole} s"


def first_of(names: Sequence[str], shown: int = 10) -> str:
    """Return the first names of a list and how many follow, like ``A, B and 3 more``."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def similar_names(name: str, known: Iterable[str], shown: int = 3, cutoff: float = 0.6) -> list[str]:
    """Return the known names that `name` may be a misspelling of, at most `shown`, the most similar first, in any case.

    They are as similar as `cutoff`, from 0 to 1, or more.
    """
    folded = {n.casefold(): n for n in known}
    return [folded[c] for c in difflib.get_close_matches(name.casefold(), folded, n=shown, cutoff=cutoff)]


def did_you_mean(similar: Sequence[str], otherwise: str) -> str:
    """Return the question whether one of some similar names was meant, or another hint where there are none."""
    return f"did you mean {' or '.join(similar)}?" if similar else otherwise


def matching(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return those of `names`, in their order, that equal or match one of the glob `patterns`.

    Matching is case-sensitive, as the archive's counts and descriptions are.
    """
    wanted = list(patterns)
    return [n for n in names if any(n == p or fnmatch.fnmatchcase(n, p) for p in wanted)]


def unmatched(patterns: Iterable[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Map each pattern that matches none of `names` to the names that are similar to it."""
    known = list(names)
    return {p: similar_names(p, known) for p in patterns if not matching([p], known)}


def is_glob(pattern: str) -> bool:
    """Return whether `pattern` contains a wildcard."""
    return any(c in pattern for c in "*?[")


def table_text(rows: Sequence[Sequence[str]], numbers: bool = True, total: bool = True) -> str:
    """Return a table for a terminal: a header, a rule, and rows; cells are :func:`shown`, and cut if they are long.

    Args:
        rows: the header, then the rows.
        numbers: True if all columns but the first are numbers, which are aligned to the right.
        total: True if the last row is a total, with a rule above it.
    """
    rows = [[shown(cell, CELL_CHARACTERS) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if numbers and n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    lines.insert(1, rule)
    if total:
        lines.insert(-1, rule)
    return "\n".join(lines)
