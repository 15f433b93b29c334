"""The kinds of answer that no archive would send, each as the bytes of it, made while they are sent."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Any

Pieces = Iterable[bytes]
HUGE = (10**9, 10**13)
"""What an archive may announce of a series, in images and in bytes."""


@dataclass(frozen=True)
class Kind:
    """One kind of answer.

    Attributes:
        call: what is asked for.
        at: how the path ends that answers so; others answer as they should.
        answer: makes the answer, from its status line on, given about how many bytes it may have decoded.
        says: what the outcome says, as a regular expression.
        figures: what is announced of the series, in images and in bytes.
    """

    call: str
    at: str
    answer: Callable[[int], Pieces]
    says: str
    figures: tuple[int, int] = (1, 1000)


def much(piece: bytes, size: int) -> Pieces:
    """Repeat a piece up to about `size` bytes."""
    block = piece * max(1, (1 << 18) // len(piece))
    return repeat(block, size // len(block) + 1)


def ok(*body: Pieces, status: str = "200 OK", headers: str = "") -> Pieces:
    return chain([f"HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n".encode()], *body)


def deflated(piece: bytes, size: int, level: int = 9) -> Pieces:
    """Yield raw deflate of many copies of a piece, without an end; cheap to make, however large."""
    plain = piece * max(1, (1 << 20) // len(piece))
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15)
    block = deflate.compress(plain) + deflate.flush(zlib.Z_FULL_FLUSH)
    return repeat(block, size // len(plain) + 1)


GZIP_HEAD = b"\x1f\x8b\x08" + bytes(7)


def gzipped(piece: bytes, size: int) -> Pieces:
    return chain([GZIP_HEAD], deflated(piece, size))


def twice_gzipped(piece: bytes, size: int) -> bytes:
    once = b"".join(gzipped(piece, size))
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    return deflate.compress(once) + deflate.flush()


def page(status: str, size: int) -> Pieces:
    return ok(much(b"page ", size), status=status)


def encoded(encoding: str, *body: Pieces) -> Pieces:
    return ok(*body, headers=f"Content-Encoding: {encoding}\r\n")


def chunked(*body: Pieces) -> Pieces:
    return ok(*body, headers="Transfer-Encoding: chunked\r\n")


# --- zips


def local(name: bytes, *, flags: int = 0, method: int = 0, crc: int = 0, sizes: tuple[int, int] = (0, 0)) -> bytes:
    return struct.pack("<4s5H3I2H", b"PK\3\4", 20, flags, method, 0, 0, crc, *sizes, len(name), 0) + name


def stored(name: bytes, content: bytes = b"") -> bytes:
    return local(name, crc=zlib.crc32(content), sizes=(len(content), len(content))) + content


def central(name: bytes, extra: int = 0, comment: int = 0) -> bytes:
    head = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), extra, comment, 0, 0, 0, 0)
    return head + name + bytes(extra + comment)


END = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)


def a_file(name: bytes) -> bytes:
    """Return the beginning of a deflated entry whose sizes follow it."""
    return local(name, flags=8, method=8)


def md5_list(*content: Pieces) -> Pieces:
    return ok([a_file(b"md5hashes.csv")], *content)


def unique(size: int) -> Iterator[bytes]:
    """Yield deflated lines, no two of which have the same name."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    for block in range(size // (1 << 20) + 1):
        lines = b"".join(b"%d,a\n" % n for n in range(block * 100_000, (block + 1) * 100_000))
        yield deflate.compress(lines) + deflate.flush(zlib.Z_FULL_FLUSH)


def inflating_dicom() -> bytes:
    """Return a file that states to be deflated DICOM, and inflates to 1 GB."""
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = struct.pack("<2H2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    return bytes(128) + b"DICM" + meta + b"".join(deflated(bytes(1 << 20), 1 << 30)) + b"\3\0"


def whole_zip(name: bytes, content: bytes) -> bytes:
    return stored(b"1.dcm", b"no image") + stored(name, content) + central(b"1.dcm") + central(name) + END


def many_entries(size: int) -> Iterator[bytes]:
    for start in range(0, size // 10_000, 1000):
        yield b"".join(stored(b"%d" % n) for n in range(start, start + 1000))


# --- the kinds

ROW = b'{"SeriesInstanceUID":"1.1","StudyInstanceUID":"1","PatientID":"P","Collection":"C"'
LONG = "longer than"
TOO_LONG_ROW = r"a row, or blanks, of more than 16\.8 MB"
ENDLESS = "headers or chunks without an end"


def many_keys(size: int) -> bytes:
    return b"".join(b',"k%d":1' % n for n in range(200_000))


def long_keys(count: int) -> Iterator[bytes]:
    return (b',{"%s":1}' % (b"%06d" % n * 10_000) for n in range(count))


def rows_of_keys(count: int) -> bytes:
    return b",".join(ROW + b',"key%d":1}' % n for n in range(count))


def kinds() -> dict[str, Kind]:
    """Return all kinds by name."""
    found: dict[str, Kind] = {}

    def add(name: str, call: str, at: str, answer: Callable[[int], Pieces], says: str, **more: Any) -> None:
        found[name] = Kind(call, at, answer, says, **more)

    # tokens, redirects, errors
    add("token", "v2 series", "token", lambda n: ok([b'{"access_token":"'], much(b"a", n)), LONG)
    add("token-gzip", "v2 series", "token", lambda n: encoded("gzip", gzipped(b"{", n)), LONG)
    add("token-depth", "v2 series", "token", lambda n: ok([b"[" * 1_000_000]), "did not answer with a JSON object")
    add(
        "redirect",
        "collections",
        "Values",
        lambda n: ok(much(b"x", n), status="302 Found", headers="Location: /redirect/nbia-api/elsewhere/Values\r\n"),
        "in a circle",
    )
    add(
        "login-redirect",
        "v2 series",
        "token",
        lambda n: ok(much(b"x", n), status="302 Found", headers="Location: /x\r\n"),
        LONG,
    )
    for status in ("401 Unauthorized", "400 Bad", "404 Not Found", "500 Error", "503 Busy", "418 Teapot"):
        code = status[:3]
        add(
            f"error-{code}",
            "collections",
            "Values",
            partial(page, status),
            f"status {code}",
        )
    add(
        "error-gzip",
        "collections",
        "Values",
        lambda n: ok(gzipped(b"p", n), status="500 X", headers="Content-Encoding: gzip\r\n"),
        "status 500",
    )
    # what is around a body
    add("header", "collections", "Values", lambda n: chain([b"HTTP/1.1 200 OK\r\nX: "], much(b"x", n)), "line|header")
    add("headers", "collections", "Values", lambda n: chain([b"HTTP/1.1 200 OK\r\n"], much(b"X: y\r\n", n)), "headers")
    add("status-line", "collections", "Values", lambda n: much(b"x", n), "no complete answer")
    add("continue", "collections", "Values", lambda n: much(b"HTTP/1.1 100 Continue\r\n\r\n", n), ENDLESS)
    add("chunk-size", "collections", "Values", lambda n: chunked(much(b"0", n)), "no complete answer")
    add(
        "chunk-extensions",
        "fetch",
        "getImageWithMD5Hash",
        lambda n: chunked(much(b"1;" + b"x" * 60_000 + b"\r\nP\r\n", n)),
        ENDLESS,
    )
    add("trailers", "collections", "Values", lambda n: chunked([b"2\r\n[]\r\n0\r\n"], much(b"X: y\r\n", n)), ENDLESS)
    # small answers
    add("digest", "digest", "Image", lambda n: ok(much(b"a", n)), LONG)
    add("digest-gzip", "digest", "Image", lambda n: encoded("gzip", gzipped(b"a", n)), LONG)
    add("size", "size", "Size", lambda n: ok([b"["], much(b'{"TotalSizeInBytes":1,"ObjectCount":1},', n)), LONG)
    add("csv", "v2 metadata", "Metadata2", lambda n: ok(much(b"a,b\n", n)), LONG)
    add("csv-cells", "v2 metadata", "Metadata2", lambda n: ok([b'"Series UID"\n'], much(b",\n", 8 << 20)), "cells")
    # lists
    add("list-string", "series", "Series", lambda n: ok([b"[" + ROW[:-1]], much(b"a", n)), TOO_LONG_ROW)
    add("list-number", "series", "Series", lambda n: ok([b"[" + ROW + b',"ImageCount":'], much(b"1", n)), TOO_LONG_ROW)
    add(
        "list-digits",
        "series",
        "Series",
        lambda n: ok([b"[" + ROW + b',"ImageCount":'], much(b"1", 10 << 20), [b"}]"]),
        "ImageCount",
    )
    add("list-blanks", "series", "Series", lambda n: ok(much(b" ", n)), TOO_LONG_ROW)
    add("list-blanks-behind", "series", "Series", lambda n: ok([b"[" + ROW + b"}]"], much(b"\n", n)), TOO_LONG_ROW)
    add("list-bomb", "series", "Series", lambda n: encoded("gzip", [GZIP_HEAD], deflated(b"[" * 5, n)), TOO_LONG_ROW)
    add("list-deflate", "series", "Series", lambda n: encoded("deflate", deflated(b" ", n)), TOO_LONG_ROW)
    add(
        "list-gzip-in-gzip", "series", "Series", lambda n: encoded("gzip, gzip", [twice_gzipped(b" ", n)]), "encoded as"
    )
    add(
        "list-gzip-of-gzip", "series", "Series", lambda n: encoded("gzip", [twice_gzipped(b" ", n)]), "not a JSON array"
    )
    add("list-brotli", "series", "Series", lambda n: encoded("br", much(b"\x1b", n)), "encoded as 'br'")
    add("list-zstd", "series", "Series", lambda n: encoded("zstd", much(b"\x28\xb5\x2f\xfd", n)), "encoded as 'zstd'")
    nothing = b"\x00\x00\x00\xff\xff"
    add("list-of-nothing", "series", "Series", lambda n: encoded("gzip", [GZIP_HEAD], much(nothing, n)), "of nothing")
    empty_part = GZIP_HEAD + b"\3\0" + bytes(8)
    add("list-empty-parts", "series", "Series", lambda n: encoded("gzip", much(empty_part, n)), "of nothing")
    add(
        "list-depth",
        "series",
        "Series",
        lambda n: ok([b"[" + ROW + b',"x":' + b"[" * 1_000_000 + b"]"]),
        "not JSON|values|row",
    )
    add(
        "list-depth-key",
        "series",
        "Series",
        lambda n: ok([b'[{"Collection":' + b"[" * 1_000_000 + b"]"]),
        "not JSON|values|row",
    )
    add("list-objects", "series", "Series", lambda n: ok([b"[" + ROW + b',"x":['], much(b"{},", n)), TOO_LONG_ROW)
    add(
        "list-values",
        "series",
        "Series",
        lambda n: ok([b"[" + ROW + b',"x":['], much(b"{},", 12 << 20), [b"0]}]"]),
        "values in",
    )
    add("list-keys", "series", "Series", lambda n: ok([b"[" + ROW + many_keys(n) + b"}]"]), "different keys")
    add("list-keys-of-rows", "series", "Series", lambda n: ok([b"[" + rows_of_keys(100_000) + b"]"]), "different keys")
    add(
        "list-long-keys",
        "series",
        "Series",
        lambda n: ok([b"[" + ROW + b"}", *long_keys(1000), b"]"]),
        "none of the keys",
    )
    add("list-nulls", "series", "Series", lambda n: ok([b"["], much(b"null,", n)), TOO_LONG_ROW)
    odd = b'{"SeriesInstanceUID":[],"Collection":0},'
    add(
        "list-odd-rows",
        "series",
        "Series",
        lambda n: ok([b"["], much(odd, 4_000_000), [ROW + b"}]"]),
        "SeriesInstanceUID|1.1",
    )
    add("instances", "instances", "UIDs", lambda n: ok([b"["], much(b'{"SOPInstanceUID":"1"},', n)), LONG)
    # files
    add("single", "single", "getSingleImage", lambda n: ok([bytes(128) + b"DICM"], much(b"\0", n)), "larger than")
    add("single-gzip", "single", "getSingleImage", lambda n: encoded("gzip", gzipped(b"\0", n)), "larger than")
    zip_ = "getImageWithMD5Hash"
    one = stored(b"1")

    def add_zip(name: str, answer: Callable[[int], Pieces], says: str, figures: tuple[int, int] = (1, 1000)) -> None:
        add(f"zip-{name}", "fetch", zip_, answer, f"quarantined: .*({says})", figures=figures)

    add_zip("directory", lambda n: ok([one], much(central(b"1"), n)), "lists more than")
    add_zip("directory-extra", lambda n: ok([one], much(central(b"1", 65_000, 65_000), n)), "lists more than")
    add_zip(
        "directory-around",
        lambda n: ok(many_entries(10_000_000), much(central(b"1", 65_000, 65_000), n)),
        "around its files",
        HUGE,
    )
    add_zip("directory-name", lambda n: ok([one], much(central(b"x" * 60_000), n)), "a name of 60000")
    add_zip(
        "wide-end",
        lambda n: ok([one, central(b"1"), b"PK\6\6" + struct.pack("<Q", 3 << 30)], much(b"\0", n)),
        "comes next",
    )
    add_zip(
        "wide-end-gzip",
        lambda n: encoded(
            "gzip", gzipped(one + central(b"1") + b"PK\6\6" + struct.pack("<Q", 3 << 30) + bytes(1 << 20), n)
        ),
        "comes next|follow",
    )
    add_zip("trailer", lambda n: ok([whole_zip(b"1", b"")], much(b"x", n)), "bytes follow the end")
    add_zip("name", lambda n: ok(much(stored(b"x" * 65_000), n)), "a name of 65000")
    add_zip("entries", lambda n: ok(many_entries(n)), "more than 1002 files")
    add_zip("entries-announced", lambda n: ok(many_entries(n)), "truncated", HUGE)
    add_zip("bomb", lambda n: ok([a_file(b"1")], deflated(bytes(1000), n)), "larger than")
    add_zip(
        "bomb-gzip",
        lambda n: encoded("gzip", gzipped(b"PK\3\4" + bytes(1000), n)),
        "larger than|truncated|comes next|path",
    )
    add_zip("of-nothing", lambda n: ok([a_file(b"1")], much(nothing, n)), "unpacks to nothing")
    add_zip("descriptors", lambda n: ok([local(b"1", flags=8)], much(b"PK\7\x08", n)), "larger than")
    add_zip("license", lambda n: ok([a_file(b"LICENSE")], deflated(b"x", n)), "larger than")
    add_zip("md5-rows", lambda n: md5_list(unique(n)), "more than 1002 lines")
    add_zip("md5-rows-announced", lambda n: md5_list(unique(n)), "more than 201000 lines", (100_000, 10**13))
    add_zip("md5-line", lambda n: md5_list(deflated(b"a,", n)), "larger than")
    add_zip("md5-line-announced", lambda n: md5_list(deflated(b"a,", n)), "truncated|larger", HUGE)
    add_zip("md5-quote", lambda n: md5_list(deflated(b'"a', n)), "larger than")
    add_zip("md5-quote-announced", lambda n: md5_list(deflated(b'"a\n', n)), "more than 1048576 lines", HUGE)
    field_ = b'"' + b"x" * 200_000 + b'",a\n'
    add_zip("md5-field", lambda n: ok([whole_zip(b"md5hashes.csv", b"1,2\n" + field_)]), "1.dcm: it is not DICOM")
    add_zip(
        "md5-carriage-return", lambda n: ok([whole_zip(b"md5hashes.csv", b'a\rb,c\r"d\r')]), "1.dcm: it is not DICOM"
    )
    add_zip(
        "inflating-dicom",
        lambda n: ok([whole_zip(b"2.dcm", inflating_dicom())]),
        "2.dcm: it has no SOPInstanceUID within",
        (1, 2_000_000),
    )
    add("instances-empty", "instances", "UIDs", lambda n: ok([b'[{"SOPInstanceUID":""}]']), r"^\[\]$")
    add("annotations", "annotations", "getDCMImage", lambda n: ok(many_entries(n)), "truncated")
    add("annotations-list", "annotations", "getDCMImage", lambda n: md5_list(deflated(b"x", n)), "more than")
    return found
