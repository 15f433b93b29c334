"""Headers of any bytes: a row each, no exception, no endless work, and nothing of the file before in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbia_pipeline.headers.batch import Batch
from nbia_pipeline.headers.parse.elements import LONG_FORM, SHORT_FORM
from nbia_pipeline.headers.parse.walker import Walker
from nbia_pipeline_tests.helpers.dicom_bytes import BIG, DEFLATED, EXPLICIT, IMPLICIT, PREAMBLE, element, meta, nested
from nbia_pipeline_tests.helpers.headers import add, demo_files, highdicom_files, parsed, pydicom_files, quiet

MOST_CALLS = 400_000
"""Some tenths of a second: a header of 120 elements takes 1,000 calls of functions, and pydicom 20,000."""

WORDS = [b"\xff" * 4, bytes(4), b"\xfe\xff\x00\xe0", b"SQ\0\0", b"UN\0\0"]
VRS = st.sampled_from(sorted([*LONG_FORM.values(), *SHORT_FORM.values(), "", "??"]))
TAGS = st.one_of(
    st.sampled_from([0x00080005, 0x00080018, 0x00100010, 0x00200013, 0x00280103, 0x00280106, 0x00081140, 0x00131010]),
    st.sampled_from([0x7FE00010, 0x7FE00001, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x00090010, 0x00091001, 0x00020010]),
    st.integers(0, 2**32 - 1),
)
ELEMENTS = st.builds(element, TAGS, VRS, st.binary(max_size=20))
SEQUENCES = st.recursive(
    ELEMENTS,
    lambda inner: st.builds(
        lambda tag, parts, vr: nested(tag, b"".join(parts), vr=vr),
        TAGS,
        st.lists(inner, max_size=3),
        st.sampled_from(["SQ", "UN", ""]),
    ),
    max_leaves=12,
)
MADE = st.builds(
    lambda syntax, parts: PREAMBLE + meta(syntax) + b"".join(parts),
    st.sampled_from([EXPLICIT, IMPLICIT, BIG, DEFLATED, "1.2.840.10008.1.2.4.50", None]),
    st.lists(SEQUENCES, max_size=12),
)


@lru_cache(maxsize=2)
def real_files(*, many: bool) -> list[bytes]:
    """Return the beginnings of real files, with their ends."""
    found = {**pydicom_files(), **(demo_files() | highdicom_files() if many else {})}
    return [data if len(data) < 6_000 else data[:5000] + data[-1000:] for data in found.values()]


@st.composite
def damaged(draw: Any, *, many: bool) -> bytes:
    """Return a real file with some damage."""
    data = bytearray(draw(st.sampled_from(real_files(many=many))))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(data), 8000)))
        kind = draw(st.sampled_from("flip set cut insert repeat end".split()))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[at : at + 4] = draw(
                st.sampled_from([b"\xff" * 4, bytes(4), b"\xfe\xff\x00\xe0", b"SQ\0\0", b"UN\0\0"])
            )
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=12))
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 60))]
        else:
            del data[at:]
    return bytes(data)


@contextmanager
def few_calls() -> Iterator[None]:
    """Fail where the block calls more functions than a header may take."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > MOST_CALLS:
            sys.setprofile(None)
            raise AssertionError("it goes on and on")

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


def row_by(batch: Batch, data: bytes) -> dict[str, Any]:
    with quiet(), few_calls():
        add(batch, data)
        tables = batch.tables()
    for table in tables.values():
        table.validate(full=True)
    (row,) = tables["instance_headers"].to_pylist()
    return dict(row)


def check_row(data: bytes) -> None:
    """Check the row of a file, read after others and by itself."""
    alone = Batch()
    alone._walker = Walker()
    found = row_by(Batch(), data)
    assert found == row_by(alone, data)
    assert found["SOPInstanceUID"] == "1.2.5.1" and found["Collection"] == "C"
    if found["Header"] is None:
        assert found["Problems"]
        return
    header = parsed(found["Header"])
    parsed(found["FileMeta"])
    for one in found["Omitted"] or ():
        assert one["Offset"] >= 0 and one["Length"] >= 0
        assert one["Tag"] in header or one["Tag"].startswith("7FE0") or found["Problems"]


@pytest.mark.parametrize("kind", ["damaged", "made"])
def test_any_bytes_make_a_row(kind: str, request: pytest.FixtureRequest) -> None:
    many = request.config.getoption("--every-moment")

    @settings(max_examples=1000 if many else 40, deadline=None, database=None, derandomize=not many)
    @given(damaged(many=many) if kind == "damaged" else MADE)
    def check(data: bytes) -> None:
        check_row(data)

    check()


def test_a_number_where_a_text_belongs_is_a_text() -> None:
    # The rows of a batch become one table: a value of another type would cost all of them.
    data = PREAMBLE + meta("1.2.840.10008.1.2.1") + element(0x00080060, "US", b"\7\0")
    assert row_by(Batch(), data)["Modality"] == "7"
