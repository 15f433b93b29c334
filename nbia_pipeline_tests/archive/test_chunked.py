"""A body in chunked encoding is what http.client makes of it, however it is cut and arrives, and never ends early."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline.archive import ArchiveUnreachable, NbiaClient
from nbia_pipeline.archive.bounds import CHUNK_BYTES
from nbia_pipeline.archive.connections import _LONGEST_LINE, _Response
from nbia_pipeline_tests.helpers.archives import FAST
from nbia_pipeline_tests.helpers.sockets import answering_with

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Wire(io.RawIOBase):
    """A connection that delivers an answer in pieces, and stands for its own socket."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def makefile(self, _: str, buffering: int = -1) -> Any:
        return self if buffering == 0 else io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._pieces, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def contents(
    kind: Callable[..., http.client.HTTPResponse], sent: bytes, arriving: int = 1 << 20, asked: int = CHUNK_BYTES
) -> bytes:
    """Return the body of an answer that arrives, and is asked for, in so many bytes at a time."""
    answer = kind(Wire(sent[at : at + arriving] for at in range(0, len(sent), arriving)))
    answer.begin()
    read = b"".join(iter(lambda: answer.read(asked), b""))
    assert answer.isclosed()
    return read


frames = st.lists(st.binary(min_size=1, max_size=40) | st.integers(1, 20_000).map(bytes), max_size=8)
sizes = st.sampled_from([b"%x", b"%X", b"%04x", b"%x ", b"%x;a=b", b'%x ; a="\r;"', b"%x;" + b"y" * 3000])
trailers = st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ: 0\r\n"])
few = st.sampled_from([1, 2, 3, 7, 1000, 8192, 1 << 20])


@given(frames, st.data(), trailers, few, few)
def test_contents_are_those_of_http_client(
    parts: list[bytes], data: st.DataObject, trailer: bytes, arriving: int, asked: int
) -> None:
    size = data.draw(sizes)
    encoded = b"".join(b"%s\r\n%s\r\n" % (size % len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"
    asked = max(asked, len(encoded) // 500)
    found = contents(_Response, HEAD + encoded, arriving, asked)
    assert found == b"".join(parts) == contents(http.client.HTTPResponse, HEAD + encoded, arriving, asked)

    end = data.draw(st.integers(0, len(encoded) - 1))
    whole = len(encoded) - len(trailer) - 2  # up to the line of the last chunk
    if end >= whole:
        assert contents(_Response, HEAD + encoded[:end], arriving, asked) == b"".join(parts)
    else:
        with pytest.raises(http.client.HTTPException):
            contents(_Response, HEAD + encoded[:end], arriving, asked)


@pytest.mark.parametrize("large", [CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
@pytest.mark.parametrize("chunk", [1, 5000, 8192, 1 << 21])
def test_a_large_body_is_read_whole(large: int, chunk: int) -> None:
    large = min(large, 40_000 * chunk)
    body = (bytes(range(256)) * (large // 256 + 1))[:large]
    pieces = [body[at : at + chunk] for at in range(0, large, chunk)]
    sent = HEAD + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    assert contents(_Response, sent, 100_000) == body
    assert contents(_Response, sent, 100_000, 1 << 20) == body


BAD = {
    "contents longer than stated": b"2\r\nabc\r\n0\r\n\r\n",
    "contents shorter than stated": b"4\r\nabc\r\n0\r\n\r\n",
    "sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "below zero": b"-1\r\nabc\r\n0\r\n\r\n",
    "prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "no size": b"\r\nabc\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"1" * 17 + b"\r\nabc",
    "line without an end": b"3;" + b"x" * (2 * _LONGEST_LINE),
    "trailer without an end": b"0\r\nX: " + b"x" * (2 * _LONGEST_LINE),
}


@pytest.mark.parametrize("arriving", [100, 1 << 20])
@pytest.mark.parametrize("encoded", BAD.values(), ids=BAD)
def test_what_is_no_chunked_encoding_is_an_error(encoded: bytes, arriving: int) -> None:
    with pytest.raises(http.client.HTTPException):
        contents(_Response, HEAD + encoded, arriving)


def test_the_connection_serves_the_next_request() -> None:
    served: list[list[bytes]] = []

    def deed(connection: socket.socket) -> None:
        served.append([])
        with contextlib.suppress(OSError):
            while request := connection.recv(1 << 16):
                served[-1].append(request.split()[1])
                connection.sendall(HEAD + b"6\r\nPK\3\4ab\r\n3;x\r\ncde\r\n0\r\nX: y\r\n\r\n")

    with (
        answering_with(deed) as port,
        NbiaClient(f"http://127.0.0.1:{port}/nbia-api", api="v4", options=FAST) as client,
    ):
        for uid in ("1.1", "1.2", "1.3"):
            assert client.image_with_md5(uid, b"".join) == b"PK\3\4abcde"
    assert [[b"1.3" in path for path in paths] for paths in served] == [[False, False, True]]


def test_a_body_that_is_cut_is_an_error_of_the_archive() -> None:
    def deed(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(HEAD + b"6\r\nPK\3\4ab\r\n3\r\ncde\r\n0")

    with (
        answering_with(deed) as port,
        NbiaClient(f"http://127.0.0.1:{port}/nbia-api", api="v4", options=FAST) as client,
        pytest.raises(ArchiveUnreachable, match="no complete answer"),
    ):
        client.image_with_md5("1.1", b"".join)
