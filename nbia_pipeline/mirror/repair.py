"""Complete and verify what a zip lacked: instance by instance, or by count and size where there are no digests."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from nbia_pipeline.archive import BadAnswer, LoginRefused, NbiaClient, NotAvailable, ServerError
from nbia_pipeline.mirror.receipt import COUNT_AND_SIZE, MD5, Receipt
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.mirror.unpack import NotVerified, Unpacked, UnsafeZip, VerifiedInstance, series_md5, take_single
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.text import first_of

log = logging.getLogger(__name__)

# A download that lacks more than this part of its instances is repeated rather than repaired.
WORTH_REPAIRING = 0.5
# Instances and faults that a reason names; the others it counts.
NAMED = 3
ADVICE = (
    "The archive's own file is damaged or missing: report it to the archive's help desk. The series is fetched again "
    "when the archive revises it"
)


def expect_same_set(wanted: WantedSeries, unpacked: Unpacked, listed: Sequence[str]) -> None:
    """Make sure that zip, list and table agree on the instances; what the zip lacks can be repaired.

    Raises:
        NotVerified: the zip contains an instance that getSOPInstanceUIDs does not list, or the list and the table have
            different counts.
    """
    unlisted = set(unpacked.instances) - set(listed)
    if unlisted or (wanted.ImageCount is not None and len(set(listed)) != wanted.ImageCount):
        raise NotVerified(
            f"the archive contradicts itself: getSeries counts {wanted.ImageCount} instances, getSOPInstanceUIDs lists "
            f"{len(set(listed))}, the zip contains {len(unpacked.instances)}, of which {len(unlisted)} are not listed"
            f"{_faults(unpacked)}"
        )


def complete(
    client: NbiaClient,
    wanted: WantedSeries,
    unpacked: Unpacked,
    listed: Sequence[str],
    files: Path,
    *,
    even_if_many: bool,
) -> Receipt:
    """Verify every listed instance, by the zip's list of digests, else one by one; return the receipt of the download.

    An instance that the zip lacks, or whose digest is wrong, is fetched with getSingleImage and compared with
    getMD5HashForImage. Where the archive has no digest of it, count and total size must match.

    Args:
        client: the archive.
        wanted: the series as listed.
        unpacked: what getImageWithMD5Hash sent.
        listed: what getSOPInstanceUIDs lists.
        files: directory of the files; those fetched here are added.
        even_if_many: repair also what another download would repair with fewer calls.

    Raises:
        NotVerified: an instance cannot be fetched or verified, or too much is missing.
        NotAvailable: the archive refuses the series meanwhile.
    """
    verified = unpacked.verified()
    open_ones = [uid for uid in listed if uid not in verified]
    if len(open_ones) > WORTH_REPAIRING * len(listed) and not even_if_many:
        raise NotVerified(f"{_shortage(unpacked, listed)}{_faults(unpacked)}")
    repaired, undigested = 0, 0
    # What is missing comes first: if the archive cannot send it, there is no need to ask for the rest.
    for uid in sorted(open_ones, key=lambda uid: uid in unpacked.instances):
        expected = client.md5_of_image(uid) or (unpacked.digests or {}).get(unpacked.names.get(uid, "")) or None
        instance = unpacked.instances.get(uid)
        if instance is None or expected != instance.MD5:
            instance = _single(client, wanted, unpacked, listed, uid, files)
            repaired += 1
        if expected is None:
            undigested += 1
        elif expected != instance.MD5:
            why = f"has MD5 {instance.MD5} on its own too, the archive lists {expected}"
            raise _damaged(unpacked, listed, uid, why)
        verified[uid] = instance
    if undigested:
        _expect_size(wanted, verified.values())
    return _receipt(wanted, verified.values(), repaired, COUNT_AND_SIZE if undigested else MD5)


def complete_without_digests(
    client: NbiaClient, wanted: WantedSeries, unpacked: Unpacked, listed: Sequence[str], files: Path
) -> Receipt:
    """Verify what getImage sent, which has no list of digests: by the set of instances and their total size.

    If the digest that getMD5Hierarchy returns for the series is the same, that proves more.

    Raises:
        NotVerified: an instance cannot be fetched, or the total is not FileSize.
        NotAvailable: the archive refuses the series meanwhile.
    """
    instances = dict(unpacked.instances)
    missing = [uid for uid in listed if uid not in instances]
    for uid in missing:
        instances[uid] = _single(client, wanted, unpacked, listed, uid, files)
    if _digest_of_all(client, wanted.SeriesInstanceUID) == series_md5([i.MD5 for i in instances.values()]):
        return _receipt(wanted, instances.values(), len(missing), MD5)
    _expect_size(wanted, instances.values())
    return _receipt(wanted, instances.values(), len(missing), COUNT_AND_SIZE)


def _digest_of_all(client: NbiaClient, uid: str) -> str | None:
    """Return the digest that getMD5Hierarchy returns for a series, None if the archive has none to offer.

    Not every server lets every account ask for it, and it is not needed.
    """
    try:
        return client.md5_hierarchy(series_uid=uid)
    except (BadAnswer, LoginRefused, NotAvailable, ServerError) as e:
        log.info("series %s: no digest of the complete series: %s", uid, e)
        return None


def _single(
    client: NbiaClient, wanted: WantedSeries, unpacked: Unpacked, listed: Sequence[str], uid: str, files: Path
) -> VerifiedInstance:
    series = wanted.SeriesInstanceUID
    lost = "is damaged in the zip" if uid in unpacked.instances or unpacked.faults else "is not in the zip"
    most = wanted.FileSize if wanted.FileSize is not None else 1 << 36
    try:
        return client.single_image(series, uid, lambda chunks: take_single(chunks, files, series, uid, most))
    except UnsafeZip:
        raise
    except NotVerified as e:
        raise _damaged(unpacked, listed, uid, f"{lost}, and on its own it cannot be used either: {e}") from e
    except ServerError as e:
        # Server: its answer where the file is not on its disk.
        raise _damaged(unpacked, listed, uid, f"{lost}, and the archive cannot send it on its own: {e}") from e


def _expect_size(wanted: WantedSeries, instances: Iterable[VerifiedInstance]) -> None:
    size = sum(i.Size for i in instances)
    if size != wanted.FileSize:
        raise NotVerified(
            f"the archive has no digest of some instances, and the files have {size} bytes where getSeries states "
            f"{wanted.FileSize}"
        )


def _receipt(wanted: WantedSeries, instances: Iterable[VerifiedInstance], repaired: int, verified_by: str) -> Receipt:
    in_order = sorted(instances, key=lambda i: (i.InstanceNumber or 0, i.SOPInstanceUID))
    return Receipt(wanted, COMPLETE, 1, in_order, repaired=repaired, verified_by=verified_by)


def _damaged(unpacked: Unpacked, listed: Sequence[str], uid: str, why: str) -> NotVerified:
    """Return the error of an instance that is no better on its own, with the number of those that are not right."""
    verified, digests = unpacked.verified(), unpacked.digests or {}
    right = {u for u in unpacked.instances if u in verified or not digests.get(unpacked.names[u])}
    wrong = [uid, *(other for other in listed if other not in right and other != uid)]
    are = "is" if len(wrong) == 1 else "are"
    return NotVerified(
        f"instance {uid} {why}. {len(wrong)} of {len(listed)} instances {are} missing or damaged in the zip: "
        f"{first_of(wrong, NAMED)}{_faults(unpacked)}. {ADVICE}"
    )


def _shortage(unpacked: Unpacked, listed: Sequence[str]) -> str:
    missing = [uid for uid in listed if uid not in unpacked.instances]
    named = f" ({first_of(missing, NAMED)})" if missing else ""
    text = f"getSOPInstanceUIDs lists {len(listed)} instances, the zip lacks {len(missing)}{named}"
    if unpacked.digests is None:
        return f"{text} and has no list of digests: the archive stopped halfway"
    return f"{text}, and {len(listed) - len(missing) - len(unpacked.verified())} do not have the digest listed"


def _faults(unpacked: Unpacked) -> str:
    shown, more = "; ".join(unpacked.faults[:NAMED]), len(unpacked.faults) - NAMED
    return f"; discarded: {shown}{f'; and {more:,} more' if more > 0 else ''}" if shown else ""
