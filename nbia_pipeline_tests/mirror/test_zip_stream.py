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


@given(st.lists(st.sampled_from([b"PK\7\x08", b"PK\7", b"PK", b"\0", b"abc"]), max_size=60), st.integers())
def test_a_stored_entry_of_unknown_length_may_be_full_of_signatures(parts: list[bytes], seed: int) -> None:
    data = b"".join(parts)
    crc = zlib.crc32(data)
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 8, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    central = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 8, 0, 0, 0, crc, len(data), len(data), 1, *[0] * 6) + b"a"
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central), 0, 0)
    for form in ("<4sIII", "<4sIQQ"):
        descriptor = struct.pack(form, b"PK\7\x08", crc, len(data), len(data))
        assert read(local + data + descriptor + central + end, seed) == ([("a", data)], [True])


NAME = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 2000, 0) + b"x" * 2000
EXTRAS = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 60_000) + b"x" + bytes(60_000)
NOTHING = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 8, 8, 0, 0, 0, 0, 0, 1, 0) + b"x" + b"\0\0\0\xff\xff" * 300_000


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (NAME, "a name of 2000 bytes"),
        (EXTRAS * 20, "far more around its files than they need"),
        (NOTHING, "unpacks to nothing, without an end"),
    ],
)
def test_a_zip_that_is_mostly_wrapping_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(InvalidZip, match=says):
        read(body)


def test_a_zip_of_more_entries_than_any_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_stream, "MOST_ENTRIES", 3)
    entries = [(str(n), b"") for n in range(4)]
    assert len(read(with_sizes(entries[:3]))[0]) == 3
    with pytest.raises(InvalidZip, match="more than 3 entries"):
        read(with_sizes(entries))


def test_a_small_piece_that_unpacks_to_much_comes_in_bounded_pieces() -> None:
    body = streamed([("bomb", bytes(50 << 20))])
    sizes = [len(piece) for entry in stream_entries([body]) for piece in entry]
    assert sum(sizes) == 50 << 20
    assert max(sizes) <= zip_stream.PIECE_BYTES


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "the stream ended"),
        (b"<html>sign in</html>", "neither an entry nor the end comes next"),
        (b" \n" * 2000 + with_sizes([("a", b"1")]), "neither an entry nor the end"),
        (b"\r\n<html>", "comes next, but b'<htm'"),
        (with_sizes([("a", b"1")]) + bytes(zip_stream.TRAILER_BYTES + 1), "more than 1048576 bytes follow the end"),
        (with_sizes([("a", b"1")])[:-22] + (b"PK\1\2" + bytes(42)) * 3, "more than the 1 files"),
        (with_sizes([("a", b"1")]).replace(b"PK\1\2", b"PK\1\3"), "neither an entry nor the end"),
    ],
)
def test_what_is_no_zip_is_told(body: bytes, told: str) -> None:
    with pytest.raises(InvalidZip, match=told):
        read(body)


# --- what other writers do, and what stands between them and us


class Unseekable(io.BytesIO):
    """What the standard library streams to: it writes descriptors then."""

    def seekable(self) -> bool:
        return False

    def seek(self, *args: int) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def by_library(entries: Files, method: int, *, wide: bool, target: io.BytesIO, comment: bytes = b"") -> bytes:
    with zipfile.ZipFile(target, "w", method) as zipped:
        zipped.comment = comment
        for name, data in entries:
            with zipped.open(name, "w", force_zip64=wide) as file:
                file.write(data)
    return target.getvalue()


METHODS = st.sampled_from([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])


@given(files, METHODS, st.booleans(), st.booleans(), st.integers())
def test_whatever_the_standard_library_writes_is_read(
    entries: Files, method: int, wide: bool, seekable: bool, seed: int
) -> None:
    body = by_library(entries, method, wide=wide, target=io.BytesIO() if seekable else Unseekable())
    assert read(body, seed) == (entries, [True] * len(entries))


@given(files, METHODS, st.booleans(), st.data())
def test_a_library_s_stream_that_ends_early_is_never_whole(
    entries: Files, method: int, wide: bool, data: st.DataObject
) -> None:
    body = by_library(entries, method, wide=wide, target=Unseekable())
    with pytest.raises(InvalidZip):
        read(body[: data.draw(st.integers(0, len(body) - 1))])


def test_a_stored_stream_may_contain_what_looks_like_its_end() -> None:
    inner = by_library([("in", b"x" * 30)], zipfile.ZIP_STORED, wide=False, target=Unseekable())
    entries = [("nested", inner * 3), ("signature", b"PK\7\x08" * 9 + b"PK\7"), ("empty", b""), ("half", b"PK")]
    body = by_library(entries, zipfile.ZIP_STORED, wide=False, target=Unseekable())
    for seed in range(20):
        assert read(body, seed) == (entries, [True] * 4)


ONE = [("a", b"1" * 50), ("b", b"")]


@pytest.mark.parametrize("before", [b"", b"\r\n", b"\xef\xbb\xbf", b" \t\n", b"PK00", b"PK\7\x08", b"\nPK00"])
@pytest.mark.parametrize("after", [b"", b"\n", b"\0" * 512, b"<!-- proxy -->\r\n", b"PK\3\4 and no more"])
@pytest.mark.parametrize("comment", [b"", b"PK\5\6", b"a remark" * 100])
def test_bytes_around_a_whole_zip_do_not_matter(before: bytes, after: bytes, comment: bytes) -> None:
    body = by_library(ONE, zipfile.ZIP_DEFLATED, wide=False, target=io.BytesIO(), comment=comment)
    assert read(before + body + after, 3) == (ONE, [True, True])
    with pytest.raises(InvalidZip):
        read(before + body[:-1])


def by_hand(
    data: bytes, flags: int, descriptor: str, sizes: str, *, method: int = 8, name: bytes = b"a", off: int = 0
) -> bytes:
    """Return a zip of one entry, with a 64-bit end although it is small.

    Args:
        data: its contents.
        flags: of the entry.
        descriptor: layout of the data descriptor, for struct: ``<4s3I`` with its signature; empty for none.
        sizes: what the header states: ``none``, ``true``, or ``wide``, in an extra field.
        method: how it is packed.
        name: of the entry.
        off: how much the CRC of the descriptor is wrong.
    """
    packed = deflated(data).data if method else data
    crc, lengths = zlib.crc32(data), (len(packed), len(data))
    stated = {"none": (0, 0, 0), "true": (crc, *lengths), "wide": (crc, 2**32 - 1, 2**32 - 1)}[sizes]
    extra = struct.pack("<HH4s", 0x5455, 4, b"time")
    if sizes == "wide":
        extra += struct.pack("<HHQQ", 1, 16, len(data), len(packed))
    body = struct.pack("<4s5H3I2H", b"PK\3\4", 45, flags, method, 0, 0, *stated, len(name), len(extra))
    body += name + extra + packed
    if descriptor:
        signature = [b"PK\7\x08"] if "s" in descriptor else []
        body += struct.pack(descriptor, *signature, crc ^ off, *lengths)
    at = len(body)
    body += (
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 45, flags, method, 0, 0, crc, *lengths, len(name), *[0] * 6) + name
    )
    length = len(body) - at
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, length, at)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, len(body), 1)
    return body + end + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, length, at, 0)


DATA = [b"", b"x", b"DICM" * 500]


@pytest.mark.parametrize("data", DATA, ids=len)
@pytest.mark.parametrize("descriptor", ["<4s3I", "<3I", "<4sIQQ", "<IQQ"])
@pytest.mark.parametrize("sizes", ["none", "true", "wide"])
@pytest.mark.parametrize("flags", [0x8, 0x808])
def test_a_descriptor_is_read_with_or_without_signature_and_width(
    data: bytes, descriptor: str, sizes: str, flags: int
) -> None:
    name = "à.dcm" if flags & 0x800 else "a.dcm"
    body = by_hand(data, flags, descriptor, sizes, name=name.encode())
    assert read(body) == ([(name, data)], [True])
    assert zipfile.ZipFile(io.BytesIO(body)).read(name) == data, "the zip itself is right"
    wrong = by_hand(data, flags, descriptor, sizes, name=name.encode(), off=1)
    assert read(wrong) == ([(name, data)], [False])


@pytest.mark.parametrize("data", DATA[1:], ids=len)
@pytest.mark.parametrize(("flags", "descriptor"), [(0, ""), (0x8, "<4s3I"), (0x8, "<3I"), (0x808, "<4sIQQ")])
@pytest.mark.parametrize("sizes", ["true", "wide"])
def test_a_stored_entry_that_states_its_length_is_read(data: bytes, flags: int, descriptor: str, sizes: str) -> None:
    body = by_hand(data, flags, descriptor, sizes, method=0)
    assert read(body) == ([("a", data)], [True])


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
    monkeypatch.setattr(zip_stream, "Inflater", zip_stream._Inflater)
    monkeypatch.setattr(zip_stream, "DeflateError", zlib.error)
    entries = [("a", random.Random(2).randbytes(50_000)), ("b", b""), ("c", bytes(5 * zip_stream.PIECE_BYTES))]
    assert read(streamed(entries), 3) == (entries, [True] * 3)
    with pytest.raises(InvalidZip, match="damaged"):
        body = streamed([("a", b"abc" * 1000)])
        read(body[:31] + b"\xff" * 10 + body[41:])
