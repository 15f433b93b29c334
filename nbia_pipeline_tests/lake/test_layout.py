"""Names become paths and come back; no name leads out of its folder."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline.lake import LakeError
from nbia_pipeline.lake.layout import (
    annotations_path,
    decode,
    encode,
    instance_name,
    is_folder_note,
    is_foreign,
    series_path,
    table_path,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=19)  # 12 bytes a character at most


@pytest.mark.parametrize(
    ("name", "segment"),
    [
        ("LIDC-IDRI", "LIDC-IDRI"),
        ("QIN_Breast.v2", "QIN_Breast.v2"),
        ("RIDER Lung CT", "RIDER%20Lung%20CT"),
        ("a/b\\c", "a%2Fb%5Cc"),
        ("100%", "100%25"),
        ("Jörg", "J%C3%B6rg"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("~x", "%7Ex"),
    ],
)
def test_a_name_is_percent_encoded_where_it_is_unsafe(name: str, segment: str) -> None:
    assert encode(name) == segment


@given(NAMES)
def test_every_name_comes_back(name: str) -> None:
    assert decode(encode(name)) == name


@given(NAMES)
def test_every_name_is_one_plain_segment(name: str) -> None:
    segment = encode(name)
    assert re.fullmatch(r"[A-Za-z0-9._%-]+", segment)
    assert segment not in (".", "..")


@given(NAMES, NAMES)
def test_two_names_never_share_a_path(a: str, b: str) -> None:
    assert (encode(a) == encode(b)) == (a == b)


@pytest.mark.parametrize(("name", "bytes_"), [("x" * 231, 231), ("\u60a3" * 64, 576), ("." * 77, 231), (" " * 77, 231)])
def test_a_name_that_is_too_long_for_a_folder_is_refused(name: str, bytes_: int) -> None:
    with pytest.raises(LakeError, match=f"percent-encoded it has {bytes_} bytes, and a folder or file takes 230"):
        encode(name)
    assert len(encode(name[:19])) <= 230


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(LakeError, match="empty name"):
        encode("")


NOTES = [".DS_Store", "._1.2.dcm", "Thumbs.db", "THUMBS.DB", "ehthumbs.db", "Desktop.ini", ".directory"]
OTHERS = [
    ".nfs000000000123abcd0000001f",
    ".fuse_hidden0000000a00000001",
    ".smbdelete123",
    ".Spotlight-V100",
    ".fseventsd/no_log",
    ".Trashes/501/1.2.dcm",
    ".Trash-1000",
    "lost+found/#123",
    ".snapshot/hourly.0/1.2.dcm",
    ".AppleDouble/1.2.dcm",
    "@eaDir/1.2.dcm",
    "$RECYCLE.BIN/desktop.ini",
    "1.2.dcm~",
    ".~lock.1.2.dcm#",
    ".1.2.dcm.swp",
    "old/.DS_Store",
]


@pytest.mark.parametrize("name", [*NOTES, *OTHERS])
def test_what_others_leave_in_any_folder_is_known(name: str) -> None:
    assert is_foreign(name)
    assert is_folder_note(name) == (name in NOTES)


@pytest.mark.parametrize(
    "name", ["1.2.dcm", "LICENSE~x.txt", "x.DS_Store", "thumbs.db.dcm", "nfs1", "old~/1.2.dcm", "a"]
)
def test_what_others_do_not_leave_is_not(name: str) -> None:
    assert not is_foreign(name) and not is_folder_note(name)


@given(st.lists(st.integers(0, 99999).map(str), min_size=1, max_size=7).map(".".join))
def test_no_file_of_an_instance_is_taken_for_another_s(uid: str) -> None:
    assert not is_foreign(instance_name(uid))


def test_paths_are_those_of_the_contract() -> None:
    assert table_path("collections") == "tables/collections/part-0.parquet"
    assert table_path("series", "RIDER Lung CT") == "tables/series/Collection=RIDER%20Lung%20CT/part-0.parquet"
    assert series_path("A b", "P/1", "1.2", "1.2.3") == "images/A%20b/P%2F1/1.2/1.2.3"
    assert annotations_path("A b", "P/1", "1.2", "1.2.3") == "annotations/A%20b/P%2F1/1.2/1.2.3"
    assert instance_name("1.2.3.4") == "1.2.3.4.dcm"
