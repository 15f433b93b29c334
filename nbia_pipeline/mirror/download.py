"""Fetch series: download, verify, repair, publish; what cannot be verified is retried, then quarantined."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from queue import SimpleQueue

from nbia_pipeline import stopping
from nbia_pipeline.archive import ArchiveUnreachable, BadAnswer, NbiaClient, NotAvailable, ServerError
from nbia_pipeline.archive.bodies import EmptyBody
from nbia_pipeline.changes.reasons import Reasons
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.errors import reason as reason_of
from nbia_pipeline.lake.errors import remedy
from nbia_pipeline.lake.layout import encode
from nbia_pipeline.mirror.journal import publish_series, record_failure
from nbia_pipeline.mirror.receipt import COUNT_AND_SIZE, Receipt
from nbia_pipeline.mirror.repair import (
    UNKNOWN_BYTES,
    NoAnswer,
    Proofs,
    complete,
    complete_without_digests,
    expect_same_set,
    proven_by_figures,
    stated,
)
from nbia_pipeline.mirror.series import FINGERPRINT, WantedSeries, same_content, wanted_series
from nbia_pipeline.mirror.unpack import NotVerified, Unpacked, UnsafeZip, ZipBounds, unpack
from nbia_pipeline.schema.status import COMPLETE, QUARANTINED, UNAVAILABLE
from nbia_pipeline.text import logger

log = logger(__name__)

TRIES = 3
# So many threads more than requests may be in flight: they verify and publish while others wait for the network.
PUBLISHING = 8
# So much of a zip is read before it is unpacked.
AHEAD_BYTES = 1 << 20
# So many series of middle size are fetched between the largest.
BETWEEN = 16
# This many series in a row whose calls fail are no accident: the archive is down, or something answers in its place.
IN_A_ROW = 3
# Unpacking takes turns: of eight threads on two processors each GB took 17% more of their time than of three.
_PROCESSORS = threading.BoundedSemaphore((os.cpu_count() or 1) + 1)

OnBytes = Callable[[WantedSeries, int], object]
"""Takes a series, and how many bytes of it have arrived in its present download: unpacked, or read ahead."""
NOBODY: Mapping[str, str] = {}


def fetch_batch(
    client: NbiaClient,
    lake: Lake,
    batch: Sequence[WantedSeries],
    *,
    streams: int | None = None,
    ask_list: bool = False,
    for_whom: Mapping[str, str] = NOBODY,
    on_result: Callable[[Receipt], None] = lambda receipt: None,
    on_bytes: OnBytes = lambda wanted, size: None,
) -> list[Receipt]:
    """Fetch the series of a batch over a bounded pool of threads, in the order of :func:`in_good_order`.

    Each series is published, and recorded in the journal, as soon as it is verified. One whose calls fail, with a 500
    for example, may be the only one: the others are still fetched, unless several fail in a row.

    Args:
        client: the archive.
        lake: where to.
        batch: the series.
        streams: series at a time; None: as many as keep the requests in flight that the client's limit allows. How
            many there are is up to :class:`~nbia_pipeline.archive.rate_limit.Limiter`.
        ask_list: ask for the list of instances of every series, also where count and size prove the set.
        for_whom: whose references led to a series, by its UID, for the Reason of its receipt.
        on_result: called with every outcome, from any thread.
        on_bytes: called with what has arrived of a series, from any thread.

    Returns:
        One receipt per series, in the order of the batch.

    Raises:
        ArchiveError: the archive cannot be reached or refuses the account, or the calls of a series fail; what was
            published stays.
        LakeError: the lake cannot be written.
    """

    reasons = Reasons(client)

    def fetch(wanted: WantedSeries) -> Receipt:
        who = for_whom.get(wanted.SeriesInstanceUID)
        receipt = fetch_series(client, lake, wanted, reasons, ask_list=ask_list, for_whom=who, on_bytes=on_bytes)
        on_result(receipt)
        return receipt

    with stopping.threads(streams or client.max_in_flight + PUBLISHING, "nbia-images") as pool:
        futures = {n: pool.submit(fetch, batch[n]) for n in in_good_order([w.FileSize or 0 for w in batch])}
        problem = _wait_for(futures.values())
    if problem:
        raise problem
    return [futures[n].result() for n in range(len(batch))]


# --- into a directory instead of a lake


def download_series(client: NbiaClient, series_uid: str, directory: str | Path) -> list[Path]:
    """Fetch one series into a directory of its own, and return the paths of its files; see :func:`download_batch`.

    Raises:
        NotAvailable: the archive lists no such series, or does not send it.
        BadAnswer: what it sends cannot be verified.
        ArchiveError: it cannot be reached or refuses the account.
        LakeError: the directory cannot be written.
    """
    wanted = wanted_series(client.series(series_uid=series_uid))[:1]
    if not wanted:
        raise NotAvailable(f"the archive lists no series {series_uid}: check the UID, and what the account may see")
    (receipt,) = download_batch(client, wanted, directory)
    if receipt.status != COMPLETE:
        kind = NotAvailable if receipt.status == UNAVAILABLE else BadAnswer
        raise kind(f"series {series_uid} is {receipt.status}: {receipt.reason}")
    return sorted((Path(directory) / encode(series_uid)).iterdir())


def download_batch(
    client: NbiaClient,
    batch: Sequence[WantedSeries],
    directory: str | Path,
    *,
    on_result: Callable[[Receipt], None] = lambda receipt: None,
    on_bytes: OnBytes = lambda wanted, size: None,
) -> list[Receipt]:
    """Fetch series into directories of their own, ``<directory>/<SeriesInstanceUID>``, verified as those in a lake.

    A directory appears there when all its files are verified; one of an earlier download is replaced then. Until then
    they are in a hidden directory next to it, a lake for the time being, which only a killed process leaves behind.

    Args:
        client: the archive.
        batch: the series.
        directory: directory to write to; created if necessary.
        on_result: called with every outcome, after its files are in place; from any thread.
        on_bytes: as for :func:`fetch_batch`.

    Raises:
        ArchiveError: as for :func:`fetch_batch`; the series that are in place stay.
        LakeError: the directory cannot be written.
    """
    folder = Path(directory).absolute()

    def in_place(receipt: Receipt) -> None:
        if receipt.status == COMPLETE:
            final = folder / encode(receipt.wanted.SeriesInstanceUID)
            with lake.storage_errors(f"write {final}"):
                there = work / receipt.path
                there.mkdir(parents=True, exist_ok=True)  # a series without images has none
                if final.exists():
                    final.rename(work / f"replaced-{final.name}")
                there.rename(final)
        on_result(receipt)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".nbia-", dir=folder))
    except OSError as e:
        raise LakeError(f"cannot write to {folder} ({reason_of(e)}): {remedy(e, str(folder))}") from e
    try:
        lake = Lake(str(work))
        return fetch_batch(client, lake, batch, on_result=in_place, on_bytes=on_bytes)
    finally:
        shutil.rmtree(work, ignore_errors=True)


# --- the order, and when to stop


def in_good_order(sizes: Sequence[int]) -> list[int]:
    """Return the positions of series in the order to fetch them in: the largest first, a few of middle size between.

    Large ones begin early, and the smallest come last, so that no stream is left alone with a large one at the end.
    Should the archive always fail to send the largest, others come in between: each run gets further.

    Args:
        sizes: bytes of each series.
    """
    largest_first = sorted(range(len(sizes)), key=lambda n: -sizes[n])
    middle = len(sizes) // 2
    between = largest_first[middle : middle + min(BETWEEN, len(sizes) // 4)]
    return list(dict.fromkeys([*chain.from_iterable(zip(largest_first, between, strict=False)), *largest_first]))


def _wait_for(futures: Collection[Future[Receipt]]) -> BaseException | None:
    """Wait until all is fetched, or the batch has to stop, and return what went wrong."""
    first, in_a_row = None, 0
    finished: SimpleQueue[Future[Receipt]] = SimpleQueue()  # in this order, as not with as_completed
    for future in futures:
        future.add_done_callback(finished.put)
    for future in (finished.get() for _ in futures):
        if future.cancelled():
            continue
        problem = future.exception()
        in_a_row = in_a_row + 1 if problem else 0
        first = first or problem
        of_one_series = isinstance(problem, (ArchiveUnreachable, ServerError, BadAnswer))
        if problem and (in_a_row == IN_A_ROW or not of_one_series):
            for other in futures:
                other.cancel()
            if not of_one_series:
                return problem
    return first


def _in_turns(chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Yield chunks to whoever unpacks them, for a few threads at a time: more would get in each other's way.

    What is small is read to its end before, so that the next request need not wait for its unpacking.
    """
    ahead, size = [], 0
    for chunk in chunks:
        ahead.append(chunk)
        size += len(chunk)
        if size >= AHEAD_BYTES:
            break
    with closing(_Turn()) as turn:
        for chunk in chain(ahead, chunks):
            turn.take()
            yield chunk
            turn.give_back()


class _Turn:
    """The right to use a processor; those who wait for the network do without."""

    def __init__(self) -> None:
        self._taken = False

    def take(self) -> None:
        """Wait until it is this thread's turn."""
        while not self._taken:
            self._taken = _PROCESSORS.acquire(timeout=stopping.LOOK_SECONDS)
            stopping.expect_running()

    def give_back(self) -> None:
        """Let another thread go on."""
        if self._taken:
            self._taken = False
            _PROCESSORS.release()

    close = give_back


def fetch_series(
    client: NbiaClient,
    lake: Lake,
    wanted: WantedSeries,
    reasons: Reasons | None = None,
    *,
    ask_list: bool = False,
    for_whom: str | None = None,
    on_bytes: OnBytes = lambda wanted, size: None,
) -> Receipt:
    """Fetch one series: complete, verified and published, or not at all.

    Args:
        client: the archive.
        lake: where to.
        wanted: which series.
        reasons: asks why the archive refuses it; share one among the series of a batch.
        ask_list: see :func:`fetch_batch`.
        for_whom: whose references led to the series.
        on_bytes: as for :func:`fetch_batch`.

    Raises:
        ArchiveError: the archive cannot be reached or refuses the account, or something answers in its place.
        LakeError: the lake cannot be written.
    """
    try:
        path = Receipt(wanted, COMPLETE, 0).path
    except LakeError as e:
        return record_failure(lake, Receipt(wanted, QUARANTINED, 0, reason=f"the series cannot be stored: {e}"))
    reasons, reason, too_large = reasons or Reasons(client), "", False
    for attempt in range(1, TRIES + 1):
        with lake.workspace() as work:
            try:
                with lake.storage_errors(f"unpack series {wanted.SeriesInstanceUID}"):
                    if attempt > 1:  # the listing may be older than the files
                        wanted = _listed_now(client, wanted) or wanted
                    last = attempt == TRIES
                    receipt = _attempt(
                        client,
                        wanted,
                        work / "files",
                        partial(on_bytes, wanted),
                        last=last,
                        too_large=too_large,
                        ask_list=ask_list,
                    )
                    if receipt.repaired:
                        _expect_not_replaced(client, wanted)
                    if sum(i.Size for i in receipt.instances) != (wanted.FileSize or 0):
                        wanted = _with_new_figures(client, wanted, receipt)
            except (NotVerified, NoAnswer) as e:
                reason, too_large = str(e), isinstance(e, UnsafeZip)
                if too_large:
                    reason += f" (getSeries states {wanted.FileSize} bytes in {wanted.ImageCount} images)"
                log.warning("series %s, attempt %d: %s", wanted.SeriesInstanceUID, attempt, reason)
                continue
            except NotAvailable as e:
                why = reasons.of([wanted.SeriesInstanceUID]).get(wanted.SeriesInstanceUID)
                refusal = f"{why}: {e}" if why else str(e)
                return record_failure(lake, Receipt(wanted, UNAVAILABLE, attempt, reason=refusal))
            if not receipt.instances and lake.names_in(path):
                why = "the archive has no images of it any more; those in the lake stay"
                return record_failure(lake, Receipt(wanted, UNAVAILABLE, attempt, reason=why))
            receipt = replace(receipt, wanted=wanted, attempts=attempt, reason=for_whom)
            publish_series(lake, receipt, work / "files")
            return receipt
    return record_failure(lake, Receipt(wanted, QUARANTINED, TRIES, reason=reason))


def _attempt(
    client: NbiaClient,
    wanted: WantedSeries,
    files: Path,
    on_bytes: Callable[[int], object],
    *,
    last: bool,
    too_large: bool,
    ask_list: bool,
) -> Receipt:
    """Download a series once into a new directory, and verify it; nothing of a series without images.

    No other attempt follows the last, which repairs whatever can be repaired.
    """
    uid = wanted.SeriesInstanceUID
    if wanted.ImageCount == 0 and not client.sop_instance_uids(uid):
        return _without_images(wanted, files)
    bounds = _bounds(Proofs(client, final=last), wanted, too_large)
    try:
        unpacked, with_digests = _download(client, uid, files, bounds, on_bytes)
    except (NotAvailable, EmptyBody):
        if _states_images(wanted) or client.sop_instance_uids(uid):
            raise
        return _without_images(wanted, files)
    if with_digests and not ask_list and (receipt := proven_by_figures(wanted, unpacked)):
        return receipt
    # Asked after the download: an instance that was added meanwhile is then missing, and fetched.
    listed = client.sop_instance_uids(uid)
    if not unpacked.instances and not unpacked.faults and not (last and listed):
        if not listed and not _states_images(wanted):
            return _without_images(wanted, files)
        raise NotVerified(f"the archive sent a zip without images; getSOPInstanceUIDs lists {len(listed)}")
    expect_same_set(wanted, unpacked, listed)
    if with_digests:
        return complete(client, wanted, unpacked, listed, files, last=last)
    return complete_without_digests(client, wanted, unpacked, listed, files, last=last)


def _download(
    client: NbiaClient, uid: str, files: Path, bounds: ZipBounds, on_bytes: Callable[[int], object]
) -> tuple[Unpacked, bool]:
    """Download a series as a zip with a list of digests, or without where that one is empty; return which it was.

    Server: where an image has no digest, not even a blank, getImageWithMD5Hash ends before the first file.
    """

    def read(chunks: Iterator[bytes]) -> Unpacked:
        received = unpacked = 0  # a stream that broke begins again

        def counted() -> Iterator[bytes]:
            nonlocal received
            for chunk in chunks:
                received += len(chunk)
                on_bytes(max(received, unpacked))  # what is read ahead is not unpacked yet
                yield chunk

        def note(total: int) -> None:
            nonlocal unpacked
            unpacked = total
            on_bytes(max(received, unpacked))

        with closing(_in_turns(counted())) as in_turns:
            found = unpack(in_turns, files, uid, bounds, note)
        on_bytes(unpacked)
        return found

    try:
        unpacked = client.image_with_md5(uid, read)
        if unpacked.instances or unpacked.faults:
            return unpacked, True
    except EmptyBody as e:
        log.info("series %s: %s", uid, e)
    return client.image(uid, read), False


def _states_images(wanted: WantedSeries) -> bool:
    return stated(wanted.ImageCount) is not None or stated(wanted.FileSize) is not None


def _without_images(wanted: WantedSeries, files: Path) -> Receipt:
    """Return the receipt of a series that has nothing to fetch."""
    files.mkdir(exist_ok=True)
    return Receipt(wanted, COMPLETE, 1, verified_by=COUNT_AND_SIZE)


def _bounds(proofs: Proofs, wanted: WantedSeries, too_large: bool) -> ZipBounds:
    """Return the bounds of a zip; where getSeries states none, or what came was too large, getSeriesSize is asked."""
    size, count = stated(wanted.FileSize), stated(wanted.ImageCount)
    if (size is None or too_large) and (now := proofs.size_of_series(wanted.SeriesInstanceUID)):
        size, count = max(size or 0, now.file_size), max(count or 0, now.image_count)
    return ZipBounds.announced(size or UNKNOWN_BYTES, count)


def _listed_now(client: NbiaClient, wanted: WantedSeries) -> WantedSeries | None:
    """Return the series with the fingerprint that the archive lists now; None where it lists none or moved it."""
    for now in wanted_series(client.series(series_uid=wanted.SeriesInstanceUID)):
        if replace(wanted, **{name: getattr(now, name) for name in FINGERPRINT}) == now:
            return now
    return None


def _with_new_figures(client: NbiaClient, wanted: WantedSeries, receipt: Receipt) -> WantedSeries:
    """Return a series, whose files have another size than was listed, as it is listed now.

    Raises:
        NotVerified: it was replaced meanwhile, and the files may be those from before.
    """
    now = _listed_now(client, wanted) or wanted
    if not same_content(now, wanted) and now.FileSize != sum(i.Size for i in receipt.instances):
        raise NotVerified("the archive replaced the series while it was being fetched")
    return now


def _expect_not_replaced(client: NbiaClient, wanted: WantedSeries) -> None:
    """Make sure that what was repaired does not mix an older and a newer content under the same UIDs.

    Server: replacing a series hides it, and getSingleImage answers for hidden ones too.
    """
    now = _listed_now(client, wanted)
    if now is None or not same_content(now, wanted):
        raise NotVerified("the archive hid or replaced the series while single instances were being fetched")
