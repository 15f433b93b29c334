"""What a zip left open is closed here: instance by instance, or by the proof that is left without digests."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbia_pipeline.archive import BadAnswer, LoginRefused, NbiaClient, NotAvailable, ServerError
from nbia_pipeline.mirror.commit import COUNT_AND_SIZE, MD5
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.mirror.unpack import NotVerified, Unpacked, VerifiedInstance, series_md5, take_single

log = logging.getLogger(__name__)

# A download short of more than this part of its instances is made again rather than mended.
WORTH_MENDING = 0.5


@dataclass(frozen=True)
class Verified:
    """A series whose every instance is proven.

    Attributes:
        instances: in the order of InstanceNumber.
        healed: how many were fetched one by one.
        proof: ``md5``, or ``count+size`` where the archive holds no digest of some instance.
    """

    instances: list[VerifiedInstance]
    healed: int
    proof: str


def expect_same_set(wanted: WantedSeries, unpacked: Unpacked, listed: Sequence[str]) -> None:
    """Make sure that zip, list and table speak of the same instances; what the zip lacks can be mended.

    Raises:
        NotVerified: the zip holds an instance that getSOPInstanceUIDs does not list, or the list and the table have
            different counts.
    """
    strange = set(unpacked.instances) - set(listed)
    if strange or (wanted.ImageCount is not None and len(set(listed)) != wanted.ImageCount):
        raise NotVerified(
            f"the archive contradicts itself: getSeries counts {wanted.ImageCount} instances, getSOPInstanceUIDs lists "
            f"{len(set(listed))}, the zip holds {len(unpacked.instances)}, of which {len(strange)} are not listed"
            f"{_faults(unpacked)}"
        )


def mend(
    client: NbiaClient,
    wanted: WantedSeries,
    unpacked: Unpacked,
    listed: Sequence[str],
    files: Path,
    *,
    whatever_it_takes: bool,
) -> Verified:
    """Prove every listed instance: by the zip's list of digests, else one by one.

    An instance that the zip lacks, or whose digest is wrong, is fetched with getSingleImage and compared with
    getMD5HashForImage. Where the archive holds no digest of it, count and total size must do.

    Args:
        client: the archive.
        wanted: the series as listed.
        unpacked: what getImageWithMD5Hash sent.
        listed: what getSOPInstanceUIDs says.
        files: directory that holds the files; those fetched here are added.
        whatever_it_takes: mend also what another download would mend with fewer calls.

    Raises:
        NotVerified: an instance cannot be had or proven, or too much is missing.
        NotAvailable: the archive refuses the series meanwhile.
    """
    proven = unpacked.proven()
    open_ones = [uid for uid in listed if uid not in proven]
    if len(open_ones) > WORTH_MENDING * len(listed) and not whatever_it_takes:
        raise NotVerified(f"{_shortage(unpacked, listed)}{_faults(unpacked)}")
    healed, undigested = 0, 0
    # What is missing comes first: if the archive cannot send it, the rest need not be asked for.
    for uid in sorted(open_ones, key=lambda uid: uid in unpacked.instances):
        expected = client.md5_of_image(uid) or (unpacked.digests or {}).get(unpacked.names.get(uid, "")) or None
        instance = unpacked.instances.get(uid)
        if instance is None or expected != instance.MD5:
            instance = _single(client, wanted, uid, files)
            healed += 1
        if expected is None:
            undigested += 1
        elif expected != instance.MD5:
            raise NotVerified(f"instance {uid} has MD5 {instance.MD5} also by itself, the archive holds {expected}")
        proven[uid] = instance
    if undigested:
        _expect_size(wanted, proven.values())
    return Verified(_in_order(proven.values()), healed, COUNT_AND_SIZE if undigested else MD5)


def prove_without_digests(
    client: NbiaClient, wanted: WantedSeries, unpacked: Unpacked, listed: Sequence[str], files: Path
) -> Verified:
    """Prove what getImage sent, which has no list of digests: by the set of instances and their total size.

    The digest that getMD5Hierarchy holds of the series is a better proof, where it is the same.

    Raises:
        NotVerified: an instance cannot be had, or the total is not FileSize.
        NotAvailable: the archive refuses the series meanwhile.
    """
    instances = dict(unpacked.instances)
    missing = [uid for uid in listed if uid not in instances]
    for uid in missing:
        instances[uid] = _single(client, wanted, uid, files)
    if _digest_of_all(client, wanted.SeriesInstanceUID) == series_md5([i.MD5 for i in instances.values()]):
        return Verified(_in_order(instances.values()), len(missing), MD5)
    _expect_size(wanted, instances.values())
    return Verified(_in_order(instances.values()), len(missing), COUNT_AND_SIZE)


def _digest_of_all(client: NbiaClient, uid: str) -> str | None:
    """Return the digest that getMD5Hierarchy holds of a series, None where it cannot be had.

    Not every server lets everybody ask for it, and it is not needed.
    """
    try:
        return client.md5_hierarchy(series_uid=uid)
    except (BadAnswer, LoginRefused, NotAvailable, ServerError) as e:
        log.info("series %s: no digest of the whole: %s", uid, e)
        return None


def _single(client: NbiaClient, wanted: WantedSeries, uid: str, files: Path) -> VerifiedInstance:
    series = wanted.SeriesInstanceUID
    most = wanted.FileSize if wanted.FileSize is not None else 1 << 36
    try:
        return client.single_image(series, uid, lambda chunks: take_single(chunks, files, series, uid, most))
    except ServerError as e:
        # Server: how it says that the file is not on its disk.
        raise NotVerified(f"instance {uid} is not in the zip, and the archive cannot send it by itself: {e}") from e


def _expect_size(wanted: WantedSeries, instances: Iterable[VerifiedInstance]) -> None:
    size = sum(i.Size for i in instances)
    if size != wanted.FileSize:
        raise NotVerified(
            f"the archive holds no digest of some instances, and the files have {size} bytes where getSeries says "
            f"{wanted.FileSize}"
        )


def _in_order(instances: Iterable[VerifiedInstance]) -> list[VerifiedInstance]:
    return sorted(instances, key=lambda i: (i.InstanceNumber or 0, i.SOPInstanceUID))


def _shortage(unpacked: Unpacked, listed: Sequence[str]) -> str:
    missing = len(set(listed) - set(unpacked.instances))
    text = f"getSOPInstanceUIDs lists {len(listed)} instances, the zip lacks {missing}"
    if unpacked.digests is None:
        return f"{text} and has no list of digests: the archive stopped half-way"
    return f"{text}, and {len(listed) - missing - len(unpacked.proven())} have not the digest listed"


def _faults(unpacked: Unpacked) -> str:
    shown = "; ".join(unpacked.faults[:3])
    return f"; thrown away: {shown}" if shown else ""
