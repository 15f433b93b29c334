"""Read a zip while it arrives: no byte of it touches the disk, and memory does not grow with its size.

The server streams its zips (Java's ZipOutputStream): each entry is deflated, its sizes follow it in a data
descriptor, and are stated otherwise only in the central directory at the end. So the entries are taken in the order
in which they arrive, and the directory, at the end, shows whether that was all.

What other writers do, and a proxy on the way, is read as well: 64-bit sizes of small entries, a data descriptor without
its signature, entries that are stored as they are, blanks before the zip, bytes behind it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast


class _Inflater:
    """What isal's decompressor does, done by zlib."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(-15)

    def decompress(self, data: bytes | memoryview, most: int) -> bytes:
        """Return at most `most` bytes; what is left of `data` is kept."""
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, most)

    @property
    def eof(self) -> bool:
        """Whether the end was reached."""
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        """Whether nothing is kept."""
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        """What followed the end."""
        return self._inflate.unused_data


try:  # two to three times as fast; unlike isal_zlib's it allocates once for each piece
    from isal.igzip_lib import IgzipDecompressor
    from isal.igzip_lib import error as _isal_error
    from isal.isal_zlib import crc32

    Inflater: type[IgzipDecompressor | _Inflater] = IgzipDecompressor
    DeflateError = cast("type[Exception]", _isal_error)
except ImportError:  # no build for this processor
    from zlib import crc32

    Inflater, DeflateError = _Inflater, zlib.error

PIECE_BYTES = 1 << 20
# The allocator of glibc returns each piece to the system, and then every page of the next one is a fault: a fifth of
# the time of inflating. It keeps what is smaller than the largest block that was ever freed: so such a one is freed.
bytearray(2 * PIECE_BYTES)
# At least so much is inflated in one call. What a call gets too much is copied.
_LEAST_BYTES = 1 << 16
# What may follow the end of the zip; more than that is another thing than a zip with a proxy's trailer.
TRAILER_BYTES = 1 << 20

_LOCAL = b"PK\3\4"
_DESCRIPTOR = b"PK\7\x08"
_CENTRAL = b"PK\1\2"
_WIDE_END = b"PK\6\6"
_WIDE_LOCATOR = b"PK\6\7"
_END = b"PK\5\6"
# Of a zip that was meant to be cut into several, and was not.
_SPANNED = (b"PK00", _DESCRIPTOR)
_BLANKS = b"\xef\xbb\xbf \t\r\n"
_MOST_BLANKS = 1024

_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 0x1, 0x8, 0x800
_FULL = 0xFFFFFFFF
_LONGEST_DESCRIPTOR = 24
_WIDE_SIZES = 1  # id of the extra field with 64-bit sizes
_MOST_OF_WIDE_END = 1 << 16

MOST_ENTRIES = 1 << 20
LONGEST_NAME = 1024
# Of a zip and its directory besides names and contents, and of deflated contents that unpack to nothing.
_SPARE_BYTES, _SPARE_OF_ENTRY = 1 << 20, 1 << 10


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
            entries than arrived, or there is no end of it.
    """
    source = _Source(chunks)
    names = _Names()
    signature = _first_signature(source)
    while signature == _LOCAL:
        name, entry = _begin(source)
        names.add(name)
        yield entry
        for _ in entry:  # what the caller did not read
            pass
        signature = source.take(4)
    _expect_directory(source, signature, names)


class _Names:
    """The names of entries, in their order; only what is needed to compare them is kept."""

    def __init__(self) -> None:
        self.count = 0
        self._digest = hashlib.sha256()

    def add(self, name: bytes) -> None:
        """Take one more name."""
        self.count += 1
        self._digest.update(len(name).to_bytes(2, "little") + name)
        if self.count > MOST_ENTRIES:
            raise InvalidZip(f"the zip has more than {MOST_ENTRIES} entries")

    def same(self, other: _Names) -> bool:
        """Return whether these are the same names."""
        return self._digest.digest() == other._digest.digest()


class _Source:
    """The arriving bytes, with what was read too far handed back.

    Attributes:
        usual: how many bytes an entry may take, by the one before: the images of a series are much alike.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._chunk = memoryview(b"")
        self._at = 0
        self._spare = _SPARE_BYTES
        self.usual = PIECE_BYTES

    def some(self, most: int = PIECE_BYTES) -> memoryview:
        """Return at least one byte, at most `most`; nothing at the end."""
        while self._at == len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return memoryview(b"")
            self._chunk, self._at = memoryview(chunk), 0
        piece = self._chunk[self._at : self._at + most]
        self._at += len(piece)
        return piece

    def give_back(self, rest: bytes) -> None:
        """Take back bytes that were the last ones handed out."""
        if len(rest) > self._at:  # of the chunk before
            self._chunk, self._at = memoryview(rest + self._chunk[self._at :]), len(rest)
        self._at -= len(rest)

    def name(self, length: int) -> bytes:
        """Return the name of an entry."""
        if length > LONGEST_NAME:
            raise InvalidZip(f"the zip contains a name of {length} bytes")
        self._spare += _SPARE_OF_ENTRY
        return self.take(length)

    def around(self, count: int) -> bytes:
        """Return `count` bytes that are neither a name nor contents; there are few of them in an honest zip."""
        self._spare -= count
        if self._spare < 0:
            raise InvalidZip("the zip has far more around its files than they need")
        return self.take(count)

    def take(self, count: int) -> bytes:
        """Return exactly `count` bytes."""
        end = self._at + count
        if end <= len(self._chunk):
            at, self._at = self._at, end
            return bytes(self._chunk[at:end])
        parts = bytearray()
        while len(parts) < count:
            more = self.some(count - len(parts))
            if not more:
                raise InvalidZip("the zip is truncated: the stream ended within it")
            parts += more
        return bytes(parts)


def _first_signature(source: _Source) -> bytes:
    signature = source.take(4)
    for _ in range(_MOST_BLANKS):
        if signature[0] not in _BLANKS:
            break
        signature = signature[1:] + source.take(1)
    return source.take(4) if signature in _SPANNED else signature


def _begin(source: _Source) -> tuple[bytes, Entry]:
    _, flags, method, _, _, crc, packed, size, name_length, extra_length = struct.unpack("<5H3I2H", source.take(26))
    raw = source.name(name_length)
    extra = source.around(extra_length)
    name = raw.decode("utf-8" if flags & _UTF8 else "cp437", "replace")
    follow = bool(flags & _SIZES_FOLLOW)
    if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
        raise InvalidZip(f"the zip stores {name[:100]!r} in a way that the archive never uses (method {method})")
    if not (follow and method == _DEFLATED):  # where deflated contents end can be seen
        packed, size = _stated_sizes(packed, size, extra)
    entry = Entry(name, iter(()))
    if method == _DEFLATED:
        plain = _inflated(source, entry)
    elif follow and not packed:
        plain = _copied_to_descriptor(source, entry)
    else:
        plain = _copied(source, packed, entry)
    entry.pieces = _contents(source, entry, plain, None if follow else (crc, packed, size))
    return raw, entry


def _contents(
    source: _Source, entry: Entry, plain: Iterator[bytes], stated: tuple[int, int, int] | None
) -> Iterator[bytes]:
    crc = 0
    for piece in plain:
        crc = crc32(piece, crc)
        entry.size += len(piece)
        yield piece
    found = (crc, entry.packed, entry.size)
    entry.intact = _descriptor_agrees(source, *found) if stated is None else found == stated


def _inflated(source: _Source, entry: Entry) -> Iterator[bytes]:
    inflate = Inflater()
    while not inflate.eof:
        given: memoryview | bytes = b""
        if inflate.needs_input:
            # Not much more than the entry takes: the rest would be copied.
            given = source.some(max(source.usual - entry.packed, _LEAST_BYTES))
            if not given:
                raise InvalidZip("the zip is truncated: the stream ended within a file")
        try:
            # Bounded, so that a small piece that unpacks to gigabytes takes no memory.
            piece = inflate.decompress(given, PIECE_BYTES)
        except DeflateError as e:
            raise InvalidZip(f"the zip is damaged ({e})") from e
        entry.packed += len(given) - len(inflate.unused_data)
        if entry.packed > 2 * (entry.size + len(piece)) + _SPARE_BYTES:
            raise InvalidZip("the zip has a file that unpacks to nothing, without an end")
        if piece:
            yield piece
    source.give_back(inflate.unused_data)
    source.usual = min(entry.packed + entry.packed // 16, PIECE_BYTES)


def _copied(source: _Source, length: int, entry: Entry) -> Iterator[bytes]:
    while entry.packed < length:
        piece = bytes(source.some(min(PIECE_BYTES, length - entry.packed)))
        if not piece:
            raise InvalidZip("the zip is truncated: the stream ended within a file")
        entry.packed += len(piece)
        yield piece


def _copied_to_descriptor(source: _Source, entry: Entry) -> Iterator[bytes]:
    """Yield a stored entry of unknown length: it ends at the descriptor that has its CRC and its length."""
    crc = 0
    ahead = b""
    while True:
        more = source.some(PIECE_BYTES - _LONGEST_DESCRIPTOR)
        if not more:
            raise InvalidZip("the zip is truncated: the stream ended within a file")
        ahead += more
        at = ahead.find(_DESCRIPTOR)
        while 0 <= at <= len(ahead) - _LONGEST_DESCRIPTOR and not _ends(ahead, at, crc, entry.packed):
            at = ahead.find(_DESCRIPTOR, at + 1)  # the same bytes in the midst of the contents
        ended = 0 <= at <= len(ahead) - _LONGEST_DESCRIPTOR
        if at < 0:  # a signature may be cut: what could be its beginning waits for the next piece
            at = max(0, len(ahead) - len(_DESCRIPTOR) + 1)
        known, ahead = ahead[:at], ahead[at:]
        crc = crc32(known, crc)
        entry.packed += at
        if known:
            yield known
        if ended:
            source.give_back(ahead)
            return


def _ends(ahead: bytes, at: int, crc: int, packed: int) -> bool:
    """Return whether there is the descriptor of contents that end there, after what `crc` and `packed` are of."""
    end = packed + at
    # The size is compared first: contents may be full of signatures.
    if not ahead.startswith((end & _FULL).to_bytes(4, "little"), at + 8):
        return False
    return ahead.startswith(_descriptors(crc32(memoryview(ahead)[:at], crc), end, end), at)


def _descriptors(crc: int, packed: int, size: int) -> tuple[bytes, ...]:
    """Return the data descriptors that fit an entry, with sizes of 32 and of 64 bits."""
    wide = _DESCRIPTOR + struct.pack("<IQQ", crc, packed, size)
    return (wide,) if max(packed, size) > 0xFFFFFFFF else (_DESCRIPTOR + struct.pack("<III", crc, packed, size), wide)


def _descriptor_agrees(source: _Source, crc: int, packed: int, size: int) -> bool:
    """Read the data descriptor, whose signature is optional, and whose sizes have 32 or 64 bits.

    Large sizes need 64 bits; some writers use them for small ones too, and not all of these say so before. So the
    descriptor is the one that fits, and if neither does, the one that a signature follows.
    """
    start = source.take(4)
    if start == _DESCRIPTOR and struct.pack("<I", crc) != _DESCRIPTOR:
        start = source.take(4)
    found = _DESCRIPTOR + start + source.take(8)
    after = source.take(4)
    narrow = found in _descriptors(crc, packed, size)
    if after in (_LOCAL, _CENTRAL) and (narrow or max(packed, size) < _FULL):
        source.give_back(after)
        return narrow
    return found + after + source.take(4) in _descriptors(crc, packed, size)


def _stated_sizes(packed: int, size: int, extra: bytes) -> tuple[int, int]:
    """Return packed size and size, from the header, or from the extra field where the header has no room for one."""
    if _FULL not in (packed, size):
        return packed, size
    at = 0
    while at + 4 <= len(extra):
        field, length = struct.unpack_from("<HH", extra, at)
        wide = extra[at + 4 : at + 4 + length]
        if field == _WIDE_SIZES and len(wide) >= 16:
            both = struct.unpack_from("<QQ", wide)
            return both[1] if packed == _FULL else packed, both[0] if size == _FULL else size
        if field == _WIDE_SIZES and len(wide) >= 8 and packed != size:  # only the one for which there is no room
            (one,) = struct.unpack_from("<Q", wide)
            return (one, size) if packed == _FULL else (packed, one)
        at += 4 + length
    raise InvalidZip("the zip states no size for a file beyond 4 GiB")


def _expect_directory(source: _Source, signature: bytes, names: _Names) -> None:
    """Read the central directory up to the end of the zip, and make sure that it lists what arrived."""
    listed = _Names()
    while signature == _CENTRAL and listed.count <= names.count:
        fixed = source.take(42)
        name_length, extra_length, comment_length = struct.unpack_from("<3H", fixed, 24)
        listed.add(source.name(name_length))
        source.around(extra_length + comment_length)
        signature = source.take(4)
    if signature == _WIDE_END:
        source.take(min(_MOST_OF_WIDE_END, struct.unpack("<Q", source.take(8))[0]))
        signature = source.take(4)
    if signature == _WIDE_LOCATOR:
        source.take(16)
        signature = source.take(4)
    if signature == _CENTRAL:
        raise InvalidZip(f"the zip's directory lists more than the {names.count} files that arrived")
    if signature != _END:
        # Receipts of earlier versions that say so in other words are of pages, and are tried again.
        raise InvalidZip(f"neither an entry nor the end comes next, but {signature!r}")
    fixed = source.take(18)
    source.take(struct.unpack_from("<H", fixed, 16)[0])
    trailer = 0
    while more := source.some():
        trailer += len(more)
        if trailer > TRAILER_BYTES:
            raise InvalidZip(f"more than {TRAILER_BYTES} bytes follow the end of the zip")
    if not listed.same(names):
        raise InvalidZip(f"the zip's directory lists {listed.count} files, {names.count} arrived")
