"""The summary that ends a run in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nbia_pipeline.cli.main_job import PARTITIONED, CollectionSummary, Outcome
from nbia_pipeline.text import size_text


def summary(outcome: Outcome, home: Path) -> str:
    """Return the summary of a run: what the lake holds, what was verified, how long it took, how to see it.

    Args:
        outcome: what the run did.
        home: the DAGSTER_HOME that holds its events.
    """
    if not outcome.collections:
        return ""
    header = ["collection", *(t.name for t in PARTITIONED), "images", "files", "size"]
    rows = [_cells(c) for c in outcome.collections]
    return "\n".join(["", *aligned([header, *rows, _total(outcome.collections)]), "", *_sentences(outcome, home)])


def _cells(c: CollectionSummary) -> list[str]:
    images = f"{c.complete} of {c.wanted}" if c.wanted or c.complete else "-"
    return [c.collection, *(str(c.rows[t.name]) for t in PARTITIONED), images, str(c.files), size_text(c.bytes)]


def _total(collections: Sequence[CollectionSummary]) -> list[str]:
    rows = [str(sum(c.rows[t.name] for c in collections)) for t in PARTITIONED]
    images = f"{sum(c.complete for c in collections)} of {sum(c.wanted for c in collections)}"
    return [
        "total",
        *rows,
        images,
        str(sum(c.files for c in collections)),
        size_text(sum(c.bytes for c in collections)),
    ]


def aligned(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table: a header, rows, and the total, with rules between them."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _sentences(outcome: Outcome, home: Path) -> list[str]:
    moved = outcome.fetched
    if not any(c.wanted for c in outcome.collections):
        fetched = ["Images    are not mirrored: NBIA_IMAGES names the collections whose images shall be."]
    elif moved["fetched_series"]:
        fetched = [
            f"Fetched   {moved['fetched_series']} series, {moved['fetched_files']} files, "
            f"{size_text(moved['fetched_bytes'])}; {moved['skipped_series']} series were there already.",
            "Verified  when fetched: the MD5 of every file as the archive lists it, that it is DICOM, of its series;",
            "          of every series its set of SOPInstanceUIDs and its count.",
        ]
    else:
        fetched = [f"Fetched   no image: {moved['skipped_series']} series were there already."]
    if moved["healed_instances"]:
        fetched.append(f"Healed    {moved['healed_instances']} images that were missing or damaged, one by one.")
    if moved["quarantined"] or moved["unavailable"]:
        fetched.append(
            f"Missing   {moved['quarantined']} series are quarantined, {moved['unavailable']} unavailable: table "
            "image_series has the reasons."
        )
    if moved["left_series"]:
        fetched.append(f"Left      {moved['left_series']} series, for a later run.")
    parts = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in outcome.seconds.items())
    passed = sum(found is None for found in outcome.checks.values())
    checks = f"{passed} asset checks passed, {len(outcome.failed_checks)} failed"
    if outcome.warnings:
        checks += f", {len(outcome.warnings)} warned"
    if passed + len(outcome.failed_checks) < len(outcome.checks):
        checks += "; that all images are there was not asked for"
    return [
        *fetched,
        f"Checked   {checks}.",
        f"Took      {sum(outcome.seconds.values()):.1f} s: {parts}.",
        f"See it    {_dev_line(home)}, then http://localhost:3000",
    ]


def _dev_line(home: Path) -> str:
    if Path("Makefile").is_file() and Path("workspace.yaml").is_file():
        return "make dev"
    return f"DAGSTER_HOME='{home}' nbia-pipeline dev"
