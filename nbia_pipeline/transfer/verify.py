"""Is this zip the whole series? Every file of it is proven before any is published."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

from nbia_pipeline.lake.layout import instance_name
from nbia_pipeline.transfer.plan import WantedSeries

MD5_LIST = "md5hashes.csv"
PIECE_BYTES = 1 << 20
# Beyond what the archive announced a zip may grow this much: its list may be a little older than its files.
SPARE_BYTES = 64 << 20

_TAGS = ["SOPInstanceUID", "SeriesInstanceUID", "SOPClassUID", "InstanceNumber"]


class NotProven(Exception):
    """The download is not the whole series; the text says what is wrong with it."""


@dataclass(frozen=True)
class ProvenInstance:
    """One verified file of a series.

    Attributes:
        SOPInstanceUID: DICOM (0008,0018).
        SOPClassUID: DICOM (0008,0016).
        InstanceNumber: DICOM (0020,0013), or None.
        Size: bytes.
        MD5: lower-case hex.
    """

    SOPInstanceUID: str
    SOPClassUID: str | None
    InstanceNumber: int | None
    Size: int
    MD5: str


def unpack_and_verify(
    archive: Path, target: Path, wanted: WantedSeries, sop_instance_uids: Sequence[str]
) -> list[ProvenInstance]:
    """Unpack the zip of getImageWithMD5Hash and prove that it is the whole series.

    The zip ended properly and lists its digests (server: written last, so the loop reached its end); every
    file has the digest listed, is DICOM and of this series; the set of SOPInstanceUIDs is the archive's; the
    count is ImageCount. Files are named by SOPInstanceUID: the zip's names are counters that change.

    Args:
        archive: the zip file.
        target: empty directory for the files.
        wanted: the series as listed.
        sop_instance_uids: what getSOPInstanceUIDs says.

    Returns:
        The instances in the order of InstanceNumber.

    Raises:
        NotProven: something is short, wrong or hostile.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            names = _image_names(zipped, wanted)
            digests = _listed_digests(zipped)
            if set(names) != set(digests):
                raise NotProven(f"{MD5_LIST} lists {len(digests)} files, the zip holds {len(names)}")
            proven = [_unpack_one(zipped, name, digests[name], target, wanted) for name in names]
    except (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error) as e:
        raise NotProven(f"the zip is not whole ({type(e).__name__}: {e})") from e
    _expect_all(proven, wanted, sop_instance_uids)
    return sorted(proven, key=lambda i: (i.InstanceNumber or 0, i.SOPInstanceUID))


def series_md5(digests: Sequence[str]) -> str:
    """Return the digest of a series: MD5 of its files' MD5s, sorted and joined (server: getMD5Hierarchy)."""
    return hashlib.md5("".join(sorted(digests)).encode(), usedforsecurity=False).hexdigest()


def _image_names(zipped: zipfile.ZipFile, wanted: WantedSeries) -> list[str]:
    """Return the names of the image entries, and refuse the zip before a byte of it is unpacked."""
    entries = zipped.infolist()
    names = [e.filename for e in entries]
    if len(set(names)) != len(names):
        raise NotProven("the zip holds a name twice")
    for name in names:
        if "/" in name or "\\" in name or name in ("", ".", "..") or "\0" in name:
            raise NotProven(f"the zip holds a name that is a path: {name[:100]!r}")
    size = sum(e.file_size for e in entries)
    if wanted.FileSize is not None and size > wanted.FileSize + SPARE_BYTES:
        raise NotProven(f"the zip would unpack to {size} bytes, the archive announced {wanted.FileSize}")
    if MD5_LIST not in names:
        raise NotProven(f"the zip has {len(names)} files, but no {MD5_LIST}: the archive stopped half-way")
    return [n for n in names if n != MD5_LIST]


def _listed_digests(zipped: zipfile.ZipFile) -> dict[str, str]:
    rows = list(csv.reader(io.StringIO(zipped.read(MD5_LIST).decode("utf-8", "replace"))))
    if not rows or rows[0] != ["Filename", "MD5Hash"] or any(len(r) != 2 for r in rows):
        raise NotProven(f"{MD5_LIST} is not a list of names and digests")
    return {name: digest.strip().lower() for name, digest in rows[1:]}


def _unpack_one(zipped: zipfile.ZipFile, name: str, digest: str, target: Path, wanted: WantedSeries) -> ProvenInstance:
    found = hashlib.md5(usedforsecurity=False)
    unpacked = target / "unpacking"
    size = 0
    with zipped.open(name) as source, unpacked.open("wb") as file:
        while piece := source.read(PIECE_BYTES):
            found.update(piece)
            size += file.write(piece)
    if found.hexdigest() != digest:
        raise NotProven(f"{name} has MD5 {found.hexdigest()}, the archive lists {digest or 'none'}")
    header = read_header(unpacked)
    if header["SeriesInstanceUID"] != wanted.SeriesInstanceUID:
        raise NotProven(f"{name} belongs to series {header['SeriesInstanceUID']}")
    final = target / instance_name(header["SOPInstanceUID"])
    if final.exists():
        raise NotProven(f"instance {header['SOPInstanceUID']} is in the zip twice")
    unpacked.rename(final)
    return ProvenInstance(
        header["SOPInstanceUID"], header["SOPClassUID"], header["InstanceNumber"], size, found.hexdigest()
    )


def read_header(file: Path) -> dict[str, Any]:
    """Return what identifies a DICOM file: SOPInstanceUID, SeriesInstanceUID, SOPClassUID, InstanceNumber.

    Raises:
        NotProven: it is not a DICOM file, or has no SOPInstanceUID.
    """
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
        values = {tag: header.get(tag) for tag in _TAGS}
    except Exception as e:
        raise NotProven(f"a file of the zip is not DICOM ({type(e).__name__}: {e})") from e
    if not values["SOPInstanceUID"]:
        raise NotProven("a file of the zip has no SOPInstanceUID")
    return {
        "SOPInstanceUID": str(values["SOPInstanceUID"]),
        "SeriesInstanceUID": str(values["SeriesInstanceUID"]),
        "SOPClassUID": str(values["SOPClassUID"]) if values["SOPClassUID"] else None,
        "InstanceNumber": _instance_number(values["InstanceNumber"]),
    }


def _instance_number(value: object) -> int | None:
    """Return an InstanceNumber that a column can hold, else None: it is no identity, and sites write all sorts."""
    try:
        number = int(str(value))
    except ValueError:
        return None
    return number if abs(number) < 2**31 else None


def _expect_all(proven: list[ProvenInstance], wanted: WantedSeries, sop_instance_uids: Sequence[str]) -> None:
    found = {i.SOPInstanceUID for i in proven}
    listed = set(sop_instance_uids)
    if found != listed:
        raise NotProven(
            f"the zip holds {len(found)} instances, getSOPInstanceUIDs lists {len(listed)}: "
            f"{len(listed - found)} are missing, {len(found - listed)} are not listed"
        )
    if wanted.ImageCount is not None and len(found) != wanted.ImageCount:
        raise NotProven(f"the zip holds {len(found)} instances, the series table says {wanted.ImageCount}")
