"""Whatever leaves its identity readable is read, of ordinary files and of odd ones, and no more of it than 1 MiB."""

from __future__ import annotations

import io
import tracemalloc
import warnings
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.mirror.dicom_header import MOST_BYTES, Header, NotDicom, header_of, read_header
from nbia_pipeline_tests.helpers.dicom import dicom
from nbia_pipeline_tests.helpers.dicom_bytes import (
    BIG,
    CT,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    PREAMBLE,
    UNDEFINED,
    data_set,
    deflated,
    element,
    long_form,
    meta,
    nested,
    short_form,
)

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
BUNDLED = Path(pydicom.__file__).parent / "data"
uids = st.from_regex(r"[1-9](\.[1-9][0-9]{0,6}){1,6}", fullmatch=True)


class CountedFile(io.BytesIO):
    """A file that counts how much of it is read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        self.count += len(piece)
        return piece


@given(uids, uids, st.none() | st.integers(-(2**31) + 1, 2**31 - 1), st.sampled_from(SYNTAXES))
def test_every_encoding_gives_the_same(sop: str, series: str, number: int | None, syntax: str) -> None:
    values = {"SOPClassUID": CT, "PatientName": "Ä^Ö", "SpecificCharacterSet": "ISO_IR 192"}
    content = dicom(syntax, SOPInstanceUID=sop, SeriesInstanceUID=series, InstanceNumber=number, **values)
    assert read_header(content) == Header(sop, series, CT, number)


def test_the_demo_s_files_are_read_as_pydicom_reads_them(demo: Catalog) -> None:
    store = demo.images
    assert store is not None
    for uid in demo.series["SeriesInstanceUID"].to_pylist()[:4]:
        for instance in store.instances(uid):
            content = store.read(uid, instance.sop_instance_uid)
            whole = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
            number = whole.get("InstanceNumber")
            assert read_header(content) == Header(instance.sop_instance_uid, uid, whole.SOPClassUID, number)


def test_real_files_are_read_as_pydicom_reads_them() -> None:
    """These come with pydicom: scanners' files, some without a prefix or meta group, and some broken on purpose."""
    read, without_prefix = [], []
    for path in sorted(p for p in BUNDLED.rglob("*") if p.is_file()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                whole = pydicom.dcmread(path, force=True, stop_before_pixels=True)
                sop, series = (str(whole.get(name) or "") for name in ("SOPInstanceUID", "SeriesInstanceUID"))
                found = Header(sop, series, str(whole.SOPClassUID), whole.get("InstanceNumber"))
                expected = found if sop and series else None
        except Exception:  # noqa: BLE001 - palettes, text files
            expected = None
        if expected is None:
            with pytest.raises(NotDicom):
                read_header(path)
            continue
        assert read_header(path) == read_header(path.read_bytes()) == expected, path.name
        read.append(path.name)
        if path.read_bytes()[128:132] != b"DICM":
            without_prefix.append(path.name)
    assert len(read) >= 100
    assert {"ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm"} <= set(without_prefix)


NAME = element(0x00100010, "PN", "A^B")
OTHER = element(0x00080018, "UI", "9.9.9") + element(0x0020000E, "UI", "9.9")  # of something that is referred to
OTHER_IMPLICIT = element(0x00080018, "", "9.9.9") + element(0x0020000E, "", "9.9")
START = PREAMBLE + meta()
GROUP_10 = b"\x10\0\x10\0"
UNKNOWN = element(0x00090010, "LO", "X", ">") + b"\0\x09\x10\x01" + nested(0, OTHER_IMPLICIT, vr="UN")[4:]
DEEP = b""
for _ in range(40):
    DEEP = nested(0x00081140, DEEP)

ODD = {
    # without preamble, prefix or meta group
    "nothing before an explicit data set": data_set(),
    "nothing before an implicit data set": data_set(implicit=True),
    "nothing before a big endian data set": data_set(order=">"),
    "the meta group comes first": meta() + data_set(),
    "the meta group comes first, implicit data set": meta(IMPLICIT) + data_set(implicit=True),
    "a preamble without a prefix": bytes(128) + data_set(),
    "a preamble without a prefix, then the meta group": bytes(128) + meta(BIG) + data_set(order=">"),
    "a preamble with something in it and no prefix": b"A text. " * 16 + meta() + data_set(),
    "a prefix without a preamble": b"DICM" + meta() + data_set(),
    "a prefix and no meta group": PREAMBLE + data_set(),
    "a prefix, no meta group, implicit": PREAMBLE + data_set(implicit=True),
    # the transfer syntax
    "no transfer syntax": PREAMBLE + meta(None) + data_set(order=">"),
    "an empty transfer syntax": PREAMBLE + meta("") + data_set(implicit=True),
    "a private transfer syntax": PREAMBLE + meta("1.2.840.113619.5.2") + data_set(),
    "a syntax that is unknown": PREAMBLE + meta("1.2.3.4.5.6") + data_set(),
    "states implicit, is explicit": PREAMBLE + meta(IMPLICIT) + data_set(),
    "states explicit, is implicit": PREAMBLE + meta(EXPLICIT) + data_set(implicit=True),
    "states little endian, is big": PREAMBLE + meta(EXPLICIT) + data_set(order=">"),
    "states big endian, is little": PREAMBLE + meta(BIG) + data_set(),
    "the length of the meta group is wrong": PREAMBLE + meta(length=7) + data_set(),
    "a command group": START + element(0x00000002, "", CT) + data_set(),
    # deflated
    "deflated": PREAMBLE + meta(DEFLATED) + deflated(data_set()),
    "deflated with the header of zlib": PREAMBLE + meta(DEFLATED) + deflated(data_set(), 15),
    "deflated without a prefix": meta(DEFLATED) + deflated(data_set()),
    "deflated and cut": PREAMBLE + meta(DEFLATED) + deflated(data_set(after=bytes(range(256)) * 40))[:-20],
    "states deflated, is not": PREAMBLE + meta(DEFLATED) + data_set(),
    # sequences before the identity
    "a sequence of undefined length": START + data_set(before=nested(0x00081140, OTHER, items=3)),
    "an implicit one": PREAMBLE + meta(IMPLICIT) + data_set(
        implicit=True, before=nested(0x00081140, OTHER_IMPLICIT, vr="")
    ),
    "a big endian one": PREAMBLE + meta(BIG) + data_set(order=">", before=nested(0x00081140, order=">")),
    "an unknown one with implicit contents": START + data_set(
        before=nested(0x00091140, nested(0x00081140, OTHER_IMPLICIT, vr=""), vr="UN")
    ),
    "an unknown one, big endian": PREAMBLE + meta(BIG) + data_set(order=">", before=UNKNOWN),
    "40 levels of sequences": START + data_set(before=DEEP),
    "a delimiter too many": START + data_set(before=b"\xfe\xff\xdd\xe0" + bytes(4)),
    # elements
    "an unknown VR": START + data_set(before=element(0x00080070, b"??", "AB")),
    "an unknown VR, and nothing in it": START + data_set(before=element(0x00080070, b"??")),
    "a VR of zeros": START + data_set(before=b"\x08\0\x70\0" + b"\4\0\0\0ABCD"),
    "a VR that nobody knows": START + data_set(before=element(0x00091001, b"RT", "ABCD")),
    "a new VR in the long form": START + data_set(before=long_form(0x00091001, "ZZ", b"ABCD")),
    "text in the long form": START + data_set(before=long_form(0x00080070, "LO", b"Maker ")),
    "unknown in the short form": START + data_set(before=short_form(0x00091001, "UN", b"ABCD")),
    "the identity has VR UN": START + element(0x00080016, "UN", CT) + element(0x00080018, "UN", "1.2.5.1")
    + element(0x0020000E, "UN", "1.2.5") + element(0x00200013, "UN", "7"),
    "the first group is implicit": START + data_set(implicit=True).split(GROUP_10)[0]
    + GROUP_10 + data_set().split(GROUP_10)[1],
    "text that is not ASCII": START + data_set(before=element(0x00080070, "LO", b"\xff\xfe\x80\x81")),
    "the series comes first": START + element(0x0020000E, "UI", "1.2.5") + data_set(series="9.9"),
    "the identity comes last": START + element(0x00280010, "US", b"\2\0")
    + element(0x7FE00010, "OW", bytes(200_000)) + data_set(),
    "the identity comes after encapsulated pixels": START + b"\xe0\x7f\x10\0OB\0\0" + UNDEFINED
    + (b"\xfe\xff\0\xe0\4\0\0\0ABCD" * 3) + b"\xfe\xff\xdd\xe0\0\0\0\0" + data_set(),
    "500 private elements of 3 KB in front": START + data_set(before=element(0x00091001, "OB", bytes(3000)) * 500),
    "5 MiB of a private element in front": START + data_set(before=element(0x00091001, "OB", bytes(5 << 20))),
    # UIDs
    "UIDs padded with blanks": START + data_set("1.2.5.1   ", " 1.2.5  "),
    "UIDs padded with zeros": START + data_set("1.2.5.1\0\0\0", "1.2.5\0\0\0"),
    "a UID from a buffer that was not cleared": START + data_set("1.2.5.1\0\x93\xfe\1", "1.2.5\0xx"),
    "the meta group names another instance": PREAMBLE + meta(sop="9.9.9") + data_set(),
    # what comes after the identity
    "cut after the identity": START + data_set()[:-10],
    "a broken length after it": START + data_set(after=b"\x28\0\x30\0UT\0\0\xf0\xff\xff\xff"),
    "garbage after it": START + data_set(after=b"\xa5" * 5000),
    "a sequence without an end after it": START + data_set(after=nested(0x00280040, OTHER)[:40]),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_attributed(name: str, tmp_path: Path) -> None:
    expected = Header("1.2.5.1", "1.2.5", CT, 7)
    assert read_header(ODD[name]) == expected
    path = tmp_path / "file"
    path.write_bytes(ODD[name])
    assert read_header(path) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), (" -3 ", -3), ("+5", 5), ("", None), ("abc", None), ("1.0", None), ("1\\2", 1), ("9" * 12, None)],
)
def test_an_instance_number_is_a_number_or_none(text: str, number: int | None) -> None:
    assert read_header(START + data_set(number=text)).InstanceNumber == number


@pytest.mark.parametrize("rest", [b"", b"\x20\0\x13\0", b"\x20\0\x13\0IS\xff\xff7 ", b"\x20\0\x13\0IS\2\0\xff\xfe"])
def test_what_is_broken_after_the_uids_costs_the_number_only(rest: bytes) -> None:
    whole = START + data_set()
    cut = whole[: whole.index(b"\x20\0\x13\0IS")]
    assert read_header(cut + rest) == Header("1.2.5.1", "1.2.5", CT, None)


FAR = nested(0x00081140, b"".join(element(0x00080018, "UI", "1.2") for _ in range(60_000)))

REFUSED = {
    "an empty file": (b"", r"^it is empty \(0 bytes\)$"),
    "a page": (b"<html>" * 100, "^it is not DICOM: it begins with b'<html><html><htm'$"),
    "one byte": (b"\2", r"^it is not DICOM: it begins with b'\\x02'$"),
    "zeros": (bytes(5000), "^it is not DICOM: it begins with"),
    "a prefix and nothing else": (PREAMBLE, "^it has no data set that can be read$"),
    "no instance": (START + element(0x0020000E, "UI", "1.2.5"), "^it has no SOPInstanceUID$"),
    "no series": (START + element(0x00080018, "UI", "1.2.5.1"), "^it has no SeriesInstanceUID$"),
    "an empty UID": (START + data_set(""), "^its SOPInstanceUID is empty$"),
    "a UID of zeros": (START + data_set(series=b"\0\0"), "^its SeriesInstanceUID is empty$"),
    "a UID that is not text": (START + data_set(b"1.2\xff5"), r"^its SOPInstanceUID is not a UID: b'1.2\\xff5'$"),
    "broken between the UIDs": (
        START + data_set(before=b"\x08\0\x70\0LO\xf0\xff"),
        "^it has no SeriesInstanceUID: its elements are broken after byte 282$",
    ),
    "cut between the UIDs": (START + data_set()[:75], "^it has no SeriesInstanceUID: .* after byte 222$"),
    "a sequence without an end": (
        START + data_set(before=nested(0x00081140)[:-8]),
        "^it has no SeriesInstanceUID: its elements are broken after byte 282$",
    ),
    "more than 1 MiB in front": (
        START + data_set(before=FAR),
        "^it has no SeriesInstanceUID within the first 1 MiB, and no more of it is read$",
    ),
    "more than 1 MiB in front, deflated": (
        PREAMBLE + meta(DEFLATED) + deflated(data_set(before=element(0x00091001, "OB", bytes(2 << 20)))),
        "^it has no SeriesInstanceUID within the first 1 MiB, and no more of it is read$",
    ),
    "more than 1 MiB in pieces in front": (
        START + data_set(before=element(0x00091001, "OB", bytes(3000)) * 1200),
        "^it has no SeriesInstanceUID within the first 1 MiB, and no more of it is read$",
    ),
    "a deflated stream that is broken": (PREAMBLE + meta(DEFLATED) + b"\xa5" * 99, "^it has no SOPInstanceUID: "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_attributed_says_why(name: str) -> None:
    content, why = REFUSED[name]
    with pytest.raises(NotDicom, match=why):
        read_header(content)


@pytest.mark.parametrize("wbits", [-15, 15])
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_deflated_file_is_inflated_up_to_its_identity(wbits: int, where: str) -> None:
    zeros = zlib.compressobj(9, zlib.DEFLATED, wbits)
    large = b"\x09\0\x01\x10OB\0\0" + (1 << 30).to_bytes(4, "little")
    first = data_set() if where == "after" else data_set()[:60]
    body = zeros.compress(first + large) + zeros.compress(bytes(16 << 20)) + zeros.flush()
    file = CountedFile(PREAMBLE + meta(DEFLATED) + body)
    tracemalloc.start()
    try:
        if where == "after":
            assert header_of(file).SOPInstanceUID == "1.2.5.1"
        else:
            with pytest.raises(NotDicom, match="within the first 1 MiB"):
                header_of(file)
        assert tracemalloc.get_traced_memory()[1] < 3 * MOST_BYTES
    finally:
        tracemalloc.stop()
    assert file.count <= 1 << 17


def test_deflated_bytes_that_inflate_to_nothing_are_bounded() -> None:
    file = CountedFile(PREAMBLE + meta(DEFLATED) + b"\0\0\0\xff\xff" * (1 << 19))  # empty blocks, 2.5 MiB of them
    with pytest.raises(NotDicom):
        header_of(file)
    assert file.count <= MOST_BYTES


def test_a_skipped_element_is_not_read() -> None:
    file = CountedFile(START + data_set(before=element(0x00091001, "OB", bytes(8 << 20))))
    assert header_of(file).SeriesInstanceUID == "1.2.5"
    assert file.count <= 1 << 15


@given(st.binary(max_size=400))
def test_other_bytes_are_not_dicom(content: bytes) -> None:
    with pytest.raises(NotDicom):
        read_header(content)
    with pytest.raises(NotDicom):
        read_header(PREAMBLE + content)


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(ODD)),
    st.integers(0, 2000),
    st.lists(st.tuples(st.integers(0, 800), st.binary(min_size=1, max_size=12)), max_size=4),
)
def test_whatever_is_cut_or_overwritten_is_read_or_refused_with_bounded_work(
    name: str, cut: int, changes: list[tuple[int, bytes]]
) -> None:
    content = bytearray(ODD[name][: 1 << 21])
    for at, new in changes:
        content[at : at + len(new)] = new
    file = CountedFile(bytes(content[: len(content) - cut]))
    try:
        header = header_of(file)
    except NotDicom as e:
        assert "force" not in str(e)
    else:
        assert header.SOPInstanceUID and header.SeriesInstanceUID
    assert file.count <= MOST_BYTES
