"""Fetch series: download, verify, publish; what cannot be proven is tried again, then quarantined."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from nbia_pipeline.archive import NbiaClient, NotAvailable
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.transfer.plan import COMPLETE, QUARANTINED, UNAVAILABLE, WantedSeries
from nbia_pipeline.transfer.receipts import Receipt, note_failure, publish_series
from nbia_pipeline.transfer.verify import NotProven, ProvenInstance, unpack_and_verify

log = logging.getLogger(__name__)

TRIES = 3
STREAMS = 8


def fetch_batch(
    client: NbiaClient,
    lake: Lake,
    batch: Sequence[WantedSeries],
    *,
    streams: int = STREAMS,
    tell: Callable[[Receipt], None] = lambda receipt: None,
) -> list[Receipt]:
    """Fetch the series of a batch over a bounded pool of threads.

    Each series is published, and noted in the journal, as soon as it is verified.

    Args:
        client: the archive.
        lake: where to.
        batch: the series.
        streams: downloads at a time.
        tell: called with every outcome, from any thread.

    Returns:
        One receipt per series, in the order of the batch.

    Raises:
        ArchiveError: the archive cannot be reached or refuses the account; what was published stays.
        LakeError: the lake cannot be written.
    """

    def fetch(wanted: WantedSeries) -> Receipt:
        receipt = fetch_series(client, lake, wanted)
        tell(receipt)
        return receipt

    with ThreadPoolExecutor(streams, thread_name_prefix="nbia-images") as pool:
        futures = [pool.submit(fetch, wanted) for wanted in batch]
        _, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        for future in waiting:
            future.cancel()
    for future in futures:
        if not future.cancelled() and (problem := future.exception()):
            raise problem
    return [future.result() for future in futures]


def fetch_series(client: NbiaClient, lake: Lake, wanted: WantedSeries) -> Receipt:
    """Fetch one series: whole, verified and published, or not at all.

    Raises:
        ArchiveError: the archive cannot be reached or refuses the account.
        LakeError: the lake cannot be written.
    """
    reason = ""
    try:
        _ = Receipt(wanted, COMPLETE, 0).path
    except LakeError as e:
        receipt = Receipt(wanted, QUARANTINED, 0, reason=f"PatientID or a UID is missing: {e}")
        note_failure(lake, receipt)
        return receipt
    for attempt in range(1, TRIES + 1):
        with lake.workspace() as work:
            try:
                with lake.told(f"unpack series {wanted.SeriesInstanceUID}"):
                    instances = _download(client, wanted, work)
            except NotProven as e:
                reason = str(e)
                log.warning("series %s, attempt %d: %s", wanted.SeriesInstanceUID, attempt, reason)
                continue
            except NotAvailable as e:
                receipt = Receipt(wanted, UNAVAILABLE, attempt, reason=str(e))
                note_failure(lake, receipt)
                return receipt
            receipt = Receipt(wanted, COMPLETE, attempt, instances)
            publish_series(lake, receipt, work / "files")
            return receipt
    receipt = Receipt(wanted, QUARANTINED, TRIES, reason=reason)
    note_failure(lake, receipt)
    return receipt


def _download(client: NbiaClient, wanted: WantedSeries, work: Path) -> list[ProvenInstance]:
    zipped = work / "series.zip"
    files = work / "files"
    files.mkdir()
    client.image_with_md5(wanted.SeriesInstanceUID, lambda chunks: _write(zipped, chunks))
    uids = client.sop_instance_uids(wanted.SeriesInstanceUID)
    instances = unpack_and_verify(zipped, files, wanted, uids)
    zipped.unlink()
    return instances


def _write(target: Path, chunks: Iterator[bytes]) -> None:
    with target.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
