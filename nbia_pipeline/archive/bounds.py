"""How much an answer may have, and how slowly it may come; whatever is sent, memory and time stay bounded.

What is encoded is decoded here and in small pieces, so that a few bytes that inflate to gigabytes take no memory. The
decoders of urllib3 are not used: before 2.6 they inflate whatever arrived at once.
"""

from __future__ import annotations

import codecs
import http.client
import io
import itertools
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nbia_pipeline.archive.errors import ArchiveError, BadAnswer
from nbia_pipeline.text import size_text

CHUNK_BYTES = 1 << 18
ZIP_CHUNK_BYTES = 1 << 20
"""Most files of a series are then in one chunk as a whole: what is in two has to be joined."""

# --- how much a kind of answer may have, in bytes after decoding
TOKEN_BYTES = 1 << 20
DIGEST_BYTES = 1 << 12
EXCERPT_BYTES = 1 << 12
"""What is read of an answer that is an error; of a redirect and of a logout nothing is."""
CSV_BYTES = 1 << 24
FEW_ROWS_BYTES = 1 << 24
"""A list about one series or a few hundred, or of names that are few."""
MANY_ROWS_BYTES = 1 << 25
"""A list about thousands: the instances of a series, the metadata of 5,000 series."""
LIST_BYTES = 1 << 32
NO_BOUND = 1 << 62
"""Of a zip and a file: whoever reads it knows how large the archive announced it."""

# --- how it may come
FLOOR_BYTES = 1000
FLOOR_SECONDS = 60.0
"""Less than so many bytes in so many seconds of waiting count as silence."""
HEAD_BYTES = 1 << 20
"""Status line and headers, those of answers such as 100 included."""
# What chunked encoding may take besides the contents: a chunk of one byte has five or more around it.
_FRAME_TIMES, _FRAME_BYTES = 16, 1 << 20
# So much may arrive of which a decoder makes nothing; what can be compressed at all gets shorter.
_IDLE_BYTES = 1 << 20

PIECE_BYTES = 4 << 20
ROW_BYTES = 16 << 20
"""The longest row, and the most blanks between two of them."""

ENCODINGS = "gzip, deflate"
_GZIP, _DEFLATE = ("gzip", "x-gzip"), ("deflate",)
_OTHERS = ("br", "zstd", "compress", "x-compress")


class Steady(io.RawIOBase):
    """The bytes of one answer as they come from the connection, as long as they do not drip.

    A server may think for as long as the time-out allows before the first byte of its answer, and again before the
    first one of the body. After that it counts as silent where it sends less than 1 kB in a minute of waiting; the
    last bytes may be fewer.

    Args:
        raw: reads from the connection.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._left = HEAD_BYTES
        self.restart()

    def restart(self) -> None:
        """Let the next byte take its time."""
        self._thinking, self._bytes, self._waited = True, 0, 0.0

    def allow(self, contents: int) -> None:
        """Expect so many bytes of contents, and what may be around them."""
        self._left = _FRAME_TIMES * contents + _FRAME_BYTES

    def readinto(self, buffer: Any) -> int:
        """Read what is there, at least one byte; 0 at the end.

        Raises:
            TimeoutError: less than 1 kB came within a minute.
            http.client.HTTPException: headers or chunks have no end.
        """
        overdue = self._waited >= FLOOR_SECONDS
        began = time.monotonic()
        count = self._raw.readinto(buffer) or 0
        if not self._thinking:
            self._waited += time.monotonic() - began
        self._thinking = False
        self._bytes += count
        self._left -= count
        if self._left < 0:
            raise http.client.HTTPException("headers or chunks without an end")
        if self._bytes >= FLOOR_BYTES:
            self._bytes, self._waited = 0, 0.0
        elif overdue and count:
            raise TimeoutError(f"timed out: less than {FLOOR_BYTES} bytes in {FLOOR_SECONDS:.0f} seconds")
        return count

    def readable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the connection's."""
        return self._raw.fileno()

    def close(self) -> None:
        """Close the connection's side of it, too."""
        self._raw.close()
        super().close()


class Body:
    """The body of an answer: decoded, and of bounded length; its reading fails with ArchiveError only.

    Args:
        raw: the answer of urllib3.
        headers: of the answer.
        most: bytes that it may have, decoded.
        explained: makes an error of whatever the layers below raise.
        received: called with the bytes of each piece that was read, before decoding; with 0 at the end.
        piece_bytes: most to read at a time.
    """

    def __init__(
        self,
        raw: Any,
        headers: Mapping[str, str],
        most: int,
        explained: Callable[[Exception], ArchiveError],
        received: Callable[[int], object] = lambda count: None,
        piece_bytes: int = NO_BOUND,
    ) -> None:
        self._raw = raw
        self._headers = headers
        self._most = most
        self._explained = explained
        self._received = received
        self._piece_bytes = piece_bytes

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""
        self._raw.close()

    def release_conn(self) -> None:
        """Give the connection back to its pool."""
        self._raw.release_conn()

    def chunks(self, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yield it in chunks of `size` bytes, the first of which has 256 KiB at most: it may be all that is wanted.

        Those of an encoded one, or where bytes per second are limited, have other sizes, at most that.

        Raises:
            BadAnswer: it is longer than it may be, is encoded in a way that nobody asked for, or ends early.
            ArchiveUnreachable: the connection breaks, or what is encoded is damaged.
        """
        length, start = 0, b""
        for chunk in self._decoded(size):
            start = start or chunk[:EXCERPT_BYTES]
            length += len(chunk)
            if length > self._most:
                raise BadAnswer(
                    f"the answer is longer than {size_text(self._most)}, the most that this call may answer: something "
                    "else may have answered in the archive's place. Try again later; if it stays, check base_url",
                    body=" ".join(start.decode("utf-8", "replace").split()),
                    retryable=self._most <= FEW_ROWS_BYTES,
                    arguments=("base_url",),
                )
            yield chunk

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        """Yield it for ``requests``, whose ``content`` is made of this."""
        return self.chunks()

    def start(self, most: int) -> bytes:
        """Return its first bytes, `most` or fewer."""
        return next(self.chunks(most), b"")

    def _decoded(self, size: int) -> Iterator[bytes]:
        encoding = _encoding(self._headers)
        inflated: _Inflated | None = None
        idle, wanted = 0, min(size, CHUNK_BYTES)
        while encoded := self._read(wanted):
            wanted = size
            if encoding is None:
                yield encoded
                continue
            inflated = inflated or _Inflated(encoding, encoded)
            idle += len(encoded)
            with self._translated():
                for piece in inflated.pieces(encoded, size):
                    idle = 0
                    yield piece
            if idle > _IDLE_BYTES:
                raise BadAnswer(f"the answer is {encoding} of nothing, without an end: check base_url and your proxy")
        if inflated and not inflated.ended:
            raise BadAnswer(f"the {encoding} ends early: the answer was truncated, try again later", retryable=True)

    def _read(self, size: int) -> bytes:
        with self._translated():
            piece = bytes(self._raw.read(min(size, self._piece_bytes), decode_content=False) or b"")
        self._received(len(piece))
        return piece

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ArchiveError:
            raise
        except Exception as e:
            raise self._explained(e) from e


def _encoding(headers: Mapping[str, str]) -> str | None:
    """Return how a body is encoded; what is no encoding, such as ``utf-8``, is passed over."""
    stated = [name.strip().lower() for name in headers.get("Content-Encoding", "").split(",")]
    encodings = [name for name in stated if name in (*_GZIP, *_DEFLATE, *_OTHERS)]
    if not encodings:
        return None
    if len(encodings) > 1 or encodings[0] in _OTHERS:
        raise BadAnswer(
            f"the answer is encoded as {', '.join(encodings)[:80]!r}, and {ENCODINGS} was asked for: check base_url "
            "and your proxy",
            arguments=("base_url",),
        )
    return encodings[0]


class _Inflated:
    """What gzip or deflate unpacks to; gzip may have several parts, and anything behind them."""

    def __init__(self, encoding: str, first: bytes) -> None:
        self._gzip = encoding in _GZIP
        # "deflate" is zlib's format by the standard, and raw from some servers; no raw one begins like zlib's header.
        zlibs = len(first) > 1 and first[0] & 15 == 8 and (first[0] << 8 | first[1]) % 31 == 0
        self._window = 31 if self._gzip else 15 if zlibs else -15
        self._inflate = zlib.decompressobj(self._window)
        self._parts = 0

    @property
    def ended(self) -> bool:
        """Whether nothing is missing."""
        return self._inflate.eof or self._parts > 0

    def pieces(self, encoded: bytes, most: int) -> Iterator[bytes]:
        """Yield what some bytes inflate to, in pieces of at most `most` bytes."""
        full = False
        while encoded or full:
            if self._inflate.eof:
                if not self._gzip:
                    return
                self._inflate, self._parts = zlib.decompressobj(self._window), self._parts + 1
            try:
                piece = self._inflate.decompress(encoded, most)
            except zlib.error:
                if self._parts:  # behind the last part
                    return
                raise
            encoded = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            full = len(piece) == most and not self._inflate.eof
            if piece:
                yield piece


# --- the rows of a list

# Between two objects of the array. A string cannot hold these bytes: its quote would be escaped, or close
# it and be followed by punctuation.
_BETWEEN = re.compile(rb'\},(?=\{"\w)')
_BETWEEN_WITH_BLANKS = re.compile(rb'\}[ \t\r\n]*,(?=[ \t\r\n]*\{[ \t\r\n]*"\w)')
_BLANKS = b" \t\r\n"  # JSON knows no others


def pieces_of_array(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield runs of complete objects of a JSON array, separated by commas, without the array's brackets.

    Raises:
        BadAnswer: it is no array, ends early, or has a row, or blanks, of more than 16 MiB.
    """
    buffer = bytearray()
    opened, enough = False, PIECE_BYTES
    for chunk in _opened(chunks):
        opened = True
        buffer += chunk
        if len(buffer) < enough:
            continue
        if cut := _last_boundary(buffer):
            yield bytes(buffer[:cut])
            del buffer[: cut + 1]
            enough = PIECE_BYTES
        else:
            _expect_no_giant(len(buffer))
            # To look again at each chunk would take the square of the time.
            enough = min(2 * len(buffer), ROW_BYTES + 1)
    if not opened:
        return
    rest = bytes(buffer).rstrip(_BLANKS)
    if not rest.endswith(b"]"):
        raise BadAnswer("the JSON array ends early: the answer was truncated, try again later", retryable=True)
    if rest := rest[:-1].strip(_BLANKS):
        yield rest


def _opened(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what follows the bracket that opens the array; nothing of a body that is blank."""
    chunks, blanks, begun = iter(chunks), 0, b""
    for chunk in chunks:
        begun += chunk
        start = begun.removeprefix(codecs.BOM_UTF8).lstrip(_BLANKS)
        if start.startswith(b"["):
            yield from itertools.chain((start[1:],), chunks)
        elif not codecs.BOM_UTF8.startswith(begun):
            if start:
                raise not_a("a JSON array", start[:300].decode("utf-8", "replace"))
            blanks, begun = blanks + len(begun), b""
            _expect_no_giant(blanks)


def _expect_no_giant(size: int) -> None:
    if size > ROW_BYTES:
        raise BadAnswer(f"the list has a row, or blanks, of more than {size_text(ROW_BYTES)}: check base_url")


def not_a(expected: str, text: str) -> BadAnswer:
    """Return the error of an answer that is something else."""
    start = " ".join(text.split())[:200]
    what = f"the answer is not {expected}, it begins with {start!r}: check base_url"
    if start.startswith("<"):
        what = (
            f"the answer is HTML or XML instead of {expected}: a proxy or a login page may be between you and the "
            f"archive, or base_url may not be that of an NBIA archive; it begins with {start!r}"
        )
    return BadAnswer(what, arguments=("base_url",))


def _last_boundary(buffer: bytearray) -> int:
    """Return the index of the comma after the last complete object but one, or 0."""
    at = len(buffer)
    while (at := buffer.rfind(b'},{"', 0, at)) > 0:
        if _BETWEEN.match(buffer, at):
            return at + 1
    last = 0  # the archive sends no blanks between rows; some proxies and other servers do
    for found in _BETWEEN_WITH_BLANKS.finditer(buffer):
        last = found.end() - 1
    return last
