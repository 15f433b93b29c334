"""Read a zip while it arrives: no byte of it touches the disk, and memory does not grow with its size.

The server streams its zips (Java's ZipOutputStream): each entry is deflated, its sizes follow it in a data
descriptor, and are stated otherwise only in the central directory at the end. So the entries are taken in the order
in which they arrive, and the directory, at the end, shows whether that was all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

try:
    from isal import isal_zlib as zlib  # the same interface, two to three times as fast
except ImportError:  # no build for this processor
    import zlib  # type: ignore[no-redef]

DeflateError = cast("type[Exception]", zlib.error)

PIECE_BYTES = 1 << 20

_LOCAL = b"PK\3\4"
_DESCRIPTOR = b"PK\7\x08"
_CENTRAL = b"PK\1\2"
_WIDE_END = b"PK\6\6"
_WIDE_LOCATOR = b"PK\6\7"
_END = b"PK\5\6"

_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 0x1, 0x8, 0x800
_FULL = 0xFFFFFFFF
_WIDE_SIZES = 1  # id of the extra field with 64-bit sizes


class InvalidZip(Exception):
    """The stream is not a zip, or not a complete one; the text says what is wrong."""


@dataclass
class Entry:
    """One file of the zip. Its contents are read by iterating, once, before the next entry is asked for.

    Attributes:
        name: as the zip spells it; not to be trusted.
        pieces: the contents, in pieces of at most 1 MiB.
        intact: None until the contents were read; then whether size and CRC are those that the zip states.
        size: how many bytes were read so far.
        packed: how many bytes of the zip these took.
    """

    name: str
    pieces: Iterator[bytes]
    intact: bool | None = None
    size: int = 0
    packed: int = 0

    def __iter__(self) -> Iterator[bytes]:
        return self.pieces


def stream_entries(chunks: Iterable[bytes]) -> Iterator[Entry]:
    """Yield the entries of a zip that arrives in chunks.

    Args:
        chunks: the bytes of the zip, cut anywhere.

    Raises:
        InvalidZip: the bytes are not a zip, or end before its directory does, or the directory lists other
            entries than arrived.
    """
    source = _Source(chunks)
    names: list[bytes] = []
    while (signature := source.take(4)) == _LOCAL:
        name, entry = _begin(source)
        names.append(name)
        yield entry
        for _ in entry:  # what the caller did not read
            pass
    _expect_directory(source, signature, names)


class _Source:
    """The arriving bytes, with what was read too far handed back."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = memoryview(b"")

    def some(self, most: int = PIECE_BYTES) -> memoryview:
        """Return at least one byte, at most `most`; nothing at the end."""
        while not self._held:
            chunk = next(self._chunks, None)
            if chunk is None:
                return memoryview(b"")
            self._held = memoryview(chunk)
        piece, self._held = self._held[:most], self._held[most:]
        return piece

    def give_back(self, rest: bytes) -> None:
        """Take back bytes that were the last ones handed out."""
        if rest:
            self._held = memoryview(rest + bytes(self._held)) if self._held else memoryview(rest)

    def take(self, count: int) -> bytes:
        """Return exactly `count` bytes."""
        parts = bytearray()
        while len(parts) < count:
            more = self.some(count - len(parts))
            if not more:
                raise InvalidZip("the zip is truncated: the stream ended within it")
            parts += more
        return bytes(parts)


def _begin(source: _Source) -> tuple[bytes, Entry]:
    _, flags, method, _, _, crc, packed, size, name_length, extra_length = struct.unpack("<5H3I2H", source.take(26))
    raw = source.take(name_length)
    extra = source.take(extra_length)
    name = raw.decode("utf-8" if flags & _UTF8 else "cp437", "replace")
    follow = bool(flags & _SIZES_FOLLOW)
    if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
        raise InvalidZip(f"the zip stores {name[:100]!r} in a way that the archive never uses (method {method})")
    if method == _STORED and follow:
        raise InvalidZip(f"the zip does not state how long {name[:100]!r} is")
    if not follow and _FULL in (packed, size):
        size, packed = _wide_sizes(extra)
    entry = Entry(name, iter(()))
    stated = None if follow else (crc, packed, size)
    entry.pieces = _contents(source, entry, stated, deflated=method == _DEFLATED)
    return raw, entry


def _contents(source: _Source, entry: Entry, stated: tuple[int, int, int] | None, *, deflated: bool) -> Iterator[bytes]:
    crc = 0
    plain = _inflated(source, entry) if deflated else _copied(source, stated[1] if stated else 0, entry)
    for piece in plain:
        crc = zlib.crc32(piece, crc)
        entry.size += len(piece)
        yield piece
    found = (crc, entry.packed, entry.size)
    entry.intact = _descriptor_agrees(source, *found) if stated is None else found == stated


def _inflated(source: _Source, entry: Entry) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-15)
    pending: memoryview | bytes = b""
    while not inflate.eof:
        if not pending:
            pending = source.some()
            if not pending:
                raise InvalidZip("the zip is truncated: the stream ended within a file")
        try:
            # Bounded, so that a small piece that unpacks to gigabytes takes no memory.
            piece = inflate.decompress(pending, PIECE_BYTES)
        except DeflateError as e:
            raise InvalidZip(f"the zip is damaged ({e})") from e
        rest = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
        entry.packed += len(pending) - len(rest)
        pending = rest
        if piece:
            yield piece
    source.give_back(bytes(pending))


def _copied(source: _Source, length: int, entry: Entry) -> Iterator[bytes]:
    while entry.packed < length:
        piece = bytes(source.some(min(PIECE_BYTES, length - entry.packed)))
        if not piece:
            raise InvalidZip("the zip is truncated: the stream ended within a file")
        entry.packed += len(piece)
        yield piece


def _descriptor_agrees(source: _Source, crc: int, packed: int, size: int) -> bool:
    """Read the data descriptor; its signature is optional, and beyond 4 GiB its sizes have 64 bits."""
    start = source.take(4)
    if start == _DESCRIPTOR and struct.pack("<I", crc) != _DESCRIPTOR:
        start = source.take(4)
    wide = max(packed, size) >= _FULL
    sizes = struct.unpack("<QQ" if wide else "<II", source.take(16 if wide else 8))
    return (struct.unpack("<I", start)[0], *sizes) == (crc, packed, size)


def _wide_sizes(extra: bytes) -> tuple[int, int]:
    """Return size and packed size from the extra field for files beyond 4 GiB."""
    at = 0
    while at + 4 <= len(extra):
        field, length = struct.unpack_from("<HH", extra, at)
        if field == _WIDE_SIZES and length >= 16 and at + 20 <= len(extra):
            size, packed = struct.unpack_from("<QQ", extra, at + 4)
            return size, packed
        at += 4 + length
    raise InvalidZip("the zip states no size for a file beyond 4 GiB")


def _expect_directory(source: _Source, signature: bytes, names: list[bytes]) -> None:
    """Read the central directory up to the end of the zip, and make sure that it lists what arrived."""
    listed: list[bytes] = []
    while signature == _CENTRAL:
        fixed = source.take(42)
        name_length, extra_length, comment_length = struct.unpack_from("<3H", fixed, 24)
        listed.append(source.take(name_length))
        source.take(extra_length + comment_length)
        signature = source.take(4)
    if signature == _WIDE_END:
        source.take(struct.unpack("<Q", source.take(8))[0])
        signature = source.take(4)
    if signature == _WIDE_LOCATOR:
        source.take(16)
        signature = source.take(4)
    if signature != _END:
        raise InvalidZip(f"this is not a zip: {signature!r} where an entry or the end was expected")
    fixed = source.take(18)
    source.take(struct.unpack_from("<H", fixed, 16)[0])
    if source.some(1):
        raise InvalidZip("bytes follow the end of the zip")
    if listed != names:
        raise InvalidZip(f"the zip's directory lists {len(listed)} files, {len(names)} arrived")
