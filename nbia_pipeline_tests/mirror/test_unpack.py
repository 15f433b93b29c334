"""What arrives is written once, under its own name, and only as far as it may be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbia_pipeline.mirror.unpack import NotVerified, UnsafeZip, ZipBounds, take_single, unpack
from nbia_pipeline_tests.helpers.dicom import dicom
from nbia_pipeline_tests.helpers.zips import MD5_LIST, pack, with_true_list

SERIES = "1.2.3"
ROOM = ZipBounds(1 << 30, 100)


def image(number: int, size: int = 100, series: str = SERIES) -> bytes:
    """Return a DICOM file of at least `size` bytes."""
    return dicom(
        SOPInstanceUID=f"1.2.3.{number}",
        SeriesInstanceUID=series,
        InstanceNumber=number,
        EncapsulatedDocument=bytes(size),
    )


def in_pieces(content: bytes) -> Iterator[bytes]:
    return (content[at : at + 50_000] for at in range(0, len(content), 50_000))


def test_large_and_small_files_are_written_alike(tmp_path: Path) -> None:
    images = {"00000001.dcm": image(1), "00000002.dcm": image(2, size=9 << 20), "00000003.dcm": image(3, size=5 << 20)}
    arrived: list[int] = []
    zipped = pack(with_true_list(list(images.items())))
    found = unpack(in_pieces(zipped), tmp_path / "files", SERIES, ROOM, arrived.append)
    assert {p.name: p.read_bytes() for p in (tmp_path / "files").iterdir()} == {
        f"1.2.3.{n}.dcm": content for n, content in enumerate(images.values(), 1)
    }
    for n, content in enumerate(images.values(), 1):
        instance = found.instances[f"1.2.3.{n}"]
        assert (instance.Size, instance.MD5) == (len(content), hashlib.md5(content).hexdigest())
        assert (instance.InstanceNumber, found.names[f"1.2.3.{n}"]) == (n, f"{n:08d}.dcm")
    assert found.verified() == found.instances
    assert found.faults == []
    sizes = [len(content) for content in images.values()]
    assert arrived == sorted(arrived) and {sizes[0], sum(sizes)} < set(arrived)
    assert len(arrived) > 10, "large files count while they arrive"


def test_a_bad_file_costs_only_itself(tmp_path: Path) -> None:
    entries = [
        ("1", image(1)),
        ("2", b"no image"),
        ("3", image(3, series="9.9")),
        ("4", image(4, size=5 << 20, series="9.9")),
        ("5", image(5)),
    ]
    found = unpack([pack(with_true_list(entries))], tmp_path / "files", SERIES, ROOM)
    assert sorted(p.name for p in (tmp_path / "files").iterdir()) == ["1.2.3.1.dcm", "1.2.3.5.dcm"]
    assert [f.split(":")[0] for f in found.faults] == ["2", "3", "4"]
    assert "it is not DICOM" in found.faults[0]
    assert "it belongs to series 9.9" in found.faults[1]


def test_a_stream_that_is_read_again_starts_clean(tmp_path: Path) -> None:
    unpack([pack(with_true_list([("1", image(1))]))], tmp_path / "files", SERIES, ROOM)
    found = unpack([pack(with_true_list([("1", image(2))]))], tmp_path / "files", SERIES, ROOM)
    assert [p.name for p in (tmp_path / "files").iterdir()] == ["1.2.3.2.dcm"] and list(found.instances) == ["1.2.3.2"]


@pytest.mark.parametrize("size", [3 << 20, 5 << 20, 200 << 20])
def test_more_than_was_announced_never_touches_the_disk(tmp_path: Path, size: int) -> None:
    bomb = pack([("1", image(1)), ("bomb", bytes(size))])
    written: list[int] = []

    def watched() -> Iterator[bytes]:
        for piece in in_pieces(bomb):
            written.append(sum(p.stat().st_size for p in (tmp_path / "files").iterdir()))
            yield piece

    with pytest.raises(UnsafeZip, match="larger than the archive announced"):
        unpack(watched(), tmp_path / "files", SERIES, ZipBounds(1 << 20, 100))
    assert max(written) <= 1 << 20
    assert [p.name for p in (tmp_path / "files").iterdir()] == ["1.2.3.1.dcm"]


def test_the_files_thrown_away_count_as_well(tmp_path: Path) -> None:
    zipped = pack([(f"{n}", bytes(400_000)) for n in range(5)])
    with pytest.raises(UnsafeZip):
        unpack([zipped], tmp_path / "files", SERIES, ZipBounds(1_000_000, 100))


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeZip, match="more than 100 files"):
        unpack([pack([(f"{n}", b"") for n in range(101)])], tmp_path / "files", SERIES, ROOM)


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "a\\b", ".", ".."])
def test_a_name_that_is_a_path_is_refused_before_it_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeZip, match="a name that is a path"):
        unpack([pack([(name, image(1))])], tmp_path / "files", SERIES, ROOM)
    assert list((tmp_path / "files").iterdir()) == []


def test_an_instance_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeZip, match=r"instance 1\.2\.3\.1 is in the zip twice"):
        unpack([pack([("1", image(1)), ("2", image(1))])], tmp_path / "files", SERIES, ROOM)


def test_only_the_listed_digest_proves(tmp_path: Path) -> None:
    content = [image(1), image(2), image(3)]
    digests = [hashlib.md5(content[0]).hexdigest().upper(), "", "0" * 32]
    text = "\n".join(["Filename,MD5Hash", *(f"{n},{d}" for n, d in enumerate(digests, 1)), ""])
    entries = [*((f"{n}", c) for n, c in enumerate(content, 1)), (MD5_LIST, text.encode())]
    found = unpack([pack(entries)], tmp_path / "files", SERIES, ROOM)
    assert list(found.verified()) == ["1.2.3.1"]
    assert list(found.instances) == ["1.2.3.1", "1.2.3.2", "1.2.3.3"]


def test_a_single_file_must_be_the_one_asked_for(tmp_path: Path) -> None:
    instance = take_single(in_pieces(image(1, size=5 << 20)), tmp_path, SERIES, "1.2.3.1", 6 << 20)
    assert (tmp_path / "1.2.3.1.dcm").stat().st_size == instance.Size
    with pytest.raises(NotVerified, match=r"asked for instance 1\.2\.3\.1, the archive sent 1\.2\.3\.2"):
        take_single([image(2)], tmp_path, SERIES, "1.2.3.1", 1 << 20)
    with pytest.raises(UnsafeZip):
        take_single([image(3, size=2 << 20)], tmp_path, SERIES, "1.2.3.3", 1 << 20)
    assert [p.name for p in tmp_path.iterdir()] == ["1.2.3.1.dcm"]
