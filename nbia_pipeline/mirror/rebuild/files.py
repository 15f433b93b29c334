"""The files of a series in the lake: which there are, what identifies them, and whether they are the archive's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from nbia_pipeline.archive import NbiaClient, NotAvailable, ServerError
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import collection_path, decode, instance_name
from nbia_pipeline.mirror import journal
from nbia_pipeline.mirror.dicom_header import NotDicom, header_of
from nbia_pipeline.mirror.receipt import COUNT_AND_SIZE, MD5
from nbia_pipeline.mirror.repair import NoAnswer, Proofs, stated
from nbia_pipeline.mirror.series import WantedSeries
from nbia_pipeline.mirror.unpack import VerifiedInstance
from nbia_pipeline.schema.digests import possible_series_md5s
from nbia_pipeline.schema.status import COMPLETE

_DEPTH = 6  # images, collection, patient, study, series, file


class Differs(Exception):
    """The files of a series are not those that they should be; the text says why."""


@dataclass(frozen=True)
class Folder:
    """The directory of a series in the lake.

    Attributes:
        path: relative to the lake.
        patient: PatientID in the path.
        study: StudyInstanceUID in the path.
        uid: SeriesInstanceUID in the path.
    """

    path: str
    patient: str
    study: str
    uid: str


def folders_of(lake: Lake, collection: str) -> Iterator[Folder]:
    """Yield the directories of series whose files are not in the journal, one patient at a time.

    Raises:
        LakeError: the lake cannot be read.
    """
    root = collection_path(collection)
    entries = (entry for entries in journal.read_slices(lake, collection) for entry in entries)
    in_journal = {e.receipt.wanted.SeriesInstanceUID for e in entries if e.receipt.status == COMPLETE}
    for patient in lake.names_in(root):
        paths = {path.rpartition("/")[0] for path in lake.sizes(f"{root}/{patient}") if path.count("/") == _DEPTH - 1}
        for path in sorted(paths):
            folder = Folder(path, *map(decode, path.split("/")[2:]))
            if folder.uid not in in_journal:
                yield folder


def read_series(lake: Lake, path: str, series_uid: str) -> list[VerifiedInstance]:
    """Return the files of a series in the lake, with the MD5s that they have now, in the order of the receipts.

    Files that do not end with ``.dcm`` are not the lake's own.

    Args:
        lake: the lake.
        path: directory of the series.
        series_uid: SeriesInstanceUID that every file must carry.

    Raises:
        Differs: a file is not DICOM, of another series, or under another name than its own.
        LakeError: a file cannot be read, which says nothing about it.
    """
    found = []
    for file, size in sorted(lake.sizes(path).items()):
        name = file.removeprefix(f"{path}/")
        if name.endswith(".dcm") and "/" not in name:
            found.append(_read(lake, file, name, size, series_uid))
    return sorted(found, key=lambda i: (i.InstanceNumber or 0, i.SOPInstanceUID))


def _read(lake: Lake, path: str, name: str, size: int, series_uid: str) -> VerifiedInstance:
    with lake.open(path, size) as file:
        try:
            header = header_of(file)
        except NotDicom as e:
            raise Differs(f"{name} cannot be used: {e}") from e
        if header.SeriesInstanceUID != series_uid or instance_name(header.SOPInstanceUID) != name:
            raise Differs(f"{name} is instance {header.SOPInstanceUID} of series {header.SeriesInstanceUID}")
    digest = lake.md5(path, size)
    return VerifiedInstance(header.SOPInstanceUID, header.SOPClassUID, header.InstanceNumber, size, digest)


def proof_of_archive(
    client: NbiaClient, proofs: Proofs, wanted: WantedSeries, instances: Sequence[VerifiedInstance]
) -> str:
    """Return how files are shown to be those that the archive has of a series now: ``md5`` or ``count+size``.

    The digest of the series is compared; where it is another, or missing, the set of instances and their digests, and
    where the archive has not all of these, count and size. A digest that it may have, and does not send, shows nothing.

    Args:
        client: the archive.
        proofs: strict ones.
        wanted: the series as it is listed.
        instances: the files.

    Raises:
        Differs: they are not, or nothing shows that they are.
        ArchiveUnreachable: there is no connection.
    """
    md5s = {i.SOPInstanceUID: i.MD5 for i in instances}
    try:
        with suppress(NoAnswer):  # of the images there may be
            if proofs.md5_of_series(wanted.SeriesInstanceUID) in possible_series_md5s(md5s.values()):
                return MD5
        listed = client.sop_instance_uids(wanted.SeriesInstanceUID)
        if listed and set(listed) != md5s.keys():
            raise Differs(f"the lake has {len(md5s)} files of it, and the archive lists {len(set(listed))} instances")
        unknown = not listed
        for uid, md5 in md5s.items():
            expected = proofs.md5_of_image(uid)
            if expected not in (None, md5):
                raise Differs(f"{instance_name(uid)} has MD5 {md5}, the archive lists {expected}")
            unknown = unknown or expected is None
    except (NoAnswer, NotAvailable, ServerError) as e:
        raise Differs(f"the archive cannot be asked about it: {e}") from e
    return proof_of_figures(wanted, instances) if unknown else MD5


def proof_of_figures(wanted: WantedSeries, instances: Sequence[VerifiedInstance]) -> str:
    """Return ``count+size`` if files have the count and the size that the archive listed.

    Raises:
        Differs: they have not, or the archive listed neither.
    """
    figures = (len(instances), sum(i.Size for i in instances))
    expected = (stated(wanted.ImageCount), stated(wanted.FileSize))
    if figures != expected:
        raise Differs("the lake has {} files of {} bytes, the archive lists {} of {}".format(*figures, *expected))
    return COUNT_AND_SIZE
