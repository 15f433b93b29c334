"""Take the annotation files out of a zip of getDCMImage while it arrives; the images in it are passed over.

Server: the images come first, then ``md5hashes.csv`` as asked, then the annotation files by the base names of their
stored files. So the list separates the two, whatever the names. A file that is missing on the server's disk ends the
zip just before it, properly closed: only the total size shows it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nbia_pipeline.archive import BadAnswer
from nbia_pipeline.lake.layout import annotation_name
from nbia_pipeline.mirror.unpack import MD5_LIST, SPARE_BYTES, SPARE_FILES
from nbia_pipeline.mirror.zip_stream import Entry, InvalidZip, stream_entries


@dataclass(frozen=True)
class AnnotationFile:
    """One annotation file that arrived.

    Attributes:
        name: as the archive sends it.
        file: its name in the directory.
        size: bytes.
        md5: lower-case hex; the archive states none.
    """

    name: str
    file: str
    size: int
    md5: str


@dataclass(frozen=True)
class Extracted:
    """The annotation files of one zip.

    Attributes:
        files: what is in the directory.
        finding: how they differ from what the archive announced, None if they do not.
    """

    files: list[AnnotationFile]
    finding: str | None


class _TooMuch(Exception):
    """There is more than the archive announced."""


def extract(chunks: Iterable[bytes], target: Path, image_bytes: int, announced: int) -> Extracted:
    """Write the annotation files of a series to a directory, hashing them.

    Args:
        chunks: the zip.
        target: the directory; emptied first, because a stream that broke is read again from its start.
        image_bytes: size of the images of the series.
        announced: size of its annotation files, as the archive states it.

    Raises:
        BadAnswer: the stream is not a complete zip.
        OSError: the disk cannot be written.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    files: list[AnnotationFile] = []
    try:
        entries = stream_entries(chunks)
        reached = _skip_images(entries, image_bytes + SPARE_BYTES)
        for entry in entries:
            if len(files) == SPARE_FILES:
                raise _TooMuch(f"the zip contains more than {SPARE_FILES} annotation files")
            left = announced + SPARE_BYTES - sum(f.size for f in files)
            files.append(_store(entry, target, {f.file.casefold() for f in files}, left))
    except _TooMuch as e:
        return Extracted([], f"{e}: nothing of it was stored")
    except InvalidZip as e:
        raise BadAnswer(f"the zip with the annotation files cannot be read: {e}") from e
    return Extracted(files, _difference(files, announced, reached))


def _skip_images(entries: Iterator[Entry], most: int) -> bool:
    """Pass over the images and the list of their digests; False if the zip ends before the list does."""
    for entry in entries:
        for _ in entry:
            if entry.size > most:
                raise _TooMuch(f"the images of the zip have more than {most:,} bytes, more than those in the lake")
        most -= entry.size
        if entry.name == MD5_LIST:
            return True
    return False


def _store(entry: Entry, target: Path, taken: set[str], left: int) -> AnnotationFile:
    name = annotation_name(entry.name, taken)
    digest = hashlib.md5(usedforsecurity=False)
    with (target / name).open("wb") as file:
        for piece in entry:
            if entry.size > left:
                raise _TooMuch("the annotation files are larger than the archive announced")
            digest.update(piece)
            file.write(piece)
    if not entry.intact:
        raise InvalidZip(f"size or checksum of {entry.name[:100]!r} is not the one that the zip states")
    return AnnotationFile(entry.name, name, entry.size, digest.hexdigest())


def _difference(files: list[AnnotationFile], announced: int, reached: bool) -> str | None:
    size = sum(f.size for f in files)
    if size == announced:
        return None
    where = "" if reached else "; the archive stopped before the last image"
    return f"the archive announces {announced:,} bytes of annotation files, {len(files)} with {size:,} arrived{where}"
