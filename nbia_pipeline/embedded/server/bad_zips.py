"""Zips that are wrong on purpose: each opens, and each entry's checksum fits what is in it.

Every function takes the entries of a true zip and returns those of the wrong one.
"""

from __future__ import annotations

import functools
import io
import zipfile
import zlib
from collections.abc import Callable

from nbia_pipeline.embedded.api.zip_writer import Packed, ZipStream, pack
from nbia_pipeline.embedded.control.fault import Fault

Entries = list[tuple[str, bytes | Packed]]
"""Name and contents of the entries in order; contents that are packed already are taken as they are."""

LICENCE = "LICENSE"
HASHES = "md5hashes.csv"
OUTSIDE_PATH = "../../outside.dcm"
OUTSIDE_ABSOLUTE = "/tmp/outside.dcm"  # noqa: S108 - it is only a name in a zip
BOMB = "99999999.dcm"

_BLOCK = 1 << 20


def wrong_zip(body: bytes, fault: Fault) -> bytes:
    """Return a zip with a fault in it; what is no zip, or has no images, is returned as it is.

    Args:
        body: a true zip.
        fault: what goes wrong; its kind is a key of :data:`ZIP_FAULTS`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries: Entries = [(name, archive.read(name)) for name in archive.namelist()]
    except zipfile.BadZipFile:
        return body
    if not _images(entries):
        return body
    stream = ZipStream()
    pieces: list[bytes] = []
    for name, data in ZIP_FAULTS[fault.kind](entries, fault):
        pieces += stream.entry(name, pack(data) if isinstance(data, bytes) else data)
    return b"".join([*pieces, stream.close()])


def _images(entries: Entries) -> list[int]:
    """Return the positions of the images."""
    return [n for n, (name, _) in enumerate(entries) if name not in (LICENCE, HASHES)]


def _chosen(entries: Entries, fault: Fault) -> int:
    """Return the position of the image at the fault's fraction."""
    images = _images(entries)
    return images[min(int(fault.fraction * len(images)), len(images) - 1)]


def _half(data: bytes | Packed) -> bytes:
    assert isinstance(data, bytes)  # noqa: S101 - only entries that were read are cut
    return data[: len(data) // 2]


def _no_files(entries: Entries, fault: Fault) -> Entries:
    return [entry for entry in entries if entry[0] == LICENCE]


def _missing_file(entries: Entries, fault: Fault) -> Entries:
    return entries[: _chosen(entries, fault)]


def _cut_file(entries: Entries, fault: Fault) -> Entries:
    name, data = entries[_chosen(entries, fault)]
    return [*_missing_file(entries, fault), (name, _half(data))]


def _lost_file(entries: Entries, fault: Fault) -> Entries:
    lost = entries[_chosen(entries, fault)][0]
    kept = [entry for entry in entries if entry[0] != lost]
    return _with_hashes(kept, lambda name, digest: None if name == lost else digest)


def _short_file(entries: Entries, fault: Fault) -> Entries:
    chosen = _chosen(entries, fault)
    return [(name, _half(data) if n == chosen else data) for n, (name, data) in enumerate(entries)]


def _no_hashes(entries: Entries, fault: Fault) -> Entries:
    return [entry for entry in entries if entry[0] != HASHES]


def _wrong_hash(entries: Entries, fault: Fault) -> Entries:
    chosen = entries[_chosen(entries, fault)][0]
    return _with_hashes(entries, lambda name, digest: digest[::-1] if name == chosen else digest)


def _empty_hash(entries: Entries, fault: Fault) -> Entries:
    chosen = entries[_chosen(entries, fault)][0]
    return _with_hashes(entries, lambda name, digest: "" if name == chosen else digest)


def _path_name(entries: Entries, fault: Fault) -> Entries:
    return _with_more(entries, OUTSIDE_PATH, entries[_chosen(entries, fault)][1])


def _absolute_name(entries: Entries, fault: Fault) -> Entries:
    return _with_more(entries, OUTSIDE_ABSOLUTE, entries[_chosen(entries, fault)][1])


def _duplicate_name(entries: Entries, fault: Fault) -> Entries:
    name, data = entries[_chosen(entries, fault)]
    return _with_more(entries, name, _half(data))


def _bomb(entries: Entries, fault: Fault) -> Entries:
    return _with_more(entries, BOMB, _zeros(fault.size))


def _with_more(entries: Entries, name: str, data: bytes | Packed) -> Entries:
    """Put an entry behind the images, before the list of hashes."""
    last = _images(entries)[-1] + 1
    return [*entries[:last], (name, data), *entries[last:]]


def _with_hashes(entries: Entries, change: Callable[[str, str], str | None]) -> Entries:
    """Change the digests in the list of hashes; None leaves the line out."""
    changed: Entries = []
    for name, data in entries:
        if name == HASHES and isinstance(data, bytes):
            header, *lines = data.decode().splitlines()
            pairs = [(file, change(file, digest)) for file, _, digest in (line.partition(",") for line in lines)]
            kept = [f"{file},{digest}" for file, digest in pairs if digest is not None]
            data = ("\n".join([header, *kept]) + "\n").encode()
        changed.append((name, data))
    return changed


@functools.lru_cache(maxsize=2)
def _zeros(size: int) -> Packed:
    """Return so many zeros, packed without ever holding them."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block, crc, packed = bytes(_BLOCK), 0, []
    for start in range(0, size, _BLOCK):
        piece = block[: min(_BLOCK, size - start)]
        crc = zlib.crc32(piece, crc)
        packed.append(deflater.compress(piece))
    return Packed(crc, size, b"".join([*packed, deflater.flush()]))


ZIP_FAULTS: dict[str, Callable[[Entries, Fault], Entries]] = {
    "no_files": _no_files,
    "missing_file": _missing_file,
    "cut_file": _cut_file,
    "lost_file": _lost_file,
    "short_file": _short_file,
    "no_hashes": _no_hashes,
    "wrong_hash": _wrong_hash,
    "empty_hash": _empty_hash,
    "path_name": _path_name,
    "absolute_name": _absolute_name,
    "duplicate_name": _duplicate_name,
    "bomb": _bomb,
}
"""What makes the entries of a wrong zip, by kind of fault."""
