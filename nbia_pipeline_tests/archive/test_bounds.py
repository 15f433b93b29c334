"""How long an answer may be and how slowly it may come; what an honest archive may do is still taken."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest

from nbia_pipeline.archive import ArchiveUnreachable, BadAnswer, NbiaClient, answers, bounds
from nbia_pipeline.archive.answers import read_json
from nbia_pipeline.archive.conformance import collect
from nbia_pipeline.schema import shapes
from nbia_pipeline_tests.helpers.archives import FAST, TestArchive
from nbia_pipeline_tests.helpers.faults import answer
from nbia_pipeline_tests.helpers.sockets import answering_with

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
LIST = b'[{"Collection":"A"}]'
LIST_CALL = "getCollectionValues"
ONCE = replace(FAST, tries=1)
Step = bytes | float


def sent_in(steps: Callable[[], Iterable[Step]]) -> contextlib.AbstractContextManager[int]:
    """Answer every request with some bytes and seconds of silence in between; yields the port."""

    def deed(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        with contextlib.suppress(OSError):
            for step in steps():
                time.sleep(step) if isinstance(step, float) else connection.sendall(step)

    return answering_with(deed)


def dripping(*before: Step) -> Iterator[Step]:
    yield from before
    for _ in range(500):
        yield b"a"
        yield 0.02


def collections(port: int) -> list[str]:
    with NbiaClient(f"http://127.0.0.1:{port}/nbia-api", api="v4", options=ONCE) as client:
        return client.collection_values()


DRIPS: dict[str, tuple[Step, ...]] = {
    "status line": (b"HTTP/1.1 200 ",),
    "headers": (HEAD + b"X: ",),
    "other answers": (b"HTTP/1.1 100 Continue\r\nX: ",),
    "body": (HEAD + b"\r\n[",),
    "body of known length": (HEAD + b"Content-Length: 9999\r\n\r\n[",),
    "chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n[",),
    "chunk size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;",),
    "after much": (HEAD + b"\r\n[" + b" " * 100_000,),
    "error": (b"HTTP/1.1 500 X\r\n\r\n",),
}


@pytest.mark.parametrize("before", DRIPS.values(), ids=DRIPS)
def test_an_answer_that_drips_is_silence(monkeypatch: pytest.MonkeyPatch, before: tuple[Step, ...]) -> None:
    monkeypatch.setattr(bounds, "FLOOR_SECONDS", 0.2)
    with sent_in(lambda: dripping(*before)) as port, pytest.raises(ArchiveUnreachable, match="timed out") as caught:
        collections(port)
    assert caught.value.overloaded


@pytest.mark.parametrize(("call", "path"), [("token", "oauth/token"), ("zip", "getImageWithMD5Hash")])
def test_a_token_and_a_zip_that_drip_are_silence(monkeypatch: pytest.MonkeyPatch, call: str, path: str) -> None:
    monkeypatch.setattr(bounds, "FLOOR_SECONDS", 0.2)
    api = "v2" if call == "token" else "v4"
    with (
        sent_in(lambda: dripping(HEAD + b"\r\nPK\3\4" + bytes(600))) as port,
        pytest.raises(ArchiveUnreachable, match="timed out") as caught,
        NbiaClient(f"http://127.0.0.1:{port}/nbia-api", api=api, options=ONCE) as client,
    ):
        client.image_with_md5("1.1", lambda chunks: sum(map(len, chunks)))
    assert caught.value.endpoint.endswith(path)


HONEST: dict[str, tuple[Step, ...]] = {
    "thinks before the answer": (0.5, HEAD + b"\r\n" + LIST),
    "thinks before the body": (HEAD, b"\r\n", 0.5, LIST),
    "thinks before both": (0.3, HEAD + b"\r\n", 0.3, LIST),
    "few last bytes after a pause": (HEAD + b"\r\n[" + b" " * 5000, 0.5, LIST[1:]),
    "a kilobyte after each pause": (HEAD + b"\r\n[", 0.15, b" " * 1000, 0.15, b" " * 1000, 0.15, LIST[1:]),
    "few bytes, soon": (HEAD + b"\r\n", *(bytes([byte]) for byte in LIST)),
}


@pytest.mark.parametrize("steps", HONEST.values(), ids=HONEST)
def test_an_archive_that_thinks_is_waited_for(monkeypatch: pytest.MonkeyPatch, steps: tuple[Step, ...]) -> None:
    monkeypatch.setattr(bounds, "FLOOR_SECONDS", 0.1)
    with sent_in(lambda: steps) as port:
        assert collections(port) == ["A"]


def raw_deflate(content: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(content) + made.flush()


ENCODED = {
    "gzip": ("gzip", gzip.compress(LIST)),
    "x-gzip": ("X-GZIP", gzip.compress(LIST)),
    "gzip in parts": ("gzip", gzip.compress(LIST[:5]) + gzip.compress(b"") + gzip.compress(LIST[5:])),
    "gzip and something behind": ("gzip", gzip.compress(LIST) + b"\0\0\0\0"),
    "deflate": ("deflate", zlib.compress(LIST)),
    "raw deflate": ("deflate", raw_deflate(LIST)),
    "no encoding at all": ("utf-8", LIST),
    "identity": ("identity, gzip", gzip.compress(LIST)),
    "longer than a chunk": ("gzip", gzip.compress(LIST[:1] + b" " * 3_000_000 + LIST[1:])),
}


@pytest.mark.parametrize(("encoding", "body"), ENCODED.values(), ids=ENCODED)
def test_what_is_encoded_is_read(archive: TestArchive, encoding: str, body: bytes) -> None:
    archive.faults.inject(LIST_CALL, answer(200, body, content_encoding=encoding))
    with archive.client() as client:
        assert client.collection_values() == ["A"]


@pytest.mark.parametrize("body", [gzip.compress(LIST)[:-9], gzip.compress(LIST)[:12], zlib.compress(LIST)[:-5]])
def test_what_is_encoded_and_cut_is_no_shorter_list(archive: TestArchive, body: bytes) -> None:
    encoding = "gzip" if body.startswith(b"\x1f\x8b") else "deflate"
    archive.faults.inject(LIST_CALL, answer(200, body, content_encoding=encoding), times=9)
    with archive.client() as client, pytest.raises(BadAnswer, match="ends early: the answer was truncated, try again"):
        client.collection_values()
    assert archive.faults.count(LIST_CALL) == FAST.tries


def test_an_encoding_that_nobody_asked_for_is_named(archive: TestArchive) -> None:
    archive.faults.inject(LIST_CALL, answer(200, b"\x1b", content_encoding="br"))
    with archive.client() as client, pytest.raises(BadAnswer, match="encoded as 'br', and gzip, deflate was asked for"):
        client.collection_values()


def test_an_answer_that_is_too_long_shows_its_beginning_unless_it_may_be_a_token(archive: TestArchive) -> None:
    page = b"<html>sign in " + b"secret" * 500_000
    archive.faults.inject("getM5HashForImage", answer(200, page), times=9)
    with archive.client() as client, pytest.raises(BadAnswer, match=r"longer than 4\.1 kB.*'<html>sign in"):
        client.md5_of_image("1")
    archive.faults.inject("token", answer(200, page), times=9)
    with archive.client() as client, pytest.raises(BadAnswer, match=r"longer than 1\.0 MB") as caught:
        client.collection_values()
    assert "secret" not in str(caught.value) and caught.value.endpoint == "/oauth/token"


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_with_blanks_between_its_rows_may_be_longer_than_a_row(
    monkeypatch: pytest.MonkeyPatch, indent: int | None
) -> None:
    monkeypatch.setattr(bounds, "PIECE_BYTES", 1000)
    monkeypatch.setattr(bounds, "ROW_BYTES", 4000)
    uids = [f'1.2.{n}}} , {{ "' for n in range(1000)]
    body = json.dumps([{"SOPInstanceUID": uid} for uid in uids], indent=indent).encode()
    chunks = [body[at : at + 300] for at in range(0, len(body), 300)]
    assert read_json(chunks, shapes.SOP_INSTANCE_UIDS)["SOPInstanceUID"].to_pylist() == uids
    long = json.dumps([{"SOPInstanceUID": "x" * 5000}]).encode()
    with pytest.raises(BadAnswer, match=r"a row, or blanks, of more than 4\.0 kB"):
        read_json([long[at : at + 300] for at in range(0, len(long), 300)], shapes.SOP_INSTANCE_UIDS)


def test_what_does_not_fit_is_listed_up_to_a_bound_and_counted_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_FOUND", 3)
    rows = [{"SeriesInstanceUID": f"1.{n}", "Collection": "C", "ImageCount": "many"} for n in range(10)]
    with collect() as found:
        table = read_json([json.dumps(rows).encode()], shapes.SERIES_V2)
    assert table.num_rows == 10
    assert [one.key for one in found] == ["1.0", "1.1", "1.2", None]
    assert found[-1].why == "7 more values or rows do not fit either"
