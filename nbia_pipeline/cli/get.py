"""``nbia-pipeline get``: download series into a directory, verified, without a lake and without Dagster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import click

from nbia_pipeline import stopping
from nbia_pipeline.archive import NbiaClient, NotAvailable
from nbia_pipeline.cli.home import WRONG_CALL, fail, live_progress, report, say, to_stderr
from nbia_pipeline.cli.options import Options, as_command, option, settings_of, with_rate
from nbia_pipeline.connect import connect
from nbia_pipeline.errors import OURS, error_text
from nbia_pipeline.lake.layout import encode
from nbia_pipeline.mirror.download import download_batch
from nbia_pipeline.mirror.progress import Progress
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.selection import read_manifest
from nbia_pipeline.mirror.series import WantedSeries, collections_of, named, wanted_series
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.text import size_text

ASKED_AT_A_TIME = 8
SHOWN = 10


@as_command(interrupted="; series that are in the directory are complete, and the next call fetches the rest")
@option("--series", multiple=True, metavar="UID", help="this SeriesInstanceUID; repeat it for several")
@option(
    "--manifest", type=click.Path(path_type=Path), metavar="FILE", help="those in a manifest (.tcia), table or list"
)
@option(
    "--to",
    "directory",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="directory to write to; created if necessary",
)
@with_rate
def command(options: Options) -> int:
    """Download series into directories of their own, DIR/SeriesInstanceUID, verified as in a lake.

    Every file has the MD5 that the archive has of it, is DICOM and of its series, and all of them are there. A
    directory appears when its series is complete: one that is there already is not fetched again. Neither a lake nor
    Dagster is needed. The exit code is 1 if one of the series could not be fetched.
    """
    settings = settings_of(options)
    uids = list(dict.fromkeys([*options.series, *(read_manifest(options.manifest) if options.manifest else ())]))
    if not uids:
        raise click.UsageError("name series by --series or --manifest")
    folder = options.directory.absolute()
    there = [uid for uid in uids if (folder / encode(uid)).is_dir()]
    with connect(settings) as client:
        found, failed = _listed(client, [uid for uid in uids if uid not in there])
        if not found and not there:
            uid, why = next(iter(failed.items()))
            return fail(f"series {uid}: {why}", WRONG_CALL)
        receipts = _fetched(client, found, folder, failed)
    complete = [r for r in receipts if r.status == COMPLETE]
    files, size = sum(len(r.instances) for r in complete), sum(i.Size for r in complete for i in r.instances)
    say(f"{folder}: {len(complete):,} series fetched and verified, {files:,} files, {size_text(size)}")
    if there:
        say(f"{len(there):,} series were there already: delete a directory to fetch its series again")
    _tell(failed)
    report(
        {
            "directory": str(folder),
            "fetched": {r.wanted.SeriesInstanceUID: str(folder / encode(r.wanted.SeriesInstanceUID)) for r in complete},
            "files": files,
            "bytes": size,
            "already_there": there,
            "failed": failed,
        }
    )
    return 1 if failed else 0


def _listed(client: NbiaClient, uids: Sequence[str]) -> tuple[list[WantedSeries], dict[str, str]]:
    """Return series as the archive lists them, and why others cannot be fetched."""

    def ask(uid: str) -> list[WantedSeries]:
        try:
            return wanted_series(client.series(series_uid=uid))[:1]
        except NotAvailable:
            return []

    with stopping.threads(ASKED_AT_A_TIME, "nbia-get") as pool:
        answers = list(stopping.in_order(pool, (partial(ask, uid) for uid in uids), most=ASKED_AT_A_TIME))
    missing = [uid for uid, found in zip(uids, answers, strict=True) if not found]
    why = "the archive does not list it: check the UID, and what the account may see"
    return [one for found in answers for one in found], dict.fromkeys(missing, why)


def _fetched(
    client: NbiaClient, batch: Sequence[WantedSeries], folder: Path, failed: dict[str, str]
) -> Sequence[Receipt]:
    """Fetch series, and note why some could not be fetched."""
    progress = Progress(named(collections_of(batch)), batch, lambda line: None)
    try:
        with live_progress(), progress.told():
            download_batch(client, batch, folder, on_result=progress.add, on_bytes=progress.arrived)
    except OURS as e:
        done = {r.wanted.SeriesInstanceUID for r in progress.receipts}
        failed.update({w.SeriesInstanceUID: error_text(e) for w in batch if w.SeriesInstanceUID not in done})
    for receipt in progress.receipts:
        if receipt.status != COMPLETE:
            failed[receipt.wanted.SeriesInstanceUID] = f"{receipt.status}: {receipt.reason}"
    return progress.receipts


def _tell(failed: Mapping[str, str]) -> None:
    for uid, why in list(failed.items())[:SHOWN]:
        to_stderr(f"series {uid}: {why}")
    if len(failed) > SHOWN:
        to_stderr(f"and {len(failed) - SHOWN:,} more series were not fetched")
