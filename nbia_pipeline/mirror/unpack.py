"""Unpack what arrives, and find out what of it is verified. Nothing here decides what to do about the rest."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from itertools import chain
from pathlib import Path

from nbia_pipeline.lake.errors import LakeError
from nbia_pipeline.lake.layout import instance_name
from nbia_pipeline.mirror.dicom_header import NotDicom, read_header
from nbia_pipeline.mirror.zip_stream import LONGEST_NAME, MOST_ENTRIES, Entry, InvalidZip, stream_entries
from nbia_pipeline.schema.digests import padded

MD5_LIST = "md5hashes.csv"
LICENSE = "LICENSE"
# Files up to this size are written once and under their name; larger ones pass through a temporary one.
IN_MEMORY_BYTES = 4 << 20
# A zip may contain this much more than was announced; what exceeds it is rejected before it touches the disk.
SPARE_BYTES = IN_MEMORY_BYTES
SPARE_FILES = 1000
# A list of digests has a line for each file; a license is a page.
LINE_BYTES = 2 * LONGEST_NAME
LICENSE_BYTES = 1 << 20
# Faults beyond these are counted, and no longer described.
MOST_FAULTS = 1000

_UNPACKING = "unpacking"


class NotVerified(Exception):
    """The download is not the complete series; the text says what is wrong with it."""


class UnsafeZip(NotVerified):
    """The zip contains what no archive would send: a name that is a path, or more than was announced."""


@dataclass(frozen=True)
class VerifiedInstance:
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


@dataclass
class Unpacked:
    """What arrived in one zip, and is in a directory under its final names.

    Attributes:
        instances: the files of the series by SOPInstanceUID.
        names: the zip's name of each of them.
        digests: the MD5s that the zip lists as they are stored, by the zip's names; None where it has no such list.
        faults: what was discarded, one sentence each.
    """

    instances: dict[str, VerifiedInstance] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] | None = None
    faults: list[str] = field(default_factory=list)

    def add_fault(self, fault: str) -> None:
        """Note what was discarded."""
        self.faults.append(fault if len(self.faults) < MOST_FAULTS else "one more")

    def verified(self) -> dict[str, VerifiedInstance]:
        """Return the files whose MD5 is the one that the zip lists."""
        return {uid: i for uid, i in self.instances.items() if padded(self.listed(uid) or "") == i.MD5}

    def blank(self) -> dict[str, VerifiedInstance]:
        """Return the files that the zip lists with a blank for their MD5: the archive has none of them (server)."""
        return {uid: i for uid, i in self.instances.items() if self.listed(uid) == ""}

    def listed(self, uid: str) -> str | None:
        """Return what the zip lists as the MD5 of an instance; None where it does not list it."""
        return (self.digests or {}).get(self.names.get(uid, ""))


@dataclass(frozen=True)
class ZipBounds:
    """What a zip may unpack to at most.

    Attributes:
        bytes: sum of its files.
        files: their number.
    """

    bytes: int
    files: int

    @classmethod
    def announced(cls, size: int, count: int | None) -> ZipBounds:
        """Return the bounds of a series for which the archive announced `size` bytes in `count` files."""
        return cls(size + SPARE_BYTES, min(2 * (count or 0) + SPARE_FILES, MOST_ENTRIES))


def unpack(
    chunks: Iterable[bytes],
    target: Path,
    series_uid: str,
    bounds: ZipBounds,
    on_bytes: Callable[[int], object] = lambda total: None,
) -> Unpacked:
    """Unpack a zip while it arrives, hashing what is written.

    A file that is damaged, not DICOM, or of another series is discarded and listed as a fault; the others stay. Files
    are named by SOPInstanceUID: the zip's names are counters that change (server).

    Args:
        chunks: the zip.
        target: directory for the files; emptied first, because a stream that broke is read again from its start.
        series_uid: SeriesInstanceUID that every file must carry.
        bounds: what it may unpack to.
        on_bytes: called with the bytes of images that were unpacked so far.

    Raises:
        NotVerified: the stream is not a complete zip.
        UnsafeZip: a name is a path or is used twice, or there is more than `bounds` allow.
        OSError: the disk cannot be written.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    found = Unpacked()
    names: set[str] = set()
    left = bounds.bytes
    try:
        for entry in stream_entries(chunks):
            _expect_plain_name(entry.name, names)
            names.add(entry.name)
            if len(names) > bounds.files:
                raise UnsafeZip(f"the zip contains more than {bounds.files} files, far more than the archive announced")
            if entry.name == MD5_LIST:
                found.digests, start = _listed_digests(_bounded(entry, bounds.files * LINE_BYTES), bounds.files)
                if start and found.digests is None:
                    found.add_fault(f"{MD5_LIST}: it is not a list of digests, it begins with {start!r}")
            elif entry.name == LICENSE:
                for _ in _bounded(entry, LICENSE_BYTES):
                    pass
            else:
                entry.pieces = _counted(entry, entry.pieces, bounds.bytes - left, on_bytes)
                _take(entry, target, series_uid, left, found)
                left -= entry.size
    except InvalidZip as e:
        raise NotVerified(f"the download is not a complete zip: {e}") from e
    return found


def take_single(chunks: Iterable[bytes], target: Path, series_uid: str, sop_uid: str, most: int) -> VerifiedInstance:
    """Write one file as getSingleImage sends it; a file of that name is replaced.

    Args:
        chunks: its bytes.
        target: directory for the file.
        series_uid: SeriesInstanceUID that it must carry.
        sop_uid: SOPInstanceUID that it must carry.
        most: bytes that it may have.

    Raises:
        NotVerified: it is not that instance.
        UnsafeZip: it is longer than `most`.
    """
    instance = _store(_bounded(chunks, most), target, series_uid)
    if instance.SOPInstanceUID != sop_uid:
        (target / instance_name(instance.SOPInstanceUID)).unlink()
        raise NotVerified(f"asked for instance {sop_uid}, the archive sent {instance.SOPInstanceUID}")
    return instance


def _take(entry: Entry, target: Path, series_uid: str, left: int, found: Unpacked) -> None:
    """Store one image of the zip; a bad one is listed as a fault instead."""
    try:
        instance = _store(_bounded(entry, left), target, series_uid, taken=found.instances)
    except UnsafeZip:
        raise
    except NotVerified as e:
        for _ in _bounded(entry, left):  # so that a discarded file counts as well
            pass
        found.add_fault(f"{entry.name[:100]}: {e}")
        return
    if not entry.intact:
        (target / instance_name(instance.SOPInstanceUID)).unlink()
        found.add_fault(
            f"{entry.name[:100]}, instance {instance.SOPInstanceUID}: its size or checksum is not the one that the zip "
            "states"
        )
        return
    found.instances[instance.SOPInstanceUID] = instance
    found.names[instance.SOPInstanceUID] = entry.name


def _store(
    pieces: Iterable[bytes], target: Path, series_uid: str, taken: dict[str, VerifiedInstance] | None = None
) -> VerifiedInstance:
    """Write a file under its SOPInstanceUID while hashing it; if it is refused, nothing of it stays."""
    digest = hashlib.md5(usedforsecurity=False)
    in_memory: list[bytes] = []
    size = 0
    rest = iter(pieces)
    for piece in rest:
        digest.update(piece)
        in_memory.append(piece)
        size += len(piece)
        if size > IN_MEMORY_BYTES:
            break
    large = target / _UNPACKING if size > IN_MEMORY_BYTES else None
    try:
        if large:
            size += _spill(in_memory, rest, large, digest)
        whole = large or b"".join(in_memory)
        header = read_header(whole)
        if header.SeriesInstanceUID != series_uid:
            raise NotVerified(f"it belongs to series {header.SeriesInstanceUID}, as instance {header.SOPInstanceUID}")
        if taken and header.SOPInstanceUID in taken:
            raise UnsafeZip(f"instance {header.SOPInstanceUID} is in the zip twice")
        final = f"{target}/{instance_name(header.SOPInstanceUID)}"
        if isinstance(whole, bytes):
            _write(final, whole)
        else:
            whole.replace(final)
    except (NotDicom, LakeError) as e:
        raise NotVerified(str(e)) from e
    finally:
        if large:
            large.unlink(missing_ok=True)
    return VerifiedInstance(header.SOPInstanceUID, header.SOPClassUID, header.InstanceNumber, size, digest.hexdigest())


def _spill(in_memory: list[bytes], rest: Iterator[bytes], large: Path, digest: hashlib._Hash) -> int:
    """Write what is in memory and all the rest to a file; return the size of the rest."""
    more = 0
    with large.open("wb") as file:
        file.writelines(in_memory)
        in_memory.clear()
        for piece in rest:
            digest.update(piece)
            more += file.write(piece)
    return more


def _write(path: str, contents: bytes) -> None:
    """Write a file as a whole; ``Path.write_bytes`` makes three more calls of the system."""
    left = memoryview(contents)
    with FileIO(path, "w") as file:
        while left:
            left = left[file.write(left) :]


def _counted(entry: Entry, pieces: Iterable[bytes], before: int, on_bytes: Callable[[int], object]) -> Iterator[bytes]:
    for piece in pieces:
        on_bytes(before + entry.size)
        yield piece


def _bounded(pieces: Iterable[bytes], most: int) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > most:
            raise UnsafeZip("the download is larger than the archive announced")
        yield piece


def _expect_plain_name(name: str, names: set[str]) -> None:
    if "/" in name or "\\" in name or name in ("", ".", "..") or "\0" in name:
        raise UnsafeZip(f"the zip contains a name that is a path: {name[:100]!r}")
    if name in names:
        raise UnsafeZip(f"the zip contains the name {name[:100]!r} twice")


def _listed_digests(pieces: Iterable[bytes], most: int) -> tuple[dict[str, str] | None, bytes]:
    """Return the list of digests by name, each as it is stored, without the blanks around it; None if there is none.

    A wrong name or digest verifies nothing, so whatever has rows of two cells is taken for a list. It is read line by
    line, so that a quote without an end takes one line and not all memory; what a line cannot hold is no row.

    Args:
        pieces: the list.
        most: lines that it may have.

    Returns:
        The list, and how it begins: its first 80 bytes that are more than blanks.

    Raises:
        UnsafeZip: there are more lines.
    """
    rows: dict[str, str] = {}
    separator, start = "", b""
    for number, line in enumerate(_lines(pieces)):
        if number > most:
            raise UnsafeZip(f"{MD5_LIST} has more than {most} lines, far more than the archive announced")
        text = line.decode("utf-8", "replace").lstrip("\ufeff")
        start = start or text.strip()[:80].encode()
        separator = separator or next((s for s in ",;\t" if s in text), "")
        if not separator or len(line) > LINE_BYTES:
            continue
        try:
            row = next(csv.reader([text], delimiter=separator, skipinitialspace=True), [])
        except csv.Error:  # a null, before Python 3.11
            continue
        if len(row) > 1:
            rows[row[0].strip()] = row[1].strip()
    return rows or None, start


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a text without their ends; overlong ones are cut."""
    rest = b""
    for piece in chain(pieces, (b"\n",)):
        *lines, rest = (rest + piece).replace(b"\r", b"\n").split(b"\n")
        rest = rest[: LINE_BYTES + 1]
        yield from filter(None, lines)
