"""A file as pydicom reads it: in every way that makes sense of it, the likeliest first."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from struct import error as StructError
from struct import pack

from nbia_pipeline.headers.parse.elements import Odd, element
from nbia_pipeline.headers.parse.header import More

MOST_INFLATED = 1 << 26
"""So much of a deflated data set is inflated."""

_PREFIX, _PREAMBLE = b"DICM", bytes(128)
_PIECE = 1 << 20
_SYNTAX = 0x00020010
EXPLICIT, BIG, IMPLICIT = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2\0"
_DEFLATED = frozenset((b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.95", b"1.2.840.10008.1.2.4.205"))


class File:
    """A file, from some position on, after some bytes that it lacks, as a file object.

    Attributes:
        inflated: whether positions are those in its inflated contents.
        size: of the file in bytes.
        length: of this object in bytes.
        errors: what :data:`~nbia_pipeline.headers.parse.header.More` raised; pydicom may take it for the end of a file.
    """

    def __init__(self, before: bytes, start: int, head: bytes, size: int, more: More, inflated: bool = False) -> None:
        self.inflated = inflated
        self.errors: list[BaseException] = []
        self._before, self._start, self._head, self._more = before, start, head, more
        self.size, self.length = size, len(before) + max(0, size - start)
        self._at, self._piece, self._piece_at = 0, b"", 0

    def offset(self, at: int) -> int:
        """Return the position in the file of what is at a position of this object."""
        return at - len(self._before) + self._start

    def after(self, at: int, syntax: bytes) -> File:
        """Return the same from a position in the file on, in some transfer syntax."""
        rest = File(_before(syntax), at, self._head, self.size, self._more, self.inflated)
        rest.errors = self.errors
        return rest

    def part(self, at: int, length: int) -> bytes:
        """Return bytes by their position in the file."""
        self.seek(at - self._start + len(self._before))
        return self.read(length)

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, at: int, whence: int = 0) -> int:
        """Go to a position."""
        self._at = max(0, at + (0, self._at, self.length)[whence])
        return self._at

    def read(self, length: int = -1) -> bytes:
        """Return bytes from the position on, as many as there are."""
        left = max(0, self.length - self._at)
        length = left if length < 0 else min(length, left)
        here = self._at - self._piece_at
        if not 0 <= here <= len(self._piece) - length:
            self._piece_at, here = self._at, 0
            self._piece = self._bytes(self._at, min(max(length, 1 << 16), left))
        found = self._piece[here : here + length]
        self._at += len(found)
        return found

    def _bytes(self, at: int, length: int) -> bytes:
        before = self._before[at : at + length]
        length -= len(before)
        at = self.offset(at + len(before))
        if at + length <= len(self._head):
            return before + self._head[at : at + length]
        try:
            return before + self._more(at, length) if length else before
        except BaseException as e:
            self.errors.append(e)
            raise


def readings(head: bytes, size: int, more: More) -> Iterator[File]:
    """Yield a file as it is, or inflated; then as if it stated another transfer syntax, or had its prefix elsewhere."""
    if head[128:132] == _PREFIX:
        syntax, at = _meta(head)
        deflated = syntax in _DEFLATED
        if deflated:
            plain = _inflated(at, head, size, more)
            yield File(_before(EXPLICIT), 0, plain, len(plain), lambda o, n: plain[o : o + n], inflated=True)
        else:
            yield File(b"", 0, head, size, more)
        if at:
            yield File(_before(BIG if head[at] < head[at + 1] else EXPLICIT), at, head, size, more)
        return
    yield File(b"", 0, head, size, more)
    yield File(_PREAMBLE, 0, head, size, more)
    yield File(b"", 128, head, size, more)


def inflated(content: bytes) -> bytes:
    """Return the inflated data set of a deflated file, by whose positions BulkDataURI of such a file goes."""
    return _inflated(_meta(content)[1], content, len(content), lambda offset, length: b"")


def _before(syntax: bytes) -> bytes:
    return _PREAMBLE + _PREFIX + pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax


def _meta(head: bytes) -> tuple[bytes, int]:
    """Return the transfer syntax that a file states, and where its data set begins; 0 if that cannot be told."""
    syntax, at = b"", 132
    try:
        while head[at : at + 2] == b"\2\0":
            tag, _, begin, length = element(head, at, len(head), True, {})
            at = begin + length
            if tag == _SYNTAX:
                syntax = head[begin:at].rstrip(b"\0 ")
    except (Odd, StructError, IndexError):
        return syntax, 0
    return syntax, at if at + 2 <= len(head) else 0


def _inflated(at: int, head: bytes, size: int, more: More) -> bytes:
    """Return the inflated rest of a file, as much as is good."""
    plain, stream = bytearray(), None
    while at < size and len(plain) < MOST_INFLATED:
        piece = head[at : at + _PIECE] or more(at, min(_PIECE, size - at))
        at += len(piece)
        if not piece:
            break
        stream = stream or zlib.decompressobj(15 if _is_zlib(piece) else -15)
        try:
            plain += stream.decompress(piece, MOST_INFLATED - len(plain))
        except zlib.error:
            break
        if stream.eof:
            break
    return bytes(plain)


def _is_zlib(piece: bytes) -> bool:
    """Return whether a stream has the header of zlib: the standard wants none, and no raw stream begins like it."""
    return piece[0] & 15 == 8 and int.from_bytes(piece[:2], "big") % 31 == 0
