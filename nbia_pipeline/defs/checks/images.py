"""The checks of the images: they are complete, intact, as the archive has them, and licensed."""

import random
import shlex
from collections.abc import Iterator
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
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.table_file import pieces_where
from nbia_pipeline.mirror.plan import make_plan
from nbia_pipeline.mirror.receipt import BY_DIGESTS, MD5_AND_FIGURES
from nbia_pipeline.mirror.repair import ADVICE
from nbia_pipeline.mirror.series import has_files, in_order_of
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.status import COMPLETE, PENDING
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, LICENSES
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import first_of
from nbia_pipeline.verify import refetch
from nbia_pipeline.verify.compare import differs_from_archive, lists_others
from nbia_pipeline.verify.rehash import VerifyRun, md5s_of, plan_verification, read_again

# Each run of images reads about this much of the lake again, whatever its size; the next one goes on from there.
INTACT_BYTES = 250_000_000
INTACT_SECONDS = 5
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
            "Every listed series of a mirrored collection is in the lake: complete, verified and as listed now.",
            complete,
        ),
        Check(
            "intact",
            "The files that were read again are unchanged since they were fetched. Each run reads different files.",
            intact,
        ),
        Check(
            "agrees_with_archive",
            "The archive's own digests of a sample of series, and its lists of instances of some of them, are those of "
            "the files in the lake.",
            agrees_with_archive,
            severity=dg.AssetCheckSeverity.WARN,
            needs_archive=True,
        ),
        Check(
            "licensed",
            "Every complete series names its license, and the text of the license is in the lake.",
            licensed,
            severity=dg.AssetCheckSeverity.WARN,
        ),
    )
    return [build_check_step(naming, settings, "images", checks)]


# --- complete


def complete(subject: Subject) -> Report:
    """Compare the receipts with the ``series`` table, for every mirrored collection that has receipts."""
    return Report(
        incomplete(subject.lake, _mirrored(subject)),
        remedy=_run_again,
    )


def _run_again(findings: list[Finding]) -> str | None:
    """Return the command that fetches series, but for those that only the archive can repair."""
    # A UID is the archive's text, and a person pastes this into a shell.
    series = [f"--series {shlex.quote(f.series or '')}" for f in findings if f.fetchable]
    return " ".join(["nbia-pipeline run", *series]) if series else None


def incomplete(lake: Lake, collections: list[str]) -> Iterator[Finding]:
    """Yield the listed series without a complete receipt of their present content."""
    for collection in collections:
        receipts = lake.read_file(IMAGE_SERIES, collection)
        todo = make_plan(present_series(lake, collection), receipts).todo
        uids = pa.array([series.SeriesInstanceUID for series in todo], pa.string())
        known = receipts.filter(pc.is_in(receipts[_UID], value_set=uids), [_UID, "Status", "Reason"])
        by_uid = {row[_UID]: row for row in known.to_pylist()}
        for series in todo:
            receipt = by_uid.get(series.SeriesInstanceUID, {})
            status = receipt.get("Status", PENDING)
            why = receipt.get("Reason") or "not fetched yet"
            if status == COMPLETE:
                status, why = "outdated", receipt.get("Reason") or "the archive changed it since it was fetched"
            uid = series.SeriesInstanceUID
            yield Finding(collection, f"series {uid} is {status}: {why}", uid, fetchable=ADVICE not in why)


# --- intact


def intact(subject: Subject) -> Report:
    """Read a part of the lake again: what is known to be damaged first, then what has gone unchecked for longest."""
    lake = subject.lake
    until = clock.utc_now() + timedelta(seconds=INTACT_SECONDS)

    def enough(run: VerifyRun) -> bool:
        return run.bytes >= INTACT_BYTES or clock.utc_now() >= until

    run = read_again(lake, plan_verification(lake, lake.collections_of(IMAGE_SERIES)), enough=enough)
    properties = {
        "read_series": run.checked,
        "stored_series": run.wanted,
        "read_files": run.files,
        "read_bytes": run.bytes,
        "bytes_per_second": round(run.rate),
    }
    findings = (
        Finding(v.series.collection, f"series {v.series.uid} is damaged, {v.finding}", v.series.uid)
        for v in run.damaged
    )
    return Report(findings, properties, remedy=lambda first: refetch.COMMAND)


# --- agrees_with_archive


def agrees_with_archive(subject: Subject) -> Report:
    """Ask the archive for its digests, and lists, of some series of the run's collections, or of all mirrored ones.

    This finds series that the archive replaced without a change that its tables show.
    """
    counts = {"asked": 0, "not_held": 0, "listed": 0}
    assert subject.archive is not None  # noqa: S101 - built with needs_archive
    with subject.archive.client() as client:
        findings = list(_disagreements(client, subject.lake, _chosen(subject), counts))
    return Report(findings, dict(counts), remedy=lambda first: refetch.COMMAND_OUTDATED)


def _chosen(subject: Subject) -> list[dict[str, Any]]:
    """Choose complete series at random, others each day, of which the archive had digests when they were fetched."""
    collections = _mirrored(subject)
    collections = [c for c in collections if c in subject.collections] or collections
    day = clock.utc_now().date()
    chosen: list[dict[str, Any]] = []
    for collection in collections:
        receipts = subject.lake.read_table(IMAGE_SERIES, collection, columns=[_UID, "Status", "SeriesMD5", "Proof"])
        by_digests = among(receipts["Proof"], BY_DIGESTS)
        verified = receipts.filter(pc.and_(pc.equal(receipts["Status"], COMPLETE), by_digests))
        rows = range(verified.num_rows)
        chance = random.Random(f"{day} {collection}")  # noqa: S311 - no secret
        picked = sorted(chance.sample(rows, min(ASKED_PER_COLLECTION, len(rows))))
        chosen += [{**row, "Collection": collection} for row in verified.take(pa.array(picked, pa.int64())).to_pylist()]
    return random.Random(str(day)).sample(chosen, min(ASKED_AT_MOST, len(chosen)))  # noqa: S311 - no secret


def _disagreements(
    client: NbiaClient, lake: Lake, chosen: list[dict[str, Any]], counts: dict[str, int]
) -> Iterator[Finding]:
    def compare_digest(row: dict[str, Any]) -> str | None:
        digest = client.md5_hierarchy(series_uid=row[_UID])
        counts["asked"] += 1
        counts["not_held"] += digest is None  # the archive has none now, which says nothing about the files
        md5s = partial(_md5s, lake, row)
        return differs_from_archive(client, (row[_UID], row["SeriesMD5"]), digest, md5s, most=ASKED_PER_SERIES)

    def compare_list(row: dict[str, Any]) -> str | None:
        counts["listed"] += 1
        return lists_others(client, row[_UID], _md5s(lake, row))

    by_figures = [row for row in chosen if row["Proof"] == MD5_AND_FIGURES][:LISTED_AT_MOST]
    questions = [*((compare_digest, row) for row in chosen), *((compare_list, row) for row in by_figures)]
    outdated: set[str] = set()
    with stopping.threads(client.max_in_flight, "nbia-check") as pool:
        answers = stopping.in_order(pool, (partial(ask, row) for ask, row in questions), most=client.max_in_flight)
        for _, row in questions:
            uid, collection = row[_UID], row["Collection"]
            try:
                different = next(answers)
            except ArchiveError as e:
                yield Finding(collection, f"the archive cannot be asked for its digests: {e}")
                return
            if different and uid not in outdated:
                outdated.add(uid)
                yield Finding(collection, f"series {uid} is outdated: {different}", uid)


def _md5s(lake: Lake, row: dict[str, Any]) -> dict[str, str]:
    rows = lake.read_rows(INSTANCES, row["Collection"], _UID, {row[_UID]}, ["SOPInstanceUID", "MD5"])
    return md5s_of(rows.to_pylist())


# --- licensed


def licensed(subject: Subject) -> Report:
    """Look for the license of every complete series, and for its text."""
    return Report(unlicensed(subject.lake), remedy=lambda first: "nbia-pipeline run")


def unlicensed(lake: Lake) -> Iterator[Finding]:
    """Yield, by license, the complete series that name none, or whose license has no text in the lake."""
    for collection in lake.collections_of(IMAGE_SERIES):
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
                yield Finding(collection, f"{len(uids)} series name no license: {shown}", uids[0])
            else:
                what = f"the text of {name!r} is not in the lake: the archive serves none, or was not asked yet"
                yield Finding(collection, f"{what}; {len(uids)} series have it: {shown}", uids[0])


def _license(row: dict[str, Any]) -> tuple[str, str]:
    return row["LicenseName"] or "", row["LicenseURI"] or ""


def _mirrored(subject: Subject) -> list[str]:
    """Return the mirrored collections that have receipts: of others no image was requested yet."""
    stored = subject.lake.collections_of(IMAGE_SERIES)
    return [name for name in stored if subject.settings.mirrors_images_of(name)]
