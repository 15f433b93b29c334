from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline.embedded.api import zip_writer
from nbia_pipeline.embedded.api.zip_writer import Packed, ZipStream, pack
from nbia_pipeline.embedded.catalog import scratch
from nbia_pipeline.embedded.catalog.scratch import Scratch

FILES = st.dictionaries(st.text("abc é.", min_size=1, max_size=9), st.binary(max_size=2000), max_size=5)


def zipped(files: dict[str, bytes]) -> bytes:
    stream = ZipStream()
    parts = [part for name, data in files.items() for part in stream.entry(name, pack(data))]
    return b"".join([*parts, stream.close()])


@given(FILES)
def test_what_is_written_reads_back(files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(io.BytesIO(zipped(files))) as archive:
        assert archive.testzip() is None
        # Names outside of ASCII are read in the old code page, so only their number is compared.
        assert len(archive.namelist()) == len(files)
        assert [archive.read(info) for info in archive.infolist()] == list(files.values())


def test_an_empty_zip_has_22_bytes() -> None:
    assert len(zipped({})) == 22


def test_offsets_beyond_the_limit_use_the_64_bit_format(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{n}.dcm": bytes([n]) * 100 for n in range(4)}
    plain = zipped(files)
    monkeypatch.setattr(zip_writer, "_offset_limit", 50)
    far = zipped(files)
    assert b"PK\6\6" not in plain
    assert far.count(b"PK\6\6") == far.count(b"PK\6\7") == 1
    # The standard library only looks at the extra field where the short field is full.
    with zipfile.ZipFile(io.BytesIO(far)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files


@given(st.binary())
def test_packed_files_keep(data: bytes) -> None:
    packed = pack(data)
    assert Packed.from_bytes(packed.to_bytes()) == packed


@pytest.fixture
def empty_scratch() -> Iterator[Scratch]:
    made = Scratch()
    yield made
    made.clear()


def test_a_scratch_directory_keeps_until_cleared(empty_scratch: Scratch) -> None:
    assert empty_scratch.load("a") is None
    empty_scratch.store("a", b"1")
    assert empty_scratch.load("a") == b"1"
    directory = empty_scratch.directory
    empty_scratch.clear()
    assert not directory.exists()
    assert empty_scratch.load("a") is None


def test_a_scratch_directory_stops_at_its_budget(empty_scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "BUDGET_BYTES", 10)
    empty_scratch.store("a", b"1" * 10)
    empty_scratch.store("b", b"2")
    assert empty_scratch.load("a") is not None
    assert empty_scratch.load("b") is None


def test_a_scratch_directory_removes_what_killed_servers_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f"nbia-archive-{pid}-x").mkdir()
    made = Scratch()
    kept = {made.directory, tmp_path / f"nbia-archive-{os.getpid()}-x"}
    assert set(tmp_path.iterdir()) == kept
