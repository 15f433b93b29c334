"""``nbia-pipeline verify``: read the files of the lake again, and repair what is damaged."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click

from nbia_pipeline import clock
from nbia_pipeline.cli.home import WRONG_CALL, fail, report, say, to_stderr
from nbia_pipeline.cli.options import (
    Options,
    as_command,
    collections_argument,
    count,
    existing_lake,
    one_of,
    option,
    settings_of,
)
from nbia_pipeline.connect import connect
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import did_you_mean, matching, size_text, unmatched
from nbia_pipeline.verify.inventory import VerifyResult
from nbia_pipeline.verify.refetch import COMMAND, COMMAND_OUTDATED, refetch, unrepaired
from nbia_pipeline.verify.rehash import VerifyRun, digest_check, plan_series, plan_verification, read_again
from nbia_pipeline.verify.tables import OF_IMAGES, TableDamage, damaged_tables, repair_tables, stored_collections

PROGRESS_SECONDS = 10.0
SHOWN = 10
NOT_ALL = 3

_LONGEST_SECONDS = 100 * 366 * 86_400  # more is no time that a calendar has
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def _seconds(text: str) -> int:
    found = _DURATION.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not 0 < total <= _LONGEST_SECONDS:
        raise click.BadParameter(f"{text!r} is not a duration such as 30m, 90s or 1h30m")
    return total


@as_command(interrupted="; what was read is recorded, and the next call with --for continues from there")
@collections_argument("names or globs (default: all)")
@option("--all", is_flag=True, help="every series (default)")
@option("--sample", type=count, metavar="N", help="N series, chosen at random")
@option("--damaged", is_flag=True, help="only series that were found damaged before")
@option("--seed", type=int, metavar="S", help="repeat the --sample of a call that printed this seed")
@option("--for", "seconds", type=_seconds, metavar="TIME", help="stop after TIME, such as 30m")
@option("--threads", type=count, default=3, metavar="N", help="series at a time (default: 3)")
@option("--ask-archive", is_flag=True, help="also compare with the archive's own digests")
@option(
    "--repair",
    "--mend",
    is_flag=True,
    help="rebuild damaged tables, fetch damaged series again, and read them once more",
)
def command(options: Options) -> int:
    """Read the files in the lake again, and compare them with what was recorded when they were fetched.

    The tables come first, then the image files, with their sizes and MD5 digests. Series found damaged come first, then
    those that have gone unread for longest; with --for, each call continues where the last one stopped.
    """
    one_of({"--all": options.all, "--sample": options.sample, "--damaged": options.damaged})
    if options.seed is not None and options.sample is None:
        raise click.UsageError("--seed needs --sample")
    settings = settings_of(options)
    lake = existing_lake(options, settings)
    chosen = matching(options.collections, stored_collections(lake)) if options.collections else None
    tables = damaged_tables(lake, chosen)
    stored = sorted({*lake.collections_of(IMAGE_SERIES), *(d.collection for d in tables if d.of_collection)})
    for name, similar in unmatched(options.collections, stored).items():
        hint = did_you_mean(similar, f"it has images of {', '.join(stored) or 'none'}")
        return fail(f"the lake has no images of {name!r}: {hint}", WRONG_CALL)
    tables = _repaired_tables(settings, lake, tables) if options.repair and tables else tables
    for damage in tables:
        to_stderr(str(damage))
    unread = {d.collection for d in tables if d.table in OF_IMAGES}
    stored = [c for c in lake.collections_of(IMAGE_SERIES) if c not in unread]
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    stored = matching(options.collections, stored) if options.collections else stored
    waiting = sum(unrepaired(lake, collection) for collection in stored)
    if waiting:
        to_stderr(
            f"{waiting:,} series that were found damaged are not fetched again yet: `nbia-pipeline run` fetches them"
        )
    planned = plan_verification(
        lake,
        stored,
        sample=options.sample,
        seed=seed,
        damaged_only=options.damaged,
    )
    wanted = sum(part.series for part in planned)
    sampled = f", a sample with --seed {seed}" if options.sample is not None else ""
    plural = "" if len(planned) == 1 else "s"
    size = size_text(sum(part.bytes for part in planned))
    say(f"{settings.lake}: {wanted:,} series, {size}, in {len(planned)} collection{plural} to read{sampled}")
    with connect(settings) if options.ask_archive else nullcontext() as client:
        until = None if options.seconds is None else clock.utc_now() + timedelta(seconds=options.seconds)
        done = read_again(
            lake,
            planned,
            threads=options.threads,
            extra_check=digest_check(client) if client else None,
            enough=lambda done: until is not None and clock.utc_now() >= until,
            on_progress=_progress_printer(),
        )
    report(_figures(done, tables, waiting))
    say(_summary(done))
    _print_damage(done.damaged)
    left = 1 if tables or waiting else NOT_ALL if done.stopped else 0
    if not done.damaged:
        return left
    if options.repair:
        options.interrupted = (
            "; the series that were fetched again are in the lake, and `nbia-pipeline run` fetches the rest"
        )
        return left if _repaired(settings, lake, done.damaged) else 1
    say(f"to repair it: {COMMAND_OUTDATED if all(v.outdated for v in done.damaged) else COMMAND}")
    return 1


def _repaired_tables(settings: Settings, lake: Lake, damaged: Sequence[TableDamage]) -> list[TableDamage]:
    """Rebuild damaged tables, and return what is still damaged."""
    lake.check_writable()
    for damage in damaged:
        say(f"  {damage}")
    with connect(settings) as client:
        repair_tables(client, lake, settings, damaged)
    left = damaged_tables(lake, {d.collection for d in damaged} if all(d.of_collection for d in damaged) else None)
    report({"repaired_tables": len(damaged) - len(left)})
    say(f"repaired {len(damaged) - len(left):,} of {len(damaged):,} tables")
    return left


def _repaired(settings: Settings, lake: Lake, damaged: Sequence[VerifyResult]) -> bool:
    """Fetch damaged series and read them again; False if any of them is not complete now."""
    lake.check_writable()
    with connect(settings) as client:
        outcome = refetch(client, lake, damaged, on_result=_print_receipt)
    again = read_again(lake, [plan_series(lake, name, frozenset(uids)) for name, uids in outcome.uids.items()])
    report({"repaired": again.checked - len(again.damaged), "not_repaired": outcome.failures})
    say(f"repaired {again.checked - len(again.damaged):,} of {len(damaged):,} damaged series")
    _print_damage(again.damaged)
    for uid, why in list(outcome.failures.items())[:SHOWN]:
        to_stderr(f"series {uid} could not be repaired, {why}")
    return not again.damaged and not outcome.failures


def _progress_printer() -> Callable[[VerifyRun], None]:
    """Return a function that prints the progress of a verification, every ten seconds."""
    last = 0.0

    def show(done: VerifyRun) -> None:
        nonlocal last
        if done.seconds - last < PROGRESS_SECONDS:
            return
        last = done.seconds
        left = max(0, done.wanted_bytes - done.bytes) / done.rate if done.rate else 0.0
        bad = f", {len(done.damaged):,} damaged" if done.damaged else ""
        say(
            f"  {done.checked:,} of {done.wanted:,} series, {size_text(done.bytes)} at {size_text(done.rate)}/s, "
            f"about {timedelta(seconds=round(left))} left{bad}"
        )

    return show


def _figures(done: VerifyRun, tables: Sequence[TableDamage], waiting: int) -> dict[str, Any]:
    figures = asdict(done)
    figures["damaged"] = [
        {"collection": d.series.collection, "series": d.series.uid, "finding": d.finding, "outdated": d.outdated}
        for d in done.damaged
    ]
    damaged = [{"collection": d.collection, "table": d.table.name, "finding": d.what} for d in tables]
    return {**figures, "damaged_tables": damaged, "not_fetched_again": waiting}


def _summary(done: VerifyRun) -> str:
    stopped = "time is up: " if done.stopped else ""
    return (
        f"{stopped}read {done.checked:,} of {done.wanted:,} series, {done.files:,} files, {size_text(done.bytes)} in "
        f"{done.seconds:.1f} s ({size_text(done.rate)}/s), {len(done.damaged):,} damaged"
    )


def _print_damage(damaged: Sequence[VerifyResult]) -> None:
    for result in damaged[:SHOWN]:
        to_stderr(str(result))
    if len(damaged) > SHOWN:
        to_stderr(f"and {len(damaged) - SHOWN:,} more, in table verifications")


def _print_receipt(receipt: Receipt) -> None:
    series = receipt.wanted
    say(f"  {series.Collection}: series {series.SeriesInstanceUID} is {receipt.status}")
