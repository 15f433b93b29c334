"""Complete and verify what a zip lacked: instance by instance, or by count and size where there are no digests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from nbia_pipeline.archive import ArchiveError, ArchiveUnreachable, NbiaClient, NotAvailable, SeriesSize, ServerError
from nbia_pipeline.archive.optional import concerns_one_call
from nbia_pipeline.mirror.receipt import COUNT_AND_SIZE, MD5, MD5_AND_FIGURES, Receipt
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.mirror.unpack import MD5_LIST, NotVerified, Unpacked, UnsafeZip, VerifiedInstance, take_single
from nbia_pipeline.schema.digests import padded, possible_series_md5s
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.text import first_of

T = TypeVar("T")

# A download that lacks more than this part of its instances is repeated rather than repaired.
WORTH_REPAIRING = 0.5
# Bound of a file of a series whose size the archive does not state.
UNKNOWN_BYTES = 1 << 36
# Instances and faults that a reason names; the others it counts.
NAMED = 3
ADVICE = (
    "The archive's own file is damaged or missing: report it to the archive's help desk. The series is fetched again "
    "when the archive revises it"
)


class NoAnswer(Exception):
    """A call failed in a way that may pass; the text says why."""


class Proofs:
    """Asks for digests and sizes, and returns None where the archive has none or does not answer such calls.

    Each method raises NoAnswer where the call failed in a way that may pass, and ArchiveUnreachable without a
    connection.

    Args:
        client: the archive.
        final: True if nobody asks again: then a failure that may pass returns None, too.
        strict: True if None must mean that the archive has none: NoAnswer is raised as well where a call failed too
            often to be made again.
    """

    def __init__(self, client: NbiaClient, *, final: bool = False, strict: bool = False) -> None:
        self._client = client
        self._final = final
        self._strict = strict

    def md5_of_image(self, sop_instance_uid: str) -> str | None:
        """Return the MD5 of one file; see :meth:`NbiaClient.md5_of_image`."""
        return self._ask("the MD5 of an image", lambda: self._client.md5_of_image(sop_instance_uid))

    def md5_of_series(self, series_uid: str) -> str | None:
        """Return the digest of a series; see :meth:`NbiaClient.md5_hierarchy`."""
        return self._ask("the MD5 of a series", lambda: self._client.md5_hierarchy(series_uid=series_uid))

    def size_of_series(self, series_uid: str) -> SeriesSize | None:
        """Return the size of a series; see :meth:`NbiaClient.series_size`."""
        return self._ask("the size of a series", lambda: self._client.series_size(series_uid))

    def _ask(self, what: str, ask: Callable[[], T | None]) -> T | None:
        calls = self._client.optional_calls
        if calls.given_up(what):
            if self._strict and not calls.lacks(what):
                raise NoAnswer(f"the archive does not answer for {what}, however often it is asked")
            return None
        try:
            found = ask()
        except NotAvailable:
            return None
        except ArchiveError as e:
            away = isinstance(e, ArchiveUnreachable) and e.status is None and not e.overloaded
            if away or not concerns_one_call(e):
                raise
            given_up = calls.failed(what, e)
            if not (given_up or self._final) or (self._strict and not calls.lacks(what)):
                raise NoAnswer(f"the archive does not answer for {what}: {e}") from e
            calls.do_without(what, f"{what}, so series are verified without it", e)
            return None
        calls.answered(what)
        return found


def stated(figure: int | None) -> int | None:
    """Return an ImageCount or FileSize of a series with images; zero and less state nothing about it."""
    return figure if figure is not None and figure > 0 else None


def expect_same_set(wanted: WantedSeries, unpacked: Unpacked, listed: Sequence[str]) -> None:
    """Make sure that zip, list and table agree on the instances; what the zip lacks can be repaired.

    Raises:
        NotVerified: the zip contains an instance that getSOPInstanceUIDs does not list, or the list and the table have
            different counts.
    """
    unlisted, count = set(unpacked.instances) - set(listed), stated(wanted.ImageCount)
    if unlisted or count not in (None, len(set(listed))):
        raise NotVerified(
            f"the archive contradicts itself: getSeries counts {wanted.ImageCount} instances, getSOPInstanceUIDs lists "
            f"{len(set(listed))}, the zip contains {len(unpacked.instances)}, of which {len(unlisted)} are not listed"
            f"{_faults(unpacked)}"
        )


def proven_by_figures(wanted: WantedSeries, unpacked: Unpacked) -> Receipt | None:
    """Return the receipt of a download that shows by itself that it is the whole series, None if it does not.

    Every file has the MD5 that the zip lists, nothing that the zip lists is missing, and count and total size are
    ImageCount and FileSize. Server: both are sums over the rows that getSOPInstanceUIDs lists.
    """
    instances = unpacked.verified()
    listed = sum(padded(digest) is not None for digest in (unpacked.digests or {}).values())
    figures = (len(instances), sum(i.Size for i in instances.values()))
    announced = (stated(wanted.ImageCount), stated(wanted.FileSize))
    if unpacked.faults or not len(unpacked.instances) == len(instances) == listed or figures != announced:
        return None
    return _receipt(wanted, instances.values(), 0, MD5_AND_FIGURES)


def complete(
    client: NbiaClient, wanted: WantedSeries, unpacked: Unpacked, listed: Sequence[str], files: Path, *, last: bool
) -> Receipt:
    """Verify every listed instance, by the zip's list of digests, else one by one; return the receipt of the download.

    An instance that the zip lacks, or whose digest is wrong, is fetched with getSingleImage and compared with
    getMD5HashForImage. Where the archive has no digest of it, that of the series must be right, or count and total
    size must match. What the zip lists with a blank is not asked for one by one.

    Args:
        client: the archive.
        wanted: the series as listed.
        unpacked: what getImageWithMD5Hash sent.
        listed: what getSOPInstanceUIDs lists.
        files: directory of the files; those fetched here are added.
        last: no other download follows: repair also what another one would repair with fewer calls.

    Raises:
        NotVerified: an instance cannot be fetched or verified, or too much is missing.
        NotAvailable: the archive refuses the series meanwhile.
    """
    verified, undigested = unpacked.verified(), unpacked.blank()
    open_ones = [uid for uid in listed if uid not in verified and uid not in undigested]
    if len(open_ones) > WORTH_REPAIRING * len(listed) and not last:
        raise NotVerified(f"{_shortage(unpacked, listed)}{_faults(unpacked)}")
    proofs, repaired = Proofs(client, final=last), 0
    # What is missing comes first: if the archive cannot send it, there is no need to ask for the rest.
    for uid in sorted(open_ones, key=lambda uid: uid in unpacked.instances):
        expected = _expected_md5(proofs, unpacked, uid)
        instance = unpacked.instances.get(uid)
        if instance is None or expected not in (None, instance.MD5):
            instance = _single(client, wanted, unpacked, listed, uid, files)
            repaired += 1
        if expected not in (None, instance.MD5):
            why = f"has MD5 {instance.MD5} on its own too, the archive lists {expected}"
            raise _damaged(unpacked, listed, uid, why)
        (verified if expected else undigested)[uid] = instance
    known = {uid: unpacked.listed(uid) or instance.MD5 for uid, instance in verified.items()}
    verified.update(undigested)
    verified_by = _verified_by(proofs, wanted, verified.values(), known) if undigested else MD5
    return _receipt(wanted, verified.values(), repaired, verified_by)


def complete_without_digests(
    client: NbiaClient, wanted: WantedSeries, unpacked: Unpacked, listed: Sequence[str], files: Path, *, last: bool
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
    verified_by = _verified_by(Proofs(client, final=last), wanted, instances.values(), {})
    return _receipt(wanted, instances.values(), len(missing), verified_by)


def _expected_md5(proofs: Proofs, unpacked: Unpacked, uid: str) -> str | None:
    """Return the MD5 that an instance must have; None where the archive has none."""
    stored = unpacked.listed(uid)
    expected = proofs.md5_of_image(uid) or padded(stored or "")
    if stored and expected is None:
        raise NotVerified(f"{MD5_LIST} lists {stored[:80]!r} for instance {uid}, which is not an MD5")
    return expected


def _verified_by(
    proofs: Proofs, wanted: WantedSeries, instances: Collection[VerifiedInstance], stored: Mapping[str, str]
) -> str:
    """Verify files of which the archive has no digests, at least not of all: by the digest of the series, or its size.

    Args:
        stored: the digests that the archive has, by SOPInstanceUID, as they are stored.
    """
    digest = proofs.md5_of_series(wanted.SeriesInstanceUID)
    if digest in possible_series_md5s([stored.get(i.SOPInstanceUID, i.MD5) for i in instances]):
        return MD5
    size, expected = sum(i.Size for i in instances), _expected_size(proofs, wanted)
    if size != expected:
        raise NotVerified(
            f"the archive has no digest of some instances, and the files have {size} bytes where getSeries states "
            f"{wanted.FileSize}"
        )
    return COUNT_AND_SIZE


def _expected_size(proofs: Proofs, wanted: WantedSeries) -> int | None:
    if size := stated(wanted.FileSize):
        return size
    now = proofs.size_of_series(wanted.SeriesInstanceUID)
    return now.file_size if now else None


def _single(
    client: NbiaClient, wanted: WantedSeries, unpacked: Unpacked, listed: Sequence[str], uid: str, files: Path
) -> VerifiedInstance:
    series = wanted.SeriesInstanceUID
    lost = "is damaged in the zip" if uid in unpacked.instances or unpacked.faults else "is not in the zip"
    most = stated(wanted.FileSize) or UNKNOWN_BYTES
    try:
        return client.single_image(series, uid, lambda chunks: take_single(chunks, files, series, uid, most))
    except UnsafeZip:
        raise
    except NotVerified as e:
        raise _damaged(unpacked, listed, uid, f"{lost}, and on its own it cannot be used either: {e}") from e
    except ServerError as e:
        # Server: its answer where the file is not on its disk.
        raise _damaged(unpacked, listed, uid, f"{lost}, and the archive cannot send it on its own: {e}") from e


def _receipt(wanted: WantedSeries, instances: Iterable[VerifiedInstance], repaired: int, verified_by: str) -> Receipt:
    in_order = sorted(instances, key=lambda i: (i.InstanceNumber or 0, i.SOPInstanceUID))
    return Receipt(wanted, COMPLETE, 1, in_order, repaired=repaired, verified_by=verified_by)


def _damaged(unpacked: Unpacked, listed: Sequence[str], uid: str, why: str) -> NotVerified:
    """Return the error of an instance that is no better on its own, with the number of those that are not right."""
    verified = unpacked.verified()
    right = {u for u in unpacked.instances if u in verified or not unpacked.listed(u)}
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
