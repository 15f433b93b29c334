"""Names become paths and come back; no name leads out of its folder."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbia_pipeline.lake import LakeError
from nbia_pipeline.lake.layout import annotations_path, decode, encode, instance_name, series_path, table_path

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


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


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(LakeError, match="empty name"):
        encode("")


def test_paths_are_those_of_the_contract() -> None:
    assert table_path("collections") == "tables/collections/part-0.parquet"
    assert table_path("series", "RIDER Lung CT") == "tables/series/Collection=RIDER%20Lung%20CT/part-0.parquet"
    assert series_path("A b", "P/1", "1.2", "1.2.3") == "images/A%20b/P%2F1/1.2/1.2.3"
    assert annotations_path("A b", "P/1", "1.2", "1.2.3") == "annotations/A%20b/P%2F1/1.2/1.2.3"
    assert instance_name("1.2.3.4") == "1.2.3.4.dcm"
