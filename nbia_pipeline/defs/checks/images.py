"""The checks of the images: they are complete, intact, as the archive has them, and licensed."""

import random
import shlex
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock, stopping
from nbia_pipeline.archive import ArchiveError, NbiaClient
from nbia_pipeline.changes.present import present_series
from nbia_pipeline.defs.checks.check import SHOWN, Check, Finding, Report, Subject, build_check_step
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.defs.sensors import collections_in_progress
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.table_file import Rows, pieces_where
from nbia_pipeline.mirror.commit import NO_ROOM, NOT_FETCHED
from nbia_pipeline.mirror.journal import BEING_REPLACED
from nbia_pipeline.mirror.plan import RETRY_AFTER, make_plan
from nbia_pipeline.mirror.receipt import BY_DIGESTS, MAY_REFER, MD5_AND_FIGURES, REFERENCED
from nbia_pipeline.mirror.repair import ADVICE
from nbia_pipeline.mirror.selection import NotRead, Selections
from nbia_pipeline.mirror.series import WantedSeries, has_files, in_order_of
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.status import COMPLETE, PENDING, UNAVAILABLE, WITHDRAWN
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, LICENSES
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import first_of
from nbia_pipeline.verify import refetch
from nbia_pipeline.verify.compare import differs_from_archive, lists_others
from nbia_pipeline.verify.rehash import VerifyRun, md5s_of, plan_verification, read_again

RUN = "nbia-pipeline run"

# Each run of images reads about this much of the lake again, whatever its size; the next one goes on from there.
INTACT_BYTES = 250_000_000
INTACT_SECONDS = 5
# Collections that are not those of the run, and of which some series are read again too.
OTHERS_READ = 2
# Small requests, one for each series. With the lists, those of a collection can all be in flight at a time.
ASKED_PER_COLLECTION = 12
ASKED_AT_MOST = 100
# Of so many series the instances are listed, too, for an archive whose ImageCount and FileSize are wrong.
LISTED_AT_MOST = 4
# Of a series whose digest is another one, so many images: if it was replaced, the first ones differ.
ASKED_PER_SERIES = 20

_UID = "SeriesInstanceUID"


def build_checks(naming: Naming, settings: Settings) -> list[dg.AssetChecksDefinition]:
    """Return the checks of the images of one archive."""
    checks = (
        Check(
            "complete",
            "Every wanted series of the collection is in the lake: complete, verified and as listed now.",
            partial(complete, naming),
        ),
        Check(
            "intact",
            "The files that were read again are unchanged since they were fetched. Each run reads different files.",
            intact,
            order=most_urgent,
        ),
        Check(
            "agrees_with_archive",
            "The archive's own digests of a sample of series, and its lists of instances of some of them, match the "
            "files in the lake.",
            agrees_with_archive,
            severity=dg.AssetCheckSeverity.WARN,
            needs_archive=True,
            order=by_day,
        ),
        Check(
            "licensed",
            "Every complete series names its license, and the text of the license is in the lake.",
            licensed,
            severity=dg.AssetCheckSeverity.WARN,
        ),
    )
    return [build_check_step(naming, settings, IMAGE_SERIES, checks, asset="images")]


# --- complete


def complete(naming: Naming, subject: Subject) -> Report:
    """Compare the receipts of a mirrored collection with the series that are wanted of it.

    What is only not fetched yet is a warning: the next run, or one that is in progress, fetches it.
    """
    lake, collection = subject.lake, subject.collection
    if not subject.settings.mirrors_images_of(collection):
        return Report([], summary="The images of the collection are not mirrored")
    series = present_series(lake, collection)
    try:
        wanted = Selections(subject.settings.select).wanted(lake, collection, series)
    except NotRead as e:
        return Report([Finding(str(e), warning=True)], remedy=lambda first: RUN)
    found = list(incomplete(lake, collection, wanted))
    findings = sorted(found, key=lambda f: f.warning)
    pending, unwanted = sum(f.warning for f in found), series.num_rows - wanted.num_rows
    summary = f"{wanted.num_rows - len(found):,} of {wanted.num_rows:,} series are in the lake"
    summary += f"; {unwanted:,} not selected ({subject.settings.name_of('select')})" if unwanted else ""
    busy = _fetched_by_others(naming, subject) if pending else False
    if pending:
        summary += f"; {pending:,} pending: {_why_pending(subject, found, busy=busy)}"
    properties = {"wanted_series": wanted.num_rows, "pending_series": pending, "not_selected_series": unwanted}
    return Report(findings, properties, partial(_run_again, busy), summary)


def _run_again(busy: bool, findings: list[Finding]) -> str | None:
    """Return the command that fetches series, without those that only the archive can repair or that a run fetches."""
    # A UID is the archive's text, and a person pastes this into a shell.
    failed = [f"--series {shlex.quote(f.series or '')}" for f in findings if f.fetchable and not f.warning]
    if failed:
        return " ".join([RUN, *failed])
    return RUN if any(f.warning for f in findings) and not busy else None


def _fetched_by_others(naming: Naming, subject: Subject) -> bool:
    """Return whether another run of images of the collection is queued or in progress."""
    if subject.instance is None:
        return False
    if "busy" not in subject.shared:
        subject.shared["busy"] = collections_in_progress(naming, subject.instance, besides=subject.run_id)
    return subject.collection in subject.shared["busy"]


def _why_pending(subject: Subject, findings: list[Finding], *, busy: bool) -> str:
    no_room = sum(f.warning and NO_ROOM in f.what for f in findings)
    left, not_asked = (int(subject.last.get(name, 0)) for name in ("left_series", "not_asked_series"))
    not_asked = min(not_asked, sum(f.warning for f in findings) - left)
    reasons = {
        "another run is fetching the collection": busy,
        f"the disk has no room for {no_room:,}": no_room,
        f"the bounds of the last run left {left - no_room:,}": max(0, left - no_room),
        f"the selection of the last run left out {not_asked:,}": not_asked > 0,
    }
    return ", ".join(why for why, true in reasons.items() if true) or "no run has fetched them yet"


def incomplete(lake: Lake, collection: str, wanted: Rows) -> Iterator[Finding]:
    """Yield the wanted series without a complete receipt of their present content."""
    receipts = lake.read_file(IMAGE_SERIES, collection)
    todo = make_plan(wanted, receipts).todo
    uids = pa.array([series.SeriesInstanceUID for series in todo], pa.string())
    columns = [_UID, "Status", "Reason", "FetchedAt", "RefreshFailedAt"]
    known = receipts.filter(pc.is_in(receipts[_UID], value_set=uids), columns)
    by_uid = {row[_UID]: row for row in known.to_pylist()}
    never = {uid for uid in uids.to_pylist() if by_uid.get(uid, _NO_RECEIPT)["FetchedAt"] is None}
    lost = set(lake.read_rows(INSTANCES, collection, _UID, never, [_UID])[_UID].to_pylist()) if never else set()
    for series in todo:
        receipt = by_uid.get(series.SeriesInstanceUID, _NO_RECEIPT)
        if series.SeriesInstanceUID in lost:
            receipt = {
                **receipt,
                "Status": "lost",
                "Reason": "its receipt is missing, although its files were in the lake",
            }
        yield _finding(series, receipt)


_NO_RECEIPT: dict[str, Any] = dict.fromkeys(("Status", "Reason", "FetchedAt", "RefreshFailedAt"))


def _finding(series: WantedSeries, receipt: Mapping[str, Any]) -> Finding:
    status, why = receipt["Status"] or PENDING, receipt["Reason"] or NOT_FETCHED
    never = receipt["FetchedAt"] is None or why == BEING_REPLACED
    warning = status == WITHDRAWN or (status == PENDING and never)  # withdrawn: pruned, and listed again
    if status == COMPLETE:
        status = "outdated"
        if not receipt["Reason"] or why.startswith((REFERENCED, MAY_REFER)):
            why = "the archive changed it since it was fetched"
        warning = receipt["RefreshFailedAt"] is None
    elif status == UNAVAILABLE:
        warning = _is_new(series)
    uid = series.SeriesInstanceUID
    return Finding(f"series {uid} is {status}: {why}", uid, fetchable=ADVICE not in why, warning=warning)


def _is_new(series: WantedSeries) -> bool:
    """Return whether a series was submitted or released within the last day: it may be refused while it is curated."""
    times = [time for time in (series.TimeStamp, series.DateReleased) if time is not None]
    return bool(times) and clock.utc_now() - max(times) < RETRY_AFTER


# --- intact


def intact(subject: Subject) -> Report:
    """Read a part of the collection again: what is known to be damaged first, then what was read longest ago."""
    planned = plan_verification(subject.lake, [subject.collection])
    spent = subject.shared.setdefault("read", VerifyRun(0, 0))
    most_bytes = (INTACT_BYTES - spent.bytes) / subject.to_go
    until = clock.utc_now() + timedelta(seconds=(INTACT_SECONDS - spent.seconds) / subject.to_go)
    damaged = any(not sound for sound, _ in (part.urgency for part in planned))

    def enough(run: VerifyRun) -> bool:
        if damaged and not run.checked:  # else a result would say that all is well
            return False
        return run.bytes >= most_bytes or clock.utc_now() >= until

    run = read_again(subject.lake, planned, enough=enough)
    spent.bytes, spent.seconds = spent.bytes + run.bytes, spent.seconds + run.seconds
    properties = {
        "read_series": run.checked,
        "stored_series": run.wanted,
        "read_files": run.files,
        "read_bytes": run.bytes,
        "bytes_per_second": round(run.rate),
    }
    findings = (Finding(f"series {v.series.uid} is damaged, {v.finding}", v.series.uid) for v in run.damaged)
    return Report(findings, properties, remedy=lambda first: refetch.COMMAND)


def most_urgent(lake: Lake, partitions: list[str]) -> list[str]:
    """Return the collections of a run, the one that was read longest ago first, and others that were not read for long.

    Else nothing would read a collection again in which nothing is new.
    """
    planned = [part.collection for part in plan_verification(lake, lake.collections_of(IMAGE_SERIES))]
    others = [name for name in planned if name not in partitions][:OTHERS_READ]
    chosen = [name for name in planned if name in partitions or name in others]
    return [*chosen, *(name for name in partitions if name not in planned)]


# --- agrees_with_archive


def agrees_with_archive(subject: Subject) -> Report:
    """Ask the archive for its digests, and lists, of some series of the collection.

    This finds series that the archive replaced without a change that its tables show.
    """
    counts = {"asked": 0, "not_held": 0, "listed": 0}
    assert subject.client is not None  # noqa: S101 - built with needs_archive
    findings = list(_disagreements(subject.client, subject, counts))
    spent = subject.shared
    for name, number in counts.items():
        spent[name] = spent.get(name, 0) + number
    return Report(findings, dict(counts), remedy=lambda first: refetch.COMMAND_OUTDATED)


def by_day(lake: Lake, partitions: list[str]) -> list[str]:
    """Return the collections of a run in an order that is another each day: what can be asked has a bound."""
    return random.Random(str(clock.utc_now().date())).sample(partitions, len(partitions))  # noqa: S311 - no secret


def _chosen(subject: Subject) -> list[dict[str, Any]]:
    """Choose complete series at random, others each day, of which the archive had digests when they were fetched."""
    if not subject.settings.mirrors_images_of(subject.collection):
        return []
    columns = [_UID, "Status", "SeriesMD5", "Proof"]
    receipts = subject.lake.read_table(IMAGE_SERIES, subject.collection, columns=columns)
    by_digests = among(receipts["Proof"], BY_DIGESTS)
    verified = receipts.filter(pc.and_(pc.equal(receipts["Status"], COMPLETE), by_digests))
    rows = range(verified.num_rows)
    chance = random.Random(f"{clock.utc_now().date()} {subject.collection}")  # noqa: S311 - no secret
    most = min(ASKED_PER_COLLECTION, ASKED_AT_MOST - subject.shared.get("asked", 0), len(rows))
    chosen: list[dict[str, Any]] = verified.take(pa.array(sorted(chance.sample(rows, most)), pa.int64())).to_pylist()
    return chosen


def _disagreements(client: NbiaClient, subject: Subject, counts: dict[str, int]) -> Iterator[Finding]:
    def compare_digest(row: dict[str, Any]) -> str | None:
        digest = client.md5_hierarchy(series_uid=row[_UID])
        counts["asked"] += 1
        counts["not_held"] += digest is None  # the archive has none now, which says nothing about the files
        md5s = partial(_md5s, subject, row)
        return differs_from_archive(client, (row[_UID], row["SeriesMD5"]), digest, md5s, most=ASKED_PER_SERIES)

    def compare_list(row: dict[str, Any]) -> str | None:
        counts["listed"] += 1
        return lists_others(client, row[_UID], _md5s(subject, row))

    chosen = _chosen(subject)
    most_lists = LISTED_AT_MOST - subject.shared.get("listed", 0)
    by_figures = [row for row in chosen if row["Proof"] == MD5_AND_FIGURES][:most_lists]
    questions = [*((compare_digest, row) for row in chosen), *((compare_list, row) for row in by_figures)]
    outdated: set[str] = set()
    with stopping.threads(client.max_in_flight, "nbia-check") as pool:
        answers = stopping.in_order(pool, (partial(ask, row) for ask, row in questions), most=client.max_in_flight)
        for _, row in questions:
            uid = row[_UID]
            try:
                different = next(answers)
            except ArchiveError as e:
                yield Finding(f"the archive cannot be asked for its digests: {e}")
                return
            if different and uid not in outdated:
                outdated.add(uid)
                yield Finding(f"series {uid} is outdated: {different}", uid)


def _md5s(subject: Subject, row: dict[str, Any]) -> dict[str, str]:
    rows = subject.lake.read_rows(INSTANCES, subject.collection, _UID, {row[_UID]}, ["SOPInstanceUID", "MD5"])
    return md5s_of(rows.to_pylist())


# --- licensed


def licensed(subject: Subject) -> Report:
    """Look for the license of every complete series, and for its text."""
    return Report(unlicensed(subject.lake, subject.collection), remedy=lambda first: RUN)


def unlicensed(lake: Lake, collection: str) -> Iterator[Finding]:
    """Yield, by license, the complete series that name none, or whose license has no text in the lake."""
    listed = present_series(lake, collection)
    complete = pc.fill_null(has_files(in_order_of(listed, lake.read_file(IMAGE_SERIES, collection))), False)
    texts = lake.read_table(LICENSES, collection, columns=["LicenseName", "LicenseURI", "LicenseText"])
    known = {_license(row) for row in texts.to_pylist() if row["LicenseText"] is not None}
    # Those with a text are left out at once: they are nearly all, and many.
    named: dict[tuple[str, str], list[str]] = {}
    for piece in pieces_where(listed, complete, [_UID, "LicenseName", "LicenseURI"]):
        columns = (piece[name].to_pylist() for name in piece.column_names)
        for uid, *names in zip(*columns, strict=True):
            license = (names[0] or "", names[1] or "")
            if license not in known or not any(license):
                named.setdefault(license, []).append(uid)
    for license, uids in sorted(named.items()):
        shown, name = first_of(uids, SHOWN), license[0] or license[1]
        if not name:
            yield Finding(f"{len(uids)} series name no license: {shown}", uids[0])
        else:
            what = f"the text of {name!r} is not in the lake: the archive serves none, or was not asked yet"
            yield Finding(f"{what}; {len(uids)} series have it: {shown}", uids[0])


def _license(row: dict[str, Any]) -> tuple[str, str]:
    return row["LicenseName"] or "", row["LicenseURI"] or ""
