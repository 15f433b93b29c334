"""The streaming zip reader agrees with the standard library's, however the stream is cut, and notices damage."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbia_pipeline.embedded.api.zip_writer import ZipStream
from nbia_pipeline.embedded.api.zip_writer import pack as deflated
from nbia_pipeline.mirror import zip_stream
from nbia_pipeline.mirror.zip_stream import InvalidZip, stream_entries

Files = list[tuple[str, bytes]]

contents = st.one_of(st.binary(max_size=300), st.integers(0, 70_000).map(lambda n: random.Random(n).randbytes(n)))
names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)
files = st.lists(st.tuples(names, contents), max_size=5, unique_by=lambda f: f[0])


def streamed(entries: Files) -> bytes:
    """Return a zip as the archive writes it: the sizes behind the entries."""
    out = ZipStream()
    body = b"".join(piece for name, data in entries for piece in out.entry(name, deflated(data)))
    return body + out.close()


def with_sizes(entries: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as zipped:
        for name, data in entries:
            zipped.writestr(name, data)
    return target.getvalue()


def cut(body: bytes, seed: int) -> Iterator[bytes]:
    """Yield the body in pieces of all sizes, empty ones among them."""
    random_ = random.Random(seed)
    at = 0
    while at < len(body):
        size = random_.choice([0, 1, 2, 3, 7, 100, 5000, 100_000])
        yield body[at : at + size]
        at += size


def read(body: bytes, seed: int = 0) -> tuple[Files, list[bool | None]]:
    found, intact = [], []
    for entry in stream_entries(cut(body, seed)):
        found.append((entry.name, b"".join(entry)))
        intact.append(entry.intact)
    return found, intact


@given(files, st.integers())
def test_what_was_packed_comes_out_however_the_stream_is_cut(entries: Files, seed: int) -> None:
    assert read(streamed(entries), seed) == (entries, [True] * len(entries))
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        assert read(with_sizes(entries, method), seed) == (entries, [True] * len(entries))


@given(files, st.data())
def test_a_stream_that_ends_early_is_never_whole(entries: Files, data: st.DataObject) -> None:
    body = streamed(entries)
    end = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(InvalidZip):
        read(body[:end])


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read_but_never_crash(body: bytes) -> None:
    try:
        found, _ = read(body)
    except InvalidZip:
        return
    assert found == [] and zipfile.is_zipfile(io.BytesIO(body))


@settings(max_examples=300)
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_changes_nothing(at: int, bit: int) -> None:
    entries = [("a", random.Random(1).randbytes(2000)), ("b", b"b" * 3000), ("c", bytes(range(256)) * 8)]
    body = bytearray(streamed(entries))
    body[at % len(body)] ^= 1 << bit
    try:
        found, intact = read(bytes(body))
    except InvalidZip:
        return
    assert [data for _, data in found] == [data for _, data in entries] or not all(intact)


def test_an_entry_that_nobody_reads_does_not_stop_the_next() -> None:
    entries = [("a", b"a" * 5000), ("b", b"b" * 5000)]
    assert [entry.name for entry in stream_entries(cut(streamed(entries), 5))] == ["a", "b"]


def test_an_entry_beyond_four_gigabytes_is_read_with_wide_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_stream, "_FULL", 1000)  # instead of 2**32 - 1
    data = bytes(5000)
    body = bytearray(streamed([("far", data)]))
    packed = deflated(data)
    narrow = struct.pack("<4s3I", b"PK\7\x08", packed.crc, len(packed.data), 5000)
    wide = struct.pack("<4sIQQ", b"PK\7\x08", packed.crc, len(packed.data), 5000)
    assert body.count(narrow) == 1
    assert read(bytes(body.replace(narrow, wide))) == ([("far", data)], [True])


def test_a_zip_of_gigabytes_as_the_standard_library_writes_it_is_read() -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zipped, zipped.open("wide", "w", force_zip64=True) as f:
        f.write(b"x" * 10_000)
    assert read(target.getvalue()) == ([("wide", b"x" * 10_000)], [True])


def test_a_small_piece_that_unpacks_to_much_comes_in_bounded_pieces() -> None:
    body = streamed([("bomb", bytes(50 << 20))])
    sizes = [len(piece) for entry in stream_entries([body]) for piece in entry]
    assert sum(sizes) == 50 << 20
    assert max(sizes) <= zip_stream.PIECE_BYTES


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "the stream ended"),
        (b"<html>sign in</html>", "this is not a zip"),
        (with_sizes([("a", b"1")]) + b"more", "bytes follow"),
        (with_sizes([("a", b"1")]).replace(b"PK\1\2", b"PK\1\3"), "this is not a zip"),
    ],
)
def test_what_is_no_zip_is_told(body: bytes, told: str) -> None:
    with pytest.raises(InvalidZip, match=told):
        read(body)


def test_a_directory_that_lists_other_files_is_told() -> None:
    body = with_sizes([("aaaa", b"1"), ("bbbb", b"2")])
    at = body.rindex(b"bbbb")
    with pytest.raises(InvalidZip, match="lists 2 files, 2 arrived"):
        read(body[:at] + b"cccc" + body[at + 4 :])


def test_an_encrypted_entry_is_told() -> None:
    body = bytearray(with_sizes([("a", b"1")]))
    body[6] |= 1
    with pytest.raises(InvalidZip, match="never uses"):
        read(bytes(body))


def test_the_standard_library_s_zlib_serves_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_stream, "zlib", zlib)
    monkeypatch.setattr(zip_stream, "DeflateError", zlib.error)
    entries = [("a", random.Random(2).randbytes(50_000)), ("b", b"")]
    assert read(streamed(entries), 3) == (entries, [True, True])
    with pytest.raises(InvalidZip, match="damaged"):
        body = streamed([("a", b"abc" * 1000)])
        read(body[:31] + b"\xff" * 10 + body[41:])
