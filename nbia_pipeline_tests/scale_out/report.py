"""What was measured: kept in ``docs/scale-out.json``, and from it the table in ``docs/scale-out.md``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nbia_pipeline_tests.scale_out.hosts import ROOT
from nbia_pipeline_tests.scale_out.rounds import CASES, Case, Found

STORE = ROOT / "docs" / "scale-out.json"
PAGE = ROOT / "docs" / "scale-out.md"
BEGIN, END = "<!-- written by `make scale-out`: do not edit -->", "<!-- end of what `make scale-out` wrote -->"

_PACKAGES = ("dagster", "dagster-celery", "celery", "dagster-ray", "ray", "dagster-postgres", "s3fs")

Kept = dict[str, Any]


def row(found: Found) -> Kept:
    """Return what is kept of a case."""
    files = sum(name.startswith("images/") for name in found.contents)
    return {
        "tables": round(found.tables, 1),
        "rows": found.rows,
        "images": round(found.images, 1),
        "files": files,
        "lost": None if found.lost is None else round(found.lost, 1),
        "again": None if found.again is None else round(found.again, 1),
        "end": found.end,
        "load": round(os.getloadavg()[0], 1),
    }


def around(isolation: str, series: int, batches: int) -> Kept:
    """Return what holds for all cases."""
    models = [s for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    return {
        "machine": f"{os.cpu_count()} processors ({model}), {platform.system()}",
        "versions": {name: version(name) for name in _PACKAGES},
        "isolation": isolation,
        "series": series,
        "batches": batches,
    }


def lines(kept: Kept) -> list[str]:
    """Return the section of the page."""
    if not kept.get("cases"):
        return ["Nothing has been measured yet: `make scale-out`."]
    used = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
    text = [
        f"{kept['machine']}; {used}. Hosts: {kept['isolation']}.",
        f"{kept['series']} series in {kept['batches']} batches; every lake is equal to the first one.",
        "",
        "| executor | lake | killed | series, s | rows | images, s | loss known, s | begins again, s | run | load |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return text + [_line(case, kept["cases"][case.name]) for case in CASES if case.name in kept["cases"]]


def _line(case: Case, row: Kept) -> str:
    lost, again = ("" if row[name] is None else f"{row[name]:.1f}" for name in ("lost", "again"))
    end = {"SUCCESS": "went on" if case.kill else "succeeded"}.get(row["end"], "failed; its retry succeeded")
    cells: Sequence[str] = (
        case.executor,
        case.place,
        case.kill,
        f"{row['tables']:.1f}",
        f"{row['rows']:,}",
        f"{row['images']:.1f}",
        lost,
        again,
        end,
        f"{row['load']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def section() -> list[str]:
    """Return what the page has between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    return text.partition(f"{BEGIN}\n")[2].partition(f"\n{END}")[0].strip("\n").split("\n")


def read() -> Kept:
    """Return what is kept."""
    found: Kept = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    return found


def keep(now: Kept, rows: dict[str, Kept]) -> None:
    """Keep the rows of some cases, beside those of others that were measured in the same way, and write the page."""
    stored = read()
    same = all(stored.get(name) == now[name] for name in now)
    write({**now, "cases": {**(stored["cases"] if same else {}), **rows}})


def write(kept: Kept) -> None:
    """Write what is kept, and the page from it."""
    STORE.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    assert begin and end, f"{PAGE.name} has lost its marks"
    PAGE.write_text("".join([before, begin, "\n", *(f"{line}\n" for line in lines(kept)), "\n", end, after]))
