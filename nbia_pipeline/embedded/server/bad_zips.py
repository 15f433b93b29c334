"""Zips that are wrong on purpose: each opens, and the checksum of each entry is correct."""

from __future__ import annotations

import functools
import io
import zipfile
import zlib
from collections.abc import Callable

from nbia_pipeline.embedded.api.zip_writer import Packed, ZipStream, pack
from nbia_pipeline.embedded.control.fault import Fault

Entry = tuple[str, bytes | Packed]
"""Name and contents of an entry; packed contents are written as they are."""

Entries = list[Entry]

LICENSE = "LICENSE"
HASHES = "md5hashes.csv"

_BLOCK = 1 << 20


def wrong_zip(body: bytes, fault: Fault) -> bytes:
    """Return a zip with a fault in it; a body that is not a zip, or has no images, is returned as it is.

    Args:
        body: a correct zip.
        fault: the fault; its kind is a key of :data:`ZIP_FAULTS`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries: Entries = [(name, archive.read(name)) for name in archive.namelist()]
    except zipfile.BadZipFile:
        return body
    images = _images(entries)
    if not images:
        return body
    chosen = images[min(int(fault.fraction * len(images)), len(images) - 1)]
    stream = ZipStream()
    pieces: list[bytes] = []
    for name, data in ZIP_FAULTS[fault.kind](entries, chosen, fault):
        pieces += stream.entry(name, pack(data) if isinstance(data, bytes) else data)
    return b"".join([*pieces, stream.close()])


def _images(entries: Entries) -> list[int]:
    """Return the positions of the images."""
    return [n for n, (name, _) in enumerate(entries) if name not in (LICENSE, HASHES)]


def _half(entry: Entry) -> Entry:
    name, data = entry
    assert isinstance(data, bytes)  # noqa: S101 - only entries that were read are cut
    return name, data[: len(data) // 2]


def _lost_file(entries: Entries, chosen: int, fault: Fault) -> Entries:
    kept = _changed_hash(entries, chosen, lambda digest: None)
    return [*kept[:chosen], *kept[chosen + 1 :]]


def _changed_hash(entries: Entries, chosen: int, change: Callable[[str], str | None]) -> Entries:
    """Change the digest of an image in the list of hashes; None leaves the line out."""
    changed: Entries = []
    for name, data in entries:
        if name == HASHES and isinstance(data, bytes):
            header, *lines = data.decode().splitlines()
            pairs = [(file, digest) for file, _, digest in (line.partition(",") for line in lines)]
            new = [(file, change(digest) if file == entries[chosen][0] else digest) for file, digest in pairs]
            kept = [f"{file},{digest}" for file, digest in new if digest is not None]
            data = ("\n".join([header, *kept]) + "\n").encode()
        changed.append((name, data))
    return changed


def _with_more(entries: Entries, name: str, data: bytes | Packed) -> Entries:
    """Insert an entry after the images, before the list of hashes."""
    last = _images(entries)[-1] + 1
    return [*entries[:last], (name, data), *entries[last:]]


@functools.lru_cache(maxsize=2)
def _zeros(size: int) -> Packed:
    """Return this many zeros, packed without holding them in memory."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block, crc, packed = bytes(_BLOCK), 0, []
    for start in range(0, size, _BLOCK):
        piece = block[: min(_BLOCK, size - start)]
        crc = zlib.crc32(piece, crc)
        packed.append(deflater.compress(piece))
    return Packed(crc, size, b"".join([*packed, deflater.flush()]))


ZIP_FAULTS: dict[str, Callable[[Entries, int, Fault], Entries]] = {
    "no_files": lambda entries, chosen, fault: [entry for entry in entries if entry[0] == LICENSE],
    "missing_file": lambda entries, chosen, fault: entries[:chosen],
    "cut_file": lambda entries, chosen, fault: [*entries[:chosen], _half(entries[chosen])],
    "lost_file": _lost_file,
    "short_file": lambda entries, chosen, fault: [*entries[:chosen], _half(entries[chosen]), *entries[chosen + 1 :]],
    "no_hashes": lambda entries, chosen, fault: [entry for entry in entries if entry[0] != HASHES],
    "wrong_hash": lambda entries, chosen, fault: _changed_hash(entries, chosen, lambda digest: digest[::-1]),
    "empty_hash": lambda entries, chosen, fault: _changed_hash(entries, chosen, lambda digest: ""),
    "path_name": lambda entries, chosen, fault: _with_more(entries, "../../outside.dcm", entries[chosen][1]),
    # It is only a name in a zip.
    "absolute_name": lambda entries, chosen, fault: _with_more(entries, "/tmp/outside.dcm", entries[chosen][1]),  # noqa: S108
    "duplicate_name": lambda entries, chosen, fault: _with_more(entries, *_half(entries[chosen])),
    "bomb": lambda entries, chosen, fault: _with_more(entries, "99999999.dcm", _zeros(fault.size)),
}
"""The entries of a bad zip by kind of fault, from those of a correct one and the position of the chosen image."""
