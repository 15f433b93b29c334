"""What a benchmark found, for people and for ``benchmarks/run_all.py``: figures, bars, and which of them hold.

Every script takes ``--json FILE`` and leaves its rows there: what was measured, the figures with their units, the bar,
whether it holds, and the rounds. A script exits with 1 if one of its bars does not hold.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from measuring import verdict

Figure = tuple[float, str]
"""A number and its unit."""


@dataclass(frozen=True)
class Row:
    """One line of what was found.

    Attributes:
        what: what was measured.
        figures: the figures.
        rounds: how many rounds they are medians of; peaks are the highest of them.
        bar: what is wanted, in words; empty for a figure without a bar.
        holds: whether it is so; None without a bar.
    """

    what: str
    figures: list[Figure]
    rounds: int = 1
    bar: str = ""
    holds: bool | None = None

    @property
    def found(self) -> str:
        """The figures in words."""
        return ", ".join(spoken(number, unit) for number, unit in self.figures)

    @property
    def line(self) -> str:
        """The row as a script prints it."""
        return f"{self.what}: {self.found}" + (f"; {self.bar}: {verdict(bool(self.holds))}" if self.bar else "")


def spoken(number: float, unit: str) -> str:
    """Return a figure as text, with three digits or all of a whole number."""
    whole = isinstance(number, int) or abs(number) >= 100
    digits = 0 if whole else 1 if abs(number) >= 10 else 2
    return f"{number:,.{digits}f} {unit}".rstrip()


@dataclass
class Results:
    """The rows of a script; `file` is where they go, None for nowhere."""

    file: Path | None = None
    rows: list[Row] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every bar holds."""
        return all(row.holds is not False for row in self.rows)

    def add(self, what: str, *figures: Figure, rounds: int = 1) -> None:
        """Keep figures without a bar; the script prints them itself."""
        self.rows.append(Row(what, list(figures), rounds))

    def at_most(self, most: float, what: str, figure: float, unit: str, rounds: int = 1) -> bool:
        """Compare a figure with a bar, print and keep both; return whether it holds."""
        return self._bar(f"at most {spoken(most, unit)}", figure <= most, what, figure, unit, rounds)

    def at_least(self, least: float, what: str, figure: float, unit: str, rounds: int = 1) -> bool:
        """Compare a figure with a bar, print and keep both; return whether it holds."""
        return self._bar(f"at least {spoken(least, unit)}", figure >= least, what, figure, unit, rounds)

    def _bar(self, bar: str, holds: bool, what: str, figure: float, unit: str, rounds: int) -> bool:
        self.rows.append(Row(what, [(figure, unit)], rounds, bar, holds))
        print(self.rows[-1].line, flush=True)
        return holds

    def finish(self) -> int:
        """Leave the rows in the file; return what the script exits with."""
        if self.file is not None:
            self.file.write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n")
        return 0 if self.holds else 1


def read(file: Path) -> list[Row]:
    """Return the rows that a script left."""
    return rows_of(json.loads(file.read_text()))


def rows_of(listed: list[dict[str, object]]) -> list[Row]:
    """Return rows from their JSON."""
    rows = [Row(**row) for row in listed]  # type: ignore[arg-type]
    return [Row(r.what, [(n, u) for n, u in r.figures], r.rounds, r.bar, r.holds) for r in rows]


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` to the parser of a script."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="leave the figures and the bars there, as JSON")
