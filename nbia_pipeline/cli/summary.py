"""The summary that ends a run in a terminal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from nbia_pipeline.defs.main_job import PARTITIONED, Outcome
from nbia_pipeline.settings import variable_of
from nbia_pipeline.text import size_text, table_text

_INTERRUPTED = "Stopped   interrupted: what was finished is in the lake; the next run fetches the rest."


def summary(outcome: Outcome, home: Path) -> str:
    """Return the summary of a run: what the lake has, what was verified, how long it took, how to see it.

    Its events are in the DAGSTER_HOME `home`.
    """
    if not outcome.collections:
        return f"\n{_INTERRUPTED}" if outcome.interrupted else ""
    header = ["collection", *(t.name for t in PARTITIONED), "images", "files", "size"]
    rows = [_cells(name, f, "" if f["wanted"] or f["complete"] else "-") for name, f in outcome.collections.items()]
    total = sum(outcome.collections.values(), Counter[str]())
    table = table_text([header, *rows, _cells("total", total)])
    return "\n".join(["", table, "", *_sentences(outcome, total, home)])


def _cells(name: str, figures: Counter[str], images: str = "") -> list[str]:
    rows = (str(figures[t.name]) for t in PARTITIONED)
    images = images or f"{figures['complete']} of {figures['wanted']}"
    return [name, *rows, images, str(figures["files"]), size_text(figures["bytes"])]


def _sentences(outcome: Outcome, total: Counter[str], home: Path) -> list[str]:
    n, lines = outcome.fetched, []
    if not total["wanted"] and not outcome.interrupted:  # else it may not be listed yet what is wanted
        lines = [f"Images    not mirrored: {variable_of('images')} names the collections whose images are mirrored."]
    elif n["fetched_series"]:
        lines = [
            f"Fetched   {n['fetched_series']} series, {n['fetched_files']} files, {size_text(n['fetched_bytes'])}; "
            f"{n['skipped_series']} series were already in the lake.",
            "Verified  when fetched: every file has the MD5 that the archive lists, is DICOM, and is of its series;",
            "          every series has the SOPInstanceUIDs that the archive lists, and their count.",
        ]
    elif total["wanted"]:
        lines = [f"Fetched   no images: {n['skipped_series']} series were already in the lake."]
    if n["healed_instances"]:
        lines.append(f"Repaired  {n['healed_instances']} images that were missing or damaged, one by one.")
    if n["quarantined"] or n["unavailable"]:
        lines.append(
            f"Missing   {n['quarantined']} series are quarantined, {n['unavailable']} unavailable: table image_series "
            "has the reasons."
        )
    if n["left_series"]:
        lines.append(f"Pending   {n['left_series']} series, for a later run.")
    passed = sum(found is None for found in outcome.checks.values())
    checks = f"{passed} asset checks passed, {len(outcome.failed_checks)} failed"
    if outcome.warnings:
        checks += f", {len(outcome.warnings)} warned"
    if passed + len(outcome.failed_checks) < len(outcome.checks):
        checks += "; only some images were requested, so missing ones do not count"
    parts = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in outcome.seconds.items())
    in_checkout = Path("Makefile").is_file() and Path("workspace.yaml").is_file()
    dev = "make dev" if in_checkout else f"DAGSTER_HOME='{home}' nbia-pipeline dev"
    if outcome.interrupted:
        lines.insert(0, _INTERRUPTED)
    return [
        *lines,
        f"Checked   {checks}.",
        f"Took      {sum(outcome.seconds.values()):.1f} s: {parts}.",
        f"See it    {dev}, then http://localhost:3000",
    ]
